"""Training of both stages with the HF Trainer: only the projection is trained.

    recipe -> model, processor, data -> MiniGPT4Trainer -> output folder: a light repository, summary.json

An unfinished run resumes from its last checkpoint (checkpoints.py). Ctrl-C and SIGTERM save one first.
"""

import importlib.util
import json
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import psutil
import torch
import transformers
from accelerate import PartialState
from accelerate.utils import gather_object
from huggingface_hub import get_token
from tqdm.auto import tqdm
from transformers import TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import PrinterCallback, ProgressCallback, TrainerState
from transformers.utils import logging

import minigpt4

from ..configuration.configuration_minigpt4 import MiniGPT4Config
from ..configuration.recipe import ModelSection, same_training
from ..durable_files import write_json
from ..hub.from_parts import load_tokenizer
from ..inference.devices import loading
from ..inference.named_models import load
from ..modeling_minigpt4.embedded import load_embedded
from ..modeling_minigpt4.light import MiniGPT4ForConditionalGeneration
from ..modeling_minigpt4.lora import add_lora
from ..processing.chat_templates import TEMPLATES
from ..processing.collator import MiniGPT4DataCollator
from ..processing.data.datasets import PictureTexts, random_view, training_data
from ..processing.data.streams import training_stream
from ..processing.processing_minigpt4 import MiniGPT4Processor
from .callbacks import KeepModel, LiveLoss, SampleAnswers, StopOnSignal
from .checkpoints import STEP_FILE, last_checkpoint, load_trained, remove_checkpoints, step_of
from .global_batch import share_batch
from .trainer import MiniGPT4Trainer
from .validation import StopEarly, answer_metrics, validate_while_training

logger = logging.get_logger(__name__)

RECIPE_FILE = "recipe.yaml"
SAMPLES_FILE = "samples.jsonl"
SHOWN = 4  # default number of sample images during training; for a stream, they are kept out of training
SPEED = ("images_per_second", "tokens_per_second", "data_wait", "mfu")


def train(recipe, model=None, processor=None, dataset=None, resume=True):
    """Runs a recipe; returns the trained model, its processor and the contents of summary.json.

    Args:
        recipe: a `Recipe`.
        model, processor: what to train, if already loaded; by default from recipe.model.
        dataset: a `PictureTexts`, if already loaded; by default from recipe.data.
        resume: continue from the last checkpoint of an unfinished run in the output folder; otherwise that is removed.

    Raises:
        ValueError: the output folder has an unfinished run of another recipe, or cannot be written; the processes cannot
            split the recipe's global batch; a step in keep_steps does not exist; the loss shows that something is broken.
        SystemExit: status 130 or 143 after Ctrl-C or SIGTERM, once the checkpoint is written.
    """
    started = time.monotonic()
    use_every_core()
    arguments = _arguments(recipe)
    arguments._setup_devices  # noqa: B018 - with several processes this is where they meet
    arguments._n_gpu = min(1, arguments._n_gpu)  # one GPU per process, or the Trainer would multiply its batches
    processes = arguments.distributed_state
    written, recipe = recipe, share_batch(recipe, processes.num_processes)
    arguments.per_device_train_batch_size = recipe.train.batch_size
    arguments.gradient_accumulation_steps = recipe.train.accumulation
    _check_kept(recipe.train)
    _check_space(recipe.train)
    if processes.is_main_process:
        _prepare_output(written, resume)
    processes.wait_for_everyone()
    transformers.set_seed(recipe.train.seed)
    if model is None:
        model, processor = load_model(recipe.model)
    transformers.set_seed(recipe.train.seed)
    if dataset is None:
        dataset = _load_data(recipe, processes, max(model.config.image_size))
    trainer = _make_trainer(recipe, arguments, model, processor, dataset)
    if processes.is_main_process:
        _print_batch(recipe, trainer, dataset)
    seconds_per_step = _run(trainer)
    model.eval()
    return model, processor, _finish(trainer, dataset, time.monotonic() - started, seconds_per_step)


