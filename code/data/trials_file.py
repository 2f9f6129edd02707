"""A torch file of EEG trials (spec 1.1), converted once into plain arrays beside it; nothing in it is executed.

`<folder>/cache/<stem>.trials.npy` holds every trial's samples end to end, float32; `<stem>.trials.json` says where
each begins and what it is, and which file (size, time of change, sha256) it was made from. A file of the same size
and time of change is taken for the same one; otherwise its sha256 decides, which costs seconds.
`<stem>.windows-<key>.npy` holds what a stage cuts out of the trials of a split, ready for the model.

Shapes: N trials, C electrodes, L samples of one trial, T samples of a window.
"""

import glob
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data.stimuli import image_path
from runtime import checkpoints
from runtime.errors import UserError

FORMAT = "eeg-trials-2"
KEYS = ("dataset", "labels", "images")
OPTIONAL = ("onset", "recording")
NUMBER = (int, "a whole number")
FIELDS = {
    "eeg": (Tensor, "a tensor"), "label": NUMBER, "image": NUMBER, "subject": NUMBER,
    "onset": (int | float, "seconds"), "recording": (int | str, "a name or number"),
}  # fmt: skip


@dataclass(frozen=True)
class TrialFile:
    """An opened file of trials: every fact of every trial; samples are read when asked for.

    `about` holds "labels", "images", "sha256" and "trials": one list each of shape, label, image, subject, digest and
    OPTIONAL.
    """

    samples: Path
    offset: int  # bytes before the first sample
    start: np.ndarray  # (N,) int64, of each trial's first sample
    about: dict

    def eeg(self, trial: int) -> np.ndarray:
        """(C, L) float32 of one trial, mapped from the disk, so that no more than is in use counts as memory."""
        offset = self.offset + 4 * int(self.start[trial])
        return np.memmap(self.samples, "<f4", "c", offset, tuple(self.about["trials"]["shape"][trial]))


def open_trial_file(path: str | Path) -> TrialFile:
    """Open a file of trials by its cache, which is made first where it is missing, of another file, or damaged.

    Raises:
        UserError: missing, unreadable or incomplete file, or one that changes meanwhile; the cache cannot be written.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected a file of EEG trials (layout of eeg_5_95_std.pth)")
    samples, index = (path.parent / "cache" / f"{path.stem}.trials{suffix}" for suffix in (".npy", ".json"))
    seen = _seen(path)
    about = _read_index(samples, index)
    if about.get("seen") != seen:
        digest = checkpoints.sha256(path)
        if about.get("sha256") != digest:
            about = _convert(path, samples, index)
        if _seen(path) != seen:
            raise UserError(f"{path}: changed while it was read; give the same command again when it is whole")
        about |= {"format": FORMAT, "sha256": digest, "seen": seen}
        checkpoints.write_text(index, json.dumps(about))
    size = np.array(about["trials"]["shape"], dtype=np.int64).reshape(-1, 2).prod(1)
    return TrialFile(samples, np.load(samples, mmap_mode="r").offset, np.cumsum(size) - size, about)


def cached_windows(
    file: TrialFile, facts: list, shape: tuple[int, ...], rows: Callable[[], Iterable[np.ndarray]]
) -> np.ndarray:
    """An array (N, C, T) float32 that is made of the file's trials once, then mapped from the disk (copy on write).

    rows: makes N arrays (C, T), asked for only where no earlier run left them; facts: plain values which, with the
    file and the shape, decide what they are. Where they cannot be kept, they are made in memory, and a line says so.
    """
    key = hashlib.blake2b(json.dumps([FORMAT, file.about["sha256"], shape, facts]).encode(), digest_size=8).hexdigest()
    path = file.samples.with_name(f"{file.samples.name.removesuffix('.trials.npy')}.windows-{key}.npy")
    windows = _mapped(path)
    if windows is None or windows.shape != shape:
        checkpoints.sweep(path)
        try:
            _write_array(path, shape, rows())
            windows = _mapped(path)
        except UserError as error:
            if not isinstance(error.__cause__, OSError):  # then it is about the EEG
                raise
            print(f"note: {path} could not be kept ({error.__cause__}): it is made again each time, in memory")
            windows = None
    # another process may have removed it meanwhile, having found a new file of trials
    return np.stack([np.asarray(row, "<f4") for row in rows()]) if windows is None else windows


def _write_array(path: Path, shape: tuple[int, ...], parts: Iterable[np.ndarray]) -> None:
    """A float32 .npy file of this shape, written part after part."""

    def write(file) -> None:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
        for part in parts:
            file.write(np.ascontiguousarray(part, dtype="<f4"))

    checkpoints.replace_atomically(path, write)


def _mapped(path: Path) -> np.ndarray | None:
    """An array that an earlier run left, or None where it is missing or damaged."""
    try:
        return np.load(path, mmap_mode="c")
    except (OSError, EOFError, ValueError):
        return None


def _seen(path: Path) -> dict[str, int]:
    return {"size": path.stat().st_size, "mtime_ns": path.stat().st_mtime_ns}


def _read_index(samples: Path, index: Path) -> dict:
    """What the cache says of itself; nothing where it is missing or broken off."""
    try:
        about = json.loads(index.read_text())
        return about if about["format"] == FORMAT and _mapped(samples).ndim == 1 else {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _convert(path: Path, samples: Path, index: Path) -> dict:
    """Write the samples, trial by trial; returns the file's facts."""
    started = time.time()
    with torch.serialization.safe_globals(NUMPY):
        content = checkpoints.read_plain(path, "file of EEG trials")
    _check(path, content)
    trials = content["dataset"]
    columns = {k: [trial.get(k) for trial in trials] for k in ("label", "image", "subject", *OPTIONAL)}
    columns |= {"shape": [list(trial["eeg"].shape) for trial in trials], "digest": []}
    total = sum(n_chans * length for n_chans, length in columns["shape"])
    names = sum(len(str(name)) for name in (*content["labels"], *content["images"], *columns["recording"]))
    if max(total, names) > (limit := path.stat().st_size):
        raise UserError(
            f"{path}: asks for {total} samples and {names} letters of names, but has {limit} bytes: many trials are "
            "copies of one; write each trial once"
        )

    def read() -> Iterable[np.ndarray]:
        for number, trial in enumerate(trials):
            eeg = _samples_of(trial, f"{path}: trial {number}")
            columns["digest"].append(hashlib.blake2b(eeg, digest_size=16).hexdigest())
            yield eeg

    if index.is_file():  # else, interrupted here, the earlier file's index would stand beside these samples
        index.unlink(missing_ok=True)
    for earlier in samples.parent.glob(f"{glob.escape(path.stem)}.windows-*.npy"):
        earlier.unlink(missing_ok=True)
    checkpoints.sweep(samples)
    _write_array(samples, (total,), read())
    size, seconds = f"{4 * total / 1e9:.2f} GB", time.time() - started
    print(f"{path}: {len(trials)} trials converted once into {samples} ({size}) in {seconds:.1f} s")
    return {"labels": content["labels"], "images": content["images"], "trials": columns}


