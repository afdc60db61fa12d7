"""Tiny models for the tests: the original's own tiny weights (fixtures/parity), and pieces to build others from."""

import copy
import gc
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tars import jpeg, write_tar
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
)
from vision_parts import write_blip2

from minigpt4 import (
    MiniGPT4Config,
    MiniGPT4DataCollator,
    MiniGPT4ForConditionalGeneration,
    MiniGPT4ImageProcessor,
    MiniGPT4Processor,
)
from minigpt4.hub.convert import eva_vit_weights, projection_weights, qformer_weights, read_checkpoint
from minigpt4.hub.export import export
from minigpt4.processing.chat_templates import CHATML, with_image_token

PARITY = Path(__file__).parent / "fixtures" / "parity"


CORES = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


def pytest_configure():
    """Each worker of pytest-xdist, and every process that it starts, keeps to one core.

    PyTorch's threads wait for each other in busy loops. Two processes with two threads each on two cores take many times as
    long as with one thread each.
    """
    _keep_to(_own_core())
    if _own_core() != CORES:
        torch.set_num_threads(1)


def _own_core():
    """The cores of this process: one per worker, or all without workers."""
    worker = os.environ.get("PYTEST_XDIST_WORKER")  # gw0, gw1, ...
    return {sorted(CORES)[int(worker.removeprefix("gw")) % len(CORES)]} if worker and CORES else CORES


def _keep_to(cores):
    if cores:
        os.sched_setaffinity(0, cores)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """A browser, its page and the test run on every core: on a single one the page falls behind the test's clicks."""
    browser = item.get_closest_marker("browser")
    _keep_to(CORES if browser else _own_core())
    try:
        return (yield)
    finally:
        _keep_to(_own_core())


def pytest_collection_modifyitems(items):
    """Files with slow tests come first, so that with several workers the last ones to end are quick."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_runtest_setup(item):
    """pip does not install browsers."""
    if item.get_closest_marker("browser") and not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("needs Debian's chromium and chromium-driver")


def pytest_collection_finish():
    """What was imported stays: the Trainer collects garbage in every run, and need not scan it again."""
    gc.freeze()


@pytest.fixture(scope="session")
def parity_dir():
    """What the original code gave on tiny random weights: its checkpoints, inputs and outputs."""
    return PARITY


@pytest.fixture(scope="session")
def parity():
    """parity("out_vision.pth"): the content of a fixture file, tensors or JSON."""

    def load(name):
        path = PARITY / name
        return json.loads(path.read_text()) if path.suffix == ".json" else torch.load(path, weights_only=True)

    return load


@pytest.fixture(scope="session")
def tiny_config(parity):
    """The configuration of the original's tiny model, from the original's own names."""
    sizes = parity("tiny_config.json")
    return MiniGPT4Config(
        vision_config=Blip2VisionConfig(
            hidden_size=sizes["vit_width"],
            intermediate_size=int(sizes["vit_width"] * sizes["vit_mlp_ratio"]),
            num_hidden_layers=sizes["vit_depth"],
            num_attention_heads=sizes["vit_heads"],
            image_size=sizes["img_size"],
            patch_size=sizes["patch_size"],
            initializer_range=0.2,
        ),
        qformer_config=Blip2QFormerConfig(
            hidden_size=sizes["q_hidden"],
            intermediate_size=sizes["q_inter"],
            num_hidden_layers=sizes["q_layers"],
            num_attention_heads=sizes["q_heads"],
            cross_attention_frequency=sizes["cross_attention_freq"],
        ),
        text_config=LlamaConfig.from_pretrained(PARITY / "llama_tiny"),
        num_query_tokens=sizes["num_query"],
    )


@pytest.fixture(scope="session")
def _original(tiny_config):
    checkpoints = PARITY / "checkpoints"
    llama = AutoModelForCausalLM.from_pretrained(PARITY / "llama_tiny").state_dict()
    weights = {
        **eva_vit_weights(read_checkpoint(checkpoints / "eva_vit_g.pth"), num_layers=3),
        **qformer_weights(read_checkpoint(checkpoints / "blip2_pretrained_flant5xxl.pth")),
        **projection_weights(read_checkpoint(checkpoints / "pretrained_minigpt4_tiny.pth")),
        **{name.replace("model.", "model.language_model.", 1): tensor for name, tensor in llama.items()},
    }
    model = MiniGPT4ForConditionalGeneration(copy.deepcopy(tiny_config)).eval()
    model.load_state_dict(weights)  # strict: each weight of the model is in the checkpoints
    return model


@pytest.fixture
def original(_original):
    """The tiny model with the original's weights, in eval mode; a copy for each test."""
    return copy.deepcopy(_original)


