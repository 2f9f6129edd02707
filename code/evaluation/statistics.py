"""Statistics of scores: intervals, permutation tests, the tables of metrics.json.

Shapes: N items, S samples of an item, U images, R runs.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

EEG_CONTROLS = ("gaussian_eeg", "other_trials_eeg")
ALPHA = 0.001  # one-sided; every test of the verdict uses it
DRAWS = 10_000
CLUSTERS = 20  # classes from which on an interval may resample classes
RECORDINGS = 5  # recordings from which on intervals resample them, where trials are no separate images
LARGE = 32_768  # items above which the limit that a large number of draws tends to takes the place of draws
CELLS = 1 << 18  # random numbers drawn at once, so that they stay in the processor's cache


class ItemScores(NamedTuple):
    """One score of every item."""

    samples: np.ndarray  # (S, n); the controls share seeds with the first sample
    prior: np.ndarray  # (n,) what a first picture of any trial scores against this item's truth, on average
    chance: float
    trial: np.ndarray  # (n,) number of the trial

    @property
    def value(self) -> np.ndarray:
        """(n,) mean over samples."""
        return self.samples.mean(0)


def bootstrap_interval(
    values: np.ndarray, units: Sequence | None = None, n_boot: int = DRAWS, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile interval of the mean of `values` (N,), resampling units (by default, single values).

    scipy.stats.bootstrap draws the same means in many times the time, and refuses a single unit. Above LARGE units the
    interval is `_limit_interval`.
    """
    values = np.asarray(values, dtype=np.float64)
    unit = np.arange(len(values)) if units is None else np.unique(np.asarray(units), return_inverse=True)[1]
    sums, sizes = np.bincount(unit, values), np.bincount(unit)
    if len(sums) > LARGE:
        return _limit_interval(sums, sizes)
    random, means, rows = np.random.default_rng(seed), [], min(500, max(1, CELLS // len(sums)))
    for start in range(0, n_boot, rows):
        draw = random.integers(0, len(sums), (min(rows, n_boot - start), len(sums)))
        means.append(sums[draw].sum(1) / (len(values) if units is None else sizes[draw].sum(1)))
    low, high = np.quantile(np.concatenate(means), (0.025, 0.975))
    return float(low), float(high)


def _limit_interval(sums: np.ndarray, sizes: np.ndarray) -> tuple[float, float]:
    """What `bootstrap_interval` of U units tends to with U, to the order of 1 / U: sums, sizes (U,) of each unit.

    The quantiles of a normal distribution, moved by the skewness of the units (Cornish and Fisher 1938; Hall 1992,
    section 2.5). Above LARGE units this is nearer to the interval of infinitely many draws than that of 10,000 draws.
    """
    mean, means = sums.sum() / sizes.sum(), sums / sizes
    away = (sums - mean * sizes) / sizes.mean()
    error, z = away.std() / np.sqrt(len(sums)), np.array([-1.959964, 1.959964])
    skewness = (away**3).mean() / max(away.std() ** 3, np.finfo(np.float64).tiny)
    ends = mean + error * (z + skewness * (z**2 - 1) / 6 / np.sqrt(len(sums)))
    low, high = np.clip(ends, means.min(), means.max())
    return float(low), float(high)


def permutation_p(statistic: float, null: np.ndarray) -> float:
    """Share of draws at least as large as the observed one, which counts as a draw itself (so never zero)."""
    slack = 1e-9 * max(1.0, abs(statistic))  # equal sums in another order differ in the last digits
    return float((1 + np.sum(null >= statistic - slack)) / (1 + len(null)))


def sign_flip_p(difference: np.ndarray, n_perm: int = DRAWS, seed: int = 0) -> float:
    """One-sided p that differences (N,) are above zero on average: without an effect each has either sign.

    Where hits are rare the differences of two scores are skewed to the right, and the test is cautious: its p is too
    large rather than too small. A small part of the time of scipy.stats.permutation_test. Signs are drawn for the LARGE
    largest differences; the sum of all smaller ones, of any sign each, is then normal and drawn as such.
    """
    random, null, total = np.random.default_rng(seed), [], difference.sum()
    if len(difference) > LARGE:
        difference = difference[np.argsort(-abs(difference), kind="stable")]
    difference, smaller = difference[:LARGE], difference[LARGE:]
    rows = min(500, max(1, CELLS // len(difference)))
    for start in range(0, n_perm, rows):
        signs = random.integers(0, 2, (min(rows, n_perm - start), len(difference))) * 2.0 - 1.0
        null.append(signs @ difference)
    null = np.concatenate(null)
    if len(smaller):
        null += np.linalg.norm(smaller) * random.standard_normal(n_perm)
    return permutation_p(total, null)


def entry(
    values: np.ndarray, chance: float | None, unit: str, label: np.ndarray | None = None,
    units: np.ndarray | None = None,
) -> dict:  # fmt: skip
    """One score of metrics.json from its value on every item: a share, or, of chance None or NaN, a distance.

    From 20 classes on (label (n,) of the items) a second interval resamples whole classes: items of a class are
    alike, so single items say less than their number. From 5 recordings on (units (n,) of the items) the interval
    resamples whole recordings, for the same reason.
    """
    n_recordings = 0 if units is None else len(np.unique(units))
    whole = n_recordings >= RECORDINGS
    low, high = bootstrap_interval(values, units if whole else None)
    if chance is not None and not np.isnan(chance):
        # Resampling nothing but misses, or hits, would claim certainty; the exact binomial bound does not
        bound = 0.025 ** (1 / (n_recordings if whole else len(values)))
        high = 1 - bound if (values == 0).all() else high
        low = bound if (values == 1).all() else low
    score = {"value": float(values.mean()), "ci95": [low, high], "chance": chance, "n": len(values), "unit": unit}
    if whole:
        score |= {"unit": "recording", "recordings": n_recordings}
    if label is not None and len(np.unique(label)) >= CLUSTERS:
        score["ci95_by_class"] = list(bootstrap_interval(values, label))
    return score


def score_table(
    real: dict[str, ItemScores], controls: dict[str, dict[str, ItemScores]], unit: str,
    label: np.ndarray | None = None, units: np.ndarray | None = None,
) -> tuple[dict, dict]:  # fmt: skip
    """The `scores` and `controls` of metrics.json from `item_scores` of the real run and of each control.

    The real value is the mean over samples; `first_sample` is that of the sample whose seeds the controls share,
    `best_of_<S>_samples` of the best of each item's, which is no result. `p_real_above` is the paired one-sided test
    of the first sample against a control, `p_above_prior` that of the control against the class prior: every first
    picture scored against every truth, averaged for each truth. label, units: (N,) class and recording of every trial.
    """
    scores, table = {}, {name: {} for name in (*controls, "class_prior")}
    for name, s in real.items():
        first, kinds, tapes = s.samples[0], *(None if of is None else of[s.trial] for of in (label, units))
        scores[name] = entry(s.value, s.chance, unit, kinds, tapes) | {"first_sample": float(first.mean())}
        if len(s.samples) > 1:
            scores[name][f"best_of_{len(s.samples)}_samples"] = float(s.samples.max(0).mean())
        for control, items in controls.items():
            if name in items:
                other = items[name].samples[0]
                tests = {"p_real_above": sign_flip_p(first - other), "p_above_prior": sign_flip_p(other - s.prior)}
                table[control][name] = entry(other, s.chance, unit, units=tapes) | tests
        prior = entry(s.prior, s.chance, unit, units=tapes)
        table["class_prior"][name] = prior | {"p_real_above": sign_flip_p(first - s.prior)}
    return scores, table


def baseline_table(
    hits: dict[str, np.ndarray], label: np.ndarray, timed: bool, unit: str, units: np.ndarray | None = None
) -> dict[str, dict]:
    """The `baselines` of metrics.json: accuracy of each from its hits (N,); `timed`: the trials have onsets.

    Each chooses among the classes of the N trials. label, units: (N,) class and recording of every trial.
    """
    table = {}
    for name, values in hits.items():
        score = entry(values.astype(np.float64), 1 / len(np.unique(label)), unit, label, units)
        note = {} if timed or name != "time_only" else {"note": "order of the file, not verified"}
        table[name] = {"class_accuracy": score | note}
    return table


def subject_table(
    items: dict[str, ItemScores], subject: np.ndarray, unit: str, units: np.ndarray | None = None
) -> dict[str, dict]:
    """The scores of each subject alone: subject -> score -> entry. subject, units: (N,) subject and recording."""
    table = {name: {} for name in np.unique(subject).tolist()}
    for name, scores in table.items():
        for score, s in items.items():
            if (mine := subject[s.trial] == name).any():
                tapes = None if units is None else units[s.trial][mine]
                scores[score] = entry(s.value[mine], s.chance, unit, units=tapes)
    return table


def within_class(alike: np.ndarray, own: np.ndarray, label: np.ndarray) -> list[tuple[np.ndarray, ...]]:
    """What retrieval among the images of an item's own class has to choose from.

    Args:
        alike: (S, N, U) items and images; own: (N,) the image each item showed; label: (N,).

    Returns:
        for each class of two images or more: items (n,), how alike they and its images are (S, n, m), own (n,).
    """
    parts = []
    for kind in np.unique(label):
        items = np.flatnonzero(label == kind)
        images, column = np.unique(own[items], return_inverse=True)
        if len(images) > 1:
            parts.append((items, alike[:, items][:, :, images], column))
    return parts


def within_class_p(parts: list[tuple[np.ndarray, np.ndarray]], n_perm: int = DRAWS, seed: int = 0) -> float:
    """Permutation test of retrieval within classes: is the own image found better than others of its class?

    Args:
        parts: for each class (matrix (n, m), own (n,)): the score of item i, were image u its own, and which is.
            A draw shuffles the images of a class among themselves: what tells classes or blocks apart stays.
    """
    random, observed, null = np.random.default_rng(seed), 0.0, np.zeros(n_perm)
    for matrix, own in parts:
        images = np.arange(matrix.shape[1])
        observed += matrix[np.arange(len(own)), own].sum()
        # (m, m): all items of an image together, were it any other
        sums = np.add.reduceat(matrix[np.argsort(own, kind="stable")], np.searchsorted(np.sort(own), images))
        rows = max(1, CELLS // len(images))
        for start in range(0, n_perm, rows):
            draws = null[start : start + rows]
            shuffled = random.permuted(np.tile(images, (len(draws), 1)), axis=1)
            draws += sums[images, shuffled].sum(1)
    return permutation_p(observed, null)
