"""What an experiment shows: the quickstart's page, which needs no other file, and the ablations' bars."""

import html
from operator import itemgetter

from matplotlib.figure import Figure

from ..durable_files import write_bytes
from ..processing.data.scenes import ARTWORK_LICENSE
from ..training.looks import HEAD, data_url, row_of, thumbnail, write_png

SHOWN = 24
FIRST = 6  # of them at the top of the page

_PAGE = (
    HEAD.replace("TITLE", "MiniGPT-4 quickstart")
    + """<h1>What a MiniGPT-4 learned in {minutes:.0f} minutes</h1>
<p>{learned}</p>
<div class="first">{first}</div>
<p>Between a frozen EfficientNet-Lite0 and a frozen SmolLM2-135M-Instruct one linear layer was trained, as in MiniGPT-4
(arXiv 2304.10592). None of the combinations of objects on this page was part of the training. {n} scenes, seed {seed}.</p>
<h2>Figures</h2>
<div class="wide"><table>{figures}</table></div>
<p><img class="curve" src="{curve}" alt="loss of both stages over the training steps"></p>
<h2>Held-out scenes</h2>
<p>Stage 1 learns captions. After it the model rambles when it is asked a question; the paper's second stage mends that.</p>
<div class="wide"><table><tr><th>image<th>truth<th>before training<th>after stage 1<th>asked before stage 2<th>asked after
stage 2</tr>{scenes}</table></div>
<p><small>{license}.</small></p>
<h2>Photographs</h2>
<p>These answers are from the model that ships with the package, whose projection was trained on photographs by the same two
stages. The photographs are scikit-image's sample data. The model is small and often wrong.</p>
<div class="wide"><table>{photographs}</table></div>
</html>
"""
)


def scene_rows(pictures, held, before_training, after_stage1, before_stage2, after_stage2):
    """One row a scene for `write`: picture, truth, and what was said at each point."""
    rows = []
    for i in range(min(SHOWN, len(held.rows))):
        # The description, or the scene's last question: the rows take turns.
        asked = [j for j, question in enumerate(held.questions) if question["scene"] == i]
        if i % 2:
            question = held.questions[asked[-1]]["instruction"]
            before, after = before_stage2[1][asked[-1]], after_stage2[1][asked[-1]]
        else:
            question, before, after = held.descriptions[i]["instruction"], before_stage2[0][i], after_stage2[0][i]
        rows.append(
            (
                pictures[i]["image"],
                held.rows[i]["text"],
                before_training[i],
                after_stage1[i],
                f"{question}\n{before}",
                f"{question}\n{after}",
            )
        )
    return rows


def write(path, summary, scene_rows, photographs):
    """Writes the page. scene_rows: see above; photographs: [(image, words)]."""
    page = _PAGE.format(
        minutes=summary["train_seconds"] / 60,
        learned=_learned(summary),
        first="".join(_figure(image, asked) for image, *_, asked in scene_rows[:FIRST]),
        n=summary["n"]["scenes"],
        seed=summary["seed"],
        figures=_figures(summary),
        curve=data_url((path.parent / "loss.png").read_bytes(), "png"),
        scenes="".join(row_of(picture, *texts) for picture, *texts in scene_rows),
        license=html.escape(ARTWORK_LICENSE),
        photographs="".join(row_of(picture, words) for picture, words in photographs),
    )
    write_bytes(path, page.encode())


def ablations(path, rows):
    """Writes a PNG of the rows of `ablations.Bench.results`: ours beside the paper's, and over the share of stage 1."""
    whole = {name: row for name, row in rows.items() if row["share"] == 100}
    shares = sorted((row for name, row in rows.items() if row["share"] < 100 or name == "default"), key=itemgetter("share"))
    figure = Figure(figsize=(12, 4), layout="constrained")
    ours, paper, share = figure.subplots(1, 3)
    ours.axvline(25, linestyle=":", color="gray")  # chance
    names, scores = list(whole), [row["stage2"]["choices_right"] for row in whole.values()]
    ours.barh(names, _percents(scores), xerr=_errors(scores))
    ours.set(xlabel="one of four right after stage 2, %", title="here: held-out composed scenes")
    for i, benchmark in enumerate(("AOK-VQA", "GQA")):
        values = [row["paper"].get(benchmark, 0) for row in whole.values()]
        paper.barh([place + 0.4 * (i - 0.5) for place in range(len(names))], values, height=0.4, label=benchmark)
    paper.set(yticks=range(len(names)), yticklabels=[], xlabel="accuracy, %", title="the paper: Vicuna-7B, no random tower")
    paper.set_xlim(0, 100)
    paper.legend()
    for axes in (ours, paper):
        axes.invert_yaxis()
    if shares:
        scores = [row["stage2"]["choices_right"] for row in shares]
        percent = [row["share"] for row in shares]
        share.errorbar(percent, _percents(scores), yerr=_errors(scores), marker="o", label="here, %")
        covered = [20 * row["paper"]["captions covered"] for row in shares]
        share.plot(percent, covered, marker="s", label="the paper: captions covered, %")
        share.legend()
    share.set(xlabel="% of stage 1 before stage 2", title="share of the stage-1 data", xlim=(0, 105), ylim=(0, 100))
    write_png(path, figure)


def _percents(figures):
    return [100 * figure["value"] for figure in figures]


def _errors(figures):
    """[below, above] of each value, as matplotlib takes them."""
    return [
        [max(0, 100 * (figure["value"] - figure["interval"][0])) for figure in figures],
        [max(0, 100 * (figure["interval"][1] - figure["value"])) for figure in figures],
    ]


def _learned(summary):
    """One sentence on what the run learned."""
    stage1, stage2 = summary["stage1"], summary["stage2"]
    return (
        f"A single linear layer that knew nothing now names {stage1['object_recall']:.0%} of the objects in scenes that it "
        f"was not trained on, and answers {stage2['questions_right']:.0%} of the questions about them; with the images "
        f"shuffled it names {stage1['object_recall_shuffled']:.0%}."
    )


def _figure(image, asked):
    """An image with the question about it and the answer, the two separated by a line break."""
    question, _, answer = asked.partition("\n")
    caption = f"<small>{html.escape(question)}</small>{html.escape(answer)}"
    return f'<figure><img src="{thumbnail(image)}" alt=""><figcaption>{caption}</figcaption></figure>'


def _figures(summary):
    rows = [("captions after stage 1", summary["stage1"]), ("chat before stage 2", summary["before_stage2"])]
    rows += [("chat after stage 2", summary["stage2"])]
    if summary["unseen_artwork"]:
        rows.append(("chat after stage 2, unseen artwork (Noto)", summary["unseen_artwork"]))
    cells = []
    for name, scores in rows:
        said = ", ".join(f"{key.replace('_', ' ')} {value:.1%}" for key, value in scores.items() if key != "by_question")
        cells.append(f"<tr><th>{name}<td>{said}</tr>")
    return "".join(cells)
