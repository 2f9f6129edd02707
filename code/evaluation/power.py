"""Power of the verdict's tests: how often a test split of n items like those at hand would pass them.

Splits are imagined by drawing with replacement from a run's own items, or whole classes for the test within classes,
and each is tested as the real one is. So the figure says how repeatable a result of this size is; it is no second
proof of the result, and where a true effect is smaller than the seen one it promises too much.

Shapes: N items, C classes, R imagined splits.
"""

from collections.abc import Sequence

import numpy as np

from evaluation.statistics import (
    ALPHA,
    CLUSTERS,
    DRAWS,
    EEG_CONTROLS,
    ItemScores,
    permutation_p,
    sign_flip_p,
    within_class_draws,
)

SPLITS = 500


def paired_power(differences: np.ndarray, n: int | None = None, splits: int = SPLITS, seed: int = 0) -> float:
    """Share of imagined splits of `n` items (default N) in which all of K paired tests find p below ALPHA.

    Args:
        differences: (K, N), each item's score less what it has under each of K controls.
    """
    differences = np.asarray(differences, dtype=np.float64)
    rows = np.random.default_rng(seed).integers(0, differences.shape[1], (n or differences.shape[1], splits))
    return float((sign_flip_p(differences[:, rows].transpose(1, 0, 2)) < ALPHA).all(0).mean())


def within_class_power(parts: list[tuple], n: int | None = None, splits: int = SPLITS, seed: int = 0) -> float:
    """Share of imagined splits of `n` classes (default C) whose `within_class_p` is below ALPHA.

    parts: as `within_class_p` takes them.
    """
    observed, null = within_class_draws(parts)
    random, passed = np.random.default_rng(seed), 0
    for _ in range(splits):
        drawn = random.integers(0, len(observed), n or len(observed))
        turns = random.integers(0, DRAWS, len(drawn))  # a class that is drawn twice is shuffled anew each time
        total = sum(np.roll(null[c], turn) for c, turn in zip(drawn.tolist(), turns.tolist(), strict=True))
        passed += permutation_p(observed[drawn].sum(), total) < ALPHA
    return passed / splits


def power_of(
    score: str | None,
    real: dict[str, ItemScores],
    controls: dict[str, dict[str, ItemScores]],
    parts: Sequence[tuple] | None,
) -> dict:
    """The `power` of metrics.json's verdict: of the tests of the class and of the instance, at the run's own n.

    None where the test was not made, or, for the instance, with fewer than CLUSTERS classes to draw from.

    Args:
        score: the deciding class score; real, controls: as `score_table` takes them; parts: as `within_class_p` does.
    """
    found = {"class": None, "instance": None}
    if score and all(score in controls.get(name, {}) for name in EEG_CONTROLS):
        first = real[score].samples[0]
        others = [*(controls[name][score].samples[0] for name in EEG_CONTROLS), real[score].prior]
        found["class"] = paired_power(first - np.stack(others))
    if parts and len(parts) >= CLUSTERS:
        found["instance"] = within_class_power(list(parts))
    n = {"class": len(real[score].trial) if score else 0, "instance": sum(len(own) for _, own in parts or ())}
    return found | {"n": n, "alpha": ALPHA, "from": "the run's own items, drawn with replacement"}


def told(power: dict) -> str:
    """`power_of` as a sentence; empty where no test was made."""
    tests = {"class": "the class", "instance": "the single image"}
    parts = [
        f"{power[key]:.1%} pass the tests of {name} (n = {power['n'][key]})"
        for key, name in tests.items()
        if power[key] is not None
    ]
    return f"Power: of test splits drawn from this run's own items, {' and '.join(parts)}." if parts else ""
