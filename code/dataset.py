"""EEG windows for stage A and EEG-image trials for stages B and C; builds no model.

Shapes: N trials or windows, B batch, C electrodes, T time points, L time points of one trial as recorded.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data.near_trials import SameEEG
from data.signals import check_names, check_signal, fit_channels, fit_length, read_manifest
from data.splits import check_splits, read_splits
from data.trials_file import TrialFile, cached_windows, open_trial_file
from data.windows import EEGWindows
from runtime.errors import UserError

__all__ = ["FILE_DEFAULTS", "EEGWindows", "Trials", "open_trials"]
# eeg_5_95_std.pth carries no manifest: 1 kHz, the model sees 20..460 ms, odd lengths are left out (spec 3.2)
FILE_DEFAULTS = {"sfreq": 1000.0, "window": [20, 460], "length_limits": [450, 600], "image_known": True}
UNKNOWN = {"simulated": False, "ch_names": None, "band": None}  # unless the manifest says it


@dataclass
class Trials:
    """The trials of one split, in the split's order; the EEG mapped from the disk, the rest in memory."""

    eeg: Tensor  # (N, C, T) float32, windowed, interpolated, scaled
    label: Tensor  # (N,) int64, index into wnids
    image: Tensor  # (N,) int64, index into the file's list of images
    subject: Tensor  # (N,) int64
    position: Tensor  # (N,) int64, index of the trial in the file
    onset: Tensor | None  # (N,) float64, seconds since its recording began
    recording: list | None  # which recording each trial comes from
    names: list[str]  # image stem of each trial
    wnids: list[str]  # label i means wnids[i]
    info: dict  # the file's manifest, `split` (see splits.check_splits), and `left_out` by the length limits

    def __len__(self) -> int:
        return len(self.eeg)

    def select(self, keep: Sequence[int]) -> "Trials":
        """The trials at these positions of the split."""
        rows = torch.as_tensor(keep, dtype=torch.int64)
        fields = {k: v[rows] for k, v in vars(self).items() if isinstance(v, Tensor)}
        fields["names"] = [self.names[i] for i in keep]
        fields["recording"] = self.recording and [self.recording[i] for i in keep]
        return replace(self, **fields)


def open_trials(
    eeg_signals_path: str | Path, splits_path: str | Path, subject: int = 4, splits: Sequence[str] = ("train", "val"),
    n_chans: int = 128, n_times: int = 512, scale: float = 1.0, cache: str | Path | None = None,
) -> dict[str, Trials]:  # fmt: skip
    """The asked splits of a file laid out as eeg_5_95_std.pth (spec 1.1, 1.2, 3.2).

    EEG of the other splits is read for likeness alone (`near_trials`).

    Window, length limits and rate come from a JSON manifest of the same stem, or are FILE_DEFAULTS.
    `subject` 0 keeps everybody. Split indices count in the subject's own trials, as published, but in the
    whole file where the splits file's stem ends in `_all`; `info["split"]` says which, and what the splits share.
    `cache` is a folder for what is made of the file once; None: `cache` beside it.

    Raises:
        UserError: missing file or key; index, label or image out of range; overlapping splits; bad signal.
    """
    path, splits_path = Path(eeg_signals_path), Path(splits_path)
    file = open_trial_file(path, cache)
    info = FILE_DEFAULTS | UNKNOWN | read_manifest(path.with_suffix(".json"))
    check_names(info["ch_names"], file.about["trials"]["shape"][0][0], str(path.with_suffix(".json")))
    parts, index_space = read_splits(splits_path, file.about["trials"]["subject"], subject, str(path))
    info["split"] = check_splits(splits_path, SameEEG(file, info), parts, index_space)
    info["split"]["eeg_sha256"] = file.about["sha256"]
    form = n_chans, n_times, scale
    return {name: _trials(file, parts[name], f"{path}: split '{name}'", info, *form) for name in splits}


def _trials(
    file: TrialFile, part: list[int], where: str, info: dict, n_chans: int, n_times: int, scale: float
) -> Trials:
    (shortest, longest), (begin, end), trials = info["length_limits"], info["window"], file.about["trials"]
    kept = [i for i in part if shortest <= trials["shape"][i][1] <= longest]
    if not kept:
        raise UserError(f"{where} has no trial of {shortest} to {longest} samples among its {len(part)}")

    def window(i: int) -> np.ndarray:
        signal = file.eeg(i)[:, begin:end]
        if signal.shape[0] > n_chans or 0 in signal.shape:
            raise UserError(f"{where}: trial {i} is {trials['shape'][i]}; the model takes {n_chans} channels")
        check_signal(signal.min(1), signal.max(1), f"{where}: trial {i}")
        return fit_channels(fit_length(signal, n_times), n_chans).astype(np.float32) * np.float32(scale)

    eeg = cached_windows(file, [kept, begin, end, scale], (len(kept), n_chans, n_times), partial(map, window, kept))
    column = {k: [trials[k][i] for i in kept] for k in ("label", "image", "subject", "onset", "recording")}
    return Trials(
        eeg=torch.from_numpy(eeg),
        position=torch.tensor(kept),
        **{k: torch.tensor(column[k]) for k in ("label", "image", "subject")},
        onset=None if None in trials["onset"] else torch.tensor(column["onset"], dtype=torch.float64),
        recording=None if None in trials["recording"] else column["recording"],
        names=[file.about["images"][i] for i in column["image"]],
        wnids=file.about["labels"],
        info=info | {"left_out": len(part) - len(kept)},
    )
