"""Answers, saved line by line so that a run can resume, and shared by all processes that accelerate started.

A line of predictions.jsonl has id, suite, data, image, prompt, decoding settings, model, its revision and the answer; if
the answer was chosen by likelihood, also the candidates and their losses.
"""

import hashlib
import json
from pathlib import Path

import torch
from tqdm.auto import tqdm

from ..durable_files import append_lines, write_bytes
from ..inference.generation import answers, candidate_losses, caption_prompt, chat_prompt
from ..inference.named_models import public_name

PREDICTIONS = "predictions.jsonl"
KEPT_FEATURES = 4096  # images whose features are kept for their next question; 0.1 MB each


def predict(model, processor, suite, lines, output, state, batch_size):
    """{request id: answer}: generates what output/predictions.jsonl lacks; every process returns all answers.

    Args:
        lines: {request id: its line without the answer}.
    """
    path = Path(output) / PREDICTIONS
    if state.is_main_process:
        _gather(path)
    state.wait_for_everyone()
    said = _kept(path, lines)
    batches = _batches([request for request in suite.requests if request.id not in said], lines, batch_size)
    state.wait_for_everyone()  # everyone has read before anyone writes
    part = path.with_name(f"{path.stem}.{state.process_index}.jsonl")
    seen = _Features(model, processor, suite.pictures)
    mine = batches[state.process_index :: state.num_processes]
    count = sum(len(batch) for batch in mine)
    with tqdm(total=count, desc=suite.name, unit="answer", disable=not state.is_main_process or not count) as bar:
        for batch in mine:
            append_lines(part, _answered(model, processor, batch, lines, seen))
            bar.update(len(batch))
    state.wait_for_everyone()
    if state.is_main_process:
        _gather(path, order=lines)
    state.wait_for_everyone()
    return _kept(path, lines)


def request_lines(suite, name, model, processor, weights):
    """{request id: its line in predictions.jsonl without the answer}; `weights`: the model's `fingerprint`."""
    revision = model_revision(name, model, weights)
    return {request.id: _line(request, suite, name, revision, model, processor) for request in suite.requests}


def model_revision(name, model, weights):
    """Which weights answered: the Hub's commit or, for any other or a quantized model, its fingerprint."""
    on_the_hub = name != "embedded" and not Path(name).exists() and getattr(model, "hf_quantizer", None) is None
    return str(model.config._commit_hash) if on_the_hub else weights


def hash_of(said):
    """A hash that identifies answers: "sha256:..." of {request id: answer}."""
    text = json.dumps(said, sort_keys=True, ensure_ascii=False)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def read_lines(path):
    """The JSON objects of a file, one per line; [] if there is none. An unfinished last line of a stopped run is dropped.

    Raises:
        ValueError: another line that is not a JSON object with an id.
    """
    if not Path(path).is_file():
        return []
    *whole, _ = Path(path).read_text("utf-8").split("\n")
    lines = []
    for number, text in enumerate(whole, 1):
        try:
            line = json.loads(text)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: not JSON; remove the file to begin again") from error
        if not isinstance(line, dict) or not isinstance(line.get("id"), str):
            raise ValueError(f"{path}, line {number}: no id; expected lines as this command writes them")
        lines.append(line)
    return lines


def _line(request, suite, name, revision, model, processor):
    """A request's line in predictions.jsonl without the answer."""
    if request.candidates:
        prompt, decoding = request.instruction, {"ranked": "by the answer's mean loss, as the original's multi_select"}
    else:
        caption = request.instruction is None
        prompt = caption_prompt(processor) if caption else chat_prompt(processor, request.instruction)
        decoding = {
            "do_sample": False,
            "num_beams": 1,
            "max_new_tokens": request.max_new_tokens,
            "repetition_penalty": model.generation_config.repetition_penalty or 1.0,
            "stop": "\n" if caption else None,
        }
    line = {"id": request.id, "suite": suite.name, "data": suite.data, "image": request.image, "prompt": prompt}
    line |= {"candidates": list(request.candidates)} if request.candidates else {}
    return {**line, "decoding": decoding, "model": public_name(name), "revision": revision}


