"""EEG windows for stage A and EEG-image trials for stages B and C (spec 1 and 3); builds no model.

Shapes: N trials or windows, B batch, C electrodes, T time points, L time points of one trial as recorded.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from eeg_signals import Span, check_signal, fit_channels, fit_length, mapped, read_manifest, spans_of
from runtime import draws
from runtime.checkpoints import read_plain
from runtime.errors import UserError
from stimuli import image_path

# eeg_5_95_std.pth carries no manifest: 1 kHz, the model sees 20..460 ms, odd lengths are left out (spec 3.2)
FILE_DEFAULTS = {
    "sfreq": 1000.0,
    "window": [20, 460],
    "length_limits": [450, 600],
    "image_known": True,
    "simulated": False,
}
SPLITS = ("train", "val", "test")


class EEGWindows:
    """Unlabelled EEG: every `.npy` under a folder, (C, T) or (n, C, T), memory-mapped (spec 1.4, 3.1).

    An epoch holds floor(T / n_times) windows of a longer recording, each cropped anew at random, and one
    window of any other, interpolated to n_times. A part is held out: whole recordings (files) where there
    are five or more, otherwise the end of each. `info` is the folder's manifest.json ("sfreq", "ch_names",
    "band"; None where unknown).

    Raises:
        UserError: no such folder, no `.npy` in it, or an array that is not finite, varying EEG.
    """

    def __init__(self, folder, n_chans: int = 128, n_times: int = 512, scale: float = 1.0, seed=2022, held_out=0.1):
        self.folder, self.n_chans, self.n_times, self.scale, self.seed = (Path(folder), n_chans, n_times, scale, seed)
        if not self.folder.is_dir():
            raise UserError(
                f"{folder}: no such folder; it should hold recordings as .npy files (see datasets/README.md)"
            )
        files = sorted(p for p in self.folder.rglob("*") if p.suffix.lower() == ".npy" and p.is_file())
        if not files:
            raise UserError(f"{folder}: no .npy file in this folder or below it; see datasets/README.md")
        mapped.cache_clear()  # files of the same name may have been rewritten since
        self.info = {"sfreq": None, "ch_names": None, "band": None} | read_manifest(self.folder / "manifest.json")
        self.n_recordings = len(files)
        self.train, self.held_out = self._hold_out([spans_of(path) for path in files], held_out)
        self.last = np.cumsum([self._n_windows(span) for span in self.train])

    def _hold_out(self, recordings: list[list[Span]], share: float) -> tuple[list[Span], list[Span]]:
        if share <= 0:
            return sum(recordings, []), []
        if len(recordings) >= 5:
            order = draws.permutation(len(recordings), self.seed, "held-out recordings").tolist()
            n_held = max(1, int(share * len(recordings)))
            held = set(order[-n_held:])
            parts = [[spans for i, spans in enumerate(recordings) if (i in held) == wanted] for wanted in (False, True)]
            return sum(parts[0], []), sum(parts[1], [])
        train, held = [], []
        for spans in recordings:
            kept, tail = self._cut_tail(spans, share)
            train, held = train + kept, held + tail
        if not held:
            raise UserError(
                f"{self.folder}: too little EEG to hold a part out (fewer than five files, none longer than "
                f"{2 * self.n_times} samples); add recordings, or set held_out=0"
            )
        return train, held

    def _cut_tail(self, spans: list[Span], share: float) -> tuple[list[Span], list[Span]]:
        if len(spans) > 1:
            n_held = max(1, int(share * len(spans)))
            return spans[:-n_held], spans[-n_held:]
        span = spans[0]
        cut = span.stop - max(self.n_times, int(share * span.stop))
        return ([span._replace(stop=cut)], [span._replace(start=cut)]) if cut >= self.n_times else (spans, [])

    def _n_windows(self, span: Span) -> int:
        return max(1, (span.stop - span.start) // self.n_times)

    def __len__(self) -> int:
        return int(self.last[-1])

    def __getitem__(self, batch: draws.Batch) -> Tensor:
        """The batch's windows, (B, n_chans, n_times), cropped by (seed, step, global position) alone."""
        crop, channel = batch.mine(draws.rand((batch.total, 2), self.seed, "crop", batch.step).double()).T
        spans = [self.train[i] for i in np.searchsorted(self.last, batch.index.numpy(), side="right")]
        return self._windows(spans, crop.tolist(), channel.tolist())

    def held_out_windows(self, max_n: int = 512) -> Tensor:
        """At most `max_n` fixed windows of the held-out part, none overlapping, (N, n_chans, n_times)."""
        return self._fixed(self.held_out, max_n, self.seed, "held-out windows")

    def training_windows(self, max_n: int, seed: int = 0) -> Tensor:
        """At most `max_n` windows of the training part, none overlapping, (N, n_chans, n_times)."""
        return self._fixed(self.train, max_n, seed, "training windows")

    def _fixed(self, spans: list[Span], max_n: int, seed: int, purpose: str) -> Tensor:
        n = self.n_times
        windows = [
            span._replace(start=span.start + k * n, stop=span.start + (k + 1) * n)
            if span.stop - span.start > n
            else span
            for span in spans
            for k in range(self._n_windows(span))
        ]
        chosen = draws.permutation(len(windows), seed, purpose)[:max_n].sort().values.tolist()
        channel = draws.rand((len(chosen),), seed, purpose, 1).double().tolist()
        return self._windows([windows[i] for i in chosen], [0.0] * len(chosen), channel)

    def _windows(self, spans: Sequence[Span], crop: list[float], channel: list[float]) -> Tensor:
        """One window of each span; `crop` and `channel`, in [0, 1), place it in time and over channels."""
        out = torch.empty(len(spans), self.n_chans, self.n_times)
        for window, span, u, v in zip(out, spans, crop, channel, strict=True):
            array = mapped(span.path) if span.row is None else mapped(span.path)[span.row]
            start = span.start + int(u * max(span.stop - span.start - self.n_times + 1, 1))
            piece = np.array(array[:, start : min(start + self.n_times, span.stop)], dtype=np.float64)
            first = int(v * max(len(piece) - self.n_chans + 1, 1))
            window.copy_(fit_channels(fit_length(torch.from_numpy(piece), self.n_times), self.n_chans, first))
        return out.mul_(self.scale)


