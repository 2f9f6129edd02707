"""Scores of generated pictures and of EEG embeddings, item by item, and the metrics.json of a folder of them.

`python code/eval_metrics.py <eval folder>` computes metrics.json again from files alone: no model is built here.

Shapes: N trials, S pictures of a trial, K classes of the classifier, U distinct images among the truths.
"""

import json
import sys
from functools import lru_cache
from math import comb
from pathlib import Path

import numpy as np
import torch
from scipy.stats import rankdata

from eval_folder import Outcome, Truth, read_folder
from runtime.checkpoints import write_text
from runtime.errors import UserError, cli
from similarity import cosine, pearson, pixel_mse, ssim
from verdict import ItemScores, design_from, entry, score_table, verdict, within_class_p


@lru_cache(maxsize=64)
def _chance_by_rank(classes: int, n_way: int, top_k: int) -> np.ndarray:
    """(classes + 1,): sums over r < index of P, the chance of a hit when r classes score above the true one.

    P = sum_{j<k} C(r, j) C(K-1-r, n-1-j) / C(K-1, n-1), where j is the number of the n - 1 distractors, drawn
    without replacement, that stand above (spec 6.3). Integers until the division.
    """
    total = comb(classes - 1, n_way - 1)
    ways = [sum(comb(r, j) * comb(classes - 1 - r, n_way - 1 - j) for j in range(top_k)) for r in range(classes)]
    return np.concatenate([[0.0], np.cumsum([w / total for w in ways])])


def _expected(scores: np.ndarray, n_way: int, top_k: int = 1) -> np.ndarray:
    """(N, K) -> (N, K): the expected N-way top-k score of every row, were the column's class the true one."""
    running = _chance_by_rank(scores.shape[1], n_way, top_k)
    better = scores.shape[1] - rankdata(scores, method="max", axis=1).astype(np.int64)
    equal = scores.shape[1] - rankdata(scores, method="min", axis=1).astype(np.int64) + 1 - better
    return (running[better + equal] - running[better]) / equal


def n_way_accuracy(scores, true_class, n_way: int, top_k: int = 1):
    """Expected N-way top-k accuracy: the true class against n_way - 1 others drawn without replacement.

    Exact: the published protocol draws 50 times (spec 6.3), this is its mean over all draws. Ties are broken at
    random, in expectation.

    Args:
        scores: (N, K) array or tensor, larger is more likely; at least 32-bit.
        true_class: (N,) integers in 0..K-1.
        n_way: 1..K classes are compared, the true one included.
        top_k: 1..n_way; a hit is a true class among the top_k of these.

    Returns:
        (N,) float64, in the kind of `scores` (array or tensor).

    Raises:
        UserError: half precision (it makes ties), NaN, wrong shapes, n_way, top_k or class out of range.
    """
    given = scores
    if isinstance(scores, torch.Tensor):
        half, scores = scores.dtype in (torch.float16, torch.bfloat16), scores.detach().cpu().double().numpy()
    else:
        scores = np.asarray(scores)
        half, scores = scores.dtype == np.float16, scores.astype(np.float64)
    true_class = np.asarray(true_class.cpu() if isinstance(true_class, torch.Tensor) else true_class)
    if half:
        raise UserError("scores are in half precision, whose rounding makes ties: compute them in float32")
    if scores.ndim != 2 or true_class.shape != scores.shape[:1]:
        raise UserError(f"expected scores (N, K) and true_class (N,), found {scores.shape} and {true_class.shape}")
    if np.isnan(scores).any():
        raise UserError(f"scores hold NaN, first in row {np.isnan(scores).any(1).argmax()}: look at that picture")
    classes = scores.shape[1]
    if not 1 <= n_way <= classes:
        raise UserError(f"n_way={n_way}: the classifier has {classes} classes, so 1 to {classes} can be compared")
    if not 1 <= top_k <= n_way:
        raise UserError(f"top_k={top_k}: with n_way={n_way} it must lie in 1 to {n_way}")
    if true_class.dtype.kind not in "iu" or ((true_class < 0) | (true_class >= classes)).any():
        raise UserError(f"true_class must hold integers in 0..{classes - 1}, found {np.unique(true_class)[:5]}")
    exact = _expected(scores, n_way, top_k)[np.arange(len(scores)), true_class]
    return torch.from_numpy(exact) if isinstance(given, torch.Tensor) else exact


