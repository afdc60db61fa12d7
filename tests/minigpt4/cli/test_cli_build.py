"""`minigpt4 build`: parts to a folder that stage 1 starts from, or one line."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, LlamaModel
from vision_parts import write_blip2

from minigpt4.cli import main
from minigpt4.inference.named_models import load
from minigpt4.modeling_minigpt4.repositories import StoredTensors


@pytest.fixture
def parts(original, parity_dir, tmp_path):
    """Arguments that name a BLIP-2 with the tiny original's vision side, and its LLM."""
    blip2 = write_blip2(original, tmp_path / "blip2")
    return ["--vision", str(blip2), "--text", str(parity_dir / "llama_tiny"), "--output", str(tmp_path / "model")]


@pytest.mark.parametrize("light", [False, True])
def test_a_folder_of_the_originals_parts(light, parts, original, parity_dir, tmp_path, capsys):
    projection = parity_dir / "checkpoints" / "pretrained_minigpt4_tiny.pth"
    assert main(["build", *parts, "--projection", str(projection), *(["--light"] if light else [])]) == 0
    assert f"stage1.py --set model.base={tmp_path / 'model'} model.projection=base" in capsys.readouterr().out
    model, processor = load(str(tmp_path / "model"))
    expected = original.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
    assert (
        set(StoredTensors(str(tmp_path / "model"))) == {f"model.projection.{name}" for name in ("weight", "bias")}
    ) is light
    assert processor.num_image_tokens == model.config.num_image_tokens == 5


def test_a_seed_draws_the_same_projection(parts, tmp_path):
    drawn = []
    for seed in ("0", "0", "1"):
        assert main(["build", *parts, "--light", "--qformer", "none", "--seed", seed]) == 0
        drawn.append(StoredTensors(str(tmp_path / "model"))["model.projection.weight"][...])
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert load(str(tmp_path / "model"))[0].config.qformer_config is None


@pytest.mark.slow
def test_stage_1_starts_from_it(parts, picture, tmp_path):
    assert main(["build", *parts, "--light"]) == 0
    (tmp_path / "data").mkdir()
    picture().save(tmp_path / "data" / "0.png")
    (tmp_path / "data" / "captions.csv").write_text("file_name,caption\n0.png,a cat\n")
    settings = [f"model.base={tmp_path / 'model'}", f"data.path={tmp_path / 'data'}", f"output={tmp_path / 'run'}"]
    steps = ["train.steps=1", "train.batch_size=1", "train.check_first_loss=false"]
    command = [sys.executable, "trainer_scripts/stage1.py", "--set", *settings, *steps]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()


def test_weights_that_are_no_numbers_are_found(parts, original, parity_dir, tmp_path, capsys):
    tensors = {name: tensor for name, tensor in original.state_dict().items() if name.startswith("model.projection.")}
    tensors["model.projection.bias"] = tensors["model.projection.bias"] * torch.nan
    save_file(tensors, tmp_path / "damaged.safetensors")
    assert main(["build", *parts, "--projection", str(tmp_path / "damaged.safetensors")]) == 2
    assert "they are not finite numbers; its weights are damaged" in capsys.readouterr().err


class OddConfig(LlamaConfig):
    """Of an LLM that nobody has seen before."""

    model_type = "odd_llama"


class OddModel(LlamaModel):
    config_class = OddConfig


class OddForCausalLM(LlamaForCausalLM):
    """Its logits are more than a linear layer makes of its hidden states."""

    config_class = OddConfig

    def forward(self, input_ids=None, **kwargs):
        output = super().forward(input_ids=input_ids, **kwargs)
        if input_ids is not None:
            output.logits = output.logits + input_ids[..., None]
        return output


def test_an_unknown_family_is_caught_by_its_logits(parts, parity_dir, tmp_path, capsys):
    AutoConfig.register("odd_llama", OddConfig, exist_ok=True)
    AutoModel.register(OddConfig, OddModel, exist_ok=True)
    AutoModelForCausalLM.register(OddConfig, OddForCausalLM, exist_ok=True)
    odd = tmp_path / "odd"
    shutil.copytree(parity_dir / "llama_tiny", odd)
    config = json.loads((odd / "config.json").read_text())
    (odd / "config.json").write_text(json.dumps({**config, "model_type": "odd_llama"}))
    assert main(["build", *parts, "--text", str(odd)]) == 2
    error = capsys.readouterr().err
    assert "OddForCausalLM: in this model, logits on text differ from its own by" in error
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--projection", "nothere.pth"], "--projection nothere.pth: no such file"),
        (["--image-token", "<picture>"], "its vocabulary does not have the image token '<picture>'"),
        (["--template", "nothere.jinja"], "model.template is 'nothere.jinja': no such file; expected vicuna, vicuna-v1"),
        (["--qformer", "none", "--patch-merge", "9x9"], "patch_merge is 9x9, more than the vision tower's 4 x 4 patches"),
        (["--vision-feature-layer", "-2"], "a Q-Former reads the vision tower's output"),
        (["--vision", "/nothere"], "/nothere: not the folder or Hub repository of a model"),
        (["--dtype", "int8"], "dtype int8: no such precision"),
    ],
)
def test_bad_input_is_one_line(arguments, message, parts, tmp_path, capsys):
    assert main(["build", *parts, *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "model").exists()
