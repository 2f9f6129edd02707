"""The files of an evaluation folder, and how they are read.

samples/test{i}-{k}.png        trial i: truth (k = 0, absent where images are unknown) and pictures k = 1..S
controls/<name>/test{i}-1.png  trial i under a control, from the same seed as picture 1
trials.csv                     one row a trial: TRIAL_COLUMNS, then seen_1..seen_S, the class that the classifier
                               ranks first for picture k (empty without a classifier)
arrays.safetensors             of run = real and each control (S = 1):
                               <run>.logits (N,S,K), <run>.features (N,S,F), <run>.embedding (N,D);
                               truth.logits (N,K), truth.features (N,F), truth.clip (N,D);
                               baseline.<name> (N,): share of a trial's guess that is right, among the classes
metrics.json                   DESIGN 4; its `run` comes from gen_eval_eeg.py, the rest from eval_metrics.py

Shapes: N trials, S pictures of a trial, K classes of the classifier, F features, D embedding.
"""

import csv
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from safetensors.numpy import load_file

from runtime.errors import UserError

TRIAL_COLUMNS = (
    "trial",
    "position",
    "subject",
    "label",
    "wnid",
    "class_name",
    "class_index",
    "image",
    "onset",
    "recording",
)


class Outcome(NamedTuple):
    """What a run (the real one or a control) made of the trials."""

    logits: np.ndarray | None = None  # (N, S, K) classifier on the pictures
    pixels: np.ndarray | None = None  # (N, S, H, W, 3) uint8
    features: np.ndarray | None = None  # (N, S, F) penultimate layer of the classifier
    embedding: np.ndarray | None = None  # (N, D) of the EEG, in CLIP's space


class Truth(NamedTuple):
    """What was shown. The last four are None where the image of a trial is unknown."""

    label: np.ndarray  # (N,) class in the data set
    class_index: np.ndarray  # (N,) the classifier's number of that class, -1 where it has none
    image: np.ndarray | None = None  # (N,) names
    logits: np.ndarray | None = None  # (N, K)
    pixels: np.ndarray | None = None  # (N, H, W, 3) uint8
    features: np.ndarray | None = None  # (N, F)
    clip: np.ndarray | None = None  # (N, D)


def _pictures(folder: Path, n: int, samples: range) -> np.ndarray:
    """(n, S, H, W, 3) uint8 from test{i}-{k}.png."""
    found = []
    for i in range(n):
        for k in samples:
            path = folder / f"test{i}-{k}.png"
            if not path.is_file():
                raise UserError(f"{path}: picture of trial {i} is missing; run the evaluation again")
            try:
                with Image.open(path) as picture:
                    found.append(np.asarray(picture.convert("RGB")))
            except OSError as error:
                raise UserError(f"{path}: is no whole picture ({error}); run the evaluation again") from error
            if found[-1].shape != found[0].shape:
                raise UserError(f"{path}: {found[-1].shape} pixels, the pictures before it have {found[0].shape}")
    return np.stack(found).reshape(n, len(samples), *found[0].shape)


def read_trials(folder: str | Path) -> list[dict]:
    """The rows of trials.csv, one a trial, as text by column. Raises UserError if it is missing or lacks a column."""
    path = Path(folder) / "trials.csv"
    if not path.is_file():
        raise UserError(f"{path}: not found; expected a folder written by gen_eval_eeg.py")
    with open(path, newline="") as file:
        reader = csv.DictReader(file)
        lacking = [name for name in (*TRIAL_COLUMNS, "seen_1") if name not in (reader.fieldnames or ())]
        if lacking:
            raise UserError(f"{path}: lacks the column {lacking[0]}; run the evaluation again")
        return list(reader)


def read_folder(folder: str | Path) -> tuple[Truth, dict[str, Outcome], dict[str, np.ndarray], list[dict]]:
    """Read an evaluation folder.

    Returns:
        what was shown; the outcome of each run, by name ("real" and the controls); each baseline's hits (N,); the
        rows of trials.csv.

    Raises:
        UserError: a file or picture is missing, half written, or of another size or count than the others.
    """
    folder, trials = Path(folder), read_trials(folder)
    path = folder / "arrays.safetensors"
    if not path.is_file():
        raise UserError(f"{path}: not found; expected a folder written by gen_eval_eeg.py")
    parts: dict[str, dict[str, np.ndarray]] = {}
    for key, array in load_file(path).items():
        run, _, field = key.partition(".")
        if len(array) != len(trials):
            raise UserError(f"{path}: {key} has {len(array)} rows, trials.csv {len(trials)}")
        if array.dtype == np.float16 or not np.isfinite(array).all():
            raise UserError(f"{path}: {key} is in half precision or not finite: write it again")
        parts.setdefault(run, {})[field] = array
    if "real" not in parts:
        raise UserError(f"{path}: holds no array of the real run (real.logits and so on)")
    baselines, shown, n = parts.pop("baseline", {}), parts.pop("truth", {}), len(trials)
    outcomes = {}
    for run, arrays in parts.items():
        where = folder / "samples" if run == "real" else folder / "controls" / run
        samples = sum(path.name != "test0-0.png" for path in where.glob("test0-*.png"))
        pixels = _pictures(where, n, range(1, samples + 1)) if shown else None
        outcomes[run] = Outcome(pixels=pixels, **{key: arrays.get(key) for key in ("logits", "features", "embedding")})
    truth = Truth(*(np.array([int(row[column]) for row in trials]) for column in ("label", "class_index")))
    if shown:
        pixels = _pictures(folder / "samples", n, range(1))[:, 0]
        truth = truth._replace(image=np.array([row["image"] for row in trials]), pixels=pixels)
        truth = truth._replace(**{key: shown.get(key) for key in ("logits", "features", "clip")})
    return truth, outcomes, baselines, trials
