"""Scores of generated pictures and of EEG embeddings, item by item, and the metrics.json of a folder of them.

python code/eval_metrics.py <folder>                        # metrics.json again, from files alone
python code/eval_metrics.py <folder> networks=auto          # also by the field's networks whose weights are at hand
python code/eval_metrics.py <pictures> classifier=vit_h_14 clip=openai/clip-vit-large-patch14 networks=auto

Shapes: N trials, S pictures of a trial, K classes of the classifier, U distinct images among the truths.
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import comb
from pathlib import Path

import numpy as np
import torch

from config import from_cli, setting
from evaluation.block_design import design_of
from evaluation.features import keep, look
from evaluation.fid import distances, set_scores, too_few, turn_distances
from evaluation.folder import Outcome, Truth, is_bare, left_out, read_folder, recordings, with_pixels, write_item_scores
from evaluation.page.page import write_page
from evaluation.page.tables import table
from evaluation.power import power_of, told
from evaluation.similarity import cosine, likeness
from evaluation.verdict import (
    ItemScores,
    baseline_table,
    score_table,
    subject_table,
    verdict,
    within_class,
    within_class_p,
)
from runtime.checkpoints import write_text
from runtime.errors import UserError, cli
from runtime.loop import pick_device
from vision.networks import never_looked


@lru_cache(maxsize=64)
def _chance_by_rank(classes: int, n_way: int, top_k: int) -> np.ndarray:
    """(classes + 1,): sums over r < index of P, the chance of a hit when r classes score above the true one.

    P = sum_{j<k} C(r, j) C(K-1-r, n-1-j) / C(K-1, n-1), where j is the number of the n - 1 distractors, drawn
    without replacement, that stand above (spec 6.3). Integers until the division.
    """
    total = comb(classes - 1, n_way - 1)
    ways = [sum(comb(r, j) * comb(classes - 1 - r, n_way - 1 - j) for j in range(top_k)) for r in range(classes)]
    return np.concatenate([[0.0], np.cumsum([w / total for w in ways])])


def _expected(scores: np.ndarray, n_way: int, top_k: int = 1, columns=slice(None)) -> np.ndarray:
    """(N, K) -> (N, C): the expected N-way top-k score of every row, were the true class one of `columns`."""
    ordered, wanted = np.sort(scores, axis=1), scores[:, columns]
    below, up_to = (
        np.stack([np.searchsorted(row, values, side) for row, values in zip(ordered, wanted, strict=True)])
        for side in ("left", "right")
    )
    running = _chance_by_rank(scores.shape[1], n_way, top_k)
    return (running[scores.shape[1] - below] - running[scores.shape[1] - up_to]) / (up_to - below)


def _expected_own(scores: np.ndarray, own: np.ndarray, n_way: int, top_k: int = 1) -> np.ndarray:
    """(N, K), (N,) -> (N,): column own[i] of row i of `_expected`, by counting instead of sorting."""
    mine = scores[np.arange(len(own)), own][:, None]
    # sums of bytes are several times faster than sums of booleans; without ties the second need not be taken
    better, tied = (scores > mine).view(np.uint8).sum(1, dtype=np.uint32), scores == mine
    equal = 1 if np.count_nonzero(tied) == len(own) else tied.view(np.uint8).sum(1, dtype=np.uint32)
    running = _chance_by_rank(scores.shape[1], n_way, top_k)
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
    tensor, true_class = torch.as_tensor(scores).detach().cpu(), np.asarray(torch.as_tensor(true_class).cpu())
    if tensor.dtype in (torch.float16, torch.bfloat16):
        raise UserError("scores are in half precision, whose rounding makes ties: compute them in float32")
    if tensor.ndim != 2 or true_class.shape != tensor.shape[:1]:
        shapes = f"{tuple(tensor.shape)} and {true_class.shape}"
        raise UserError(f"expected scores (N, K) and true_class (N,), found {shapes}")
    values, classes = (tensor if tensor.is_floating_point() else tensor.double()).numpy(), tensor.shape[1]
    if values.size and np.isnan(values.max()):
        raise UserError(f"scores hold NaN, first in row {np.isnan(values).any(1).argmax()}: look at that picture")
    _check_ways(n_way, top_k, classes)
    if true_class.dtype.kind not in "iu" or ((true_class < 0) | (true_class >= classes)).any():
        raise UserError(f"true_class must hold integers in 0..{classes - 1}, found {np.unique(true_class)[:5]}")
    exact = _expected_own(values, true_class, n_way, top_k)
    return torch.from_numpy(exact) if isinstance(scores, torch.Tensor) else exact


def _check_ways(n_way: int, top_k: int, classes: int) -> None:
    if not 1 <= n_way <= classes:
        raise UserError(f"n_way={n_way}: the classifier has {classes} classes, so 1 to {classes} can be compared")
    if not 1 <= top_k <= n_way:
        raise UserError(f"top_k={top_k}: with n_way={n_way} it must lie in 1 to {n_way}")


def _score(alike: np.ndarray, own: np.ndarray, n_way: int, top_k: int = 1) -> ItemScores:
    """Every item's own candidate against the others: alike (S, N, M) with M candidates, own (N,) in 0..M-1."""
    samples = np.stack([_expected_own(sample, own, n_way, top_k) for sample in alike])
    kinds, kind = np.unique(own, return_inverse=True)
    prior = _expected(alike[0], n_way, top_k, kinds).mean(0)[kind]
    return ItemScores(samples, prior, top_k / n_way, np.arange(len(own)))


