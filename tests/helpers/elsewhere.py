"""Uses an exported folder as somebody with only transformers would: in a process that cannot import this package.

consume(folder, again, photo)    runs this file there and returns what it found out
"""

import contextlib
import io
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

QUESTION = "What is in the picture?"
TRUST = {"trust_remote_code": True}
MODELS = ("AutoModel", "AutoModelForImageTextToText", "AutoModelForMultimodalLM")
OTHERS = ("AutoConfig", "AutoImageProcessor", "AutoProcessor")


def consume(model, again, photo, **environment):
    """Loads a model, asks it about a picture, saves and loads it again, in a fresh process with empty caches.

    Args:
        model: an exported folder, or an id on the Hub that `environment` points to.
        again: where to save it again; its parent is the working folder.
        photo: a picture.

    Returns:
        dict: `classes` of the Auto classes, `answers` (all ids) of the models, what the `pipeline` and the example in
        README.md (`snippet`) say, a conversation as a Space has it (`chat`; None without app.py), what `chat_session` says
        and the `refusal` without trust, `projection_dtype`, `generation` defaults.
    """
    workplace = Path(again).parent
    photo.save(workplace / "photo.png")
    photo.save(workplace / "photo.jpg")
    caches = {"HF_HOME": str(workplace / "hf"), "HF_MODULES_CACHE": str(workplace / "modules"), "HF_HUB_OFFLINE": "1"}
    report = workplace / "report.json"
    finished = subprocess.run(
        [sys.executable, __file__, str(model), str(again), str(report)],
        cwd=workplace,
        env={**os.environ, **caches, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return json.loads(report.read_text())


def answer(model, processor, tokens=8):
    """Prompt and answer to the question about `photo.png` in the working folder: (all ids, the answer's text)."""
    content = [{"type": "image", "path": "photo.png"}, {"type": "text", "text": QUESTION}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    ids = model.generate(**inputs, max_new_tokens=tokens)[0]
    return ids.tolist(), processor.decode(ids[inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def _examine(folder, again):
    import transformers

    processor = transformers.AutoProcessor.from_pretrained(folder, **TRUST)
    answers, classes = {}, {}
    for name in MODELS:
        model = getattr(transformers, name).from_pretrained(folder, **TRUST)
        answers[name], classes[name] = answer(model, processor)[0], type(model).__name__
    for name in OTHERS:
        classes[name] = type(getattr(transformers, name).from_pretrained(folder, **TRUST)).__name__
    model.save_pretrained(again)
    processor.save_pretrained(again)
    answers["again"], _ = answer(
        transformers.AutoModel.from_pretrained(again, **TRUST),
        transformers.AutoProcessor.from_pretrained(again, **TRUST),
    )
    return {
        "answers": answers,
        "classes": classes,
        "pipeline": _pipeline(folder),
        "chat": _chat(folder, model, processor) if Path(folder, "app.py").is_file() else None,
        "chat_session": _error(ImportError, lambda: model.chat_session(processor)),
        "snippet": _snippet(folder),
        # Without trust in the code.
        "refusal": _error(ValueError, lambda: transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)),
        "projection_dtype": str(model.model.projection.weight.dtype),
        "generation": model.generation_config.to_diff_dict(),
    }


def _pipeline(folder):
    from transformers import pipeline

    content = [{"type": "image", "path": "photo.png"}, {"type": "text", "text": QUESTION}]
    pipe = pipeline("image-text-to-text", model=folder, **TRUST)
    [answered] = pipe(text=[{"role": "user", "content": content}], max_new_tokens=8, return_full_text=False)
    return answered["generated_text"]


def _chat(folder, model, processor):
    """Two answers, the second also without a session, and how many tokens the session ran for it."""
    lengths = []
    chat = runpy.run_path(f"{folder}/app.py")["ChatSession"](model, processor, max_new_tokens=8)
    first = chat.ask(QUESTION, "photo.png")
    model.model.language_model.register_forward_pre_hook(
        lambda _, args, kwargs: lengths.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    second = "".join(chat.ask("Why?", stream=True))
    own_tokens = lengths[0]
    inputs = processor.apply_chat_template(
        chat.messages[:-1], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    lengths.clear()
    ids = model.generate(**inputs, max_new_tokens=8)[0, inputs["input_ids"].shape[1] :]
    anew = processor.decode(ids, skip_special_tokens=True)
    return {"first": first, "second": second, "anew": anew, "own_tokens": own_tokens, "all_tokens": lengths[0]}


def _snippet(folder):
    """What the example in README.md prints; a folder that was saved again has none."""
    readme = Path(folder) / "README.md"
    if not readme.is_file():
        return None
    [code] = re.findall(r"```python\n(.*?)```", readme.read_text(), re.DOTALL)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(code, {})
    return printed.getvalue()


def _error(kind, call):
    """The message of the error that a call raises; None if it raises none."""
    try:
        call()
    except kind as error:
        return str(error)


if __name__ == "__main__":
    sys.modules["minigpt4"] = None  # as where it is not installed: importing it raises ModuleNotFoundError
    found, resaved, report_file = sys.argv[1:]
    Path(report_file).write_text(json.dumps(_examine(found, resaved)))