@dataclass
class Trials:
    """The trials of one split, in the split's order; everything in memory."""

    eeg: Tensor  # (N, C, T) float32, windowed, interpolated, scaled
    label: Tensor  # (N,) int64, index into wnids
    image: Tensor  # (N,) int64, index into the file's list of images
    subject: Tensor  # (N,) int64
    position: Tensor  # (N,) int64, index of the trial in the file
    onset: Tensor | None  # (N,) float64, seconds since its recording began
    recording: list | None  # which recording each trial comes from
    names: list[str]  # image stem of each trial
    wnids: list[str]  # label i means wnids[i]
    info: dict  # the file's manifest, `index_space`, `image_overlap`, and `left_out` by the length limits

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
    whole file where the splits file's stem ends in `_all`; `info["index_space"]` says which.
    `info["image_overlap"]` counts the pictures that two splits share.

    Raises:
        UserError: missing file or key; index, label or image out of range; overlapping splits; bad signal.
    """
    path = Path(eeg_signals_path)
    content = read_plain(path, "file of EEG trials (layout of eeg_5_95_std.pth)")
    for key in ("dataset", "labels", "images"):
        if key not in content:
            raise UserError(f"{path}: lacks the key '{key}'; found {sorted(map(str, content))}")
    info = FILE_DEFAULTS | {"ch_names": None, "band": None} | read_manifest(path.with_suffix(".json"))
    trials = content["dataset"]
    _check_entries(path, content)
    order = [i for i, trial in enumerate(trials) if subject in (0, trial["subject"])]
    if not order:
        raise UserError(f"{path}: no trial of subject {subject}; it holds {sorted({t['subject'] for t in trials})}")
    whole = Path(splits_path).stem.endswith("_all") or subject == 0
    info["index_space"] = "the whole file" if whole else f"the list of subject {subject}"
    parts = _read_splits(Path(splits_path), range(len(trials)) if whole else order, info["index_space"])
    if whole and subject:
        parts = {name: [i for i in part if trials[i]["subject"] == subject] for name, part in parts.items()}
    shown = {name: {trials[i]["image"] for i in part} for name, part in parts.items()}
    info["image_overlap"] = {f"{a}/{b}": len(shown[a] & shown[b]) for a, b in (SPLITS[:2], SPLITS[1:], SPLITS[::2])}
    return {name: _trials(path, content, parts[name], name, info, n_chans, n_times, scale) for name in splits}


def _check_entries(path: Path, content: dict) -> None:
    limits = {"label": len(content["labels"]), "image": len(content["images"]), "subject": None}
    for i, trial in enumerate(content["dataset"]):
        for key in ("eeg", *limits):
            if key not in trial:
                raise UserError(f"{path}: trial {i} lacks the key '{key}'; found {sorted(map(str, trial))}")
        for key, limit in limits.items():
            if limit is not None and not 0 <= trial[key] < limit:
                raise UserError(f"{path}: trial {i} has {key} {trial[key]}; the file lists {limit} {key}s, from 0")
        if not isinstance(trial["eeg"], Tensor) or trial["eeg"].ndim != 2:
            shape = tuple(getattr(trial["eeg"], "shape", ())) or type(trial["eeg"]).__name__
            raise UserError(f"{path}: trial {i} has eeg {shape}; expected a tensor (channels, samples)")
    for name in content["images"]:
        image_path("", name)


def _read_splits(path: Path, order: Sequence[int], index_space: str) -> dict[str, list[int]]:
    """Each split's trials as indices into the file, given what the split's own indices count in."""
    content = read_plain(path, "splits file (layout of block_splits_by_image_single.pth)")
    if not content.get("splits"):
        raise UserError(f"{path}: lacks the key 'splits' or it is empty; found {sorted(map(str, content))}")
    parts = content["splits"][0]
    for name in SPLITS:
        if name not in parts:
            raise UserError(f"{path}: splits[0] lacks the key '{name}'; found {sorted(map(str, parts))}")
        wrong = [i for i in parts[name] if not 0 <= i < len(order)]
        if wrong:
            raise UserError(
                f"{path}: split '{name}' has index {wrong[0]}; {index_space} has {len(order)} trials, from 0"
            )
    for a, b in (SPLITS[:2], SPLITS[1:], SPLITS[::2]):
        both = set(parts[a]) & set(parts[b])
        if both:
            raise UserError(f"{path}: splits '{a}' and '{b}' overlap in {len(both)} trials, for example {min(both)}")
    return {name: [order[i] for i in parts[name]] for name in SPLITS}


def _trials(
    path, content: dict, part: list[int], name: str, info: dict, n_chans: int, n_times: int, scale: float
) -> Trials:
    shortest, longest = info["length_limits"]
    begin, end = info["window"]
    kept = [i for i in part if shortest <= content["dataset"][i]["eeg"].shape[1] <= longest]
    if not kept:
        raise UserError(f"{path}: split '{name}' has no trial of {shortest} to {longest} samples among its {len(part)}")
    chosen = [content["dataset"][i] for i in kept]
    eeg = torch.empty(len(kept), n_chans, n_times)
    for i, trial, out in zip(kept, chosen, eeg, strict=True):
        signal = trial["eeg"][:, begin:end]
        if signal.shape[0] > n_chans or 0 in signal.shape:
            raise UserError(f"{path}: trial {i} is {tuple(trial['eeg'].shape)}; the model takes {n_chans} channels")
        check_signal(signal.amin(1).numpy(), signal.amax(1).numpy(), f"{path}: trial {i}")
        out.copy_(fit_channels(fit_length(signal.double(), n_times), n_chans))
    column = {k: torch.tensor([int(t[k]) for t in chosen]) for k in ("label", "image", "subject")}
    timed = all("onset" in trial for trial in chosen)
    return Trials(
        eeg=eeg.mul_(scale),
        position=torch.tensor(kept),
        onset=torch.tensor([float(t["onset"]) for t in chosen], dtype=torch.float64) if timed else None,
        recording=[t["recording"] for t in chosen] if all("recording" in t for t in chosen) else None,
        names=[content["images"][t["image"]] for t in chosen],
        wnids=list(content["labels"]),
        info=info | {"left_out": len(part) - len(kept)},
        **column,
    )
