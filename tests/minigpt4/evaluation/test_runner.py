"""The runner: answers are those of plain generation, a stopped run continues, processes share, nothing is mixed up."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from benchmark_files import write_coco, write_pope, write_vqa

from minigpt4.cli import main
from minigpt4.evaluation.predictions import read_lines
from minigpt4.evaluation.runner import evaluate
from minigpt4.evaluation.suites import Options, load_suite
from minigpt4.hub.export import export
from minigpt4.inference.generation import answer_text, candidate_losses
from minigpt4.inference.named_models import fingerprint, load
from minigpt4.processing.collator import MiniGPT4DataCollator
from minigpt4.processing.image_processing_minigpt4 import load_image

SCRIPT = Path(__file__).parents[3] / "trainer_scripts" / "evaluate.py"


@pytest.fixture(scope="module", autouse=True)
def _as_it_was():
    """The number of threads, which a single process raises."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def folder(original, processor, tmp_path):
    """The tiny model as a folder."""
    return str(export(original, processor, tmp_path / "tiny"))


@pytest.fixture
def pope(tmp_path, picture):
    """A POPE suite of eight questions about three pictures."""
    return load_suite("pope", Options(data=(str(write_pope(tmp_path / "pope", picture)),), max_new_tokens=6))


def test_answers_are_those_of_plain_generation(folder, pope, original, processor, tmp_path):
    results = evaluate(folder, pope, tmp_path / "out", batch_size=3)
    lines = read_lines(tmp_path / "out" / "predictions.jsonl")
    assert [line["id"] for line in lines] == [request.id for request in pope.requests]
    for line, request in zip(lines, pope.requests, strict=True):
        content = [{"type": "image"}, {"type": "text", "text": request.instruction}]
        prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        picture = load_image(tmp_path / "pope" / "images" / request.image)
        inputs = processor(images=picture, text=prompt, return_tensors="pt")
        ids = original.generate(**inputs, max_new_tokens=6, do_sample=False, pad_token_id=processor.tokenizer.pad_token_id)
        assert line["answer"] == answer_text(processor, ids[0, inputs["input_ids"].shape[1] :])
        assert (line["prompt"], line["suite"], line["model"]) == (prompt, "pope", f"{tmp_path.name}/tiny")
        assert line["revision"] == fingerprint(original) and line["decoding"]["max_new_tokens"] == 6
    written = json.loads((tmp_path / "out" / "results.json").read_text())
    assert written == results and written["n"] == 3 and written["requests"] == 8
    assert (written["model"], written["fingerprint"]) == (f"{tmp_path.name}/tiny", fingerprint(original))
    figure = written["scores"]["random"]["accuracy"]
    assert figure["n"] == 4 and figure["interval"][0] <= figure["value"] <= figure["interval"][1]
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert page.count('<img src="data:image/jpeg') == 8 and "http" not in page.replace("http://www.w3.org", "")
    assert "Is there a dog in the image?" in page and "<svg" in page
    # Nothing reveals the paths of the model or the images on this machine.
    assert not [path for path in (tmp_path / "out").iterdir() if str(tmp_path.parent) in path.read_text("utf-8")]


def test_likelihoods_are_those_of_one_row_at_a_time(original, processor, picture):
    """The original's `multi_select` of a batch of one: cross-entropy without reduction, its mean over the row."""
    collator, instructions = MiniGPT4DataCollator(processor), ["What is it?", "Is it a dog, or what else may it be?"]
    candidates = [("a dog", "a very big cat on a table"), ("yes", "no", "perhaps")]
    pictures = [picture(1), picture(2)]
    features = original.model.get_vision_features(processor.image_processor(pictures, return_tensors="pt")["pixel_values"])
    found = candidate_losses(original, processor, instructions, candidates, features)
    for image, instruction, of_one, losses in zip(pictures, instructions, candidates, found, strict=True):
        for answer, loss in zip(of_one, losses, strict=True):
            batch = collator([{"image": image, "instruction": instruction, "text": answer}])
            labels = batch.pop("labels")
            logits = original(**batch).logits
            one_by_one = torch.nn.functional.cross_entropy(
                logits[0, :-1], labels[0, 1:], reduction="none", ignore_index=-100
            )
            assert loss == pytest.approx(one_by_one.mean().item(), abs=1e-5)


