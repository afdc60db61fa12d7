"""The HF Trainer with MiniGPT-4's additions: the original's schedule, light checkpoints, exactly resumable streams."""

import math
import signal
import time
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import IterableDataset
from torchdata.stateful_dataloader import StatefulDataLoader
from transformers import Trainer
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..durable_files import write_json
from ..hub.export import export
from ..modeling_minigpt4.light import own_tensors
from ..modeling_minigpt4.lora import has_lora
from ..processing.collator import IGNORE
from ..processing.data.samples import DroppedSamples
from ..processing.data.streams import unit_states
from .callbacks import EpochBegins
from .checkpoints import STEP_FILE, load_trained, replacing_checkpoint
from .frozen_llm import FrozenLLM
from .standardized import StandardizedAdamW
from .throughput import Throughput
from .validation import greedy_answers

# How close the first loss may be to that of a uniform distribution over all tokens.
UNIFORM = 0.02


def learning_rate(step, train, total_steps, steps_per_epoch):
    """The original's schedule: a linear warm-up, then a cosine that counts from step 0.

    So the rate drops when warm-up ends, and warm-up counts its steps within the epoch (LAVIS's
    `LinearWarmupCosineLRScheduler`). `train`: a `TrainSection`; returns the learning rate of a step (0 is the first).
    """
    peak, low = train.learning_rate, train.min_learning_rate
    if step < train.warmup_steps:
        climb = (peak - train.warmup_learning_rate) * (step % steps_per_epoch) / train.warmup_steps
        return min(peak, train.warmup_learning_rate + climb)
    return (peak - low) * 0.5 * (1 + math.cos(math.pi * step / total_steps)) + low


