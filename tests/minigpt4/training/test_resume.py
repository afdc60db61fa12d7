"""Runs that are killed with SIGKILL end with the weights of one that was not, bit by bit, also with two processes."""

import io
import json
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from minigpt4.configuration.recipe import load_recipe
from minigpt4.durable_files import append_lines
from minigpt4.hub.export import export
from minigpt4.training.checkpoints import ASIDE

pytestmark = pytest.mark.slow

SAMPLES, BROKEN_EVERY = 2400, 300


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Four tar shards as img2dataset writes them, 2,400 small JPEGs, every 300th of them cut in the middle."""
    folder, rng = tmp_path_factory.mktemp("shards"), np.random.default_rng(0)
    for shard in range(4):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for i in range(SAMPLES // 4):
                jpeg = io.BytesIO()
                Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(jpeg, "JPEG")
                picture = jpeg.getvalue()[: 200 if i % BROKEN_EVERY == 7 else None]
                caption = f"picture {i} of {shard} with a {rng.choice(['cat', 'dog', 'kite'])}".encode()
                for suffix, data in (("jpg", picture), ("txt", caption)):
                    member = tarfile.TarInfo(f"{i:09d}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return folder


@pytest.fixture
def settings(original, processor, tmp_path, shards):
    """settings(output): of thirty steps on the stream of those shards, a checkpoint every third."""
    base = export(original, processor, tmp_path / "base")

    def make(output, *more):
        return [
            f"model.base={base}", "model.projection=base", f"data.path={shards}", "data.streaming=true",
            "data.random_crop=true", "data.image_size=56", "data.shuffle_buffer=100", "train.steps=30",
            "train.global_batch=8", "train.save_steps=3", "train.warmup_steps=3", "train.standardize=false",
            f"output={output}", *more,
        ]  # fmt: skip

    return make


def _train(settings, environment):
    """In a separate process, which a signal to its group ends together with the processes that it starts."""
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(1, 2)
    os.environ.update(environment)
    multiprocessing.set_start_method("fork", force=True)  # of its workers, as in a process that was not forked from a server
    import torch

    from minigpt4.training.run import train

    torch.set_num_threads(1)  # as torchrun sets it for several; a single process raises it
    if "SEEN" in environment:
        _note_samples(Path(environment["SEEN"]))
    train(load_recipe("stage1-embedded", settings))


def _note_samples(path):
    """Writes a line for each step that begins: its number, and its samples' passes and names."""
    from minigpt4.training.trainer import MiniGPT4Trainer

    collate, get_batch_samples = MiniGPT4Trainer._collate, MiniGPT4Trainer.get_batch_samples

    def collate_names(self, examples):
        return {**collate(self, examples), "names": [[example["pass"], example["key"]] for example in examples]}

    def note(self, *args):
        batches, items = get_batch_samples(self, *args)
        names = [name for batch in batches for name in batch.pop("names")]
        append_lines(path, [{"step": self.state.global_step, "names": names}])
        return batches, items

    MiniGPT4Trainer._collate, MiniGPT4Trainer.get_batch_samples = collate_names, note


@pytest.fixture(scope="module")
def child():
    """child(settings, **environment): a started process that trains, forked from one that has imported torch already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["minigpt4.training.run"])

    def start(settings, **environment):
        process = context.Process(target=_train, args=(settings, environment))
        process.start()
        return process

    return start


def _outcome(output):
    """What must be the same: the weights, and how many samples were used and dropped."""
    return (output / "model" / "model.safetensors").read_bytes(), json.loads((output / "summary.json").read_text())[
        "samples"
    ]


def _wait_for(condition, process, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition() and process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.002)


def test_killed_in_steps_and_in_checkpoint_writes_it_ends_bit_identical(settings, child, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = child(settings(whole))
    process.join(120)
    assert process.exitcode == 0
    rng, in_a_write = random.Random(0), 0
    for life in range(9):
        process = child(settings(killed))
        if life % 2 == 0:  # in the middle of a checkpoint's writing
            for _ in range(rng.randint(1, 2)):
                _wait_for((killed / ASIDE).exists, process)
                last = time.monotonic() + rng.uniform(0, 0.2 if life % 4 else 0.02)  # a quick machine writes in 0.1 s
                _wait_for(lambda last=last: time.monotonic() > last, process)
        else:
            before = set(killed.glob("checkpoint-*"))
            _wait_for(lambda before=before: set(killed.glob("checkpoint-*")) != before, process)
            time.sleep(rng.uniform(0, 0.5))
        in_a_write += (killed / ASIDE).exists()
        process.kill()
        process.join()
        for checkpoint in killed.glob("checkpoint-*"):
            assert (checkpoint / "trainer_state.json").is_file() and (checkpoint / "data_state_0_of_1.pt").is_file()
    assert in_a_write >= 3  # the waits above met their moment
    process = child(settings(killed))
    process.join(120)
    assert process.exitcode == 0
    assert _outcome(killed) == _outcome(whole)
    samples = json.loads((whole / "summary.json").read_text())["samples"]
    assert samples["used"] == 240 and samples["dropped"] > 0


def _start(child, settings, processes, **environment):
    """So many processes of one run, which find each other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(processes)}
    if processes == 1:
        meeting = {}
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} if meeting else {} for rank in range(processes)]
    return [
        child(settings, **meeting, **rank, **{name: f"{value}.{i}" for name, value in environment.items()})
        for i, rank in enumerate(ranks)
    ]


