"""Trials of marked recordings: epochs, folds that leave one recording out, photographs by kind, published layout."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from data.recordings import Recording, standardise
from data.stimuli import image_path
from runtime import draws
from runtime.errors import UserError
from runtime.pictures import load_image

PARTS = {"train": 0.5, "val": 0.25, "test": 0.25}  # of the photographs
LARGEST = 512  # px; no model here takes more
# why mne drops an epoch, as the report says it; any other reason is a channel's amplitude or a span marked bad
DROPPED = {"NO_DATA": "cut off", "TOO_SHORT": "cut off"}
SAME_EVENT = 0.02  # s within which two markers of one kind are one event, which two devices wrote down


@dataclass(frozen=True)
class Epochs:
    """The accepted trials of one recording."""

    recording: str
    subject: int
    ch_names: list[str]
    eeg: np.ndarray  # (N, C, T) float32, standardised
    kind: list[str]
    onset: list[float]  # s
    counts: dict[str, int]  # accepted, rejected by amplitude or marked bad, cut off by the recording's ends


def cut_epochs(
    recording: Recording, kinds: dict[str, str], window: tuple[float, float], reject: float, clip: float
) -> Epochs:
    """Trials at the markers named in `kinds` (marker -> kind), `window` in seconds around them.

    A trial is rejected where any channel's peak-to-peak amplitude exceeds `reject` microvolts (0: never), or where the
    file marks a span as bad. What is marked twice, at one sample or as one kind within SAME_EVENT, is one trial.

    Raises:
        UserError: the window is shorter than two samples, or trials overlap by more than half.
    """
    import mne

    raw, sfreq = recording.raw, recording.raw.info["sfreq"]
    counts = Counter({"accepted": 0, "rejected": 0, "cut off": 0})
    begin, end = (round(edge * sfreq) for edge in window)
    if end - begin < 2:
        raise UserError(f"epoch={window[0]:g},{window[1]:g}: is not two samples long at {sfreq:g} Hz")
    ids = {marker: number for number, marker in enumerate(kinds, 1) if marker in raw.annotations.description}
    if not ids:
        nothing = np.empty((0, len(raw.ch_names), end - begin), np.float32)
        return Epochs(recording.name, recording.subject, raw.ch_names, nothing, [], [], counts)
    names = {number: kinds[marker] for marker, number in ids.items()}
    marked, _ = mne.events_from_annotations(raw, ids, regexp=None, verbose="ERROR")
    events = np.array(_once(marked.tolist(), names, SAME_EVENT * sfreq))
    if twice := len(marked) - len(events):
        counts["marked twice"] = twice
    if close := int((2 * np.diff(events[:, 0]) < end - begin).sum()):
        raise UserError(
            f"{recording.path}: {close} of {len(events)} trials overlap the one before by more than half of their "
            f"{window[1] - window[0]:g} s; shorten epoch=, or name the markers of one moment of each trial"
        )
    epochs = mne.Epochs(
        raw, events, None, begin / sfreq, (end - 1) / sfreq, baseline=None, proj=False, preload=True,
        reject={"eeg": 1e-6 * reject} if reject else None, on_outside="ignore", verbose="ERROR",
    )  # fmt: skip
    counts.update(DROPPED.get(reasons[0], "rejected") if reasons else "accepted" for reasons in epochs.drop_log)
    eeg = standardise(epochs.get_data(copy=False, verbose="ERROR"), clip, raw.get_data())
    kind = [names[number] for number in epochs.events[:, 2].tolist()]
    onset = ((epochs.events[:, 0] - raw.first_samp) / sfreq).tolist()
    return Epochs(recording.name, recording.subject, raw.ch_names, eeg, kind, onset, counts)


def _once(events: list[list[int]], kind: dict[int, str], near: float) -> list[list[int]]:
    """Events (sample, 0, number), in order of time, without those of a taken sample, or of one kind `near` another."""
    kept: list[list[int]] = []
    for event in events:
        if all(event[0] - at > near * (kind[event[2]] == kind[number]) for at, _, number in kept[-9:]):
            kept.append(event)
    return kept


def same_channels(
    epochs: Sequence[Epochs], copies: Sequence[str], markers: Counter[str]
) -> tuple[list[str], np.ndarray]:
    """The channels that all recordings have, and all trials' EEG (N, C, T) reduced to them, in one order.

    copies: files that were left out; markers: of all recordings, how often each is there; both for the message.

    Raises:
        UserError: fewer than two recordings, or no channel in common.
    """
    if len(epochs) < 2:
        without = f", without {len(copies)} copies ({', '.join(copies[:3])})" if copies else ""
        there = ", ".join(f"{name} ({count})" for name, count in markers.most_common(8)) or "none"
        raise UserError(
            f"{len(epochs)} recording(s) have accepted trials{without}; leaving one out needs two at least; "
            f"the markers in them are: {there}"
        )
    names = [name for name in epochs[0].ch_names if all(name in e.ch_names for e in epochs)]
    if not names:
        raise UserError(f"{epochs[0].recording}, {epochs[1].recording}, ...: have no channel in common")
    return names, np.concatenate([e.eeg[:, [e.ch_names.index(name) for name in names]] for e in epochs])


def leave_one_out(recording: np.ndarray, val_share: float) -> Iterator[dict[str, np.ndarray]]:
    """Trial numbers of each split, once for each recording, which is the test split.

    recording: (N,) int, of each trial, in order of time. The last `val_share` of every other recording is for
    validation, not mixed into training, because neighbouring trials share slow states.
    """
    from sklearn.model_selection import LeaveOneGroupOut

    for rest, test in LeaveOneGroupOut().split(recording, groups=recording):
        others = [rest[recording[rest] == number] for number in np.unique(recording[rest])]
        cut = [np.split(trials, [-max(1, round(val_share * len(trials)))]) for trials in others]
        train, val = map(np.concatenate, zip(*cut, strict=True))
        yield {"train": train, "val": val, "test": test}


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
        stems = {file: f"{class_id(number)}_{n}" for n, file in enumerate(files, 1)}
        for file, stem in stems.items():
            target = image_path(out, stem)
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


def draw_photographs(
    kind: Sequence[str], splits: dict[str, np.ndarray], photographs: dict[str, dict[str, list[str]]], seed: int
) -> list[str]:
    """The stem of a photograph for each trial, of its kind and split, each as often as the others.

    Which photograph a trial showed is not known, only its kind; drawn so, no split shares a photograph.
    """
    stems = [""] * len(kind)
    for part, trials in splits.items():
        for name, pool in photographs[part].items():
            mine = [t for t in trials.tolist() if kind[t] == name]
            order = draws.permutation(len(mine), seed, f"photographs shown, {part}, {name}").tolist()
            for turn, i in enumerate(order):
                stems[mine[i]] = pool[turn % len(pool)]
    return stems


def fold_content(
    epochs: Sequence[Epochs], eeg: np.ndarray, splits: dict[str, np.ndarray],
    photographs: dict[str, dict[str, list[str]]], seed: int,
) -> dict:  # fmt: skip
    """The content of a trials file in the published layout, with `onset` and `recording` a trial.

    eeg: (N, C, T), the trials of all `epochs`, one recording after the other.
    """
    kinds = list(photographs["train"])
    images = [stem for kind in kinds for part in PARTS for stem in photographs[part][kind]]
    shown = [kind for e in epochs for kind in e.kind]
    stems = draw_photographs(shown, splits, photographs, seed)
    origins = [{"subject": e.subject, "onset": onset, "recording": e.recording} for e in epochs for onset in e.onset]
    dataset = [
        {"eeg": torch.from_numpy(signal.copy()), "image": images.index(stem), "label": kinds.index(kind)} | origin
        for signal, stem, kind, origin in zip(eeg, stems, shown, origins, strict=True)
    ]
    return {"dataset": dataset, "labels": [class_id(n) for n in range(1, len(kinds) + 1)], "images": images}
