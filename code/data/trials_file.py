"""A torch file of EEG trials, converted once into plain arrays beside it; nothing in it is executed.

`<folder>/cache/<stem>.trials.npy` holds every trial's samples end to end, float32; `<stem>.trials.json` says where
each begins and what it is, and which file (fingerprint, sha256) it was made from. A file of the same fingerprint is
taken for the same one; otherwise its sha256 decides, which costs seconds.
`<stem>.windows-<key>.npy` holds what a stage cuts out of the trials of a split, ready for the model.

Damage: records of a zipped torch file carry a CRC-32, which is compared at conversion; the format before torch 1.6
carries none, and there only values that cannot be EEG are seen. What the cache holds is compared with digests: the
index whole, each trial when it is read, arrays of more than 2 MB by blocks spread over them when they are opened.

Shapes: N trials, C electrodes, L samples of one trial, T samples of a window.
"""

import contextlib
import glob
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NotRequired

import numpy as np
import torch
from annotated_types import Interval, MaxLen, MinLen
from torch import Tensor
from typing_extensions import TypedDict

from data.signals import odd_one, write_manifest
from data.stimuli import image_path
from runtime import atomic, checkpoints, digests
from runtime.errors import UserError
from runtime.plain import checked, short

FORMAT = "eeg-trials-3"
OPTIONAL = ("onset", "recording")
FACTS = ("label", "image", "subject", *OPTIONAL)
LONGEST_GAP = 100  # seconds, the median, between trials of a recording; more are milliseconds
CACHE_BLOCKS = 32  # of a cached array that are compared at each opening: 2 MB, a tenth of what an opening takes
OFFSET, PEAK = 100, 1e6  # times the spread that is usual in the file: mean and peak of one trial


class Trial(TypedDict):
    """One trial as a file has it (spec 1.1)."""

    eeg: Any  # Tensor (C, L)
    label: int
    image: int
    subject: int
    onset: NotRequired[Annotated[float, Interval(ge=0, le=1e9)]]  # seconds
    recording: NotRequired[int | str]


class Content(TypedDict):
    """A whole file."""

    dataset: Annotated[list[Any], MinLen(1)]  # of Trial, each checked under its number
    labels: Annotated[list[str | int], MinLen(1)]
    images: Annotated[list[Annotated[str, MaxLen(200)]], MinLen(1)]


@dataclass(frozen=True)
class TrialFile:
    """An opened file of trials: every fact of every trial; samples are read when asked for.

    `about` holds "labels", "images", "sha256" and "trials": one list each of shape, label, image, subject, digest and
    OPTIONAL.
    """

    path: Path
    samples: Path
    offset: int  # bytes before the first sample
    start: np.ndarray  # (N,) int64, of each trial's first sample
    about: dict

    def eeg(self, trial: int) -> np.ndarray:
        """(C, L) float32 of one trial, mapped from the disk, so that no more than is in use counts as memory.

        A trial that is not what was converted is converted again; the file itself must be the same.
        """
        offset, shape = self.offset + 4 * int(self.start[trial]), tuple(self.about["trials"]["shape"][trial])
        for damaged in (False, True):
            if damaged:
                print(f"note: {self.samples} is damaged at trial {trial}: it is made again from {self.path}")
                self.samples.with_suffix(".json").unlink(missing_ok=True)
                _open(self.path, self.samples)
            eeg = np.memmap(self.samples, "<f4", "c", offset, shape)
            if digests.of_bytes(eeg) == self.about["trials"]["digest"][trial]:
                return eeg
        raise UserError(f"{self.path}: changed while it was read; give the same command again when it is whole")


