"""Splits files (spec 1.2): read, and what their parts share that could give an answer away."""

import hashlib
import itertools
import operator
from collections.abc import Sequence
from pathlib import Path

from data.signals import read_manifest
from runtime import checkpoints
from runtime.errors import UserError

SPLITS = ("train", "val", "test")
NOT_VERIFIED = "order of the file, not verified"  # what is said wherever it stands in for time
PAIRS = (("train", "val"), ("val", "test"), ("train", "test"))


def read_splits(path: Path, order: Sequence[int], index_space: str) -> dict[str, list[int]]:
    """Each split's trials as positions in the file, given the positions that the split's own indices count.

    Raises:
        UserError: missing file or key, an index out of range (the published loader lets one that equals the length
            pass, and then fails), or splits that overlap.
    """
    content = checkpoints.read_plain(path, "splits file (layout of block_splits_by_image_single.pth)")
    if not content.get("splits"):
        raise UserError(f"{path}: lacks the key 'splits' or it is empty; found {sorted(map(str, content))}")
    first = content["splits"][0] if isinstance(content["splits"], list) else None
    if not isinstance(first, dict):
        raise UserError(f"{path}: 'splits' is no list of dicts of train, val and test")
    parts = {}
    for name in SPLITS:
        if name not in first:
            raise UserError(f"{path}: splits[0] lacks the key '{name}'; found {sorted(map(str, first))}")
        try:
            parts[name] = [operator.index(i) for i in first[name]]  # a tensor's numbers too
        except TypeError as error:
            raise UserError(f"{path}: split '{name}' holds something other than whole numbers") from error
        if len(set(parts[name])) < len(parts[name]):
            raise UserError(f"{path}: split '{name}' names a trial twice")
        wrong = [i for i in parts[name] if not 0 <= i < len(order)]
        if wrong:
            raise UserError(
                f"{path}: split '{name}' has index {wrong[0]}; {index_space} has {len(order)} trials, from 0"
            )
    for a, b in PAIRS:
        both = set(parts[a]) & set(parts[b])
        if both:
            raise UserError(f"{path}: splits '{a}' and '{b}' overlap in {len(both)} trials, for example {min(both)}")
    return {name: [order[i] for i in parts[name]] for name in SPLITS}


def trials_of(subject: int, subjects: Sequence[int], signals: str) -> list[int]:
    """Positions in the file of the trials of one subject, 0: of all. UserError, naming the file, if there are none."""
    rows = [i for i, other in enumerate(subjects) if subject in (0, other)]
    if not rows:
        raise UserError(f"{signals}: no trial of subject {subject}; it holds {sorted(set(subjects))}")
    return rows


def read_subject_splits(
    path: Path, subjects: Sequence[int], subject: int, signals: str
) -> tuple[dict[str, list[int]], str]:
    """Each split's trials of one subject (0: of all), as positions in the file, and in what the indices count.

    They count among the subject's own trials, as published, but in the whole file where the stem ends in `_all`.

    Args:
        subjects: of every trial in the file; signals: its name, for errors.

    Raises:
        UserError: no trial of that subject, or as `read_splits`.
    """
    order = trials_of(subject, subjects, signals)
    whole = path.stem.endswith("_all") or subject == 0
    index_space = "the whole file" if whole else f"the list of subject {subject}"
    parts = read_splits(path, range(len(subjects)) if whole else order, index_space)
    return {name: [i for i in part if subject in (0, subjects[i])] for name, part in parts.items()}, index_space


def runs_in_time(trials: dict[str, list]) -> list[list[int]]:
    """Trials of each subject's recording in order of time: by `onset` where all have one, else as the file has them.

    trials: columns of equal length: subject, onset, recording (None where unknown).
    """
    timed = None not in trials["onset"]
    whose = [(s, str(r)) for s, r in zip(trials["subject"], trials["recording"], strict=True)]
    order = sorted(range(len(whose)), key=lambda i: (whose[i], trials["onset"][i] if timed else i))
    return [list(run) for _, run in itertools.groupby(order, key=lambda i: whose[i])]


def check_splits(path: Path, trials: dict[str, list], parts: dict[str, list[int]], index_space: str) -> dict:
    """What each pair of splits shares, as a manifest of plain values for metrics.json and checkpoints.

    "shared" counts, for "train/test" and so on: pictures and recordings of both (None: unknown); trials of the second
    with the samples of a trial of the first, or next to one in time. `trials` are the columns of a TrialFile.
    """
    beside = [pair for run in runs_in_time(trials) for pair in itertools.pairwise(run)]
    known = None not in trials["recording"]
    tapes = [str(pair) for pair in zip(trials["subject"], trials["recording"], strict=True)]
    shared = {}
    for a, b in PAIRS:
        first, second = set(parts[a]), set(parts[b])
        common = {k: {column[i] for i in first} & {column[i] for i in second} for k, column in (
            ("pictures", trials["image"]), ("recordings", tapes), ("samples", trials["digest"]))}  # fmt: skip
        near = {i for x, y in beside for i, j in ((x, y), (y, x)) if i in second and j in first}
        shared[f"{a}/{b}"] = {
            "pictures": len(common["pictures"]),
            "recordings": len(common["recordings"]) if known else None,
            "identical": sum(trials["digest"][i] in common["samples"] for i in second),
            "neighbours": len(near),
        }
    return {
        "index_space": index_space,
        "sizes": {name: len(part) for name, part in parts.items()},
        "order": "onset" if None not in trials["onset"] else NOT_VERIFIED,
        "shared": shared,
        "trials_sha256": {name: hashlib.sha256(repr(sorted(p)).encode()).hexdigest() for name, p in parts.items()},
        "splits_sha256": checkpoints.sha256(path),
        "made_by": read_manifest(path.with_suffix(".json")),
    }


def describe_splits(facts: dict) -> str:
    """What `check_splits` found of the test split, in lines; the rest is in the manifest."""
    sizes, n_test = ", ".join(f"{name} {n}" for name, n in facts["sizes"].items()), facts["sizes"]["test"]
    lines = [f"splits: {sizes} trials, counted in {facts['index_space']}"]
    for pair, names, one in (
        ("train/test", "training and test", "a training trial"),
        ("val/test", "validation and test", "a validation trial"),
    ):
        shared = facts["shared"][pair]
        recordings = "an unknown number of" if shared["recordings"] is None else shared["recordings"]
        lines.append(
            f"  {names} share {shared['pictures']} pictures and {recordings} recordings; of {n_test} test trials "
            f"{shared['identical']} equal {one}, {shared['neighbours']} are next to one in time ({facts['order']})"
        )
    return "\n".join([*lines, *filter(None, [facts["made_by"].get("about")])])
