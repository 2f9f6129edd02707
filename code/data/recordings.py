"""Recordings as headsets write them: read into mne.io.Raw, picked, filtered, resampled, standardised.

Shapes: C electrodes, T samples.
"""

import gzip
import io
import math
import os
import re
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data import likeness
from runtime.errors import UserError

if TYPE_CHECKING:
    import mne  # it takes seconds, so functions import it

SUFFIXES = (".csv.gz", ".csv", ".edf", ".bdf", ".fif.gz", ".fif", ".set", ".vhdr")
# folders of copies (BIDS derivatives) or none, hidden ones, and what MNE keeps beside its raw files
PASSED_OVER = re.compile(
    r"^(derivatives|sourcedata|code|\..*)$|[-_](epo|eve|ave|cov|ica|proj|trans|fwd|inv|src|bem|sol)\.fif(\.gz)?$", re.I
)
# channels that are no scalp EEG, by name, for the formats that do not say what a channel is
NOT_EEG = re.compile(r"EOG|ECG|EKG|EMG|EXG|AUX|STATUS|STI|TRIG|MARK|EVENT|ACC|GYR|RESP|GSR|PPG|COUNT|TIME", re.I)
MAD_TO_SD = 1.4826  # of a normal distribution
MAX_STRAY = 0.25  # s a time stamp may be away from even sampling; radio headsets jitter by tens of milliseconds
LONGEST_LINE, LONGEST_NAME = 1 << 16, 200  # bytes: of a CSV's header; of a recording's name, which becomes a file's
MAX_SWELL = 100  # times its size that a .csv.gz may hold; numbers written out shrink to a half or a tenth
MAX_VOLTS = 1000.0


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

    Folders that hold copies of recordings (BIDS derivatives) or none, hidden ones, and what MNE keeps beside recordings
    are passed over, and a line says so.

    Raises:
        UserError: no such folder, nothing readable in it, a name that no file can have, or two files of one name.
    """
    folder = Path(folder)
    found = [Path(base, name) for base, _, names in os.walk(folder) for name in names]
    found = [path for path in found if path.name.lower().endswith(SUFFIXES)]
    passed = {path: part for path in found for part in path.relative_to(folder).parts if PASSED_OVER.search(part)}
    for part, n in Counter("" if part == path.name else part for path, part in passed.items()).items():
        print(
            f"{folder}: not read: {n} recordings in {part}/"
            if part
            else f"{folder}: not read: {n} files not raw by name"
        )
    paths = sorted(path for path in found if path not in passed and path.is_file())
    if not paths:
        missing = "no recording in this folder or below it" if folder.is_dir() else "no such folder"
        raise UserError(f"{folder}: {missing}; it should hold files of these kinds: {', '.join(SUFFIXES)}")
    for name, n in Counter(_name(path, folder) for path in paths).items():
        if n > 1:
            raise UserError(f"{folder}: two recordings would both be called {name}; rename one")
        if not name.isprintable() or len(name.encode()) > LONGEST_NAME:
            raise UserError(f"{folder}: {name[:99]!a}: is too long to name a file, or cannot be printed; rename it")
    return paths


def _name(path: Path, folder: Path) -> str:
    relative = "_".join(path.relative_to(folder).parts)
    suffix = next(s for s in SUFFIXES if relative.lower().endswith(s))
    return relative[: -len(suffix)]


def read_recording(path: Path, folder: Path) -> Recording:
    """Read one file and keep its EEG channels; others, and flat ones, are listed in `dropped`.

    CSV: a header line, a time column in seconds (`timestamps`), markers in a column `Marker...` (0 is none; a number
    that stays is one marker, where it begins), every other column a channel in microvolts. Other formats as MNE reads
    them; trigger channels become annotations, where they rise. The subject is the number after "sub" in the path,
    else 1.

    Raises:
        UserError: unreadable, cut, not finite, no EEG channel left, gaps in time.
    """
    is_table = path.name.lower().endswith((".csv", ".csv.gz"))
    raw, no_range = (_read_csv(path), []) if is_table else _read_mne(path)
    if not 1 <= raw.info["sfreq"] <= 100_000:
        raise UserError(
            f"{path}: was sampled at {raw.info['sfreq']:g} Hz; are its times milliseconds? They should be s"
        )
    data, dropped = raw.get_data(), dict.fromkeys(raw.info["bads"], "marked bad in the file")
    dropped |= dict.fromkeys(no_range, "no range in the header")
    if not np.isfinite(data).all():
        channel, sample = np.argwhere(~np.isfinite(data))[0]
        raise UserError(f"{path}: channel {raw.ch_names[channel]} is NaN or infinite at sample {sample}; cut it there")
    for name, kind, signal in zip(raw.ch_names, raw.get_channel_types(), data, strict=True):
        if kind != "eeg" or NOT_EEG.search(name):
            dropped[name] = f"{kind} channel" if kind != "eeg" else "not EEG by its name"
        elif np.ptp(signal) == 0:
            dropped[name] = "constant"
        elif name not in dropped and np.abs(signal).max() > MAX_VOLTS:
            raise UserError(f"{path}: channel {name} reaches {np.abs(signal).max():g} V, which no EEG does; is it EEG?")
    kept = [name for name in raw.ch_names if name not in dropped]
    if not kept:
        raise UserError(f"{path}: no EEG channel left of {raw.ch_names} ({dropped})")
    numbers = re.findall(r"sub(?:ject)?[-_ ]?0*(\d+)", str(path.resolve()), re.I)
    return Recording(_name(path, folder), path, int(numbers[-1]) if numbers else 1, raw.pick(kept), dropped)


def _read_csv(path: Path) -> "mne.io.BaseRaw":
    import mne

    limit = MAX_SWELL * path.stat().st_size + LONGEST_LINE
    try:
        with (gzip.open if path.suffix.lower() == ".gz" else open)(path, "rb") as file:
            head, lines = file.readline(LONGEST_LINE), file.read(limit)
        if len(head) == LONGEST_LINE or len(lines) == limit:
            raise ValueError("a header without an end, or a small file of huge content")
        names = [name.strip() for name in head.decode("utf-8-sig").split(",")]
        table = np.loadtxt(io.BytesIO(lines), delimiter=",", ndmin=2)
    except (ValueError, OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: is not a table of numbers under one header line ({error})") from error
    times = [i for i, name in enumerate(names) if name.lower().startswith("time")]
    marks = [i for i, name in enumerate(names) if name.lower().startswith("marker")]
    channels = [i for i in range(len(names)) if i not in (*times, *marks)]
    if not times or not channels or table.shape[1] != len(names) or len(table) < 2:
        raise UserError(f"{path}: expected a column 'timestamps' and channels, not {names}, and as many numbers a line")
    if twice := [name for name, n in Counter(names).items() if n > 1]:
        raise UserError(f"{path}: has two columns called {twice[0]}; rename or delete one")
    seconds = table[:, times[0]] - table[0, times[0]]
    if not (np.isfinite(seconds).all() and seconds[-1] > 0):
        raise UserError(f"{path}: time stamps are not finite or do not rise; cut the recording at its gaps")
    rate = (len(seconds) - 1) / seconds[-1]
    sfreq = float(round(rate)) if abs(rate - round(rate)) < 0.005 * rate else rate  # headsets run at whole rates
    stray = np.abs(seconds - np.arange(len(seconds)) / rate).max()
    if not stray < MAX_STRAY:
        raise UserError(f"{path}: time stamps are up to {stray:.2f} s off even sampling; cut the recording at its gaps")
    info = mne.create_info([names[i] for i in channels], sfreq, "eeg")
    raw = mne.io.RawArray(1e-6 * table[:, channels].T, info, verbose="ERROR")
    levels = np.nan_to_num(table[:, marks])
    rows, columns = np.nonzero((levels != 0) & (np.diff(levels, axis=0, prepend=0) != 0))
    texts = [f"{value:g}" for value in levels[rows, columns]]
    return raw.set_annotations(mne.Annotations(rows / sfreq, 0.0, texts))


def _read_mne(path: Path) -> "tuple[mne.io.BaseRaw, list[str]]":
    """A recording, and those of its channels that have no range."""
    import mne

    suffix = path.suffix.lower()
    no_range = _check_edf(path, 3 if suffix == ".bdf" else 2) if suffix in (".edf", ".bdf") else []
    if suffix == ".vhdr":
        header = path.read_text("latin-1")
        _check_inside(path, re.findall(r"^[ \t]*(?:DataFile|MarkerFile)[ \t]*=[ \t]*(.+)", header, re.I | re.M))
    try:
        raw = mne.io.read_raw(path, preload=False, verbose="ERROR")
        _check_inside(path, filter(None, raw.filenames))
        raw.load_data(verbose="ERROR")
        if "stim" in raw:
            # BioSemi's status has 24 bits, the lower 16 its triggers; those that are always set tell nothing
            idle = int(np.bitwise_and.reduce(raw.get_data("stim").astype(np.int64), axis=None))
            mask = {"mask": 0xFFFF & ~idle, "mask_type": "and"}
            triggers = mne.find_events(raw, shortest_event=1, verbose="ERROR", **mask)
            # appended, as mne moves what is set anew by `first_samp` where a file has no date
            raw.annotations.append(triggers[:, 0] / raw.info["sfreq"], 0.0, triggers[:, 2].astype(str))
    except UserError:
        raise
    except Exception as error:  # on a broken file its parsers fail in any way, AttributeError included
        raise UserError(f"{path}: cannot be read as a continuous recording ({error})") from error
    return raw, [raw.ch_names[i] for i in no_range]


def _check_inside(path: Path, names: Iterable[str | Path]) -> None:
    """Refuse a recording whose further files, by `names`, lie outside its folder or are no plain files."""
    for name in names:
        other = Path(os.path.normpath(path.absolute().parent / str(name).strip()))
        if not other.is_relative_to(os.path.normpath(path.absolute().parent)):
            raise UserError(f"{path}: names {other} as a part of it, outside its folder; nothing of that is read")
        if other.exists() and not other.is_file():
            raise UserError(f"{path}: names {other} as a part of it, which is no plain file")


def _check_edf(path: Path, width: int) -> list[int]:
    """Which channels of an EDF (`width` 2 bytes a sample) or BDF (3) have no range, by their places.

    A last data record that is cut, which MNE passes over, is named in a line.

    Raises:
        UserError: the header promises other data than the file holds, or none that can be scaled.
    """
    try:
        with open(path, "rb") as file:
            head, table = file.read(256), file.read(1 << 20).replace(b",", b".")
        begin, records, seconds, n = int(head[184:192]), int(head[236:244]), float(head[244:252]), int(head[252:256])
        low, high, least, most = np.frombuffer(table, "S8", 4 * n, 104 * n).astype(float).reshape(4, n)
        samples = np.frombuffer(table, "S8", n, 216 * n).astype(int).sum()
        held = (path.stat().st_size - begin) / int(width * samples)
    except (ValueError, ArithmeticError) as error:
        raise UserError(f"{path}: its header is not one of an EDF or BDF file ({error})") from error
    whole = math.floor(held)
    expected = whole if records == -1 else records  # -1: not yet known when the header was written
    if begin < 256 or whole < 1 or expected - whole not in (0, 1):
        raise UserError(f"{path}: holds {held:.6g} data records, {records} by its header; export it again, whole")
    if held != expected:
        print(f"note: {path}: holds {held:.6g} data records, {records} by its header: {whole} whole ones are read")
    is_signal = [label.strip()[1:] != b"DF Annotations" for label in np.frombuffer(table, "S16", n)]  # EDF or BDF
    scaled = ((low != high) & (least < most))[is_signal]
    if not (seconds > 0 and scaled.any()):
        raise UserError(f"{path}: its header gives records no length, or signals no range; export it again")
    return np.flatnonzero(~scaled).tolist()


def without_copies(
    paths: list[Path], folder: Path, report: list[dict], wanted: Collection[str] = ()
) -> Iterator[Recording]:
    """Read one recording after the other, but of those that hold one session (data.likeness) only one.

    That is the one with most markers `wanted`, then the longest, then the one of most channels. All are read before
    the first is given, and those used once more: one is held in memory, and of all their traces (`likeness.trace`).

    Appends to `report`, for each left out, {"file", "copy_of": the one used, "why"}; "same" is "session" or, of a
    further file of the one used, "recording".
    """
    read, traces, first_file = [], [], {}
    for path in sorted(paths, key=lambda path: (len(path.name), path)):  # x.fif before x-1.fif
        if first := first_file.get(path.resolve()):
            report.append({"file": str(path), "copy_of": str(first), "same": "recording", "why": "which goes on in it"})
            continue
        raw = read_recording(path, Path(folder)).raw
        first_file |= {Path(part).resolve(): path for part in raw.filenames[1:]}
        marks, seconds = sum(text in wanted for text in raw.annotations.description), raw.n_times / raw.info["sfreq"]
        read.append(((marks, seconds, len(raw.ch_names)), path))
        traces.append(likeness.trace(raw.get_data(), raw.info["sfreq"], raw.ch_names))
    matches, session = likeness.sessions(traces)
    for i, (worth, path) in enumerate(read):
        used = max(np.flatnonzero(session == session[i]).tolist(), key=lambda j: read[j][0])  # of equals the first
        if used != i:
            match = max((m for m in matches if i in m[:2]), key=lambda m: used in m[:2])
            like = read[match.first + match.second - i][1]
            why = "correlation {:.3f} over {:.0f} s, lag {:.2f} s, with ".format(*match[2:]) + str(like)
            why += "; {} markers, {:.0f} s, {} channels against {}, {:.0f}, {}".format(*read[used][0], *worth)
            report.append({"file": str(path), "copy_of": str(read[used][1]), "same": "session", "why": why})
    left_out = {entry["file"] for entry in report}
    yield from (read_recording(path, Path(folder)) for path in paths if str(path) not in left_out)


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