def _make_trainer(recipe, arguments, model, processor, dataset):
    """The Trainer with its callbacks; the vision parts' output is computed here if the recipe caches it."""
    if recipe.train.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})  # the reentrant kind needs inputs with gradients
    plan = not recipe.train.compile  # the compiler would recompile for each one
    collator = MiniGPT4DataCollator(processor, max_answer_tokens=recipe.train.max_answer_tokens, plan=plan)
    small = isinstance(dataset, PictureTexts)  # not a stream
    if small and recipe.train.cache_features and recipe.data.random_crop:
        raise ValueError(
            "data.random_crop crops a picture each time it is used, and train.cache_features looks at it once; set "
            "train.cache_features=false, or data.views=4 for cached crops"
        )
    validation = getattr(dataset, "validation", None)
    metrics = None
    if validation is not None:
        validate_while_training(arguments, recipe.train)
        metrics = None if recipe.train.metric == "loss" else answer_metrics(processor, recipe.stage)
    trainer = MiniGPT4Trainer(
        model=model,
        args=arguments,
        train_dataset=dataset,
        eval_dataset=validation,
        compute_metrics=metrics,
        data_collator=collator,
        processing_class=processor,
        recipe=recipe,
        lengths=[len(collator.encode(text)[0]) for text in dataset.texts] if small else None,
        cached=small and recipe.train.cache_features,
    )
    if small:
        if recipe.train.cache_features and dataset.features is None:  # the Trainer has moved the model to its device
            dataset.features = cache_features(model, processor, dataset.pictures, recipe.data.views)
        dataset.feature_dropout, dataset.seed = recipe.train.feature_dropout, recipe.train.seed
        if validation is not None and recipe.train.cache_features:
            validation.features = _features_for_validation(model, processor, dataset)
    _choose_callbacks(trainer, dataset)
    return trainer


def _features_for_validation(model, processor, dataset):
    """[images, 1, Q, C]: for a share of the training's own images, the first view is already cached."""
    if dataset.validation.pictures is dataset.pictures:
        return dataset.features[:, :1]
    return cache_features(model, processor, dataset.validation.pictures)


def _run(trainer):
    """Trains, from the last checkpoint if there is one; returns seconds per step. SystemExit after a signal."""
    output, steps = trainer.args.output_dir, trainer.args.max_steps
    stop = StopOnSignal()
    trainer.add_callback(stop)
    checkpoint = last_checkpoint(output)
    begun = step_of(checkpoint) if checkpoint else 0
    if checkpoint:
        _check_step(trainer, Path(checkpoint))
    started = time.monotonic()
    if begun < steps:
        trainer.train(resume_from_checkpoint=checkpoint)
    else:  # killed after its last step; the Trainer would run another one
        load_trained(trainer.model, checkpoint)
        trainer.state = TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME))
        if trainer.state.best_model_checkpoint is not None:
            load_trained(trainer.model, trainer.state.best_model_checkpoint)
    if stop.signum is not None:
        if trainer.is_world_process_zero():
            print(f"stopped; the checkpoint is in {output}, the same command continues from it")
        raise SystemExit(128 + stop.signum)
    return (time.monotonic() - started) / max(1, trainer.state.global_step - begun)


def _check_step(trainer, checkpoint):
    """Raises ValueError if this run's steps differ from those of the run that wrote the checkpoint."""
    path = checkpoint / STEP_FILE
    before = json.loads(path.read_text("utf-8"))["global_batch"] if path.is_file() else trainer.global_batch
    if before != trainer.global_batch:
        raise ValueError(
            f"{checkpoint}: its steps took {before} examples, with {trainer.args.world_size} processes these would take "
            f"{trainer.global_batch}; set train.global_batch={before}"
        )


def _load_data(recipe, processes, image_size):
    """The data section, with the vision tower's `image_size` if the recipe has none."""
    data = replace(recipe.data, image_size=recipe.data.image_size or image_size)
    if data.streaming and recipe.train.sample_steps:
        data = replace(data, held_out=data.held_out or SHOWN)
    if not data.streaming:
        return training_data(data, recipe.stage)
    return training_stream(data, recipe.stage, recipe.train.seed, processes.process_index, processes.num_processes)


