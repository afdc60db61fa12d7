"""`minigpt4 export --gguf`: llama.cpp reads the files of tiny models and writes the tokens that `generate` writes."""

import base64
import io
import json

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast, Qwen2Config, Qwen3Config, SiglipVisionConfig
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX as QWEN_2

from minigpt4 import MiniGPT4Config, MiniGPT4ForConditionalGeneration, MiniGPT4Processor
from minigpt4.cli import main
from minigpt4.hub.export import export as export_folder
from minigpt4.hub.gguf_export import _split, check, export

SIDE, TOKENS = 28, 10
TEXT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
QUESTIONS = [
    "What is this?",
    "Is there a dog?  Or 12 cats, in 2026?",
    "Hé, über-naïve 図 words\nand\n\nlines",
    "a",
    "It's 'we're'",
]


def siglip(**change):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return SiglipVisionConfig(**{**sizes, "image_size": SIDE, "patch_size": 14, **change})


def config(text, vision=None, **change):
    settings = {"qformer_config": None, "patch_merge": 1, "initializer_range": 0.2, **change}
    return MiniGPT4Config(vision_config=vision or siglip(), text_config=text, **settings)


def byte_level_tokenizer():
    """A small tokenizer of SmolLM2's kind: digits one by one, bytes, turns of ChatML."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet, special = pre_tokenizers.ByteLevel.alphabet(), ["<image>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(
        [*QUESTIONS, "user\nassistant\nsystem\n What is in the picture? There is a dog."] * 3, trainer
    )
    template = "{% for m in messages %}{{ '<|im_start|>' + m.content }}{% endfor %}"
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", chat_template=template)


@pytest.fixture(scope="module", params=["llama", "qwen2", "qwen3"])
def tiny(request, parity_dir):
    """(model, processor): SigLIP, one linear layer, and an LLM with a SentencePiece or a byte-level tokenizer."""
    if request.param == "llama":
        tokenizer, image_token = AutoTokenizer.from_pretrained(parity_dir / "llama_tiny"), 0
        text = LlamaConfig(**TEXT, vocab_size=515)  # a few rows more than the tokenizer has
    else:
        tokenizer, image_token = byte_level_tokenizer(), 0
        kind = {"qwen2": Qwen2Config, "qwen3": Qwen3Config}[request.param]
        text = kind(**TEXT, vocab_size=len(tokenizer), tie_word_embeddings=request.param == "qwen3")
    torch.manual_seed(0)
    model = MiniGPT4ForConditionalGeneration(config(text, image_token_id=image_token)).eval()
    with torch.no_grad():  # so that images matter: a fresh SigLIP and a fresh linear layer say next to nothing
        for parameter in [*model.model.vision_tower.parameters(), *model.model.projection.parameters()]:
            parameter.normal_(0, 0.2)
    return model, MiniGPT4Processor.for_model(model.config, tokenizer)


def llama_cpp(folder, never):
    """ask(messages): the tokens that llama.cpp's server writes, greedily and without those in `never`, as ids."""
    xllamacpp = pytest.importorskip("xllamacpp", reason="llama.cpp's build on PyPI has no wheel for this machine")
    settings = xllamacpp.CommonParams()
    settings.model.path, settings.mmproj.path = str(folder / "model.gguf"), str(folder / "mmproj.gguf")
    settings.n_ctx, settings.n_parallel, settings.warmup, settings.cpuparams.n_threads = 512, 1, False, 1
    settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32  # as here; by default fp16
    settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = xllamacpp.Server(settings)

    def ask(messages):
        body = {"messages": messages, "max_tokens": TOKENS, "temperature": 0, "return_tokens": True, "verbose": True}
        banned = [[token, False] for token in never]
        return server.handle_chat_completions({**body, "logit_bias": banned})["__verbose"]["tokens"]

    return ask


