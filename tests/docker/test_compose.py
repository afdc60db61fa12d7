"""The compose file and the image for vLLM: what is reachable, which user runs it, and what goes in. No engine is needed."""

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"


def compose():
    """The command of Compose, or None: a plugin of Docker, or a program."""
    for command in ["docker", "compose"], ["docker-compose"]:
        if (
            shutil.which(command[0])
            and subprocess.run([*command, "version"], capture_output=True, check=False).returncode == 0
        ):
            return command
    return None


def config(**environment):
    """What `docker compose config` says; it starts nothing."""
    line = [*compose(), "-f", str(DOCKER / "compose.yaml"), "--profile", "nodes", "config"]
    known = {name: value for name, value in os.environ.items() if name not in ("MODEL", "MODELS", "GPUS", "PORT", "FLAGS")}
    return subprocess.run(line, env={**known, **environment}, capture_output=True, text=True, check=False)


@pytest.mark.skipif(compose() is None, reason="needs Docker's compose, Debian's docker-compose")
def test_only_this_machine_reaches_the_server(tmp_path):
    done = config(
        MODEL="/models/pet", MODELS=str(tmp_path), GPUS="4", PORT="8123", HF_TOKEN="hf_x", FLAGS="--max-model-len 2048"
    )
    assert done.returncode == 0, done.stderr
    server, node = (yaml.safe_load(done.stdout)["services"][name] for name in ("server", "node"))
    [port] = server["ports"]
    assert (f"{port['host_ip']}:{port['published']}" if isinstance(port, dict) else port).startswith("127.0.0.1:8123")
    command = server["command"] if isinstance(server["command"], str) else " ".join(server["command"])
    assert "--model /models/pet --tensor-parallel-size 4" in command and command.endswith("--max-model-len 2048")
    assert "--host" not in str(node["command"]) and "ports" not in node  # `minigpt4 serve` listens at 127.0.0.1
    for service in (server, node):
        assert service["environment"]["HF_TOKEN"] == "hf_x"  # from outside, and in no file
        assert service["cap_drop"] == ["ALL"] and not service.get("privileged")
        models = next(str(volume) for volume in service["volumes"] if "/models" in str(volume))
        assert str(tmp_path) in models and re.search(r":ro$|'read_only': True", models)
    assert "a Hub id" in config().stderr  # what to set where no model is given


def test_the_image_has_what_the_package_needs_no_secret_and_no_root():
    lines = (DOCKER / "Dockerfile").read_text().splitlines()
    assert [line.split()[1] for line in lines if line.startswith("USER")][-1] not in ("root", "0")
    assert not [line for line in lines if "TOKEN" in line or "ADD " in line]
    ignored, *kept = (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()
    assert ignored == "*"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    folders = {folder.split("/")[0] for folder in project["tool"]["setuptools"]["package-dir"].values()}
    files = {project["project"]["readme"], *project["project"]["license-files"], "pyproject.toml", "model_card.md"}
    assert {line[1:] for line in kept if line.startswith("!")} == {"minigpt4", *folders, *files, "CITATION.cff"}
