"""The files of an evaluation folder, and how they are read.

samples/test{i}-{k}.png        trial i: truth (k = 0, absent where images are unknown) and pictures k = 1..S
controls/<name>/test{i}-1.png  trial i under a control, from the same seed as picture 1
trials.csv                     one row a trial, in the order of the arrays: TRIAL_COLUMNS, then seen_1..seen_S, the
                               class that the classifier ranks first for picture k (empty without a classifier)
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

import re
from collections.abc import Iterable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from evaluation.plain_files import read_trials, refuse
from runtime.errors import UserError
from runtime.model_files import read_tensors
from runtime.pictures import read_picture

PICTURE_FIELDS = ("logits", "features", "clip", "fid")  # of pictures and of truths
DIMENSIONS = dict.fromkeys(PICTURE_FIELDS, 3) | {"embedding": 2, "lda": 2, "lda_power": 2}  # of a run's arrays
PAIRS = 100_000_000  # trials times distinct images, above which their scores are left out: they grow with the product
KEY = re.compile(r"[\w-]{1,100}\.[\w-]{1,100}", re.ASCII)  # of arrays; runs are also names of folders


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
    trials: dict[str, Any]  # columns (N,) of trials.csv
    notes: list[str]  # sentences about truths that had to be converted
    bare: bool


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
            raise UserError(f"{folder / name}: picture of trial {i} is missing; run the evaluation again")
        picture, mode = read_picture(folder / name)
        pixels.append(picture)
        converted += [f"{name}, {mode}"] if mode != "RGB" else []
        if picture.shape != pixels[0].shape:
            raise UserError(f"{folder / name}: {picture.shape} pixels, the pictures before it have {pixels[0].shape}")
    notes = [f"{len(converted)} of {len(pixels)} pictures in {folder.name} are not RGB and were converted, which loses "
             f"nothing: first {converted[0]}."] if converted else []  # fmt: skip
    return np.stack(pixels).reshape(n, len(samples), *pixels[0].shape), notes


def is_bare(folder: str | Path) -> bool:
    """Whether a folder holds nothing but pictures."""
    return not any((Path(folder) / name).is_file() for name in ("trials.csv", "arrays.safetensors"))


def _bare_trials(samples: Path) -> dict[str, Any]:
    n = len(list(samples.glob("test*-0.png")))
    if n < 2:
        raise UserError(f"{samples}: holds {n} truths (test<trial>-0.png), but two-way scores need 2 trials or more")
    unknown = dict.fromkeys(("label", "class_index"), np.full(n, -1)) | {"onset": np.full(n, np.nan)}
    return dict.fromkeys(("subject", "recording"), [""] * n) | unknown


def stored(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file. Raises UserError: missing, damaged, or of numbers that stage C does not write."""
    arrays = read_tensors(path, "the arrays of an evaluation; run it again")
    for key, array in arrays.items():
        of = array.dtype
        refuse(path, (of not in (torch.float32, torch.float64), f"{key} is of {of}, expected float32 or float64"))
    return {key: array.numpy() for key, array in arrays.items()}


def _by_run(path: Path, arrays: Mapping[str, np.ndarray], n: int) -> dict[str, dict[str, np.ndarray]]:
    """Arrays by run and field, checked."""
    parts: dict[str, dict[str, np.ndarray]] = {}
    sizes: dict[str, tuple[int, str]] = {}  # what must agree -> the first size found, and of which array
    for key, array in arrays.items():
        run, _, field = key.partition(".")
        dimensions = DIMENSIONS.get(field, 3 if field.startswith("alike_") else -1) - (run == "truth")
        known = array.ndim == (1 if run == "baseline" else dimensions) and KEY.fullmatch(key)
        known = known and (run != "truth" or field in PICTURE_FIELDS)
        refuse(
            path,
            (not known, f"holds {key[:99]!r} of shape {array.shape}, which this version does not know"),
            (array.shape[:1] != (n,), f"{key} is of shape {array.shape}, trials.csv has {n} rows"),
            (not array.size or not np.isfinite(array).all(), f"{key} is empty or not finite"),
            (run == "baseline" and ((array < 0) | (array > 1)).any(), f"{key} holds what is no share of 0 to 1"),
        )
        for what, axis, least in ((f"width of {field}", -1, 2), (f"pictures a trial of {run}", 1, 3)):
            size, first = sizes.setdefault(what, (array.shape[axis], key)) if array.ndim >= least else (0, "")
            refuse(path, (first and array.shape[axis] != size, f"{key} has not the {what} of {first}, {size}"))
        parts.setdefault(run, {})[field] = array
    return parts


