"""Every family of LLMs: the logits and texts of its own class, and the whole way from parts to a chat. One line each."""

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    CLIPVisionConfig,
    CLIPVisionModel,
    Cohere2Config,
    CohereConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    Phi3Config,
    PhiConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

from minigpt4 import MiniGPT4ForConditionalGeneration, MiniGPT4Processor
from minigpt4.generation import answer_text, answers, candidate_losses, chat_prompt
from minigpt4.modeling_minigpt4.from_parts import load_tokenizer
from minigpt4.models import load
from minigpt4.processing.datasets import PictureTexts
from minigpt4.recipes import Recipe, TrainSection
from minigpt4.training import train

# As of Llama-3.2: two ids end what is written, one of them only in the generation config; a reserved token stands behind.
SPECIAL = ["<|user|>", "<|begin|>", "<|end_of_text|>", "<|assistant|>", "<|eot|>", "<|reserved|>"]
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message.role + '|>\n' + message.content | trim + '<|eot|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
# Weights of this size spread the logits, so that a soft cap, a scale or a bias that is left out shows.
SIZES = {
    "vocab_size": len(SPECIAL) + 258,  # Qwen2's tokenizer class brings a token along
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
MLP = {"intermediate_size": 48}
GROUPED = {**MLP, "num_key_value_heads": 2}
FAMILIES = {
    "Llama-3.2": LlamaConfig(**SIZES, **GROUPED, tie_word_embeddings=True),
    "Qwen2.5": Qwen2Config(**SIZES, **GROUPED, tie_word_embeddings=True),
    "Qwen3": Qwen3Config(**SIZES, **GROUPED, head_dim=8),
    "Gemma-2": Gemma2Config(**SIZES, **GROUPED, head_dim=8, final_logit_softcapping=2.0, sliding_window=16),
    "Gemma-3": Gemma3TextConfig(**SIZES, **GROUPED, head_dim=8, sliding_window=16),
    "Phi-2": PhiConfig(**SIZES, **MLP),
    "Phi-3": Phi3Config(**SIZES, **GROUPED, sliding_window=16),
    "Phi-4": Phi3Config(**SIZES, **GROUPED, partial_rotary_factor=0.5),
    "Mistral": MistralConfig(**SIZES, **GROUPED, sliding_window=16),
    "SmolLM2": LlamaConfig(**SIZES, **GROUPED, tie_word_embeddings=True, rope_theta=100000.0),
    "SmolLM3": SmolLM3Config(**SIZES, **GROUPED, no_rope_layers=[1, 0]),
    "Granite": GraniteConfig(**SIZES, **GROUPED, logits_scaling=8.0, embedding_multiplier=2.0, residual_multiplier=0.5),
    "Cohere": CohereConfig(**SIZES, **GROUPED, logit_scale=0.25),
    "Cohere-2": Cohere2Config(**SIZES, **GROUPED, logit_scale=0.25, sliding_window=16),
    "OLMo-2": Olmo2Config(**SIZES, **GROUPED),
    "GPT-2": GPT2Config(**SIZES, embd_pdrop=0, attn_pdrop=0, resid_pdrop=0),
    "GPT-NeoX": GPTNeoXConfig(**SIZES, **MLP),
}


def test_the_page_for_readers_names_each_family():
    page = Path(__file__).parents[2] / "docs" / "your-own-llm-and-tower.md"
    rows = [line.split("|")[1] for line in page.read_text("utf-8").splitlines() if line.startswith("| ")]
    assert {name.strip() for row in rows[1:] for name in row.split(",")} == {*FAMILIES}


@pytest.fixture(scope="module")
def tower(tmp_path_factory):
    """Folder of a vision tower of four patches."""
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8
    )
    folder = tmp_path_factory.mktemp("tower")
    CLIPVisionModel(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def llm(request, tmp_path):
    """(folder of the LLM of a family with random weights, the LLM)."""
    torch.manual_seed(0)
    llm = AutoModelForCausalLM.from_config(FAMILIES[request.param]).eval()
    for name, parameter in llm.named_parameters():
        if name.endswith("bias"):  # all begin as nothing
            torch.nn.init.normal_(parameter, std=0.3)
    llm.generation_config.eos_token_id = [2, 4]
    llm.generation_config._from_model_config = False
    llm.save_pretrained(tmp_path / "llm")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({token: index for index, token in enumerate(SPECIAL + letters)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|begin|>", eos_token="<|end_of_text|>", additional_special_tokens=SPECIAL
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(tmp_path / "llm")
    return str(tmp_path / "llm"), llm


@pytest.mark.parametrize("llm", FAMILIES, indirect=True)
def test_from_parts_to_a_chat(llm, tower, tmp_path, picture):
    folder, own = llm
    model = MiniGPT4ForConditionalGeneration.from_parts(tower, folder)
    _check_own_logits_and_text(model, own)
    assert model.config.image_token_id == SPECIAL.index("<|reserved|>")
    assert model.generation_config.eos_token_id == [2, 4]
    processor = MiniGPT4Processor.for_model(model.config, load_tokenizer(folder))

    image = picture(size=(16, 16))
    rows = [{"picture": 0, "text": "a cat"}, {"picture": 0, "text": "on a mat"}]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for stage in (1, 2):
        question = {} if stage == 1 else {"instruction": "What is it?"}
        recipe = Recipe(stage=stage, output=str(tmp_path / f"stage{stage}"))
        recipe.train = TrainSection(steps=2, batch_size=2, warmup_steps=1, check_first_loss=False)
        texts = PictureTexts([{"image": image}], [{**row, **question} for row in rows])
        model, processor, summary = train(recipe, model, processor, texts)
        assert summary["last_loss"] < 50

    loaded, processor = load(str(tmp_path / "stage2" / "model"))
    trained = [name for name, tensor in loaded.state_dict().items() if not torch.equal(tensor, before[name])]
    assert trained == ["model.projection.weight", "model.projection.bias"]
    _check_own_logits_and_text(loaded, own)
    loaded.generation_config.update(max_new_tokens=8, do_sample=False)
    said = loaded.chat_session(processor).ask("What is it?", images=image)
    features = loaded.model.get_vision_features(processor.image_processor(image, return_tensors="pt")["pixel_values"])
    assert answers(loaded, processor, [chat_prompt(processor, "What is it?")], features, max_new_tokens=8) == [said]


@pytest.mark.parametrize("llm", ["Gemma-2"], indirect=True)
def test_answers_end_at_each_of_several_ids_and_are_ranked(llm, tower, picture):
    """What `caption` and `evaluate` ask for, with an LLM's own template: it has no generation block."""
    model = MiniGPT4ForConditionalGeneration.from_parts(tower, llm[0])
    processor = MiniGPT4Processor.for_model(model.config, load_tokenizer(llm[0]))
    features = model.model.get_vision_features(processor.image_processor(picture(), return_tensors="pt")["pixel_values"])
    prompt = chat_prompt(processor, "What is it?")
    ids = torch.tensor([processor.encode(prompt)])
    greedy = {"do_sample": False, "repetition_penalty": 1.0, "eos_token_id": None, "max_new_tokens": 12}
    free = model.generate(ids, vision_features=features, **greedy)[0, ids.shape[1] :].tolist()
    last = next(token for token in free[3:] if token not in SPECIAL)
    model.generation_config.update(eos_token_id=[2, 4, last], repetition_penalty=1.0)
    [said] = answers(model, processor, [prompt], features, max_new_tokens=12)
    assert said == answer_text(processor, free[: free.index(last) + 1])
    [losses] = candidate_losses(model, processor, ["What is it?"], [["a cat", "a dog"]], features)
    assert len(set(losses)) == 2 and all(0 < loss < 100 for loss in losses)


def _check_own_logits_and_text(model, own):
    """On text a model says what its LLM says by itself, and computes the same."""
    ids = torch.tensor([[1, 40, 80, 120, 30, 5], [1, 77, 66, 55, 44, 33]])
    with torch.no_grad():
        expected, found = own(ids).logits, model(ids).logits
        labels = model(ids, labels=ids).loss
        model.train()
        answers_alone = model(ids, labels=ids).loss
        model.eval()
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-5 * max(1, expected.abs().max())
    assert torch.allclose(model(ids, logits_to_keep=2).logits, found[:, -2:], atol=1e-5)
    assert labels.item() == pytest.approx(own(ids, labels=ids).loss.item(), rel=1e-5)
    assert answers_alone.item() == pytest.approx(labels.item(), rel=1e-5)
    greedy = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "repetition_penalty": 1.0, "pad_token_id": 2}
    assert torch.equal(model.generate(ids, **greedy), own.generate(ids, **greedy))
