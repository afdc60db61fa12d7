"""`minigpt4 doctor`: true of this machine, and without a download."""

import importlib.metadata
import re
import sys

import pytest
import torch
from packaging.requirements import Requirement

from minigpt4.cli import main
from minigpt4.cli.doctor import _installed
from minigpt4.modeling_minigpt4.precision import fast_dtype


def test_says_what_is_here_and_fetches_nothing(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("MINIGPT4_CACHE", str(tmp_path))
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    lines = dict(line.split(maxsplit=1) for line in printed.splitlines() if line.startswith("  "))
    assert lines["torch"] == torch.__version__ and lines["Python"].startswith(sys.version.split()[0])
    assert lines["cpu"].endswith("float32 bfloat16 float16") and "GB free" in lines["cpu"]
    used = str(fast_dtype("cpu")).removeprefix("torch.")
    assert re.fullmatch(
        rf"{used} \((has|without) AVX512-BF16, AMX or Arm BF16\); matrix product: \S+ in float32, \S+ in bfloat16 GFLOP/s; "
        r"vision tower: \S+ in float32, \S+ in bfloat16 images/s",
        lines["precision"],
    )
    assert lines["llama"].startswith(f"sentencepiece {importlib.metadata.version('sentencepiece')}")
    assert "vision_tower" in lines and "language_model" in lines and "answers" not in lines
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("requirement", "expected"),
    [("no-such-package", ("not installed", False)), ("torch>=99", (f"{torch.__version__}, expected >=99", False))],
)
def test_what_is_missing_or_too_old(requirement, expected):
    assert _installed(Requirement(requirement)) == expected