class MiniGPT4Trainer(Trainer):
    """HF Trainer with the original's schedule, light and atomic checkpoints, and figures of its speed in the log.

    Args:
        recipe: the `Recipe` that is run.
        lengths: number of tokens of each training example; batches consist of examples of similar length (less padding).
        cached: whether the examples have the vision parts' output instead of images.
        Everything else: see `transformers.Trainer`. A training data set that is a stream (`TrainingStream`) has its
        position saved in each checkpoint, and is already split over the processes.
    """

    def __init__(self, *args, recipe, lengths=None, cached=False, **kwargs):
        with _trainable_though_quantized(kwargs.get("model")):
            super().__init__(*args, **kwargs)
        self.recipe = recipe
        self.lengths = lengths
        self.throughput = Throughput(self.model, self.args.world_size, cached)
        self.stream = self.train_dataset if isinstance(self.train_dataset, IterableDataset) else None
        self.dropped = DroppedSamples(recipe.data.max_dropped_share) if self.stream is not None else None
        self._buckets = None
        self.add_callback(EpochBegins(self._begin_epoch))
        self._finite = torch.tensor(True, device=self.args.device)
        self.frozen_llm = FrozenLLM(self.model, recipe.train.tokens_at_once, recipe.train.float8)

    @property
    def global_batch(self):
        """Number of examples per step, over all processes."""
        return self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size

    # The optimizer, the schedule and the data

    def create_optimizer(self, model=None):
        """The library's AdamW; with `train.standardize` its updates are those of a projection with standardized inputs."""
        if self.optimizer is None and self.recipe.train.standardize:
            groups = super().create_optimizer(model).param_groups
            projection = self.accelerator.unwrap_model(self.model).base_model.projection
            self.optimizer = StandardizedAdamW(groups, projection, self._features_to_standardize())
        return super().create_optimizer(model)

    def _features_to_standardize(self):
        train, features = self.recipe.train, getattr(self.train_dataset, "features", None)
        if features is None or self.recipe.model.projection_layers > 1 or train.weight_decay > 0:
            raise ValueError(
                "train.standardize is for one linear projection over cached features, without weight decay; set "
                "train.cache_features=true, model.projection_layers=1 and train.weight_decay=0, or train.standardize=false"
            )
        return features

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
        # As many as all processes take in a step: a step has the same examples however it is split.
        self._buckets = LengthBuckets(self.global_batch, lengths=self.lengths, seed=self.args.seed)
        return self._buckets

    def _begin_epoch(self, epoch):
        if self._buckets is not None:
            self._buckets.set_epoch(epoch)
            self.train_dataset.set_epoch(epoch)

    def get_train_dataloader(self):
        """The library's, or for a stream torchdata's, which tracks the position in it."""
        if self.stream is None:
            return super().get_train_dataloader()
        workers = self.args.dataloader_num_workers
        self._stream_loader = StatefulDataLoader(
            self.stream,
            batch_size=self.args.train_batch_size,
            collate_fn=self._collate,
            num_workers=workers,
            pin_memory=self.args.dataloader_pin_memory,
            prefetch_factor=4 if workers else None,
            worker_init_fn=_leave_signals_to_the_trainer,
            generator=torch.Generator().manual_seed(self.args.seed),  # otherwise a resumed run draws one more number
        )
        return self._stream_loader

    def _collate(self, examples):
        dropped = [sample for example in examples for sample in example["dropped"]]
        return {**self.data_collator(examples), "used": len(examples), "dropped": dropped}

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """The batches of a step, counting images, tokens, seconds waited and samples dropped."""
        asked = time.monotonic()
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.throughput.counts.waited += time.monotonic() - asked
        for batch in batches:
            if self.stream is not None:
                self.dropped.add(batch.pop("used"), batch.pop("dropped"))
                self.dropped.check()
            self.throughput.counts.add(batch)
        return batches, num_items

    # The loss

    def compute_loss(self, *args, **kwargs):
        """The library's loss, computed the fast way through the frozen LLM."""
        with self.accelerator.autocast(), self.frozen_llm:
            return super().compute_loss(*args, **kwargs)

    def _prepare_input(self, data):
        """The library's, without waiting until a tensor has been copied."""
        if isinstance(data, torch.Tensor) and not self.is_deepspeed_enabled:
            return data.to(self.args.device, non_blocking=True)
        return super()._prepare_input(data)

    def training_step(self, *args, **kwargs):
        """The library's; also records, without waiting for the device, whether the loss is a number."""
        loss = super().training_step(*args, **kwargs)
        self._finite &= torch.isfinite(loss)
        return loss

    def log(self, logs, *args, **kwargs):
        """The library's, plus figures of the speed; raises ValueError if the loss shows that something is broken."""
        if "loss" in logs:
            self._check_finite()
            self._check_first(float(logs["loss"]))
            logs.update(self.throughput.figures())
        super().log(logs, *args, **kwargs)

    def _check_finite(self):
        if not self._finite:
            raise ValueError(
                f"the loss at step {self.state.global_step} is not a finite number: the LLM's or the vision tower's weights "
                "overflow in this dtype, or the learning rate is too high; try model.dtype=bfloat16 (or float32), or a "
                "smaller train.learning_rate; the last checkpoint is from before"
            )

    def _check_first(self, loss):
        vocabulary = self.accelerator.unwrap_model(self.model).config.text_config.vocab_size
        uniform = math.log(vocabulary)
        if self.recipe.train.check_first_loss and self.state.global_step == 1 and abs(loss - uniform) < UNIFORM:
            raise ValueError(
                f"the first loss is {loss:.3f}, that of guessing among all {vocabulary} tokens (ln {vocabulary} = "
                f"{uniform:.3f}): the LLM's weights are broken or missing (a delta that was not applied, an incomplete "
                "download); check that it writes sensible text on its own, or set train.check_first_loss=false"
            )

    # Validation

    def evaluation_loop(self, *args, metric_key_prefix="eval", **kwargs):
        """The library's, except for the loss: the mean over answer tokens, however the answers are batched."""
        self._validated = torch.zeros(2, device=self.args.device)
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        summed, tokens = self.accelerator.reduce(self._validated).tolist()
        output.metrics[f"{metric_key_prefix}_loss"] = summed / tokens
        self.throughput.restart()
        return output

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """(loss, ids of greedy answers, labels) of a batch; the last two only if metrics need them."""
        inputs = {name: value for name, value in self._prepare_inputs(inputs).items() if name != "plan"}
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = model(**inputs).loss
        tokens = (inputs["labels"][:, 1:] != IGNORE).sum()
        self._validated += torch.stack([loss.float() * tokens, tokens])
        if prediction_loss_only:
            return loss, None, None
        return (
            loss,
            greedy_answers(model, self.processing_class, inputs, self.recipe.train.max_answer_tokens),
            inputs["labels"],
        )

    def _determine_best_metric(self, metrics, trial):
        """The library's; also writes a checkpoint whenever the model is the best so far."""
        best = super()._determine_best_metric(metrics, trial)
        self.control.should_save |= best
        return best

    def _load_best_model(self):
        load_trained(self.accelerator.unwrap_model(self.model), self.state.best_model_checkpoint)

    # Checkpoints

    def _get_output_dir(self, trial):
        return getattr(self, "_aside", None) or super()._get_output_dir(trial)

    def _save_checkpoint(self, model, trial):
        """Writes the checkpoint to a scratch folder, then renames it: a kill leaves the last complete one, and the best."""
        self._check_finite()
        best = self.state.best_global_step and f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}"
        limit = self.recipe.train.save_total_limit
        with replacing_checkpoint(self.accelerator, self.args.output_dir, best, limit) as self._aside:
            super()._save_checkpoint(model, trial)
            if best:
                self._name_best(best)
            [written] = self._aside.iterdir()
            if self.args.should_save:
                write_json(written / STEP_FILE, {"global_batch": self.global_batch})
            if self.stream is not None:
                self._save_data_state(written)
        self._aside = None

    def _name_best(self, best):
        """The best checkpoint's path after the one being written has been renamed."""
        self.state.best_model_checkpoint = str(Path(self.args.output_dir) / best)
        if self.args.should_save:
            self.state.save_to_json(str(next(self._aside.iterdir()) / TRAINER_STATE_NAME))

    def save_model(self, output_dir=None, _internal_call=False):
        """Writes a light repository: the trained tensors, gathered if they are spread over the processes."""
        model = self.accelerator.unwrap_model(self.model)
        if self.is_fsdp_enabled and has_lora(model):
            raise ValueError("LoRA adapters cannot be saved from FSDP2; use configuration/accelerate/ddp.yaml")
        trained = own_tensors(model) if self.is_fsdp_enabled else None
        if self.args.should_save:
            export(model, self.processing_class, output_dir or self.args.output_dir, light=True, trained=trained)
        self.accelerator.wait_for_everyone()  # others add to the folder only afterwards

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        load_trained(model or self.model, resume_from_checkpoint)

    def _save_optimizer_and_scheduler(self, output_dir):
        if not self.is_fsdp_enabled:
            return super()._save_optimizer_and_scheduler(output_dir)
        # The library would also write the frozen weights.
        from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

        state = get_optimizer_state_dict(self.model, self.optimizer.optimizer, options=_whole_tensors())
        if self.args.should_save:
            torch.save(state, Path(output_dir) / OPTIMIZER_NAME)
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_optimizer_and_scheduler(self, checkpoint):
        if checkpoint is None:
            return
        if not self.is_fsdp_enabled:
            super()._load_optimizer_and_scheduler(checkpoint)
        else:
            from torch.distributed.checkpoint.state_dict import set_optimizer_state_dict

            state = torch.load(Path(checkpoint) / OPTIMIZER_NAME, weights_only=True)
            set_optimizer_state_dict(self.model, self.optimizer.optimizer, state, options=_whole_tensors())
            self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True))
        if self.stream is not None:
            self._load_data_state(Path(checkpoint))

    def _save_data_state(self, checkpoint):
        """Saves this process's position in the stream, in a file of its own."""
        state = {
            "workers": self.args.dataloader_num_workers,
            "loader": self._stream_loader.state_dict(),
            "deal": self.stream.deal,
            "dropped": self.dropped.state_dict(),
        }
        torch.save(state, checkpoint / f"data_state_{self.args.process_index}_of_{self.args.world_size}.pt")

    def _load_data_state(self, checkpoint):
        """Continues the stream: exactly or, with another number of processes or workers, with a share of what is left."""
        files = sorted(checkpoint.glob("data_state_*_of_*.pt"))
        states = {path.name: torch.load(path, weights_only=True) for path in files}
        if not states:
            raise ValueError(f"{checkpoint}: no data_state_*.pt in it, so the place in the stream is not known")
        mine = states.get(f"data_state_{self.args.process_index}_of_{self.args.world_size}.pt")
        if mine is not None and mine["workers"] == self.args.dataloader_num_workers:
            self.stream.deal = mine["deal"]
            self._stream_loader.load_state_dict(mine["loader"])
            self.dropped.load_state_dict(mine["dropped"])
            return
        units = [unit for state in states.values() for unit in unit_states(state["loader"])]
        self.stream.redeal(units, next(iter(states.values()))["deal"])
        if self.args.process_index == 0:  # it continues the count for all
            self.dropped.load_state_dict(*(state["dropped"] for state in states.values()))


