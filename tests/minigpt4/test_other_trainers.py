import numpy as np, torch
import pytest
from datasets import Dataset
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl import SFTConfig, SFTTrainer
from minigpt4.modeling_minigpt4.export import export


@pytest.mark.parametrize("kw", [dict(), dict(assistant_only_loss=True), dict(max_length=None), dict(max_length=None, assistant_only_loss=True)])
def test_sft(original, processor, picture, tmp_path, kw):
    d = str(export(original, processor, tmp_path / "m"))
    model=AutoModelForImageTextToText.from_pretrained(d, trust_remote_code=True); proc=AutoProcessor.from_pretrained(d, trust_remote_code=True)
    rows=[{"images":[picture(i)],"messages":[{"role":"user","content":[{"type":"image"},{"type":"text","text":"What is this?"}]},{"role":"assistant","content":[{"type":"text","text":"a dog %d"%i}]}]} for i in range(4)]
    ds=Dataset.from_list(rows)
    before=model.model.projection.weight.detach().clone()
    tr=SFTTrainer(model=model,args=SFTConfig(output_dir=str(tmp_path/"o"),max_steps=2,per_device_train_batch_size=2,report_to="none",use_cpu=True,bf16=False,learning_rate=1e-2,save_strategy="no",logging_steps=1, **kw),train_dataset=ds,processing_class=proc)
    b=next(iter(tr.get_train_dataloader())); print({k:(v.shape if hasattr(v,'shape') else v) for k,v in b.items()}); print(proc.tokenizer.decode(b['input_ids'][0])); print(b['labels'][0].tolist())
    tr.train()
    print(kw, tr.state.log_history)
    print((model.model.projection.weight-before).abs().max())
