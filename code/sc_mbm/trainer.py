"""Stage A's loss, optimizer, learning rate, and what they hold in memory."""

from __future__ import annotations

import math
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from runtime.devices import adamw, pick_dtype
from runtime.draws import Batch, rand
from runtime.errors import UserError
from runtime.memory import MemoryPlan, count, local_batch, plan_step
from sc_mbm.mae_for_eeg import MAEforEEG, start_local


class MaskedPretraining(nn.Module):
    """Masked modelling of EEG windows (DreamDiffusion, section 3.1) by the published loop: AdamW, warm-up, cosine.

    Args:
        mae: maps (eeg (B, C, T), mask_ratio, noise (B, L)) to (loss, prediction, mask); its `num_tokens` is L.
        warmup_steps, total_steps: of the learning rate, in optimizer steps.
    """

    def __init__(
        self, mae: nn.Module, mask_ratio: float,
        lr: float, min_lr: float, weight_decay: float, warmup_steps: int, total_steps: int, seed: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.mae, self.mask_ratio, self.seed = mae, mask_ratio, seed
        self.lr, self.min_lr, self.weight_decay = lr, min_lr, weight_decay
        self.warmup_steps, self.total_steps = warmup_steps, total_steps
        self.state: dict = {}

    @classmethod
    def of(cls, cfg: Any, epoch_steps: int) -> MaskedPretraining:
        """By a stage's settings of these names, those of MAEforEEG and `local_start`; weights follow from the seed."""
        torch.manual_seed(cfg.seed)
        mae = MAEforEEG(**sizes_of(cfg))
        if cfg.local_start:
            start_local(mae, cfg.local_start)
        steps = round(cfg.warmup_epochs * epoch_steps), cfg.num_epoch * epoch_steps
        return cls(mae, cfg.mask_ratio, cfg.lr, cfg.min_lr, cfg.weight_decay, *steps, cfg.seed)

    def forward(self, batch: Batch, eeg: Tensor) -> Tensor:
        """Weighted loss of one share of a batch; which tokens are kept is drawn for the global batch."""
        noise = batch.mine(rand((batch.total, self.mae.num_tokens), self.seed, "mask", batch.step))
        loss, _, _ = self.mae(eeg, self.mask_ratio, noise.to(eeg.device))
        return loss * batch.weight

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW, betas (0.9, 0.95); no decay on vectors (biases, norms), as the published code."""
        trained = [p for p in self.mae.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": self.weight_decay},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ]
        return adamw(groups, lr=self.lr, betas=(0.9, 0.95))

    def lr_at(self, step: int) -> float:
        """Linear warm-up, then half a cosine down to `min_lr`."""
        if step < self.warmup_steps:
            return self.lr * step / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps)
        return self.min_lr + (self.lr - self.min_lr) * 0.5 * (1 + math.cos(math.pi * done))

    def training_state(self) -> dict[str, Tensor]:
        """What a resumed run needs of the model."""
        return self.mae.state_dict()

    def load_training_state(self, state: dict[str, Tensor]) -> None:
        """Put back what `training_state` gave."""
        self.mae.load_state_dict(state)


def check(cfg: Any) -> None:
    """Refuse settings of stage A that make no sense together. Raises UserError."""
    if cfg.n_times % cfg.patch_size:
        raise UserError(f"n_times={cfg.n_times} patch_size={cfg.patch_size}: a window must be a whole number of tokens")
    if cfg.min_lr > cfg.lr:
        raise UserError(f"min_lr={cfg.min_lr}: is above lr={cfg.lr}, from which the cosine comes down; lower it")
    if cfg.warmup_epochs > cfg.num_epoch:
        print(f"note: warmup_epochs={cfg.warmup_epochs:g} of num_epoch={cfg.num_epoch}: lr={cfg.lr} is never reached")
    n_tokens = cfg.n_times // cfg.patch_size
    kept = int(n_tokens * (1 - cfg.mask_ratio))
    if not 0 < kept < n_tokens:
        raise UserError(
            f"mask_ratio={cfg.mask_ratio}: keeps {kept} of {n_tokens} tokens; it must keep some and hide some"
        )


def sizes_of(cfg: Any) -> dict[str, Any]:
    """MAEforEEG's arguments, from a stage's settings of the same names."""
    return {name: getattr(cfg, name) for name in signature(MAEforEEG).parameters}


def plan_pretraining(cfg: Any) -> MemoryPlan:
    """Parameters and memory of a process of stage A, by its settings."""
    n, half = local_batch(cfg.batch_size), pick_dtype(cfg.precision, cfg.device) == torch.bfloat16
    with torch.device("meta"):
        module = MaskedPretraining.of(cfg, 1)
        eeg, noise = torch.empty(n, cfg.n_chans, cfg.n_times), torch.empty(n, module.mae.num_tokens)
        return plan_step(count(mae=module.mae), module, lambda: module.mae(eeg, cfg.mask_ratio, noise)[0], n, half)
