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
from dataclasses import dataclass
from typing import Any, Protocol

import pytorch_lightning as pl
import torch
from torch import Tensor
from tqdm import tqdm

from runtime import checkpoints
from runtime.draws import Batch, StepBatches
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


def pick_device(asked: str) -> torch.device:
    """`auto` is a GPU where there is one.

    Raises:
        UserError: a GPU is asked for and not there, or the name is none.
    """
    if asked == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(asked)
    except RuntimeError as error:
        raise UserError(f"device={asked}: no such device; use auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise UserError(f"device={asked}: torch sees {count} GPUs here; use device=cpu or device=auto")
    return device


def pick_precision(asked: str, device: torch.device) -> str:
    """Lightning's name of the precision; `auto` takes bf16 where the GPU or the CPU multiplies in it, else 32.

    Raises:
        UserError: an unknown name.
    """
    if asked not in ("auto", "32", "bf16"):
        raise UserError(f"precision={asked}: use 32, bf16 or auto")
    if device.type == "cuda":
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        known = getattr(torch.cpu, "get_capabilities", dict)()  # older torch does not tell
        has_bf16 = bool(known.get("amx_bf16") or known.get("avx512_bf16"))
    return "bf16-mixed" if asked == "bf16" or (asked == "auto" and has_bf16) else "32-true"


def fit(
    module: pl.LightningModule,
    items: Items,
    run: Run,
    schedule: Schedule,
    validate: Callable[[int], dict[str, float]],
    log_to_wandb: bool = False,
) -> None:
    """Train to the end, resuming from `run.last` if it is there.

    The module gives `training_step((batch: Batch, data), _)` -> loss already multiplied by batch.weight,
    `configure_optimizers()`, `lr_at(step)`, `training_state()` and `load_training_state(dict)` (its trained tensors),
    and `state`, a dict of plain values and tensors that must survive a stop.

    Args:
        validate: called with the epoch (from 1) every `validate_every` epochs and at the last; returns figures for
            metrics.csv.

    Raises:
        UserError: the loss is not finite, or the device is not there.
        SystemExit: SIGTERM or SIGINT came; the resume point is written.
    """
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    device = pick_device(schedule.device)
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    steps_per_epoch = StepBatches(len(items), schedule.batch_size, 0, 0, 0, schedule.accumulate).steps_per_epoch
    last_step = schedule.num_epoch * steps_per_epoch
    resume = checkpoints.load(run.last, (RESUME,), "resume point") if run.last.exists() else None
    first_step = resume["step"] if resume else 0
    keeper = _Keeper(run, schedule, validate, resume, steps_per_epoch, log_to_wandb)
    batches = StepBatches(
        len(items), schedule.batch_size, schedule.seed, first_step, last_step, schedule.accumulate, rank, world
    )
    trainer = _trainer(schedule, keeper, device, world)
    trainer.fit(module, _Loader(items, batches))
    if keeper.signal:
        name = signal.Signals(keeper.signal).name
        print(f"stopped by {name} after step {keeper.step} of {last_step}; the same command resumes there")
        sys.exit(128 + keeper.signal)


def _trainer(schedule: Schedule, keeper: pl.Callback, device: torch.device, world: int) -> pl.Trainer:
    """Lightning's trainer with everything off that writes files, draws numbers or counts epochs."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    return pl.Trainer(
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
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )


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

    def __init__(self, run, schedule, validate, resume, steps_per_epoch, log_to_wandb) -> None:
        self.run, self.schedule, self.validate, self.resume = run, schedule, validate, resume
        self.steps_per_epoch, self.log_to_wandb = steps_per_epoch, log_to_wandb
        self.step = resume["step"] if resume else 0
        self.rows: list[dict] = resume["rows"] if resume else []
        self.losses: list[float] = resume["losses"] if resume else []
        self.signal = 0
        self.micro_losses: list[Tensor] = []

    def on_train_start(self, trainer, module) -> None:
        if self.resume:
            module.load_training_state(self.resume["module"])
            trainer.optimizers[0].load_state_dict(self.resume["optimizer"])
            module.state = self.resume["state"]
            print(f"resuming {self.run.folder} after step {self.step}")
            self.resume = None
        for which in (signal.SIGTERM, signal.SIGINT):
            signal.signal(which, self._note_signal)
        total = self.schedule.num_epoch * self.steps_per_epoch
        wait = 0.2 if sys.stderr.isatty() else 15
        self.bar = tqdm(total=total, initial=self.step, desc="training", unit="step", mininterval=wait)

    def _note_signal(self, number: int, frame: object) -> None:
        self.signal = number

    def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
        if batch_idx % self.schedule.accumulate == 0:
            for group in trainer.optimizers[0].param_groups:
                group["lr"] = module.lr_at(self.step) * group.get("lr_scale", 1.0)

    def on_before_backward(self, trainer, module, loss: Tensor) -> None:
        if not math.isfinite(loss.item()):
            raise UserError(
                f"{self.run.folder}: the loss is {loss.item()} at step {self.step}; the last resume point is whole: "
                "lower lr= or look for extreme samples in the EEG"
            )

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        self.micro_losses.append(outputs["loss"].detach())
        if (batch_idx + 1) % self.schedule.accumulate:
            return
        self.step += 1
        # Lightning has divided the loss by `accumulate` already, so the sum is the global batch's mean
        self.losses.append(float(torch.stack(self.micro_losses).sum()))
        self.micro_losses.clear()
        self.bar.update()
        self.bar.set_postfix(loss=f"{self.losses[-1]:.4f}", refresh=False)
        epoch, left = divmod(self.step, self.steps_per_epoch)
        if left == 0 and (epoch % self.schedule.validate_every == 0 or epoch == self.schedule.num_epoch):
            self._validate(module, epoch)
            self._save(trainer, module)
        elif self.signal:
            self._save(trainer, module)
        if self.signal:
            trainer.should_stop = True

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
        writer = csv.DictWriter(text, list(dict.fromkeys(k for r in self.rows for k in r)))
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
        if not trainer.is_global_zero:
            return
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

    def on_train_end(self, trainer, module) -> None:
        self.bar.close()
        for which in (signal.SIGTERM, signal.SIGINT):
            signal.signal(which, signal.SIG_DFL if which == signal.SIGTERM else signal.default_int_handler)
