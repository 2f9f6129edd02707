"""Training-side controls: trials made of your own, from which nothing that was seen can be learnt.

python code/run.py make_control_data kind=shuffled_labels        # which picture a training trial showed is shuffled
python code/run.py make_control_data kind=pseudo_categories      # stretches of time take the place of classes

Stages B and C run on them as on any trials, with eeg_signals_path=, splits_path= and subject= as printed, and with the
same pictures. Shuffled labels must give "nothing": the test trials keep the truth, but there was none to learn.
Pseudo-categories show what time alone gives on this very recording.

Writes eeg.pth, splits_all.pth and a .json beside each into the folder `out`, the trials last: where they are,
everything is. Both stages print what such trials are, and stage C says it beside its verdict.
"""

import itertools
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from config import from_cli, setting
from data.signals import read_manifest, write_manifest
from data.splits import NOT_VERIFIED, SPLITS, read_splits, runs_in_time, trials_of
from data.trials_file import OPTIONAL, TrialFile, open_trial_file, write_trial_file
from evaluation.block_design import design_from
from runtime import digests, draws
from runtime.errors import UserError
from runtime.paths import under_root

ABOUT_SHUFFLED = (
    "CONTROL: the labels of the training trials were shuffled, so there was nothing to learn; any verdict but nothing "
    "would be a fault of the chain."
)


@dataclass
class ControlDataConfig:
    """Trials from which nothing of what was seen can be learnt."""

    kind: Literal["shuffled_labels", "pseudo_categories"] = setting("shuffled_labels", "which control")
    root_path: str = setting(".", "folder that holds datasets/")
    eeg_signals_path: str = setting("datasets/eeg_5_95_std.pth", "trials to make them of")
    splits_path: str = setting("datasets/block_splits_by_image_single.pth", "for shuffled_labels: which trials train")
    subject: int = setting(4, "subject 1..6; 0: all")
    out: str = setting("", "folder that is written; empty: datasets/<kind>")
    seed: int = setting(2022, "of the shuffling, or of pictures and splits within a stretch")


def shuffled(
    cfg: ControlDataConfig, trials: dict[str, list], parts: dict[str, list[int]]
) -> dict[int, tuple[int, int]]:
    """Picture and label of each trial: a training or validation trial gets those of one of its split and subject."""
    source = {i: i for i in parts["test"]}
    for split, subject in itertools.product(("train", "val"), sorted(set(trials["subject"]))):
        mine = [i for i in parts[split] if trials["subject"][i] == subject]
        order = draws.permutation(len(mine), cfg.seed, f"shuffled labels, {split}", subject).tolist()
        source |= {i: mine[k] for i, k in zip(mine, order, strict=True)}
    return {i: (trials["image"][j], trials["label"][j]) for i, j in source.items()}


