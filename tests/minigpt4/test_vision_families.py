"""The families of vision towers, each with two LLMs, the whole way: build, stage 1, stage 2, saved, loaded, asked."""

import json
from pathlib import Path

import pytest
import torch
from both_stages import train_both_stages
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    CLIPConfig,
    CLIPModel,
    ConvNextConfig,
    ConvNextForImageClassification,
    Dinov2Config,
    Dinov2Model,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    GPT2Config,
    LlamaConfig,
    Siglip2VisionConfig,
    Siglip2VisionModel,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTForImageClassification,
)
from vision_parts import write_blip2

from minigpt4 import MiniGPT4Config, MiniGPT4ForConditionalGeneration
from minigpt4.cli import main
from minigpt4.hub.from_parts import load_config
from minigpt4.inference.named_models import load
from minigpt4.modeling_minigpt4.repositories import StoredTensors
from minigpt4.modeling_minigpt4.vision_tower import build_vision_tower, look

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
PATCHES = {"image_size": 70, "patch_size": 14}  # 5 x 5, which blocks of 2 x 2 do not divide
TEXT = {**SIZES, "vocab_size": 64, "projection_dim": 16}
HALF, CLIP, IMAGENET = [0.5] * 3, [0.48145466, 0.4578275, 0.40821073], [0.485, 0.456, 0.406]
STAGES = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "image_size": 96}
# {family: (a model as such repositories have it, colors, class and register tokens, visual tokens, arguments of build)}
TOWERS = {
    "siglip": (lambda: SiglipVisionModel(SiglipVisionConfig(**SIZES, **PATCHES)), HALF, 0, 9, ()),
    "siglip2": (
        lambda: SiglipModel(SiglipConfig(text_config=TEXT, vision_config={**SIZES, **PATCHES})),
        HALF,
        0,
        4,
        ("--patch-fit", "pool"),
    ),
    "clip": (
        lambda: CLIPModel(CLIPConfig(text_config=TEXT, vision_config={**SIZES, **PATCHES})),
        CLIP,
        1,
        9,
        ("--vision-feature-layer", "-2"),
    ),
    "dinov2": (lambda: Dinov2Model(Dinov2Config(**SIZES, **PATCHES)), IMAGENET, 1, 4, ("--patch-merge", "4x4")),
    "dinov3": (lambda: DINOv3ViTModel(DINOv3ViTConfig(**SIZES, **PATCHES, num_register_tokens=4)), IMAGENET, 5, 9, ()),
    "vit": (lambda: ViTForImageClassification(ViTConfig(**SIZES, **PATCHES)), HALF, 1, 5, ("--patch-merge", "5")),
    "convnext": (lambda: ConvNextForImageClassification(ConvNextConfig(**STAGES)), IMAGENET, 0, 4, ()),
    "eva": (None, CLIP, 1, 5, ()),
}
LLMS = {
    "llama": lambda: LlamaConfig(**{**SIZES, "vocab_size": 512}, pad_token_id=2),
    "gpt2": lambda: GPT2Config(vocab_size=512, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2),
}


def _write_eva(folder):
    qformer = Blip2QFormerConfig(**SIZES, cross_attention_frequency=1)
    vision = Blip2VisionConfig(**SIZES, **PATCHES, initializer_range=0.02)
    text = LlamaConfig(**{**SIZES, "vocab_size": 64}, pad_token_id=2)
    config = MiniGPT4Config(vision_config=vision, qformer_config=qformer, text_config=text, num_query_tokens=5)
    write_blip2(MiniGPT4ForConditionalGeneration(config), folder)


@pytest.fixture(scope="session")
def towers(tmp_path_factory):
    """{family: folder} of tiny towers with random weights, each with its preprocessor_config.json."""
    folders = {}
    for name, (make, mean, *_) in TOWERS.items():
        torch.manual_seed(0)
        folders[name] = tmp_path_factory.mktemp("towers") / name
        make().save_pretrained(folders[name]) if make else _write_eva(folders[name])
        said = {"image_mean": mean, "image_std": [0.25] * 3, "resample": 2, "size": {"shortest_edge": 96}}
        (folders[name] / "preprocessor_config.json").write_text(json.dumps(said))
    return folders


