"""Windows that no training sees: how well what is masked in them is predicted, in figures and in a picture.

Shapes: N windows, C electrodes, T samples, J masks, L tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runtime import atomic
from runtime.draws import rand
from sc_mbm.linear_reference import linear_share

N_MASKS = 4  # masks that model and linear prediction are compared on


@dataclass
class HeldOut:
    """Windows, the masks that they are judged under, and how far the best linear prediction gets."""

    eeg: Tensor  # (N, C, T)
    masks: Tensor  # (J, L) int64, 1 = hidden
    linear_share: float  # its squared error as a share of the variance

    @classmethod
    def of(cls, training: Tensor, held_out: Tensor, n_tokens: int, mask_ratio: float, seed: int) -> HeldOut:
        """Masks by the seed; the linear prediction learns from `training`. Both windows are (N, C, T)."""
        order = rand((N_MASKS, n_tokens), seed, "held-out masks").argsort(1).argsort(1)
        masks = (order >= int(n_tokens * (1 - mask_ratio))).long()
        return cls(held_out, masks, linear_share(training, held_out, masks))

    def figures(self, mae: nn.Module) -> dict[str, float]:
        """Masked error as a share of the variance of the masked samples, the correlation over all of the window, and
        the linear prediction beside it."""
        error = variance = correlation = 0.0
        mean = self.eeg.mean((0, 2), keepdim=True)
        for mask in self.masks:
            predicted, hidden = reconstruct(mae, self.eeg, mask), samples_of(mask, self.eeg)
            error += float((predicted - self.eeg)[..., hidden].square().mean())
            variance += float((self.eeg - mean)[..., hidden].square().mean())
            a, b = (x - x.mean(-1, keepdim=True) for x in (predicted, self.eeg))
            correlation += float(F.cosine_similarity(a, b, dim=-1).mean()) / len(self.masks)
        share, linear = error / variance, self.linear_share
        way = (1 - share) / (1 - linear)
        return {"masked_share": share, "correlation": correlation, "linear_share": linear, "way_to_linear": way}


def samples_of(mask: Tensor, eeg: Tensor) -> Tensor:
    """Which samples (T,) of eeg (..., T) a mask of tokens (L,) hides."""
    return mask.bool().repeat_interleave(eeg.shape[-1] // len(mask))


@torch.no_grad()
def reconstruct(mae: nn.Module, eeg: Tensor, mask: Tensor, batch_size: int = 64) -> Tensor:
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


class Labels(NamedTuple):
    """What a picture of EEG must say beside the curves."""

    sfreq: float | None  # Hz, of the time axis, which counts samples where it is not known
    unit: str  # of the EEG, in words
    title: str = ""


def labels_of(manifest: dict[str, Any], recording: str, scale: float) -> Labels:
    """Sampling rate and unit of a window's EEG, and whether it is simulated, as its folder's manifest tells them.

    recording: file that the window is from; rates may differ among recordings. scale: factor on the EEG.
    """
    entries = [entry for entry in manifest.get("recordings", ()) if isinstance(entry, dict)]
    rates = {entry.get("file"): entry.get("sfreq") for entry in entries}
    unit = manifest.get("unit") or ("standardised units" if manifest.get("standardised") else "units of the file")
    title = "SIMULATED EEG" if manifest.get("simulated") else ""
    sfreq = manifest.get("sfreq") or rates.get(recording)
    return Labels(sfreq, unit if scale == 1 else f"{unit} x {scale:g}", title)


def draw_reconstruction(path: Path, mae: nn.Module, eeg: Tensor, mask: Tensor, labels: Labels) -> None:
    """A picture of one window (C, T): truth, what the model saw, its reconstruction; four channels that differ."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    predicted = reconstruct(mae, eeg[None], mask)[0]
    seen = eeg.clone()
    seen[:, samples_of(mask, eeg)] = torch.nan
    time = torch.arange(eeg.shape[-1]) * (1000 / labels.sfreq if labels.sfreq else 1)
    distinct = sorted({tuple(row[:8].tolist()): i for i, row in reversed(list(enumerate(eeg)))}.values())
    chosen = distinct[:: max(1, len(distinct) // 4)][:4]
    size = (14, 1.9 * len(chosen))  # inches
    figure, axes = plt.subplots(len(chosen), 3, figsize=size, sharex=True, sharey="row", squeeze=False)
    for row, channel in zip(axes, chosen, strict=True):
        r = torch.corrcoef(torch.stack([predicted[channel], eeg[channel]]))[0, 1]
        titles = ("truth", "what the model saw", f"reconstruction, r = {r:.2f}")
        for axis, signal, title in zip(row, (eeg, seen, predicted), titles, strict=True):
            axis.plot(time, signal[channel], lw=0.8, color="#24507a")
            axis.set_title(f"channel {channel}: {title}", fontsize=9, loc="left")
            axis.spines[["top", "right"]].set_visible(False)
        row[2].plot(time, eeg[channel], lw=0.5, color="#b0b0b0", zorder=0)
        row[0].set_ylabel(labels.unit, fontsize=8)
    for axis in axes[-1]:
        axis.set_xlabel("time (ms)" if labels.sfreq else "time (samples)")
    figure.suptitle(labels.title, fontsize=10)
    figure.tight_layout()
    atomic.replace_atomically(path, lambda file: figure.savefig(file, format="png", dpi=110))
    plt.close(figure)
