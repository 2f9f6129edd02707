"""Splits files: read, and what their parts share that could give an answer away."""

import hashlib
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NotRequired

import torch
from annotated_types import MinLen
from torch import Tensor
from typing_extensions import TypedDict

from data.near_trials import SameEEG, about_same_eeg, recordings_of
from data.trials_file import NUMPY
from runtime import checkpoints, digests
from runtime.errors import UserError
from runtime.plain import checked, read_json, short

SPLITS = ("train", "val", "test")
NOT_VERIFIED = "order of the file, not verified"  # what is said wherever it stands in for time
PAIRS = (("train", "val"), ("val", "test"), ("train", "test"))
LAYOUT = "the layout is {'splits': [{'train': [0, 1], 'val': [2], 'test': [3]}]}, positions of trials from 0"
WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
Parts = TypedDict("Parts", dict.fromkeys(SPLITS, list[int]))  # positions of trials


class SplitsFile(TypedDict):
    """Of its splits, the first is used."""

    splits: Annotated[list[dict], MinLen(1)]


class MadeBy(TypedDict):
    """What may stand beside a splits file: how it was made."""

    about: NotRequired[str]


def trials_of(subject: int, subjects: Sequence[int], signals: str) -> list[int]:
    """Positions in the file of the trials of one subject, 0: of all. UserError, naming the file, if there are none."""
    rows = [i for i, other in enumerate(subjects) if subject in (0, other)]
    if not rows:
        raise UserError(f"{signals}: no trial of subject {subject}; it holds {sorted(set(subjects))}")
    return rows


def read_splits(path: Path, subjects: Sequence[int], subject: int, signals: str) -> tuple[dict[str, list[int]], str]:
    """Each split's trials of one subject (0: of all), as positions in the file, and in what the indices count.

    They count among the subject's own trials, as published, but in the whole file where the stem ends in `_all`.

    Args:
        subjects: of every trial in the file; signals: its name, for errors.

    Raises:
        UserError: no trial of that subject, missing file or key, splits that overlap, or an index out of range (the
            published loader lets one that equals the length pass, and then fails).
    """
    rows, index_space = trials_of(subject, subjects, signals), f"the list of subject {subject}"
    if path.stem.endswith("_all") or subject == 0:
        rows, index_space = range(len(subjects)), "the whole file"
    with torch.serialization.safe_globals(NUMPY):
        content = checkpoints.read_plain(path, "splits file (layout of block_splits_by_image_single.pth)")
    first = checked(SplitsFile, content, str(path), LAYOUT)["splits"][0]
    parts = {name: _listed(first[name], len(rows)) for name in SPLITS if name in first}
    parts = {k: [_listed(i, 1) for i in v] if isinstance(v, list | tuple) else v for k, v in parts.items()}
    parts = checked(Parts, parts, f"{path}: splits[0]", LAYOUT)
    for name, part in parts.items():
        if len(set(part)) < len(part):
            raise UserError(f"{path}: split '{name}' names a trial twice")
        if bad := [i for i in part if not 0 <= i < len(rows)]:
            raise UserError(f"{path}: '{name}' has index {short(bad[0])}; {index_space} has {len(rows)} trials, from 0")
    for a, b in PAIRS:
        if both := set(parts[a]) & set(parts[b]):
            raise UserError(f"{path}: splits '{a}' and '{b}' overlap in {len(both)} trials, for example {min(both)}")
    placed = {name: [rows[i] for i in part] for name, part in parts.items()}
    return {name: [i for i in part if subject in (0, subjects[i])] for name, part in placed.items()}, index_space


def _listed(value: Any, most: int) -> Any:
    """A tensor's whole numbers, where they are `most` at most; of anything else, itself."""
    whole = isinstance(value, Tensor) and value.dtype in WHOLE and value.layout == torch.strided
    return value.tolist() if whole and value.device.type == "cpu" and value.numel() <= most else value


def runs_in_time(trials: dict[str, list]) -> list[list[int]]:
    """Trials of each subject's recording in order of time: by `onset` where all have one, else as the file has them.

    trials: columns of equal length: subject, onset, recording (None where unknown).
    """
    timed, recordings = None not in trials["onset"], recordings_of(trials)
    order = sorted(range(len(recordings)), key=lambda i: (recordings[i], trials["onset"][i] if timed else i))
    return [list(run) for _, run in itertools.groupby(order, key=recordings.__getitem__)]


def check_splits(path: Path, same_eeg: SameEEG, parts: dict[str, list[int]], index_space: str) -> dict:
    """What each pair of splits shares, as a manifest of plain values for metrics.json and checkpoints.

    "shared" counts, for "train/test" and so on: pictures and recordings of both (None: unknown); trials of the second
    with the samples of a trial of the first, or next to one in time. "same_eeg" says how many validation trials hold
    EEG of a training trial, and test trials that of a training or validation trial (see near_trials).

    Raises:
        UserError: the JSON of the same stem, which says how the splits were made, cannot be read.
    """
    trials, about = same_eeg.trials, path.with_suffix(".json")
    made_by = checked(MadeBy, read_json(about, "record of how splits were made"), str(about)) if about.exists() else {}
    neighbours = [pair for run in runs_in_time(trials) for pair in itertools.pairwise(run)]
    neighbours += [(later, earlier) for earlier, later in neighbours]
    columns = {"pictures": trials["image"], "recordings": recordings_of(trials), "identical": trials["digest"]}
    shared = {}
    for a, b in PAIRS:
        first, second = set(parts[a]), set(parts[b])
        common = {name: {column[i] for i in first} & {column[i] for i in second} for name, column in columns.items()}
        shared[f"{a}/{b}"] = {
            "pictures": len(common["pictures"]),
            "recordings": None if None in trials["recording"] else len(common["recordings"]),
            "identical": sum(trials["digest"][i] in common["identical"] for i in second),
            "neighbours": len({j for i, j in neighbours if i in first and j in second}),
        }
    return {
        "index_space": index_space,
        "sizes": {name: len(part) for name, part in parts.items()},
        "order": "onset" if None not in trials["onset"] else NOT_VERIFIED,
        "shared": shared,
        "same_eeg": {
            "val": same_eeg.between(parts["train"], parts["val"]),
            "test": same_eeg.between(parts["train"] + parts["val"], parts["test"]),
        },
        "trials_sha256": {name: hashlib.sha256(repr(sorted(p)).encode()).hexdigest() for name, p in parts.items()},
        "splits_sha256": digests.sha256(path),
        "made_by": made_by,
    }


def describe_splits(facts: dict) -> str:
    """What `check_splits` found of the test split, in lines; the rest is in the manifest."""
    sizes, n_test = ", ".join(f"{name} {n}" for name, n in facts["sizes"].items()), facts["sizes"]["test"]
    lines = [f"splits: {sizes} trials, counted in {facts['index_space']}"]
    for part, name in (("train", "training"), ("val", "validation")):
        shared = facts["shared"][f"{part}/test"]
        recordings = "an unknown number of" if shared["recordings"] is None else shared["recordings"]
        lines.append(
            f"  {name} and test share {shared['pictures']} pictures and {recordings} recordings; of {n_test} test "
            f"trials {shared['neighbours']} are next to a {name} trial in time ({facts['order']})"
        )
    for part, name, others in (("test", "test", "training or validation"), ("val", "validation", "training")):
        lines.append("  " + about_same_eeg(facts["same_eeg"][part], name, others))
    return "\n".join([*lines, *filter(None, [facts["made_by"].get("about")])])