def _samples_of(trial: dict, where: str) -> np.ndarray:
    """(C, L) float32, contiguous. Raises UserError for a tensor without readable numbers."""
    try:
        return np.ascontiguousarray(trial["eeg"].detach().float().numpy(), dtype="<f4")
    except (RuntimeError, TypeError) as error:  # sparse, or on no device
        raise UserError(f"{where} cannot be read ({error}); expected a dense tensor") from error


class _Dtype:
    """Stands for numpy.dtype while a file is read: of the state that a file gives, only the byte order is taken."""

    def __init__(self, code: str, *_) -> None:
        if not isinstance(code, str):
            raise ValueError("no numpy scalar")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


def _scalar(kind: _Dtype, content: bytes) -> int | float | str:
    """A numpy scalar of the file as a plain value."""
    return np.frombuffer(content, kind.dtype, 1)[0].item()


# real files hold labels and onsets as numpy's scalars (numpy 1 and 2 name them differently)
NUMPY = [(_Dtype, "numpy.dtype"), *((_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core"))]


def _check(path: Path, content: dict) -> None:
    for key in KEYS:
        if key not in content:
            raise UserError(f"{path}: lacks the key '{key}'; found {sorted(map(str, content))}")
    for key in KEYS:
        if not isinstance(content[key], list) or not content[key]:
            raise UserError(f"{path}: '{key}' is empty or no list")
    limits = {"label": len(content["labels"]), "image": len(content["images"])}
    last: dict[int, float] = {}  # onset of each subject's trial before
    for i, trial in enumerate(content["dataset"]):
        if not isinstance(trial, dict):
            raise UserError(f"{path}: trial {i} is no dict")
        for key, (kind, words) in FIELDS.items():
            if key not in trial and key not in OPTIONAL:
                raise UserError(f"{path}: trial {i} lacks the key '{key}'; found {sorted(map(str, trial))}")
            if key in trial and not isinstance(trial[key], kind):
                raise UserError(f"{path}: trial {i} has {key} {str(trial[key])[:60]}; expected {words}")
        for key, limit in limits.items():
            if not 0 <= trial[key] < limit:
                raise UserError(f"{path}: trial {i} has {key} {trial[key]}; the file lists {limit} {key}s, from 0")
        eeg, onset = trial["eeg"], trial.get("onset", 0)
        if eeg.dim() != 2 or not eeg.is_floating_point():
            raise UserError(
                f"{path}: trial {i} has eeg {tuple(eeg.shape)} of {eeg.dtype}; expected floating point numbers "
                "(channels, samples)"
            )
        if not math.isfinite(onset):
            raise UserError(f"{path}: trial {i} has onset {onset}; expected seconds")
        if "onset" in trial and "recording" not in trial:
            if onset < last.get(trial["subject"], onset):
                raise UserError(f"{path}: trial {i}: onsets begin anew, but no trial names its 'recording'")
            last[trial["subject"]] = onset
    for name in content["images"]:
        image_path("", name)
    if not all(isinstance(name, str | int) for name in content["labels"]):
        raise UserError(f"{path}: 'labels' holds something other than names")
