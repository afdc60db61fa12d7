"""Talk about images in the browser: a page on this machine, for others with --host."""

import importlib.util
from pathlib import Path

from . import loading


def add_arguments(parser):
    """Adds the arguments of `minigpt4 web`."""
    parser.add_argument("--model", default="embedded", help='"embedded" (the default), a folder, or a Hub id')
    parser.add_argument("--host", default="127.0.0.1", help="address to serve at; 0.0.0.0 allows other machines")
    parser.add_argument("--port", type=int, default=7860, help="default: 7860")
    parser.add_argument("--mcp", action="store_true", help="also serve agents: an MCP server at /gradio_api/mcp/")
    loading.add_arguments(parser)


def run(arguments):
    """Loads the model and serves the page until Ctrl-C."""
    if not 0 < arguments.port < 65536:
        raise ValueError(f"--port is {arguments.port}; expected 1 to 65535")
    if arguments.mcp and importlib.util.find_spec("mcp") is None:
        raise ValueError("--mcp needs the package mcp, which is not installed here; run `pip install 'mcp>=1.21,<2'`")
    from ..hub.app import build, offer, serve

    model, processor = loading.load_model(arguments)
    name = Path(arguments.model).name if Path(arguments.model).is_dir() else arguments.model
    page = build(model, processor, name)
    if arguments.mcp:
        offer(page, model, processor)
    serve(page, server_name=arguments.host, server_port=arguments.port, mcp_server=arguments.mcp)
