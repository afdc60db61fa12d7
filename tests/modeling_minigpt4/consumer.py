"""Run by test_export.py as a process of its own: uses an exported folder as somebody would who has transformers alone.

python consumer.py FOLDER AGAIN REPORT    loads FOLDER, answers, saves it as AGAIN, loads that; writes JSON to REPORT.
"""

import contextlib
import io
import json
import re
import sys
from pathlib import Path

sys.modules["minigpt4"] = None  # as where it is not installed: importing it raises ModuleNotFoundError

import transformers
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoProcessor

folder, again, report = sys.argv[1:]
trust = {"trust_remote_code": True}
content = [{"type": "image", "path": "photo.jpg"}, {"type": "text", "text": "What is in the picture?"}]
messages = [{"role": "user", "content": content}]


def answer(model, processor):
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    return model.generate(**inputs, max_new_tokens=8)[0].tolist()


def snippet_output(folder):
    """What the example in README.md prints; the re-saved folder has none."""
    readme = Path(folder) / "README.md"
    if not readme.is_file():
        return None
    [code] = re.findall(r"```python\n(.*?)```", readme.read_text(), re.DOTALL)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(code, {})
    return printed.getvalue()


def refusal(folder):
    """What transformers says to someone who does not trust the code."""
    try:
        AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except ValueError as error:
        return str(error)


answers, classes = {}, {}
processor = AutoProcessor.from_pretrained(folder, **trust)
for name in ("AutoModel", "AutoModelForImageTextToText", "AutoModelForMultimodalLM"):
    model = getattr(transformers, name).from_pretrained(folder, **trust)
    answers[name], classes[name] = answer(model, processor), type(model).__name__
for auto in (AutoConfig, AutoImageProcessor, AutoProcessor):
    classes[auto.__name__] = type(auto.from_pretrained(folder, **trust)).__name__

pipe = transformers.pipeline("image-text-to-text", model=folder, **trust)
[piped] = pipe(text=messages, max_new_tokens=8, return_full_text=False)

model.save_pretrained(again)
processor.save_pretrained(again)
answers["again"] = answer(AutoModel.from_pretrained(again, **trust), AutoProcessor.from_pretrained(again, **trust))

result = {
    "answers": answers,
    "classes": classes,
    "pipeline": piped["generated_text"],
    "snippet": snippet_output(folder),
    "refusal": refusal(folder),
    "projection_dtype": str(model.model.projection.weight.dtype),
    "generation": model.generation_config.to_diff_dict(),
}
Path(report).write_text(json.dumps(result))
