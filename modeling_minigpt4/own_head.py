"""The LLM's own head: whatever its `ForCausalLM` class computes after its hidden states.

    hidden [B, L, D] -> lm_head -> Gemma's soft cap, Granite's and Cohere's scales, ... -> logits [B, L, vocabulary]

No list of LLM families is needed. The class is built without weights, its base model is made to return its input, and then
the class's own `forward` runs: what remains of it is the computation after the base model.
"""

import copy
from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.modeling_outputs import MoeModelOutputWithPast
from transformers.modeling_utils import PreTrainedModel


class OwnHead:
    """The part of an LLM's `ForCausalLM` class after its base model; called with the module that has the weights.

    It is not a module and has no weights: those are in `MiniGPT4ForConditionalGeneration.lm_head`.

    Args:
        text_config: the LLM's config.

    Raises:
        ValueError: transformers has no class for that LLM with a head, or its head is more than one linear layer plus
            arithmetic; with the name of the class.
    """

    def __init__(self, text_config):
        self._llm = without_weights(text_config).eval()
        name, linear = type(self._llm).__name__, self._llm.get_output_embeddings()
        [self._place] = [path for path, part in self._llm.named_modules() if part is linear] or [None]
        for part in base_models(self._llm).values():
            _hollow(part)
        kept = [tensor for tensors in (self._llm.named_parameters(), self._llm.named_buffers()) for tensor in tensors]
        of_linear = [] if linear is None else list(linear.parameters())
        foreign = [path for path, tensor in kept if not any(tensor is one for one in of_linear)]
        if not isinstance(linear, nn.Linear) or foreign:
            found = f"has weights besides one linear layer ({foreign[0]})" if foreign else f"is a {type(linear).__name__}"
            raise ValueError(f"{name}: its head {found}; expected a linear layer, and arithmetic after it")
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias is not None
        try:  # on the meta device: nothing is computed
            self(linear, torch.empty(1, 1, linear.in_features, device="meta", dtype=linear.weight.dtype))
        except Exception as error:  # the class's own code, which may raise anything
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ValueError(f"{name}: its head does not run apart from its base model ({reason})") from error

    def __call__(self, lm_head, hidden):
        """hidden [B, L, D] -> logits [B, L, vocabulary]; `lm_head`: the linear layer, possibly wrapped or quantized."""
        if self._llm.get_submodule(self._place) is not lm_head:
            self._llm.set_submodule(self._place, lm_head)
        return self._llm(inputs_embeds=hidden, use_cache=False, return_dict=True).logits


def is_causal_llm(config):
    """Whether transformers has a causal LLM with a head for a config."""
    return type(config) in AutoModelForCausalLM._model_mapping


def without_weights(text_config):
    """The LLM's `ForCausalLM` on the meta device; raises ValueError, naming the config, if there is none."""
    if not is_causal_llm(text_config):
        raise ValueError(
            f"{type(text_config).__name__}: transformers has no causal language model for it (AutoModelForCausalLM); "
            "expected the config of one"
        )
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(copy.copy(text_config))


def base_models(llm):
    """{name: module} of what runs before the head."""
    return {name: part for name, part in llm.named_children() if isinstance(part, PreTrainedModel)}


def _hollow(model):
    """Strips a base model, and any decoder in it that may be called directly, to their attributes, in place."""
    model._modules = {name: _hollow(part) for name, part in model._modules.items() if isinstance(part, PreTrainedModel)}
    model._parameters, model._buffers = {}, {}
    model.forward = _give_back
    return model


def _give_back(*args, inputs_embeds=None, **kwargs):
    """Replaces a base model's forward: `inputs_embeds` are already its last hidden states."""
    return _GivenBack(last_hidden_state=inputs_embeds)


@dataclass
class _GivenBack(MoeModelOutputWithPast):
    """Output of a base model; what only passes through the class's `forward` (router logits, caches) is None."""

    def __getattr__(self, name):
        if name.startswith("_"):
            raise AttributeError(name)
