"""Records next to a model about how it was made: recipes and summaries of its training runs, and evaluation files.

OUTPUT/recipe.yaml, OUTPUT/summary.json     one stage, as `training.train` writes them next to OUTPUT/model
OUTPUT/summary.json with "recipes"          both stages, as the quickstart writes it next to OUTPUT/model
OUTPUT/evaluation.json                      scores, as benchmarks/photographs.py writes them with --output, or a
                                            results.json of `minigpt4 evaluate`
MODEL/training.json                         the runs, in an export
"""

import json
import math
import re
from pathlib import Path

import yaml
from huggingface_hub import EvalResult, EvalResultEntry

# The embedded default's, which have other names.
_EMBEDDED = Path(__file__).parents[1] / "modeling_minigpt4" / "embedded"
_FIGURES = ("steps", "seconds", "first_loss", "last_loss")


def training_runs(name):
    """[{"stage", "recipe", "summary"}, ...] of the runs that trained a model, as far as files next to it say.

    Args:
        name: a model as for `minigpt4.load`.

    Raises:
        ValueError: one of the files cannot be read.
    """
    if name == "embedded":
        return [_run(_EMBEDDED / f"stage{n}-recipe.yaml", _EMBEDDED / f"stage{n}-summary.json") for n in (1, 2)]
    kept, folder = Path(name) / "training.json", Path(name).absolute().parent
    if kept.is_file():
        return [_checked(run, kept) for run in _read(kept, json.loads, list)]
    if Path(name).name != "model":
        return []
    if (folder / "recipe.yaml").is_file():
        return _runs_up_to(folder)
    summary = _read(folder / "summary.json", json.loads, dict) if (folder / "summary.json").is_file() else {}
    recipes = summary.get("recipes", {})  # the quickstart's
    return [_run(folder / stage / "recipe.yaml", folder / stage / "summary.json") for stage in sorted(recipes)]


def evaluation_file(name):
    """The evaluation file next to a model, or None."""
    beside = _EMBEDDED / "photographs.json" if name == "embedded" else Path(name).absolute().parent / "evaluation.json"
    return beside if beside.is_file() and Path(name).name in ("embedded", "model") else None


def evaluation_results(path, fingerprint=None):
    """[`EvalResult`, ...]: every number in an evaluation file, for each way of asking.

    Args:
        path: JSON with "data" (what was measured on), "n" (on how many) and, for each way to ask, a dict of numbers; in the
            results of `minigpt4 evaluate` they are under "scores", each with its own n and interval.
        fingerprint: `named_models.fingerprint` of the model whose numbers are wanted. From results of two models
            (`--against`), those of that one are returned. A file that does not identify the weights, and is not a
            results.json, is trusted.

    Raises:
        ValueError: no such file, another kind of file, or numbers for other weights.
    """
    content = _read(Path(path), json.loads, dict)
    if fingerprint is not None:
        content = _of_weights(content, fingerprint, path)
    data, count = content.get("data"), content.get("n")
    ways = content["scores"] if isinstance(content.get("scores"), dict) else content
    scores = {way: _numbers(values) for way, values in ways.items() if isinstance(values, dict) and way != "versions"}
    if not isinstance(data, str) or not any(scores.values()):
        raise ValueError(f'{path}: not an evaluation file; expected "data" and, for each way to ask, numbers')
    name = f"{data}, {count:,} pictures" if isinstance(count, int) else data
    return [
        EvalResult(
            task_type="image-text-to-text",
            dataset_type=re.sub(r"\W+", "-", data.lower()).strip("-"),
            dataset_name=name,
            metric_type=metric,
            metric_name=f"{metric} ({way})",
            metric_value=round(value, 4),
            metric_args=_sureness(ways[way][metric]),
        )
        for way, numbers in scores.items()
        for metric, value in numbers.items()
    ]