def _finish(processes):
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0] * len(processes)


def _kill(processes):
    for process in processes:
        os.killpg(process.pid, signal.SIGKILL)
        process.join()


@pytest.mark.parametrize(
    "lives", [[(2, 1), (1, 0)], [(1, 0), (2, 0)], [(2, 0), (3, 1)]], ids=["2 to 1", "1 to 2", "2 to 3, with workers"]
)
def test_other_processes_go_on_where_those_were_killed(lives, settings, child, shards, tmp_path):
    """lives: how many processes with how many workers each; all but the last are killed. No sample twice, none lost."""
    output, few = tmp_path / "run", tmp_path / "few"
    few.mkdir()
    for shard in sorted(shards.glob("*.tar"))[:3]:
        with tarfile.open(shard) as tar, tarfile.open(few / shard.name, "w") as part:
            for member in tar.getmembers()[: 2 * 30]:
                part.addfile(member, tar.extractfile(member))
    for life, (processes, workers) in enumerate(lives):
        asked = settings(
            output, f"data.path={few}", "train.global_batch=6", "train.steps=22", "data.shuffle_buffer=8",
            f"train.workers={workers}", "data.max_dropped_share=0.1", "train.save_total_limit=2",
        )  # fmt: skip
        running = _start(child, asked, processes, SEEN=tmp_path / f"life{life}")
        if life < len(lives) - 1:
            _wait_for(lambda: len(list(output.glob("checkpoint-*"))) == 2, running[0])
            _kill(running)
            assert len(list(output.glob("checkpoint-*"))) == 2  # the limit
        else:
            _finish(running)
    names, first = [], 22
    for life in reversed(range(len(lives))):  # steps that were taken again count once
        lines = [json.loads(line) for log in tmp_path.glob(f"life{life}.*") for line in log.read_text().splitlines()]
        names += [tuple(name) for line in lines if line["step"] < first for name in line["names"]]
        first = min(line["step"] for line in lines)
    assert first == 0 and len(names) == 22 * 6
    samples = json.loads((output / "summary.json").read_text())["samples"]
    assert samples["used"] == len(names)
    assert len(set(names)) == len(names)  # none twice in a pass
    assert sum(number == 0 for number, _ in names) == 90 - 3  # the first pass is whole, but for a broken one a shard


_SMALL = ("data.streaming=false", "data.random_crop=false", "data.path=''")


@pytest.mark.parametrize(
    ("kills", "data"),
    [
        (3, ()),
        (1, (*_SMALL, "data.scenes=20", "train.feature_dropout=0.1", "train.save_steps=4", "train.steps=12")),
    ],
    ids=["stream", "in the second epoch of a few scenes"],
)
def test_two_processes_killed_end_bit_identical(kills, data, settings, child, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    more = ("train.workers=1", *data)

    def start(output):
        return _start(child, settings(output, *more), 2)

    _finish(start(whole))
    rng = random.Random(1)
    for _ in range(kills):
        processes = start(killed)
        before = set(killed.glob("checkpoint-*"))
        _wait_for(lambda before=before: set(killed.glob("checkpoint-*")) != before, processes[0])
        time.sleep(rng.uniform(0, 0.5))
        _kill(processes)
    _finish(start(killed))
    assert _outcome(killed) == _outcome(whole)


def _launch(config, script, processes, settings, **popen):
    command = [
        *(sys.executable, "-m", "accelerate.commands.launch", "--config_file", f"configuration/accelerate/{config}.yaml"),
        *("--num_processes", str(processes), "--main_process_port", "0", script, "--set", *settings),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, text=True, start_new_session=True, **popen)


@pytest.mark.parametrize(
    ("config", "script", "started"),
    [("ddp", "trainer_scripts/stage1.py", 3), ("fsdp2", "tests/helpers/fsdp2_on_cpu.py", 2)],
    ids=["ddp, one more started than take part", "fsdp2"],
)
def test_two_processes_have_the_losses_of_one(config, script, started, settings, child, tmp_path):
    small = (*_SMALL, "data.scenes=40", "train.steps=6")
    one, two = tmp_path / "one", tmp_path / "two"
    process = child(settings(one, *small))
    process.join(120)
    asked = settings(two, *small, "train.processes=2")
    done = _launch(config, script, started, asked, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    stdout, stderr = done.communicate(timeout=300)
    assert done.returncode == 0, stderr[-2000:]
    assert "6 steps x 8 (4 a device x 1 accumulated x 2 processes)" in stdout
    losses = [json.loads((output / "summary.json").read_text())["losses"] for output in (one, two)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
    assert sum(file.stat().st_size for file in (two / "model").glob("*.safetensors")) < 20_000
