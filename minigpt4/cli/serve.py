"""Serve a model over HTTP as OpenAI's API does: POST /v1/chat/completions, GET /v1/models.

Further flags go to the engine: those of `transformers serve`, or of `vllm serve`.
"""

import importlib

from . import loading


def add_arguments(parser):
    """Adds the arguments of `minigpt4 serve`."""
    parser.add_argument("--model", default="embedded", help='"embedded" (the default), a folder, or a Hub id')
    parser.add_argument("--engine", choices=["transformers", "vllm"], default="transformers", help="(default: transformers)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, only this machine)")
    parser.add_argument("--port", type=int, default=8000, metavar="N", help="(default: 8000)")
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="H",
        help="fetch images from this host; may be repeated (default: none, clients send data URLs)",
    )
    loading.add_arguments(parser)


def run(arguments):
    """Serves until it is stopped; raises ValueError or OSError with one line."""
    if not 0 < arguments.port < 65536:
        raise ValueError(f"--port is {arguments.port}; expected 1 to 65535")
    engine = importlib.import_module(f"..serving.{arguments.engine}_engine", __package__)
    engine.check()
    from ..inference.devices import loading as checked
    from ..serving.folder import servable

    how = loading.given(arguments)
    checked(**how)
    folder = servable(arguments.model, full=arguments.engine == "vllm")
    flags = [*engine.loading_flags(folder, **how), *arguments.passed_on]
    engine.serve(folder, arguments.model, arguments.host, arguments.port, arguments.allow_host, flags)
