"""The model in lmms-eval, where that is installed (`pip install lmms-eval`): tasks of our own through its command line."""

import json
import subprocess
import sys
import textwrap

import pytest
from benchmark_files import write_coco

from benchmarks import lmms
from minigpt4.evaluation.suites import Options, load_suite
from minigpt4.hub.export import export
from minigpt4.metrics import pope

pytest.importorskip("lmms_eval", reason="lmms-eval is not installed")


def test_a_task_runs_to_its_score(original, processor, picture, tmp_path):
    model, data = str(export(original, processor, tmp_path / "tiny")), write_coco(tmp_path, picture)
    docs = [{"image": str(data / "images" / name), "question": "What is this?"} for name in ("a.png", "b.png", "c.png")]
    (tmp_path / "docs.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    task = tmp_path / "task"
    task.mkdir()
    (task / "utils.py").write_text(
        textwrap.dedent("""
        from PIL import Image
        def pictures(doc): return [Image.open(doc["image"])]
        def question(doc, lmms_eval_specific_kwargs=None): return doc["question"]
        def score(doc, results): return {"answered": float(bool(results[0]))}
    """)
    )
    (task / "tiny_task.yaml").write_text(
        textwrap.dedent(f"""
        task: tiny_task
        dataset_path: json
        dataset_kwargs: {{data_files: {{test: {tmp_path / "docs.jsonl"}}}}}
        test_split: test
        output_type: generate_until
        doc_to_visual: !function utils.pictures
        doc_to_text: !function utils.question
        doc_to_target: question
        process_results: !function utils.score
        generation_kwargs: {{max_new_tokens: 4}}
        metric_list: [{{metric: answered, aggregation: mean, higher_is_better: true}}]
    """)
    )
    command = ["--model", "minigpt4", "--model_args", f"pretrained={model}", "--batch_size", "2"]
    command += ["--include_path", str(task), "--tasks", "tiny_task"]
    done = subprocess.run([sys.executable, "-m", "lmms_eval", *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "|tiny_task|" in done.stdout and "answered" in done.stdout, done.stdout + done.stderr


def test_the_tasks_that_ship_score_as_the_suites_do(original, processor, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = export(original, processor, tmp_path / "tiny")
    suites = {name: load_suite(name, Options(limit=8)) for name in ("spatial", "text")}
    requests = {name: lmms.questions(suite, name) for name, suite in suites.items()}
    said, results = lmms.run_lmms(model, list(suites))
    assert {name: len(answers) for name, answers in said.items()} == {"spatial": 32, "text": 8}
    labels = [suites["spatial"].labels[request.id] for request in requests["spatial"]]
    right = [pope.said(said["spatial"][line]) == label for line, label in enumerate(labels)]
    assert results["results"]["minigpt4_spatial"]["accuracy,none"] == pytest.approx(sum(right) / 32)
    assert results["results"]["minigpt4_text"]["exact,none"] == 0  # the tiny model cannot read
