"""Were classes shown in blocks or at random? Read from the order of the trials in time.

Shapes: N trials.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evaluation.statistics import ALPHA, permutation_p
from runtime.errors import UserError

RANDOM = 0.05  # the order is called random from this p on; a smaller one may be chance, but is not trusted


def tapes(subjects: Sequence, recordings: Sequence) -> np.ndarray:
    """(N,) subject and recording of each trial, as one text: a recording's name may be used for two subjects."""
    return np.array([f"{subject} {recording}" for subject, recording in zip(subjects, recordings, strict=True)])


def _centred(n: int) -> np.ndarray:
    """Places in time (n,), -1/2 to 1/2."""
    return (np.arange(n) - (n - 1) / 2) / n


def _order_p(label: np.ndarray, recording: np.ndarray, n_perm: int = 3000) -> tuple[float, float, float]:
    """How far labels follow the order of trials: (share of neighbours of one label, least p, p).

    Three statistics see blocks: neighbours of equal label (a class in a run), and the spread between classes of their
    mean place in time (a class early or late), among all trials and within recordings. p is the smallest, times their
    number; the least p is what these labels would have if every class stood in one run: if that is large, so few
    trials cannot show blocks at all.
    """
    random, sizes = np.random.default_rng(0), np.bincount(label)
    linked, times, within = recording[1:] == recording[:-1], [_centred(len(label))], np.zeros(len(label))
    for tape in np.unique(recording):
        within[recording == tape] = _centred((recording == tape).sum())
    if not linked.all():
        times.append(within)

    def statistics(rows: np.ndarray) -> list[np.ndarray]:
        flat = (rows + len(sizes) * np.arange(len(rows))[:, None]).ravel()
        values = [((rows[:, 1:] == rows[:, :-1]) & linked).sum(1)]
        for time in times:
            sums = np.bincount(flat, np.tile(time, len(rows)), len(sizes) * len(rows)).reshape(len(rows), -1)
            values.append((sums**2 / np.maximum(sizes, 1)).sum(1))
        return values

    rows = min(100, 1 + 1_000_000 // len(label))  # orders at once: they fit in the processor's cache, and in memory
    counts = (min(rows, n_perm - start) for start in range(0, n_perm, rows))
    parts = [statistics(random.permuted(np.tile(label, (count, 1)), axis=1)) for count in counts]
    nulls, observed = [np.concatenate(part) for part in zip(*parts, strict=True)], statistics(label[None])
    p = [permutation_p(value[0], null) for value, null in zip(observed, nulls, strict=True)]
    least_p = permutation_p(statistics(np.sort(label)[None])[0][0], nulls[0])
    return float(observed[0][0] / max(1, linked.sum())), least_p, min(1.0, len(p) * min(p))


def design_from(labels: Sequence, onset: Sequence | None = None, recording: Sequence | None = None) -> tuple[str, str]:
    """Read from the order of trials whether labels were shown at random or in blocks.

    Args:
        labels: (N,) class of each trial, in the order of the file.
        onset: (N,) seconds within the recording, or None where unknown; then the order of the file stands in, which
            can show blocks but never that there were none.
        recording: (N,) key of the recording (with subject) of each trial, or None for a single one.

    Returns:
        ("random" | "block" | "unknown", the reason in one sentence).
    """
    label = np.unique(np.asarray(labels), return_inverse=True)[1]
    n = len(label)
    tape = np.zeros(n, int) if recording is None else np.unique(np.asarray(recording), return_inverse=True)[1]
    if onset is not None:
        time = np.asarray(onset, dtype=np.float64)
        if time.shape != (n,) or not np.isfinite(time).all():
            raise UserError(f"onset: expected {n} finite numbers of seconds, one a trial, found shape {time.shape}")
        order = np.lexsort((time, tape))
        label, tape = label[order], tape[order]
    if n < 2 or label.max() == 0:
        return "unknown", f"{n} trials of one class cannot show how classes were ordered"
    share, least_p, p = _order_p(label, tape)
    source = "in time" if onset is not None else "in the order of the file (not verified: no onsets)"
    seen = f"{share:.0%} of neighbours {source} share their class ({n} trials of {label.max() + 1} classes)"
    if p < ALPHA * 2:
        return "block", f"trials of a class stand together: {seen} (p = {p:.1g} against shuffled labels)"
    if least_p >= ALPHA:
        return "unknown", f"too few trials to tell blocks from a random order: {seen}"
    if onset is None:
        return "unknown", f"no onsets, so the order in time is unknown: {seen}"
    if p < RANDOM:
        return "unknown", f"the class may follow time: {seen} (p = {p:.2g} against shuffled labels)"
    return "random", f"the class does not follow time: {seen}, as after shuffling (p = {p:.2g})"


def design_of(trials: Mapping[str, Any]) -> tuple[str, str]:
    """`design_from` of the columns of trials.csv."""
    tape = tapes(trials["subject"], trials["recording"])
    if not np.isnan(trials["onset"]).any():
        return design_from(trials["label"], trials["onset"], tape)
    order = trials["position"].argsort()
    return design_from(trials["label"][order], None, tape[order])
