"""Checkpoints of a training: what is trained (MBs), optimizer, schedule, random numbers and the place in the data.

A checkpoint is written aside by all processes together, fsynced, and renamed by the first: a kill at any moment leaves the
last whole one. Its model is a light repository.
"""

import shutil
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers.trainer_utils import get_last_checkpoint

from ..durable_files import sync, sync_folder
from ..modeling_minigpt4.lora import LORA, load_lora

ASIDE = ".checkpoint-unfinished"
STEP_FILE = "step.json"  # of what a step is made: {"global_batch"}


@contextmanager
def replacing_checkpoint(accelerator, output, best=None, limit=1):
    """A folder that every process writes its files of a checkpoint into; whole, it takes the place of the oldest ones.

    Args:
        accelerator: an `accelerate.Accelerator`; its processes enter and leave together.
        output: the run's folder, the same file system for all.
        best: name of an older checkpoint that stays, "checkpoint-STEP".
        limit: how many stay besides, the new one and those before it.

    Yields a path; what is written is its single subfolder "checkpoint-STEP".
    """
    output = Path(output)
    aside = output / ASIDE
    if accelerator.is_main_process:
        shutil.rmtree(aside, ignore_errors=True)  # of a run that was killed
        aside.mkdir(parents=True)
    accelerator.wait_for_everyone()
    yield aside
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        [written] = aside.iterdir()
        sync_folder(written)
        place = output / written.name
        shutil.rmtree(place, ignore_errors=True)
        written.rename(place)
        sync(output)
        aside.rmdir()
        for older in sorted(output.glob("checkpoint-*"), key=step_of)[:-limit]:
            if older.name != best:
                older.rename(aside)  # half removed, it would look whole
                shutil.rmtree(aside)
    accelerator.wait_for_everyone()


def step_of(checkpoint):
    """After which step a checkpoint was written: 12 of ".../checkpoint-12"."""
    return int(Path(checkpoint).name.rpartition("-")[2])


def last_checkpoint(output):
    """The checkpoint that an unfinished run goes on from, as a string, or None: a finished run leaves none."""
    return get_last_checkpoint(output) if Path(output).is_dir() else None


def remove_checkpoints(output):
    """Removes every checkpoint of a run, whole or not."""
    for folder in [*Path(output).glob("checkpoint-*"), Path(output) / ASIDE]:
        shutil.rmtree(folder, ignore_errors=True)


@torch.no_grad()
def load_trained(model, folder):
    """Puts a light repository's trained tensors and adapters into a model, in place; the frozen ones are not in it.

    Raises:
        ValueError: a damaged file, or a tensor that the model does not have, or has in another shape.
    """
    tensors = model.state_dict()
    try:
        trained = load_file(Path(folder) / "model.safetensors")
    except SafetensorError as error:
        raise ValueError(f"{folder}/model.safetensors: cannot be read ({error}); export or train it again") from error
    for name, tensor in trained.items():
        expected = tuple(tensors[name].shape) if name in tensors else "no such tensor"
        if expected != tuple(tensor.shape):
            raise ValueError(f"{folder}: tensor {name!r} has shape {tuple(tensor.shape)}, the model expects {expected}")
        tensors[name].copy_(_placed_like(tensor, tensors[name]))
    model.stored = getattr(model, "stored", frozenset()) | trained.keys()  # what is saved from now on has them, too
    if (Path(folder) / LORA).is_dir():
        load_lora(model, folder)


def _placed_like(tensor, other):
    """`tensor`, cut over the processes as `other` is if FSDP2 has sharded it."""
    if not hasattr(other, "device_mesh"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(other.device), other.device_mesh, other.placements)
