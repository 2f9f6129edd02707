"""Splits of a trials file by picture, block, recording or subject, in the published layout (spec 1.2).

python code/run.py make_splits by=image                      # a tenth of each class tested, a tenth validates
python code/run.py make_splits by=subject fold=3             # the fourth subject tested, the fifth validates

Writes `<folder of the file>/splits_by_<by>_<fold>_all.pth`, whose indices count in the whole file, and a JSON of the
same stem that says what was held out. A block is a stretch of trials of one class, in order of time.
"""

import itertools
import json
from dataclasses import asdict, dataclass

from config import from_cli, setting
from data.splits import SPLITS, check_splits, runs_in_time, told
from data.trials_file import open_trial_file
from runtime import checkpoints, draws
from runtime.errors import UserError
from runtime.paths import under_root


@dataclass
class SplitConfig:
    """Splits of a trials file by picture, block, recording or subject."""

    root_path: str = setting(".", "folder that holds datasets/")
    eeg_signals_path: str = setting("datasets/eeg_5_95_std.pth", "trials to divide")
    by: str = setting("image", "what is never divided: image, block, recording or subject")
    folds: int = setting(10, "parts of the pictures or blocks; of recordings and subjects, each is a part")
    fold: int = setting(0, "which part is tested, from 0; the next one validates, all others train")
    seed: int = setting(2022, "of the order in which pictures or blocks are dealt out")


def groups_of(by: str, trials: dict[str, list]) -> list:
    """For each trial, what it must not be parted from. Raises UserError where the file does not say."""
    if by not in ("image", "block", "recording", "subject"):
        raise UserError(f"by={by}: expected image, block, recording or subject")
    if by == "recording" and None in trials["recording"]:
        raise UserError("by=recording: the file does not name the recording of every trial; divide by=block or subject")
    if by == "recording":
        return list(zip(trials["subject"], trials["recording"], strict=True))
    if by != "block":
        return trials[by]
    groups, blocks = [0] * len(trials["label"]), itertools.count()
    for run in runs_in_time(trials):
        for _, block in itertools.groupby(run, key=lambda i: trials["label"][i]):
            number = next(blocks)
            for i in block:
                groups[i] = number
    return groups


def deal(groups: list, labels: list[int], folds: int, seed: int) -> dict:
    """Group -> fold: the groups of each class, shuffled, are dealt out in turn, on from where the last class ended."""
    of_class: dict[int, dict] = {}
    for group, label in zip(groups, labels, strict=True):
        of_class.setdefault(label, {}).setdefault(group)
    folds_in_turn, place = itertools.cycle(range(folds)), {}
    for label in sorted(of_class):
        mine = list(of_class[label])
        place |= {mine[i]: next(folds_in_turn) for i in draws.permutation(len(mine), seed, "splits", label).tolist()}
    return place


def divide(cfg: SplitConfig, trials: dict[str, list]) -> tuple[dict[str, list[int]], dict[str, list]]:
    """Each split's trials, as positions in the file, and the groups that were held out. Raises UserError."""
    groups = groups_of(cfg.by, trials)
    if cfg.by in ("image", "block"):
        n_folds, place = cfg.folds, deal(groups, trials["label"], cfg.folds, cfg.seed)
    else:
        place = {group: i for i, group in enumerate(sorted(set(groups), key=str))}
        n_folds = len(place)
    if n_folds < 3 or not 0 <= cfg.fold < n_folds:
        raise UserError(f"by={cfg.by} fold={cfg.fold}: there are {n_folds} parts; three at least, and fold below that")
    role = {cfg.fold: "test", (cfg.fold + 1) % n_folds: "val"}
    parts: dict[str, list[int]] = {name: [] for name in SPLITS}
    for i, group in enumerate(groups):
        parts[role.get(place[group], "train")].append(i)
    empty = [name for name in SPLITS if not parts[name]]
    if empty:
        raise UserError(f"by={cfg.by} folds={n_folds}: split '{empty[0]}' is empty, there are {len(place)} groups")
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
    facts = check_splits(out, trials, parts, "the whole file")
    about = {"settings": asdict(cfg), "held_out": held_out, "eeg_sha256": file.about["sha256"]}
    about |= {key: facts[key] for key in ("sizes", "trials_sha256", "shared", "order")}
    checkpoints.write_text(out.with_suffix(".json"), json.dumps(about, indent=1))
    unseen = {trials["label"][i] for i in parts["test"]} - {trials["label"][i] for i in parts["train"]}
    print(told(facts))
    if unseen:
        print(f"  note: {len(unseen)} of the test trials' classes have no training trial")
    print(f"{out}: use it with splits_path={out}" + (" subject=0" if cfg.by == "subject" else ""))