def _check_together(folder: Path, truth: Truth, real: Mapping[str, np.ndarray]) -> None:
    """Raises UserError where trials.csv, the arrays of truths and of the real run, and pictures are not of one run."""
    arrays, first = folder / "arrays.safetensors", picture_path(folder / "samples", 0, 0)
    known, index = truth.image is not None, truth.class_index
    alone = [key for key in PICTURE_FIELDS if known and (key in real) != (getattr(truth, key) is not None)]
    images, classes = len(set(truth.image)) if known else 0, real["logits"].shape[2] if "logits" in real else np.inf
    compared = {real[key].shape[2] for key in real if key.startswith("alike_")} - {images}
    refuse(
        arrays,
        (not known and first.exists(), f"holds no array of the truths, but {first} is there"),
        (alone, f"holds {alone and alone[0]} of the pictures or of the truths alone, expected of both"),
        (compared, f"compares pictures with {compared} images, trials.csv names {images}"),
    )
    refuse(
        folder / "trials.csv",
        (known and "" in truth.image, "a trial has no image, but its truth is there"),
        (index.max() >= classes, f"holds class_index {index.max()}, but real.logits has {classes} classes"),
    )


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
    n, notes = len(trials["label"]), []
    parts = _by_run(path, ({} if bare else stored(path)) | dict(more or {}), n)
    if "real" not in parts and not bare:
        raise UserError(f"{path}: holds no array of the real run (real.logits and so on)")
    parts.setdefault("real", {})
    baselines, shown = parts.pop("baseline", {}), parts.pop("truth", {})
    truth = Truth(trials["label"], trials["class_index"], **shown)
    if shown and not bare:
        truth = truth._replace(image=np.array(trials["image"]))
    if not bare:
        _check_together(folder, truth, parts["real"])
    if bare:
        each = (read_picture(picture_path(samples, i, 0))[0] for i in range(n))  # all may not fit in memory
        truth = truth._replace(image=np.array([sha256(pixels.tobytes()).hexdigest() for pixels in each]))
    if truth.image is not None and len(set(truth.image)) * n <= PAIRS:
        pixels, notes = pictures(samples, n, range(1))
        truth = truth._replace(pixels=pixels[:, 0])
    if bare and truth.logits is not None:  # nobody else says what class a picture is of
        truth = truth._replace(label=truth.logits.argmax(1))
    outcomes = {}
    for run, arrays in parts.items():
        alike = {key.removeprefix("alike_"): array for key, array in arrays.items() if key.startswith("alike_")}
        where = None if truth.image is None else samples if run == "real" else run_folder(folder, run)
        fields = {key: arrays.get(key) for key in (*PICTURE_FIELDS, "embedding")}
        outcomes[run] = Outcome(alike=alike, folder=where, **fields)
    return Contents(truth, outcomes, baselines, trials, notes, bare)


def with_pixels(outcome: Outcome, truth: Truth) -> tuple[Outcome, list[str]]:
    """The outcome with its pictures, which are of the truths' size, and sentences about those that were converted."""
    if truth.pixels is None:
        return outcome, []
    samples = count_samples(outcome.folder)
    arrays = (outcome.logits, outcome.features, outcome.clip, outcome.fid, *outcome.alike.values())
    told = {array.shape[1] for array in arrays if array is not None}
    refuse(outcome.folder, (told - {samples}, f"holds {samples} pictures a trial, arrays.safetensors tells of {told}"))
    pixels, notes = pictures(outcome.folder, len(truth.label), range(1, samples + 1))
    if pixels.shape[2:] != truth.pixels.shape[1:]:
        raise UserError(
            f"{outcome.folder}: truths are {truth.pixels.shape[1:]} pixels, pictures {pixels.shape[2:]}; "
            "save them at one size"
        )
    return outcome._replace(pixels=pixels), notes
