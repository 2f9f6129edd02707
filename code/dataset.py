"""EEG windows for stage A and EEG-image trials for stages B and C (spec 1 and 3); builds no model.

Shapes: N trials or windows, B batch, C electrodes, T time points, L time points of one trial as recorded.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data.signals import Span, check_signal, fit_channels, fit_length, mapped, read_manifest, read_span, spans_of
from data.splits import check_splits, read_subject_splits
from data.trials_file import TrialFile, cached_windows, open_trial_file
from runtime import draws
from runtime.errors import UserError

# eeg_5_95_std.pth carries no manifest: 1 kHz, the model sees 20..460 ms, odd lengths are left out (spec 3.2)
FILE_DEFAULTS = {
    "sfreq": 1000.0,
    "window": [20, 460],
    "length_limits": [450, 600],
    "image_known": True,
    "simulated": False,
}


class EEGWindows:
    """Unlabelled EEG: every `.npy` under a folder, (C, T) or (n, C, T), memory-mapped (spec 1.4, 3.1).

    An epoch holds floor(T / n_times) windows of a longer recording, each cropped anew at random, and one
    window of any other, interpolated to n_times. A part is held out: whole recordings (files) where there
    are five or more, otherwise the end of each. `info` is the folder's manifest.json ("sfreq", "ch_names",
    "band", "excludes_test"; None where unknown).

    Raises:
        UserError: no such folder, no `.npy` in it, or an array that is not finite, varying EEG.
    """

    def __init__(self, folder, n_chans: int = 128, n_times: int = 512, scale: float = 1.0, seed=2022, held_out=0.1):
        self.folder, self.n_chans, self.n_times, self.scale, self.seed = Path(folder), n_chans, n_times, scale, seed
        if not self.folder.is_dir():
            raise UserError(
                f"{folder}: no such folder; it should hold recordings as .npy files (see datasets/README.md)"
            )
        files = sorted(p for p in self.folder.rglob("*") if p.suffix.lower() == ".npy" and p.is_file())
        if not files:
            raise UserError(f"{folder}: no .npy file in this folder or below it; see datasets/README.md")
        mapped.cache_clear()  # files of the same name may have been rewritten since
        self.info = dict.fromkeys(("sfreq", "ch_names", "band", "excludes_test"))
        self.info |= read_manifest(self.folder / "manifest.json")
        self.n_recordings = len(files)
        self.train, self.held_out = self._hold_out([spans_of(path) for path in files], held_out)
        self.last = np.cumsum([self._n_windows(span) for span in self.train])

    def _hold_out(self, recordings: list[list[Span]], share: float) -> tuple[list[Span], list[Span]]:
        if share <= 0:
            return sum(recordings, []), []
        if len(recordings) >= 5:
            order = draws.permutation(len(recordings), self.seed, "held-out recordings").tolist()
            held_out = set(order[-max(1, int(share * len(recordings))) :])
            parts = [([], spans) if i in held_out else (spans, []) for i, spans in enumerate(recordings)]
        else:
            parts = [self._cut_tail(spans, share) for spans in recordings]
        train, held = (sum(part, []) for part in zip(*parts, strict=True))
        if not held:
            raise UserError(
                f"{self.folder}: too little EEG to hold a part out (fewer than five files, none longer than "
                f"{2 * self.n_times} samples); add recordings"
            )
        return train, held

    def _cut_tail(self, spans: list[Span], share: float) -> tuple[list[Span], list[Span]]:
        if len(spans) > 1:
            n_kept = len(spans) - max(1, int(share * len(spans)))
            return spans[:n_kept], spans[n_kept:]
        cut = spans[0].stop - max(self.n_times, int(share * spans[0].stop))
        if cut < self.n_times:
            return spans, []
        return [spans[0]._replace(stop=cut)], [spans[0]._replace(start=cut)]

    def _n_windows(self, span: Span) -> int:
        return max(1, (span.stop - span.start) // self.n_times)

    def __len__(self) -> int:
        return int(self.last[-1])

    def __getitem__(self, batch: draws.Batch) -> Tensor:
        """The batch's windows, (B, n_chans, n_times), cropped by (seed, step, global position) alone."""
        span, crop, channel = self.places(batch)
        return self._windows([self.train[i] for i in span.tolist()], crop.tolist(), channel.tolist())

    def places(self, batch: draws.Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Of each window of a batch: its position in `train`, and crop and channel, in [0, 1), which place it there."""
        crop, channel = batch.mine(draws.rand((batch.total, 2), self.seed, "crop", batch.step).double()).T
        span = np.searchsorted(self.last, batch.index.numpy(), side="right")
        return torch.from_numpy(span), crop, channel

    def held_out_windows(self, max_n: int = 512) -> Tensor:
        """At most `max_n` fixed windows of the held-out part, none overlapping, (N, n_chans, n_times)."""
        return self._fixed(self.held_out, max_n, self.seed, "held-out windows")

    def training_windows(self, max_n: int, seed: int = 0) -> Tensor:
        """At most `max_n` windows of the training part, none overlapping, (N, n_chans, n_times)."""
        return self._fixed(self.train, max_n, seed, "training windows")

    def _fixed(self, spans: list[Span], max_n: int, seed: int, purpose: str) -> Tensor:
        windows = [s._replace(start=s.start + k * self.n_times) for s in spans for k in range(self._n_windows(s))]
        chosen = draws.permutation(len(windows), seed, purpose)[:max_n].sort().values.tolist()
        channel = draws.rand((len(chosen),), seed, purpose, 1).double().tolist()
        return self._windows([windows[i] for i in chosen], [0.0] * len(chosen), channel)

    def _windows(self, spans: Sequence[Span], crop: list[float], channel: list[float]) -> Tensor:
        """One window of each span; `crop` and `channel`, in [0, 1), place it in time and over channels."""
        out = np.empty((len(spans), self.n_chans, self.n_times), np.float32)
        for row, span, u, v in zip(out, spans, crop, channel, strict=True):
            signal = read_span(span)
            start = int(u * max(signal.shape[1] - self.n_times + 1, 1))
            piece = signal[:, start : start + self.n_times]
            first = int(v * max(len(piece) - self.n_chans + 1, 1))
            row[:] = fit_channels(fit_length(piece, self.n_times), self.n_chans, first)
        return torch.from_numpy(out).mul_(self.scale)


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
    eeg_signals_path: str | Path,
    splits_path: str | Path,
    subject: int = 4,
    splits: Sequence[str] = ("train", "val"),
    n_chans: int = 128,
    n_times: int = 512,
    scale: float = 1.0,
) -> dict[str, Trials]:
    """The asked splits of a file laid out as eeg_5_95_std.pth (spec 1.1, 1.2, 3.2); no other EEG is read.

    Window, length limits and rate come from a JSON manifest of the same stem, or are FILE_DEFAULTS.
    `subject` 0 keeps everybody. Split indices count in the subject's own trials, as published, but in the
    whole file where the splits file's stem ends in `_all`; `info["split"]` says which, and what the splits share.

    Raises:
        UserError: missing file or key; index, label or image out of range; overlapping splits; bad signal.
    """
    path, splits_path = Path(eeg_signals_path), Path(splits_path)
    file = open_trial_file(path)
    info = FILE_DEFAULTS | {"ch_names": None, "band": None} | read_manifest(path.with_suffix(".json"))
    subjects = file.about["trials"]["subject"]
    parts, index_space = read_subject_splits(splits_path, subjects, subject, str(path))
    info["split"] = check_splits(splits_path, file.about["trials"], parts, index_space)
    info["split"]["eeg_sha256"] = file.about["sha256"]
    return {
        name: _trials(file, parts[name], f"{path}: split '{name}'", info, n_chans, n_times, scale) for name in splits
    }


def _trials(
    file: TrialFile, part: list[int], what: str, info: dict, n_chans: int, n_times: int, scale: float
) -> Trials:
    (shortest, longest), (begin, end), trials = info["length_limits"], info["window"], file.about["trials"]
    kept = [i for i in part if shortest <= trials["shape"][i][1] <= longest]
    if not kept:
        raise UserError(f"{what} has no trial of {shortest} to {longest} samples among its {len(part)}")

    def window(i: int) -> np.ndarray:
        signal = file.eeg(i)[:, begin:end]
        if signal.shape[0] > n_chans or 0 in signal.shape:
            raise UserError(f"{what}: trial {i} is {trials['shape'][i]}; the model takes {n_chans} channels")
        check_signal(signal.min(1), signal.max(1), f"{what}: trial {i}")
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
