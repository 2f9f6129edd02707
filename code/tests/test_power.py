"""Power against closed forms, and that it is of the very tests which the verdict makes."""

import numpy as np
import pytest
from scipy.stats import binom, norm

from evaluation.power import SPLITS, paired_power, power_of, told, within_class_power
from evaluation.statistics import ALPHA, DRAWS, EEG_CONTROLS, ItemScores, paired_p, sign_flip_p, within_class_p

ERROR = 3.5 * 0.5 / np.sqrt(SPLITS)  # of a share over so many imagined splits, at most


@pytest.mark.parametrize(("mean", "n"), [(0.3, 60), (0.3, 120), (0.3, 240), (0.1, 240)])
def test_power_of_a_normal_effect_is_the_z_tests(mean, n):
    """Flips keep the squares, so the null's variance is n (1 + mean ** 2) and that of the sum itself n."""
    values = norm.ppf((np.arange(4000) + 0.5) / 4000)
    exact = norm.cdf(mean * np.sqrt(n) - norm.ppf(1 - ALPHA) * np.sqrt(1 + mean**2))
    assert abs(paired_power(values[None] / values.std() + mean, n) - exact) < ERROR
    assert paired_power(values[None], n) < 0.02


def exact_power(n: int, share: float) -> float:
    """Of n items or classes each adds 1 with chance `share`, else 0; k of them have p = 2 ** -k.

    Of DRAWS random draws nine at most may reach the observed sum, for p below 0.001.
    """
    k = np.arange(n + 1)
    return float((binom.pmf(k, n, share) * binom.cdf(int(ALPHA * DRAWS) - 1, DRAWS, 0.5**k)).sum())


@pytest.mark.parametrize("share", [0.02, 0.05, 0.1, 0.2])
def test_power_of_hits_without_misses_is_binomial(share):
    hits = (np.arange(1000) < 1000 * share).astype(float)
    assert abs(paired_power(hits[None], 100) - exact_power(100, share)) < ERROR


def test_all_controls_must_be_beaten():
    random = np.random.default_rng(0)
    clear, half, none = (random.standard_normal(400) + mean for mean in (2.0, 0.27, 0.0))
    alone = paired_power(half[None], 150)
    assert 0.1 < alone < 0.9 and paired_power(np.stack([clear, half]), 150) == alone
    assert paired_power(np.stack([clear, clear]), 150) == 1.0 and paired_power(np.stack([clear, none]), 150) < 0.05


def test_sign_flips_of_many_columns_are_those_of_one():
    difference = np.random.default_rng(1).standard_normal((50, 2, 3)) + 0.2
    p = sign_flip_p(difference)
    assert p.shape == (2, 3) and p[1, 2] == paired_p(difference[:, 1, 2], 0.0)


def found_first(n_classes: int, chance: float) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pairs of images: in a share of the classes both items score 1 for the own image, elsewhere 1/2 for both."""
    yes, unsure, own = np.eye(2), np.full((2, 2), 0.5), np.arange(2)
    return [(yes if k < chance * n_classes else unsure, own) for k in range(n_classes)]


@pytest.mark.parametrize("chance", [0.1, 0.2, 0.35])
def test_power_within_classes_of_pairs_is_binomial(chance):
    """A pair found right is one of two orders."""
    parts = found_first(40, chance)
    assert abs(within_class_power(parts) - exact_power(40, chance)) < ERROR
    assert abs(within_class_power(parts, n=80) - exact_power(80, chance)) < ERROR
    assert within_class_p(found_first(40, 13 / 40)) < ALPHA < within_class_p(found_first(40, 7 / 40))


def test_power_of_a_run_is_told_or_not_estimated():
    def items(values) -> ItemScores:
        return ItemScores(np.asarray(values, float)[None], np.full(100, 0.02), 0.02, np.arange(100))

    real, controls = {"a": items(np.arange(100) < 60)}, {name: {"a": items(np.zeros(100))} for name in EEG_CONTROLS}
    found = power_of("a", real, controls, found_first(40, 1.0))
    assert (found["class"], found["instance"], found["n"]) == (1.0, 1.0, {"class": 100, "instance": 80})
    assert "100.0% pass the tests of the class (n = 100) and 100.0% pass" in told(found)
    fewer = power_of("a", real, controls, found_first(10, 1.0))
    assert fewer["instance"] is None and "single image" not in told(fewer)
    assert power_of("a", real, {}, [])["class"] is None and told(power_of(None, {}, {}, [])) == ""
