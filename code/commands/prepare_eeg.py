"""Recordings from a headset -> what the stages read: a folder of .npy (A) or trials (B and C).

Without markers: `<out>/eeg_train/<recording>.npy` and its manifest.json. With markers: one folder a fold,
`<out>/fold<k>/` (eeg.pth, eeg.json, splits_all.pth), which leaves recording k out for the test;
`<out>/imageNet_images`; and `<out>/train_stems.txt`, the photographs that training may see.
`<out>/prepared.json` says what was done to each file. Nothing stands at `<out>` before all of it does.
"""

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from config import from_cli, setting
from data import epochs as cut
from data import recordings
from data.recordings import Recording
from data.signals import read_manifest, write_manifest
from data.trials_file import write_trial_file
from runtime import checkpoints, digests
from runtime.errors import UserError
from runtime.runs import run_config


@dataclass
class PrepareConfig:
    """Recordings from a headset -> .npy windows for stage A, or trials for stages B and C."""

    recordings: str = setting("", "folder of recordings: CSV (Muse), EDF, BDF, FIF, SET, BrainVision")
    out: str = setting("datasets/own", "folder to write")
    band: str = setting("1,40", "Hz, edges of a zero-phase FIR filter; 0 as the lower edge: none")
    sfreq: float = setting(0.0, "Hz to resample to; 0: as recorded")
    channels: str = setting("", "channels to keep, by comma; empty: all scalp EEG that is not flat")
    clip: float = setting(20.0, "robust standard deviations at which the standardised signal is clipped")
    markers: str = setting("", "marker:kind, by comma, for example 1:house,2:face; empty: unlabelled, for stage A")
    epoch: str = setting("0,0.7", "s, begin and end of a trial around its marker")
    reject: float = setting(150.0, "microvolts peak to peak in the band, above which a trial is dropped; 0: never")
    images: str = setting("", "kind:folder of photographs, by comma, for example house:my/houses,face:my/faces")
    val_share: float = setting(0.1, "share of each training recording, its end, that validates")
    seed: int = setting(2022, "of the photographs' division and assignment")
    overwrite: bool = setting(False, "move what is in `out` aside")


def pair(text: str, name: str) -> tuple[float, float]:
    """Two numbers by comma, ascending."""
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        low, high = 1.0, 0.0
    if low >= high:
        raise UserError(f"{name}={text}: expected two ascending numbers such as {name}=1,40")
    return low, high


def listed(text: str) -> list[str]:
    """The words between commas."""
    return [word.strip() for word in text.split(",") if word.strip()]


def named(text: str, name: str, last: bool) -> dict[str, str]:
    """`a:b,c:d` as a dict; the separating colon is the `last` or the first of each item."""
    items = listed(text)
    if any(":" not in item for item in items):
        raise UserError(f"{name}={text}: expected {name}=this:that,this:that")
    return dict(item.rsplit(":", 1) if last else item.split(":", 1) for item in items)


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


def write_windows(cfg: PrepareConfig, cleaned: Iterator[Recording], out: Path) -> list[dict]:
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


def write_trials(cfg: PrepareConfig, cleaned: Iterator[Recording], out: Path) -> list[dict]:
    """Stages B and C: one folder a recording left out, and the photographs."""
    kinds, folders = named(cfg.markers, "markers", last=True), named(cfg.images, "images", last=False)
    window, report, epochs = pair(cfg.epoch, "epoch"), [], []
    if without := sorted(set(kinds.values()) - set(folders)):
        raise UserError(f"images={cfg.images}: names no folder of photographs for the kind '{without[0]}'")
    for recording in cleaned:
        trials = cut.cut_epochs(recording, kinds, window, cfg.reject, cfg.clip)
        report.append(describe(recording) | {"trials": trials.counts})
        print(f"{recording.name}: " + ", ".join(f"{n} trials {outcome}" for outcome, n in trials.counts.items()))
        epochs += [trials] if trials.kind else []
        sfreq = recording.raw.info["sfreq"]
    ch_names, eeg = cut.same_channels(epochs)
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
    checkpoints.write_text(out / "train_stems.txt", "\n".join(stems) + "\n")
    return report


def cleaned_recordings(cfg: PrepareConfig, paths: list[Path], copies: list[dict]) -> Iterator[Recording]:
    """Each recording, filtered, as long as their rates agree; `copies` takes those that were left out."""
    rates: dict[float, Path] = {}
    for recording in recordings.without_copies(paths, cfg.recordings, copies):
        recording = recordings.clean(recording, pair(cfg.band, "band"), cfg.sfreq, listed(cfg.channels))
        rates.setdefault(recording.raw.info["sfreq"], recording.path)
        if len(rates) > 1:
            (expected, first), (rate, path) = rates.items()
            raise UserError(f"{path}: was recorded at {rate:g} Hz and {first} at {expected:g} Hz; set sfreq= to one")
        yield recording


def already_there(out: Path, settings: dict, overwrite: bool) -> bool:
    """Whether `out` holds just this; with `overwrite`, what it holds is moved aside.

    Raises:
        UserError: it holds something else.
    """
    if not overwrite and read_manifest(out / "prepared.json").get("settings") == settings:
        return True
    if out.exists() and not overwrite:
        raise UserError(f"{out}: is there already, made otherwise; choose another out=, or overwrite=true")
    if out.exists():
        aside = out.rename(out.with_name(f"{out.name}.{time.strftime('%Y%m%d-%H%M%S')}"))
        print(f"moved the earlier folder to {aside}")
    return False


def main() -> None:
    """Prepare one folder of recordings."""
    cfg = from_cli(PrepareConfig)
    if not cfg.recordings:
        raise UserError("recordings= is not set: name a folder of recordings (see --help)")
    paths, out, copies = recordings.find_recordings(cfg.recordings), Path(cfg.out), []
    settings = run_config(cfg) | {"files": {path.name: path.stat().st_size for path in paths}}
    if already_there(out, settings, cfg.overwrite):
        print(f"{out}: already prepared with these settings")
        return
    part = out.with_name(f"{out.name}.part")
    if part.exists():  # what an interrupted run of this command left
        shutil.rmtree(part)
    part.mkdir(parents=True)
    report = (write_trials if cfg.markers else write_windows)(cfg, cleaned_recordings(cfg, paths, copies), part)
    for copy in copies:
        print(f"{copy['file']}: left out, the same {copy['same']} as {copy['copy_of']}")
    record = {"settings": settings, "recordings": report, "copies_left_out": copies}
    write_manifest(part / "prepared.json", record)
    part.rename(out)
    print(f"{len(report)} recordings, {len(copies)} copies left out -> {out}")
