"""Recordings as headsets write them: read into mne.io.Raw, picked, filtered, resampled, standardised.

Shapes: C electrodes, T samples.
"""

import hashlib
import math
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from runtime.errors import UserError

if TYPE_CHECKING:
    import mne  # it takes seconds, so functions import it

SUFFIXES = (".csv.gz", ".csv", ".edf", ".bdf", ".fif.gz", ".fif", ".set", ".vhdr")
# channels that are no scalp EEG, by name, for the formats that do not say what a channel is
NOT_EEG = re.compile(r"EOG|ECG|EKG|EMG|EXG|AUX|STATUS|STI|TRIG|MARK|EVENT|ACC|GYR|RESP|GSR|PPG|COUNT|TIME", re.I)
MAD_TO_SD = 1.4826  # of a normal distribution
MAX_STRAY = 0.25  # s a time stamp may be away from even sampling; radio headsets jitter by tens of milliseconds


@dataclass(frozen=True)
class Recording:
    """One file's EEG and what was marked in it."""

    name: str  # from its path, unique in the folder
    path: Path
    subject: int
    raw: "mne.io.BaseRaw"  # EEG channels alone, in volts; markers are its annotations
    dropped: dict[str, str]  # channel left out -> why


def find_recordings(folder: str | Path) -> list[Path]:
    """Every file below `folder` in a format we read, sorted.

    Raises:
        UserError: no such folder, nothing readable in it, or two files whose names would be one.
    """
    folder = Path(folder)
    paths = sorted(p for p in folder.rglob("*") if p.name.lower().endswith(SUFFIXES) and p.is_file())
    if not paths:
        missing = "no recording in this folder or below it" if folder.is_dir() else "no such folder"
        raise UserError(f"{folder}: {missing}; it should hold files of these kinds: {', '.join(SUFFIXES)}")
    names = [_name(path, folder) for path in paths]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"{folder}: two recordings would both be called {twice[0]}; rename one")
    return paths


def _name(path: Path, folder: Path) -> str:
    relative = "_".join(path.relative_to(folder).parts)
    suffix = next(s for s in SUFFIXES if relative.lower().endswith(s))
    return relative[: -len(suffix)]


def read_recording(path: Path, folder: Path) -> Recording:
    """Read one file and keep its EEG channels; others, and flat ones, are listed in `dropped`.

    CSV: a header line, a time column in seconds (`timestamps`), markers in a column `Marker...` (0 is none),
    every other column a channel in microvolts. Other formats as MNE reads them; trigger channels become
    annotations. The subject is the number after "sub" in the path, else 1.

    Raises:
        UserError: unreadable, not finite, no EEG channel left, gaps in time.
    """
    raw = _read_csv(path) if path.name.lower().endswith((".csv", ".csv.gz")) else _read_mne(path)
    data, dropped = raw.get_data(), {name: "marked bad in the file" for name in raw.info["bads"]}
    if not np.isfinite(data).all():
        channel, sample = np.argwhere(~np.isfinite(data))[0]
        raise UserError(f"{path}: channel {raw.ch_names[channel]} is NaN or infinite at sample {sample}; cut it there")
    for name, kind, signal in zip(raw.ch_names, raw.get_channel_types(), data, strict=True):
        if kind != "eeg" or NOT_EEG.search(name):
            dropped[name] = f"{kind} channel" if kind != "eeg" else "not EEG by its name"
        elif np.ptp(signal) == 0:
            dropped[name] = "constant"
    kept = [name for name in raw.ch_names if name not in dropped]
    if not kept:
        raise UserError(f"{path}: no EEG channel left of {raw.ch_names} ({dropped})")
    numbers = re.findall(r"sub(?:ject)?[-_ ]?0*(\d+)", str(path.resolve()), re.I)
    return Recording(_name(path, folder), path, int(numbers[-1]) if numbers else 1, raw.pick(kept), dropped)


