"""The handler of an Inference Endpoint: what it answers, and what it refuses."""

import base64
import io
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from minigpt4.hub.export import export
from minigpt4.hub.handler import QUESTION, EndpointHandler
from minigpt4.modeling_minigpt4.lora import add_lora

GREEDY = {"max_new_tokens": 8, "do_sample": False}


@pytest.fixture
def folder(original, processor, tmp_path):
    """The tiny model as a full export, with adapters merged into it."""
    torch.manual_seed(0)
    for name, parameter in add_lora(original, rank=4).named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return export(original, processor, tmp_path / "model")


@pytest.fixture
def handler(folder):
    return EndpointHandler(str(folder))


@pytest.fixture
def png(picture):
    """A picture as the bytes of a file."""
    stream = io.BytesIO()
    picture().save(stream, "PNG")
    return stream.getvalue()


def answer(handler, inputs, **parameters):
    [answered] = handler({"inputs": inputs, "parameters": {**GREEDY, **parameters}})
    return answered["generated_text"]


def messages(text, **image):
    return [{"role": "user", "content": [image, {"type": "text", "text": text}]}]


def test_every_form_of_a_request_gives_the_same_answer(handler, original, processor, picture, png):
    text, encoded = "What is in the picture?", base64.b64encode(png).decode()
    inputs = processor.apply_chat_template(
        messages(text, type="image", image=picture()),
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    ids = original.eval().generate(**inputs, **GREEDY)[0, inputs["input_ids"].shape[1] :]
    expected = processor.decode(ids, skip_special_tokens=True).strip()
    assert expected
    url = f"data:image/png;base64,{encoded}"
    for image in (encoded, encoded[:40] + "\n" + encoded[40:], url, png, picture()):
        assert answer(handler, {"text": text, "image": image}) == expected
    assert answer(handler, {"text": text, "images": [url]}) == expected
    for part in (
        {"type": "image", "image": picture()},
        {"type": "image", "base64": encoded},
        {"type": "image", "url": url},
        {"type": "image_url", "image_url": {"url": url}},
    ):
        assert answer(handler, messages(text, **part)) == expected
    alone = {answer(handler, inputs) for inputs in (picture(), png, {"image": url}, {"text": QUESTION, "image": url})}
    assert len(alone) == 1
    assert answer(handler, "Hello") == answer(handler, [{"role": "user", "content": "Hello"}])
    assert len(answer(handler, "Hello", max_new_tokens=2)) < len(answer(handler, "Hello", max_new_tokens=20))


def test_a_streamed_answer_is_the_whole_one_in_pieces(handler, png):
    request = {"inputs": {"text": "What is this?", "image": png}, "parameters": {**GREEDY, "max_new_tokens": 60}}
    *pieces, last = handler.stream(request)
    assert [last] == handler(request) and len(pieces) > 1
    assert "".join(piece["token"]["text"] for piece in pieces).strip() == last["generated_text"]
    with pytest.raises(ValueError, match="num_beams is 2; expected 1"):
        handler.stream({**request, "parameters": {"num_beams": 2}})
    with pytest.raises(ValueError, match="the request is a list"):
        handler.stream([])


def test_a_stream_that_is_closed_ends_the_answer(handler):
    long = {"inputs": "Hello", "parameters": {"max_new_tokens": 400, "min_new_tokens": 400}}
    before = threading.active_count()
    pieces = handler.stream(long)
    next(pieces)
    started = time.perf_counter()
    pieces.close()
    assert threading.active_count() <= before  # those of earlier tests may end in the meantime
    closed = time.perf_counter() - started
    started = time.perf_counter()
    handler(long)
    assert closed < (time.perf_counter() - started) / 2


BAD = {
    "no inputs": ({}, "neither a text nor an image"),
    "no text": ({"inputs": {"text": ""}}, "neither a text nor an image"),
    "number": ({"inputs": 3}, "a picture that is int; expected base64"),
    "address": ({"inputs": {"text": "?", "image": "https://example.com/x.jpg"}}, "addresses are not fetched"),
    "path": ({"inputs": {"text": "?", "image": "/etc/passwd"}}, "not valid base64"),
    "path, in base64's letters": ({"inputs": {"text": "?", "image": "/etc/hostname+++"}}, "not a picture that can be read"),
    "data, plain": ({"inputs": {"text": "?", "image": "data:image/png,abc"}}, "data:image/png: a data: URL that is not in"),
    "not a picture": ({"inputs": {"text": "?", "image": base64.b64encode(b"hello").decode()}}, "not a picture"),
    "empty": ({"inputs": {"text": "?", "image": ""}}, "empty"),
    "message": ({"inputs": ["hello"]}, "a message with role 'None'; expected system, user or assistant"),
    "role": ({"inputs": [{"role": "root", "content": "?"}]}, "a message with role 'root'"),
    "no messages": ({"inputs": []}, "inputs is an empty list"),
    "list": ([], "the request is a list"),
    "answer": ({"inputs": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]}, "last message is not"),
    "late system": (
        {"inputs": [{"role": "user", "content": "?"}, {"role": "system", "content": "!"}]},
        "'system' that is not the first",
    ),
    "empty message": ({"inputs": [{"role": "user", "content": " "}]}, "a message of role 'user' is empty"),
    "half a character": ({"inputs": "\ud800"}, "half a character"),
    "content": ({"inputs": [{"role": "user"}]}, "a message whose content is NoneType"),
    "part": ({"inputs": messages("?", type="video", video="x.mp4")}, "a part of type 'video'"),
    "many": ({"inputs": {"text": "?", "images": [""] * 17}}, "17 pictures; expected at most 16"),
    "images": ({"inputs": {"text": "?", "images": 5}}, "images is of type int; expected a list"),
    "text": ({"inputs": {"text": 5}}, "a part of type 'text' without a text"),
    "no picture": ({"inputs": messages("?", type="image")}, "a picture that is NoneType"),
    "remote code": ({"inputs": "?", "parameters": {"custom_generate": "a/repo"}}, "unknown parameter 'custom_generate'"),
    "too long": (
        {"inputs": "?", "parameters": {"max_new_tokens": 10**9}},
        "max_new_tokens is 1000000000; expected int from 1",
    ),
    "bool": ({"inputs": "?", "parameters": {"num_beams": True}}, "parameter num_beams is True; expected int"),
    "NaN": ({"inputs": "?", "parameters": {"top_p": float("nan")}}, "parameter top_p is nan; expected float"),
    "parameters": ({"inputs": "?", "parameters": [1]}, "parameters is of type list; expected an object"),
    "context": ({"inputs": "word " * 3000, "parameters": GREEDY}, "and 8 to come are more than the model's"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_request_is_one_line(kind, handler):
    request, message = BAD[kind]
    with pytest.raises(ValueError, match=message) as error:
        handler(request)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


def test_too_large_a_picture_is_refused_unread(handler, monkeypatch, png):
    monkeypatch.setattr("minigpt4.processing.image_processing_minigpt4.MAX_PIXELS", 500)
    with pytest.raises(ValueError, match="too large"):
        handler({"inputs": {"text": "?", "image": base64.b64encode(png).decode()}})


# How huggingface-inference-toolkit loads a handler: by its path, with the model's folder first where modules are looked for.
CONTAINER = """
import importlib.util, json, sys
sys.modules["minigpt4"] = sys.modules["peft"] = None
folder = sys.argv[1]
spec = importlib.util.spec_from_file_location("handler.EndpointHandler", folder + "/handler.py")
sys.path.insert(0, folder)
module = importlib.util.module_from_spec(spec)
sys.modules["handler.EndpointHandler"] = module
spec.loader.exec_module(module)
handler = module.EndpointHandler(folder)
answers = [handler(json.loads(line)) for line in sys.stdin]
try:
    handler({"inputs": {"text": "?", "image": "http://example.com"}})
except Exception as error:
    answers.append({"error": str(error)})
print(json.dumps(answers))
"""


@pytest.mark.slow
def test_in_a_container_without_this_package_and_without_peft(folder, handler, png, tmp_path):
    request = {"inputs": {"text": "What is it?", "image": base64.b64encode(png).decode()}, "parameters": GREEDY}
    finished = subprocess.run(
        [sys.executable, "-c", CONTAINER, str(folder)],
        input=json.dumps(request),
        cwd=tmp_path,
        env={**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    answered, refused = json.loads(finished.stdout.splitlines()[-1])
    assert answered == handler(request)
    assert answered[0]["generated_text"]
    assert "addresses are not fetched" in refused["error"]
    assert Path(folder, "handler.py").is_file()
