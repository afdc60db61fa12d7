"""Results as one self-contained HTML page, and the page on which a person judges answers."""

import base64
import io
import math
from pathlib import Path

from jinja2 import Environment, FileSystemLoader

from ..durable_files import write_bytes

SHOWN = 48  # requests, evenly from all of them
SIDE = 224  # an image's longer side in pixels, and its size on the page


def write(path, suite, results, said, other=None, verdicts=None):
    """Writes the report.

    Args:
        suite: the `Suite`. results: the content of results.json.
        said: {request id: answer}; other: the same for the model to compare with, or None.
        verdicts: {request id: verdict} of a judge, or None.
    """
    rows = []
    for request in _evenly(suite.requests):
        row = _row(suite, request, said[request.id])
        row["remark"] = _verdict(verdicts[request.id]) if verdicts else suite.remark(request, said[request.id])
        row["other"] = other[request.id] if other else None
        row["other_remark"] = suite.remark(request, other[request.id]) if other else ""
        rows.append(row)
    page = _environment().get_template("report.html")
    about = " ".join((type(suite).__doc__ or "").split("\n\n")[0].split())
    licence = getattr(suite.pictures, "license", "")
    html = page.render(results=results, rows=rows, about=about, licence=licence)
    write_bytes(path, html.encode())


def write_page_to_judge(path, suite, said, answers):
    """Writes the page on which a person judges every answer; it saves a file for `judge.Person`.

    Args:
        answers: `predictions.hash_of` of said, so that verdicts are never used for other answers.
    """
    rows = [_row(suite, request, said[request.id]) for request in suite.requests]
    page = _environment().get_template("judge.html")
    write_bytes(path, page.render(suite=suite.name, rows=rows, answers=answers).encode())


def data_url(picture, side=SIDE):
    """An image as the data URL of a JPEG with a limited longer side in pixels."""
    thumbnail = picture.copy()
    thumbnail.thumbnail((side, side))
    buffer = io.BytesIO()
    thumbnail.save(buffer, "JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _row(suite, request, answer):
    return {
        "id": request.id,
        "name": request.image,
        "picture": data_url(suite.pictures.open(request.image)),
        "asked": request.instruction or "(the caption form of stage 1)",
        "truth": suite.truth(request),
        "answer": answer,
    }


def _evenly(requests):
    step = max(1, len(requests) / SHOWN)
    return [requests[int(i * step)] for i in range(min(SHOWN, len(requests)))]


def _verdict(verdict):
    if verdict is None:
        return "unjudged"
    if isinstance(verdict, list):
        return f"{sum(verdict)} of {len(verdict)} covered"
    return "fulfilled" if verdict else "not fulfilled"


def _environment():
    environment = Environment(autoescape=True, loader=FileSystemLoader(Path(__file__).parent))
    environment.globals |= {"number": _number, "interval": _interval, "bars": _Bars}
    return environment


def _number(value):
    return "" if value is None else f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def _interval(figure):
    return " to ".join(map(_number, figure["interval"])) if figure["interval"] else ""


class _Bars:
    """A bar for each model with its interval as a line, as an inline SVG; shares have a scale up to 1."""

    def __init__(self, figure, other):
        self.figures = [one for one in (figure, other) if one is not None and one["value"] is not None]

    def __html__(self):
        top = max([1.0, *(figure["interval"][1] for figure in self.figures)])
        top = top if top <= 1 else 10 ** math.ceil(math.log10(top))
        bars = [self._bar(figure, i, top) for i, figure in enumerate(self.figures)]
        return f'<svg width="200" height="{14 * len(bars) or 1}" role="img" aria-label="bars">{"".join(bars)}</svg>'

    @staticmethod
    def _bar(figure, place, top):
        value, low, high = (200 * min(max(x / top, 0), 1) for x in (figure["value"], *figure["interval"]))
        colour, y = ("var(--bar)", "var(--other)")[place], 14 * place
        return (
            f'<rect x="0" y="{y + 2}" width="{value:.1f}" height="10" fill="{colour}"/>'
            f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{y + 7}" y2="{y + 7}" stroke="currentColor" stroke-width="2"/>'
        )
