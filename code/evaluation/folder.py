"""The files of an evaluation folder, and how they are read.

samples/test{i}-{k}.png        trial i: truth (k = 0, absent where images are unknown) and pictures k = 1..S
controls/<name>/test{i}-1.png  trial i under a control, from the same seed as picture 1
trials.csv                     one row a trial: TRIAL_COLUMNS, then seen_1..seen_S, the class that the classifier
                               ranks first for picture k (empty without a classifier)
arrays.safetensors             of run = real and each control (S = 1):
                               <run>.logits (N,S,K), <run>.features (N,S,F), <run>.clip (N,S,D),
                               <run>.embedding (N,D), <run>.alike_<network> (N,S,U), <run>.fid (N,S,2048);
                               truth.logits (N,K), truth.features (N,F), truth.clip (N,D), truth.fid (N,2048);
                               real.lda, real.lda_power (N,classes of the data set), probabilities that no score
                               reads, kept so that the linear baselines can be scored otherwise without the EEG;
                               baseline.<name> (N,): share of a trial's guess that is right, among the classes
scores.csv                     one row a trial: every score of the real run on it
metrics.json                   DESIGN 4; its `run` is stage C's, the rest `evaluation/scores.py` writes anew

A bare folder holds nothing but test{i}-{k}.png, truths included.

Shapes: N trials, S pictures of a trial, K classes of the classifier, F features, D embedding,
U distinct images among the truths, in the order of their names.
"""

import csv
import io
import json
from collections.abc import Iterable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from evaluation.statistics import ItemScores
from runtime.checkpoints import write_text
from runtime.errors import UserError
from runtime.pictures import read_picture

TRIAL_COLUMNS = (
    "trial", "position", "subject", "label", "wnid", "class_name", "class_index", "image", "onset", "recording",
)  # fmt: skip
PICTURE_FIELDS = ("logits", "features", "clip", "fid")  # of pictures and of truths
DIMENSIONS = dict.fromkeys(PICTURE_FIELDS, 3) | {"embedding": 2, "lda": 2, "lda_power": 2}  # of a run's arrays


class Outcome(NamedTuple):
    """What a run (the real one or a control) made of the trials."""

    logits: np.ndarray | None = None  # (N, S, K) classifier on the pictures
    pixels: np.ndarray | None = None  # (N, S, H, W, 3) uint8
    features: np.ndarray | None = None  # (N, S, F) penultimate layer of the classifier
    embedding: np.ndarray | None = None  # (N, D) of the EEG, in CLIP's space
    clip: np.ndarray | None = None  # (N, S, D) of the pictures
    alike: Mapping[str, np.ndarray] = {}  # network -> (N, S, U) likeness to distinct truths, larger is more
    fid: np.ndarray | None = None  # (N, S, 2048) of the Inception by which FID and KID are defined
    folder: Path | None = None  # of its pictures


class Truth(NamedTuple):
    """What was shown. All but the first two are None where the image of a trial is unknown."""

    label: np.ndarray  # (N,) class in the data set, -1 where that is unknown
    class_index: np.ndarray  # (N,) the classifier's number of that class, -1 where it has none
    image: np.ndarray | None = None  # (N,) names
    logits: np.ndarray | None = None  # (N, K)
    pixels: np.ndarray | None = None  # (N, H, W, 3) uint8
    features: np.ndarray | None = None  # (N, F)
    clip: np.ndarray | None = None  # (N, D)
    fid: np.ndarray | None = None  # (N, 2048)


class Contents(NamedTuple):
    """What an evaluation folder holds."""

    truth: Truth
    outcomes: dict[str, Outcome]  # of "real" and the controls, without their pixels
    baselines: dict[str, np.ndarray]  # hits (N,) of each
    trials: list[dict]  # rows of trials.csv
    notes: list[str]  # sentences about truths that had to be converted
    bare: bool


def broken(path: Path, problem: str) -> UserError:
    """What to raise where a file is not as stage C writes it."""
    return UserError(f"{path}: {problem}; run the evaluation again")


def picture_path(folder: Path, i: int, k: int) -> Path:
    """`test{i}-{k}.png`: k = 0 is the truth of trial i, 1..S its pictures."""
    return folder / f"test{i}-{k}.png"


def run_folder(folder: Path, run: str) -> Path:
    """Folder of the pictures of a run, "real" or a control."""
    return folder / "samples" if run == "real" else folder / "controls" / run


def run_folders(folder: Path, controls: Iterable[str]) -> dict[str, Path]:
    """`run_folder` of the real run and of controls, by name."""
    return {run: run_folder(folder, run) for run in ("real", *controls)}


