"""The data-set card: counts per step, rules, prompts, models and samples, filled into dataset_card.md."""

import json
from pathlib import Path

import yaml
from jinja2 import Environment, StrictUndefined

from .filter import RULES

TEMPLATE = Path(__file__).with_name("dataset_card.md")
SAMPLES = 5


def dataset_card(store, splits, layout, name, license=None, credit=""):
    """The text of README.md. `splits`: {split: pictures}; The rest: see `publish`.

    Of where things ran it names the last part of a path and the host of a server: no key and no user is in the store.
    """
    values = {
        "name": name,
        "credit": credit,
        "metadata": yaml.safe_dump(_metadata(splits, layout, name, license), sort_keys=False).strip(),
        "splits": splits,
        "layout": layout,
        "steps": _steps(store, splits),
        "rules": [(rule, store.value("SELECT COUNT(*) FROM verdicts WHERE rule = ?", rule)) for rule in RULES],
        "problems": [
            (row["problem"], row["n"])
            for row in store.rows(
                "SELECT problem, COUNT(*) AS n FROM fixes WHERE problem IS NOT NULL GROUP BY problem ORDER BY n DESC"
            )
        ],
        "runs": {step: _runs(store, step) for step in ("sample", "generate", "fix", "filter")},
        "samples": [_sample(row) for row in _samples(store)],
    }
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    return environment.from_string(TEMPLATE.read_text("utf-8")).render(**values)


def _metadata(splits, layout, name, license):
    metadata = {
        "pretty_name": name,
        "language": ["en"],
        **({"license": license} if license else {}),
        "task_categories": ["image-to-text", "image-text-to-text"],
        "tags": ["minigpt4-curation", "synthetic", "image-captioning", "instruction-tuning"],
    }
    if layout == "datasets":
        files = [{"split": split, "path": f"data/{split}-*.parquet"} for split in splits]
        metadata["configs"] = [{"config_name": "default", "data_files": files}]
    return metadata


def _steps(store, splits):
    """[(what, count), ...] from the draw to the publication."""
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


def _runs(store, step):
    """[(rows, [(setting, value), ...]), ...]: what each run was told."""
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
    """One sample as lines to indent: what a model wrote is shown as it is, and never read as Markdown."""
    parts = [("described", row["answer"]), ("fixed", row["text"]), ("published", row["decided"])]
    return [f"{label + ':':<11}{' '.join(text.split())}" for label, text in parts]
