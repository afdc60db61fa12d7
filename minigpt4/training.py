"""Training of both stages with the HF Trainer: only the projection moves.

    recipe -> model, processor, data -> MiniGPT4Trainer -> output folder: a light repository, summary.json

A checkpoint is a light repository plus optimizer, scheduler, random and trainer state, and appears in the output folder
all at once; an unfinished run goes on from its last one. Ctrl-C and SIGTERM save first.
"""

import math
import os
import shutil
import signal
import tempfile
import time
from pathlib import Path

import psutil
import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.optim.lr_scheduler import LambdaLR
from tqdm.auto import tqdm
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import PrinterCallback, ProgressCallback, TrainerState
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import get_last_checkpoint

import minigpt4

from .files import write_json
from .modeling_minigpt4.embedded import load_embedded
from .modeling_minigpt4.export import export
from .models import load
from .processing.collator import MiniGPT4DataCollator
from .processing.datasets import random_view, training_data

RECIPE_FILE = "recipe.yaml"


def learning_rate(step, train, total_steps, steps_per_epoch):
    """The original's schedule: a linear warm-up, else a cosine that is counted from step 0.

    So the rate drops where warm-up ends, and the warm-up counts its steps inside the epoch (LAVIS's
    `LinearWarmupCosineLRScheduler`). `train`: a `TrainSection`; returns the learning rate of a step (0 is the first).
    """
    peak, low = train.learning_rate, train.min_learning_rate
    if step < train.warmup_steps:
        climb = (peak - train.warmup_learning_rate) * (step % steps_per_epoch) / train.warmup_steps
        return min(peak, train.warmup_learning_rate + climb)
    return (peak - low) * 0.5 * (1 + math.cos(math.pi * step / total_steps)) + low


class MiniGPT4Trainer(Trainer):
    """HF Trainer with the original's schedule and light, atomic checkpoints.

    Args:
        recipe: the `Recipe` that is run.
        lengths: tokens of each training example; batches are made of examples of like length (less padding).
        Everything else: see `transformers.Trainer`.
    """

    def __init__(self, *args, recipe, lengths=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.recipe = recipe
        self.lengths = lengths

    def create_scheduler(self, num_training_steps, optimizer=None):
        """LambdaLR over `learning_rate`: no schedule that transformers has equals the original's."""
        if self.lr_scheduler is None:
            train = self.recipe.train
            self.lr_scheduler = LambdaLR(
                optimizer or self.optimizer,
                lambda step: learning_rate(step, train, num_training_steps, train.steps) / train.learning_rate,
            )
        return self.lr_scheduler

    def _get_train_sampler(self, train_dataset=None):
        if self.lengths is None:
            return super()._get_train_sampler(train_dataset)
        return LengthBuckets(self.args.train_batch_size, lengths=self.lengths, seed=self.args.seed)

    def _get_output_dir(self, trial):
        return getattr(self, "_scratch", None) or super()._get_output_dir(trial)

    def _save_checkpoint(self, model, trial):
        """Writes the checkpoint aside, then renames it: a kill leaves the last whole one."""
        output = Path(self.args.output_dir)
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".checkpoint-", dir=output) as self._scratch:
            super()._save_checkpoint(model, trial)
            [written] = Path(self._scratch).iterdir()
            _fsync(written)
            shutil.rmtree(output / written.name, ignore_errors=True)
            written.rename(output / written.name)
        self._scratch = None
        for older in output.glob("checkpoint-*"):
            if older.name != written.name:
                shutil.rmtree(older)

    def _save(self, output_dir=None, state_dict=None):
        export(self.accelerator.unwrap_model(self.model), self.processing_class, output_dir, light=True)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        load_trained(model or self.model, resume_from_checkpoint)


class LengthBuckets(LengthGroupedSampler):
    """Batches of like length in shuffled order, which depends on seed and epoch alone: a resumed run has the same.

    The library's sampler goes from long to short every fifty batches. Where length tells the kind of an example, as in
    composed scenes, the model would unlearn one kind while it is shown the other.
    """

    def __init__(self, *args, seed, **kwargs):
        super().__init__(*args, **kwargs)
        self.seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch):
        """Called by accelerate's data loader when an epoch begins."""
        self.generator = torch.Generator().manual_seed(self.seed + epoch)

    def __iter__(self):
        indices = list(super().__iter__())
        batches = [indices[start : start + self.batch_size] for start in range(0, len(indices), self.batch_size)]
        whole = len(indices) // self.batch_size
        order = [*torch.randperm(whole, generator=self.generator).tolist(), *range(whole, len(batches))]
        return iter([index for position in order for index in batches[position]])


