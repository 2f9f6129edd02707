"""A signal's length, channels and soundness: what stages A and B share."""

import difflib
import json
import os
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from annotated_types import Interval, Len
from typing_extensions import TypedDict

from runtime import atomic
from runtime.errors import UserError
from runtime.plain import checked, read_json, short

LONGEST_HEADER = 10_000  # bytes, numpy's own limit, which it looks at when it has read them
MANY_CHANNELS = 10  # times as many as samples: then these are the channels
OTHER_UNIT = 300  # times larger or smaller than what is usual
Rate = Annotated[float, Interval(ge=1, le=1e5)] | None  # Hz
ORDERS = ("random", "block", "unknown")  # how classes followed each other in time
Range = Annotated[list[Annotated[int, Interval(ge=0, le=1 << 40)]], Len(2, 2)]  # samples
Band = Annotated[list[float], Len(2, 2)] | str | None  # Hz


class Entry(TypedDict, total=False):
    """One recording of a stage A folder, in its manifest."""

    file: str
    sfreq: Rate


class Control(TypedDict, total=False):
    """What was done to the trials of a control, in their manifest."""

    about: str
    design: Annotated[list[str], Len(2, 2)]  # one of ORDERS, and why


# every key of a JSON file beside EEG that the code reads; others are kept as they are
KEYS = {
    "sfreq": Rate, "ch_names": list[str] | None, "band": Band, "window": Range, "length_limits": Range,
    "image_known": bool, "simulated": bool, "standardised": bool | str, "unit": str | None, "control": Control | None,
    "excludes_test": bool | str | None, "class_names": dict[str, str], "about": str, "description": str,
    "recordings": list[Entry], "settings": dict[str, Any],
}  # fmt: skip
Manifest = TypedDict("Manifest", KEYS, total=False)
# keys that change what is read, and so may not be missed for their spelling
DECISIVE = ("sfreq", "window", "length_limits", "ch_names", "image_known", "excludes_test", "simulated")


def fit_length(eeg: np.ndarray, n_times: int) -> np.ndarray:
    """(C, T) to (C, n_times), in float64, by linear interpolation that keeps both end points (spec 8.7).

    One that has the length already comes back as it is: most windows do, and to interpolate them took four fifths of
    the time to read a batch. As numpy.interp computes it, to the bit, but all channels at once. In numpy: torch would
    wake all its threads for each small trial, and many processes then wait for each other.
    """
    if eeg.shape[1] == n_times:
        return eeg
    at = np.linspace(0, eeg.shape[1] - 1, n_times)
    left = at.astype(np.int64)
    wide = eeg.astype(np.float64)
    low, high = wide.take(left, 1), wide.take(np.minimum(left + 1, eeg.shape[1] - 1), 1)
    return low + (high - low) * (at - left)


def fit_channels(eeg: np.ndarray, n_chans: int, first: int = 0) -> np.ndarray:
    """(C, T) to (n_chans, T): fewer are repeated block by block, of more, `first`.. are kept (spec 3.1)."""
    have = len(eeg)
    return eeg[np.arange(n_chans) % have + (first if have > n_chans else 0)]


def check_signal(low: np.ndarray, high: np.ndarray, where: str) -> None:
    """Refuse NaN, infinite and constant channels, from each channel's minimum and maximum (..., C).

    Raises:
        UserError: names file, trial or segment, and channel.
    """
    broken, constant = ~(np.isfinite(low) & np.isfinite(high)), low == high
    for bad, problem in ((broken, "has NaN or infinite samples"), (constant, "is constant (a dead electrode?)")):
        if bad.any():
            *segment, channel = np.argwhere(bad)[0].tolist()
            at = f", segment {segment[0]}" if segment else ""
            raise UserError(f"{where}{at}: channel {channel} {problem}; repair it or leave it out (run.py prepare_eeg)")


def odd_one(sizes: np.ndarray) -> tuple[float, int | None]:
    """The usual size (median) of those that are no zero or NaN, and the first one that is of another unit, if any."""
    usual = float(np.median(sizes[sizes > 0])) if (sizes > 0).any() else 0.0
    odd = np.flatnonzero((sizes > 0) & ((sizes > OTHER_UNIT * usual) | (sizes * OTHER_UNIT < usual)))
    return usual, int(odd[0]) if len(odd) else None


