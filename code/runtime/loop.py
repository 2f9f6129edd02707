"""The training loop of stages A and B: Lightning over batches that are a function of the step, with exact resume.

The whole run is one pass of Lightning's loop over `StepBatches`. Lightning's own resume repeats and skips batches in
the middle of an epoch, so we keep the step ourselves: a resumed run starts its batches at that step.
"""

import csv
import io
import logging
import math
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Protocol

import pytorch_lightning as pl
import torch
from torch import Tensor
from tqdm import tqdm

from runtime import checkpoints, ranks
from runtime.devices import pick_device, pick_precision
from runtime.draws import Batch, StepBatches, steps_per_epoch
from runtime.errors import UserError
from runtime.runs import Run

RESUME = "resume-1"


class Items(Protocol):
    """A data set that makes a whole share of a batch at once."""

    def __len__(self) -> int: ...

    def __getitem__(self, batch: Batch) -> Any: ...


@dataclass(frozen=True)
class Schedule:
    """How long and in what portions to train."""

    batch_size: int  # items in a micro-batch, over all processes together
    num_epoch: int
    seed: int
    accumulate: int = 1
    clip_grad: float = 0.0  # largest global gradient norm; 0: no clipping
    precision: str = "auto"  # 32, bf16 or auto
    device: str = "auto"
    validate_every: int = 1  # epochs between calls of `validate` and resume points

    @classmethod
    def of(cls, cfg: Any, accumulate: int) -> "Schedule":
        """A stage's settings of the same names."""
        names = [f.name for f in fields(cls) if f.name != "accumulate"]
        return cls(accumulate=accumulate, **{name: getattr(cfg, name) for name in names})


def fit(
    module: pl.LightningModule,
    items: Items,
    run: Run,
    schedule: Schedule,
    validate: Callable[[int], dict[str, float]],
    log_to_wandb: bool = False,
) -> None:
    """Train to the end, resuming from `run.last` if it is there; under torchrun, on all processes alike.

    The module gives `training_step((batch: Batch, data), _)` -> loss already multiplied by batch.weight,
    `configure_optimizers()`, `lr_at(step)`, `training_state()` and `load_training_state(dict)` (its trained tensors),
    and `state`, a dict of plain values and tensors that must survive a stop.

    Args:
        validate: called on the first process with the epoch (from 1) every `validate_every` epochs and at the last;
            returns figures for metrics.csv.

    Raises:
        UserError: the loss is not finite, the device is not there, or its memory too small (of several processes, a
            ranks.LoneError).
        SystemExit: SIGTERM or SIGINT came; the resume point is written.
    """
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    keeper = _Keeper(run, schedule, validate, steps_per_epoch(len(items), schedule.batch_size, schedule.accumulate))
    keeper.log_to_wandb = log_to_wandb
    device = pick_device(schedule.device)
    kind = {"device": device.type, "precision": pick_precision(schedule.precision, device)}
    ranks.agree({"training items": len(items), "steps done": keeper.step} | kind)
    if keeper.resume:  # here, because Lightning calls no hook where nothing is left to train
        module.load_training_state(keeper.resume["module"])
        module.state = keeper.resume["state"]
    batches = StepBatches(
        len(items), schedule.batch_size, schedule.seed, keeper.step, keeper.last_step, schedule.accumulate,
        ranks.rank(), ranks.world(),
    )  # fmt: skip
    try:
        with ranks.signals_to(keeper.note_signal):  # also in the set-up, in which one process must not end alone
            _trainer(schedule, keeper).fit(module, _Loader(items, batches))
    except torch.OutOfMemoryError as error:
        raise (UserError if ranks.world() == 1 else ranks.LoneError)(_too_large(schedule)) from error
    finally:
        keeper.bar.close()  # so that an error begins a line
    if keeper.signal:
        name = signal.Signals(keeper.signal).name
        print(f"stopped by {name} after step {keeper.step} of {keeper.last_step}; the same command resumes there")
        sys.exit(128 + keeper.signal)


