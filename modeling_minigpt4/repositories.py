"""Tensors of model repositories by name, none of them read yet.

A repository is a Hub id or a folder, in safetensors or in PyTorch's own format, in one file or in shards. Only shards with
a wanted tensor are downloaded; a tensor itself is read when it is put in its place.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers.utils import (
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
    cached_file,
)


def split_revision(repo):
    """("NAME/MODEL", "main") for "NAME/MODEL@main"; (absolute path, None) for a folder."""
    if Path(repo).is_dir():
        return str(Path(repo).absolute()), None
    name, _, revision = str(repo).partition("@")
    return name, revision or None


class StoredTensors(Mapping):
    """{name: tensor, or safetensors slice that becomes one with `[...]`} of a repository's weights.

    Only shards with a requested tensor are downloaded and opened, each of them once.

    Raises:
        OSError: the repository does not exist, or has no weights.
        ValueError: a file is damaged, a git-lfs pointer, or contains pickled code.
    """

    def __init__(self, repo, **hub):
        self._repo, self._hub, self._opened = repo, hub, {}
        for index, single in ((SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME), (WEIGHTS_INDEX_NAME, WEIGHTS_NAME)):
            if path := _find(repo, index, **hub):
                shards = json.loads(Path(path).read_text("utf-8"))["weight_map"]
                self._files = {name: Path(shard).name for name, shard in shards.items()}
                return
            if path := _find(repo, single, **hub):
                self._opened[single] = _open(path)
                self._files = dict.fromkeys(self._opened[single], single)
                return
        raise OSError(f"{repo}: no weights there; expected {SAFE_WEIGHTS_NAME} or {WEIGHTS_NAME}, whole or in shards")

    def __getitem__(self, name):
        file = self._files[name]
        if file not in self._opened:
            self._opened[file] = _open(cached_file(self._repo, file, **self._hub))
        if name not in self._opened[file]:
            raise ValueError(f"{self._repo}: {file} does not have the tensor {name!r} that the index says it does")
        return self._opened[file][name]

    def __iter__(self):
        return iter(self._files)

    def __len__(self):
        return len(self._files)


def shape_of(tensor):
    """The shape of a tensor or of a safetensors slice, as a tuple."""
    return tuple(tensor.get_shape() if hasattr(tensor, "get_shape") else tensor.shape)


def common_prefix(names, expected):
    """The prefix under which most of the `expected` names occur in `names`: "vision_model." for a BLIP-2.

    Returns None if no expected name occurs under any prefix.
    """
    names, expected = set(names), list(expected)
    prefixes = {""} | {name[: i + 1] for name in names for i, letter in enumerate(name) if letter == "."}
    hits = {prefix: sum(prefix + name in names for name in expected) for prefix in prefixes if prefix.count(".") < 4}
    best = max(sorted(hits), key=hits.get)
    return best if hits[best] else None


def check_is_weights(path):
    """Raises ValueError if a file is a git-lfs pointer instead of the large file itself."""
    with open(path, "rb") as file:
        if file.read(40).startswith(b"version https://git-lfs"):
            raise ValueError(f"{path}: a git-lfs pointer, not the file itself; run `git lfs pull` or download it again")


def read_pickle(path, mmap=False):
    """The contents of a file that `torch.save` wrote, tensors on the CPU; code in it is never run.

    Raises:
        ValueError: the file contains code or is damaged; one line that names it.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # corrupt bytes make the unpickler raise anything: KeyError, EOFError, ...
        if code := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise ValueError(f"{path}: refused, it contains a pickled {code[1]}; expected only tensors") from error
        raise ValueError(f"{path}: damaged, truncated or not a checkpoint that PyTorch wrote") from error


def _find(repo, file, **hub):
    return cached_file(repo, file, **hub, _raise_exceptions_for_missing_entries=False)


def _open(path):
    """{name: tensor or slice} of a file, not read yet."""
    check_is_weights(path)
    return _open_safetensors(path) if str(path).endswith(".safetensors") else read_pickle(path, mmap=True)


def _open_safetensors(path):
    try:
        # Read, not memory-mapped: a tensor that changes its dtype leaves nothing behind in memory.
        file = safe_open(path, framework="pt", backend="pread")
        return {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise ValueError(f"{path}: cannot be read ({error}); download or export it again") from error
