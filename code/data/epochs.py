"""Trials of marked recordings: epochs, folds that leave one recording out, photographs by kind, published layout."""

import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from data.recordings import Recording, standardise
from data.stimuli import image_path
from runtime import checkpoints, draws
from runtime.errors import UserError
from runtime.pictures import load_image

PARTS = {"train": 0.5, "val": 0.25, "test": 0.25}  # of the photographs
LARGEST = 512  # px; no model here takes more


@dataclass(frozen=True)
class Epochs:
    """The accepted trials of one recording."""

    recording: str
    subject: int
    ch_names: list[str]
    eeg: np.ndarray  # (N, C, T) float32, standardised
    kind: list[str]
    onset: list[float]  # s
    counts: dict[str, int]  # accepted, rejected by amplitude, cut off by the recording's ends


def cut_epochs(
    recording: Recording, kinds: dict[str, str], window: tuple[float, float], reject: float, clip: float
) -> Epochs:
    """Trials at the markers named in `kinds` (marker -> kind), `window` in seconds around them.

    A trial is rejected where any channel's peak-to-peak amplitude exceeds `reject` microvolts (0: never).
    """
    first, last = (round(edge * recording.sfreq) for edge in window)
    whole = standardise(recording.data, clip)
    kept, counts = [], {"accepted": 0, "rejected": 0, "cut off": 0}
    for sample, marker in recording.markers:
        if marker not in kinds:
            continue
        begin, end = sample + first, sample + last
        if begin < 0 or end > whole.shape[1]:
            counts["cut off"] += 1
        elif reject and np.ptp(recording.data[:, begin:end], axis=1).max() > reject:
            counts["rejected"] += 1
        else:
            counts["accepted"] += 1
            kept.append((whole[:, begin:end], kinds[marker], sample / recording.sfreq))
    eeg = np.stack([k[0] for k in kept]) if kept else np.empty((0, len(whole), last - first), np.float32)
    return Epochs(
        recording.name, recording.subject, recording.ch_names, eeg, [k[1] for k in kept], [k[2] for k in kept], counts
    )


def same_channels(epochs: Sequence[Epochs]) -> tuple[list[str], list[np.ndarray]]:
    """The channels that all recordings have, and each recording's EEG (N, C, T) reduced to them, in one order.

    Raises:
        UserError: fewer than two recordings, no channel in common, or epochs of different lengths.
    """
    if len(epochs) < 2:
        raise UserError(f"{len(epochs)} recording(s) have accepted trials; leaving one out needs two at least")
    names = [name for name in epochs[0].ch_names if all(name in e.ch_names for e in epochs)]
    if not names:
        raise UserError(f"{epochs[0].recording}, {epochs[1].recording}, ...: have no channel in common")
    return names, [e.eeg[:, [e.ch_names.index(name) for name in names]] for e in epochs]


def leave_one_out(sizes: Sequence[int], test: int, val_share: float) -> dict[str, list[int]]:
    """Trial numbers of each split, `sizes` being the trials of each recording, in order of time.

    Recording `test` is the test split; the last `val_share` of every other is for validation, not mixed into
    training, because neighbouring trials share slow states.
    """
    splits: dict[str, list[int]] = {"train": [], "val": [], "test": []}
    edges = np.cumsum([0, *sizes]).tolist()
    for number, (start, stop) in enumerate(itertools.pairwise(edges)):
        cut = stop - max(1, round(val_share * (stop - start)))
        if number == test:
            splits["test"] = [*range(start, stop)]
        else:
            splits["train"] += range(start, cut)
            splits["val"] += range(cut, stop)
    return splits