def tenths(n: int, *key) -> list[str]:
    """The split of each of n things, at random: a tenth tested, a tenth validates, one of each at least."""
    few, order = max(1, n // 10), draws.permutation(n, *key).tolist()
    parts = dict.fromkeys(order[:few], "test") | dict.fromkeys(order[few : 2 * few], "val")
    return [parts.get(i, "train") for i in range(n)]


def stretches_of(trials: dict[str, list], rows: list[int]) -> list[list[list[int]]]:
    """For each subject as many equal stretches of the trials `rows` as there are classes, in their order."""
    subjects = [list(run) for _, run in itertools.groupby(rows, key=lambda i: trials["subject"][i])]
    return [[part.tolist() for part in np.array_split(run, len(set(trials["label"])))] for run in subjects]


def pseudo(
    cfg: ControlDataConfig, trials: dict[str, list], stretches: list
) -> tuple[dict[int, tuple[int, int]], dict[str, list[int]]]:
    """A picture of class b and that class for each trial of stretch b; splits within stretches, sharing no picture.

    Raises:
        UserError: a class or a stretch is too small to be divided.
    """
    images: dict[int, set] = {}  # of each class
    for label, image in zip(trials["label"], trials["image"], strict=True):
        images.setdefault(label, set()).add(image)
    smallest = min(map(len, [*images.values(), *itertools.chain(*stretches)]))
    if len(images) < 2 or smallest < len(SPLITS):
        few = f"{len(images)} classes, the smallest with {smallest} pictures or trials in its stretch of time"
        raise UserError(f"{cfg.eeg_signals_path}: {few}; two classes and three of both are needed")
    given, parts = {}, {name: [] for name in SPLITS}
    for (k, label), subject in itertools.product(enumerate(sorted(images)), stretches):
        key = cfg.seed, "pseudo-categories", label
        pool = list(zip(sorted(images[label]), tenths(len(images[label]), *key), strict=True))
        turns = {name: itertools.cycle([image for image, part in pool if part == name]) for name in SPLITS}
        for i, name in zip(subject[k], tenths(len(subject[k]), *key, trials["subject"][subject[k][0]]), strict=True):
            given[i] = (next(turns[name]), label)
            parts[name].append(i)
    return given, {name: sorted(part) for name, part in parts.items()}


def about_pseudo(trials: dict[str, list], stretches: list, design: tuple[str, str]) -> dict:
    """What stage C says of stretches in place of classes, and how far these are the true classes after all."""
    order = "in order of onset" if None not in trials["onset"] else NOT_VERIFIED
    parts = list(itertools.chain(*stretches))
    purity = np.mean([Counter(trials["label"][i] for i in part).most_common(1)[0][1] / len(part) for part in parts])
    tapes = sum(len({str(trials["recording"][i]) for i in part}) > 1 for part in parts)
    about = (
        f"CONTROL: the classes of these trials are {len(stretches[0])} stretches of time ({order}), not what was seen; "
        f"scores show what time alone gives. In a stretch the commonest true class has {purity:.0%} of the trials"
    )
    about += "." if design[0] == "random" else f" (design {design[0]}), so a stretch may be told by its true class too."
    if tapes:
        about += f" {tapes} of {len(parts)} stretches span recordings, taken in the order of the file."
    return {"about": about, "order": order, "purity": float(purity), "stretches_over_recordings": tapes}


def content_of(file: TrialFile, given: dict[int, tuple[int, int]]) -> dict:
    """The trials named in `given` (trial -> image, label) in the file's order, as a file of trials holds them.

    The samples are mapped from the source's cache, so that no copy of them is held in memory.
    """
    trials, dataset = file.about["trials"], []
    for i, (image, label) in sorted(given.items()):
        facts = {key: trials[key][i] for key in ("subject", *OPTIONAL) if trials[key][i] is not None}
        dataset.append({"eeg": torch.from_numpy(file.eeg(i)), "image": image, "label": label, **facts})
    return {"dataset": dataset, "labels": file.about["labels"], "images": file.about["images"]}


def control(cfg: ControlDataConfig, file: TrialFile, splits_path: Path) -> tuple[dict, dict, dict]:
    """Picture and label by trial, splits as positions in the file, and what the manifest says. Raises UserError."""
    trials = file.about["trials"]
    rows = set(trials_of(cfg.subject, trials["subject"], cfg.eeg_signals_path))
    # recordings in the order of the file: their names, sorted as text, would put "10" before "2"
    runs = sorted(runs_in_time(trials), key=lambda run: (trials["subject"][run[0]], min(run)))
    rows = [i for run in runs for i in run if i in rows]
    tapes = [f"{trials['subject'][i]} {trials['recording'][i]}" for i in rows]
    onset = None if None in trials["onset"] else [trials["onset"][i] for i in rows]
    design = design_from([trials["label"][i] for i in rows], onset, tapes)
    if cfg.kind == "shuffled_labels":
        parts, _ = read_splits(splits_path, trials["subject"], cfg.subject, cfg.eeg_signals_path)
        # the order in which classes were shown is that of the true ones
        return shuffled(cfg, trials, parts), parts, {"about": ABOUT_SHUFFLED, "design": list(design)}
    stretches = stretches_of(trials, rows)
    return *pseudo(cfg, trials, stretches), about_pseudo(trials, stretches, design)


def main() -> None:
    """Write one control's trials, splits and manifest."""
    cfg = from_cli(ControlDataConfig)
    source, splits_path = (under_root(cfg.root_path, p) for p in (cfg.eeg_signals_path, cfg.splits_path))
    out = under_root(cfg.root_path, cfg.out or f"datasets/{cfg.kind}") / "eeg.pth"
    if out.exists():
        raise UserError(f"{out}: is there already; give another folder with out=")
    file = open_trial_file(source)
    given, parts, about = control(cfg, file, splits_path)
    made_of = {"eeg_sha256": file.about["sha256"]}
    if cfg.kind == "shuffled_labels":  # the other kind makes its own splits
        made_of["splits_sha256"] = digests.sha256(splits_path)
    record = {"kind": cfg.kind} | about | {"made_of": made_of, "settings": asdict(cfg)}
    write_manifest(out.with_name("splits_all.json"), record)
    splits = {name: np.searchsorted(sorted(given), part).tolist() for name, part in parts.items()}
    manifest = read_manifest(source.with_suffix(".json")) | {"control": record}
    write_trial_file(out, content_of(file, given), {"splits_all": splits}, manifest)
    sizes = ", ".join(f"{name} {len(part)}" for name, part in parts.items())
    print(f"{out}: {sizes} trials. {about['about']}")
    print(f"use it with eeg_signals_path={out} splits_path={out.with_name('splits_all.pth')} subject={cfg.subject}")
