"""Runs a suite on a model, and writes the results.

OUTPUT/predictions.jsonl    one line per answer (predictions.py)
OUTPUT/judgements.jsonl     one line per judgement, in judged suites (judge.py)
OUTPUT/results.json         value, n and 95% interval of every figure, with their weights, data and settings
OUTPUT/report.html          the same with images (results_page.py)
"""

import datetime
import json
import time
from pathlib import Path
from typing import NamedTuple

from accelerate import PartialState

from ..durable_files import write_json
from ..inference.devices import find_device
from ..inference.named_models import fingerprint, load, public_name
from ..metrics.statistics import difference, measured
from ..training.run import use_every_core, versions
from . import results_page
from .predictions import PREDICTIONS, hash_of, predict, read_lines, request_lines

JUDGEMENTS, RESULTS = "judgements.jsonl", "results.json"


class Run(NamedTuple):
    """A model's answers.

    about: the model and its settings: {"model": name, "revision", "fingerprint", "dtype", "decoding": [...]}.
    said: {request id: answer}. measured: {way: {figure: `Figure`}} for figures not based on answers. seconds: its duration.
    """

    about: dict
    said: dict
    measured: dict
    seconds: float


def evaluate(model, suite, output, judge=None, against=None, batch_size=64, device="auto", **precision):
    """Runs a suite on a model and writes its files; returns the results, or None except in the main process.

    Args:
        model: as for `minigpt4.load`.
        suite: a `Suite`. judge: a `Judge` or `Person`, if the suite is judged.
        against: the output folder of an earlier evaluation of another model, or a model, to compare this one with.
        batch_size: answers generated at a time on each device.
        device, precision: as for `minigpt4.load`; with several processes each has its own device.

    Raises:
        ValueError: answers in the output folder are of another suite, model or setting; `against` is of other questions.
    """
    output = Path(output)
    place = find_device(device)
    state = PartialState(cpu=place.type == "cpu")  # otherwise several processes on a CPU could not communicate
    if state.num_processes == 1:
        use_every_core()
    loading = {**precision, "device": place if state.num_processes == 1 else state.device}
    if against is not None and (Path(against) / PREDICTIONS).is_file():
        other_folder, other = Path(against), _earlier(against, suite)
    elif against is not None:
        other_folder = output / "against"
        other = run_suite(against, suite, other_folder, state, batch_size, loading)
    run = run_suite(model, suite, output, state, batch_size, loading)
    if not state.is_main_process:
        return None
    if suite.judged and judge is None:
        results_page.write_page_to_judge(output / "judge.html", suite, run.said, hash_of(run.said))
        print(f"{output}/judge.html: open it, judge the answers, save; then run the same command with --judge FILE")
        return None
    verdicts = judge.read(suite, run.said, output / JUDGEMENTS) if suite.judged else None
    figures = {**suite.figures(run.said, verdicts), **run.measured}
    results = {
        "suite": suite.name,
        "data": suite.data,
        "n": suite.n,
        "requests": len(suite.requests),
        "limit": suite.options.limit,
        "seed": suite.options.seed,
        **run.about,
        "seconds": round(run.seconds, 1),
        "device": f"{state.num_processes} x {place.type}",
        "date": datetime.date.today().isoformat(),
        "versions": versions(),
        "scores": _scores(figures),
    }
    if suite.judged:
        results["judge"] = judge.record
        results["unjudged"] = sum(verdict is None for verdict in verdicts.values())
    if against is not None:
        other_verdicts = judge.read(suite, other.said, other_folder / JUDGEMENTS) if suite.judged else None
        other_figures = {**suite.figures(other.said, other_verdicts), **other.measured}
        results["against"] = {
            **other.about,
            "scores": _scores(other_figures),
            "difference": _differences(figures, other_figures),
        }
    write_json(output / RESULTS, results)
    if suite.by_person and not suite.judged:
        results_page.write_page_to_judge(output / "judge.html", suite, run.said, hash_of(run.said))
    results_page.write(
        output / "report.html", suite, results, run.said, other.said if against is not None else None, verdicts
    )
    return results


def run_suite(name, suite, output, state, batch_size, loading):
    """The `Run` of a model: answers of earlier runs are kept, the rest is generated. `loading`: for `minigpt4.load`."""
    model, processor = load(name, **loading)
    weights = fingerprint(model)
    lines = request_lines(suite, name, model, processor, weights)
    started = time.monotonic()
    said = predict(model, processor, suite, lines, output, state, batch_size)
    seconds = time.monotonic() - started
    figures = suite.measure(model, processor) if state.is_main_process else {}
    about = {
        "model": public_name(name),
        "revision": next(iter(lines.values()))["revision"],
        "fingerprint": weights,
        "dtype": str(model.dtype).removeprefix("torch."),
        "decoding": list({json.dumps(line["decoding"]): line["decoding"] for line in lines.values()}.values()),
    }
    return Run(about, said, figures, seconds)


def _earlier(folder, suite):
    """The `Run` of an earlier evaluation of another model, which must have been asked the same."""
    results_path = Path(folder) / RESULTS
    try:
        results = json.loads(results_path.read_text("utf-8"))
        found, about = results["suite"], {name: results[name] for name in ("model", "revision", "fingerprint", "decoding")}
        about |= {"dtype": results["dtype"]} if "dtype" in results else {}  # earlier versions did not record it
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{results_path}: no results of a finished evaluation ({error})") from error
    if found != suite.name:
        raise ValueError(f"--against {folder}: is from suite {found!r}, expected {suite.name!r}")
    lines = {line["id"]: line for line in read_lines(Path(folder) / PREDICTIONS)}
    for request in suite.requests:
        line = lines.pop(request.id, None)
        longest = (line or {}).get("decoding", {}).get("max_new_tokens", request.max_new_tokens)
        asked = line and (line.get("image"), line.get("data"), longest)
        if asked != (request.image, suite.data, request.max_new_tokens):
            raise ValueError(
                f"--against {folder}: {request.id!r} was not asked there in the same way; expected the same questions"
            )
        lines[request.id] = line
    if len(lines) != len(suite.requests):
        raise ValueError(f"--against {folder}: has {len(lines)} answers, {len(suite.requests)} are asked now")
    return Run(about, {identity: line["answer"] for identity, line in lines.items()}, {}, 0.0)


def _scores(figures):
    return {way: {name: measured(*figure) for name, figure in of_way.items()} for way, of_way in figures.items()}


def _differences(figures, others):
    return {
        way: {
            name: difference(figure.rows, others[way][name].rows, figure.pictures, figure.value)
            for name, figure in of_way.items()
        }
        for way, of_way in figures.items()
        if way in others
    }