def check_design(design: list[str] | None, where: str) -> None:
    """Raises UserError where what a file calls the order of its classes is no such word."""
    if design and design[0] not in ORDERS:
        raise UserError(f"{where} is {short(design[0])}, expected one of {', '.join(ORDERS)}")


def read_manifest(path: Path) -> dict:
    """A JSON object beside the data, or {} where there is none.

    Raises:
        UserError: the file is there and not a JSON object, a value is of another type or out of its bounds, or a key
            is nearly one of DECISIVE that is not there.
    """
    if not os.path.lexists(path):
        return {}
    content = checked(Manifest, read_json(path, "manifest"), str(path))
    for key in content.keys() - KEYS.keys():
        near = difflib.get_close_matches(key.lower(), DECISIVE, 1, 0.75)
        if near and near[0] not in content:
            raise UserError(f"{path}: has the key {short(key)}; is {near[0]} meant? rename it")
    check_design((content.get("control") or {}).get("design"), f"{path}: control.design")
    for key in ("window", "length_limits"):
        first, last = content.get(key, (0, 1))
        if first + (key == "window") > last:
            raise UserError(f"{path}: {key} is {[first, last]}, expected the smaller number first")
    return content


def check_names(names: list[str] | None, n_chans: int, where: str) -> None:
    """Raise UserError where channels are named, and not as many as there are."""
    if names and len(names) != n_chans:
        raise UserError(f"{where}: ch_names has {len(names)} names for {n_chans} channels")


def write_manifest(path: Path, content: dict) -> None:
    """The JSON object that `read_manifest` reads."""
    atomic.write_text(path, json.dumps(content, indent=1))


class Span(NamedTuple):
    """Samples start..stop of a recording: of a (C, T) file, or of segment `row` of an (n, C, T) file."""

    path: Path
    row: int | None
    start: int
    stop: int


@lru_cache(maxsize=1 << 17)  # to read it again takes as long as a window
def layout(path: Path) -> tuple:
    """What np.memmap is told of a file: dtype, mode, offset, shape and order."""
    try:
        with open(path, "rb") as file:
            head = file.read(12)
        if head[6:7] > b"\1" and int.from_bytes(head[8:], "little") > LONGEST_HEADER:
            raise ValueError("a header longer than any")
        array = np.load(path, mmap_mode="r", allow_pickle=False, max_header_size=LONGEST_HEADER)
        return array.dtype, "r", array.offset, array.shape, "F" if array.flags.fnc else "C"
    except Exception as error:  # numpy reads headers as Python text, and fails in any way; an archive is no array
        said = "is not a readable .npy array (cut off, damaged, an archive, or of objects)"
        raise UserError(f"{path}: {said}; write it again with numpy.save") from error


@lru_cache(maxsize=512)  # each holds a file open, and a large corpus has more files than a process may open
def mapped(path: Path) -> np.ndarray:
    """The array of a file. Raises UserError where it cannot be read."""
    try:
        return np.memmap(path, *layout(path))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: has changed since it was opened, or cannot be opened ({error})") from error


def read_span(span: Span) -> np.ndarray:
    """The samples of a span, (C, stop - start), memory-mapped."""
    array = mapped(span.path)
    return (array if span.row is None else array[span.row])[:, span.start : span.stop]


def spans_of(path: Path) -> tuple[list[Span], float]:
    """The checked segments of one file, and the median distance of its samples (of some) from their channel's median.

    So a constant beside the EEG, as headsets coupled by DC record it, is no other unit.
    """
    array = mapped(path)
    if array.ndim not in (2, 3) or 0 in array.shape:
        raise UserError(f"{path}: has shape {array.shape}; expected (channels, samples), or segments of that shape")
    if array.dtype.kind != "f":
        raise UserError(f"{path}: holds {array.dtype}; expected floating point samples")
    if array.shape[-2] > MANY_CHANNELS * array.shape[-1]:
        raise UserError(f"{path}: has shape {array.shape}; expected (channels, samples): transpose it")
    check_signal(array.min(-1), array.max(-1), str(path))
    rows = range(len(array)) if array.ndim == 3 else [None]
    some = array[..., :: 1 + array.shape[-1] // 64].astype(np.float64)
    some -= np.median(some, axis=-1, keepdims=True)
    return [Span(path, row, 0, array.shape[-1]) for row in rows], float(np.median(np.abs(some)))
