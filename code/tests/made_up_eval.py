"""Made-up runs and evaluation folders for tests: what stage C would write, without any model."""

import csv
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import save_file

from evaluation.folder import Outcome, Truth
from evaluation.plain_files import TRIAL_COLUMNS
from evaluation.scores import write_metrics

# what splits share that share nothing
CLEAN = dict.fromkeys(("trials", "identical", "alike", "overlapping", "repeated"), 0) | {"examples": []}
CLEAN = {"shared": {"train/test": {"pictures": 0}}, "same_eeg": {"test": CLEAN}}


def random(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def pictures(n: int, size: int = 32, seed: int = 0) -> np.ndarray:
    """(n, size, size, 3) uint8 with structure at several scales."""
    small = random(seed).integers(0, 256, (n, 8, 8, 3)).repeat(size // 8, 1).repeat(size // 8, 2)
    return np.clip(small + random(seed + 1).integers(-40, 40, small.shape), 0, 255).astype(np.uint8)


def make_arrays(n: int = 24, kinds: int = 6, samples: int = 2, hit: float = 1.0) -> tuple[Outcome, Truth]:
    """A run whose pictures are of the right class with probability `hit`, over a 10-class classifier."""
    g, label = random(3), np.arange(n) % kinds
    seen = np.where(g.random((n, samples)) < hit, label[:, None], g.integers(0, kinds, (n, samples)))
    logits = (g.normal(size=(n, samples, 10)) + 9 * np.eye(10)[seen]).astype(np.float32)
    truth = Truth(
        label, label, np.array([f"n{i}" for i in range(n)]), (9 * np.eye(10)[label]).astype(np.float32),
        pictures(n, 16), g.normal(size=(n, 8)).astype(np.float32), g.normal(size=(n, 8)).astype(np.float32),
    )  # fmt: skip
    pixels = np.stack([pictures(n, 16, seed) for seed in range(samples)], 1)
    embedding = truth.clip + 0.1 * g.normal(size=(n, 8)).astype(np.float32)
    return Outcome(logits, pixels, truth.features[:, None].repeat(samples, 1), embedding), truth


def make_folder(folder: Path, hit: float = 0.9, block: bool = False, n: int = 48, **run):
    """A whole evaluation folder as stage C writes it, without any model."""
    for place in ("samples", "controls/gaussian_eeg", "controls/other_trials_eeg"):
        (folder / place).mkdir(parents=True)
    real, truth = make_arrays(n, hit=hit)
    content = {f"truth.{k}": getattr(truth, k) for k in ("logits", "features", "clip")}
    content |= {"baseline.lda": np.ones(n, np.float32), "real.clip": np.zeros((n, 2, 8), np.float32)}
    for name in ("real", "gaussian_eeg", "other_trials_eeg"):
        outcome = real if name == "real" else make_arrays(n, samples=1, hit=0.0)[0]
        content |= {f"{name}.{k}": getattr(outcome, k) for k in ("logits", "features", "embedding")}
        place = folder / "samples" if name == "real" else folder / "controls" / name
        for i in range(n):
            for k in range(outcome.pixels.shape[1]):
                Image.fromarray(outcome.pixels[i, k]).save(place / f"test{i}-{k + 1}.png")
    for i in range(n):
        Image.fromarray(truth.pixels[i]).save(folder / "samples" / f"test{i}-0.png")
    save_file({k: np.ascontiguousarray(v) for k, v in content.items()}, folder / "arrays.safetensors")
    onset = truth.label.argsort().argsort() if block else random(5).permutation(n)
    with open(folder / "trials.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*TRIAL_COLUMNS, "seen_1", "seen_2"])
        for i, label in enumerate(truth.label):
            names = [f"kind {k}" for k in real.logits[i].argmax(1)]
            row = [i, i, 4, label, f"n{label}", f"kind {label}", label, truth.image[i], float(onset[i]), "tape"]
            writer.writerow([*row, *names])
    write_metrics(folder, {"name": "made up", "simulated": True, "image_known": True, "split": CLEAN} | run)
    return folder
