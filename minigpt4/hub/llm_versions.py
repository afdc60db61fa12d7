"""Which of Vicuna's versions a repository contains, and which one each published projection was trained with.

    v0                vocabulary of 32,001 (a padding token was added), "###Human: ... ###Assistant: "     what the paper has
    v1.1, v1.3        LLaMA-1 with 32,000,                              "USER: ... ASSISTANT: ...</s>"
    v1.5              Llama-2 with 32,000, no chat template of its own, the same conversation
    Llama-2-chat      Llama-2 with 32,000, "[INST] ... [/INST]"

All of one size have the same shapes, so a projection fits any of them, but with any LLM except its own, answers are garbage
(Vision-CAIR/MiniGPT-4#417). Sources: FastChat's docs/vicuna_weights_version.md, the authors' README.
"""

from ..processing.chat_templates import template_text

# For the authors' projections by shape [out, in]: the LLM's version and its repository.
_TRAINED_WITH = {
    (4096, 768): ("Vicuna v0", "Vision-CAIR/vicuna-7b"),
    (5120, 768): ("Vicuna v0", "Vision-CAIR/vicuna"),
    (4096, 5632): ("Llama-2-chat", "meta-llama/Llama-2-7b-chat-hf"),
}
_LLAMA_ROWS, _VICUNA_V0_ROWS = 32_000, 32_001
_LLAMA_1_EPS = 1e-6  # of its norms; Llama-2 has 1e-5


def llm_version(config, tokenizer):
    """ "Vicuna v0", "Llama-2-chat", or the candidates; None for an LLM that is not a 7B or 13B LLaMA-1 or 2.

    Args:
        config: the LLM's config. tokenizer: its own, which may have a chat template.
    """
    if config.model_type != "llama" or config.hidden_size not in (4096, 5120):
        return None
    if config.vocab_size == _VICUNA_V0_ROWS:
        return "Vicuna v0"
    if config.vocab_size != _LLAMA_ROWS:
        return None
    if "[INST]" in template_text(tokenizer.chat_template):
        return "Llama-2-chat"
    if config.rms_norm_eps > 5 * _LLAMA_1_EPS:
        return "Vicuna v1.5 (or Llama-2 itself)"
    return "Vicuna v1.1 or v1.3 (or LLaMA-1 itself)"


def check_published(shape, config, tokenizer, source, llm):
    """Raises ValueError if a published projection is combined with an LLM of the same shapes but another version.

    Args:
        shape: shape of the projection's weight. source: its file.
        config, tokenizer: of the LLM. llm: its folder or Hub id.
    """
    expected, repo = _TRAINED_WITH.get(tuple(shape), (None, None))
    found = llm_version(config, tokenizer)
    if expected and found and found != expected:
        raise ValueError(
            f"{source}: a projection of this shape was published for {expected} ({repo}), but {llm} has {found}: the "
            f"shapes fit, the answers would be garbage. Use --text {repo}; a projection that you trained on {llm} yourself "
            "goes by its light repository, or as .safetensors into from_parts"
        )


def template_hint(config, tokenizer):
    """A one-line warning if an LLM has no chat template and the paper's does not suit it; else None."""
    found = llm_version(config, tokenizer)
    if tokenizer.chat_template or found in (None, "Vicuna v0"):
        return None
    return (
        f"this LLM is {found}, whose tokenizer brings no chat template. Vicuna from v1.1 on was tuned on USER and "
        'ASSISTANT, not on the paper\'s ###Human and ###Assistant: set model.template=vicuna-v1 (or template="vicuna-v1")'
    )
