"""Simulate the miniature world's experiment: pictures, trials with splits, unlabelled EEG.

python code/run.py simulate_eeg                                                 the demo: random order, signal, drift
python code/run.py simulate_eeg out=datasets/drift design=block signal=0 seed=1     slow drift that looks like classes
python code/run.py simulate_eeg out=datasets/noise signal=0 drift=0 seed=2          nothing at all
python code/run.py simulate_eeg out=datasets/both design=block signal=2 instance=1.5 seed=3
                                                                            drift, classes and single pictures
Any of them with n_subjects=6 (all six) or with band=14_70, 55_95 or raw. The .json beside the trials says all this.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from config import from_cli, setting
from data.signals import read_manifest, write_manifest
from data.trials_file import write_trial_file
from dataset import FILE_DEFAULTS, open_trials
from evaluation.baselines import lda_probabilities, log_power, time_bins
from miniature.experiment import simulate_experiment, split_by_image, unlabelled_recording
from miniature.renderer import STIMULI, write_stimuli
from runtime.errors import UserError
from runtime.paths import under_root
from runtime.runs import run_config

SUBJECTS = (4, 1, 2, 3, 5, 6)
CORPUS = ((101, 128, 1000.0), (102, 64, 1000.0), (103, 32, 500.0), (104, 19, 2000.0))  # subject, electrodes, Hz


@dataclass
class SimulateConfig:
    """Simulated EEG in the layout of eeg_5_95_std.pth, with its pictures and an unlabelled corpus."""

    root_path: str = setting(".", "folder that holds datasets/")
    out: str = setting("datasets/miniature", "folder that is written")
    design: Literal["random", "block"] = setting("random", "order of the pictures; block: class after class")
    signal: float = setting(1.0, "evoked responses: at 1 LDA names 84 % of the test trials, at 0.55 half; 0: none")
    drift: float = setting(1.0, "strength of slow changes; 0: none")
    instance: float = setting(0.3, "weight of pose and background in the response; thing and colour weigh 1")
    band: Literal["5_95", "14_70", "55_95", "raw"] = setting("5_95", "Hz")
    images_a_class: int = setting(40, "pictures of each of the 40 classes, for three splits", least=3)
    n_subjects: int = setting(1, "at most 6; subject 4 comes first", least=1, below=7)
    corpus_minutes: float = setting(3.0, "length of each of the four unlabelled recordings; 0: none")
    seed: int = setting(0, "of every random draw")
    check: bool = setting(False, "also print what shrinkage LDA reads from the test split")
    overwrite: bool = setting(False, "replace an earlier simulation in that folder")


def main() -> None:
    """Write the files, the trials last: where they are, everything is."""
    cfg = from_cli(SimulateConfig)
    out = under_root(cfg.root_path, cfg.out)
    path, settings = out / f"eeg_{cfg.band}_std.pth", run_config(cfg, "out", "check")
    if already_there(out, settings, cfg.overwrite):
        print(f"{path}: simulated with these settings before; nothing to do")
    else:
        write_stimuli(out / "imageNet_images", STIMULI, range(cfg.images_a_class))
        write_corpus(cfg, out / "eeg_train")
        write_trials(cfg, settings, path)
    if cfg.check:
        print_lda(path, out / "block_splits_by_image_single.pth")


def already_there(folder: Path, wanted: dict, overwrite: bool) -> bool:
    """Whether this very simulation stands in the folder; another is removed only if asked, foreign data never."""
    for trials in sorted(folder.glob("eeg_*_std.pth")):
        manifest = read_manifest(trials.with_suffix(".json"))
        if not manifest.get("simulated"):
            raise UserError(f"{trials}: is there and was not made by this command; give another folder with out=")
        different = [name for name in wanted if manifest.get("settings", {}).get(name) != wanted[name]]
        if not overwrite and not different:
            return True
        if not overwrite:
            raise UserError(
                f"{trials}: simulated with other {', '.join(different)}; give another out= or overwrite=true"
            )
        trials.unlink()
    return False


def write_trials(cfg: SimulateConfig, settings: dict, path: Path) -> None:
    """The trials file, both splits files, and the manifest: what a reader must know, and how they were made."""
    subjects = SUBJECTS[: cfg.n_subjects]
    content = simulate_experiment(
        subjects, cfg.images_a_class, cfg.design, cfg.signal, cfg.drift, cfg.instance, cfg.band, cfg.seed
    )
    everybody = [trial["image"] for trial in content["dataset"]]
    one = everybody[: len(everybody) // len(subjects)]
    splits = {
        f"block_splits_by_image_{name}": split_by_image(images, cfg.images_a_class, cfg.seed)
        for name, images in (("single", one), ("all", everybody))
    }
    about = {
        "description": "simulated EEG; no person was recorded",
        "simulated": True,
        **FILE_DEFAULTS,
        "ch_names": [f"E{i + 1}" for i in range(128)],
        "band": cfg.band,
        "design": cfg.design,
        "standardised": "each channel to mean 0 and variance 1 over each recording",
        "settings": settings,
    }
    write_trial_file(path, content, splits, about)
    sizes = "/".join(str(len(part)) for part in splits["block_splits_by_image_all"].values())
    print(
        f"{path}: SIMULATED EEG, {len(everybody)} trials of {len(content['labels'])} classes ({sizes}), "
        f"subjects {', '.join(map(str, subjects))}, design {cfg.design}, signal {cfg.signal}, drift {cfg.drift}"
    )


def write_corpus(cfg: SimulateConfig, folder: Path) -> None:
    """Unlabelled recordings of other subjects with other caps and rates, standardised as prepared ones are."""
    if not cfg.corpus_minutes:
        return
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for subject, n_chans, rate in CORPUS:
        eeg = unlabelled_recording(cfg.seed, subject, n_chans, rate, 60 * cfg.corpus_minutes, cfg.band)
        name = f"simulated_{subject}_{n_chans}ch_{rate:.0f}hz.npy"
        np.save(folder / name, eeg)
        entries.append({"file": name, "sfreq": rate, "n_chans": n_chans, "seconds": eeg.shape[1] / rate})
    about = {"simulated": True, "sfreq": None, "ch_names": None, "band": cfg.band, "standardised": True}
    about["excludes_test"] = "recordings of other subjects, who saw no picture"
    write_manifest(folder / "manifest.json", about | {"recordings": entries})
    minutes = sum(entry["seconds"] for entry in entries) / 60
    print(f"{folder}: SIMULATED EEG, {len(entries)} unlabelled recordings, {minutes:.0f} minutes")


def print_lda(trials_path: Path, splits_path: Path) -> None:
    """How many test trials of subject 4 shrinkage LDA names right, from evoked responses and from power alone."""
    part = open_trials(trials_path, splits_path, splits=("train", "test"))
    train, test = part["train"], part["test"]
    for features, name in ((time_bins, "evoked responses"), (log_power, "the channels' power")):
        given = (train.eeg.numpy(), train.label.numpy(), test.eeg.numpy(), len(train.wnids))
        right = (lda_probabilities(*given, features).argmax(1) == test.label.numpy()).mean()
        print(f"SIMULATED EEG: LDA on {name} names {100 * right:.1f} % of {len(test)} test trials (chance 2.5 %)")
