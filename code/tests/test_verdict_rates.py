"""How often the verdict errs, over seeds used nowhere else, on simulated EEG whose truth is known.

Linear decoders stand in for the pictures, so that a reading takes two seconds: shrinkage LDA for the classifier's
logits, ridge regression on the pictures' codes for the embedding. 160 test trials, four of each class, as in the demo.
`pytest -m full -s code/tests/test_verdict_rates.py` prints the table (9 minutes of one core).
"""

import numpy as np
import pytest
import torch
from made_up_eval import CLEAN
from scipy.stats import binom, rankdata
from sklearn.linear_model import RidgeCV

from evaluation.baselines import lda_probabilities, log_power, time_bins
from evaluation.block_design import design_from
from evaluation.controls import gaussian_eeg, other_trial
from evaluation.folder import Outcome, Truth
from evaluation.scores import item_scores
from evaluation.similarity import cosine
from evaluation.statistics import ALPHA, EEG_CONTROLS, score_table, within_class, within_class_p
from evaluation.verdict import verdict
from miniature.evoked import picture_codes
from miniature.experiment import simulate_experiment
from miniature.renderer import STIMULI

IMAGES = 8  # of each class; every other one is tested on
SEEDS = range(910_000, 910_020)
SCORE = "40_way_top1"
# design, signal, drift, instance
NOTHING = [("random", 0.0, 0.0, 0.3), ("random", 0.0, 1.0, 0.3), ("random", 0.0, 3.0, 0.3), ("block", 0.0, 0.0, 0.3)]
TRUTHS = [*NOTHING, ("random", 0.3, 1.0, 0.0), ("random", 1.0, 1.0, 0.0), ("random", 2.0, 1.0, 1.5)]
TRUTHS += [("block", 0.0, 0.3, 0.3), ("block", 0.0, 1.0, 0.3), ("block", 0.0, 3.0, 0.3), ("block", 1.0, 1.0, 0.0)]
TRUTHS += [("block", 2.0, 1.0, 1.5)]
WORDS = [(0, "supported"), (0, "explained_by_time"), (0, "nothing"), (1, "supported")]
COLUMNS = ("design", "signal", "drift", "instance", "class sup.", "by time", "nothing", "inst. sup.")


def features(eeg: np.ndarray) -> np.ndarray:
    """(N, F): what evoked responses move, and what slow drift moves, at like weight."""
    return np.hstack([time_bins(eeg, 16), 10 * log_power(eeg)])


def read(design: str, signal: float, drift: float, instance: float, seed: int) -> tuple[str, str, list[float]]:
    """One simulated experiment: what the verdict says of class and instance, and the p against each control.

    The last p is that of the instance.
    """
    trials = simulate_experiment([4], IMAGES, design, signal, drift, instance, seed=seed)["dataset"]
    eeg = torch.stack([trial["eeg"][:, 20:460] for trial in trials])
    label, image, onset, tape = (np.array([t[k] for t in trials]) for k in ("label", "image", "onset", "recording"))
    pictures = image % IMAGES
    codes = picture_codes([STIMULI[k] for k in label], pictures.tolist(), 1.0)
    test = pictures % 2 == 1
    real = eeg[test]
    controls = gaussian_eeg(real, seed), real[other_trial(torch.from_numpy(image[test]), seed)]
    given, *asked = (features(x.numpy()) for x in (eeg[~test], real, *controls))
    logits = np.log(lda_probabilities(given, label[~test], np.concatenate(asked), 40, np.asarray) + 1e-12)
    items = {}
    for name, own in zip(("real", *EEG_CONTROLS), np.split(logits[:, None], 3), strict=True):
        items[name] = {SCORE: item_scores(Outcome(logits=own), Truth(label[test], label[test]))[SCORE]}
    scores, controls = score_table(items.pop("real"), items, "image")
    embedding = RidgeCV(10.0 ** np.arange(2, 7)).fit(given, codes[~test]).predict(asked[0])
    parts = within_class(cosine(embedding, codes[test])[None], np.arange(test.sum()), label[test])
    two_way = [((rankdata(alike[0], axis=1) - 1) / (alike.shape[2] - 1), own) for _, alike, own in parts]
    p = within_class_p(two_way)
    found = verdict(SCORE, scores, controls, design_from(label, onset, tape.astype(str)), p, CLEAN)
    return found["class"], found["instance"], [*(c[SCORE]["p_real_above"] for c in controls.values()), p]


@pytest.fixture(scope="module")
def readings() -> dict[tuple, list]:
    """Every truth read with every seed; the table of shares is printed."""
    table = {}
    print(f"\nshares of {len(SEEDS)} readings\n" + "".join(f"{name:>11}" for name in COLUMNS))
    for truth in TRUTHS:
        found = table[truth] = [read(*truth, seed) for seed in SEEDS]
        about = [[row[k] for row in found].count(word) for k, word in WORDS]
        print("".join(f"{cell:>11}" for cell in (*truth, *(f"{n / len(SEEDS):.2f}" for n in about))), flush=True)
    return table


def most(n: int, level: float) -> int:
    """The most false alarms that `n` tests at `level` give, but once in a thousand times."""
    return int(binom.ppf(0.999, n, level))


@pytest.mark.full
def test_a_wrong_supported_is_as_rare_as_the_tests_level_says(readings):
    no_class = [row[0] for truth, rows in readings.items() for row in rows if truth[0] == "block" or not truth[1]]
    no_instance = [row[1] for truth, rows in readings.items() for row in rows if not truth[1] * truth[3]]
    assert no_class.count("supported") <= most(len(no_class), ALPHA)
    assert no_instance.count("supported") <= most(len(no_instance), ALPHA)


@pytest.mark.full
def test_without_an_effect_p_is_small_no_more_often_than_it_says(readings):
    neither = [row[2] for truth, rows in readings.items() for row in rows if truth in NOTHING]
    for p in np.array(neither).T:  # against each control, and of the instance
        assert (p < 0.05).sum() <= most(len(p), 0.05)


@pytest.mark.full
def test_clear_truths_are_read_as_what_they_are(readings):
    clear = {
        ("random", 2.0, 1.0, 1.5): ("supported", "supported"),
        ("block", 0.0, 1.0, 0.3): ("explained_by_time", "nothing"),
        ("random", 0.0, 0.0, 0.3): ("nothing", "nothing"),
        ("block", 2.0, 1.0, 1.5): ("explained_by_time", "supported"),
    }
    for truth, expected in clear.items():
        assert sum(row[:2] == expected for row in readings[truth]) >= 0.9 * len(SEEDS), truth
