"""Splits of a trials file by picture, block, recording or subject, in the published layout.

python code/run.py make_splits by=image                      # a tenth of each class tested, a tenth validates
python code/run.py make_splits by=subject fold=3             # the fourth subject tested, the fifth validates

Writes `<folder of the file>/splits_by_<by>_<fold>_all.pth`, whose indices count in the whole file, and a JSON of the
same stem that says what was held out. A block is a stretch of trials of one class, in order of time.
"""

import itertools
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np

from config import from_cli, setting
from data.near_trials import SameEEG
from data.signals import read_manifest, write_manifest
from data.splits import check_splits, describe_splits, runs_in_time
from data.trials_file import open_trial_file
from dataset import FILE_DEFAULTS
from runtime import checkpoints
from runtime.errors import UserError
from runtime.paths import under_root


@dataclass
class SplitConfig:
    """Splits of a trials file by picture, block, recording or subject."""

    root_path: str = setting(".", "folder that holds datasets/")
    eeg_signals_path: str = setting("datasets/eeg_5_95_std.pth", "trials to divide")
    by: Literal["image", "block", "recording", "subject"] = setting("image", "what is never divided")
    folds: int = setting(10, "parts of the pictures or blocks; of recordings and subjects, each is a part")
    fold: int = setting(0, "which part is tested, from 0; the next one validates, all others train")
    seed: int = setting(2022, "of the order in which pictures or blocks are dealt out")


def groups_of(by: str, trials: dict[str, list]) -> list:
    """For each trial, what it must not be parted from. Raises UserError where the file does not say."""
    if by == "recording" and None in trials["recording"]:
        raise UserError("by=recording: the file does not name the recording of every trial; divide by=block or subject")
    if by == "recording":
        return list(zip(trials["subject"], trials["recording"], strict=True))
    if by != "block":
        return trials[by]
    blocks = (block for run in runs_in_time(trials) for _, block in itertools.groupby(run, trials["label"].__getitem__))
    number = {i: n for n, block in enumerate(blocks) for i in block}
    return [number[i] for i in range(len(number))]


def folds_of(cfg: SplitConfig, groups: list, labels: list[int]) -> list[list[int]]:
    """The trials of each part: whole groups, of pictures and blocks such that each class is spread evenly."""
    from sklearn.model_selection import LeaveOneGroupOut, StratifiedGroupKFold

    number = np.unique([str(group) for group in groups], return_inverse=True)[1]
    n_groups, is_dealt = int(number.max()) + 1, cfg.by in ("image", "block")
    n_folds = cfg.folds if is_dealt else n_groups
    if n_folds < 3 or not 0 <= cfg.fold < n_folds:
        raise UserError(f"by={cfg.by} fold={cfg.fold}: there are {n_folds} parts; three at least, and fold below that")
    dealer = StratifiedGroupKFold(n_folds, shuffle=True, random_state=cfg.seed) if is_dealt else LeaveOneGroupOut()
    try:
        return [part.tolist() for _, part in dealer.split(labels, labels, number)]
    except ValueError as error:
        few = f"{n_groups} groups, and the trials of a class, are too few for so many parts"
        raise UserError(f"by={cfg.by} folds={n_folds}: {few}; take fewer folds") from error


def divide(cfg: SplitConfig, trials: dict[str, list]) -> tuple[dict[str, list[int]], dict[str, list]]:
    """Each split's trials, as positions in the file, and the groups that were held out. Raises UserError."""
    groups = groups_of(cfg.by, trials)
    folds = folds_of(cfg, groups, trials["label"])
    tested, validates = folds[cfg.fold], folds[(cfg.fold + 1) % len(folds)]
    parts = {"train": sorted({*range(len(groups))} - {*tested, *validates}), "val": validates, "test": tested}
    return parts, {name: sorted({groups[i] for i in parts[name]}, key=str) for name in ("val", "test")}


def main() -> None:
    """Write one splits file and what it holds out."""
    cfg = from_cli(SplitConfig)
    path = under_root(cfg.root_path, cfg.eeg_signals_path)
    file = open_trial_file(path)
    trials = file.about["trials"]
    parts, held_out = divide(cfg, trials)
    out = path.parent / f"splits_by_{cfg.by}_{cfg.fold}_all.pth"
    checkpoints.save(out, {"splits": [parts]})
    same_eeg = SameEEG(file, FILE_DEFAULTS | read_manifest(path.with_suffix(".json")))
    facts = check_splits(out, same_eeg, parts, "the whole file")
    about = {"settings": asdict(cfg), "held_out": held_out, "eeg_sha256": file.about["sha256"]}
    about |= {key: facts[key] for key in ("sizes", "trials_sha256", "shared", "same_eeg", "order")}
    write_manifest(out.with_suffix(".json"), about)
    unseen = {trials["label"][i] for i in parts["test"]} - {trials["label"][i] for i in parts["train"]}
    print(describe_splits(facts))
    if unseen:
        print(f"  note: {len(unseen)} of the test trials' classes have no training trial")
    print(f"{out}: use it with splits_path={out}" + (" subject=0" if cfg.by == "subject" else ""))
