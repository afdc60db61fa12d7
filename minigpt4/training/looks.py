"""The output of a training run for people: its losses, and a page of answers about the same images before and after."""

import base64
import html
import io

from matplotlib.figure import Figure

from ..durable_files import write_bytes

HEAD = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>TITLE</title>
<style>
  :root {{ color-scheme: light dark }}
  body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem }}
  table {{ border-collapse: collapse; width: 100% }}
  td, th {{ border-bottom: 1px solid #8886; padding: .5rem; text-align: left; vertical-align: top }}
  img {{ width: 9rem; border-radius: .3rem }}
  .wide {{ overflow-x: auto }}
  .first {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(10rem, 1fr)); gap: 1rem }}
  .first figure {{ margin: 0 }}
  .first img {{ width: 100% }}
  .first small {{ display: block }}
  .curve {{ width: min(100%, 44rem) }}
  small {{ opacity: .75 }}
</style>
"""


_LOOKS = (
    HEAD.replace("TITLE", "MiniGPT-4 training")
    + """<h1>The same images before and after training</h1>
<div class="wide"><table><tr><th>image<th>a person wrote<th>step {first}<th>step {last}</tr>{rows}</table></div>
</html>
"""
)


def write_looks(path, rows, first, last):
    """Writes a page of what a model said about the same images at two steps of its training.

    Args:
        rows: [{"image": PIL picture, "texts": [{"text": what a person wrote}, ...], if known}, ...].
        first, last: {"step": ..., "answers": [text for each picture]}.
    """
    cells = "".join(
        row_of(row["image"], "\n".join(known["text"] for known in row.get("texts", ())[:1]), before, after)
        for row, before, after in zip(rows, first["answers"], last["answers"], strict=True)
    )
    write_bytes(path, _LOOKS.format(first=first["step"], last=last["step"], rows=cells).encode())


def loss_curve(path, stages):
    """Writes a PNG of the losses: stages {name: summary of `training.train`}."""
    figure = Figure(figsize=(8, 3.5), layout="constrained")
    axes = figure.subplots()
    start = 0
    for name, summary in stages.items():
        steps, losses = zip(*summary["losses"], strict=True)
        axes.plot([start + step for step in steps], losses, label=name)
        start += steps[-1]
    axes.set(xlabel="step", ylabel="loss on the answer tokens", yscale="log")
    axes.legend()
    axes.grid(alpha=0.3)
    write_png(path, figure)


def write_png(path, figure):
    """Writes a matplotlib figure atomically."""
    png = io.BytesIO()
    figure.savefig(png, dpi=110)
    write_bytes(path, png.getvalue())


def row_of(image, *texts):
    """A table row: an image and the texts next to it."""
    cells = "".join(f"<td>{html.escape(text).replace(chr(10), '<br>')}</td>" for text in texts)
    return f'<tr><td><img src="{thumbnail(image)}" alt=""></td>{cells}</tr>'


def thumbnail(image):
    """A small JPEG of an image as a data URL."""
    buffer, small = io.BytesIO(), image.copy()
    small.thumbnail((224, 224))
    small.save(buffer, "JPEG", quality=88)
    return data_url(buffer.getvalue(), "jpeg")


def data_url(data, kind):
    """An image's bytes as a data URL."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
