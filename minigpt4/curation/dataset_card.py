"""The data-set cards, dataset_card.md and preference_card.md: counts per step, rules, prompts, models and samples."""

import json
from pathlib import Path

import yaml
from jinja2 import Environment, StrictUndefined

from .filter import RULES

SAMPLES = 5


def dataset_card(layout, store, splits, name, license=None, credit=""):
    """The text of README.md for captioned pictures. `splits`: {split: pictures}; the rest: see `publish`.

    It names only the last part of paths and the hosts of servers; the store contains no keys and no user names.
    """
    values = {
        "name": name,
        "credit": credit,
        "metadata": _metadata(_CAPTIONS, splits if layout == "datasets" else {}, name, license),
        "splits": splits,
        "layout": layout,
        "steps": _steps(store, splits),
        "rules": [(rule, store.value("SELECT COUNT(*) FROM verdicts WHERE rule = ?", rule)) for rule in RULES],
        "problems": _counted(store, "fixes", "problem"),
        "runs": {step: _runs(store, step) for step in ("sample", "generate", "fix", "filter")},
        "samples": [_sample(row) for row in _samples(store)],
    }
    return _filled("dataset_card.md", values)


def preference_card(store, splits, name, license=None, credit=""):
    """The text of README.md for preferences; see `dataset_card`."""
    [[chosen, rejected]] = store.rows(
        "SELECT AVG(LENGTH(CASE chosen WHEN 'first' THEN first ELSE second END)),"
        " AVG(LENGTH(CASE chosen WHEN 'first' THEN second ELSE first END)) FROM preferences WHERE chosen IS NOT NULL"
    )
    values = {
        "name": name,
        "credit": credit,
        "metadata": _metadata(_PREFERENCES, splits, name, license),
        "splits": splits,
        "steps": _preference_steps(store, splits),
        "problems": _counted(store, "pairs", "problem"),
        "lengths": [round(chosen), round(rejected)],
        "runs": {step: _runs(store, step) for step in ("sample", "pairs", "judge")},
    }
    return _filled("preference_card.md", values)


def _filled(template, values):
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    return environment.from_string(Path(__file__).with_name(template).read_text("utf-8")).render(**values)


_CAPTIONS = {
    "task_categories": ["image-to-text", "image-text-to-text"],
    "tags": ["minigpt4-curation", "synthetic", "image-captioning", "instruction-tuning"],
}
_PREFERENCES = {
    "task_categories": ["image-text-to-text"],
    "tags": ["minigpt4-curation", "synthetic", "preference", "dpo", "trl"],
}


def _metadata(kind, splits, name, license):
    """The card's YAML. `splits`: those that are parquet files."""
    metadata = {"pretty_name": name, "language": ["en"], **({"license": license} if license else {}), **kind}
    if splits:
        files = [{"split": split, "path": f"data/{split}-*.parquet"} for split in splits]
        metadata["configs"] = [{"config_name": "default", "data_files": files}]
    return yaml.safe_dump(metadata, sort_keys=False).strip()


def _counted(store, table, column):
    """[(value, rows), ...] of a column, without NULL; the most frequent first."""
    return [
        (row[column], row["n"])
        for row in store.rows(
            f"SELECT {column}, COUNT(*) AS n FROM {table} WHERE {column} IS NOT NULL GROUP BY {column} ORDER BY n DESC"
        )
    ]


def _steps(store, splits):
    """[(what, count), ...] from sampling to publication."""
    one = store.value
    decided = {
        row["decision"]: row["n"] for row in store.rows("SELECT decision, COUNT(*) AS n FROM decisions GROUP BY decision")
    }
    return [
        ("pictures drawn", store.count("sample")),
        ("described", store.count("generate")),
        ("of them continued, being short", one("SELECT COUNT(*) FROM answers WHERE continued IS NOT NULL")),
        ("given to the fixing LLM", store.count("fix")),
        (
            "of them changed by it",
            one("SELECT COUNT(*) FROM fixes JOIN answers USING (picture) WHERE fixes.text != answers.text"),
        ),
        (
            "kept as they were, since a check of the answer failed",
            one("SELECT COUNT(*) FROM fixes WHERE problem IS NOT NULL"),
        ),
        ("passed all rules", one("SELECT COUNT(*) FROM verdicts WHERE rule IS NULL")),
        ("accepted", decided.get("accept", 0)),
        ("accepted with an edited text", decided.get("edit", 0)),
        ("rejected in verification", decided.get("reject", 0)),
        ("published", sum(splits.values())),
    ]


def _preference_steps(store, splits):
    """[(what, count), ...] from sampling to publication."""
    one = store.value
    both = "FROM readings AS r JOIN swapped_readings AS s USING (picture)"
    return [
        ("pictures drawn", store.count("sample")),
        ("answered twice", store.count("pairs")),
        ("of them not to be compared", one("SELECT COUNT(*) FROM pairs WHERE problem IS NOT NULL")),
        ("compared by the judge", store.count("judge")),
        ("of them ties at once", one("SELECT COUNT(*) FROM readings WHERE better IS NULL AND readable")),
        ("whose first reply could not be read", one("SELECT COUNT(*) FROM readings WHERE NOT readable")),
        ("compared again in the other order", store.count("judge swapped")),
        ("of them the same answer preferred", one(f"SELECT COUNT(*) {both} WHERE r.better = s.better")),
        ("of them the other answer preferred", one(f"SELECT COUNT(*) {both} WHERE r.better != s.better")),
        ("published", sum(splits.values())),
    ]


def _runs(store, step):
    """[(rows, [(setting, value), ...]), ...]: the settings of each run."""
    return [
        (rows, [(key, _public(value)) for key, value in settings.items() if value is not None])
        for settings, rows in store.runs(step)
        if rows
    ]


def _public(value):
    if isinstance(value, str):
        return Path(value).name if Path(value).is_absolute() else value
    return json.dumps(value, ensure_ascii=False)


def _samples(store):
    return store.rows(
        "SELECT answers.text AS answer, fixes.text AS text, decisions.text AS decided, decisions.decision FROM decisions"
        " JOIN answers USING (picture) JOIN fixes USING (picture) WHERE decision != 'reject' ORDER BY picture LIMIT ?",
        SAMPLES,
    )


def _sample(row):
    """One sample as lines to indent: model output is shown verbatim, never rendered as Markdown."""
    parts = [("described", row["answer"]), ("fixed", row["text"]), ("published", row["decided"])]
    return [f"{label + ':':<11}{' '.join(text.split())}" for label, text in parts]