def load_model(section):
    """(model, processor) for a recipe's model section: base or parts, projection, trained parts, attention.

    Trained parts compute in fp32, the frozen rest in the section's dtype.
    """
    projection = Path(section.projection)
    if section.projection not in ("fresh", "base") and not (projection / "model.safetensors").is_file():
        raise ValueError(
            f'model.projection is {section.projection!r}: no model.safetensors there; expected "fresh", "base" or the '
            "output folder of an earlier stage"
        )
    model, processor = load_parts(section) if section.text else _load_base(section)
    if model.config.base_parts is None:  # saves are light in any case
        base = Path(section.base)
        model.config.base_parts = {"model": {"repo": str(base.absolute() if base.is_dir() else base), "revision": None}}
    model.config.trained_parts = list(section.trained_parts)
    model.freeze()
    if hasattr(model, "hf_device_map"):
        del model.hf_device_map  # one device; the Trainer would think the model is split over several
    if section.lora_rank:
        add_lora(model, section.lora_rank, section.lora_alpha, target_modules=section.lora_targets)
    if section.projection == "fresh":
        model.draw_projection()
    elif section.projection != "base":
        load_trained(model, projection)
        _warn_of_another_llm(projection, model.config)
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype != torch.float32:
            parameter.data = parameter.data.float()
    attending = ["", "qformer_config"]
    if section.attn_implementation != "sdpa" or model.model.language_model._supports_sdpa:
        attending.append("text_config")  # otherwise it keeps its own, eager: Gemma-2's soft cap on attention
    if model.model.vision_tower._supports_sdpa:  # a tower of convolutions has no attention to choose
        attending.append("vision_config")
    model.set_attn_implementation(dict.fromkeys(attending, section.attn_implementation))
    return model, processor


def load_on():
    """The device that tensors are read to directly, so that no process has the model in host memory first.

    None means host memory, for CPUs and for FSDP2, where only the first process of a machine reads (see `assemble`, and
    `fsdp_cpu_ram_efficient_loading` in fsdp2.yaml) and the others get their shards from it.
    """
    device = PartialState().device
    sharded = os.environ.get("ACCELERATE_USE_FSDP", "false") == "true"
    return None if device.type == "cpu" or sharded else device


def _warn_of_another_llm(projection, config):
    """Warns if the previous stage was trained with another LLM, whose shapes may be the same."""
    before, now = (
        (parts or {}).get("language_model", {}).get("repo")
        for parts in (MiniGPT4Config.from_pretrained(projection).base_parts, config.base_parts)
    )
    if before and now and before != now:
        logger.warning(
            f"{projection}: this projection was trained with {before}, and continues with {now}; if these are not the same "
            "weights in two places, its visual tokens mean nothing to that LLM"
        )


def load_parts(section, **parts):
    """(model, processor) from the parts that a model section names; `parts`: further ones, see `from_parts`."""
    if section.projection == "base":
        raise ValueError(
            'model.projection is "base", but model.text names parts, which have none; expected "fresh" or a folder'
        )
    if not section.qformer:
        parts["qformer"] = None
    template = _template(section.template)
    model = MiniGPT4ForConditionalGeneration.from_parts(
        vision=section.vision,
        text=section.text,
        image_token=section.image_token or None,
        template=template,
        config=part_fields(section),
        **parts,
        **loading(load_on(), section.dtype, section.load_in or None),
    )
    return model, MiniGPT4Processor.for_model(model.config, load_tokenizer(section.text), template)


def part_fields(section):
    """A model section's settings for its parts, as fields of `MiniGPT4Config`."""
    fields = {name: getattr(section, name) for name in ("projection_layers", "patch_fit", "vision_feature_layer")}
    return fields | ({"patch_merge": section.patch_merge} if section.patch_merge else {})


def _template(named):
    """A recipe's chat template: one of our names, or a file's text; None for the LLM's own."""
    if not named or named in TEMPLATES:
        return named or None
    try:
        return Path(named).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"model.template is {named!r}: no such file; expected {', '.join(TEMPLATES)} or a file with a Jinja template"
        ) from error


def _load_base(section):
    default = ModelSection()
    for name in ("patch_merge", "patch_fit", "vision_feature_layer", "image_token", "template"):
        if getattr(section, name) != getattr(default, name):
            raise ValueError(
                f"model.{name} is {getattr(section, name)!r}, but the base {section.base} has its own; it is for a model "
                "built from parts: set model.vision and model.text, or build a base with it by `minigpt4 build`"
            )
    if section.base == "embedded" and section.projection != "base":
        arguments = loading(load_on(), section.dtype, section.load_in or None)
        return load_embedded(projection=None, loading=arguments, projection_layers=section.projection_layers)
    return load(section.base, dtype=section.dtype, device=load_on(), load_in=section.load_in or None)


