"""Stage A's training step, optimizer, learning rate and figures.

Shapes: B windows, C electrodes, T samples, L tokens.
"""

import math
from pathlib import Path

import torch
from torch import Tensor

from runtime import checkpoints
from runtime.devices import adamw
from runtime.draws import Batch, rand


class MaskedPretraining(torch.nn.Module):
    """Masked modelling of EEG windows (DreamDiffusion, section 3.1) by the published loop: AdamW, warm-up, cosine.

    Args:
        mae: maps (eeg (B, C, T), mask_ratio, noise (B, L)) to (loss, prediction, mask); its `num_tokens` is L.
        warmup_steps, total_steps: of the learning rate, in optimizer steps.
    """

    def __init__(
        self, mae: torch.nn.Module, mask_ratio: float,
        lr: float, min_lr: float, weight_decay: float, warmup_steps: int, total_steps: int, seed: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.mae, self.mask_ratio, self.seed = mae, mask_ratio, seed
        self.lr, self.min_lr, self.weight_decay = lr, min_lr, weight_decay
        self.warmup_steps, self.total_steps = warmup_steps, total_steps
        self.state: dict = {}

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


@torch.no_grad()
def reconstruct(mae: torch.nn.Module, eeg: Tensor, mask: Tensor, batch_size: int = 64) -> Tensor:
    """Predicted windows (N, C, T) for windows (N, C, T) whose tokens with mask (L,) = 1 are hidden."""
    device = next(mae.parameters()).device
    ratio = 1 - (int((mask == 0).sum()) + 0.5) / len(mask)  # half a token over, so that rounding down keeps the visible
    parts = []
    for some in eeg.split(batch_size):
        noise = mask.float().expand(len(some), -1).to(device)
        _, predicted, used = mae(some.to(device), ratio, noise)
        assert torch.equal(used.bool(), noise.bool())  # the smallest noise is kept, so the mask is ours
        parts.append(mae.unpatchify(predicted).float().cpu())
    return torch.cat(parts)


def held_out_figures(mae: torch.nn.Module, eeg: Tensor, masks: Tensor) -> dict[str, float]:
    """Masked error as a share of the variance of the masked samples, and the correlation over all of the window.

    Args:
        eeg: (N, C, T) held-out windows.
        masks: (J, L), 1 = masked; the same as the linear reference is given.
    """
    error = variance = correlation = 0.0
    mean = eeg.mean((0, 2), keepdim=True)
    for mask in masks:
        predicted = reconstruct(mae, eeg, mask)
        hidden = mask.bool().repeat_interleave(eeg.shape[-1] // len(mask))
        error += float((predicted - eeg)[..., hidden].square().mean())
        variance += float((eeg - mean)[..., hidden].square().mean())
        a, b = (x - x.mean(-1, keepdim=True) for x in (predicted, eeg))
        correlation += float(torch.nn.functional.cosine_similarity(a, b, dim=-1).mean()) / len(masks)
    return {"masked_share": error / variance, "correlation": correlation}


def draw_reconstruction(path: Path, mae: torch.nn.Module, eeg: Tensor, mask: Tensor, sfreq: float | None) -> None:
    """A picture of one window (C, T): truth, what the model saw, its reconstruction; four channels that differ."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    predicted = reconstruct(mae, eeg[None], mask)[0]
    hidden = mask.bool().repeat_interleave(eeg.shape[-1] // len(mask))
    seen = eeg.clone()
    seen[:, hidden] = torch.nan
    time = torch.arange(eeg.shape[-1]) * (1000 / sfreq if sfreq else 1)
    distinct = sorted({tuple(row[:8].tolist()): i for i, row in reversed(list(enumerate(eeg)))}.values())
    shown = distinct[:: max(1, len(distinct) // 4)][:4]
    figure, axes = plt.subplots(len(shown), 3, figsize=(14, 1.9 * len(shown)), sharex=True, sharey="row", squeeze=False)
    for row, channel in zip(axes, shown, strict=True):
        fit = torch.corrcoef(torch.stack([predicted[channel], eeg[channel]]))[0, 1]
        titles = ("truth", "what the model saw", f"reconstruction, r = {fit:.2f}")
        for axis, signal, title in zip(row, (eeg, seen, predicted), titles, strict=True):
            axis.plot(time, signal[channel], lw=0.8, color="#24507a")
            axis.set_title(f"channel {channel}: {title}", fontsize=9, loc="left")
            axis.spines[["top", "right"]].set_visible(False)
        row[2].plot(time, eeg[channel], lw=0.5, color="#b0b0b0", zorder=0)
    for axis in axes[-1]:
        axis.set_xlabel("ms" if sfreq else "samples")
    figure.tight_layout()
    checkpoints.replace_atomically(path, lambda file: figure.savefig(file, format="png", dpi=110))
    plt.close(figure)
