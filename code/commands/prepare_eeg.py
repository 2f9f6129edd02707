"""Recordings from a headset -> what the stages read: a folder of .npy (A) or trials (B and C).

Without markers: `<out>/eeg_train/<recording>.npy` and its manifest.json. With markers: one folder a fold,
`<out>/fold<k>/` (eeg.pth, eeg.json, splits_all.pth), which leaves recording k out for the test;
`<out>/imageNet_images`; and `<out>/train_stems.txt`, the photographs that training may see.
`<out>/prepared.json` says what was done to each file. Nothing stands at `<out>` before all of it does: it is written to
`.<out>.prepare_eeg/part` beside it, by one process at a time, and renamed.
"""

import contextlib
import math
import os
import secrets
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from typing_extensions import TypedDict

from config import from_cli, setting
from data import epochs as cut
from data import recordings
from data.recordings import Recording
from data.signals import write_manifest
from data.trials_file import write_trial_file
from runtime import atomic, digests, lock, plain
from runtime.errors import UserError
from runtime.runs import run_config

LONGEST = 200  # bytes of a folder's name; file systems take 255, and work folders are called by more


class Prepared(TypedDict):
    """What prepared.json holds."""

    settings: dict
    recordings: list[dict]
    copies_left_out: list[dict]


@dataclass
class PrepareConfig:
    """Recordings from a headset -> .npy windows for stage A, or trials for stages B and C."""

    recordings: str = setting("", "folder of recordings: CSV (Muse), EDF, BDF, FIF, SET, BrainVision")
    out: str = setting("datasets/own", "folder to write")
    band: str = setting("1,40", "Hz, edges of a zero-phase FIR filter; 0 as the lower edge: none")
    sfreq: float = setting(0.0, "Hz to resample to; 0: as recorded", least=0, below=20_000)
    channels: str = setting("", "channels to keep, by comma; empty: all scalp EEG that is not flat")
    clip: float = setting(20.0, "robust standard deviations at which the standardised signal is clipped", above=0)
    markers: str = setting("", "marker:kind, by comma, for example 1:house,2:face; empty: unlabelled, for stage A")
    epoch: str = setting("0,0.7", "s, begin and end of a trial around its marker")
    reject: float = setting(
        150.0, "microvolts peak to peak in the band, above which a trial is dropped; 0: never", least=0
    )
    images: str = setting("", "kind:folder of photographs, by comma, for example house:my/houses,face:my/faces")
    val_share: float = setting(0.1, "share of each training recording, its end, that validates", above=0, below=1)
    seed: int = setting(2022, "of the photographs' division and assignment")
    overwrite: bool = setting(False, "move what is in `out` aside")


def pair(text: str, name: str) -> tuple[float, float]:
    """Two numbers by comma, ascending."""
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        low, high = 1.0, 0.0
    if not -math.inf < low < high < math.inf:
        raise UserError(f"{name}={text}: expected two ascending numbers such as {name}=1,40")
    return low, high


def listed(text: str) -> list[str]:
    """The words between commas."""
    return [word.strip() for word in text.split(",") if word.strip()]


def named(text: str, name: str, last: bool) -> dict[str, str]:
    """`a:b,c:d` as a dict; the separating colon is the `last` or the first of each item."""
    items = [item.rsplit(":", 1) if last else item.split(":", 1) for item in listed(text)]
    if not all(len(item) == 2 and item[0].strip() and item[1].strip() for item in items):
        raise UserError(f"{name}={text}: expected {name}=this:that,this:that")
    if len(found := dict(items)) < len(items):
        raise UserError(f"{name}={text}: names one of {', '.join(found)} twice")
    return found


def describe(recording: Recording) -> dict:
    """What the report says of one recording."""
    return {
        "name": recording.name,
        "file": str(recording.path),
        "sha256": digests.sha256(recording.path),
        "subject": recording.subject,
        "seconds": round(recording.raw.n_times / recording.raw.info["sfreq"], 3),
        "channels": recording.raw.ch_names,
        "dropped_channels": recording.dropped,
    }


def manifest_of(cfg: PrepareConfig, sfreq: float, ch_names: list[str] | None) -> dict:
    """The fields that the stages read."""
    return {
        "sfreq": sfreq,
        "ch_names": ch_names,
        "band": pair(cfg.band, "band"),
        "standardised": f"per channel and recording: median 0, 1.4826 MAD 1, clipped at {cfg.clip:g}",
        "simulated": False,
    }