@pytest.fixture(scope="session")
def llms(tmp_path_factory, parity_dir):
    """{family: folder} of tiny LLMs with random weights and the tiny LLaMA's tokenizer."""
    folders = {}
    for name, config in LLMS.items():
        torch.manual_seed(0)
        folders[name] = tmp_path_factory.mktemp("llms") / name
        AutoModelForCausalLM.from_config(config()).save_pretrained(folders[name])
        AutoTokenizer.from_pretrained(parity_dir / "llama_tiny").save_pretrained(folders[name])
    return folders


@pytest.mark.slow
@pytest.mark.parametrize("llm", LLMS)
@pytest.mark.parametrize("family", TOWERS)
def test_the_whole_way(family, llm, towers, llms, picture, tmp_path, capsys):
    _, mean, extra, tokens, options = TOWERS[family]
    base = str(tmp_path / "base")
    parts = ["--vision", str(towers[family]), "--text", str(llms[llm]), "--image-token", "<unk>", "--output", base]
    assert main(["build", *parts, *options, *(["--light"] if llm == "llama" else [])]) == 0, capsys.readouterr().err
    assert f"{tokens} visual tokens a picture" in capsys.readouterr().out
    model, trained = train_both_stages(base, [picture(0), picture(1)], tmp_path)
    again, processor = load(trained)
    assert list(processor.image_processor.image_mean) == pytest.approx(mean)
    inputs = processor(images=picture(), text="<unk> a", return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(again(**inputs).logits, model(**inputs).logits)
        tower = _own_tower(towers[family])
        _, seen = look(tower, inputs["pixel_values"], again.config.vision_feature_layer)
        _, ours = look(again.model.vision_tower, inputs["pixel_values"], again.config.vision_feature_layer)
    assert torch.equal(ours, seen) and seen.shape[1] == extra + again.config.num_patches
    assert isinstance(again.chat_session(processor).ask("What is it?", images=picture(), max_new_tokens=3), str)


def _own_tower(folder):
    """The tower of a folder as transformers loads it by itself."""
    config = load_config(str(folder))
    if config.model_type == "blip-2":
        tower, stored = build_vision_tower(config.vision_config), StoredTensors(str(folder))
        tower.load_state_dict({name: stored[f"vision_model.{name}"][...] for name in tower.state_dict()})
        return tower.eval()
    whole = AutoModel.from_pretrained(folder).eval()
    return getattr(whole, "vision_model", whole)


def test_the_page_for_readers_names_each_family():
    page = (Path(__file__).parents[2] / "docs" / "own-llm-and-tower.md").read_text("utf-8")
    table = page.split("| tower | model_type |")[1].split("\n\n")[0]
    named = [row.split("|")[1].strip().split(",")[0].split(" ViT")[0] for row in table.splitlines()[2:]]
    assert [name.lower().replace(" ", "") for name in named] == list(TOWERS)


def test_naflex_is_refused_by_name(towers, llms, tmp_path, capsys):
    """SigLIP 2's towers for images of any size: their number of visual tokens is not fixed."""
    folder = tmp_path / "naflex"
    Siglip2VisionModel(Siglip2VisionConfig(**SIZES, num_patches=16, patch_size=14)).save_pretrained(folder)
    arguments = ["build", "--vision", str(folder), "--text", str(llms["llama"]), "--output", str(tmp_path / "model")]
    assert main(arguments) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"{folder}: the vision tower siglip2_vision_model: needs pixel_attention_mask, spatial_shapes" in line
    assert not (tmp_path / "model").exists()


def test_a_tower_without_weights_of_its_pooling_layer(towers):
    """A ViT for classification has none, and nothing here looks at it."""
    config = load_config(str(towers["vit"]))
    assert not [name for name in build_vision_tower(config).state_dict() if "pooler" in name]