def _read_csv(path: Path) -> "mne.io.BaseRaw":
    import mne

    try:
        header = np.loadtxt(path, dtype=str, delimiter=",", max_rows=1, ndmin=1, comments=None)
        table = np.loadtxt(path, delimiter=",", skiprows=1, ndmin=2)
    except (ValueError, OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: is not a table of numbers under one header line ({error})") from error
    names = [name.strip() for name in header]
    times = [i for i, name in enumerate(names) if name.lower().startswith("time")]
    if not times or table.shape[1] != len(names) or len(table) < 2:
        raise UserError(f"{path}: expected a column 'timestamps' among {names}, and as many numbers in each line")
    marks = [i for i, name in enumerate(names) if name.lower().startswith("marker")]
    seconds = table[:, times[0]] - table[0, times[0]]
    if not (np.isfinite(seconds).all() and seconds[-1] > 0):
        raise UserError(f"{path}: time stamps are not finite or do not rise; cut the recording at its gaps")
    rate = (len(seconds) - 1) / seconds[-1]
    sfreq = float(round(rate)) if abs(rate - round(rate)) < 0.005 * rate else rate  # headsets run at whole rates
    stray = np.abs(seconds - np.arange(len(seconds)) / rate).max()
    if not stray < MAX_STRAY:
        raise UserError(f"{path}: time stamps are up to {stray:.2f} s off even sampling; cut the recording at its gaps")
    channels = [i for i in range(len(names)) if i not in (*times, *marks)]
    info = mne.create_info([names[i] for i in channels], sfreq, "eeg")
    raw = mne.io.RawArray(1e-6 * table[:, channels].T, info, verbose="ERROR")
    rows, columns = np.nonzero(table[:, marks])
    texts = [f"{value:g}" for value in table[:, marks][rows, columns]]
    return raw.set_annotations(mne.Annotations(rows / sfreq, 0.0, texts))


def _read_mne(path: Path) -> "mne.io.BaseRaw":
    import mne

    try:
        raw = mne.io.read_raw(path, preload=True, verbose="ERROR")
        if "stim" in raw:
            triggers = mne.find_events(raw, shortest_event=1, verbose="ERROR")
            # appended, as mne moves what is set anew by `first_samp` where a file has no date
            raw.annotations.append(triggers[:, 0] / raw.info["sfreq"], 0.0, triggers[:, 2].astype(str))
    except Exception as error:  # on a broken file its parsers fail in any way, AttributeError included
        raise UserError(f"{path}: cannot be read as a continuous recording ({error})") from error
    return raw


def without_copies(paths: list[Path], folder: Path, report: list[dict]) -> Iterator[Recording]:
    """Read one recording after the other, leaving out those whose samples an earlier one has.

    Appends to `report`, for each copy, {"file", "copy_of", "same": "bytes" | "samples"}.
    """
    seen: dict[str, Path] = {}
    for path in paths:
        recording = read_recording(path, Path(folder))
        first = seen.setdefault(hashlib.sha256(recording.raw.get_data()).hexdigest(), path)
        if first is path:
            yield recording
        else:
            same = "bytes" if path.read_bytes() == first.read_bytes() else "samples"
            report.append({"file": str(path), "copy_of": str(first), "same": same})


def clean(recording: Recording, band: tuple[float, float], sfreq: float, channels: list[str]) -> Recording:
    """Keep `channels` (all where empty), filter to `band` (Hz, zero-phase FIR), resample to `sfreq` (0: as it is).

    Raises:
        UserError: a wanted channel is missing, one is flat most of the time, or the band does not fit the rate.
    """
    (low, high), raw, path = band, recording.raw, recording.path
    lowest = min(sfreq or math.inf, raw.info["sfreq"])
    if not 0 <= low < high < lowest / 2:
        raise UserError(f"{path}: band {low:g} to {high:g} Hz does not fit {lowest:g} Hz; end it below half of that")
    if missing := [name for name in channels if name not in raw.ch_names]:
        raise UserError(f"{path}: has no usable channel {missing[0]}; it has {raw.ch_names}")
    raw = raw.copy().pick(channels or raw.ch_names).filter(low or None, high, verbose="ERROR")
    if sfreq not in (0, raw.info["sfreq"]):
        raw.resample(sfreq, method="polyphase", verbose="ERROR")
    data = raw.get_data()
    spread = np.median(np.abs(data - np.median(data, axis=1, keepdims=True)), axis=1)
    flat = np.flatnonzero(spread < 1e-6 * np.abs(data).max(axis=1))  # what a filter leaves of nothing is rounding
    if len(flat):
        name = raw.ch_names[flat[0]]
        raise UserError(f"{path}: channel {name} is flat most of the time; leave it out with channels=")
    return replace(recording, raw=raw)


def standardise(data: np.ndarray, clip: float, whole: np.ndarray | None = None) -> np.ndarray:
    """(..., C, T) to float32 with each channel's median 0 and robust standard deviation 1, clipped at +-`clip`.

    Both are those of `whole` (C, T), the recording that `data` was cut from; without it, of `data`. Median and MAD, so
    that blinks of hundreds of microvolts do not shrink the EEG between them; the clip (as in Defossez et al. 2023, who
    clamp at 20) keeps what is left of them from ruling a squared error.
    """
    whole = data if whole is None else whole
    centre = np.median(whole, axis=1, keepdims=True)
    spread = MAD_TO_SD * np.median(np.abs(whole - centre), axis=1, keepdims=True)
    return np.clip((data - centre) / spread, -clip, clip).astype(np.float32)
