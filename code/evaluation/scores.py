"""All scores of an evaluation folder: every run against the truths, controls beside, metrics.json.

Shapes: N trials, S pictures of a trial, K classes of the classifier, U distinct images among the truths.
"""

import json
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np

from evaluation.block_design import design_of
from evaluation.features import never_looked
from evaluation.fid import distances, set_scores, too_few, turn_distances
from evaluation.folder import PAIRS, Contents, Outcome, Truth, read_folder, with_pixels
from evaluation.n_way import check_ways, expected, expected_own
from evaluation.plain_files import recordings, write_item_scores
from evaluation.similarity import cosine, likeness
from evaluation.statistics import ItemScores, baseline_table, score_table, subject_table, within_class, within_class_p
from evaluation.verdict import verdict
from runtime.atomic import write_text
from runtime.errors import UserError


def _score(alike: np.ndarray, own: np.ndarray, n_way: int, top_k: int = 1) -> ItemScores:
    """Every item's own candidate against the others: alike (S, N, M) with M candidates, own (N,) in 0..M-1."""
    samples = np.stack([expected_own(sample, own, n_way, top_k) for sample in alike])
    kinds, kind = np.unique(own, return_inverse=True)
    prior = expected(alike[0], n_way, top_k, kinds).mean(0)[kind]
    return ItemScores(samples, prior, top_k / n_way, np.arange(len(own)))


def _class_scores(outcome: Outcome, truth: Truth, n_way: int | None, top_k: int) -> dict[str, ItemScores]:
    """N-way top-k over all classes of the classifier, and accuracy among the classes present."""
    samples = outcome.logits.swapaxes(0, 1)  # (S, N, K)
    n_way, scores = n_way or min(50, samples.shape[2]), {}
    check_ways(n_way, top_k, samples.shape[2])
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
        scored = [_score(matrix, column, n_way or matrix.shape[2]) for _, matrix, column in parts]
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
    if 1 < len(first) <= PAIRS / len(own):
        found = {}
        for name, alike in likeness(outcome, truth, first, device):  # one at a time: all may not fit in memory
            scores[f"two_way_{name}"] = _score(alike, own, 2)
            if name == "clip":
                found = _retrieval_scores("picture_retrieval", alike, own, truth.label)
        scores |= distances({name: matrix.swapaxes(0, 1) for name, matrix in outcome.alike.items()}, own) | found
        if retrieves(outcome, truth):
            seen = cosine(outcome.embedding, truth.clip[first])[None]
            scores |= _retrieval_scores("retrieval", seen, own, truth.label)
    return scores


def retrieves(outcome: Outcome, truth: Truth) -> bool:
    """Whether the EEG's embedding is in the space of the CLIP that saw the truths."""
    there = outcome.embedding is not None and truth.clip is not None
    return there and outcome.embedding.shape[1] == truth.clip.shape[1]


def instance_parts(real: Outcome, truth: Truth) -> list[tuple[np.ndarray, np.ndarray]]:
    """What decides on single images, of each class: two-way scores of every item and image (n, m), own (n,)."""
    _, first, own = np.unique(truth.image, return_index=True, return_inverse=True)
    parts = within_class(cosine(real.embedding, truth.clip[first])[None], own, truth.label)
    return [(expected(matrix[0], 2), column) for _, matrix, column in parts]


