"""The files of an evaluation folder, and how they are read.

samples/test{i}-{k}.png        trial i: truth (k = 0, absent where images are unknown) and pictures k = 1..S
controls/<name>/test{i}-1.png  trial i under a control, from the same seed as picture 1
trials.csv                     one row a trial: TRIAL_COLUMNS, then seen_1..seen_S, the class that the classifier
                               ranks first for picture k (empty without a classifier)
arrays.safetensors             of run = real and each control (S = 1):
                               <run>.logits (N,S,K), <run>.features (N,S,F), <run>.clip (N,S,D),
                               <run>.embedding (N,D), <run>.alike_<network> (N,S,U);
                               truth.logits (N,K), truth.features (N,F), truth.clip (N,D);
                               baseline.<name> (N,): share of a trial's guess that is right, among the classes
scores.csv                     one row a trial: every score of the real run on it
metrics.json                   DESIGN 4; its `run` comes from gen_eval_eeg.py, the rest from eval_metrics.py

Shapes: N trials, S pictures of a trial, K classes of the classifier, F features, D embedding,
U distinct images among the truths, in the order of their names.
"""

import csv
import io
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from safetensors import SafetensorError
from safetensors.numpy import load_file

from runtime.checkpoints import write_text
from runtime.errors import UserError
from verdict import ItemScores

TRIAL_COLUMNS = (
    "trial", "position", "subject", "label", "wnid", "class_name", "class_index", "image", "onset", "recording",
)  # fmt: skip


class Outcome(NamedTuple):
    """What a run (the real one or a control) made of the trials."""

    logits: np.ndarray | None = None  # (N, S, K) classifier on the pictures
    pixels: np.ndarray | None = None  # (N, S, H, W, 3) uint8
    features: np.ndarray | None = None  # (N, S, F) penultimate layer of the classifier
    embedding: np.ndarray | None = None  # (N, D) of the EEG, in CLIP's space
    clip: np.ndarray | None = None  # (N, S, D) of the pictures
    alike: Mapping[
        str, np.ndarray
    ] = {}  # network -> (N, S, U) likeness of pictures and distinct truths, larger is more


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
    """(n, S, H, W, 3) uint8 from test{i}-{k}.png; grey becomes RGB."""
    found = []
    for i in range(n):
        for k in samples:
            path = folder / f"test{i}-{k}.png"
            if not path.is_file():
                raise UserError(f"{path}: picture of trial {i} is missing; run the evaluation again")
            try:
                with Image.open(path) as picture:
                    clear = picture.has_transparency_data
                    found.append(np.asarray(picture.convert("RGB")))
            except (OSError, SyntaxError) as error:
                raise UserError(f"{path}: is no whole picture ({error}); run the evaluation again") from error
            if clear:
                raise UserError(f"{path}: has transparent parts, which no score can see; save it as RGB")
            if found[-1].shape != found[0].shape:
                raise UserError(f"{path}: {found[-1].shape} pixels, the pictures before it have {found[0].shape}")
    more = folder / f"test{n}-{samples[0]}.png"
    if more.is_file():
        raise UserError(f"{more}: there are pictures of more than the {n} trials; remove them or score all of them")
    return np.stack(found).reshape(n, len(samples), *found[0].shape)


def place(folder: Path, run: str) -> Path:
    """Folder of the pictures of a run, "real" or a control."""
    return folder / "samples" if run == "real" else folder / "controls" / run


def count_samples(where: Path) -> int:
    """Pictures a trial, the truth not counted. Raises UserError if there are none."""
    samples = sum(path.name != "test0-0.png" for path in where.glob("test0-*.png"))
    if not samples:
        raise UserError(f"{where / 'test0-1.png'}: not found; expected pictures named test<trial>-<k>.png, k from 1")
    return samples


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