def test_ranked_answers_are_the_likeliest(folder, tmp_path, picture):
    data = write_vqa(tmp_path / "vqa", picture)
    suite = load_suite("vqa", Options(data=(str(data),), max_new_tokens=3))
    evaluate(folder, suite, tmp_path / "out")
    lines = [line for line in read_lines(tmp_path / "out" / "predictions.jsonl") if "candidates" in line]
    assert len(lines) == 3
    for line in lines:
        assert line["answer"] == line["candidates"][min(range(len(line["losses"])), key=line["losses"].__getitem__)]


def test_a_stopped_run_goes_on(folder, pope, tmp_path, monkeypatch):
    out, opened, whole = tmp_path / "out", [], type(pope.pictures).open

    def fail_later(self, name):
        if len(opened) == 2:
            raise KeyboardInterrupt
        opened.append(name)
        return whole(self, name)

    with monkeypatch.context() as stop, pytest.raises(KeyboardInterrupt):
        stop.setattr(type(pope.pictures), "open", fail_later)
        evaluate(folder, pope, out, batch_size=2)
    [part] = out.glob("predictions.*.jsonl")
    kept = read_lines(part)
    assert 0 < len(kept) < 8 and not (out / "results.json").exists()
    with open(part, "a", encoding="utf-8") as file:
        file.write('{"id": "random/4", "answ')  # killed while writing
    asked = []
    monkeypatch.setattr("minigpt4.evaluation.predictions.answers", _counting(asked))
    evaluate(folder, pope, out, batch_size=2)
    assert len(asked) == 8 - len(kept)
    fresh = evaluate(folder, pope, tmp_path / "fresh", batch_size=2)
    assert read_lines(out / "predictions.jsonl") == read_lines(tmp_path / "fresh" / "predictions.jsonl")
    assert json.loads((out / "results.json").read_text())["scores"] == fresh["scores"]


def _counting(asked):
    from minigpt4.inference.generation import answers

    def count(model, processor, prompts, *arguments):
        asked.extend(prompts)
        return answers(model, processor, prompts, *arguments)

    return count


def test_answers_of_something_else_are_refused(folder, pope, tmp_path, picture):
    out = tmp_path / "out"
    evaluate(folder, pope, out)
    path, lines = out / "predictions.jsonl", read_lines(out / "predictions.jsonl")

    def refused(changed, message, suite=pope):
        path.write_text("".join(json.dumps(line) + "\n" for line in changed))
        with pytest.raises(ValueError) as raised:
            evaluate(folder, suite, out)
        assert message in str(raised.value) and "\n" not in str(raised.value)

    refused([{**lines[0], "revision": "sha256:0"}], "was asked with revision 'sha256:0'")
    refused([lines[0], lines[0]], "appears twice")
    refused([{**lines[0], "id": "x"}], "which is not asked; it is from suite 'pope'")
    refused([{"id": lines[0]["id"]}], "was asked with suite None")
    other = load_suite("captions", Options(data=(str(write_coco(tmp_path / "coco", picture) / "captions.json"),)))
    refused(lines, "from suite 'pope'", other)
    path.write_text("[]\n")
    with pytest.raises(ValueError, match="line 1: no id"):
        evaluate(folder, pope, out)


def test_two_models_side_by_side(folder, pope, original, processor, tmp_path):
    with torch.no_grad():
        original.model.projection.weight.mul_(-3)
    other = str(export(original, processor, tmp_path / "other"))
    at_once = evaluate(folder, pope, tmp_path / "a", against=other)
    evaluate(other, pope, tmp_path / "b")
    from_folder = evaluate(folder, pope, tmp_path / "c", against=tmp_path / "b")
    assert at_once["against"] == from_folder["against"] and at_once["against"]["model"] == f"{tmp_path.name}/other"
    mine, theirs = at_once["scores"]["random"], at_once["against"]["scores"]["random"]
    difference = at_once["against"]["difference"]["random"]["accuracy"]["value"]
    assert difference == pytest.approx(mine["accuracy"]["value"] - theirs["accuracy"]["value"])
    answered, results = tmp_path / "b" / "predictions.jsonl", tmp_path / "b" / "results.json"
    answered.write_text(
        answered.read_text().replace('"data": "coco', '"data": "another')
    )  # other scenes have the same names
    with pytest.raises(ValueError, match="was not asked there in the same way"):
        evaluate(folder, pope, tmp_path / "c", against=tmp_path / "b")
    results.write_text(results.read_text().replace('"suite": "pope"', '"suite": "chair"'))
    with pytest.raises(ValueError, match="is from suite 'chair', expected 'pope'"):
        evaluate(folder, pope, tmp_path / "c", against=tmp_path / "b")
    results.unlink()
    with pytest.raises(ValueError, match="no results of a finished evaluation"):
        evaluate(folder, pope, tmp_path / "c", against=tmp_path / "b")


