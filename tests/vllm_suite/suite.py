"""The tiny model in vLLM: the same log-probabilities and texts as `generate`. Run by `make test-vllm`, with its own venv."""

import copy
import os

# One process, so that nothing is left behind; one thread and 1 GB for keys and values.
os.environ.update(
    VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_CPU_KVCACHE_SPACE="1", VLLM_CPU_OMP_THREADS_BIND="nobind", OMP_NUM_THREADS="1"
)

import pytest
import torch
from transformers import LlamaConfig

from minigpt4 import MiniGPT4Config, MiniGPT4ForConditionalGeneration
from minigpt4.modeling_minigpt4.export import export
from minigpt4.serving.vllm_engine import OVERRIDES

vllm = pytest.importorskip("vllm")

TOKENS = 12


@pytest.fixture
def wide(tiny_config):
    """The tiny model with an LLM whose heads are 32 wide: vLLM has no attention on the CPU for narrower ones."""
    text = LlamaConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=512,
        pad_token_id=2,
        initializer_range=0.2,
    )
    tiny_config = copy.deepcopy(tiny_config)
    config = MiniGPT4Config(
        vision_config=tiny_config.vision_config,
        qformer_config=tiny_config.qformer_config,
        text_config=text,
        num_query_tokens=tiny_config.num_query_tokens,
        initializer_range=0.2,
    )
    torch.manual_seed(0)
    return MiniGPT4ForConditionalGeneration(config).eval()


def test_vllm_answers_as_generate_does(wide, processor, picture, tmp_path):
    folder = export(wide, processor, tmp_path / "model")
    engine = vllm.LLM(
        str(folder),
        trust_remote_code=True,
        hf_overrides=OVERRIDES,
        dtype="float32",
        enforce_eager=True,
        max_model_len=256,
        max_num_seqs=4,
        limit_mm_per_prompt={"image": 2},
    )
    for pictures in [[picture(0)], [picture(0), picture(1)], []]:
        words = {"type": "text", "text": "What is this?"}
        shown = [{"type": "image", "image": image} for image in pictures]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": [*shown, words]}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        with torch.no_grad():
            expected = wide.generate(
                **inputs,
                max_new_tokens=TOKENS,
                do_sample=False,
                eos_token_id=2,
                output_scores=True,
                return_dict_in_generate=True,
            )
        length = inputs["input_ids"].shape[1]
        shown = [{"type": "image_pil", "image_pil": image} for image in pictures]
        [answer] = engine.chat(
            [{"role": "user", "content": [*shown, words]}],
            vllm.SamplingParams(max_tokens=TOKENS, temperature=0, logprobs=5),
            use_tqdm=False,
        )
        assert list(answer.prompt_token_ids) == inputs["input_ids"][0].tolist()
        scores = expected.scores[0][0].log_softmax(-1)
        for token, found in answer.outputs[0].logprobs[0].items():
            assert found.logprob == pytest.approx(scores[token].item(), abs=1e-4)
        assert list(answer.outputs[0].token_ids) == expected.sequences[0, length:].tolist()
