"""What every suite has: requests, images, and figures computed from answers."""

import random
from typing import NamedTuple

from ...metrics.statistics import ratio
from .. import data_files


class Request(NamedTuple):
    """One request to the model.

    id: unique in the suite. image: the image's name. instruction: in chat form; None is the caption form of stage 1.
    candidates: answers to choose from by likelihood; without any, the model writes its answer.
    """

    id: str
    image: str
    instruction: str | None
    max_new_tokens: int = 0
    candidates: tuple = ()


class Figure(NamedTuple):
    """Rows of sums and the image of each, for `statistics.measured`."""

    rows: list
    pictures: list
    value: object = ratio


class Options(NamedTuple):
    """A user's options: data and images (paths or Hub ids), limit (images), seed, max_new_tokens (or None).

    holdout_share: for tar shards, only the images that training with this `data.holdout_share` left out; 0: all of them.
    """

    data: tuple = ()
    images: str | None = None
    limit: int | None = None
    seed: int = 0
    max_new_tokens: int | None = None
    holdout_share: float = 0.0


class Suite:
    """Base class: reads the options, checks the requests."""

    judged, by_person = False, False  # whether verdicts are needed, and whether a person's are accepted

    def __init__(self, options):
        self.options, self.requests = options, []
        self.paths = [data_files.local(name) for name in options.data]
        self.build()
        if options.holdout_share and not isinstance(self.pictures, data_files.Shards):
            raise ValueError(f"--holdout-share uses the keys of tar shards, and {self.data} has none; leave it out")
        self._check()

    def build(self):
        """Sets `pictures`, `data` (its name) and `requests`."""
        raise NotImplementedError

    def figures(self, said, verdicts=None):
        """{way: {figure: Figure}} of {request id: answer}, and of {request id: verdict} if the suite is judged."""
        raise NotImplementedError

    def measure(self, model, processor):
        """Figures that are not based on answers."""
        return {}

    def truth(self, request):
        """The known facts about a request's image, for the report."""
        return ""

    def remark(self, request, answer):
        """The suite's findings about one answer, for the report."""
        return ""

    @property
    def n(self):
        """Number of images that are asked about."""
        return len({request.image for request in self.requests})

    def by_way(self):
        """{way: its requests}: a request's way is the first part of its id."""
        ways = {}
        for request in self.requests:
            ways.setdefault(request.id.partition("/")[0], []).append(request)
        return ways

    def ask(self, image, instruction, max_new_tokens, identity, **more):
        """Adds a request."""
        longest = self.options.max_new_tokens or max_new_tokens
        self.requests.append(Request(identity, image, instruction, longest, **more))

    def need(self, *kinds):
        """The data files of these kinds (see `data_files.find`), and sets `pictures` and `data`."""
        if not self.paths:
            raise ValueError(f"this suite needs --data: {' or '.join(data_files.KINDS[kind] for kind in kinds)}")
        found = data_files.find(self.paths, *kinds)
        first = self.paths[0]
        folder = first if first.is_dir() else first.parent
        self.pictures = data_files.Folder(data_files.local(self.options.images) if self.options.images else _images(folder))
        self.data = ", ".join(path.name for kind in found.values() for path, _ in kind)
        return found

    def shards(self):
        """Whether --data is tar shards; sets `pictures` and `data` then."""
        tars = data_files.tar_files(self.paths)
        if not tars:
            return False
        if others := [path for path in self.paths if path.is_file() and path not in tars]:
            raise ValueError(f"{others[0]}: given with tar shards; expected either shards or other files")
        self.pictures = data_files.Shards(tars, self.options.holdout_share)
        self.data = ", ".join(tar.name for tar in tars)
        if self.options.holdout_share:
            self.data += f" ({self.options.holdout_share:g} held out by key)"
        return True

    def limited(self, pictures):
        """The images to ask about: all, or `limit` random ones, sorted."""
        pictures, limit = sorted(set(pictures)), self.options.limit
        if limit is None:
            return pictures
        if limit > len(pictures):
            raise ValueError(f"--limit is {limit}, but there are {len(pictures)} pictures; expected no more")
        return sorted(random.Random(self.options.seed).sample(pictures, limit))

    def _check(self):
        if not self.requests:
            raise ValueError(f"{self.data}: nothing to ask (n = 0); expected at least one picture and question")
        seen = set()
        for request in self.requests:
            if request.id in seen:
                raise ValueError(f"{self.data}: id {request.id!r} appears twice; expected each once")
            seen.add(request.id)
        self.pictures.check([request.image for request in self.requests])

    def _shares(self, said, hit, requests=None):
        """A Figure of one share: hit(request, answer) -> bool."""
        requests = self.requests if requests is None else requests
        return Figure([[hit(r, said[r.id]), 1] for r in requests], [r.image for r in requests])


def _images(folder):
    return folder / "images" if (folder / "images").is_dir() else folder