def test_a_fingerprint_is_of_the_weights(folder, original, processor, tmp_path):
    found = fingerprint(original)
    assert found == fingerprint(load(folder)[0]) == fingerprint(load(str(shutil.copytree(folder, tmp_path / "copy")))[0])
    for name in ("projection.bias", "language_model.layers.0.self_attn.q_proj.weight"):
        weight = original.model.get_parameter(name)
        kept = weight.detach().clone()
        with torch.no_grad():
            weight.add_(1e-3)
            assert fingerprint(original) != found
            weight.copy_(kept)
    assert fingerprint(original) == found != fingerprint(original.to(torch.bfloat16))


@pytest.mark.slow
def test_composed_with_its_probe(folder, tmp_path):
    suite = load_suite("composed", Options(limit=8, max_new_tokens=2))
    results = evaluate(folder, suite, tmp_path / "out")
    assert {"captions", "captions, swapped", "questions", "questions, swapped", "linear probe"} <= set(results["scores"])
    assert results["n"] == 8 and results["scores"]["linear probe"]["background"]["n"] == 8


@pytest.mark.slow
def test_processes_share_the_work(folder, tmp_path, picture):
    data = write_pope(tmp_path / "pope", picture)
    command = ["--model", folder, "--suite", "pope", "--data", str(data), "--max-new-tokens", "4", "--batch-size", "2"]
    # What `accelerate launch` runs for several GPUs; for several processes on a CPU it would want MPI.
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launch, str(SCRIPT), *command, "--output", str(tmp_path / "two")],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("pope of") == 1  # one process reports
    assert main(["evaluate", *command, "--output", str(tmp_path / "one")]) == 0
    two, one = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("two", "one"))
    assert (two["device"], one["device"]) == ("2 x cpu", f"1 x {PartialState().device.type}")
    assert read_lines(tmp_path / "two" / "predictions.jsonl") == read_lines(tmp_path / "one" / "predictions.jsonl")
    assert two["scores"] == one["scores"] and not list((tmp_path / "two").glob("predictions.*.jsonl"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--suite", "pope", "--data", "/nowhere/x.json"], "no such file or folder"),
        (["--suite", "pope", "--data", "{pope}", "--judge", "http://localhost"], "needs none"),
        (["--suite", "coverage", "--data", "{coco}/captions.json"], "needs --judge"),
        (["--suite", "coverage", "--data", "{coco}/captions.json", "--judge", "http://localhost:9"], "--judge-model"),
        (["--suite", "pope", "--data", "{pope}", "--batch-size", "0"], "--batch-size is 0"),
        (["--suite", "pope", "--data", "{pope}", "--against", "/nowhere"], "/nowhere: no such folder"),
    ],
)
def test_bad_input_is_one_line_and_status_2(folder, tmp_path, picture, capsys, arguments, message):
    places = {"pope": write_pope(tmp_path / "pope", picture), "coco": write_coco(tmp_path / "coco", picture)}
    arguments = [argument.format(**places) for argument in arguments]
    assert main(["evaluate", "--model", folder, "--output", str(tmp_path / "out"), *arguments]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("minigpt4 evaluate: ") and message in line


def test_a_picture_that_is_damaged_stops_the_run(folder, tmp_path, picture, capsys):
    data = write_pope(tmp_path / "pope", picture)
    (data / "images" / "b.png").write_bytes(b"not a picture")
    assert main(["evaluate", "--model", folder, "--suite", "pope", "--data", str(data), "--output", str(tmp_path)]) == 2
    assert "b.png: not a picture" in capsys.readouterr().err
    assert not (tmp_path / "results.json").exists()
    shutil.rmtree(data / "images")
    assert main(["evaluate", "--model", folder, "--suite", "pope", "--data", str(data), "--output", str(tmp_path)]) == 2
    assert "3 of 3 pictures are missing" in capsys.readouterr().err
