"""A torch file of EEG trials, converted once into plain arrays beside it; nothing in it is executed.

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
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.signals import write_manifest
from data.stimuli import image_path
from runtime import checkpoints, digests
from runtime.errors import UserError

FORMAT = "eeg-trials-2"
KEYS = ("dataset", "labels", "images")
OPTIONAL = ("onset", "recording")
NUMBER = (int, "a whole number")
FACTS = {"label": NUMBER, "image": NUMBER, "subject": NUMBER}
FACTS |= {"onset": (int | float, "seconds"), "recording": (int | str, "a name or number")}


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
        digest = digests.sha256(path)
        if about.get("sha256") != digest:
            about = _convert(path, samples, index)
        if _seen(path) != seen:
            raise UserError(f"{path}: changed while it was read; give the same command again when it is whole")
        about |= {"format": FORMAT, "sha256": digest, "seen": seen}
        checkpoints.write_text(index, json.dumps(about))
    size = np.array(about["trials"]["shape"], dtype=np.int64).reshape(-1, 2).prod(1)
    return TrialFile(samples, np.load(samples, mmap_mode="r").offset, np.cumsum(size) - size, about)


def write_trial_file(path: Path, content: dict, splits: dict[str, dict[str, list[int]]], manifest: dict) -> None:
    """Write a file of trials as published, with its manifest and splits files; the trials last.

    content: "dataset", "labels" and "images" (spec 1.1); splits: trials by part (spec 1.2), by a splits file's stem.
    """
    write_manifest(path.with_suffix(".json"), manifest)
    for stem, parts in splits.items():
        checkpoints.save(path.with_name(f"{stem}.pth"), {"splits": [parts]})
    checkpoints.save(path, content)


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
    """A float32 .npy file of this shape, written part after part, in place of what killed writers left of it."""
    checkpoints.sweep(path)

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
    columns = {key: [trial.get(key) for trial in trials] for key in FACTS}
    columns |= {"shape": [list(trial["eeg"].shape) for trial in trials], "digest": []}
    total = sum(map(math.prod, columns["shape"]))
    names = sum(len(str(name)) for name in (*content["labels"], *content["images"], *columns["recording"]))
    if max(total, names) > (limit := path.stat().st_size):
        too_many = f"{total} samples and {names} letters of names, but has {limit} bytes"
        raise UserError(f"{path}: asks for {too_many}: many trials are copies of one; write each trial once")

    def read() -> Iterable[np.ndarray]:
        for number, trial in enumerate(trials):
            eeg = _samples_of(trial, f"{path}: trial {number}")
            columns["digest"].append(hashlib.blake2b(eeg, digest_size=16).hexdigest())
            yield eeg

    # the index goes first: interrupted later, the earlier file's would stand beside these samples
    for earlier in [index, *samples.parent.glob(f"{glob.escape(path.stem)}.windows-*.npy")]:
        if earlier.is_file():
            earlier.unlink(missing_ok=True)
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
    if missing := [key for key in KEYS if key not in content]:
        raise UserError(f"{path}: lacks the key '{missing[0]}'; found {sorted(map(str, content))}")
    for key in KEYS:
        if not isinstance(content[key], list) or not content[key]:
            raise UserError(f"{path}: '{key}' is empty or no list")
    latest: dict[int, float] = {}  # onset of each subject's trial before
    for i, trial in enumerate(content["dataset"]):
        if problem := _problem_of(trial, {"label": len(content["labels"]), "image": len(content["images"])}):
            raise UserError(f"{path}: trial {i} {problem}")
        if "onset" in trial and "recording" not in trial:
            if trial["onset"] < latest.get(trial["subject"], trial["onset"]):
                raise UserError(f"{path}: trial {i}: onsets begin anew, but no trial names its 'recording'")
            latest[trial["subject"]] = trial["onset"]
    for name in content["images"]:
        image_path("", name)
    if not all(isinstance(name, str | int) for name in content["labels"]):
        raise UserError(f"{path}: 'labels' holds something other than names")


def _problem_of(trial: Any, limits: dict[str, int]) -> str:
    """What keeps a trial from being read, in words after "trial 7"; limits: how many labels and images there are."""
    if not isinstance(trial, dict):
        return "is no dict"
    if missing := [key for key in ("eeg", *FACTS) if key not in trial and key not in OPTIONAL]:
        return f"lacks the key '{missing[0]}'; found {sorted(map(str, trial))}"
    eeg = trial["eeg"]
    if not (isinstance(eeg, Tensor) and eeg.dim() == 2 and eeg.is_floating_point()):
        kind = f"{tuple(eeg.shape)} of {eeg.dtype}" if isinstance(eeg, Tensor) else str(eeg)[:60]
        return f"has eeg {kind}; expected floating point numbers (channels, samples)"
    for key, (kind, words) in FACTS.items():
        if key in trial and not isinstance(trial[key], kind):
            return f"has {key} {str(trial[key])[:60]}; expected {words}"
    if not math.isfinite(trial.get("onset", 0)):
        return f"has onset {trial['onset']}; expected seconds"
    for key, limit in limits.items():
        if not 0 <= trial[key] < limit:
            return f"has {key} {trial[key]}; the file lists {limit} {key}s, from 0"
    return ""
