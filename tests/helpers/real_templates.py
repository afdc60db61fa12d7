"""Chat templates as LLMs have them, read from wheels: none is copied into this repository.

trl, which the tests have anyway, contains those that it knows, and its own versions for training, in which what the
model writes is marked. unsloth has a few more in its source, which is read and never run.
"""

import ast
import importlib.util
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

CACHE = Path(__file__).parents[2] / ".cache"
UNSLOTH = "unsloth==2025.5.9"  # the last small one
_SPECIAL = re.compile(r"<\|?[^<>\s'\"{}()|]+\|?>|\[/?[A-Z_]+\]|<\uff5c[^\uff5c]+\uff5c>")  # and in fullwidth


def of_trl():
    """{name: template}; that of NAME for training is NAME_training."""
    folder = Path(importlib.util.find_spec("trl").origin).with_name("chat_templates")
    return {path.stem: path.read_text("utf-8") for path in sorted(folder.glob("*.jinja"))}


def of_unsloth():
    """{name: template}; the wheel, 0.3 MB, is fetched once. Raises OSError where the index does not give it."""
    wheel = CACHE / "unsloth" / f"{UNSLOTH.replace('==', '-')}-py3-none-any.whl"
    if not wheel.is_file():
        wheel.parent.mkdir(parents=True, exist_ok=True)
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        with tempfile.TemporaryDirectory(dir=wheel.parent) as scratch:
            got = subprocess.run([*pip, "--dest", scratch, UNSLOTH], capture_output=True, text=True, check=False)
            if got.returncode:
                raise OSError(f"{UNSLOTH} cannot be fetched ({got.stderr.strip().splitlines()[-1]})")
            Path(scratch, wheel.name).rename(wheel)
    with zipfile.ZipFile(wheel) as archive:
        source = archive.read("unsloth/chat_templates.py").decode()
    found = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            if name.endswith("_template") and "{%" in node.value.value:
                found[name.removesuffix("_template")] = node.value.value
    return found


def byte_tokenizer(template=None, special=()):
    """A tokenizer of bytes with <s>, </s> and the special tokens that a template spells, and with that template."""
    tokens = ["<s>", "</s>", *special, *_SPECIAL.findall(template or "")]
    tokens = list(dict.fromkeys(tokens))
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens + letters)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", additional_special_tokens=tokens[2:]
    )
    tokenizer.chat_template = template
    return tokenizer