@pytest.fixture(scope="session")
def _embedded():
    from minigpt4.modeling_minigpt4.embedded import load_embedded

    torch.manual_seed(0)
    return load_embedded(projection=None)


@pytest.fixture
def embedded(_embedded):
    """(model, processor): the embedded default with an untrained projection; a copy that shares the frozen weights."""
    model, processor = _embedded
    frozen = {id(parameter): parameter for parameter in model.parameters() if not parameter.requires_grad}
    return copy.deepcopy(model, frozen), copy.deepcopy(processor)


@pytest.fixture
def tokenizer():
    """The tiny LLaMA tokenizer, SentencePiece as published."""
    return AutoTokenizer.from_pretrained(PARITY / "llama_tiny")


@pytest.fixture
def processor(tokenizer, tiny_config):
    """Processor of the tiny model."""
    image_processor = MiniGPT4ImageProcessor(size={"height": 56, "width": 56})
    return MiniGPT4Processor(image_processor, tokenizer, num_image_tokens=tiny_config.num_image_tokens)


@pytest.fixture
def chatml_processor(processor):
    """A byte-level tokenizer like SmolLM2's: no <unk>, turn markers that are special tokens, ChatML."""
    special = ["<|im_start|>", "<|im_end|>", "<image>"]
    vocabulary = {token: index for index, token in enumerate(special + sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", additional_special_tokens=special)
    return MiniGPT4Processor(
        processor.image_processor,
        tokenizer,
        image_token="<image>",
        num_image_tokens=2,
        turn_markers=[],
        chat_template=with_image_token(CHATML, "<image>"),
    )


@pytest.fixture
def collator(processor):
    """MiniGPT4DataCollator of the tiny model, defaults."""
    return MiniGPT4DataCollator(processor)


@pytest.fixture(scope="session")
def picture():
    """picture(seed): a small RGB picture of noise."""

    def make(seed=0, size=(20, 30)):
        noise = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
        return Image.fromarray(noise)

    return make


@pytest.fixture
def base(original, processor, tmp_path):
    """The tiny model as a folder."""
    return str(export(original, processor, tmp_path / "base"))


@pytest.fixture
def photo(picture, tmp_path):
    """A picture as a file."""
    picture().save(tmp_path / "photo.png")
    return str(tmp_path / "photo.png")


@pytest.fixture
def blip2(original, tmp_path):
    """Folder of a BLIP-2 with the original's vision side."""
    return write_blip2(original, tmp_path / "blip2")


@pytest.fixture
def parts(blip2, parity_dir):
    """Arguments of `from_parts` for the original's tiny model."""
    projection = parity_dir / "checkpoints" / "pretrained_minigpt4_tiny.pth"
    return {"vision": str(blip2), "text": str(parity_dir / "llama_tiny"), "projection": projection}


@pytest.fixture
def shards(tmp_path):
    """shards(5, 4): a folder of 5 tar files with 4 pictures each; the caption of each is its color."""

    def write(n=5, samples=4, name="shards"):
        for shard in range(n):
            colours = {f"{shard:05}{key:04}": shard * samples + key for key in range(samples)}
            members = {
                key: {"jpg": jpeg(colour), "txt": f"Colour {colour}.".encode(), "json": json.dumps({"n": colour}).encode()}
                for key, colour in colours.items()
            }
            write_tar(tmp_path / name / f"{shard:05}.tar", members)
        return tmp_path / name

    return write