@torch.inference_mode()
def cache_features(model, processor, pictures, views=1, batch_size=16):
    """The frozen vision parts' output for each image: [images, views, Q, C] on the CPU, in the model's dtype.

    Args:
        views: number of views: the image as it is, mirrored, then random crops, every other one mirrored.
    """
    first = model.model.get_vision_features(_pixels(model, processor, [pictures[0]["image"]]))
    features = torch.empty(len(pictures), views, *first.shape[1:], dtype=first.dtype)
    generator = torch.Generator().manual_seed(0)  # a resumed run gets the same views
    for start in tqdm(range(0, len(pictures), batch_size), desc="looking at the pictures", unit="batch"):
        images = [pictures[i]["image"] for i in range(start, min(start + batch_size, len(pictures)))]
        for view in range(views):
            looks = [_view(image, view, generator) for image in images]
            seen = model.model.get_vision_features(_pixels(model, processor, looks))
            features[start : start + len(images), view] = seen.cpu()
    return features


def _view(image, view, generator):
    if view >= 2:
        image = random_view(image, generator)
    return image.transpose(0) if view % 2 else image


def _pixels(model, processor, images):
    return processor.image_processor(images, return_tensors="pt")["pixel_values"].to(model.device)


def _arguments(recipe):
    train = recipe.train
    return TrainingArguments(
        output_dir=recipe.output,
        max_steps=train.steps,
        learning_rate=train.learning_rate,
        weight_decay=train.weight_decay,
        adam_beta1=0.9,
        adam_beta2=train.adam_beta2,
        adam_epsilon=1e-8,
        max_grad_norm=0.0,  # the original does not clip
        save_steps=train.save_steps,
        logging_steps=max(1, min(10, train.steps // 20)),
        logging_first_step=True,
        logging_nan_inf_filter=False,  # MiniGPT4Trainer raises an error instead
        seed=train.seed,
        use_cpu=not torch.accelerator.is_available(),  # otherwise several processes could not communicate
        torch_compile=train.compile,
        remove_unused_columns=False,
        dataloader_num_workers=train.workers,
        dataloader_pin_memory=torch.cuda.is_available(),
        ignore_data_skip=recipe.data.streaming,  # a stream keeps its own position
        report_to=train.report_to or "none",
        trackio_space_id=train.trackio_space or None,
    )


def _check_space(train):
    """Raises ValueError for a Space that trackio cannot write to."""
    if not train.trackio_space:
        return
    if "trackio" not in train.report_to:
        raise ValueError(
            f"train.trackio_space is {train.trackio_space}, but nothing reports there; set train.report_to=[trackio]"
        )
    if get_token() is None:
        raise ValueError(f"train.trackio_space is {train.trackio_space}, which needs a token; log in with `hf auth login`")


def _check_kept(train):
    """Raises ValueError for a step in keep_steps that the run does not have."""
    if never := sorted({*train.keep_steps} - {*range(1, train.steps + 1)}):
        raise ValueError(f"train.keep_steps holds {never[0]}; expected steps of the run, 1 to {train.steps}")


def _choose_callbacks(trainer, dataset):
    """The progress bar, and samples of fixed images if the recipe asks for any."""
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(LiveLoss)
    trainer.add_callback(KeepModel(trainer.recipe.train.keep_steps, trainer.save_model))
    recipe = trainer.recipe
    if recipe.train.early_stopping:
        if trainer.eval_dataset is None:
            raise ValueError("train.early_stopping needs data.validation or data.validation_share")
        trainer.add_callback(StopEarly(recipe.train.early_stopping))
    pictures = [row["image"] for row in _pictures_to_show(recipe, dataset)]
    if pictures:
        path = Path(recipe.output) / SAMPLES_FILE
        trainer.add_callback(SampleAnswers(pictures, recipe.stage, recipe.train.sample_steps, path))


def _pictures_to_show(recipe, dataset):
    """Rows with the sample images: those held out of training, or else the first few if samples are requested."""
    held_out = getattr(dataset, "held_out", None)
    if held_out:
        return held_out
    if not recipe.train.sample_steps:
        return []
    return [dataset.pictures[i] for i in range(min(SHOWN, len(dataset.pictures)))]


def use_every_core():
    """Lets a single process use the whole CPU; `accelerate launch` by itself would limit it to one thread."""
    if not torch.cuda.is_available() and int(os.environ.get("WORLD_SIZE", "1")) == 1:
        # Not every system supports CPU affinity.
        torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())


def _prepare_output(recipe, resume):
    """The output folder with the recipe in it; an unfinished run of another recipe is not overwritten."""
    output = Path(recipe.output)
    try:
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output):
            pass
    except OSError as error:
        raise ValueError(f"{output}: the output folder cannot be written ({error.strerror})") from error
    if not resume:
        remove_checkpoints(output)
    written = output / RECIPE_FILE
    # Without its recipe, say when the folder was moved while the run was being stopped, nobody knows whose checkpoint it is.
    if last_checkpoint(output) and not same_training(written, recipe):
        raise ValueError(
            f"{output}: has an unfinished run of another recipe; remove the folder, choose another with --set output=, or "
            "start over with --resume never"
        )
    if last_checkpoint(output) is None:
        (output / SAMPLES_FILE).unlink(missing_ok=True)
    recipe.save(written)