def _too_large(schedule: Schedule) -> str:
    size, where = schedule.batch_size, pick_device(schedule.device)
    if size == 1:
        return f"batch_size=1 does not fit in the memory of {where}; smaller pictures or networks, or another GPU may"
    batches = schedule.accumulate * -(-size // (size // 2))
    return (
        f"batch_size={size} does not fit in the memory of {where}; batch_size={size // 2} should, with {batches} "
        "batches in an optimizer step (accum_iter=, in stage B accumulate_grad=)"
    )


def _trainer(schedule: Schedule, keeper: pl.Callback) -> pl.Trainer:
    """Lightning's trainer with everything off that writes files, draws numbers or counts epochs."""
    device, world = pick_device(schedule.device), ranks.world()
    local = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    trainer = pl.Trainer(
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=local if world > 1 else [device.index or 0] if device.type == "cuda" else 1,
        num_nodes=world // local,
        strategy="ddp" if world > 1 else "auto",
        precision=pick_precision(schedule.precision, device),
        max_epochs=1,
        accumulate_grad_batches=schedule.accumulate,
        gradient_clip_val=schedule.clip_grad or None,
        callbacks=[keeper],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    # its own handler of SIGTERM sends to the other processes from wherever one of them is, and ends with status 0
    trainer._signal_connector.register_signal_handlers = lambda: None
    return trainer


@dataclass(frozen=True)
class _Loader:
    items: Items
    batches: StepBatches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self):
        return ((batch, self.items[batch]) for batch in self.batches)


class _Keeper(pl.Callback):
    """Learning rate, progress, validation, resume points and signals, all counted in optimizer steps of the run."""

    def __init__(self, run: Run, schedule: Schedule, validate: Callable, epoch_steps: int) -> None:
        self.run, self.schedule, self.validate, self.epoch_steps = run, schedule, validate, epoch_steps
        self.last_step = schedule.num_epoch * epoch_steps
        self.resume = checkpoints.load(run.last, (RESUME,), "resume point") if run.last.exists() else {}
        self.step: int = self.resume.get("step", 0)
        self.rows: list[dict] = self.resume.get("rows", [])
        self.losses: list[float] = self.resume.get("losses", [])
        self.micro_losses: list[float] = []
        self.noted = self.signal = 0  # of this process, and agreed on by all
        self.bar = tqdm(disable=True)

    def on_train_start(self, trainer, module) -> None:
        if self.resume:
            trainer.optimizers[0].load_state_dict(self.resume["optimizer"])
            print(f"resuming {self.run.folder} after step {self.step}")
            self.resume = {}
        wait = 0.2 if sys.stderr.isatty() else 15
        self.bar = tqdm(total=self.last_step, initial=self.step, desc="training", unit="step", mininterval=wait)

    def note_signal(self, number: int, frame: object) -> None:
        """Handler of a signal: the step that comes next is the last one; after the last, training ends as it would."""
        self.noted = number

    def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
        if batch_idx % self.schedule.accumulate == 0:
            for group in trainer.optimizers[0].param_groups:
                group["lr"] = module.lr_at(self.step)

    def on_before_backward(self, trainer, module, loss: Tensor) -> None:
        """Before the gradients are summed over the processes, so that none waits for one that has stopped."""
        value, problem = loss.item(), ""
        if not math.isfinite(value):
            problem = (
                f"{self.run.folder}: the loss is {value} at step {self.step}; the last resume point is whole: "
                "lower lr= or look for extreme samples in the EEG"
            )
        told = ranks.share((value, self.noted), problem)
        # Lightning has divided the loss by `accumulate` already, so the sum is the global batch's mean
        self.micro_losses.append(sum(value for value, _ in told) / len(told))
        self.signal = max(number for _, number in told)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        if (batch_idx + 1) % self.schedule.accumulate:
            return
        self.step += 1
        self.losses.append(sum(self.micro_losses))
        self.micro_losses.clear()
        self.bar.update()
        self.bar.set_postfix(loss=f"{self.losses[-1]:.4f}", refresh=False)
        epoch, left = divmod(self.step, self.epoch_steps)
        due = left == 0 and (epoch % self.schedule.validate_every == 0 or epoch == self.schedule.num_epoch)
        if due or self.signal:
            with ranks.together():
                if ranks.lead() and due:
                    self._validate(module, epoch)
                if ranks.lead():
                    self._save(trainer, module)
            trainer.should_stop = bool(self.signal)

    def _validate(self, module: pl.LightningModule, epoch: int) -> None:
        module.eval()
        with torch.no_grad():
            figures = self.validate(epoch)
        module.train()
        mean_loss = sum(self.losses) / len(self.losses)
        self.losses.clear()
        row = {"epoch": epoch, "step": self.step, "train_loss": mean_loss, "lr": module.lr_at(self.step - 1), **figures}
        self.rows.append(row)
        text = io.StringIO()
        writer = csv.DictWriter(text, list(row))
        writer.writeheader()
        writer.writerows(self.rows)
        checkpoints.write_text(self.run.folder / "metrics.csv", text.getvalue())
        shown = "  ".join(f"{k} {v:.4f}" for k, v in row.items() if k not in ("epoch", "step", "lr"))
        tqdm.write(f"epoch {epoch:4d}  {shown}", file=sys.stdout)
        sys.stdout.flush()
        if self.log_to_wandb:
            import wandb

            if wandb.run is None:
                wandb.init(dir=self.run.folder, name=self.run.folder.name)
            wandb.log(row, step=self.step)

    def _save(self, trainer, module) -> None:
        content = {
            "format": RESUME,
            "step": self.step,
            "module": module.training_state(),
            "optimizer": trainer.optimizers[0].state_dict(),
            "state": module.state,
            "rows": self.rows,
            "losses": self.losses,
            "time": time.time(),
        }
        checkpoints.save(self.run.last, content)
