"""A signal's length, channels and soundness: what stages A and B share."""

import json
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from runtime import checkpoints
from runtime.errors import UserError


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


def read_manifest(path: Path) -> dict:
    """A JSON object beside the data, or {} where there is none.

    Raises:
        UserError: the file is there and not a JSON object.
    """
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path}: is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}, expected a JSON object of named fields")
    return content


def write_manifest(path: Path, content: dict) -> None:
    """The JSON object that `read_manifest` reads."""
    checkpoints.write_text(path, json.dumps(content, indent=1))


class Span(NamedTuple):
    """Samples start..stop of a recording: of a (C, T) file, or of segment `row` of an (n, C, T) file."""

    path: Path
    row: int | None
    start: int
    stop: int


@lru_cache(maxsize=1024)  # a large corpus has more files than a process may map at once
def mapped(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise UserError(f"{path}: is not a readable .npy array ({error})") from error


def read_span(span: Span) -> np.ndarray:
    """The samples of a span, (C, stop - start), memory-mapped."""
    array = mapped(span.path)
    return (array if span.row is None else array[span.row])[:, span.start : span.stop]


def spans_of(path: Path) -> list[Span]:
    """The checked segments of one file."""
    array = mapped(path)
    if array.ndim not in (2, 3) or 0 in array.shape:
        raise UserError(f"{path}: has shape {array.shape}; expected (channels, samples), or segments of that shape")
    if array.dtype.kind != "f":
        raise UserError(f"{path}: holds {array.dtype}; expected floating point samples")
    check_signal(array.min(-1), array.max(-1), str(path))
    rows = range(len(array)) if array.ndim == 3 else [None]
    return [Span(path, row, 0, array.shape[-1]) for row in rows]