class LengthBuckets(LengthGroupedSampler):
    """Batches of similar length in an order that depends only on seed and epoch: a resumed run has the same.

    The library's sampler goes from long to short every fifty batches. If length correlates with the kind of example, as in
    composed scenes, the model would forget one kind while it is trained on the other.
    """

    def __init__(self, *args, seed, **kwargs):
        super().__init__(*args, **kwargs)
        self.seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch):
        """Sets the epoch, which determines the order."""
        self.generator = torch.Generator().manual_seed(self.seed + epoch)

    def __iter__(self):
        indices = list(super().__iter__())
        batches = [indices[start : start + self.batch_size] for start in range(0, len(indices), self.batch_size)]
        whole = len(indices) // self.batch_size
        order = [*torch.randperm(whole, generator=self.generator).tolist(), *range(whole, len(batches))]
        return iter([index for position in order for index in batches[position]])


@contextmanager
def _trainable_though_quantized(model):
    """The library trains quantized models only with peft's adapters: it does not know about the fp32 projection."""
    quantized = getattr(model, "is_quantized", False)
    try:
        if quantized:
            model.is_quantized = False
        yield
    finally:
        if quantized:
            model.is_quantized = True


def _whole_tensors():
    from torch.distributed.checkpoint.state_dict import StateDictOptions

    return StateDictOptions(full_state_dict=True, cpu_offload=True)


def _leave_signals_to_the_trainer(worker):
    """Ctrl-C reaches every process of a terminal: the worker ignores it, as it is needed until the trainer has saved."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
