"""`minigpt4 web --mcp`: an agent's client finds one tool on the page, and gets the model's answer about an image from it."""

import asyncio
import base64
import io
import os
import socket
import subprocess
import sys
import time

import pytest
from mcp import ClientSession
from mcp.client.streamable_http import streamable_http_client

from minigpt4.cli import main
from minigpt4.hub.export import export
from minigpt4.inference.named_models import load


def data_url(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


@pytest.fixture
def page(original, processor, tmp_path):
    """(folder of the tiny model, port) of a page that is served in a separate process."""
    folder = str(export(original, processor, tmp_path / "model"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    line = [sys.executable, "-m", "minigpt4", "web", "--model", folder, "--port", str(port), "--mcp", "--dtype", "float32"]
    with open(tmp_path / "log.txt", "w") as log:
        process = subprocess.Popen(line, stdout=log, stderr=log, env={**os.environ, "GRADIO_ANALYTICS_ENABLED": "False"})
    last = time.monotonic() + 300
    while socket.socket().connect_ex(("127.0.0.1", port)):
        assert process.poll() is None and time.monotonic() < last, (tmp_path / "log.txt").read_text()
        time.sleep(0.1)
    yield folder, port
    process.terminate()
    process.wait(30)


@pytest.mark.slow
def test_an_agent_asks_about_an_image(page, picture):
    folder, port = page
    image = picture(3)

    async def use():
        address = f"http://127.0.0.1:{port}/gradio_api/mcp/"
        async with streamable_http_client(address) as (read, write, _), ClientSession(read, write) as session:
            await session.initialize()
            tools = (await session.list_tools()).tools
            said = await session.call_tool(tools[0].name, {"image": data_url(image), "question": "What is this?"})
            secret = await session.call_tool(tools[0].name, {"image": "/etc/hostname", "question": "What is this?"})
            return tools, said, secret

    tools, said, secret = asyncio.run(use())
    assert [tool.name for tool in tools] == ["ask"]
    assert set(tools[0].inputSchema["properties"]) == {"image", "question"}
    assert "Answers a question about an image" in tools[0].description
    model, processor = load(folder, "float32")
    assert said.content[0].text == model.chat_session(processor).ask("What is this?", image)
    assert secret.isError


def test_mcp_without_its_package_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["web", "--mcp"]) == 2
    error = capsys.readouterr().err
    assert "--mcp needs the package mcp" in error and len(error.strip().splitlines()) == 1