def benchmark_entries(results, named):
    """(entries, rest): the results on the Hub's benchmarks as `EvalResultEntry`, and all others.

    Only the Hub knows which benchmarks exist (data sets with an eval.yaml), so the user names them.

    Args:
        results: `EvalResult`s, or None.
        named: [(id of a data set or ID@REVISION, its task, the result's `metric_name`), ...].

    Raises:
        ValueError: no result of that name, or two of them; a name that is not a data set's.
    """
    entries, rest = [], list(results or [])
    for dataset, task, metric in named:
        found = [result for result in rest if result.metric_name == metric]
        if len(found) != 1:
            there = ", ".join(repr(result.metric_name) for result in rest) or "none"
            raise ValueError(f"--benchmark {dataset}: {len(found)} results are called {metric!r}; expected one of {there}")
        repo, _, revision = dataset.partition("@")
        if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", repo) or not task:
            raise ValueError(f"--benchmark {dataset} {task}: expected the id of a data set, OWNER/NAME, and its task")
        sure = found[0].metric_args
        measured = f"n={sure['n']}, 95% interval {sure['low']} to {sure['high']}; " if sure else ""
        notes = f"{metric} on {found[0].dataset_name}; {measured}minigpt4 evaluate"
        entries.append(EvalResultEntry(repo, task, found[0].metric_value, revision or None, notes=notes))
        rest.remove(found[0])
    return entries, rest or None


def _of_weights(content, fingerprint, path):
    """An evaluation file's content with the scores of these weights."""
    measured = [one for one in (content, content.get("against")) if isinstance(one, dict) and "fingerprint" in one]
    for one in measured:
        if one["fingerprint"] == fingerprint:
            return {**content, **one}
    if measured:
        names = " and ".join(f"{one.get('model')} ({one['fingerprint']})" for one in measured)
        raise ValueError(f"{path}: is about {names}, expected this model's weights ({fingerprint}); evaluate this model")
    if "scores" in content:
        raise ValueError(f"{path}: does not say which weights it is about (no fingerprint); run `minigpt4 evaluate` again")
    return content


def _numbers(values):
    plain = {name: value.get("value") if isinstance(value, dict) else value for name, value in values.items()}
    return {name: value for name, value in plain.items() if _is_number(value)}


def _is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _sureness(figure):
    """{"n", "low", "high"} of a figure with a 95% interval, else None."""
    interval = figure.get("interval") if isinstance(figure, dict) else None
    if not (isinstance(interval, list) and len(interval) == 2 and all(map(_is_number, interval))):
        return None
    return {"n": figure.get("n"), "low": round(interval[0], 4), "high": round(interval[1], 4)}


def _runs_up_to(folder):
    """The run that wrote a folder, preceded by that of the earlier stage whose projection it started from."""
    recipe = _read(folder / "recipe.yaml", yaml.safe_load, dict)
    before = Path(str((recipe.get("model") or {}).get("projection"))).parent
    earlier = recipe.get("stage") == 2 and (before / "recipe.yaml").is_file()
    return [_run(place / "recipe.yaml", place / "summary.json") for place in ([before, folder] if earlier else [folder])]


def _run(recipe, summary):
    told = _read(summary, json.loads, dict) if summary.is_file() else {}
    return _checked({"recipe": _read(recipe, yaml.safe_load, dict), "summary": told}, recipe)


def _checked(run, path):
    """A run with only its publishable parts, and a summary that is complete or empty."""
    recipe, summary = (run.get(name) if isinstance(run, dict) else None for name in ("recipe", "summary"))
    if not isinstance(recipe, dict) or recipe.get("stage") not in (1, 2):
        raise ValueError(f"{path}: not a recipe of stage 1 or 2")
    summary = summary if isinstance(summary, dict) else {}
    whole = len(_numbers({name: summary.get(name) for name in _FIGURES})) == len(_FIGURES)
    versions = {str(name): str(version) for name, version in (summary.get("versions") or {}).items()}
    figures = {**{name: summary[name] for name in _FIGURES}, "versions": versions} if whole else {}
    return {"stage": recipe["stage"], "recipe": _without_places(recipe), "summary": figures}


def _without_places(recipe):
    """A recipe to publish: without its output folder, and with only the last component of absolute paths."""
    if isinstance(recipe, dict):
        return {name: _without_places(value) for name, value in recipe.items() if name != "output"}
    return Path(recipe).name if isinstance(recipe, str) and Path(recipe).is_absolute() else recipe


def _read(path, parse, kind):
    try:
        content = parse(path.read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: cannot be read ({str(error).splitlines()[0]})") from error
    if not isinstance(content, kind):
        raise ValueError(f"{path}: found {type(content).__name__}, expected {kind.__name__}")
    return content
