"""The training loop of stages A and B, on Lightning's Fabric: batches are a function of the step, resume is exact.

`Trainer.step` is one optimizer step; `fit` is the run around it.
"""

from __future__ import annotations

import csv
import io
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from itertools import islice
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from runtime import atomic, checkpoints, ranks, resume, wandb_log
from runtime.devices import pick_device, pick_dtype
from runtime.draws import Batch, StepBatches, steps_per_epoch
from runtime.errors import UserError
from runtime.memory import advise
from runtime.runs import Run

# what training reads, by the names of its arrays; moments and latents are cached, as are CLIP's targets
INPUTS = {"eeg": "EEG", "flat": "EEG", "moments": "latents", "latent": "latents", "clip": "CLIP targets"}


class Items(Protocol):
    """A data set that makes a whole share of a batch at once."""

    def __len__(self) -> int: ...

    def __getitem__(self, batch: Batch) -> Any: ...


@dataclass(frozen=True)
class Schedule:
    """How long, in what portions and where to train."""

    batch_size: int  # items in a micro-batch, over all processes together
    num_epoch: int
    seed: int
    accumulate: int = 1
    clip_grad: float = 0.0  # largest global gradient norm; 0: no clipping
    precision: str = "auto"  # 32, bf16 or auto
    device: str = "auto"
    validate_every: int = 1  # epochs between calls of `validate` and resume points

    def ended(self, step: int, epoch_steps: int) -> int:
        """The epoch that is over and to be validated after so many steps; 0: none."""
        epoch, left = divmod(step, epoch_steps)
        return 0 if left or (epoch % self.validate_every and epoch < self.num_epoch) else epoch

    @classmethod
    def of(cls, cfg: Any, accumulate: int) -> Schedule:
        """A stage's settings of the same names."""
        names = [f.name for f in fields(cls) if f.name != "accumulate"]
        return cls(accumulate=accumulate, **{name: getattr(cfg, name) for name in names})


class Trainer:
    """A module with its optimizer, where it trains; under torchrun, one of several that sum their gradients.

    The module, called with a share of a batch, gives the loss, a scalar. The other arguments are as `Schedule`'s.
    """

    def __init__(
        self, module: nn.Module, optimizer: torch.optim.Optimizer, device: str = "auto", precision: str = "auto",
        accumulate: int = 1, clip_grad: float = 0.0,
    ) -> None:  # fmt: skip
        from lightning_fabric import Fabric  # here, because its import takes seconds

        where, world, half = pick_device(device), ranks.world(), pick_dtype(precision, device) == torch.bfloat16
        local, gpu = int(os.environ.get("LOCAL_WORLD_SIZE", world)), where.type == "cuda"
        # Autocast is ours and Fabric is told 32-true, because its bf16-mixed also rounds to bfloat16 what a module is
        # given: EEG, latents, the noise to predict. No cache, so that gradients of a weight used twice meet in float32.
        self.autocast = torch.autocast(where.type, torch.bfloat16, half, cache_enabled=False)
        self.fabric = Fabric(
            accelerator="gpu" if gpu else "cpu", strategy="ddp" if world > 1 else "auto", precision="32-true",
            devices=local if world > 1 else [where.index or 0] if gpu else 1, num_nodes=world // local,
        )  # fmt: skip
        self.fabric.launch()
        self.module, self.optimizer = self.fabric.setup(module, optimizer)
        self.accumulate, self.clip_grad = accumulate, clip_grad

    def step(self, lr: float, shares: Iterable[tuple], look: Callable[[Tensor], float] = Tensor.item) -> float:
        """One optimizer step on the next `accumulate` of `shares`, each the module's arguments; returns the loss.

        look: called before each backward pass with the loss of a share; returns what it adds to the step's.
        """
        total = 0.0
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad()
        for k, share in enumerate(islice(shares, self.accumulate), 1):
            with self.fabric.no_backward_sync(self.module, enabled=k < self.accumulate):
                with self.autocast:
                    loss = self.module(*self.fabric.to_device(share)) / self.accumulate
                total += look(loss)
                self.fabric.backward(loss)
        if self.clip_grad:  # of a norm that is not finite the next step's loss will tell
            norm = {"max_norm": self.clip_grad, "error_if_nonfinite": False}
            self.fabric.clip_gradients(self.module, self.optimizer, **norm)
        self.optimizer.step()
        return total


