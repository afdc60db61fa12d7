"""Callbacks around the training steps: stopping on a signal, the progress bar, captions of fixed images."""

import signal

import torch
from torch import distributed
from transformers import TrainerCallback
from transformers.trainer_callback import ProgressCallback

from ..durable_files import append_lines
from .describe import describe

_SHOWN = {
    "learning_rate": ("lr", "{:.1e}"),
    "images_per_second": ("img/s", "{:.1f}"),
    "tokens_per_second": ("tok/s", "{:.0f}"),
    "data_wait": ("wait", "{:.0%}"),
    "mfu": ("mfu", "{:.0%}"),
}


class StopOnSignal(TrainerCallback):
    """At Ctrl-C or SIGTERM: ends the step, saves a checkpoint and stops; `signum` says which it was.

    Several processes stop at the same step even if only one got the signal: they exchange it on the CPU, through gloo, and
    read the result one step later, so no process has to wait.
    """

    def __init__(self):
        self.signum = None
        self._noted = self._group = self._told = self._work = None
        self._before = {signum: signal.signal(signum, self._note) for signum in (signal.SIGINT, signal.SIGTERM)}

    def _note(self, signum, frame):
        if self._noted is not None:  # a second one does not wait
            raise KeyboardInterrupt
        self._noted = signum

    def on_step_end(self, args, state, control, **kwargs):
        """Asks the Trainer to save and to stop."""
        self.signum = self._from_all(state) if distributed.is_initialized() else self._noted
        if self.signum is not None:
            control.should_save = control.should_training_stop = True

    def _from_all(self, state):
        """The signal that any process had received by the end of the previous step, or of the last step, or None."""
        told = None
        if self._group is None:
            self._group = distributed.new_group(backend="gloo")
        else:
            self._work.wait()
            told = int(self._told) or None
        self._told = torch.tensor(self._noted or 0)
        self._work = distributed.all_reduce(self._told, distributed.ReduceOp.MAX, self._group, async_op=True)
        if state.global_step < state.max_steps:
            return told
        self._work.wait()
        return int(self._told) or None

    def on_train_end(self, args, state, control, **kwargs):
        """Restores the signal handlers."""
        if self._work is not None:
            self._work.wait()
        for signum, handler in self._before.items():
            signal.signal(signum, handler)


class EpochBegins(TrainerCallback):
    """Calls `tell(epoch)` when an epoch begins; a resumed run begins in the epoch it was stopped in.

    The libraries also call `set_epoch`, but neither on a sampler inside the wrappers of a resumed run on several processes,
    nor on a data set whose sampler has that method.
    """

    def __init__(self, tell):
        self.tell = tell

    def on_epoch_begin(self, args, state, control, **kwargs):
        """Before the first batch of the epoch is drawn."""
        self.tell(int(state.epoch or 0))


class KeepModel(TrainerCallback):
    """Saves the model after given steps, as a light repository in OUTPUT/step-N.

    Args:
        steps: the steps; the first is 1.
        save: `Trainer.save_model`.
    """

    def __init__(self, steps, save):
        self.steps, self.save = frozenset(steps), save

    def on_step_end(self, args, state, control, **kwargs):
        """Every process saves: a sharded model needs them all."""
        if state.global_step in self.steps:
            self.save(f"{args.output_dir}/step-{state.global_step}")


class LiveLoss(ProgressCallback):
    """The Trainer's progress bar with loss, learning rate and speed next to it, instead of a line for each."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Shows the newest figures."""
        if self.training_bar is not None and "loss" in (logs or {}):
            shown = {label: form.format(logs[name]) for name, (label, form) in _SHOWN.items() if name in logs}
            self.training_bar.set_postfix(loss=f"{float(logs['loss']):.3f}", **shown)
        if self.training_bar is not None and "eval_loss" in (logs or {}):
            others = ", ".join(f"{name} {logs[f'eval_{name}']:.3f}" for name in ("cider", "bleu4") if f"eval_{name}" in logs)
            said = f"step {state.global_step}: validation loss {logs['eval_loss']:.4f}"
            self.training_bar.write(f"{said}, {others}" if others else said)


class SampleAnswers(TrainerCallback):
    """Records what the model says about the same few images: before the first step, at intervals, and after the last.

    Each record is a JSON line {"step", "answers"} in `path`. Every process takes part: a sharded model needs them all.

    Args:
        pictures: PIL pictures.
        stage: 1 for captions, 2 for detailed answers.
        every: steps between records; 0 for only the first and the last.
        path: the file to append to.
    """

    def __init__(self, pictures, stage, every, path):
        self.pictures, self.stage, self.every, self.path = pictures, stage, every, path

    def on_train_begin(self, args, state, control, **kwargs):
        """The record before training; a resumed run already has it."""
        if state.global_step == 0:
            self._look(state, **kwargs)

    def on_step_end(self, args, state, control, **kwargs):
        """The records at intervals and the last."""
        due = self.every and state.global_step % self.every == 0
        if due or state.global_step == state.max_steps:
            self._look(state, **kwargs)

    def _look(self, state, model, processing_class, **kwargs):
        texts = describe(model, processing_class, self.pictures, self.stage)
        if state.is_world_process_zero:
            append_lines(self.path, [{"step": state.global_step, "answers": texts}])
            print(f"step {state.global_step}: " + " | ".join(texts))
