"""python benchmarks/loading_processes.py [--layers N] [--vision-layers N] [--processes 1 2 4] [--output FILE]

Peak host memory of a node on which several processes load a recipe's model, as a share of its weights: MiniGPT-4 of the
published widths with fewer layers and random weights in bf16, from its parts.

    device   each process reads onto its own device, one tensor after the other. Without a GPU here the device is PyTorch's
             "meta", which keeps nothing: what is measured is what passes through the host.
    fsdp2    configuration/accelerate/fsdp2.yaml: the first process of a node reads, the others get their shards from it
    host     each process reads into its own memory, as CPUs need it and as every process did before
"""

import argparse
import multiprocessing
import os
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
from loading import write_parts

from minigpt4.cli import run_reporting_errors
from minigpt4.durable_files import write_json

PATIENCE = 300  # seconds after which a process that failed ends the others, too
MODES = {
    "device": {},
    "fsdp2": {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"},
    "host": {},
}


def load(vision, text, rank, processes, port, mode, barrier, bytes_of_weights):
    """One process: joins the others, waits until all are there, and loads."""
    os.environ.update(MODES[mode])
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(processes))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    import torch

    from minigpt4.configuration.recipe import ModelSection
    from minigpt4.hub import from_parts
    from minigpt4.training import run as training

    torch.distributed.init_process_group("gloo")
    if mode == "device":
        training.loading = lambda *_: {"dtype": torch.bfloat16, "device_map": {"": torch.device("meta")}}
        from_parts.check_logits = lambda model: None  # compares numbers, of which that device has none
    section = ModelSection(vision=vision, text=text, dtype="bfloat16")
    barrier.wait()
    barrier.wait()  # the memory so far is noted
    model, _ = training.load_model(section)
    bytes_of_weights.value = max(
        bytes_of_weights.value, sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    )
    barrier.wait()
    torch.distributed.destroy_process_group()


def measure(vision, text, processes, mode):
    """{"peak_mb", "weights_mb", "ratio"}: the most that all processes together had over what they had before loading.

    It is their proportional set size (PSS), so that memory that several share counts once, looked at every 20 ms.
    """
    context = multiprocessing.get_context("spawn")
    barrier, weights = context.Barrier(processes + 1, timeout=PATIENCE), context.Value("q", 0)
    port = 29_000 + os.getpid() % 1000
    running = [
        context.Process(target=load, args=(vision, text, rank, processes, port, mode, barrier, weights), daemon=True)
        for rank in range(processes)
    ]
    for process in running:
        process.start()
    barrier.wait()
    before, peak, ended = _together(running), 0, threading.Event()

    def watch():
        nonlocal peak
        while not ended.is_set():
            peak = max(peak, _together(running))
            time.sleep(0.02)

    watcher = threading.Thread(target=watch)
    watcher.start()
    barrier.wait()
    barrier.wait()
    ended.set()
    watcher.join()
    for process in running:
        process.join()
    peak_mb, weights_mb = (peak - before) / 2**20, weights.value / 2**20
    return {"peak_mb": round(peak_mb), "weights_mb": round(weights_mb), "ratio": round(peak_mb / weights_mb, 3)}


def _together(processes):
    return sum(psutil.Process(process.pid).memory_full_info().pss for process in processes if process.is_alive())


def main():
    """Parses the command line, measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=2, help="layers of the LLM")
    parser.add_argument("--vision-layers", type=int, default=8)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--scratch", help="where the weights are written, about 2 GB")
    parser.add_argument("--output", help="JSON file for the results")
    arguments = parser.parse_args()
    results = {"layers": arguments.layers, "vision_layers": arguments.vision_layers}
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        vision, text = write_parts(Path(scratch), arguments.layers, arguments.vision_layers)
        for mode in arguments.modes:
            for processes in arguments.processes:
                results[f"{mode}, {processes} processes"] = measure(vision, text, processes, mode)
                print(mode, processes, results[f"{mode}, {processes} processes"], flush=True)
    if arguments.output:
        write_json(arguments.output, results)


if __name__ == "__main__":
    sys.exit(run_reporting_errors(main, "loading_processes"))