def count_samples(folder: Path) -> int:
    """Pictures a trial, the truth not counted. Raises UserError if there are none."""
    samples = sum(path.name != "test0-0.png" for path in folder.glob("test0-*.png"))
    if not samples:
        raise UserError(f"{folder / 'test0-1.png'}: not found; expected pictures named test<trial>-<k>.png, k from 1")
    return samples


def pictures(folder: Path, n: int, samples: range) -> tuple[np.ndarray, list[str]]:
    """test{i}-{k}.png of n trials, k in `samples`: (n, S, H, W, 3) uint8, and a sentence if some had to be converted.

    Raises UserError where one is missing, too many, damaged or of another size.
    """
    wanted = {f"test{i}-{k}.png": i for i in range(n) for k in samples}
    names = {path.name for path in folder.glob("test*-*.png") if path.name.endswith("-0.png") == (0 in samples)}
    if more := sorted(names - set(wanted)):
        raise UserError(
            f"{folder / more[0]}: there are pictures of more than the {n} trials, or more than {len(samples)} of one; "
            "every trial needs one truth and the same number of pictures"
        )
    pixels, converted = [], []
    for name, i in wanted.items():
        if name not in names:
            raise broken(folder / name, f"picture of trial {i} is missing")
        picture, mode = read_picture(folder / name)
        pixels.append(picture)
        converted += [f"{name}, {mode}"] if mode != "RGB" else []
        if picture.shape != pixels[0].shape:
            raise UserError(f"{folder / name}: {picture.shape} pixels, the pictures before it have {pixels[0].shape}")
    notes = [f"{len(converted)} of {len(pixels)} pictures in {folder.name} are not RGB and were converted, which loses "
             f"nothing: first {converted[0]}."] if converted else []  # fmt: skip
    return np.stack(pixels).reshape(n, len(samples), *pixels[0].shape), notes


def read_run(folder: str | Path) -> dict:
    """The `run` part of metrics.json, empty where there is no such file. Raises UserError where it is not there."""
    path = Path(folder) / "metrics.json"
    if not path.is_file():
        return {}
    try:
        return {} | json.loads(path.read_text())["run"]  # a TypeError where it is no dict
    except (ValueError, KeyError, TypeError) as error:
        raise broken(path, "holds no record of its run, is damaged or another version's") from error


def read_trials(folder: str | Path) -> list[dict]:
    """The rows of trials.csv, one a trial, as text by column. Raises UserError if it is missing or lacks a column."""
    path = Path(folder) / "trials.csv"
    if not path.is_file():
        raise UserError(f"{path}: not found; expected a folder written by gen_eval_eeg.py")
    with open(path, newline="") as file:
        reader = csv.DictReader(file)
        lacking = [name for name in (*TRIAL_COLUMNS, "seen_1") if name not in (reader.fieldnames or ())]
        if lacking:
            raise broken(path, f"lacks the column {lacking[0]}")
        return list(reader)


def recordings(trials: list[dict]) -> np.ndarray | None:
    """(N,) subject and recording of the rows of trials.csv; None where those of a trial are unknown."""
    known = all(row["subject"] and row["recording"] for row in trials)
    return np.array([f"{row['subject']} {row['recording']}" for row in trials]) if known else None


def is_bare(folder: str | Path) -> bool:
    """Whether a folder holds nothing but pictures."""
    return not any((Path(folder) / name).is_file() for name in ("trials.csv", "arrays.safetensors"))


def _bare_trials(samples: Path) -> list[dict]:
    n = len(list(samples.glob("test*-0.png")))
    if n < 2:
        raise UserError(f"{samples}: holds {n} truths (test<trial>-0.png); two-way scores need two trials or more")
    return [dict.fromkeys(TRIAL_COLUMNS, "") | {"trial": str(i), "position": str(i), "label": "-1"} for i in range(n)]