def two_way(similarity: np.ndarray, image: np.ndarray | None = None) -> np.ndarray:
    """Two-way identification: how often picture i is more like its own truth than like another.

    Args:
        similarity: (N, N), picture i against truth j, larger is more alike. A strict win is 1, a tie 0.5.
        image: (N,) names of the truths; truths of the same image are not compared. By default all differ.

    Returns:
        (N,) float64; chance is 0.5.
    """
    first, own = _distinct(np.arange(len(similarity)) if image is None else image)
    return _expected(similarity[:, first], 2)[np.arange(len(own)), own]


def _distinct(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(U,) place of each distinct image's first trial, and (N,) which of them each trial showed."""
    _, first, own = np.unique(image, return_index=True, return_inverse=True)
    return first, own


def _per_item(by_sample: list[np.ndarray], own: np.ndarray, chance: float) -> ItemScores:
    """Pick every item's own column out of (N, U) scores, one matrix a sample."""
    rows = np.arange(len(own))
    values = np.stack([matrix[rows, own] for matrix in by_sample])
    return ItemScores(values.mean(0), values[0], by_sample[0].mean(0)[own], chance)


def _class_scores(outcome: Outcome, truth: Truth, n_way: int) -> dict[str, ItemScores]:
    """N-way top-1 over all classes of the classifier, and accuracy among the classes present."""
    samples = outcome.logits.astype(np.float64).swapaxes(0, 1)  # (S, N, K)
    n_way = min(n_way, samples.shape[2])
    scores = {}
    # The published protocol: the class the classifier sees in the truth, not the data set's label
    true_class = truth.class_index if truth.logits is None else truth.logits.argmax(1)
    if (true_class >= 0).all():
        matrices = [_expected(logits, n_way) for logits in samples]
        scores[f"{n_way}_way_top1"] = _per_item(matrices, true_class, 1 / n_way)
    kinds, own = np.unique(truth.class_index, return_inverse=True)
    if kinds[0] >= 0 and len(kinds) > 1:
        matrices = [_expected(logits[:, kinds], len(kinds)) for logits in samples]
        scores["class_accuracy"] = _per_item(matrices, own, 1 / len(kinds))
    return scores


def _two_way_scores(outcome: Outcome, truth: Truth) -> dict[str, ItemScores]:
    """Two-way identification of the pictures by pixels and by classifier features."""
    first, own = _distinct(truth.image)
    ways = {}
    if outcome.pixels is not None and truth.pixels is not None:
        for name, alike in (("mse", lambda a, b: -pixel_mse(a, b)), ("pearson", pearson), ("ssim", ssim)):
            ways[name] = (outcome.pixels, truth.pixels, alike)
    if outcome.features is not None and truth.features is not None:
        ways["features"] = (outcome.features, truth.features, pearson)
    return {
        f"two_way_{name}": _per_item(
            [_expected(alike(pictures[:, s], truths[first]), 2) for s in range(pictures.shape[1])], own, 0.5
        )
        for name, (pictures, truths, alike) in ways.items()
        if len(first) > 1
    }


def within_class(similarity: np.ndarray, label: np.ndarray, image: np.ndarray, n_way: int | None = None):
    """Retrieval among the images of an item's own class.

    Args:
        similarity: (N, N), EEG of item i and truth of item j.
        n_way: compare the own image with n_way - 1 others of the class; by default with all of them.

    Returns:
        for each class of two images or more: (items (n,), expected score (n, m) of each image, own image (n,)).
    """
    parts = []
    for kind in np.unique(label):
        items = np.flatnonzero(label == kind)
        first, own = _distinct(image[items])
        if len(first) > 1:
            matrix = _expected(similarity[np.ix_(items, items[first])], n_way or len(first))
            parts.append((items, matrix, own))
    return parts


def _retrieval_scores(outcome: Outcome, truth: Truth) -> dict[str, ItemScores]:
    """Finding the seen image's CLIP embedding by the EEG's, among all test images and among its class."""
    similarity = cosine(outcome.embedding, truth.clip)
    first, own = _distinct(truth.image)
    scores = {
        f"retrieval_top{k}": _per_item([_expected(similarity[:, first], len(first), k)], own, k / len(first))
        for k in (1, 5)
        if k < len(first)
    }
    for name, n_way in (("top1", None), ("two_way", 2)):
        parts = [
            _per_item([m], own, 1 / (n_way or m.shape[1]))
            for _, m, own in within_class(similarity, truth.label, truth.image, n_way)
        ]
        if parts:
            chance = np.average([p.chance for p in parts], weights=[len(p.value) for p in parts])
            values = [np.concatenate([p[field] for p in parts]) for field in range(3)]
            scores[f"retrieval_within_class_{name}"] = ItemScores(*values, float(chance))
    return scores


def item_scores(outcome: Outcome, truth: Truth, n_way: int = 50) -> dict[str, ItemScores]:
    """All scores of one run that its arrays allow; where images are unknown, the class scores alone."""
    scores = {} if outcome.logits is None else _class_scores(outcome, truth, n_way)
    if truth.image is not None:
        scores |= _two_way_scores(outcome, truth)
        if outcome.embedding is not None and truth.clip is not None:
            scores |= _retrieval_scores(outcome, truth)
    return scores


def _design(trials: list[dict]) -> tuple[str, str]:
    """`design_from` of the rows of trials.csv."""
    onset = [float(row["onset"]) for row in trials] if all(row["onset"] for row in trials) else None
    rows = sorted(trials, key=lambda row: int(row["position"])) if onset is None else trials
    tape = [f"{row['subject']} {row['recording']}" for row in rows]
    return design_from([row["label"] for row in rows], onset, tape)


def write_metrics(folder: str | Path, run: dict) -> dict:
    """Score an evaluation folder and write its metrics.json.

    Args:
        run: the `run` part, kept as it is. Read from it are `n_way` (default 50) and `design` ([design, reason]),
            where the evaluating command could judge it by more trials than those of trials.csv.

    Returns:
        The content of metrics.json.
    """
    truth, outcomes, baselines, trials = read_folder(folder)
    items = {name: item_scores(outcome, truth, run.get("n_way", 50)) for name, outcome in outcomes.items()}
    real = items.pop("real")
    if not real:
        raise UserError(f"{folder}: nothing can be scored: images are unknown and no classifier knows their classes")
    repeated = truth.image is None or len(np.unique(truth.image)) < len(trials)
    unit = "trial" if repeated else "image"
    scores, controls = score_table(real, items, unit)
    instance_p = None
    if "retrieval_within_class_two_way" in real:
        similarity = cosine(outcomes["real"].embedding, truth.clip)
        instance_p = within_class_p([part[1:] for part in within_class(similarity, truth.label, truth.image, 2)])
    about_class = [name for name in real if name == "class_accuracy" or "_way_top" in name]
    if truth.image is None:  # the kinds shown are then all there is to tell
        about_class.reverse()
    metrics = {
        "scores": scores,
        "controls": controls,
        "baselines": {
            name: {"class_accuracy": entry(hits.astype(np.float64), 1 / len(np.unique(truth.label)), unit)}
            for name, hits in baselines.items()
        },
        "verdict": verdict(
            next(iter(about_class), None), scores, controls, tuple(run.get("design") or _design(trials)), instance_p
        ),
        "run": run,
    }
    write_text(Path(folder) / "metrics.json", json.dumps(metrics, indent=1) + "\n")
    return metrics


def main() -> None:
    """Score a folder again: python code/eval_metrics.py <eval folder>"""
    if len(sys.argv) != 2 or sys.argv[1] in ("-h", "--help"):
        print("usage: python code/eval_metrics.py <eval folder>   scores it again and rewrites its metrics.json")
        return
    path = Path(sys.argv[1]) / "metrics.json"
    if not path.is_file():
        raise UserError(f"{path}: not found; expected a folder written by gen_eval_eeg.py")
    metrics = write_metrics(path.parent, json.loads(path.read_text())["run"])
    for name, score in metrics["scores"].items():
        low, high = score["ci95"]
        print(f"{name:32} {score['value']:.3f}  [{low:.3f}, {high:.3f}]  chance {score['chance']:.3f}  n {score['n']}")


if __name__ == "__main__":
    cli(main)