def write_windows(cfg: PrepareConfig, cleaned: Iterator[Recording], copies: list[dict], out: Path) -> list[dict]:
    """Stage A: one .npy (C, T) float32 a recording."""
    folder, report = out / "eeg_train", []
    folder.mkdir(parents=True, exist_ok=True)
    for recording in cleaned:
        np.save(folder / f"{recording.name}.npy", recordings.standardise(recording.raw.get_data(), cfg.clip))
        report.append(describe(recording))
        print(f"{recording.name}: {report[-1]['seconds']:.0f} s of {', '.join(recording.raw.ch_names)}")
    alike = all(entry["channels"] == report[0]["channels"] for entry in report)
    manifest = manifest_of(cfg, recording.raw.info["sfreq"], recording.raw.ch_names if alike else None)
    write_manifest(folder / "manifest.json", manifest)
    return report


def write_trials(cfg: PrepareConfig, cleaned: Iterator[Recording], copies: list[dict], out: Path) -> list[dict]:
    """Stages B and C: one folder a recording left out, and the photographs."""
    kinds, folders = named(cfg.markers, "markers", last=True), named(cfg.images, "images", last=False)
    window, report, epochs, markers = pair(cfg.epoch, "epoch"), [], [], Counter()
    if odd := sorted(set(kinds.values()) ^ folders.keys()):
        lacking = "marker" if odd[0] in folders else "folder of photographs"
        raise UserError(f"markers={cfg.markers} images={cfg.images}: names no {lacking} for the kind '{odd[0]}'")
    if odd := [kind for kind in folders if not kind.isprintable() or {*kind} & {*"/\\"}]:
        raise UserError(f"images={cfg.images}: the name of a kind is a word or a few, not {odd[0]!a}")
    for recording in cleaned:
        trials = cut.cut_epochs(recording, kinds, window, cfg.reject, cfg.clip)
        markers.update(recording.raw.annotations.description.tolist())
        report.append(describe(recording) | {"trials": trials.counts})
        print(f"{recording.name}: " + ", ".join(f"{n} trials {outcome}" for outcome, n in trials.counts.items()))
        epochs += [trials] if trials.kind else []
        sfreq = recording.raw.info["sfreq"]
    ch_names, eeg = cut.same_channels(epochs, [copy["file"] for copy in copies], markers)
    order = {kind: Path(folders[kind]) for kind in dict.fromkeys(kinds.values())}
    photographs = cut.place_photographs(order, out / "imageNet_images", cfg.seed)
    n_times = eeg.shape[2]
    manifest = manifest_of(cfg, sfreq, ch_names) | {
        "window": [0, n_times],
        "length_limits": [n_times, n_times],
        "image_known": False,
        "class_names": {cut.class_id(n): kind for n, kind in enumerate(order, 1)},
        "description": f"{cfg.recordings}, {window[0]:g} to {window[1]:g} s after the marker, one recording left out",
    }
    number = np.repeat(np.arange(len(epochs)), [len(e.kind) for e in epochs])
    for fold, splits in enumerate(cut.leave_one_out(number, cfg.val_share), 1):
        content = cut.fold_content(epochs, eeg, splits, photographs, cfg.seed)
        parts = {part: rows.tolist() for part, rows in splits.items()}
        write_trial_file(out / f"fold{fold}/eeg.pth", content, {"splits_all": parts}, manifest)
        sizes = ", ".join(f"{part} {len(rows)}" for part, rows in parts.items())
        print(f"fold{fold}: {sizes} (test: {epochs[fold - 1].recording})")
    stems = [stem for group in photographs["train"].values() for stem in group]
    atomic.write_text(out / "train_stems.txt", "\n".join(stems) + "\n")
    return report


def cleaned_recordings(cfg: PrepareConfig, paths: list[Path], copies: list[dict]) -> Iterator[Recording]:
    """Each recording, filtered, as long as their rates agree; `copies` takes those that were left out."""
    rates: dict[float, Path] = {}
    kinds = named(cfg.markers, "markers", last=True)
    for recording in recordings.without_copies(paths, cfg.recordings, copies, kinds):
        recording = recordings.clean(recording, pair(cfg.band, "band"), cfg.sfreq, listed(cfg.channels))
        rates.setdefault(recording.raw.info["sfreq"], recording.path)
        if len(rates) > 1:
            (expected, first), (rate, path) = rates.items()
            raise UserError(f"{path}: was recorded at {rate:g} Hz and {first} at {expected:g} Hz; set sfreq= to one")
        yield recording