def resumable(recipe):
    """Whether the recipe's output folder has a checkpoint of an unfinished run of it."""
    return last_checkpoint(recipe.output) is not None


def _print_batch(recipe, trainer, dataset):
    train, world, total = recipe.train, trainer.args.world_size, trainer.global_batch
    assert train.global_batch in (0, total), (train, world)
    trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    texts = f"{len(dataset)} texts about {len(dataset.pictures)} pictures" if trainer.stream is None else "streamed texts"
    print(
        f"stage {recipe.stage}: {train.steps} steps x {total} ({train.batch_size} a device x {train.accumulation} "
        f"accumulated x {world} processes), {texts}, "
        f"{trained:,} of {sum(p.numel() for p in trainer.model.parameters()):,} parameters trained"
    )


def _finish(trainer, dataset, seconds, seconds_per_step):
    """Writes the trained model as a light repository, summary.json and plots of the run; removes the checkpoints."""
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    recipe, world, output = trainer.recipe, trainer.args.world_size, Path(trainer.args.output_dir)
    summary = {
        "stage": recipe.stage,
        "steps": trainer.state.global_step,
        "global_batch": trainer.global_batch,
        "processes": world,
        "seed": recipe.train.seed,
        "first_loss": history[0]["loss"],
        "last_loss": history[-1]["loss"],
        "losses": [[entry["step"], entry["loss"]] for entry in history],
        "seconds": round(seconds, 1),
        "seconds_per_step": round(seconds_per_step, 3),
        "speed": {name: history[-1][name] for name in SPEED if name in history[-1]},
        "peak_rss_mb": peak_rss_mb(),
        "versions": versions(),
    }
    looks = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    if looks:
        summary["validation"] = [_look_at_validation(entry) for entry in looks]
        summary["best_step"] = trainer.state.best_global_step
    if trainer.stream is not None:  # each process counted its own
        states = gather_object([trainer.dropped.state_dict()])
        trainer.dropped.load_state_dict(*states)
    dropped = trainer.dropped if trainer.stream is not None else dataset.dropped
    if dropped is not None:
        summary["samples"] = dropped.state_dict()
    trainer.save_model(str(output / "model"))
    if trainer.is_world_process_zero():
        write_json(output / "summary.json", summary)
        _draw(recipe, dataset, output, summary)
        remove_checkpoints(output)
    return summary


def _look_at_validation(entry):
    """{"step", "loss", and the train.metric, if any} of an entry in the Trainer's log."""
    names = ("loss", "cider", "bleu4", "rouge_l", "repetition")
    return {"step": entry["step"], **{name: entry[f"eval_{name}"] for name in names if f"eval_{name}" in entry}}


def _draw(recipe, dataset, output, summary):
    """Writes loss.png, and samples.html with the first and last answers about the sample images."""
    if importlib.util.find_spec("matplotlib") is None:
        print("no loss.png: it needs `pip install matplotlib`")
        return
    from .looks import loss_curve, write_looks

    loss_curve(output / "loss.png", {f"stage {recipe.stage}": summary})
    path = output / SAMPLES_FILE
    if path.is_file():
        looks = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        write_looks(output / "samples.html", _pictures_to_show(recipe, dataset), looks[0], looks[-1])


def versions():
    """Versions of the software that figures depend on."""
    return {"minigpt4": minigpt4.__version__, "torch": torch.__version__, "transformers": transformers.__version__}


def peak_rss_mb():
    """Peak resident memory of this process so far, in MB (10^6 bytes)."""
    memory = psutil.Process().memory_info()
    try:
        import resource

        return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6)
    except ImportError:  # Windows has it in psutil instead
        return round(memory.peak_wset / 1e6)
