"""Trials that hold the same EEG are found through what copies go through; different trials never pair."""

import json

import numpy as np
import pytest
import torch
from made_up_eval import CLEAN
from scipy import signal

from data.near_trials import ALIKE, FEWEST, LEAKING, SKETCH, SameEEG, among, sketch
from data.splits import describe_splits
from data.trials_file import open_trial_file
from dataset import FILE_DEFAULTS, open_trials
from evaluation.baselines import lda_probabilities, time_bins
from evaluation.block_design import design_from
from evaluation.record import about_trials
from evaluation.statistics import EEG_CONTROLS, ItemScores, score_table
from evaluation.verdict import verdict
from miniature.experiment import simulate_experiment

N, C, L, RATE = 160, 12, 300, 500.0


def eeg_like(n: int, seed: int, n_chans: int = C, length: int = L) -> np.ndarray:
    """(n, C, L) noise, 1/f in amplitude and common to all channels: plainly correlated, different trials reach 0.9."""
    g = np.random.default_rng(seed)
    spectra = np.fft.rfft(g.standard_normal((n, 5, length))) / np.maximum(np.arange(length // 2 + 1), 1)
    topography = np.random.default_rng(99).standard_normal((n_chans, 5)) + 2
    return topography @ np.fft.irfft(spectra, length) + 0.01 * g.standard_normal((n, n_chans, length))


def write(folder, eeg, **columns):
    """A file of trials and its splits: 2 of 4 train, 1 validates, 1 is tested, one after the other."""
    known = {"image": range(len(eeg)), "label": [i % 8 for i in range(len(eeg))], "subject": [4] * len(eeg)} | columns
    rows = [dict(zip(known, row, strict=True)) for row in zip(*known.values(), strict=True)]
    trials = [{"eeg": torch.tensor(np.array(x, np.float32))} | row for x, row in zip(eeg, rows, strict=True)]
    labels, images = [f"n{k}" for k in range(8)], [f"n0_{i}" for i in range(len(eeg))]
    torch.save({"dataset": trials, "labels": labels, "images": images}, folder / "eeg.pth")
    q = len(eeg) // 4
    split = {"train": [*range(2 * q)], "val": [*range(2 * q, 3 * q)], "test": [*range(3 * q, 4 * q)]}
    torch.save({"splits": [split]}, folder / "splits.pth")
    length = eeg[0].shape[1]
    manifest = {"sfreq": RATE, "window": [0, length], "length_limits": [length, length]}
    (folder / "eeg.json").write_text(json.dumps(manifest))
    return folder / "eeg.pth", folder / "splits.pth"


def same_eeg(folder, eeg, **columns) -> SameEEG:
    path, _ = write(folder, eeg, **columns)
    return SameEEG(open_trial_file(path), FILE_DEFAULTS | json.loads(path.with_suffix(".json").read_text()))


def filtered(eeg, rate=RATE):
    return signal.sosfiltfilt(signal.butter(4, (0.5, 30), "bandpass", fs=rate, output="sos"), eeg)


def sixteen_bits(eeg):
    """Another unit in 16 bits, of which a quarter of the range is used."""
    step = np.abs(eeg).max(initial=1e-9) / 8000
    return np.round(eeg / step).astype(np.int16) * step * 0.1


WAYS = {
    "16 bits, another unit": sixteen_bits,
    "constant": lambda eeg: eeg + 30,
    "filter": filtered,
    "re-reference": lambda eeg: eeg - 0.9 * eeg[:, :1],
    "average reference": lambda eeg: eeg - 0.9 * eeg.mean(1, keepdims=True),
    "one sample": lambda eeg: np.concatenate([eeg[..., 1:], eeg[..., -1:]], 2),
    "four samples": lambda eeg: np.concatenate([eeg[..., 4:], eeg[..., -4:]], 2),
    "polarity": np.negative,
    "noise": lambda eeg: eeg + 0.03 * eeg.std() * np.random.default_rng(7).standard_normal(eeg.shape),
    "gains": lambda eeg: eeg * np.random.default_rng(8).uniform(0.8, 1.25, (C, 1)),
    "all": lambda eeg: sixteen_bits(np.roll(eeg, 1, 2) - 0.5 * eeg[:, :1] + 3),
}


@pytest.mark.parametrize("way", WAYS)
def test_copies_are_found_through(way, tmp_path):
    eeg, half = eeg_like(N, 0), N // 2
    eeg[half:] = WAYS[way](eeg[:half])
    order = np.random.default_rng(3).permutation(half)
    eeg[half:] = eeg[half:][order]
    found = same_eeg(tmp_path, eeg)
    nearest, likeness = found.nearest([*range(half)], [*range(half, N)])
    assert nearest.tolist() == order.tolist() and likeness.min() >= ALIKE
    assert found.between([*range(half)], [*range(half, N)])["alike"] == half


def test_different_trials_never_pair_though_plainly_correlated(tmp_path):
    eeg = eeg_like(3 * N, 1)
    flat = (eeg - eeg.mean(2, keepdims=True)).reshape(len(eeg), -1)
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    assert np.abs(np.triu(flat @ flat.T, 1)).max() > 0.8
    found = same_eeg(tmp_path, eeg)
    for seed in range(4):
        order = np.random.default_rng(seed).permutation(len(eeg)).tolist()
        assert found.nearest(order[:N], order[N:])[1].max() < ALIKE - 0.2


@pytest.mark.parametrize("design", ["random", "block"])
def test_the_demos_trials_neither_pair_nor_overlap(tmp_path, design):
    trials = simulate_experiment([4], 3, design, signal=2.0)["dataset"]
    for trial in trials:
        trial["eeg"] = trial["eeg"][:, 20:460]
    columns = {key: [trial[key] for trial in trials] for key in ("label", "image", "subject", "onset", "recording")}
    columns["label"] = [label % 8 for label in columns["label"]]
    path, splits = write(tmp_path, [trial["eeg"].numpy() for trial in trials], **columns)
    path.with_suffix(".json").write_text(json.dumps({"window": [0, 440], "length_limits": [1, 2000]}))
    facts = open_trials(path, splits)["train"].info["split"]
    for part in ("val", "test"):
        assert facts["same_eeg"][part]["repeated"] == facts["same_eeg"][part]["overlapping"] == 0
    likeness = SameEEG(open_trial_file(path), FILE_DEFAULTS).nearest([*range(60)], [*range(60, 120)])[1]
    assert likeness.max() < 0.5


def test_trials_of_real_recordings_never_pair(tmp_path, shared_data):
    cut = []
    for path in sorted((shared_data / "neurotechx-muse/N170/subject1/session1").glob("*.csv.gz"))[:3]:
        eeg = np.loadtxt(path, delimiter=",", skiprows=1, usecols=range(1, 5), max_rows=20_000).T
        cut += [eeg[:, start : start + 180] for start in range(0, eeg.shape[1] - 180, 180)]
    found = same_eeg(tmp_path, cut[: len(cut) // 4 * 4])
    for seed in range(4):
        order = np.random.default_rng(seed).permutation(len(found.vectors)).tolist()
        assert found.nearest(order[::2], order[1::2])[1].max() < ALIKE - 0.1


def test_overlap_in_time_is_counted_within_a_recording_alone(tmp_path):
    eeg = eeg_like(8, 2)
    tapes, onset = list("aaaabbbb"), [0.0, 1.0, 2.0, 3.0, 0.3, 5.0, 1.3, 9.0]  # a window lasts 0.6 s
    found = same_eeg(tmp_path, eeg, onset=onset, recording=tapes)
    assert found.overlapping([0, 1, 2, 3], [4, 5, 6, 7]) == {}, "other recordings"
    found = same_eeg(tmp_path, eeg, onset=onset, recording=["a"] * 8)
    assert found.overlapping([0, 1, 2, 3], [4, 5, 6, 7]) == {4: 0, 6: 1}
    assert found.overlapping([0, 1, 2, 3], []) == {} and found.overlapping([], [4]) == {}
    between = found.between([0, 1, 2, 3], [4, 5, 6, 7])
    assert between["overlapping"] == between["repeated"] == 2 and between["alike"] == 0
    assert between["pairs"] == [[4, 0, ["overlapping"]], [6, 1, ["overlapping"]]]
    some = among(between, [5, 6])
    assert (some["trials"], some["repeated"], some["overlapping"]) == (2, 1, 1)
    assert some["examples"] == ["trial 6 that of trial 1"] and among(between, [5])["repeated"] == 0
    assert between["examples"] == ["trial 4 that of trial 0", "trial 6 that of trial 1"]
    found = same_eeg(tmp_path, eeg, onset=onset, recording=["a"] * 8, subject=[4] * 4 + [3] * 4)
    assert found.overlapping([0, 1, 2, 3], [4, 5, 6, 7]) == {}, "other subjects"
    step = same_eeg(tmp_path, eeg, onset=[0.6 * i for i in range(8)], recording=["a"] * 8)
    assert step.overlapping([0, 2, 4, 6], [1, 3, 5, 7]) == {}, "one ends where the next begins"
    assert same_eeg(tmp_path, eeg).between([0], [1])["overlapping"] is None


def test_what_cannot_be_compared_is_compared_bit_by_bit(tmp_path):
    g = np.random.default_rng(0)
    eeg = g.standard_normal((8, 1, 400))  # one channel
    eeg[6:], eeg[7] = eeg[:2], eeg[7] + 1e-3
    found = same_eeg(tmp_path, eeg).between([0, 1, 2, 3], [4, 5, 6, 7])
    assert (found["identical"], found["alike"], found["repeated"]) == (1, 0, 1)
    for odd in (np.full((3, 400), np.nan), np.zeros((3, 400)), np.ones((3, 1)), np.ones((0, 9)), 1e30 * eeg[0]):
        assert not sketch(odd.astype(np.float32), 400).any()
    assert SKETCH[1] < FEWEST
    eeg = eeg_like(8, 5)
    eeg[0], eeg[4], eeg[[1, 5]] = 1, 2, np.nan
    found = same_eeg(tmp_path, eeg).between([0, 1, 2, 3], [4, 5, 6, 7])
    assert found["alike"] == 0, "constant or broken trials, which have no sketch, are not alike"


def test_without_a_rate_overlap_is_unknown(tmp_path):
    path, _ = write(tmp_path, eeg_like(4, 2), label=[0] * 4, onset=[0.0, 1.0, 1.1, 3.0], recording=["a"] * 4)
    found = SameEEG(open_trial_file(path), {"window": [0, L], "sfreq": None})
    assert found.between([0, 1], [2, 3])["overlapping"] is None


def test_lengths_may_differ(tmp_path):
    eeg = eeg_like(6, 4, 20)
    eeg = [*eeg[:3], eeg[0][:, 2:], eeg[4], eeg[2][:, :-9]]
    path, _ = write(tmp_path, eeg, label=[0] * 6)
    found = SameEEG(open_trial_file(path), {"window": [0, L], "sfreq": RATE})
    assert found.between([0, 1, 2], [3, 4, 5])["examples"] == ["trial 3 that of trial 0", "trial 5 that of trial 2"]


def test_sketches_are_made_once_for_all_trials_of_a_file(tmp_path, monkeypatch):
    path, splits = write(tmp_path, eeg_like(16, 5))
    open_trials(path, splits, n_chans=C)
    monkeypatch.setattr("data.near_trials.sketch", None)
    assert open_trials(path, splits, splits=["test"], n_chans=C)["test"].info["split"]["same_eeg"]["test"]


def leaky_noise(seed: int, share: float) -> tuple[np.ndarray, list[int]]:
    """Noise of which a share of the test trials are training trials, through 16 bits and a shift; their labels."""
    eeg, label = eeg_like(N, seed), np.random.default_rng(seed).permutation(np.arange(N) % 8)
    first, n = 3 * N // 4, round(share * N // 4)
    eeg[first : first + n] = sixteen_bits(np.roll(eeg[:n], 1, 2)) * 10
    label[first : first + n] = label[:n]
    return eeg, label.tolist()


def read(folder, seed: int, share: float) -> tuple[dict, dict, dict]:
    """What a linear decoder of such noise is said to show, what without looking at copies, and what splits share."""
    eeg, label = leaky_noise(seed, share)
    onset, tape = [2.0 * i for i in range(N)], ["a"] * N
    paths = write(folder, eeg, label=label, onset=onset, recording=tape)
    train, test = open_trials(*paths, splits=("train", "test"), n_chans=C, n_times=L).values()
    given = train.eeg.numpy(), train.label.numpy(), test.eeg.numpy()
    hit = lda_probabilities(*given, 8, lambda x: time_bins(x, 16)).argmax(1) == test.label.numpy()
    items = {
        name: ItemScores(0.0 * hit[None], np.full(len(hit), 1 / 8), 1 / 8, np.arange(len(hit))) for name in EEG_CONTROLS
    }
    real = {"a": ItemScores(1.0 * hit[None], np.full(len(hit), 1 / 8), 1 / 8, np.arange(len(hit)))}
    tables = score_table(real, {name: {"a": item} for name, item in items.items()}, "trial")
    facts = test.info["split"]
    trusting = verdict("a", *tables, ("random", "so"), 1e-4, CLEAN)
    return verdict("a", *tables, design_from(label, onset, tape), 1e-4, facts), trusting, facts


@pytest.mark.parametrize("share", [1.0, 0.5, 0.0])
def test_noise_whose_test_trials_are_copies_is_leaking_and_says_nothing(tmp_path, share):
    found, trusting, facts = read(tmp_path, 11, share)
    copies = facts["same_eeg"]["test"]
    assert copies["repeated"] == copies["alike"] == round(share * N // 4) and copies["identical"] == 0
    if share:
        assert trusting["class"] == "supported", "memory looks like reading"
        assert (found["class"], found["instance"], found["design"]) == ("nothing", "nothing", "leaking")
        (said,) = (reason for reason in found["reasons"] if "hold EEG" in reason)
        assert said in describe_splits(facts)
        n, first, second = copies["repeated"], "trial 120 that of trial 0", "trial 121 that of trial 1"
        for word in (f"{n} of 40", f"{share:.1%}", f"{LEAKING:.1%}", first, second, "leave out", "by=recording"):
            assert word in said
    else:
        assert found["design"] != "leaking" and not any("hold EEG" in reason for reason in found["reasons"])
        assert "0 of 40 test trials hold EEG" in describe_splits(facts)


def test_copies_are_counted_among_the_scored_trials(tmp_path):
    eeg, label = leaky_noise(11, 0.5)
    onset, tape = [2.0 * i for i in range(N)], ["a"] * N
    trials = open_trials(*write(tmp_path, eeg, label=label, onset=onset, recording=tape), splits=("train", "test"))
    for rows, repeated in ((range(40), 20), (range(10), 10), (range(20, 40), 0)):
        told = about_trials(trials | {"test": trials["test"].select(rows)}, "now")["split"]["same_eeg"]["test"]
        assert (told["trials"], told["repeated"], told["alike"]) == (len(rows), repeated, repeated)


@pytest.mark.full
@pytest.mark.parametrize("seed", range(920_000, 920_020))
def test_noise_says_nothing_in_twenty_of_twenty(tmp_path, seed):
    for share in (1.0, 0.5, 0.1, 0.0):
        (folder := tmp_path / str(share)).mkdir()
        found, trusting, _ = read(folder, seed, share)
        assert (found["design"] == "leaking") == (share > 0)
        assert found["class"] == "nothing" and (trusting["class"] == "supported" or share < 0.5)


def largest(found: SameEEG) -> float:
    """The largest likeness of different trials, over four halvings of all."""
    halves = [np.random.default_rng(seed).permutation(len(found.vectors)).tolist() for seed in range(4)]
    return max(found.nearest(half[::2], half[1::2])[1].max() for half in halves)


def muse(folder) -> list[np.ndarray]:
    """All 0.7 s of each second of the recordings in a folder, 1 to 40 Hz, nothing rejected."""
    band, cut = signal.butter(4, (1, 40), "bandpass", fs=256, output="sos"), []
    for path in sorted(folder.rglob("*.csv.gz")):
        eeg = signal.sosfiltfilt(band, np.loadtxt(path, delimiter=",", skiprows=1, usecols=range(1, 5)).T)
        cut += [eeg[:, start : start + 180] for start in range(0, eeg.shape[1] - 180, 256)]
    return cut


@pytest.mark.full
@pytest.mark.parametrize("name", ["random", "block", "N170/subject1", "cueing"])
def test_margins_on_whole_sets_of_trials(tmp_path, request, name):
    """Prints the table of docs/block_design.md."""
    if name in ("random", "block"):
        trials = simulate_experiment([4], 40, name, signal=float(name == "random"))["dataset"]
        eeg, rate = [trial["eeg"][:, 20:460].numpy() for trial in trials if trial["eeg"].shape[1] >= 460], 1000
    else:
        eeg, rate = muse(request.getfixturevalue("shared_data") / "neurotechx-muse" / name), 256
    found, least = largest(same_eeg(tmp_path, eeg[: len(eeg) // 4 * 4])), {}
    some = np.stack([eeg[i] for i in np.random.default_rng(0).permutation(len(eeg))[:200]])
    for way in ("16 bits, another unit", "four samples", "filter", "noise"):
        copied = filtered(some, rate) if way == "filter" else WAYS[way](some)
        copies = same_eeg(tmp_path, np.concatenate([some, copied]))
        least[way] = np.quantile(copies.nearest([*range(200)], [*range(200, 400)])[1], 0.2)
    cells = [f"{name}: {len(eeg)} trials", f"different ones {found:.2f}", *(f"{w} {v:.2f}" for w, v in least.items())]
    print("\n" + "; ".join(cells))
    assert found < ALIKE and min(least.values()) >= ALIKE