def left_out(truth: Truth, real: Outcome, root: str | Path) -> list[str]:
    """Which scores an evaluation lacks and why, a sentence each. root: folder that holds pretrains/features."""
    notes, unknown = [], (truth.class_index < 0).sum()
    if real.logits is None:
        notes.append("Class scores are left out: no classifier has seen the pictures.")
    elif unknown:
        notes.append(f"class_accuracy is left out: the classifier does not know the class of {unknown} trials.")
    elif len(set(truth.class_index)) == 1:
        notes.append("class_accuracy is left out: all trials are of one class.")
    if truth.image is None:
        return [*notes, "Two-way and retrieval scores are left out: which images were shown is unknown."]
    images, trials = len(set(truth.image)), len(truth.image)
    if images == 1:
        notes.append("Two-way and retrieval scores are left out: all trials show one image.")
    elif images * trials > PAIRS:
        much = f"{trials} trials and {images} images make more than {PAIRS} pairs"
        notes.append(f"Two-way, distance and retrieval scores are left out: {much}.")
    elif truth.clip is None:
        notes.append("CLIP scores are left out: no CLIP has seen the truths.")
    elif not retrieves(real, truth):
        notes.append("Retrieval by EEG is left out: no embedding of the EEG is in the space of this CLIP.")
    few = [] if real.fid is None else too_few(real.fid[..., 0].size, images)
    return notes + never_looked(real, root, images * trials <= PAIRS) + few


def _read(contents: Contents, run: dict, real: Collection[str], scores: dict, controls: dict) -> dict:
    """The verdict, from the first class score that there is."""
    truth = contents.truth
    about_class = [name for name in real if name == "class_accuracy" or "_way_top" in name]
    if truth.image is None:  # the kinds shown are then all there is to tell
        about_class.reverse()
    instance_p = None
    if "retrieval_within_class_two_way" in real:
        instance_p = within_class_p(instance_parts(contents.outcomes["real"], truth))
    unseen = ("unknown", "nothing says when the pictures were shown")
    design = tuple(run.get("design") or (unseen if contents.bare else design_of(contents.trials)))
    note = (run.get("control") or {}).get("about")
    return verdict(next(iter(about_class), None), scores, controls, design, instance_p, run.get("split"), note)


def write_metrics(
    folder: str | Path, run: dict, device: str = "cpu", more: Mapping[str, np.ndarray] | None = None,
    root: str | Path = ".",
) -> dict:  # fmt: skip
    """Score an evaluation folder; writes its metrics.json and scores.csv.

    Args:
        folder: as `evaluation.folder` lists it, or one that holds nothing but pictures: then two-way scores alone.
        run: the `run` part, kept as it is. Read from it are `n_way` (default 50, or all classes), `top_k`, and
            `design` ([design, reason]), where the evaluating command could judge it by more trials.
        device: where pictures are compared.
        more: arrays beside those of the folder's file.
        root: folder that holds pretrains/features: which networks could look, had they been asked.

    Returns:
        The content of metrics.json.
    """
    folder, contents, items = Path(folder), read_folder(folder, more), {}
    truth, trials, notes = contents.truth, contents.trials, contents.notes
    for name, outcome in contents.outcomes.items():  # one run's pictures at a time: all may not fit in memory
        full, converted = with_pixels(outcome, truth)
        items[name] = item_scores(full, truth, run.get("n_way"), run.get("top_k", 1), device)
        notes = notes + converted
    real = items.pop("real")
    notes = notes + left_out(truth, contents.outcomes["real"], root)
    n = len(truth.label)
    unit = "image" if truth.image is not None and len(set(truth.image)) == n else "trial"
    tapes = None if unit == "image" else recordings(trials)  # trials that are no separate images hang together
    scores, controls = score_table(real, items, unit, truth.label, tapes)
    timed, subject = not np.isnan(trials["onset"]).any(), np.array(trials["subject"])
    metrics = {
        "scores": scores,
        "controls": controls,
        "baselines": baseline_table(contents.baselines, truth.label, timed, unit, tapes),
        "verdict": _read(contents, run, real, scores, controls),
        "subjects": subject_table(real, subject, unit, tapes),
        "left_out": notes,
        "run": run,
    }
    turn_distances(metrics)
    for name, outcome in contents.outcomes.items():
        (scores if name == "real" else controls[name]).update(set_scores(outcome, truth))
    if not scores:
        raise UserError(f"{folder}: nothing can be scored. {' '.join(notes)}")
    write_item_scores(folder, n, real)
    write_text(folder / "metrics.json", json.dumps(metrics, indent=1) + "\n")
    return metrics