class StopOnSignal(TrainerCallback):
    """At Ctrl-C or SIGTERM: ends the step, saves a checkpoint and stops; `signum` says which it was."""

    def __init__(self):
        self.signum = None
        self._before = {signum: signal.signal(signum, self._note) for signum in (signal.SIGINT, signal.SIGTERM)}

    def _note(self, signum, frame):
        if self.signum is not None:  # a second one does not wait
            raise KeyboardInterrupt
        self.signum = signum

    def on_step_end(self, args, state, control, **kwargs):
        """Asks the Trainer to save and to stop."""
        if self.signum is not None:
            control.should_save = control.should_training_stop = True

    def on_train_end(self, args, state, control, **kwargs):
        """Leaves the signals as they were."""
        for signum, handler in self._before.items():
            signal.signal(signum, handler)


class LiveLoss(ProgressCallback):
    """The Trainer's progress bar with the loss and learning rate beside it, instead of a line for each."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Shows the newest loss."""
        if self.training_bar is not None and "loss" in (logs or {}):
            self.training_bar.set_postfix(loss=f"{float(logs['loss']):.3f}", lr=f"{float(logs['learning_rate']):.1e}")


def train(recipe, model=None, processor=None, dataset=None):
    """Runs a recipe; returns the trained model, its processor and what summary.json says.

    Args:
        recipe: a `Recipe`.
        model, processor: what is trained, if it is loaded already; by default as recipe.model says.
        dataset: a `PictureTexts`, if it is at hand already; by default as recipe.data says.

    Raises:
        ValueError: the output folder holds an unfinished run of another recipe, or cannot be written.
        SystemExit: status 130 or 143 after Ctrl-C or SIGTERM, when the checkpoint is written.
    """
    started = time.monotonic()
    use_every_core()
    output = _prepare_output(recipe)
    if model is None:
        model, processor = load_model(recipe.model)
    transformers.set_seed(recipe.train.seed)
    if dataset is None:
        dataset = training_data(recipe.data, recipe.stage)
    if recipe.train.cache_features and dataset.features is None:
        dataset.features = cache_features(model, processor, dataset.pictures, recipe.data.views)
    dataset.feature_dropout = recipe.train.feature_dropout

    collator = MiniGPT4DataCollator(processor, max_answer_tokens=recipe.train.max_answer_tokens)
    trainer = MiniGPT4Trainer(
        model=model,
        args=_arguments(recipe, output),
        train_dataset=dataset,
        data_collator=collator,
        processing_class=processor,
        recipe=recipe,
        lengths=[len(collator.encode(text)[0]) for text in dataset.texts],
    )
    stop = StopOnSignal()
    trainer.add_callback(stop)
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(LiveLoss)
    _print_batch(recipe, trainer, dataset)
    checkpoint = _unfinished(output)
    begun = int(checkpoint.rsplit("-", 1)[1]) if checkpoint else 0
    training_started = time.monotonic()
    if begun < recipe.train.steps:
        trainer.train(resume_from_checkpoint=checkpoint)
    else:  # killed after its last step; the Trainer would take one more
        load_trained(model, checkpoint)
        trainer.state = TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME))
    seconds_per_step = (time.monotonic() - training_started) / max(1, trainer.state.global_step - begun)
    if stop.signum is not None:
        print(f"stopped; the checkpoint is in {output}, the same command goes on from it")
        raise SystemExit(128 + stop.signum)
    model.eval()
    return model, processor, _finish(trainer, output, time.monotonic() - started, seconds_per_step)


def load_model(section):
    """(model, processor) as a recipe's model section says: base, projection, attention; the projection in fp32."""
    projection = Path(section.projection)
    if section.projection not in ("fresh", "base") and not (projection / "model.safetensors").is_file():
        raise ValueError(
            f'model.projection is {section.projection!r}: no model.safetensors there; expected "fresh", "base" or the '
            "output folder of an earlier stage"
        )
    fresh = section.projection != "base"
    model, processor = load_embedded(projection=None) if fresh and section.base == "embedded" else load(section.base)
    if section.projection == "fresh":
        model.draw_projection()
    elif section.projection != "base":
        load_trained(model, projection)
    if model.config.base_parts is None:  # what is saved is light all the same
        base = Path(section.base)
        model.config.base_parts = {"model": {"repo": str(base.absolute() if base.is_dir() else base), "revision": None}}
    model.set_attn_implementation(section.attn_implementation)
    model.model.projection.float()
    return model, processor


def load_trained(model, folder):
    """Puts a light repository's trained tensors into a model, in place; the frozen ones are not in it.

    Raises:
        ValueError: a damaged file, or a tensor that the model does not have, or has in another shape.
    """
    parameters = model.state_dict()
    try:
        trained = load_file(Path(folder) / "model.safetensors")
    except SafetensorError as error:
        raise ValueError(f"{folder}/model.safetensors: cannot be read ({error}); export or train it again") from error
    for name, tensor in trained.items():
        expected = tuple(parameters[name].shape) if name in parameters else "no such tensor"
        if expected != tuple(tensor.shape):
            raise ValueError(f"{folder}: tensor {name!r} has shape {tuple(tensor.shape)}, the model expects {expected}")
        parameters[name].copy_(tensor)


