"""The verdict on runs whose truth is known, and how a design is read from the order of trials."""

import itertools

import numpy as np
import pytest
from made_up_eval import CLEAN

from evaluation.block_design import design_from
from evaluation.statistics import EEG_CONTROLS, ItemScores, entry, score_table
from evaluation.verdict import verdict
from runtime.errors import UserError

RANDOM, BLOCK, UNKNOWN = (("random", "shuffled"), ("block", "in blocks"), ("unknown", "no onsets"))


def tables(hit: float, n: int = 160, controls: tuple = EEG_CONTROLS, control_hit: float = 0.03) -> tuple[dict, dict]:
    """Scores of a run that is right on `hit` of n items, beside controls that are right on 3 %."""
    g = np.random.default_rng(0)

    def items(rate: float) -> ItemScores:
        value = (g.random(n) < rate).astype(float)
        return ItemScores(value[None], np.full(n, 0.03), 0.02, np.arange(n))

    return score_table(
        {"50_way_top1": items(hit)}, {name: {"50_way_top1": items(control_hit)} for name in controls}, "image"
    )


@pytest.mark.parametrize(
    ("hit", "design", "instance_p", "about_class", "about_instance"),
    [
        (0.5, RANDOM, 0.4, "supported", "nothing"),
        (0.5, BLOCK, 0.4, "explained_by_time", "nothing"),
        (1.0, BLOCK, 0.4, "explained_by_time", "nothing"),
        (1.0, UNKNOWN, None, "explained_by_time", "nothing"),
        (0.03, RANDOM, 0.4, "nothing", "nothing"),
        (0.03, BLOCK, 0.4, "nothing", "nothing"),
        (0.5, BLOCK, 0.0002, "explained_by_time", "supported"),
        (0.5, RANDOM, 0.0002, "supported", "supported"),
        (0.5, RANDOM, 0.002, "supported", "nothing"),
    ],
)
def test_verdict_reads_known_truths(hit, design, instance_p, about_class, about_instance):
    found = verdict("50_way_top1", *tables(hit), design, instance_p, CLEAN)
    assert (found["class"], found["instance"], found["design"]) == (about_class, about_instance, design[0])
    assert any(design[1] in reason for reason in found["reasons"])


def test_verdict_claims_nothing_without_every_control_or_without_a_classifier():
    assert verdict("50_way_top1", *tables(0.9, controls=()), RANDOM, split=CLEAN)["class"] == "nothing"
    assert verdict("50_way_top1", *tables(0.9, controls=EEG_CONTROLS[:1]), RANDOM, split=CLEAN)["class"] == "nothing"
    assert verdict(None, *tables(0.9), RANDOM, split=CLEAN)["class"] == "nothing"


def test_verdict_claims_nothing_when_a_control_does_as_well():
    assert verdict("50_way_top1", *tables(0.5, control_hit=0.5), RANDOM, split=CLEAN)["class"] == "nothing"


def test_verdict_needs_the_real_run_above_the_class_prior():
    """A generator that always draws the commonest class scores high, and so does its prior."""
    g, n = np.random.default_rng(0), 160
    value = (g.random(n) < 0.5).astype(float)
    common = ItemScores(value[None], value, 0.02, np.arange(n))
    low = ItemScores(np.zeros((1, n)), np.zeros(n), 0.02, np.arange(n))
    scores, controls = score_table({"a": common}, {name: {"a": low} for name in EEG_CONTROLS}, "image")
    assert verdict("a", scores, controls, RANDOM, split=CLEAN)["class"] == "nothing"


def labels(kinds: int, each: int) -> np.ndarray:
    return np.repeat(np.arange(kinds), each)


def test_random_orders_are_seldom_taken_for_blocks():
    found = [
        design_from(np.random.default_rng(s).permutation(labels(40, 4)), np.arange(160.0), ["a"] * 160)[0]
        for s in range(60)
    ]
    assert found.count("random") >= 54 and "block" not in found  # one in twenty is not trusted


def halves() -> np.ndarray:
    """Twenty classes in the first half, the others in the second, each in random order."""
    g = np.random.default_rng(0)
    return np.concatenate([g.permutation(labels(20, 4)), 20 + g.permutation(labels(20, 4))])


@pytest.mark.parametrize(
    ("order", "recording"),
    [
        (labels(40, 4), ["a"] * 160),
        (labels(2, 80), ["a"] * 160),
        (np.tile(labels(8, 5), 4), ["a"] * 160),  # short blocks, repeated
        (halves(), ["a"] * 160),
        (labels(4, 40), np.repeat(list("abcd"), 40)),  # one class a recording
    ],
)
def test_blocks_of_several_kinds_are_seen(order, recording):
    shuffled = np.random.default_rng(1).permutation(len(order))  # the file's order does not matter, time does
    onset = np.arange(len(order), dtype=float)
    kind, reason = design_from(order[shuffled], onset[shuffled], np.asarray(recording)[shuffled])
    assert kind == "block" and "%" in reason


