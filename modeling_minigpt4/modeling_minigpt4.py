"""MiniGPT-4 (Zhu, Chen, Shen, Li, Elhoseiny 2023, arXiv 2304.10592): images for a frozen LLM through ONE linear layer.

    pixel_values [N, 3, H, W]
      -> vision_tower    frozen                                   [N, 1 + P, V]      EVA ViT-g: [N, 257, 1408]
      -> qformer         frozen, Q learned queries look at them   [N, Q, C]          BLIP-2:    [N, 32, 768]
         or none: neighbouring patches merged, see vision_tower   [N, Q, C]          Llama-2:   [N, 64, 5632]
      -> projection      ONE Linear, all that is trained          [N, Q, D]
    input_ids [B, L] -> embeddings [B, L, D], the N * Q image tokens replaced in reading order by the projected ones
      -> language_model  frozen, gradients pass through           [B, L, D]
      -> lm_head         frozen, with what the LLM computes after it (see own_head)

B batch rows, N images in all rows together, P patches, Q visual tokens per image, L sequence length, V C D widths.

The paper's choices, kept: vision tower, Q-Former and LLM are frozen, the first two in eval mode even during training (the
Q-Former has dropout); the tower's final LayerNorm (BLIP-2's `ln_vision`) has eps 1e-5, not the ViT's 1e-6; a repetition
penalty counts what the model has said, never the prompt (the original generates from embeddings, without the prompt's ids).
Deviations, with their reasons:
- The projection computes in the precision of its own weights (fp32 in training), the frozen parts in theirs. This serves
  the purpose of the original's autocast and gradient scaler without needing either.
- Rows may have several images, or none.
"""

import copy
from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoModel, Blip2QFormerModel
from transformers.cache_utils import Cache
from transformers.generation import GenerationMixin, RepetitionPenaltyLogitsProcessor
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling, CausalLMOutputWithPast
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import can_return_tuple, torch_compilable_check

from ..configuration.configuration_minigpt4 import MiniGPT4Config
from .own_head import OwnHead
from .precision import fast_loading
from .stopping import EndsWith
from .vision_tower import build_vision_tower, look, merge_patches


@dataclass
class MiniGPT4ModelOutputWithPast(BaseModelOutputWithPast):
    """Output of `MiniGPT4Model`; `image_hidden_states` are the projected visual tokens [N, Q, D], or None."""

    image_hidden_states: torch.Tensor | None = None


@dataclass
class MiniGPT4CausalLMOutputWithPast(CausalLMOutputWithPast):
    """Output of `MiniGPT4ForConditionalGeneration`; `image_hidden_states` as in `MiniGPT4ModelOutputWithPast`."""

    image_hidden_states: torch.Tensor | None = None


class MiniGPT4PreTrainedModel(PreTrainedModel):
    """What both classes share: loading, initialisation and which parts are frozen."""

    config: MiniGPT4Config
    config_class = MiniGPT4Config
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ("image", "text")  # pyright: ignore[reportAssignmentType]
    supports_gradient_checkpointing = True
    _skip_keys_device_placement = ["past_key_values"]
    _no_split_modules = ["Blip2EncoderLayer", "Blip2QFormerLayer", "InvertedResidual"]
    # Small, and trained: loading the rest in bf16 or fp16, or packed in 8 or 4 bits, leaves it in fp32. A pattern from the
    # start of the name, because EVA's attention blocks have a `projection` too. Quantizers read the first list, bf16 the
    # second, and transformers' tests want no entry in both: hence two spellings.
    _keep_in_fp32_modules = [r"^(?:model\.|)projection\b"]
    _keep_in_fp32_modules_strict = [r"^(?:model\.)?projection\b"]
    _can_compile_fullgraph = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config):
        super().__init__(config)
        if "qformer" in config.trained_parts:
            trained = r"^(?:model\.)?(?:qformer|query_tokens)\b"
            self._keep_in_fp32_modules_strict = [*(self._keep_in_fp32_modules_strict or ()), trained]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, **kwargs):
        """As `PreTrainedModel.from_pretrained`, but frozen for training and in a fast precision; see `fast_loading`."""
        kwargs = fast_loading(pretrained_model_name_or_path, kwargs)
        loaded = super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
        (loaded[0] if isinstance(loaded, tuple) else loaded).freeze()
        return loaded

    @property
    def dtype(self):
        """The dtype of the frozen parts, and so of the LLM's embeddings; trained parts have their own precision."""
        return self.get_input_embeddings().weight.dtype

    def freeze(self):
        """Freezes all but the parts named in `config.trained_parts`; returns the model."""
        self.requires_grad_(False)
        for name in self.config.trained_parts:
            for part in self._trained(name):
                if part is None:
                    raise ValueError(f"trained_parts names {name!r}, which this model does not have; see MiniGPT4Model")
                part.requires_grad_(True)
        return self

    def _trained(self, name):
        """The modules and parameters that a name in `config.trained_parts` refers to; None for one that does not exist."""
        if name == "lora":  # adapters, which peft names so
            return [parameter for path, parameter in self.named_parameters() if ".lora_" in path]
        queries = [self.base_model.query_tokens] if name == "qformer" else []
        return [getattr(self.base_model, name, None), *queries]

    def train(self, mode=True):
        """Train mode for the LLM (activation checkpointing depends on it); frozen vision parts stay in eval mode."""
        super().train(mode)
        model = self.base_model
        for name in ("vision_tower", "qformer"):
            if getattr(model, name) is not None and name not in self.config.trained_parts:
                getattr(model, name).eval()
        return self

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, MiniGPT4Model) and module.query_tokens is not None:
            nn.init.normal_(module.query_tokens, std=self.config.initializer_range)