@torch.inference_mode()
def cache_features(model, processor, pictures, views=1, batch_size=16):
    """The frozen vision part's output for each picture: [pictures, views, Q, C] on the CPU, in the model's dtype.

    Args:
        views: looks at a picture: as it is, mirrored, then random crops, every other one mirrored.
    """
    first = model.model.get_vision_features(_pixels(model, processor, [pictures[0]["image"]]))
    features = torch.empty(len(pictures), views, *first.shape[1:], dtype=first.dtype)
    for start in tqdm(range(0, len(pictures), batch_size), desc="looking at the pictures", unit="batch"):
        images = [pictures[i]["image"] for i in range(start, min(start + batch_size, len(pictures)))]
        for view in range(views):
            looks = [_view(image, view) for image in images]
            seen = model.model.get_vision_features(_pixels(model, processor, looks))
            features[start : start + len(images), view] = seen.cpu()
    return features


def _view(image, view):
    if view >= 2:
        image = random_view(image)
    return image.transpose(0) if view % 2 else image


def _pixels(model, processor, images):
    return processor.image_processor(images, return_tensors="pt")["pixel_values"].to(model.device)


def _arguments(recipe, output):
    train = recipe.train
    return TrainingArguments(
        output_dir=str(output),
        max_steps=train.steps,
        per_device_train_batch_size=train.batch_size,
        gradient_accumulation_steps=train.accumulation,
        learning_rate=train.learning_rate,
        weight_decay=train.weight_decay,
        adam_beta1=0.9,
        adam_beta2=0.999,
        adam_epsilon=1e-8,
        max_grad_norm=0.0,  # the original does not clip
        save_steps=train.save_steps,
        logging_steps=max(1, min(10, train.steps // 20)),
        logging_first_step=True,
        seed=train.seed,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        report_to="none",
    )


def use_every_core():
    """A single process on a CPU may use all of it; `accelerate launch` alone would leave it one thread."""
    if not torch.cuda.is_available() and int(os.environ.get("WORLD_SIZE", "1")) == 1:
        # Not on every system can a process be held to some of the cores.
        torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())


def _prepare_output(recipe):
    """The output folder with the recipe in it; an unfinished run of another recipe is not overwritten."""
    output = Path(recipe.output)
    try:
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output):
            pass
    except OSError as error:
        raise ValueError(f"{output}: the output folder cannot be written ({error.strerror})") from error
    written = output / RECIPE_FILE
    before = written.read_text(encoding="utf-8") if written.is_file() else None
    if before not in (None, recipe.as_yaml()) and _unfinished(output):
        raise ValueError(
            f"{output}: holds an unfinished run of another recipe; remove the folder, or choose another with --set output="
        )
    recipe.save(written)
    return output


def resumable(recipe):
    """Whether the recipe's output folder holds a checkpoint of an unfinished run of it."""
    return _unfinished(Path(recipe.output)) is not None


def _unfinished(output):
    """The last checkpoint of an unfinished run, or None: a finished one leaves none."""
    return get_last_checkpoint(output) if output.is_dir() else None


def _print_batch(recipe, trainer, dataset):
    train, world = recipe.train, trainer.args.world_size
    total = train.batch_size * train.accumulation * world
    trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    print(
        f"stage {recipe.stage}: {train.steps} steps x {total} ({train.batch_size} a device x {train.accumulation} "
        f"accumulated x {world} processes), {len(dataset)} texts about {len(dataset.pictures)} pictures, "
        f"{trained:,} of {sum(p.numel() for p in trainer.model.parameters()):,} parameters trained"
    )


def _finish(trainer, output, seconds, seconds_per_step):
    """Writes the trained model as a light repository and summary.json; removes the checkpoints."""
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    summary = {
        "stage": trainer.recipe.stage,
        "steps": trainer.state.global_step,
        "seed": trainer.recipe.train.seed,
        "first_loss": history[0]["loss"],
        "last_loss": history[-1]["loss"],
        "losses": [[entry["step"], entry["loss"]] for entry in history],
        "seconds": round(seconds, 1),
        "seconds_per_step": round(seconds_per_step, 3),
        "peak_rss_mb": peak_rss_mb(),
        "versions": versions(),
    }
    if trainer.is_world_process_zero():
        trainer._save(str(output / "model"))
        write_json(output / "summary.json", summary)
    for checkpoint in output.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    return summary


def versions():
    """Versions of what a figure depends on."""
    return {"minigpt4": minigpt4.__version__, "torch": torch.__version__, "transformers": transformers.__version__}


def peak_rss_mb():
    """Peak resident memory of this process so far, in MB (10^6 bytes)."""
    memory = psutil.Process().memory_info()
    try:
        import resource

        return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6)
    except ImportError:  # Windows has it in psutil instead
        return round(memory.peak_wset / 1e6)


def _fsync(folder):
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