def place_photographs(folders: dict[str, Path], out: Path, seed: int) -> dict[str, dict[str, list[str]]]:
    """Copy each kind's photographs to `out/<id>/<id>_<n>.JPEG` and divide them: part -> kind -> stems.

    Photographs whose names differ only in a last number (Don_1, Don_2) show one face or house and stay in one
    part, where there are enough such groups. Ids are n80000001, n80000002 ...: of no WordNet entry.

    Raises:
        UserError: a folder is missing or holds fewer than three photographs.
    """
    parts: dict[str, dict[str, list[str]]] = {part: {} for part in PARTS}
    for number, (kind, folder) in enumerate(folders.items(), 1):
        files = sorted(p for p in folder.glob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
        if len(files) < len(PARTS):
            raise UserError(f"{folder}: holds {len(files)} photographs (.jpg, .png); three splits need one each")
        stems = {}
        for n, file in enumerate(files, 1):
            stems[file] = f"{class_id(number)}_{n}"
            target = image_path(out, stems[file])
            target.parent.mkdir(parents=True, exist_ok=True)
            image = load_image(file)
            image.thumbnail((LARGEST, LARGEST))
            image.save(target, quality=95)
        for part, chosen in zip(PARTS, _divide(files, seed, kind), strict=True):
            parts[part][kind] = [stems[file] for file in chosen]
    return parts


def class_id(number: int) -> str:
    """The id of the `number`th kind, from 1, in the place of a WordNet id."""
    return f"n8{number:07d}"


def _divide(files: list[Path], seed: int, kind: str) -> list[list[Path]]:
    groups: dict[str, list[Path]] = {}
    for file in files:
        groups.setdefault(re.sub(r"[._-]?\d+$", "", file.stem), []).append(file)
    if len(groups) < 2 * len(PARTS):
        groups = {file.name: [file] for file in files}
    order = draws.permutation(len(groups), seed, f"photographs of {kind}").tolist()
    shuffled = [list(groups.values())[i] for i in order]
    edges = np.round(np.cumsum([0, *PARTS.values()]) * len(shuffled)).astype(int)
    edges[1:3] = np.clip(edges[1:3], [1, edges[1] + 1], [len(shuffled) - 2, len(shuffled) - 1])
    return [sorted(sum(shuffled[a:b], [])) for a, b in zip(edges[:-1], edges[1:], strict=True)]


def write_fold(
    folder: Path, epochs: Sequence[Epochs], eeg: Sequence[np.ndarray], splits: dict[str, list[int]],
    photographs: dict[str, dict[str, list[str]]], manifest: dict, seed: int,
) -> None:  # fmt: skip
    """Write eeg.pth, eeg.json and splits_all.pth: the published layout, with `onset` and `recording` a trial.

    Which photograph a trial showed is not known, only its kind: one of the split's own photographs is drawn, each
    as often as the others, so that no split shares a photograph.
    """
    kinds = list(photographs["train"])
    images = [stem for kind in kinds for part in PARTS for stem in photographs[part][kind]]
    signals = np.concatenate(eeg)
    rows = [(e, i) for e in epochs for i in range(len(e.kind))]
    drawn: dict[int, str] = {}
    for part, trials in splits.items():
        for kind in kinds:
            own = [t for t in trials if rows[t][0].kind[rows[t][1]] == kind]
            pool = photographs[part][kind]
            order = draws.permutation(len(own), seed, f"photographs shown, {part}, {kind}").tolist()
            drawn |= {own[place]: pool[turn % len(pool)] for turn, place in enumerate(order)}
    dataset = [
        {
            "eeg": torch.from_numpy(signals[t].copy()),
            "image": images.index(drawn[t]),
            "label": kinds.index(e.kind[i]),
            "subject": e.subject,
            "onset": e.onset[i],
            "recording": e.recording,
        }
        for t, (e, i) in enumerate(rows)
    ]
    labels = [class_id(n) for n in range(1, len(kinds) + 1)]
    checkpoints.save(folder / "eeg.pth", {"dataset": dataset, "labels": labels, "images": images})
    checkpoints.save(folder / "splits_all.pth", {"splits": [splits]})
    checkpoints.write_text(folder / "eeg.json", json.dumps(manifest, indent=1))
