"""The fast way to train through a frozen LLM, used by `MiniGPT4Trainer.compute_loss`; the plain way is the model's own.

    the model's forward    one padded batch, logits at every position: used by a plain `Trainer` and TRL
    FrozenLLM              logits only where an answer token is predicted, a few rows of like length at a time (see
                           grouped_loss), frozen linear layers as fast as the device can (see frozen_linear)

Both give the same loss and the same gradients.
"""

import torch
from torch import nn

from ..modeling_minigpt4.modeling_minigpt4 import MiniGPT4CausalLMOutputWithPast
from .frozen_linear import frozen_linears
from .grouped_loss import answer_places, loss_by_groups, may_group, rows_are_not_packed, unpack

# Tokens that go through the vision tower and the LLM at a time: enough to fill the device's matrix units.
TOKENS_AT_ONCE = {"cpu": 1024, "cuda": 4096}


class FrozenLLM:
    """A context in which `model(**batch).loss` is computed the fast way; the output has no logits.

    It replaces the model's forward, because a wrapper (DDP, FSDP2) synchronizes gradients only for what runs inside its own
    forward, which calls the model's. (TRL's `_ForwardRedirection` exists for the same reason.)

    Args:
        model: a `MiniGPT4ForConditionalGeneration`, without a wrapper.
        tokens_at_once: tokens that go through the LLM at a time; fewer need less memory. None: `TOKENS_AT_ONCE`.
        float8: compute the frozen linear layers in FP8 (GPUs from Ada and Hopper on).
    """

    def __init__(self, model, tokens_at_once=None, float8=False):
        self.model, self.float8 = model, float8
        self.tokens_at_once = tokens_at_once or TOKENS_AT_ONCE.get(model.device.type, TOKENS_AT_ONCE["cuda"])
        self._fast = self.forward  # one object for all steps: the compiler would recompile another one

    def __enter__(self):
        self._own = self.model.__dict__.get("forward")  # accelerate may have put one there
        self._plain = self.model.forward
        self.model.forward = self._fast
        return self.model

    def __exit__(self, *error):
        del self.model.forward
        if self._own is not None:
            self.model.forward = self._own

    def forward(
        self,
        input_ids=None,
        pixel_values=None,
        attention_mask=None,
        position_ids=None,
        labels=None,
        vision_features=None,
        num_items_in_batch=None,
        plan=None,
        **others,
    ):
        """The loss over a batch of the collator; a batch with anything else (`others`) goes to the model's own forward.

        Args: see `MiniGPT4ForConditionalGeneration.forward`, and for `plan` the collator. With it, and `num_items_in_batch`,
            nothing here waits for the device.
        """
        batch = {
            "input_ids": input_ids,
            "pixel_values": pixel_values,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "vision_features": vision_features,
        }
        if labels is None or others:
            return self._plain(**batch, labels=labels, num_items_in_batch=num_items_in_batch, **others)
        targets = nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
        language_model = self.model.model.language_model
        if may_group(language_model, self.model.lm_head, attention_mask, position_ids, plan):
            return self._by_groups(batch, targets, num_items_in_batch, plan)
        outputs = self.model.model(**batch, use_cache=False, return_dict=True)
        loss = self._answer_loss(outputs.last_hidden_state, targets, num_items_in_batch)
        return MiniGPT4CausalLMOutputWithPast(loss=loss, image_hidden_states=outputs.image_hidden_states)

    def _by_groups(self, batch, targets, num_items_in_batch, plan):
        """The loss over targets [B, L] without hidden states of the whole batch; see `LossByGroups`."""
        model, pixel_values, features = self.model, batch["pixel_values"], batch["vision_features"]
        if num_items_in_batch is None:
            num_items_in_batch = (targets != -100).sum()
        with frozen_linears(model, self.float8):
            if pixel_values is not None and features is None and not model.model.vision_tower.training:
                images = pixel_values.split(max(1, self.tokens_at_once // model.config.num_patches))
                features = torch.cat([model.model.get_vision_features(some) for some in images])
            embed = model.model.embed if plan is None else self._embed
            inputs_embeds, visual_tokens = embed(batch["input_ids"], pixel_values, vision_features=features)
            if batch["position_ids"] is not None:
                inputs_embeds, targets = unpack(batch["position_ids"], inputs_embeds, targets)

            def loss_of(inputs_embeds, targets, answers):
                with rows_are_not_packed():
                    hidden = model.model.language_model(inputs_embeds=inputs_embeds, use_cache=False).last_hidden_state
                return self._answer_loss(hidden, targets, num_items_in_batch, answers)

            loss = loss_by_groups(inputs_embeds, targets, loss_of, self.tokens_at_once, plan)
        return MiniGPT4CausalLMOutputWithPast(loss=loss, image_hidden_states=visual_tokens)

    def _embed(self, input_ids, pixel_values, vision_features):
        """Like the model's own, without counting image tokens: the collator did that for the plan."""
        inputs_embeds = self.model.get_input_embeddings()(input_ids)
        if pixel_values is None and vision_features is None:
            return inputs_embeds, None
        image = self.model.get_image_features(pixel_values, vision_features=vision_features, return_dict=True)
        visual_tokens = image.pooler_output.to(inputs_embeds.device, inputs_embeds.dtype)
        where = (input_ids == self.model.config.image_token_id)[..., None]
        return inputs_embeds.masked_scatter(where, visual_tokens), visual_tokens

    def _answer_loss(self, hidden, targets, num_items_in_batch, answers=None):
        """Cross-entropy at positions with a target: hidden [B, L, D], targets [B, L] -> scalar."""
        places = answer_places(targets, answers)
        logits = self.model.compute_logits(hidden.flatten(0, 1)[places][None])[0]
        return self.model.loss_function(
            logits,
            labels=None,
            vocab_size=logits.shape[-1],
            shift_labels=targets.flatten()[places],
            num_items_in_batch=num_items_in_batch,
        )
