"""python benchmarks/lmms.py [--model embedded|DIR|ID] [--scenes N] [--words N]

lmms-eval over a model, on two tasks whose images are made here (benchmarks/lmms_tasks): how two objects are placed, and one
written word. The same questions go through `minigpt4 evaluate`, suites spatial and text: two harnesses, one figure.
Needs lmms-eval (`pip install lmms-eval==0.7.3`, in a separate environment: it pins an older protobuf than we do).

Writes outputs/lmms/ (images, questions, both sets of answers) and benchmarks/results/lmms-eval.json.
"""

import argparse
import datetime
import json
import shutil
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch

from minigpt4.cli import run_reporting_errors
from minigpt4.durable_files import write_json
from minigpt4.evaluation.predictions import PREDICTIONS, read_lines
from minigpt4.evaluation.runner import evaluate
from minigpt4.evaluation.suites import Options, load_suite
from minigpt4.training.run import versions

TASKS = Path(__file__).parent / "lmms_tasks"
FOLDER = Path("outputs/lmms")  # as the tasks name it
BATCH = 16
WAYS = {"spatial": "yes or no", "text": "all"}  # under which a suite has the figures
FIGURES = {"spatial": ("accuracy", "yes_ratio"), "text": ("exact", "edit_distance")}  # of the tasks and of the suites


def questions(suite, name):
    """Writes a suite's images and questions as the task of its name reads them; returns the requests."""
    labels = suite.labels if name == "spatial" else suite.pictures.words
    requests = [request for request in suite.requests if request.id in labels]  # spatial's open questions have none
    lines = []
    for request in requests:
        image = FOLDER / name / f"{request.image}.png"
        if not image.is_file():
            image.parent.mkdir(parents=True, exist_ok=True)
            suite.pictures.open(request.image).save(image)
        line = {"id": request.id, "image": str(image), "question": request.instruction, "answer": labels[request.id]}
        lines.append(json.dumps(line) + "\n")
    (FOLDER / f"{name}.jsonl").write_text("".join(lines), "utf-8")
    return requests


def run_lmms(model, names):
    """{name: {line of the task's questions: answer}} by lmms-eval's command line, and its own file of results."""
    output = FOLDER / "lmms-eval"
    shutil.rmtree(output, ignore_errors=True)
    command = [sys.executable, "-m", "lmms_eval", "--model", "minigpt4", "--model_args", f"pretrained={model}"]
    command += ["--include_path", str(TASKS), "--tasks", ",".join(f"minigpt4_{name}" for name in names)]
    command += ["--batch_size", str(BATCH), "--output_path", str(output), "--log_samples"]
    subprocess.run(command, check=True)
    return written(output, names)


def written(output, names):
    """What `run_lmms` returns, of a run's folder."""
    said = {}
    for name in names:
        [samples] = output.rglob(f"*_samples_minigpt4_{name}.jsonl")
        lines = [json.loads(line) for line in samples.read_text("utf-8").splitlines()]
        said[name] = {line["doc_id"]: line["filtered_resps"] for line in lines}
    [results] = output.rglob("*_results.json")
    return said, json.loads(results.read_text("utf-8"))


def ours(model, suite, name):
    """The results of `minigpt4 evaluate`, and {question id: answer}."""
    output = FOLDER / f"minigpt4-{name}"
    results = evaluate(model, suite, output, batch_size=BATCH)
    return results, {line["id"]: line["answer"] for line in read_lines(output / PREDICTIONS)}


def main():
    """Runs both harnesses and writes what they found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded", metavar="embedded|DIR|ID")
    parser.add_argument("--scenes", type=int, default=40, metavar="N", help="each with four questions (default: 40)")
    parser.add_argument("--words", type=int, default=60, metavar="N", help="written words (default: 60)")
    arguments = parser.parse_args()
    if find_spec("lmms_eval") is None:
        raise ValueError("lmms-eval is not installed; run `pip install lmms-eval==0.7.3` in a separate environment")
    limits = {"spatial": arguments.scenes, "text": arguments.words}
    suites = {name: load_suite(name, Options(limit=limit)) for name, limit in limits.items()}
    requests = {name: questions(suite, name) for name, suite in suites.items()}
    their_answers, results = run_lmms(arguments.model, list(suites))
    tasks = {}
    for name, suite in suites.items():
        our_results, said = ours(arguments.model, suite, name)
        figures = our_results["scores"][WAYS[name]]
        same = [said[request.id].strip() == their_answers[name][line] for line, request in enumerate(requests[name])]
        theirs = results["results"][f"minigpt4_{name}"]
        tasks[f"minigpt4_{name}"] = {
            "questions": len(same),
            "data": suite.data,
            "lmms_eval": {
                figure: {"value": theirs[f"{figure},none"], "stderr": theirs[f"{figure}_stderr,none"]}
                for figure in FIGURES[name]
            },
            "minigpt4_evaluate": {figure: figures[figure] for figure in FIGURES[name]},
            "same_answers": round(sum(same) / len(same), 4),
        }
    result = {
        "model": arguments.model,
        "tasks": tasks,
        "dtype": our_results["dtype"],
        "lmms_eval_seconds": round(float(results["total_evaluation_time_seconds"]), 1),
        "device": f"CPU, {torch.get_num_threads()} threads",
        "date": datetime.date.today().isoformat(),
        "versions": {**versions(), "lmms-eval": version("lmms-eval")},
        "command": "python benchmarks/lmms.py",
    }
    print(json.dumps(result, indent=2))
    write_json(Path(__file__).parent / "results" / "lmms-eval.json", result)


if __name__ == "__main__":
    sys.exit(run_reporting_errors(main, "lmms"))