def _class_scores(outcome: Outcome, truth: Truth, n_way: int | None, top_k: int) -> dict[str, ItemScores]:
    """N-way top-k over all classes of the classifier, and accuracy among the classes present."""
    samples = outcome.logits.astype(np.float64).swapaxes(0, 1)  # (S, N, K)
    n_way, scores = n_way or min(50, samples.shape[2]), {}
    _check_ways(n_way, top_k, samples.shape[2])
    # The published protocol: the class the classifier sees in the truth, not the data set's label
    true_class = truth.class_index if truth.logits is None else truth.logits.argmax(1)
    if (true_class >= 0).all():
        scores[f"{n_way}_way_top{top_k}"] = _score(samples, true_class, n_way, top_k)
    kinds, own = np.unique(truth.class_index, return_inverse=True)
    if kinds[0] >= 0 and len(kinds) > 1:
        scores["class_accuracy"] = _score(samples[:, :, kinds], own, len(kinds))
    return scores


def _retrieval_scores(prefix: str, alike: np.ndarray, own: np.ndarray, label: np.ndarray) -> dict[str, ItemScores]:
    """Finding the seen image by its likeness (S, N, U), among all test images and among those of its class."""
    n = alike.shape[2]
    scores = {f"{prefix}_top{k}": _score(alike, own, n, k) for k in (1, 5) if k < n}
    parts = within_class(alike, own, label) if label[0] >= 0 else []
    for name, n_way in (("top1", None), ("two_way", 2)):
        scored = [_score(matrix, place, n_way or matrix.shape[2]) for _, matrix, place in parts]
        if scored:
            trial = np.concatenate([items for items, _, _ in parts])
            chance = np.average([part.chance for part in scored], weights=[len(part.trial) for part in scored])
            samples, prior = (np.concatenate([part[field] for part in scored], -1) for field in (0, 1))
            scores[f"{prefix}_within_class_{name}"] = ItemScores(samples, prior, float(chance), trial)
    return scores


def item_scores(
    outcome: Outcome, truth: Truth, n_way: int | None = None, top_k: int = 1, device: str = "cpu"
) -> dict[str, ItemScores]:
    """All scores of one run that its arrays allow; where images are unknown, the class scores alone.

    n_way: by default 50, or all classes where there are fewer.
    """
    scores = {} if outcome.logits is None else _class_scores(outcome, truth, n_way, top_k)
    if truth.image is None:
        return scores
    _, first, own = np.unique(truth.image, return_index=True, return_inverse=True)
    if len(first) > 1:
        alike = likeness(outcome, truth, first, device)
        scores |= {f"two_way_{name}": _score(matrix, own, 2) for name, matrix in alike.items()}
        scores |= distances(alike, own)
        if "clip" in alike:
            scores |= _retrieval_scores("picture_retrieval", alike["clip"], own, truth.label)
        if outcome.embedding is not None and truth.clip is not None:
            seen = cosine(outcome.embedding, truth.clip[first])[None]
            scores |= _retrieval_scores("retrieval", seen, own, truth.label)
    return scores


def instance_parts(real: Outcome, truth: Truth) -> list[tuple[np.ndarray, np.ndarray]]:
    """What decides on single images, of each class: two-way scores of every item and image (n, m), own (n,)."""
    _, first, own = np.unique(truth.image, return_index=True, return_inverse=True)
    parts = within_class(cosine(real.embedding, truth.clip[first])[None], own, truth.label)
    return [(_expected(matrix[0], 2), place) for _, matrix, place in parts]