def _kept(path, lines):
    """{request id: answer} of a predictions file, if all of them were asked in the same way as now."""
    said = {}
    for line in read_lines(path):
        expected = lines.get(line["id"])
        if expected is None:
            raise ValueError(
                f"{path}: has an answer to {line['id']!r}, which is not asked; it is from suite {line.get('suite')!r} or "
                "other data; choose another --output, or remove the file"
            )
        for key, value in expected.items():
            if key != "model" and line.get(key) != value:  # the same weights may have been moved
                raise ValueError(
                    f"{path}: {line['id']!r} was asked with {key} {line.get(key)!r:.80}, expected {value!r:.80}; "
                    "choose another --output, or remove the file"
                )
        if line["id"] in said:
            raise ValueError(f"{path}: id {line['id']!r} appears twice; remove the file to begin again")
        if not isinstance(line.get("answer"), str):
            raise ValueError(f"{path}: {line['id']!r} has no answer; remove the file to begin again")
        said[line["id"]] = line["answer"]
    return said


def _gather(path, order=None):
    """Merges the processes' own files into predictions.jsonl, in the order of the requests if it is given."""
    parts = sorted(path.parent.glob(f"{path.stem}.*.jsonl")) if path.parent.is_dir() else []
    if not parts:
        return
    lines = read_lines(path)
    known = {line["id"] for line in lines}
    for part in parts:
        lines += [line for line in read_lines(part) if line["id"] not in known]  # a kill between writing and removing
    if order is not None:
        place = {identity: i for i, identity in enumerate(order)}
        lines.sort(key=lambda line: place.get(line["id"], -1))
    write_bytes(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode())
    for part in parts:
        part.unlink()


def _batches(requests, lines, batch_size):
    """Requests in batches of one kind and similar length; the longest come first, so too little memory shows at once."""
    kinds = {}
    for request in requests:
        kinds.setdefault((bool(request.candidates), request.instruction is None, request.max_new_tokens), []).append(request)
    batches = []
    for kind in sorted(kinds, key=lambda kind: -kind[2]):
        longest_first = sorted(kinds[kind], key=lambda request: -len(lines[request.id]["prompt"]))
        batches += [longest_first[i : i + batch_size] for i in range(0, len(longest_first), batch_size)]
    return batches


def _answered(model, processor, batch, lines, seen):
    """The lines of a batch with their answers."""
    features = seen([request.image for request in batch])
    if batch[0].candidates:
        losses = candidate_losses(
            model, processor, [r.instruction for r in batch], [r.candidates for r in batch], features, batch_size=len(batch)
        )
        chosen = [r.candidates[row.index(min(row))] for r, row in zip(batch, losses, strict=True)]
        return [{**lines[r.id], "answer": c, "losses": row} for r, c, row in zip(batch, chosen, losses, strict=True)]
    decoding = lines[batch[0].id]["decoding"]
    prompts = [lines[request.id]["prompt"] for request in batch]
    texts = answers(model, processor, prompts, features, decoding["max_new_tokens"], decoding["stop"], len(prompts))
    return [{**lines[request.id], "answer": text} for request, text in zip(batch, texts, strict=True)]


class _Features:
    """A cache of the frozen vision parts' output by image name: most images are asked about several times."""

    def __init__(self, model, processor, pictures):
        self.model, self.processor, self.pictures, self.kept = model, processor, pictures, {}

    @torch.inference_mode()
    def __call__(self, names):
        new = [name for name in dict.fromkeys(names) if name not in self.kept]
        if new:
            if len(self.kept) + len(new) > KEPT_FEATURES:
                self.kept = {name: self.kept[name] for name in set(names) & set(self.kept)}
            pictures = [self.pictures.open(name) for name in new]
            pixels = self.processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
            features = self.model.model.get_vision_features(pixels.to(self.model.device)).cpu()
            self.kept |= dict(zip(new, features, strict=True))
        return torch.stack([self.kept[name] for name in names])