def out_folder(cfg: PrepareConfig) -> Path:
    """Where to write, without links. Raises UserError where that is no place for a folder, or one that is read."""
    out = Path(os.path.realpath(cfg.out)) if cfg.out.isprintable() and cfg.out.strip() else Path("/")
    if not out.name or any(len(os.fsencode(part)) > LONGEST for part in out.parts):
        raise UserError(f"out={plain.short(cfg.out)}: is no name for a folder, or one of more than {LONGEST} bytes")
    if not next(path for path in (out, *out.parents) if path.exists()).is_dir():
        raise UserError(f"out={cfg.out}: is a file, or lies below one; choose another out=")
    for folder in (cfg.recordings, *named(cfg.images, "images", last=False).values()):
        read = Path(os.path.realpath(folder))
        if out == read or out in read.parents or read in out.parents:
            raise UserError(f"out={cfg.out}: is, holds or lies in {folder}, which is only read; choose another out=")
    return out


def holds_something(out: Path) -> bool:
    return out.exists() and any(out.iterdir())


def already_there(out: Path, settings: dict, overwrite: bool) -> bool:
    """Whether `out` holds just this, and is to stay; an empty folder counts as none.

    Raises:
        UserError: it holds something else that may not be moved aside.
    """
    if not holds_something(out):
        return False
    record = plain.read_json(out / "prepared.json", "record of prepare_eeg")
    plain.checked(Prepared, record, str(out / "prepared.json"), "choose another out=")
    if not overwrite and record["settings"] != settings:
        raise UserError(f"{out}: is there already, made otherwise; choose another out=, or overwrite=true")
    return not overwrite


@contextlib.contextmanager
def work_folder(out: Path) -> Iterator[Path]:
    """A new folder near `out`, to be filled and renamed; removed where that does not come to be.

    What a killed run has left there is removed; its lock beside it tells that it is one's.

    Raises:
        UserError: another process is at work on `out`, or something else lies where this is to be.
    """
    work = out.with_name(f".{out.name}.prepare_eeg")
    part = work / "part"
    if part.exists() and not (work / lock.NAME).exists():
        raise UserError(f"{part}: was not left by this command, which works there; move it away")
    lock.hold(work)
    try:
        if part.exists():
            shutil.rmtree(part)
        part.mkdir()
        yield part
    finally:
        shutil.rmtree(part, ignore_errors=True)
        lock.release(work)
        with contextlib.suppress(OSError):  # the next process is at work there
            work.rmdir()


def main() -> None:
    """Prepare one folder of recordings."""
    cfg, copies = from_cli(PrepareConfig), []
    if not cfg.recordings:
        raise UserError("recordings= is not set: name a folder of recordings (see --help)")
    try:
        out, paths = out_folder(cfg), recordings.find_recordings(cfg.recordings)
        files = {str(path.relative_to(cfg.recordings)): digests.fingerprint(path)["sampled"] for path in paths}
        settings = run_config(cfg) | {"files": files}
        with work_folder(out) as part:
            if already_there(out, settings, cfg.overwrite):
                print(f"{out}: already prepared with these settings")
                return
            cleaned = cleaned_recordings(cfg, paths, copies)
            report = (write_trials if cfg.markers else write_windows)(cfg, cleaned, copies, part)
            for copy in copies:
                print(f"{copy['file']}: left out, the same {copy['same']} as {copy['copy_of']}: {copy['why']}")
            record = {"settings": settings, "recordings": report, "copies_left_out": copies}
            write_manifest(part / "prepared.json", record)
            if holds_something(out) and not already_there(out, settings, cfg.overwrite):
                aside = out.with_name(f"{out.name}.{time.strftime('%Y%m%d-%H%M%S')}.{secrets.token_hex(2)}")
                print(f"moved the earlier folder to {out.rename(aside)}")
            part.rename(out)
    except OSError as error:
        raise UserError(f"out={cfg.out}: could not be made ({error}); what was there is as it was") from error
    print(f"{len(report)} recordings, {len(copies)} copies left out -> {cfg.out}")