def _read_bare(where: Path) -> tuple[Truth, dict[str, Outcome], dict[str, np.ndarray], list[dict]]:
    """As `read_folder`, of a folder that holds nothing but test{i}-{k}.png. Equal truths count as one image."""
    n = len(list(where.glob("test*-0.png")))
    if n < 2:
        raise UserError(f"{where}: holds {n} truths (test<trial>-0.png); two-way scores need two trials or more")
    shown = _pictures(where, n, range(1))[:, 0]
    made = _pictures(where, n, range(1, count_samples(where) + 1))
    if made.shape[2:] != shown.shape[1:]:
        raise UserError(
            f"{where}: truths are {shown.shape[1:]} pixels, pictures {made.shape[2:]}; save them at one size"
        )
    image = np.array([sha256(picture.tobytes()).hexdigest() for picture in shown])
    truth = Truth(np.zeros(n, int), np.full(n, -1), image, pixels=shown)
    rows = [dict.fromkeys(TRIAL_COLUMNS, "") | {"trial": str(i), "position": str(i), "label": "0"} for i in range(n)]
    return truth, {"real": Outcome(pixels=made)}, {}, rows


def read_folder(folder: str | Path) -> tuple[Truth, dict[str, Outcome], dict[str, np.ndarray], list[dict]]:
    """Read an evaluation folder.

    Returns:
        what was shown; the outcome of each run, by name ("real" and the controls); each baseline's hits (N,); the
        rows of trials.csv.

    Raises:
        UserError: a file or picture is missing, half written, or of another size or count than the others.
    """
    folder = Path(folder)
    path = folder / "arrays.safetensors"
    if not (path.is_file() or (folder / "trials.csv").is_file()):
        return _read_bare(folder / "samples" if (folder / "samples").is_dir() else folder)
    trials = read_trials(folder)
    if not path.is_file():
        raise UserError(f"{path}: not found; expected a folder written by gen_eval_eeg.py")
    parts: dict[str, dict[str, np.ndarray]] = {}
    try:
        stored = load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path}: is truncated or no safetensors file ({error}); run the evaluation again") from error
    for key, array in stored.items():
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
        where, known = place(folder, run), {key: arrays.get(key) for key in ("logits", "features", "embedding", "clip")}
        pixels = _pictures(where, n, range(1, count_samples(where) + 1)) if shown else None
        alike = {key.removeprefix("alike_"): array for key, array in arrays.items() if key.startswith("alike_")}
        outcomes[run] = Outcome(pixels=pixels, alike=alike, **known)
    truth = Truth(*(np.array([int(row[column]) for row in trials]) for column in ("label", "class_index")))
    if shown:
        pixels = _pictures(folder / "samples", n, range(1))[:, 0]
        truth = truth._replace(image=np.array([row["image"] for row in trials]), pixels=pixels)
        truth = truth._replace(**{key: shown.get(key) for key in ("logits", "features", "clip")})
    return truth, outcomes, baselines, trials


def left_out(truth: Truth, real: Outcome) -> list[str]:
    """Which scores this folder does not allow, a sentence each."""
    unknown, seen = (truth.class_index < 0).sum(), real.logits is not None
    cases = {
        "Class scores are left out: no classifier has seen the pictures.": not seen,
        f"class_accuracy is left out: the classifier does not know the class of {unknown} trials.": seen and unknown,
        "class_accuracy is left out: all trials are of one class.": seen and len(set(truth.class_index)) == 1,
        "Two-way and retrieval scores are left out: which images were shown is unknown.": truth.image is None,
        "Two-way and retrieval scores are left out: all trials show one image.": truth.image is not None
        and len(set(truth.image)) == 1,
    }
    return [sentence for sentence, holds in cases.items() if holds]


def write_item_scores(folder: Path, n: int, items: dict[str, ItemScores]) -> None:
    """Write scores.csv: one row a trial, one column a score of the real run (mean over samples), empty where none."""
    columns = [dict(zip(s.trial.tolist(), s.value.tolist(), strict=True)) for s in items.values()]
    rows = [[i, *(f"{column[i]:.6g}" if i in column else "" for column in columns)] for i in range(n)]
    text = io.StringIO()
    csv.writer(text).writerows([["trial", *items], *rows])
    write_text(folder / "scores.csv", text.getvalue())


def read_item_scores(folder: Path, score: str | None) -> list[float]:
    """One score of every trial from scores.csv, NaN where it has none; empty if there is no such column."""
    path = folder / "scores.csv"
    with open(path, newline="") if path.is_file() else io.StringIO() as file:
        return [float(row[score] or "nan") for row in csv.DictReader(file) if score in row]
