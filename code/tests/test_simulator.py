"""The simulated head, recordings and files: physics, layout, and the truths they were made to hold."""

import json
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch

from commands import simulate_eeg
from dataset import EEGWindows, open_trials
from evaluation.baselines import lda_probabilities, log_power
from miniature import head
from miniature.experiment import presentations, simulate_experiment, split_by_image, unlabelled_recording
from miniature.simulator import Subject, bandpass, standardise
from runtime.errors import UserError

PER_CLASS = 8


def closed_form(electrode: np.ndarray, position: np.ndarray, moment: np.ndarray) -> float:
    """Potential on a uniform unit sphere (Mosher, Leahy and Lewis 1999, without 1/(4 pi sigma))."""
    away = electrode - position
    far, depth2 = np.linalg.norm(away), position @ position
    f = far * (far + 1 - position @ electrode)
    c1 = (2 * (away @ position) / far**3 + 1 / far - 1) / depth2
    c2 = (2 / far**3 + (far + 1) / f) / depth2
    return ((c1 - c2 * (electrode @ position)) * position + c2 * depth2 * electrode) @ moment


def test_one_shell_is_the_closed_form_and_the_skull_blurs():
    electrodes = head.electrode_positions(128)
    positions, moments = head.random_dipoles(6, 0, "test")
    uniform = head.lead_field(electrodes, positions, moments, skull_conductivity=1.0)
    exact = [[closed_form(e, p, m) for p, m in zip(positions, moments, strict=True)] for e in electrodes]
    np.testing.assert_allclose(uniform, exact, rtol=1e-5, atol=1e-5)
    shells = head.lead_field(electrodes, positions, moments)
    assert (np.abs(shells).max(0) < 0.7 * np.abs(uniform).max(0)).all()


@pytest.mark.parametrize("n", [5, 64, 128])
def test_electrodes_lie_apart_on_the_unit_sphere(n):
    at = head.electrode_positions(n)
    np.testing.assert_allclose(np.linalg.norm(at, axis=1), 1)
    distance = np.linalg.norm(at[:, None] - at, axis=2) + 2 * np.eye(n)
    assert distance.min() > 1.5 / np.sqrt(n)


@pytest.mark.parametrize(("band", "kept", "cut"), [("5_95", 20.0, 1.0), ("14_70", 30.0, 6.0), ("55_95", 70.0, 30.0)])
def test_bands_keep_and_cut(band, kept, cut):
    time = np.arange(4000) / 1000
    waves = np.stack([np.sin(2 * np.pi * hertz * time) for hertz in (kept, cut)]).astype(np.float32)
    out = bandpass(waves, band, 1000.0)
    assert out[0].std() > 0.75 * waves[0].std() and out[1].std() < 0.02 * waves[1].std()
    assert bandpass(waves, "raw", 1000.0) is waves


def test_additive_drift_is_in_the_raw_signal_only():
    drifting, still = (Subject(0, 4, 16, 250.0, 0.0, drift) for drift in (1.0, 0.0))
    nothing = np.zeros((0, 27)), np.zeros(0, int)
    a, b = (subject.record(*nothing, 60.0, 0) for subject in (drifting, still))
    slow = [np.abs(np.fft.rfft(x)[:, 1:12]).mean() for x in (a, b)]  # below 0.2 Hz
    assert slow[0] > 3 * slow[1]
    a, b = (bandpass(x, "5_95", 250.0)[:, 500:-500] for x in (a, b))
    assert 0.5 < a.std() / b.std() < 2


def test_slow_changes_run_on_from_one_recording_to_the_next():
    subject = Subject(0, 4, 64, 250.0)
    nothing = np.zeros((0, 27)), np.zeros(0, int)
    now, next_to_it, later = (subject.record(*nothing, 5.0, i, clock) for i, clock in enumerate((0, 5, 400)))
    level = [np.log(bandpass(x, "5_95", 250.0).std(1)) for x in (now, next_to_it, later)]
    near, far = level[1] - level[0], level[2] - level[0]
    assert np.median(np.abs(near)) < 0.5 * np.median(np.abs(far))


@pytest.fixture(scope="module")
def experiment() -> dict:
    return simulate_experiment([4, 1], PER_CLASS)


def test_layout_is_the_published_one(experiment):
    assert len(experiment["labels"]) == 40 and len(experiment["images"]) == 40 * PER_CLASS
    assert len(experiment["dataset"]) == 2 * 40 * PER_CLASS
    for trial in experiment["dataset"]:
        assert trial["eeg"].dtype == torch.float32 and trial["eeg"].shape[0] == 128
        stem = experiment["images"][trial["image"]]
        assert stem.split("_")[0] == experiment["labels"][trial["label"]]
    lengths = np.array([trial["eeg"].shape[1] for trial in experiment["dataset"]])
    assert lengths.min() >= 491 and 495 <= np.median(lengths) <= 515
    assert ((lengths >= 450) & (lengths <= 600)).mean() > 0.98
    # a trial is a view of nothing larger than itself: otherwise the file would hold whole recordings
    assert all(t["eeg"].untyped_storage().nbytes() == 4 * t["eeg"].numel() for t in experiment["dataset"])


