"""The linear baseline finds what is there, finds nothing where nothing is, and never sees test labels."""

import numpy as np
import pytest

from evaluation.baselines import lda_probabilities, log_power, nearest_in_time, time_bins
from runtime.errors import UserError


def trials(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise (n, 6, 100) and labels 0..3."""
    random = np.random.default_rng(seed)
    return random.standard_normal((n, 6, 100)).astype(np.float32), np.arange(n) % 4


def accuracy(probabilities: np.ndarray, label: np.ndarray) -> float:
    return (probabilities.argmax(1) == label).mean()


def test_an_evoked_difference_is_read_and_noise_is_not():
    (train, label), (test, truth) = trials(200, 0), trials(400, 1)
    assert accuracy(lda_probabilities(train, label, test, 4), truth) < 0.35
    for eeg, classes in ((train, label), (test, truth)):
        eeg[np.arange(len(eeg)), classes, 40:60] += 1.5
    probabilities = lda_probabilities(train, label, test, 4)
    assert accuracy(probabilities, truth) > 0.9
    np.testing.assert_allclose(probabilities.sum(1), 1)


def test_a_difference_in_power_is_seen_by_the_power_reader_alone():
    (train, label), (test, truth) = trials(200, 0), trials(400, 1)
    for eeg, classes in ((train, label), (test, truth)):
        eeg[np.arange(len(eeg)), classes] *= 2
    assert accuracy(lda_probabilities(train, label, test, 4), truth) < 0.4
    assert accuracy(lda_probabilities(train, label, test, 4, log_power), truth) > 0.9


def test_bins_are_the_means_of_their_stretch():
    eeg = np.arange(20.0).reshape(1, 2, 10)
    np.testing.assert_allclose(time_bins(eeg, 3), [[1, 4, 7.5, 11, 14, 17.5]])
    assert time_bins(eeg, 32).shape == (1, 20)


def test_a_class_without_training_trials_gets_nothing():
    (train, label), (test, _) = trials(80, 0), trials(8, 1)
    probabilities = lda_probabilities(train[label != 2], label[label != 2], test, 4)
    assert probabilities.shape == (8, 4) and (probabilities[:, 2] == 0).all()


def test_more_features_than_trials_work():
    (train, label), (test, truth) = trials(40, 0), trials(40, 1)
    for eeg, classes in ((train, label), (test, truth)):
        eeg[np.arange(len(eeg)), classes, 40:60] += 3
    assert accuracy(lda_probabilities(train, label, test, 4), truth) > 0.8


def test_too_few_trials_is_one_sentence():
    eeg, _ = trials(8, 0)
    with pytest.raises(UserError, match="too few"):
        lda_probabilities(eeg, np.zeros(8, int), eeg, 4)


def test_time_alone_names_the_class_of_the_nearest_trial():
    train = np.array([0.0, 10, 0, 10]), np.array(["a", "a", "b", "b"]), np.array([0, 1, 2, 3])
    time, tape = np.array([1.0, 8, 5, 2, 9]), np.array(["a", "a", "a", "b", "c"])
    hits, gap = nearest_in_time(*train, time, tape, np.array([0, 0, 1, 2, 3]))
    # the third stands in the middle; the last is of a recording without training trials, where 1 and 3 were shown at 10
    assert hits.tolist() == [1, 0, 0.5, 1, 0.5]
    np.testing.assert_array_equal(gap, [1, 2, 5, 2, np.nan])


def test_time_alone_guesses_among_the_tested_classes():
    """The nearest training trials are of a class that is not tested; the distance counts them all the same."""
    train = np.array([1.0, 5, 9, 2]), np.array(["a", "a", "a", "b"]), np.array([7, 0, 1, 7])
    hits, gap = nearest_in_time(*train, np.array([1.0, 8, 3]), np.array(["a", "a", "b"]), np.array([0, 1, 0]))
    assert hits.tolist() == [1, 1, 1] and gap.tolist() == [0, 1, 1]


def test_time_alone_reads_blocks_and_nothing_else():
    g, time, tape = np.random.default_rng(0), np.arange(400.0), np.repeat(["a"], 400)
    test = g.random(400) < 0.25
    for label, low, high in ((np.repeat(np.arange(20), 20), 0.85, 1), (g.integers(0, 20, 400), 0, 0.15)):
        hits, _ = nearest_in_time(time[~test], tape[~test], label[~test], time[test], tape[test], label[test])
        assert low <= hits.mean() <= high
