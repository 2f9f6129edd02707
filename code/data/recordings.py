"""Recordings as headsets write them: found, read, picked, filtered, resampled, standardised.

Shapes: C electrodes, T samples. Signals are microvolts until they are standardised.
"""

import hashlib
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from runtime.errors import UserError

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
    sfreq: float  # Hz
    ch_names: list[str]
    data: np.ndarray  # (C, T) float64
    markers: list[tuple[int, str]]  # sample, name
    dropped: dict[str, str]  # channel left out -> why


def find_recordings(folder: str | Path) -> list[Path]:
    """Every file below `folder` in a format we read, sorted.

    Raises:
        UserError: no such folder, nothing readable in it, or two files whose names would be one.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; it should hold recordings ({', '.join(SUFFIXES)})")
    paths = sorted(p for p in folder.rglob("*") if p.name.lower().endswith(SUFFIXES) and p.is_file())
    if not paths:
        raise UserError(f"{folder}: no recording in this folder or below it ({', '.join(SUFFIXES)})")
    names = [_name(path, folder) for path in paths]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{folder}: two recordings would both be called {name}; rename one")
    return paths


def _name(path: Path, folder: Path) -> str:
    relative = "_".join(path.relative_to(folder).parts)
    suffix = next(s for s in SUFFIXES if relative.lower().endswith(s))
    return relative[: -len(suffix)]


def read_recording(path: Path, folder: Path) -> Recording:
    """Read one file and keep its EEG channels; others, and flat ones, are listed in `dropped`.

    CSV: a header line, a time column in seconds (`timestamps`), markers in a column `Marker...` (0 is none),
    every other column a channel in microvolts. Other formats through MNE: markers are annotations and
    trigger channels. The subject is the number after "sub" in the path, else 1.

    Raises:
        UserError: unreadable, not finite, no EEG channel left, gaps in time.
    """
    is_csv = path.name.lower().endswith((".csv", ".csv.gz"))
    sfreq, channels, data, markers, dropped = (_read_csv if is_csv else _read_mne)(path)
    names = list(channels)
    if not np.isfinite(data).all():
        channel, sample = np.argwhere(~np.isfinite(data))[0]
        raise UserError(f"{path}: channel {names[channel]} is NaN or infinite at sample {sample}; cut it there")
    for (name, kind), span in zip(channels.items(), np.ptp(data, axis=1), strict=True):
        if kind != "eeg" or NOT_EEG.search(name):
            dropped[name] = f"{kind} channel" if kind != "eeg" else "not EEG by its name"
        elif span == 0:
            dropped[name] = "constant"
    kept = [i for i, name in enumerate(names) if name not in dropped]
    if not kept:
        raise UserError(f"{path}: no EEG channel left of {names} ({dropped})")
    numbers = re.findall(r"sub(?:ject)?[-_ ]?0*(\d+)", str(path.resolve()), re.I)
    subject = int(numbers[-1]) if numbers else 1
    kept_names = [names[i] for i in kept]
    return Recording(_name(path, folder), path, subject, sfreq, kept_names, data[kept], sorted(markers), dropped)


def _read_csv(path: Path) -> tuple:
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
    markers = [(int(row), f"{table[row, i]:g}") for i in marks for row in np.flatnonzero(table[:, i])]
    return sfreq, {names[i]: "eeg" for i in channels}, table[:, channels].T, markers, {}


def _read_mne(path: Path) -> tuple:
    import mne  # only where such a file is read

    try:
        raw = mne.io.read_raw(path, preload=True, verbose="ERROR")
        events, ids = mne.events_from_annotations(raw, verbose="ERROR")
        names = {number: name for name, number in ids.items()}
        markers = [(int(sample - raw.first_samp), names[number]) for sample, _, number in events]
        if "stim" in raw.get_channel_types():
            triggers = mne.find_events(raw, shortest_event=1, verbose="ERROR")
            markers += [(int(sample - raw.first_samp), str(number)) for sample, _, number in triggers]
    except Exception as error:  # on a broken file its parsers fail in any way, AttributeError included
        raise UserError(f"{path}: cannot be read as a continuous recording ({error})") from error
    dropped = {name: "marked bad in the file" for name in raw.info["bads"]}
    kinds = dict(zip(raw.ch_names, raw.get_channel_types(), strict=True))
    return raw.info["sfreq"], kinds, raw.get_data() * 1e6, markers, dropped


def without_copies(paths: list[Path], folder: Path, report: list[dict]) -> Iterator[Recording]:
    """Read one recording after the other, leaving out those whose samples an earlier one has.

    Appends to `report`, for each copy, {"file", "copy_of", "same": "bytes" | "samples"}.
    """
    seen: dict[str, Path] = {}
    for path in paths:
        recording = read_recording(path, Path(folder))
        key = hashlib.sha256(np.ascontiguousarray(recording.data)).hexdigest()
        if key in seen:
            same = "bytes" if path.read_bytes() == seen[key].read_bytes() else "samples"
            report.append({"file": str(path), "copy_of": str(seen[key]), "same": same})
            continue
        seen[key] = path
        yield recording


def clean(recording: Recording, band: tuple[float, float], sfreq: float, channels: list[str]) -> Recording:
    """Keep `channels` (all where empty), filter to `band` (Hz, zero-phase FIR), resample to `sfreq` (0: as it is).

    Raises:
        UserError: a wanted channel is missing, one is flat most of the time, or the band does not fit the rate.
    """
    import mne

    low, high = band
    rate = sfreq or recording.sfreq
    if not 0 <= low < high < min(rate, recording.sfreq) / 2:
        raise UserError(
            f"{recording.path}: band {low:g} to {high:g} Hz does not fit {min(rate, recording.sfreq):g} Hz; "
            "the upper edge must stay below half the rate"
        )
    missing = [name for name in channels if name not in recording.ch_names]
    if missing:
        raise UserError(f"{recording.path}: has no usable channel {missing[0]}; it has {recording.ch_names}")
    rows = [recording.ch_names.index(name) for name in channels or recording.ch_names]
    data = mne.filter.filter_data(recording.data[rows], recording.sfreq, low or None, high, verbose="ERROR")
    if rate != recording.sfreq:
        data = mne.filter.resample(data, rate, recording.sfreq, method="polyphase", verbose="ERROR")
    spread = np.median(np.abs(data - np.median(data, axis=1, keepdims=True)), axis=1)
    flat = np.flatnonzero(spread < 1e-6 * np.abs(data).max(axis=1))  # what a filter leaves of nothing is rounding
    if len(flat):
        name = recording.ch_names[rows[flat[0]]]
        raise UserError(f"{recording.path}: channel {name} is flat most of the time; leave it out with channels=")
    markers = [(round(sample * rate / recording.sfreq), name) for sample, name in recording.markers]
    return replace(recording, sfreq=rate, ch_names=[recording.ch_names[i] for i in rows], data=data, markers=markers)


def standardise(data: np.ndarray, clip: float) -> np.ndarray:
    """(C, T) to float32 with each channel's median 0 and robust standard deviation 1, clipped at +-`clip`.

    Median and MAD, so that blinks of hundreds of microvolts do not shrink the EEG between them; the clip (as in
    Defossez et al. 2023, who clamp at 20) keeps what is left of them from ruling a squared error.
    """
    centre = np.median(data, axis=1, keepdims=True)
    spread = MAD_TO_SD * np.median(np.abs(data - centre), axis=1, keepdims=True)
    return np.clip((data - centre) / spread, -clip, clip).astype(np.float32)
