"""Other trainers on an exported model, as its user runs them: TRL's SFTTrainer, and peft's LoRA through the HF Trainer."""

import copy

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForImageTextToText, AutoProcessor, Trainer, TrainingArguments
from trl import SFTConfig, SFTTrainer

from minigpt4 import MiniGPT4DataCollator, MiniGPT4ForConditionalGeneration
from minigpt4.hub.export import export

pytestmark = pytest.mark.slow

ARGUMENTS = {
    "max_steps": 8,
    "per_device_train_batch_size": 4,
    "learning_rate": 2e-2,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "remove_unused_columns": False,
}


@pytest.fixture
def conversations(picture):
    """Conversational picture data as the Hub has it: a list of pictures, and messages."""
    return [
        {
            "images": [picture(i)],
            "messages": [
                {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]},
                {"role": "assistant", "content": [{"type": "text", "text": f"a dog {i}"}]},
            ],
        }
        for i in range(4)
    ]


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_trl_trains_the_exported_model(original, processor, conversations, tmp_path):
    folder = str(export(original, processor, tmp_path / "model"))
    model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    before = copy.deepcopy(model.state_dict())
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(output_dir=str(tmp_path / "sft"), assistant_only_loss=True, **ARGUMENTS),
        train_dataset=Dataset.from_list(conversations),
        processing_class=processor,
    )
    batch = next(iter(trainer.get_train_dataloader()))
    ours = MiniGPT4DataCollator(processor)(conversations)
    assert batch["pixel_values"].shape == ours["pixel_values"].shape
    for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        # What is learned is the answer with its end, and nothing of the question or the picture.
        assert processor.tokenizer.decode(ids[labels != -100]).startswith("a dog")
        assert (labels[labels != -100] == ids[labels != -100]).all()
        assert (ids == processor.image_token_id).sum() == processor.num_image_tokens
    trainer.train()
    assert losses(trainer)[-1] < losses(trainer)[0] - 0.5
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"model.projection.weight", "model.projection.bias"}  # what the paper trains
    trainer.save_model(str(tmp_path / "tuned"))
    again = AutoModelForImageTextToText.from_pretrained(str(tmp_path / "tuned"), trust_remote_code=True)
    assert torch.equal(again.model.projection.weight, model.model.projection.weight)


def test_peft_trains_the_language_model(original, processor, conversations, tmp_path):
    folder = str(export(original, processor, tmp_path / "model"))
    collator = MiniGPT4DataCollator(processor)
    batch = collator(conversations)
    labels = batch["labels"]
    config = LoraConfig(r=4, lora_alpha=8, target_modules=r".*language_model.*\.(q_proj|v_proj)")
    model = get_peft_model(MiniGPT4ForConditionalGeneration.from_pretrained(folder), config)
    arguments = TrainingArguments(output_dir=str(tmp_path / "lora"), **ARGUMENTS)
    trainer = Trainer(model=model, args=arguments, train_dataset=conversations, data_collator=collator)
    trainer.train()
    assert losses(trainer)[-1] < losses(trainer)[0] - 0.5
    model.eval().save_pretrained(str(tmp_path / "adapter"))
    assert {path.name for path in (tmp_path / "adapter").glob("adapter_*")} == {
        "adapter_config.json", "adapter_model.safetensors"}  # fmt: skip
    with torch.no_grad():
        tuned = model(**batch).logits
        base = MiniGPT4ForConditionalGeneration.from_pretrained(folder)
        untouched = base(**batch).logits
        loaded = PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()
        torch.testing.assert_close(loaded(**batch).logits, tuned)
        assert not torch.allclose(untouched, tuned, atol=1e-2)
        # Merged, it is a plain model again, and exports as one.
        merged = str(export(loaded.merge_and_unload(), processor, tmp_path / "merged"))
        whole = AutoModelForImageTextToText.from_pretrained(merged, trust_remote_code=True)
        torch.testing.assert_close(whole(**batch).logits[labels != -100], tuned[labels != -100], atol=1e-4, rtol=1e-4)