def open_trial_file(path: str | Path, cache: str | Path | None = None) -> TrialFile:
    """Open a file of trials by its cache, which is made first where it is missing, of another file, or damaged.

    cache: folder for it; None: `cache` beside the file.

    Raises:
        UserError: missing, unreadable or incomplete file, or one that changes meanwhile; the cache cannot be written.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected a file of EEG trials (layout of eeg_5_95_std.pth)")
    samples = path.parent / "cache" / f"{path.stem}.trials.npy"
    if cache:  # which may hold those of other folders too
        samples = Path(cache) / f"{path.stem}-{digests.of_bytes(bytes(path.resolve()))[:8]}.trials.npy"
    return _open(path, samples)


def _open(path: Path, samples: Path) -> TrialFile:
    """The file by its cache: `samples`, and what describes them beside it."""
    seen, about = digests.fingerprint(path), _described(samples)
    if about.get("seen") != seen:
        digest = digests.sha256(path)
        try:
            if about.get("sha256") != digest:
                about = _convert(path, samples)
            if digests.fingerprint(path) != seen:
                raise UserError(f"{path}: changed while it was read; give the same command again when it is whole")
            about = _describe(samples, about | {"sha256": digest, "seen": seen})
        except UserError as error:
            if not isinstance(error.__cause__, OSError):  # then it is about the EEG
                raise
            if about.get("sha256") != digest:  # else only what it was seen as is not written down
                raise UserError(f"{error}; or name a folder for it that can be written: cache=") from error
    size = np.array(about["trials"]["shape"], dtype=np.int64).reshape(-1, 2).prod(1)
    return TrialFile(path, samples, np.load(samples, mmap_mode="r").offset, np.cumsum(size) - size, about)


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
    if (windows := _mapped(path, shape)) is None:
        try:
            _write_array(path, shape, rows())
            _describe(path, {})
            windows = _mapped(path, shape)
        except UserError as error:
            if not isinstance(error.__cause__, OSError):  # then it is about the EEG
                raise
            print(f"note: {path} could not be kept ({error.__cause__}): it is made again each time, in memory")
            windows = None
    # another process may have removed it meanwhile, having found a new file of trials
    return np.stack([np.asarray(row, "<f4") for row in rows()]) if windows is None else windows


def _write_array(path: Path, shape: tuple[int, ...], parts: Iterable[np.ndarray]) -> None:
    """A float32 .npy file of this shape, written part after part, in place of what killed writers left of it."""
    atomic.sweep(path)

    def write(file) -> None:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
        for part in parts:
            file.write(np.ascontiguousarray(part, dtype="<f4"))

    atomic.replace_atomically(path, write)


def _content(path: Path) -> dict:
    """A file's size and sampled digest: what stays the same where a cache is copied elsewhere."""
    return {key: value for key, value in digests.fingerprint(path, CACHE_BLOCKS).items() if key != "mtime_ns"}


def _describe(path: Path, about: dict) -> dict:
    """Write, and give back, what `_described` reads: JSON that begins with the digest of the rest."""
    about = about | {"format": FORMAT, "content": _content(path)}
    rest = f", {json.dumps(about)[1:]}"
    atomic.write_text(path.with_suffix(".json"), f'{{"digest": "{digests.of_bytes(rest.encode())}"{rest}')
    return about


def _described(path: Path) -> dict:
    """What was written beside an array of the cache; {} where either is missing, damaged or older: a line tells."""
    if not (index := path.with_suffix(".json")).is_file():
        return {}
    try:
        text = index.read_bytes()
        about = json.loads(text)
        if about.pop("digest") == digests.of_bytes(text[text.index(b",") :]) and about["content"] == _content(path):
            return about
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        pass
    print(f"note: {path} is damaged or of an earlier version: it is made again")
    return {}