def test_onsets_follow_each_other_and_restart_with_each_recording(experiment):
    for before, after in pairwise(experiment["dataset"]):
        gap = after["onset"] - before["onset"]
        if (before["subject"], before["recording"]) == (after["subject"], after["recording"]):
            assert gap >= before["eeg"].shape[1] / 1000 - 1e-9
        else:
            assert gap < 0


def test_amplitudes_are_standardised(experiment):
    samples = torch.cat([trial["eeg"] for trial in experiment["dataset"]], 1)
    assert samples.mean(1).abs().max() < 0.05
    assert 0.8 < samples.std(1).min() and samples.std(1).max() < 1.2


def test_splits_are_by_image_and_even_over_classes(experiment):
    one, everybody = ([t["image"] for t in experiment["dataset"]][:n] for n in (40 * PER_CLASS, None))
    single, whole = (split_by_image(images, PER_CLASS, seed=0) for images in (one, everybody))
    assert [len(single[k]) for k in ("train", "val", "test")] == [40 * (PER_CLASS - 2), 40, 40]
    assert sorted(sum(whole.values(), [])) == list(range(80 * PER_CLASS))
    shown = {name: {everybody[i] for i in part} for name, part in whole.items()}
    assert not shown["train"] & shown["test"] and not shown["val"] & (shown["train"] | shown["test"])
    assert shown == {name: {one[i] for i in part} for name, part in single.items()}
    assert {one[i] // PER_CLASS for i in single["test"]} == set(range(40))


def test_designs_order_the_pictures():
    block, random = (np.concatenate([p.image for p in presentations(320, d, 0)]) // 8 for d in ("block", "random"))
    assert (np.diff(block) >= 0).all() and (np.diff(random) == 0).mean() < 0.1


def named(design: str, signal: float, drift: float, features=None) -> float:
    """Share of test trials that LDA names in a small experiment of that truth."""
    content = simulate_experiment([4], PER_CLASS, design, signal, drift)
    eeg = np.stack([t["eeg"][:, 20:460].numpy() for t in content["dataset"]])
    label = np.array([t["label"] for t in content["dataset"]])
    part = split_by_image([t["image"] for t in content["dataset"]], PER_CLASS, seed=0)
    train, test = part["train"], part["val"] + part["test"]
    more = (features,) if features else ()
    return (lda_probabilities(eeg[train], label[train], eeg[test], 40, *more).argmax(1) == label[test]).mean()


def test_the_truths_are_what_they_were_made_to_be():
    assert named("random", 2.0, 1.0) > 0.5  # signal can be read
    assert named("block", 0.0, 1.0, log_power) > 0.5  # drift names the class in blocks
    assert named("random", 0.0, 1.0, log_power) < 0.15  # and not in random order
    assert named("block", 0.0, 0.0, log_power) < 0.15  # nor without drift


def test_an_unlabelled_recording_is_standardised_and_reproducible():
    a, b = (unlabelled_recording(0, 103, 32, 250.0, 8.0, "5_95") for _ in range(2))
    assert a.shape[0] == 32 and a.shape[1] >= 2000 and np.array_equal(a, b)
    np.testing.assert_allclose(a.std(1), 1, rtol=1e-3)
    assert not np.array_equal(a, unlabelled_recording(0, 104, 32, 250.0, 8.0, "5_95"))
    assert np.isfinite(standardise(a)).all()


def test_the_command_writes_what_the_stages_read_and_repeats_nothing(tmp_path, monkeypatch, capsys):
    def run(*arguments: str) -> str:
        words = ["simulate_eeg.py", f"out={tmp_path}", "images_a_class=4", "corpus_minutes=0.1", *arguments]
        monkeypatch.setattr(sys, "argv", words)
        simulate_eeg.main()
        return capsys.readouterr().out

    assert "SIMULATED" in run()
    parts = open_trials(tmp_path / "eeg_5_95_std.pth", tmp_path / "block_splits_by_image_single.pth")
    assert parts["train"].eeg.shape[1:] == (128, 512)
    manifest = json.loads((tmp_path / "eeg_5_95_std.json").read_text())
    assert [manifest[key] for key in ("simulated", "design", "band")] == [True, "random", "5_95"]
    assert manifest["settings"]["seed"] == 0 and parts["train"].info["simulated"] is True
    assert (tmp_path / "imageNet_images" / parts["val"].names[0].split("_")[0]).is_dir()
    assert EEGWindows(tmp_path / "eeg_train").held_out_windows(4).shape[1:] == (128, 512)
    assert json.loads((tmp_path / "eeg_train" / "manifest.json").read_text())["simulated"] is True

    assert "nothing to do" in run("check=true")
    with pytest.raises(UserError, match="other signal.*overwrite"):
        run("signal=0")
    with pytest.raises(UserError, match="design=blocks"):
        run("design=blocks")
    (tmp_path / "eeg_5_95_std.json").unlink()  # now it could be anyone's data
    with pytest.raises(UserError, match="not made by this command"):
        run("overwrite=true")