def png(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


@pytest.mark.slow
def test_llama_cpp_writes_the_most_likely_tokens(tiny, tmp_path, picture):
    model, processor = tiny
    export(model, processor, tmp_path)
    never = [processor.tokenizer.eos_token_id, model.config.image_token_id]  # as generate() never writes an image token
    ask, seen = llama_cpp(tmp_path, never), set()
    for number in range(20):
        question = QUESTIONS[number % len(QUESTIONS)] + (" Why?" if number > 10 else "")
        images = [picture(number + shown, (SIDE, SIDE)) for shown in range(number % 3)]
        text = {"type": "text", "text": question}
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": [*({"type": "image", "image": image} for image in images), text]}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        shown = [{"type": "image_url", "image_url": {"url": png(image)}} for image in images]
        written = ask([{"role": "user", "content": [*shown, text]}])
        assert len(written) == TOKENS and not set(written) & set(never)
        inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([written])], 1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        with torch.no_grad():
            logits = model(**inputs).logits[0, -TOKENS - 1 : -1]
        logits[:, never] = -torch.inf
        behind = logits.max(-1).values - logits.gather(1, torch.tensor(written)[:, None])[:, 0]
        assert behind.max() < 2e-3, (question, len(images))  # two tokens may tie, and each CPU rounds in its own way
        seen.add(tuple(written))
    assert len(seen) > 10  # images and questions matter


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (lambda: MiniGPT4Config.preset("embedded"), "vision tower is 'efficientnet_lite'"),
        (lambda: MiniGPT4Config.preset("vicuna-7b"), "vision tower is 'blip_2_vision_model'"),
        (lambda: config(LlamaConfig(**TEXT), siglip(hidden_act="relu")), "activation 'relu'"),
        (lambda: config(LlamaConfig(**TEXT), patch_merge=2), "patch_merge is 2"),
        (lambda: config(LlamaConfig(**TEXT), projection_layers=2), "projection_layers is 2"),
        (lambda: config({"model_type": "gpt2"}), "language model is 'gpt2'"),
        (
            lambda: config(LlamaConfig(**TEXT, rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4})),
            "rope_type is 'linear'",
        ),
    ],
)
def test_what_llama_cpp_cannot_run_is_refused_by_name(made, says):
    with pytest.raises(ValueError, match="cannot run this model") as refused:
        check(made())
    assert says in str(refused.value) and "\n" not in str(refused.value)


def test_the_splits_of_known_tokenizers_have_llama_cpps_names():
    tokenizer = byte_level_tokenizer()
    for regex, name in [(QWEN_2, "qwen2"), (QWEN_2.replace(r"\p{N}|", r"\p{N}{1,3}|"), "llama-bpe")]:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(regex), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
        )
        assert _split(json.loads(tokenizer.backend_tokenizer.to_str())) == name
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(False)
    assert _split(json.loads(tokenizer.backend_tokenizer.to_str())) == "gpt-2"


def test_a_tokenizer_with_another_split_is_refused():
    made = config(LlamaConfig(**TEXT))
    tokenizer = byte_level_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(ValueError, match="tokenizer is neither"):
        check(made, MiniGPT4Processor.for_model(made, tokenizer))


def test_the_command_writes_the_two_files_or_one_line(tiny, tmp_path, capsys):
    folder = tmp_path / "model"
    export_folder(*tiny, folder)
    capsys.readouterr()
    assert main(["export", "--model", str(folder), "--output", str(tmp_path / "gguf"), "--gguf"]) == 0
    assert sorted(path.name for path in (tmp_path / "gguf").iterdir()) == ["mmproj.gguf", "model.gguf"]
    capsys.readouterr()
    for arguments, says in [(["--push", "a/b"], "--push is for"), (["--light"], "--light is for")]:
        assert main(["export", "--model", str(folder), "--output", str(tmp_path / "b"), "--gguf", *arguments]) == 2
        error = capsys.readouterr().err
        assert says in error and len(error.strip().splitlines()) == 1
    described = json.loads((folder / "config.json").read_text()) | {"projection_layers": 2}
    (folder / "config.json").write_text(json.dumps(described))
    assert main(["export", "--model", str(folder), "--output", str(tmp_path / "b"), "--gguf"]) == 2
    assert "projection_layers is 2" in capsys.readouterr().err and not (tmp_path / "b").exists()
