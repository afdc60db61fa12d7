"""Training checkpoints: the trained weights (MBs), optimizer, schedule, random state and position in the data.

All processes together write a checkpoint to a scratch folder and sync it, and the first renames it: a kill at any moment
leaves the last complete one. Its model is a light repository.
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
STEP_FILE = "step.json"  # what a step consists of: {"global_batch"}


@contextmanager
def replacing_checkpoint(accelerator, output, best=None, limit=1):
    """A folder that every process writes its checkpoint files into; when complete, it replaces the oldest checkpoints.

    Args:
        accelerator: an `accelerate.Accelerator`; its processes enter and leave together.
        output: the run's folder, the same file system for all.
        best: name of an older checkpoint to keep, "checkpoint-STEP".
        limit: how many others to keep, including the new one.

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
                older.rename(aside)  # half removed, it would look complete
                shutil.rmtree(aside)
    accelerator.wait_for_everyone()


def step_of(checkpoint):
    """The step of a checkpoint: 12 for ".../checkpoint-12"."""
    return int(Path(checkpoint).name.rpartition("-")[2])


def last_checkpoint(output):
    """The checkpoint that an unfinished run resumes from, as a string, or None: a finished run leaves none."""
    return get_last_checkpoint(output) if Path(output).is_dir() else None


def remove_checkpoints(output):
    """Removes every checkpoint of a run, complete or not."""
    for folder in [*Path(output).glob("checkpoint-*"), Path(output) / ASIDE]:
        shutil.rmtree(folder, ignore_errors=True)


@torch.no_grad()
def load_trained(model, folder):
    """Loads a light repository's trained tensors and adapters into a model, in place; frozen ones are not in it.

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
    model.stored = getattr(model, "stored", frozenset()) | trained.keys()  # later saves include them
    if (Path(folder) / LORA).is_dir():
        load_lora(model, folder)


def _placed_like(tensor, other):
    """`tensor`, sharded over the processes like `other` if FSDP2 has sharded that."""
    if not hasattr(other, "device_mesh"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(other.device), other.device_mesh, other.placements)