def test_a_class_that_leans_to_the_beginning_of_every_recording_is_never_called_random():
    read = []
    for seed in range(10):
        g = np.random.default_rng(seed)
        label = np.concatenate([(g.random(60) < np.repeat([0.3, 0.7], 30)).astype(int) for _ in range(6)])
        read.append(design_from(label, np.tile(np.arange(60.0), 6), np.repeat(list("abcdef"), 60))[0])
    assert "random" not in read, read


def test_the_order_of_a_file_can_show_blocks_but_not_their_absence():
    assert design_from(labels(40, 4))[0] == "block"
    kind, reason = design_from(np.random.default_rng(0).permutation(labels(40, 4)))
    assert kind == "unknown" and "onset" in reason


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [0, 0, 0, 0], [0, 1] * 3, range(30), [0]])
def test_too_few_trials_or_classes_leave_the_design_unknown(order):
    assert design_from(order, np.arange(len(order), dtype=float))[0] == "unknown"


def test_bad_onsets_are_refused():
    with pytest.raises(UserError, match="4 finite numbers"):
        design_from([0, 1, 0, 1], [0.0, 1.0, np.nan, 3.0])
    with pytest.raises(UserError, match="4 finite numbers"):
        design_from([0, 1, 0, 1], [0.0, 1.0])


def test_a_score_without_a_single_hit_or_miss_is_not_certain():
    """The exact bound for 0 of 100 is 3.6 %."""
    none, all_ = entry(np.zeros(100), 0.02, "image"), entry(np.ones(100), 0.02, "image")
    assert none["ci95"] == [0.0, pytest.approx(0.0362, abs=1e-4)]
    assert all_["ci95"] == [pytest.approx(0.9638, abs=1e-4), 1.0]
    assert entry(np.zeros(100), np.nan, "image")["ci95"] == [0.0, 0.0]  # distances: no share of hits


def test_recordings_are_resampled_from_five_on():
    values = np.repeat([0.0, 1, 1, 0, 1, 0, 0, 0, 1, 1], 20)  # a recording is hit or missed as a whole
    trials, whole = (entry(values, 0.1, "trial", units=u) for u in (None, np.repeat(np.arange(10), 20)))
    assert np.diff(whole["ci95"])[0] == pytest.approx(np.diff(trials["ci95"])[0] * np.sqrt(20), rel=0.2)
    assert (whole["unit"], whole["recordings"], whole["n"]) == ("recording", 10, 200)
    assert entry(values, 0.1, "trial", units=np.arange(200) % 4) == trials
    none = entry(np.zeros(200), 0.1, "trial", units=np.repeat(np.arange(10), 20))
    assert none["ci95"] == [0.0, pytest.approx(1 - 0.025**0.1)]  # 0 of 10, not of 200


def test_copies_and_shared_pictures_claim_nothing():
    scores = {"50_way_top1": {"value": 0.5, "first_sample": 0.5}}
    beaten = {"value": 0.02, "p_real_above": 1e-4}
    controls = {name: {"50_way_top1": beaten} for name in ("gaussian_eeg", "other_trials_eeg", "class_prior")}
    given = ("50_way_top1", scores, controls)
    shared = CLEAN | {"shared": {"train/test": {"pictures": 3}}}
    assert verdict(*given, ("random", "so"), 1e-4, shared)["instance"] == "supported"
    assert verdict(*given, ("block", "so"), 1e-4, shared)["instance"] == "nothing"
    repeats = {"trials": 160, "identical": 0, "alike": 2, "overlapping": 1, "repeated": 3, "examples": ["a", "b"]}
    for kind, more in itertools.product(("random", "block", "unknown"), ({}, {"untold": "it does not say"})):
        found = verdict(*given, (kind, "so"), 1e-4, CLEAN | {"same_eeg": {"test": repeats}} | more)
        assert (found["class"], found["instance"], found["design"]) == ("nothing", "nothing", "leaking")
        assert f"its order is {kind}: so." in found["reasons"][-1] and any("of 160 test" in r for r in found["reasons"])
    few = verdict(*given, ("random", "so"), 1e-4, CLEAN | {"same_eeg": {"test": repeats | {"trials": 9000}}})
    assert (few["class"], few["design"]) == ("supported", "random") and any("3 of 9000" in r for r in few["reasons"])


@pytest.mark.parametrize("kind", ["random", "block", "unknown"])
@pytest.mark.parametrize(
    "split",
    [
        None,
        {},
        CLEAN | {"same_eeg": {}},
        CLEAN | {"shared": {}},
        CLEAN | {"untold": "nothing says what was trained on"},
    ],
)
def test_without_word_of_what_was_trained_on_nothing_is_supported(kind, split):
    found = verdict("50_way_top1", *tables(1.0), (kind, "so"), 1e-4, split)
    assert (found["class"], found["instance"], found["design"]) == ("explained_by_time", "nothing", "unknown")
    assert "nothing says what was trained on" in found["reasons"][-1] and f"order is {kind}: so" in found["reasons"][-1]
