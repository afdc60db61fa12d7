"""Every family of LLMs: the logits and texts of its own class, and the whole way from parts to a chat. One line each."""

from pathlib import Path

import pytest
import torch
from both_stages import train_both_stages
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
    SiglipVisionConfig,
    SiglipVisionModel,
    SmolLM3Config,
)

from minigpt4 import MiniGPT4ForConditionalGeneration, MiniGPT4Processor
from minigpt4.cli import main
from minigpt4.hub.from_parts import load_tokenizer
from minigpt4.inference.generation import answer_text, answers, candidate_losses, chat_prompt
from minigpt4.inference.named_models import load

# As in Llama-3.2: two ids end the output, one of them only in the generation config; a reserved token follows.
SPECIAL = ["<|user|>", "<|begin|>", "<|end_of_text|>", "<|assistant|>", "<|eot|>", "<|reserved|>"]
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message.role + '|>\n' + message.content | trim + '<|eot|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
# Weights of this size spread the logits, so that a soft cap, a scale or a bias that is left out shows.
SIZES = {
    "vocab_size": len(SPECIAL) + 258,  # Qwen2's tokenizer class adds a token
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
    "Gemma-2": Gemma2Config(**SIZES, **GROUPED, head_dim=8, final_logit_softcapping=20.0, sliding_window=16),
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


SEEING = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
SEEING |= {"image_size": 16, "patch_size": 8}  # four patches, one visual token
TOWERS = {
    "CLIP": CLIPVisionModel(CLIPVisionConfig(**SEEING)),
    "SigLIP": SiglipVisionModel(SiglipVisionConfig(**SEEING)),
}


def test_the_page_for_readers_names_each_family():
    page = (Path(__file__).parents[2] / "docs" / "own-llm-and-tower.md").read_text("utf-8")
    rows = page.split("| LLM |")[1].split("\n\n")[0].splitlines()[2:]
    assert [name.strip() for row in rows for name in row.split("|")[1].split(",")] == [*FAMILIES]


@pytest.fixture(scope="module")
def towers(tmp_path_factory):
    """{family: folder} of vision towers with random weights."""
    folders = {name: str(tmp_path_factory.mktemp(name)) for name in TOWERS}
    for name, folder in folders.items():
        TOWERS[name].save_pretrained(folder)
    return folders


@pytest.fixture
def llm(request, tmp_path):
    """(folder of the LLM of a family with random weights, the LLM)."""
    torch.manual_seed(0)
    llm = AutoModelForCausalLM.from_config(FAMILIES[request.param]).eval()
    for name, parameter in llm.named_parameters():
        if name.endswith("bias"):  # all start at zero
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


@pytest.mark.slow
@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("llm", FAMILIES, indirect=True)
def test_from_build_to_a_chat(llm, tower, towers, tmp_path, picture, capsys):
    """Light with one tower, with every weight with the other."""
    (folder, own), base = llm, str(tmp_path / "base")
    light = ["--light"] if tower == "CLIP" else []
    built = main(["build", "--vision", towers[tower], "--text", folder, "--output", base, *light])
    assert built == 0, capsys.readouterr().err
    model, processor = load(base)
    _check_own_logits_and_text(model, own)
    assert processor.image_token == "<|reserved|>"
    assert model.generation_config.eos_token_id == [2, 4]

    _, trained = train_both_stages(base, [picture(0, size=(16, 16)), picture(1, size=(16, 16))], tmp_path)
    loaded, processor = load(trained)
    before = model.state_dict()
    moved = [name for name, tensor in loaded.state_dict().items() if not torch.equal(tensor, before[name])]
    assert moved == ["model.projection.weight", "model.projection.bias"]
    _check_own_logits_and_text(loaded, own)
    image = picture(size=(16, 16))
    loaded.generation_config.update(max_new_tokens=8, do_sample=False)
    said = loaded.chat_session(processor).ask("What is it?", images=image)
    features = loaded.model.get_vision_features(processor.image_processor(image, return_tensors="pt")["pixel_values"])
    assert answers(loaded, processor, [chat_prompt(processor, "What is it?")], features, max_new_tokens=8) == [said]


@pytest.mark.parametrize("llm", ["Gemma-2"], indirect=True)
def test_answers_end_at_each_of_several_ids_and_are_ranked(llm, towers, picture):
    """What `caption` and `evaluate` ask for, with an LLM's own template: it has no generation block."""
    model = MiniGPT4ForConditionalGeneration.from_parts(towers["CLIP"], llm[0])
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
    ids = torch.tensor([[1, 40, 80, 120, 30, 50], [1, 77, 66, 55, 44, 33]])
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
    unwritten = [model.config.image_token_id]
    assert torch.equal(model.generate(ids, **greedy), own.generate(ids, **greedy, suppress_tokens=unwritten))