class MiniGPT4Model(MiniGPT4PreTrainedModel):
    """From images and text to the LLM's last hidden states; see the module for the data flow and the shapes."""

    def __init__(self, config):
        super().__init__(config)
        self.vision_tower = build_vision_tower(config.vision_config)
        self.query_tokens, self.qformer = None, None
        if config.qformer_config is not None:
            self.query_tokens = nn.Parameter(torch.zeros(1, config.num_query_tokens, config.projection_width))
            self.qformer = _build_qformer(config.qformer_config)
        self.projection = _build_projection(
            config.projection_width, config.text_config.hidden_size, config.projection_layers
        )
        self.language_model = AutoModel.from_config(config.text_config)
        self.post_init()
        self.freeze()

    def get_input_embeddings(self):
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value):
        self.language_model.set_input_embeddings(value)

    def get_vision_features(self, pixel_values):
        """The frozen vision features: pixel_values [N, 3, H, W] -> [N, Q, C]; [N, 1 + P, V] if the Q-Former is trained.

        They are the same in every epoch, so training may compute them once and pass them as `vision_features`.
        """
        _, patches = look(self.vision_tower, pixel_values, self.config.vision_feature_layer)
        return patches if "qformer" in self.config.trained_parts else self._shorten(patches)

    def _shorten(self, patches):
        """Shortens the tower's [N, extra + P, V] to the number of visual tokens: [N, Q, C]."""
        if self.qformer is None or self.query_tokens is None:
            config = self.config
            return merge_patches(patches, config.grid, config.merged_block, config.patch_fit)
        queries = self.query_tokens.expand(len(patches), -1, -1)
        patches = patches.to(queries.dtype)  # fp32 where it is trained
        return self.qformer(query_embeds=queries, encoder_hidden_states=patches, return_dict=True).last_hidden_state

    @can_return_tuple
    def get_image_features(self, pixel_values=None, vision_features=None, **kwargs):
        """The visual tokens as the LLM reads them: `pooler_output` [N, Q, D].

        Everything else in the output is the vision tower's, None if it was not run.

        Args:
            pixel_values: float [N, 3, H, W], as the image processor gives them.
            vision_features: the output of an earlier `get_vision_features`, instead of pixels.
            **kwargs: `output_hidden_states`, `output_attentions` and other arguments of the vision tower.
        """
        tower = {}
        if vision_features is None:
            tower, patches = look(self.vision_tower, pixel_values, self.config.vision_feature_layer, **kwargs)
            vision_features = self._shorten(patches)
        elif "qformer" in self.config.trained_parts:
            vision_features = self._shorten(vision_features)
        # A wrapped (LoRA) or quantized linear layer may have its weights further inside: any parameter tells the dtype.
        dtype = next(self.projection.parameters()).dtype
        projected = self.projection(vision_features.to(dtype if dtype.is_floating_point else vision_features.dtype))
        return BaseModelOutputWithPooling(
            last_hidden_state=tower.get("last_hidden_state"),
            pooler_output=projected,
            hidden_states=tower.get("hidden_states"),
            attentions=tower.get("attentions"),
        )

    def get_placeholder_mask(self, input_ids, inputs_embeds, image_features):
        """Where the visual tokens go: bool [B, L, 1]. Raises ValueError, naming both counts, if they do not match."""
        if input_ids is None or input_ids.numel() == 0:  # `generate` passes empty ids with embeddings
            image_token = torch.full((), self.config.image_token_id, dtype=torch.long, device=inputs_embeds.device)
            mask = (inputs_embeds == self.get_input_embeddings()(image_token)).all(-1)
        else:
            mask = input_ids == self.config.image_token_id
        found, expected = mask.sum(), image_features.shape[0] * image_features.shape[1]
        torch_compilable_check(
            found == expected,
            f"the text holds {found} image tokens, but {len(image_features)} picture(s) give {expected} visual tokens; "
            "let MiniGPT4Processor write one image token for each visual token",
        )
        return mask.unsqueeze(-1)

    def embed(self, input_ids=None, pixel_values=None, inputs_embeds=None, vision_features=None, mm_encoder_outputs=None):
        """What the LLM reads, [B, L, D], and the visual tokens in it, [N, Q, D] or None; arguments as in `forward`."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("pass either input_ids or inputs_embeds, not both")
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)

        image = (mm_encoder_outputs or {}).get("image")
        if image is None and (pixel_values is not None or vision_features is not None):
            image = self.get_image_features(pixel_values, vision_features, return_dict=True)
        visual_tokens = None
        if image is not None:
            tokens = image.pooler_output
            visual_tokens = tokens.to(inputs_embeds.device, inputs_embeds.dtype)  # pyright: ignore[reportOptionalMemberAccess]
            where = self.get_placeholder_mask(input_ids, inputs_embeds, visual_tokens)
            inputs_embeds = inputs_embeds.masked_scatter(where, visual_tokens)
        return inputs_embeds, visual_tokens

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        vision_features: torch.FloatTensor | None = None,
        mm_encoder_outputs: dict | None = None,
        **kwargs,
    ):
        """Returns the LLM's hidden states [B, L, D].

        Args:
            input_ids: [B, L], with `config.image_token_id` where a visual token goes; or `inputs_embeds` [B, L, D].
            pixel_values: [N, 3, H, W]: images of all rows, in reading order. Alternatives: `vision_features`
                [N, Q, C], or `mm_encoder_outputs` {"image": output of `get_image_features`}.
            attention_mask, position_ids, past_key_values, **kwargs: as the language model takes them.
        """
        inputs_embeds, visual_tokens = self.embed(
            input_ids, pixel_values, inputs_embeds, vision_features, mm_encoder_outputs
        )
        outputs = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            return_dict=True,
            **kwargs,
        )
        return MiniGPT4ModelOutputWithPast(
            last_hidden_state=outputs.last_hidden_state,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=visual_tokens,
        )


class MiniGPT4ForConditionalGeneration(MiniGPT4PreTrainedModel, GenerationMixin):
    """MiniGPT-4 with the LLM's head, for generation and training.

    >>> from minigpt4 import MiniGPT4ForConditionalGeneration, MiniGPT4Processor
    >>> model = MiniGPT4ForConditionalGeneration.from_pretrained("outputs/quickstart/model")
    >>> processor = MiniGPT4Processor.from_pretrained("outputs/quickstart/model")
    >>> content = [{"type": "image", "path": "photo.jpg"}, {"type": "text", "text": "What is in the image?"}]
    >>> inputs = processor.apply_chat_template(
    ...     [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True,
    ...     return_tensors="pt")
    >>> answer = model.generate(**inputs, max_new_tokens=100)[:, inputs["input_ids"].shape[1]:]
    >>> print(processor.decode(answer[0], skip_special_tokens=True))
    """

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}

    def __init__(self, config):
        super().__init__(config)
        self.model = MiniGPT4Model(config)
        self._own_head = OwnHead(config.text_config)
        self.lm_head = nn.Linear(self._own_head.in_features, self._own_head.out_features, bias=self._own_head.bias)
        embeddings = self.get_input_embeddings().weight  # not every LLM calls them embed_tokens
        [name] = [name for name, parameter in self.named_parameters() if parameter is embeddings]
        self._tied_weights_keys = {"lm_head.weight": name}
        self.post_init()
        built = {type(module).__name__ for module in self.modules()}
        self._no_split_modules = [name for name in self._no_split_modules or () if name in built]  # FSDP wants them all
        self.freeze()

    def chat_session(self, processor, messages=(), **generation):
        """A conversation that keeps what it has computed: `ChatSession` in chat.py. It needs the installed package."""
        try:
            from minigpt4.modeling_minigpt4.chat import ChatSession
        except ImportError as error:
            raise ImportError("a chat session needs the package; run `pip install minigpt4-hf`") from error
        return ChatSession(self, processor, messages, **generation)

    def compute_logits(self, hidden):
        """The LLM's hidden states [B, L, D] -> its logits [B, L, vocabulary], through its own head."""
        return self._own_head(self.lm_head, hidden)

    def get_output_embeddings(self):
        return self.lm_head

    def set_output_embeddings(self, value):
        self.lm_head = value

    def get_image_features(self, pixel_values=None, **kwargs):
        """See `MiniGPT4Model.get_image_features`."""
        return self.model.get_image_features(pixel_values, **kwargs)

    @torch.no_grad()
    def generate(
        self,
        inputs=None,
        generation_config=None,
        logits_processor=None,
        stopping_criteria=None,
        vision_features=None,
        turn_ends=None,
        **kwargs,
    ):
        """As `GenerationMixin.generate`, which encodes `pixel_values` once; the image token is never written.

        `repetition_penalty` ignores the prompt (see the module): applied to the prompt, it would make the turn's end and
        whatever the question names less likely. A logits processor that the caller passes is used as it is.

        Args:
            vision_features: instead of `pixel_values`, see `MiniGPT4Model.forward`.
            turn_ends: sequences of ids that each end an answer, for turns that end without a special token; by default
                `generation_config.turn_ends`.
            Everything else: see `GenerationMixin.generate`.
        """

        def setting(name):
            configs = [config for config in (generation_config, self.generation_config) if config is not None]
            found = [getattr(config, name, None) for config in configs]
            return kwargs[name] if name in kwargs else next((value for value in found if value is not None), None)

        if vision_features is not None:
            image = self.get_image_features(vision_features=vision_features, return_dict=True)
            kwargs["mm_encoder_outputs"] = {"image": image}
        kwargs["suppress_tokens"] = sorted({*(setting("suppress_tokens") or []), self.config.image_token_id})
        processors, penalty = list(logits_processor or []), setting("repetition_penalty")
        if penalty not in (None, 1.0) and not any(type(own) is RepetitionPenaltyLogitsProcessor for own in processors):
            prompt = inputs if inputs is not None else kwargs.get("input_ids")
            length = 0 if prompt is None else prompt.shape[1]
            processors.insert(0, RepetitionPenaltyLogitsProcessor(penalty, prompt_ignore_length=length))
            kwargs["repetition_penalty"] = 1.0
        criteria, ends = list(stopping_criteria or []), setting("turn_ends") if turn_ends is None else turn_ends
        criteria += [EndsWith(ends)] if ends else []
        return super().generate(  # pyright: ignore[reportAttributeAccessIssue]
            inputs, generation_config, processors, criteria, **kwargs
        )

    def _expand_multimodal_outputs(self, input_ids, mm_encoder_output, expand_size=1, inputs_embeds=None):
        """For beams: the images A, B of a row become A, B, A, B, in a new output.

        The library's version modifies an output that the caller may reuse, and up to 5.18 it makes A, A, B, B.
        """
        if mm_encoder_output.get("image") is None:
            return mm_encoder_output
        visual_tokens = mm_encoder_output["image"].pooler_output
        where = self.model.get_placeholder_mask(input_ids, inputs_embeds, visual_tokens)
        rows = visual_tokens.split((where.sum((1, 2)) // visual_tokens.shape[1]).tolist())
        expanded = torch.cat([row.repeat(expand_size, 1, 1) for row in rows])
        return {"image": BaseModelOutputWithPooling(pooler_output=expanded)}

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        vision_features: torch.FloatTensor | None = None,
        mm_encoder_outputs: dict | None = None,
        **kwargs,
    ):
        """Returns logits [B, L, vocabulary] and, with labels, the mean cross-entropy over the answer tokens.

        Args:
            labels: [B, L], -100 except at answer tokens. With `position_ids` that restart and no mask, a row is several
                packed sequences, which do not attend to each other.
            logits_to_keep: compute logits only for this many last positions, or for an index tensor of positions;
                0 means all of them.
            **kwargs: `num_items_in_batch` and `shift_labels` (labels already shifted one to the left) as the Trainer
                passes them.
            Everything else: see `MiniGPT4Model.forward`.
        """
        targets = {name: kwargs.pop(name, None) for name in ("shift_labels", "num_items_in_batch")}
        supervised = labels is not None or targets["shift_labels"] is not None
        if supervised:
            kwargs.setdefault("use_cache", False)  # with a cache, transformers does not look for packed sequences
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            vision_features=vision_features,
            mm_encoder_outputs=mm_encoder_outputs,
            return_dict=True,
            **kwargs,
        )
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        # A slice that is not contiguous would make PyTorch's CPU matmul copy the head's weights for each row.
        logits = self.compute_logits(outputs.last_hidden_state[:, keep, :].contiguous())
        loss = self.loss_function(logits, labels, vocab_size=logits.shape[-1], **targets) if supervised else None
        return MiniGPT4CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=outputs.image_hidden_states,
        )


def _build_qformer(config):
    if config._attn_implementation not in (None, "eager", "sdpa"):  # flash and flex apply to the other parts
        config = copy.copy(config)
        config._attn_implementation = "sdpa"  # the only fast one it has
    return Blip2QFormerModel(config)


def _build_projection(in_features, out_features, layers):
    """One Linear, as in the paper; with more layers, GELU in between and the LLM's width throughout."""
    linear = [nn.Linear(in_features if i == 0 else out_features, out_features) for i in range(layers)]
    if layers == 1:
        return linear[0]
    return nn.Sequential(*[part for layer in linear for part in (layer, nn.GELU())][:-1])