def fit(
    module: nn.Module, items: Items, run: Run, schedule: Schedule, validate: Callable[[int], dict],
    kept: Mapping[str, Any] | None = None, intact: Callable[[], None] = lambda: None,
) -> None:  # fmt: skip
    """Train to the end, resuming from `run.last` if it is there; under torchrun, on all processes alike.

    A resume point is written before each validation, which a run that was stopped in it repeats, and after it.

    Args:
        module: called with a `draws.Batch` and its data, it gives the loss multiplied by batch.weight; it has
            `configure_optimizers()`, `lr_at(step)`, `training_state()` and `load_training_state(dict)` (its trained
            tensors), and `state`, which must survive a stop: plain values, and `model`, an earlier training_state().
        validate: called on the first process with the epoch (from 1) every `validate_every` epochs and at the last;
            returns figures (name -> number) for metrics.csv.
        kept: types of what `module.state` holds once validated, as `plain.checked` takes them.
        intact: called on the first process before each resume point: UserError where data are not as they were.

    Raises:
        UserError: the loss is not finite, the device is not there, or its memory too small (of several processes, a
            ranks.LoneError); the resume point is damaged.
        SystemExit: SIGTERM or SIGINT came; the resume point is written.
    """
    epoch_steps = steps_per_epoch(len(items), schedule.batch_size, schedule.accumulate)
    last_step, optimizer = schedule.num_epoch * epoch_steps, module.configure_optimizers()
    saved = resume.read(run.last, module, optimizer, last_step, kept) if run.last.exists() else {}
    done = {name: saved[name] for name in ("step", "rows", "losses") if saved}
    progress = Progress(run, items, module, optimizer, validate, intact, **done)
    where = {"device": pick_device(schedule.device).type}
    where["precision"] = str(pick_dtype(schedule.precision, schedule.device))
    ranks.agree({"training items": len(items), "steps done": progress.step} | where)
    if saved:
        module.load_training_state(saved["module"])
        module.state = saved["state"]
    portions = len(items), schedule.batch_size, schedule.seed, progress.step, last_step, schedule.accumulate
    shares = map(progress.read, StepBatches(*portions, ranks.rank(), ranks.world()))
    advice = advise(schedule.batch_size, schedule.accumulate, schedule.device)
    with ranks.signals_to(progress.note_signal), advice:  # the set-up, too, is to end on all at once
        how = schedule.device, schedule.precision, schedule.accumulate, schedule.clip_grad
        trainer = Trainer(module, optimizer, *how)
        progress.optimizer = trainer.optimizer
        if saved:
            trainer.optimizer.load_state_dict(trainer.optimizer.state_dict() | saved["optimizer"])
            print(f"resuming {run.folder} after step {progress.step}")
        wait = 0.2 if sys.stderr.isatty() else 15
        with tqdm(total=last_step, initial=progress.step, desc="training", unit="step", mininterval=wait) as bar:
            if progress.losses and (epoch := schedule.ended(progress.step, epoch_steps)):
                progress.save(epoch)  # it was stopped in this validation
            while progress.step < last_step and not progress.signal:
                progress.losses.append(trainer.step(module.lr_at(progress.step), shares, progress.agree))
                progress.step += 1
                bar.update()
                bar.set_postfix(loss=f"{progress.losses[-1]:.4f}", refresh=False)
                if (epoch := schedule.ended(progress.step, epoch_steps)) or progress.signal:
                    progress.save()  # before the validation: whatever ends that loses nothing
                if epoch:
                    progress.save(epoch)
    if progress.signal:
        name = signal.Signals(progress.signal).name
        print(f"stopped by {name} after step {progress.step} of {last_step}; the same command resumes there")
        sys.exit(128 + progress.signal)