def _stored(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise UserError(f"{path}: not found; expected a folder written by gen_eval_eeg.py")
    try:
        return load_file(path)
    except (SafetensorError, KeyError, TypeError) as error:  # numpy has no bfloat16
        raise broken(path, f"is truncated, no safetensors file, or in half precision ({error!r})") from error


def _by_run(path: Path, arrays: Mapping[str, np.ndarray], n: int) -> dict[str, dict[str, np.ndarray]]:
    """Arrays by run and field, checked."""
    parts: dict[str, dict[str, np.ndarray]] = {}
    for key, array in arrays.items():
        run, _, field = key.partition(".")
        dimensions = DIMENSIONS.get(field, 3 if field.startswith("alike_") else -1) - (run == "truth")
        if array.ndim != (1 if run == "baseline" else dimensions):
            unknown = f"holds {key} of shape {array.shape}, which this version does not know: another one wrote it"
            raise broken(path, unknown)
        if len(array) != n:
            raise UserError(f"{path}: {key} has {len(array)} rows, trials.csv {n}")
        if array.dtype == np.float16 or not np.isfinite(array).all():
            raise UserError(f"{path}: {key} is in half precision or not finite: write it again")
        parts.setdefault(run, {})[field] = array
    return parts


def read_folder(folder: str | Path, more: Mapping[str, np.ndarray] | None = None) -> Contents:
    """Read an evaluation folder, or a bare one, where equal truths count as one image.

    Args:
        more: arrays beside, or instead of, those of arrays.safetensors.

    Raises:
        UserError: a file or picture is missing, half written, of another size or count than the others, or an array
            is of another version.
    """
    folder, bare = Path(folder), is_bare(folder)
    path, samples = folder / "arrays.safetensors", folder / "samples"
    samples = folder if bare and not samples.is_dir() else samples
    trials = _bare_trials(samples) if bare else read_trials(folder)
    n, notes = len(trials), []
    parts = _by_run(path, ({} if bare else _stored(path)) | dict(more or {}), n)
    if "real" not in parts and not bare:
        raise UserError(f"{path}: holds no array of the real run (real.logits and so on)")
    parts.setdefault("real", {})
    baselines, shown = parts.pop("baseline", {}), parts.pop("truth", {})
    truth = Truth(*(np.array([int(row[column] or -1) for row in trials]) for column in ("label", "class_index")))
    if shown or bare:
        pixels, notes = pictures(samples, n, range(1))
        image = [sha256(p.tobytes()).hexdigest() for p in pixels] if bare else [row["image"] for row in trials]
        fields = {key: shown.get(key) for key in PICTURE_FIELDS}
        truth = truth._replace(pixels=pixels[:, 0], image=np.array(image), **fields)
    if bare and truth.logits is not None:  # nobody else says what class a picture is of
        truth = truth._replace(label=truth.logits.argmax(1))
    outcomes = {}
    for run, arrays in parts.items():
        alike = {key.removeprefix("alike_"): array for key, array in arrays.items() if key.startswith("alike_")}
        where = (samples if run == "real" else run_folder(folder, run)) if truth.image is not None else None
        fields = {key: arrays.get(key) for key in (*PICTURE_FIELDS, "embedding")}
        outcomes[run] = Outcome(alike=alike, folder=where, **fields)
    return Contents(truth, outcomes, baselines, trials, notes, bare)


def with_pixels(outcome: Outcome, truth: Truth) -> tuple[Outcome, list[str]]:
    """The outcome with its pictures, which are of the truths' size, and sentences about those that were converted."""
    if outcome.folder is None:
        return outcome, []
    pixels, notes = pictures(outcome.folder, len(truth.label), range(1, count_samples(outcome.folder) + 1))
    if pixels.shape[2:] != truth.pixels.shape[1:]:
        raise UserError(
            f"{outcome.folder}: truths are {truth.pixels.shape[1:]} pixels, pictures {pixels.shape[2:]}; "
            "save them at one size"
        )
    return outcome._replace(pixels=pixels), notes


def write_columns(path: Path, columns: Mapping[str, Iterable]) -> None:
    """Write a CSV file of columns of equal length."""
    text = io.StringIO()
    csv.writer(text).writerows([columns, *zip(*columns.values(), strict=True)])
    write_text(path, text.getvalue())


def write_item_scores(folder: Path, n: int, items: dict[str, ItemScores]) -> None:
    """Write scores.csv: one row a trial, one column a score of the real run (mean over samples), empty where none."""
    columns = {"trial": range(n)}
    for name, score in items.items():
        # scores where lower is better are counted as minus the distance until they are written
        values = -score.value if name.startswith("distance_") else score.value
        texts = {trial: f"{value:.6g}" for trial, value in zip(score.trial.tolist(), values.tolist(), strict=True)}
        columns[name] = [texts.get(i, "") for i in range(n)]
    write_columns(folder / "scores.csv", columns)


def read_item_scores(folder: Path, score: str | None) -> list[float]:
    """One score of every trial from scores.csv, NaN where it has none; empty if there is no such column."""
    path = folder / "scores.csv"
    with open(path, newline="") if path.is_file() else io.StringIO() as file:
        return [float(row[score] or "nan") for row in csv.DictReader(file) if score in row]