def _mapped(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """An array that an earlier run left, or None where it is missing or damaged."""
    with contextlib.suppress(OSError, ValueError):
        return np.load(path, mmap_mode="c").reshape(shape) if _described(path) else None


def _convert(path: Path, samples: Path) -> dict:
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
        sizes = []
        for number, trial in enumerate(trials):
            eeg = _samples_of(trial, f"{path}: trial {number}")
            columns["digest"].append(digests.of_bytes(eeg))
            sizes.append(_sizes_of(eeg))
            yield eeg
        _check_sizes(path, *np.array(sizes).T)

    # the index goes first: interrupted later, the earlier file's would stand beside these samples
    stem = glob.escape(samples.name.removesuffix(".trials.npy"))
    for earlier in [samples.with_suffix(".json"), *samples.parent.glob(f"{stem}.windows-*")]:
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
    """Raise UserError for facts of another type or out of range, and for times that cannot be seconds."""
    checked(Content, content, str(path), "see docs/data_formats.md")
    trials, limits = content["dataset"], {"label": len(content["labels"]), "image": len(content["images"])}
    times: dict[tuple, list[float]] = {}  # onsets of each recording, as the file has them
    for i, trial in enumerate(trials):
        where = f"{path}: trial {i}"
        eeg = checked(Trial, trial, where)["eeg"]
        if not (isinstance(eeg, Tensor) and eeg.dim() == 2 and eeg.is_floating_point()):
            kind = f"{short(tuple(eeg.shape))} of {eeg.dtype}" if isinstance(eeg, Tensor) else short(eeg)
            raise UserError(f"{where} has eeg {kind}; expected floating point numbers (channels, samples)")
        if len(eeg) != len(trials[0]["eeg"]):
            raise UserError(f"{where} has {len(eeg)} channels and trial 0 {len(trials[0]['eeg'])}; give all the same")
        for key, limit in limits.items():
            if not 0 <= trial[key] < limit:
                raise UserError(f"{where} has {key} {trial[key]}; the file lists {limit} {key}s, from 0")
        if "onset" in trial:
            tape = times.setdefault((trial["subject"], trial.get("recording")), [])
            if tape and trial["onset"] < tape[-1] and "recording" not in trial:
                raise UserError(f"{where}: onsets begin anew, but no trial names its 'recording'")
            tape.append(trial["onset"])
    gaps = np.array([gap for tape in times.values() for gap in np.diff([min(tape), *sorted(tape)])])
    if len(gaps) and np.median(gaps) > LONGEST_GAP:
        raise UserError(f"{path}: onsets lie {np.median(gaps):g} apart (median); are they in ms? give seconds")
    if back := sum(int(np.sum(np.diff(tape) < 0)) for tape in times.values()):
        print(f"note: {path}: onsets decrease within a recording, at {back} trials of the file")
    for name in content["images"]:
        image_path("", name)


def _sizes_of(eeg: np.ndarray) -> tuple[float, float, float]:
    """A trial's spread and mean, of its middle channel by either, and largest value; the first two by a sample."""
    if not eeg.size:
        return 0, 0, 0
    some = eeg[:: 1 + len(eeg) // 16, ::4]
    with np.errstate(all="ignore"):  # NaN and infinite samples are named when they are used
        spread, mean = np.sort(some.std(1)), np.sort(np.abs(some.mean(1)))
        return spread[len(some) // 2], mean[len(some) // 2], max(eeg.max(), -eeg.min())


def _check_sizes(path: Path, spread: np.ndarray, mean: np.ndarray, peak: np.ndarray) -> None:
    """Refuse a trial (of N) of another unit than the others, beside a large constant, or with values that are no EEG.

    Raises:
        UserError: names the trial; constant ones, which have no unit, are named when they are used.
    """
    (usual, odd), level = odd_one(spread), np.median(mean[mean >= 0]) if (mean >= 0).any() else 0
    suspects = {"another unit?": [] if odd is None else [odd]}
    suspects["a constant (DC) beside it?"] = np.flatnonzero(mean > OFFSET * (level + usual))
    suspects["damaged?"] = np.flatnonzero(peak > PEAK * usual)
    for words, found in suspects.items():
        for i in found if usual else ():
            said = f"spread {spread[i]:.3g}, mean {mean[i]:.3g} and largest value {peak[i]:.3g}"
            others = f"all trials spread {usual:.3g} and mean {level:.3g} (median)"
            raise UserError(f"{path}: trial {i} has {said}, {others}: {words} make it as the others, or leave it out")
