"""A published projection meets the LLM that it was trained with, or one line says which that is."""

import pytest
import torch
from full_size import LLMS, write_blip2_config, write_llm
from transformers import AutoConfig

from minigpt4 import MiniGPT4ForConditionalGeneration
from minigpt4.cli import main
from minigpt4.hub import from_parts
from minigpt4.hub.authors_checkpoints import load_originals
from minigpt4.hub.from_parts import load_tokenizer
from minigpt4.hub.llm_versions import llm_version, template_hint

V0, V1, V15, CHAT = "Vicuna v0", "Vicuna v1.1 or v1.3 (or LLaMA-1 itself)", "Vicuna v1.5 (or Llama-2 itself)", "Llama-2-chat"


@pytest.fixture
def llm(tmp_path):
    """llm(name): the folder of an LLM of the published sizes, without weights."""
    return lambda name: write_llm(name, tmp_path / "llm")


@pytest.fixture
def projection(tmp_path):
    """projection(out, in): a file in the authors' form."""

    def write(*shape):
        path = tmp_path / "projection.pth"
        torch.save({"model": {"llama_proj.weight": torch.zeros(shape), "llama_proj.bias": torch.zeros(shape[0])}}, path)
        return path

    return write


@pytest.mark.parametrize(("name", "version"), list(zip(LLMS, [V0, V0, V1, V15, V15, CHAT], strict=True)))
def test_versions_are_told_apart_by_what_the_repository_holds(name, version, llm):
    folder = llm(name)
    config, tokenizer = AutoConfig.from_pretrained(folder), load_tokenizer(str(folder))
    assert llm_version(config, tokenizer) == version
    assert (template_hint(config, tokenizer) is not None) == (version in (V1, V15))


def test_other_llms_have_no_version(tokenizer, tiny_config):
    assert llm_version(tiny_config.text_config, tokenizer) is None


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("lmsys/vicuna-7b-v1.5", (4096, 768)),
        ("lmsys/vicuna-7b-v1.1", (4096, 768)),
        ("meta-llama/Llama-2-7b-chat-hf", (4096, 768)),
        ("lmsys/vicuna-13b-v1.5", (5120, 768)),
    ],
)
def test_convert_refuses_an_llm_of_the_same_shapes(name, shape, llm, projection, tmp_path, capsys):
    text, eyes = llm(name), write_blip2_config(tmp_path / "blip2")
    options = {"projection": projection(*shape), "vision": eyes, "qformer": eyes, "text": text, "output": tmp_path / "out"}
    assert main(["convert", *(f"--{option}={value}" for option, value in options.items())]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    repo = {4096: "Vision-CAIR/vicuna-7b", 5120: "Vision-CAIR/vicuna"}[shape[0]]
    assert f"published for Vicuna v0 ({repo}), but {text} has" in line and f"Use --text {repo};" in line
    assert not (tmp_path / "out").exists()


def test_the_variant_without_qformer_wants_llama_2_chat(llm, projection, tmp_path):
    eyes = str(write_blip2_config(tmp_path / "blip2"))
    with pytest.raises(ValueError, match=r"published for Llama-2-chat .* has Vicuna v1.5"):
        load_originals(projection(4096, 5632), eyes, str(llm("lmsys/vicuna-7b-v1.5")))


@pytest.mark.parametrize(("name", "shape"), [("Vision-CAIR/vicuna-7b", (4096, 768)), ("Vision-CAIR/vicuna", (5120, 768))])
def test_v0_goes_on_to_the_weights(name, shape, llm, projection, tmp_path):
    eyes = str(write_blip2_config(tmp_path / "blip2"))
    with pytest.raises(OSError, match="no weights there"):  # which these folders do not have
        load_originals(projection(*shape), eyes, str(llm(name)), eyes)


def test_from_parts_refuses_the_published_file_and_hints_at_the_template(llm, projection, tmp_path, monkeypatch):
    eyes, text, said = str(write_blip2_config(tmp_path / "blip2")), str(llm("lmsys/vicuna-7b-v1.5")), []
    with pytest.raises(ValueError, match="the shapes fit, the answers would be garbage"):
        MiniGPT4ForConditionalGeneration.from_parts(eyes, text, projection=projection(4096, 768))
    monkeypatch.setattr(from_parts.logger, "warning", said.append)
    for template, hints in ((None, 1), ("vicuna-v1", 0)):
        said.clear()
        with pytest.raises(OSError, match="no weights there"):
            MiniGPT4ForConditionalGeneration.from_parts(eyes, text, template=template)
        assert len(said) == hints and all("set model.template=vicuna-v1" in line for line in said)
