"""The GPU leg of the tests (`make test-gpu`): the tiny model on a CUDA device. Not run where this was written: no GPU."""

import shutil
import warnings

import pytest
import torch

from minigpt4.configuration.recipe import Recipe, TrainSection
from minigpt4.hub.export import export
from minigpt4.inference.named_models import load
from minigpt4.processing.collator import MiniGPT4DataCollator
from minigpt4.processing.data.datasets import PictureTexts
from minigpt4.training.frozen_llm import FrozenLLM
from minigpt4.training.run import load_model, train

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU on this machine")]


@pytest.fixture
def batch(processor, picture):
    """A planned batch of two captions."""
    collator = MiniGPT4DataCollator(processor, plan=True)
    return collator([{"image": picture(i), "text": text} for i, text in enumerate(["a cat", "a dog on a red mat"])])


def _loss(model, batch, **autocast):
    batch = {name: value.to(model.device) if torch.is_tensor(value) else value for name, value in batch.items()}
    with torch.autocast(model.device.type, enabled=bool(autocast), **autocast), FrozenLLM(model, tokens_at_once=40):
        loss = model(**batch, num_items_in_batch=(batch["labels"] != -100).sum()).loss
    loss.backward()
    return loss


def test_the_loss_on_the_gpu_is_that_on_the_cpu(original, batch):
    expected = _loss(original.train(), batch)
    found = _loss(original.cuda(), batch)
    torch.testing.assert_close(found.cpu(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype, original, batch):
    plain = _loss(original.cuda().train(), batch)
    torch.testing.assert_close(_loss(original, batch, dtype=dtype), plain, atol=0.05, rtol=0.05)


def test_a_step_makes_nobody_wait(original, batch):
    model = original.cuda().train()
    batch = {name: value.cuda() if torch.is_tensor(value) else value for name, value in batch.items()}
    _loss(model, batch)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            _loss(model, batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert not [warning for warning in said if "synchronizing" in str(warning.message)]


@pytest.mark.parametrize("load_in", ["8bit", "4bit"])
def test_packed_weights_answer(load_in, original, processor, tmp_path, picture):
    folder = export(original, processor, tmp_path / "model")
    model, processor = load(str(folder), device="cuda", load_in=load_in)
    content = [{"type": "image", "image": picture()}, {"type": "text", "text": "What is this?"}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    ).to("cuda")
    assert model.generate(**inputs, max_new_tokens=4).shape[1] > inputs["input_ids"].shape[1]


def test_compiled_layers_give_the_same_loss(original, batch):
    model = original.cuda().train()
    expected = _loss(model, batch)
    for layer in model.model.language_model.layers:
        layer.compile(dynamic=True)
    torch.testing.assert_close(_loss(model, batch), expected, atol=1e-3, rtol=1e-3)


def test_a_checkpoint_of_the_gpu_goes_on_on_the_cpu(original, processor, picture, tmp_path, monkeypatch):
    base = str(export(original, processor, tmp_path / "base"))
    recipe = Recipe(output=str(tmp_path / "run"))
    recipe.model.base, recipe.model.projection = base, "base"
    recipe.train = TrainSection(steps=6, batch_size=2, learning_rate=1e-2, warmup_steps=2, save_steps=3, save_total_limit=2)
    data = PictureTexts([{"image": picture()}], [{"picture": 0, "text": text} for text in ("a cat", "a dog")])
    model, processor = load_model(recipe.model)
    assert model.device.type == "cuda"

    class Stopped(Exception):
        pass

    def stop(*args):
        raise Stopped

    monkeypatch.setattr("minigpt4.training.run._finish", stop)
    with pytest.raises(Stopped):
        train(recipe, model, processor, data)
    monkeypatch.undo()
    shutil.rmtree(tmp_path / "run" / "checkpoint-6")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    model, processor = load_model(recipe.model)
    _, _, summary = train(recipe, model.cpu(), processor, data)
    assert summary["steps"] == 6