@dataclass
class Progress:
    """How far a run is, and whether a signal ends it."""

    run: Run
    items: Items
    module: nn.Module
    optimizer: torch.optim.Optimizer
    figures_of: Callable[[int], dict]  # fit's `validate`
    intact: Callable[[], None]
    step: int = 0  # optimizer steps done
    rows: list[dict] = field(default_factory=list)  # of metrics.csv
    losses: list[float] = field(default_factory=list)  # of the steps since the last row
    data: Any = None  # of the share that is trained on
    noted: int = 0  # signal that came to this process
    signal: int = 0  # signal that all processes stop at

    def note_signal(self, number: int, frame: object) -> None:
        """Handler of a signal: the step that comes next is the last one; after the last, training ends as it would."""
        self.noted = number

    def read(self, batch: Batch) -> tuple[Batch, Any]:
        """A share of a batch, as the module takes it."""
        self.data = self.items[batch]
        return batch, self.data

    def agree(self, loss: Tensor) -> float:
        """The loss over all processes, which also agree on stopping; UserError on all where any is not finite.

        Before the gradients are summed, so that no process waits for one that has stopped.
        """
        value, problem = loss.item(), ""
        if not math.isfinite(value):
            at = f"step {self.step} (learning rate {self.module.lr_at(self.step):g})"
            problem = f"{self.run.folder}: the loss is {value} at {at}; {suspects(self.items, self.data)}"
        everyone = ranks.share((value, self.noted), problem)
        self.signal = max(number for _, number in everyone)
        return sum(value for value, _ in everyone) / len(everyone)  # shares are weighted: the global batch's mean

    @ranks.together()
    def save(self, epoch: int = 0) -> None:
        """A resume point; of an `epoch`, after its validation. Raises UserError where weights are not finite."""
        if not ranks.lead():
            return
        if epoch:
            self.validate(epoch)
        self.intact()
        content = {"module": self.module.training_state(), "optimizer": self.optimizer.state_dict()}
        if not all(value.isfinite().all() for value in content["module"].values()):
            raise UserError(
                f"{self.run.folder}: weights are no longer finite after step {self.step} (learning rate "
                f"{self.module.lr_at(self.step - 1):g}); the last resume point is whole, overwrite=true and lower lr="
            )
        content |= {"step": self.step, "rows": self.rows, "losses": self.losses, "state": self.module.state}
        checkpoints.save(self.run.last, {"format": resume.FORMAT, "time": time.time()} | content)

    def validate(self, epoch: int) -> None:
        """A row of metrics.csv, on the terminal and, if asked for, in wandb as well."""
        self.module.eval()
        with torch.no_grad():
            figures = self.figures_of(epoch)
        self.module.train()
        loss = sum(self.losses) / len(self.losses)
        self.losses.clear()
        lr = self.module.lr_at(self.step - 1)
        row = {"epoch": epoch, "step": self.step, "train_loss": loss, "lr": lr, **figures}
        self.rows.append(row)
        text = io.StringIO()
        csv.writer(text).writerows([list(row), *(earlier.values() for earlier in self.rows)])
        atomic.write_text(self.run.folder / "metrics.csv", text.getvalue())
        values = "  ".join(f"{k} {v:.4f}" for k, v in row.items() if k not in ("epoch", "step", "lr"))
        tqdm.write(f"epoch {epoch:4d}  {values}", file=sys.stdout)
        sys.stdout.flush()
        wandb_log.call("log", row, self.step)


def suspects(items: Items, data: Any) -> str:
    """The end of a sentence: what may have made a loss that is not finite, the arrays that training reads first."""
    share = {"eeg": data} if isinstance(data, Tensor) else data._asdict()
    arrays = [(INPUTS[name], value) for name, value in (*share.items(), *vars(items).items()) if name in INPUTS]
    if bad := dict.fromkeys(name for name, value in arrays if not value.isfinite().all()):
        mend = "delete the caches, which are then made anew (cache= or datasets/cache), and look at EEG and pictures"
        return f"{' and '.join(bad)} hold numbers that are not finite: {mend}"
    mend = "look for extreme samples in the EEG or weights in what training starts from, or lower lr="
    return f"EEG (up to {float(share['eeg'].abs().max()):g}) and caches are finite: {mend}"