def write_metrics(
    folder: str | Path, run: dict, device: str = "cpu", more: Mapping[str, np.ndarray] | None = None,
    root: str | Path = ".",
) -> dict:  # fmt: skip
    """Score an evaluation folder; writes its metrics.json and scores.csv.

    Args:
        folder: as `eval_folder` lists it, or one that holds nothing but pictures: then two-way scores alone.
        run: the `run` part, kept as it is. Read from it are `n_way` (default 50, or all classes), `top_k`, and
            `design` ([design, reason]), where the evaluating command could judge it by more trials.
        device: where pictures are compared.
        more: arrays beside those of the folder's file.
        root: folder that holds pretrains/features: which networks could look, had they been asked.

    Returns:
        The content of metrics.json.
    """
    folder = Path(folder)
    truth, outcomes, baselines, trials, remarks = read_folder(folder, more)
    n_way, top_k, items = run.get("n_way"), run.get("top_k", 1), {}
    for name, outcome in outcomes.items():  # one run's pictures at a time: all of them may not fit in memory
        full, converted = with_pixels(outcome, truth)
        items[name], remarks = item_scores(full, truth, n_way, top_k, device), remarks + converted
    real = items.pop("real")
    remarks += absent(truth, outcomes["real"], root)
    if not real:
        raise UserError(f"{folder}: nothing can be scored. {' '.join(remarks)}")
    unit = "image" if truth.image is not None and len(set(truth.image)) == len(trials) else "trial"
    tapes = None if unit == "image" else recordings(trials)  # trials that are no separate images hang together
    scores, controls = score_table(real, items, unit, truth.label, tapes)
    parts = instance_parts(outcomes["real"], truth) if "retrieval_within_class_two_way" in real else []
    about_class = [name for name in real if name == "class_accuracy" or "_way_top" in name]
    if truth.image is None:  # the kinds shown are then all there is to tell
        about_class.reverse()
    unseen = ("unknown", "nothing says when the pictures were shown")
    design = tuple(run.get("design") or (unseen if is_bare(folder) else design_of(trials)))
    shared = (run.get("split") or {}).get("shared", {}).get("train/test")
    score, instance_p = next(iter(about_class), None), within_class_p(parts) if parts else None
    power = power_of(score, real, items, parts)
    notes = [sentence for sentence in (told(power), (run.get("control") or {}).get("about")) if sentence]
    metrics = {
        "scores": scores,
        "controls": controls,
        "baselines": baseline_table(baselines, truth.label, all(row["onset"] for row in trials), unit, tapes),
        "verdict": verdict(score, scores, controls, design, instance_p, shared, notes) | {"power": power},
        "subjects": subject_table(real, [row["subject"] for row in trials], unit, tapes),
        "left_out": remarks,
        "run": run,
    }
    turn_distances(metrics)
    for name, outcome in outcomes.items():
        (scores if name == "real" else controls[name]).update(set_scores(outcome, truth))
    write_item_scores(folder, len(trials), real)
    write_text(folder / "metrics.json", json.dumps(metrics, indent=1) + "\n")
    return metrics


def absent(truth: Truth, real: Outcome, root: str | Path) -> list[str]:
    """Which scores an evaluation lacks and why, a sentence each."""
    found = left_out(truth, real)
    if truth.image is None:
        return found
    found += never_looked(real, root)
    return found + (too_few(real.fid[..., 0].size, len(set(truth.image))) if real.fid is not None else [])


@dataclass
class ScoreConfig:
    """Scores of a folder of pictures, test<trial>-<k>.png with k = 0 the truth: python code/eval_metrics.py <folder>"""

    n_way: int = setting(0, "classes to tell apart; 0: as stage C did; else, and of bare pictures, 50, or all if fewer")
    top_k: int = setting(0, "a hit is the true class among the k best; 0: as stage C did; else 1")
    classifier: str = setting("", "look at bare pictures with it: folder, ViT-H/14 weights file, vit_h_14; empty: no")
    clip: str = setting("", "look at bare pictures with it: folder, hub name or open_clip:<model>/<tag>; empty: no")
    networks: str = setting("", "auto: look with the networks of the standard set whose weights are at hand")
    root_path: str = setting(".", "folder that holds pretrains/features and datasets/cache")
    device: str = setting("auto", "auto, cpu, cuda or cuda:N")


def main() -> None:
    """Score a folder again; where networks are named, they look at its pictures first."""
    folder, *settings = sys.argv[1:] or ["--help"]
    if folder.startswith("-") or "=" in folder:
        settings = [folder, *settings]
    cfg = from_cli(ScoreConfig, settings)
    if not Path(folder).is_dir():
        raise UserError(f"{folder}: no such folder; usage: python code/eval_metrics.py <folder> [name=value ...]")
    device = str(pick_device(cfg.device))
    more, facts = look(folder, cfg.classifier, cfg.clip, cfg.networks, cfg.root_path, device)
    if more and not is_bare(folder):
        keep(folder, more)
    path = Path(folder) / "metrics.json"
    # of a bare folder nothing but its pictures counts: what looked at them before is not known to look now
    run = json.loads(path.read_text())["run"] if path.is_file() and not is_bare(folder) else {}
    asked = {name: getattr(cfg, name) for name in ("n_way", "top_k") if getattr(cfg, name)}
    print(table(write_metrics(folder, run | facts | asked, device, more, cfg.root_path)))
    if (Path(folder) / "index.html").is_file():
        write_page(folder)


if __name__ == "__main__":
    cli(main)
