"""Controls keep the statistics they promise and nothing that belongs to the trial."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from test_stage_c import run, write_world

from dc_ldm.ceilings import ceilings
from evaluation import controls
from runtime.errors import UserError
from runtime.pictures import read_pictures
from runtime.sampling import Sampling
from runtime.system import Drawing, Shown


def test_gaussian_eeg_matches_each_channel_and_no_trial():
    scale = torch.tensor([1.0, 5.0, 0.1])[:, None]
    shift = torch.tensor([0.0, -3.0, 2.0])[:, None]
    eeg = torch.randn(40, 3, 500, generator=torch.Generator().manual_seed(0)) * scale + shift
    eeg[0] *= 100  # one loud trial, which the control of trial 0 must not betray
    made = controls.gaussian_eeg(eeg, seed=1)
    assert torch.allclose(made.mean((0, 2)), eeg.mean((0, 2)), atol=0.05 * eeg.std())
    assert torch.allclose(made.std((0, 2)), eeg.std((0, 2)), rtol=0.05)
    assert 0.8 < made[0].std() / made[1].std() < 1.25


def test_gaussian_eeg_is_seeded_per_trial():
    eeg = torch.randn(6, 2, 50)
    assert torch.equal(controls.gaussian_eeg(eeg, 3), controls.gaussian_eeg(eeg, 3))
    assert not torch.equal(controls.gaussian_eeg(eeg, 3), controls.gaussian_eeg(eeg, 4))
    made = controls.gaussian_eeg(eeg, 3)
    assert not torch.allclose(made[0], made[1])


@pytest.mark.parametrize("n", [2, 3, 17, 160])
def test_no_trial_keeps_its_own_and_each_is_lent_once(n):
    for seed in range(20):
        source = controls.other_trial(torch.arange(n), seed)
        assert sorted(source.tolist()) == list(range(n))
        assert not (source == torch.arange(n)).any()


def test_other_subjects_trials_of_the_same_picture_are_no_control():
    group = torch.tensor([7, 7, 7, 2, 2, 9, 7, 2, 1, 1])
    for seed in range(50):
        source = controls.other_trial(group, seed)
        assert sorted(source.tolist()) == list(range(10))
        assert (group[source] != group).all()


def test_every_exchange_can_happen():
    seen = {(i, int(s)) for seed in range(200) for i, s in enumerate(controls.other_trial(torch.arange(4), seed))}
    assert len(seen) == 12


def test_too_few_pictures_is_one_sentence():
    with pytest.raises(UserError, match="2 of the 3 test trials"):
        controls.other_trial(torch.tensor([5, 5, 1]), 0)


def test_random_phases_keep_spectra_and_cross_spectra():
    eeg = torch.randn(6, 3, 101, generator=torch.Generator().manual_seed(0))
    eeg[:, 2] = eeg[:, 0] - 0.5 * eeg[:, 1].roll(3, -1) + 4
    for length in (101, 100):
        one = eeg[..., :length]
        made = controls.phase_randomised_eeg(one, 3)
        before, after = (torch.fft.rfft(x.double()) for x in (one, made))
        cross = [x[:, :, None] * x[:, None].conj() for x in (before, after)]
        assert torch.allclose(*cross, atol=1e-3 * cross[0].abs().max())
        assert torch.allclose(made.mean(-1), one.mean(-1), atol=1e-5)
        correlation = [torch.corrcoef(torch.stack([one[i, 0], made[i, 0]]))[0, 1].abs() for i in range(6)]
        assert max(correlation) < 0.6


def test_borrowers_stay_in_or_leave_their_class():
    label, shown = torch.tensor([0, 0, 0, 1, 1, 2, 2]), torch.tensor([0, 0, 1, 2, 3, 4, 5])
    same, seen = label[:, None] == label, shown[:, None] == shown
    lent = set()
    for seed in range(40):
        inside, outside = (controls.another(a, seed, "x") for a in (same & ~seen, ~same))
        assert (label[inside] == label).all() and (shown[inside] != shown).all()
        assert (label[outside] != label).all()
        lent |= set(outside.tolist())
    assert lent == set(range(7))
    assert controls.another(same[:4, :4] & ~torch.eye(4, dtype=torch.bool), 0, "x") is None  # the fourth is alone


def test_kinds():
    eeg, label = torch.randn(4, 2, 30), torch.tensor([0, 0, 1, 1])
    made = controls.make_controls("basic", eeg, torch.arange(4), label, 0)
    assert list(made) == ["gaussian_eeg", "other_trials_eeg"]
    more = controls.make_controls("all", eeg, torch.arange(4), label, 0)
    assert list(more) == [*made, "phase_randomised_eeg", "same_class_eeg", "other_class_eeg"]
    assert all(x.shape == eeg.shape for x in more.values()) and torch.equal(made["gaussian_eeg"], more["gaussian_eeg"])
    assert torch.equal(more["same_class_eeg"], eeg[[1, 0, 3, 2]])
    alone = controls.make_controls("all", eeg, torch.arange(4), torch.tensor([0, 0, 0, 1]), 0)
    assert "same_class_eeg" not in alone and "other_class_eeg" in alone


def test_the_cost_counts_every_forward():
    plan = {"a": Drawing(None, None), "b": Drawing(None, None, sampled=False)}
    words = controls.cost(10, 5, plan, Sampling())
    assert "50 pictures from EEG and 20 of 2 controls, 15060 UNet forwards (2510" in words
    assert "2400 UNet forwards" in controls.cost(10, 5, plan, Sampling("ddim", 20, 3.0))


def test_all_controls_go_through_the_same_scores(monkeypatch, capsys, tmp_path):
    """The real command at toy size: what each control's pictures are, and that every one is in metrics and page."""
    world = write_world(tmp_path)
    path = world / "datasets" / "block_splits_by_image_single.pth"
    folder = run(monkeypatch, world, controls="all", num_samples=1)
    assert path.is_file() and "8 pictures from EEG and 96 of 12 controls" in capsys.readouterr().out
    metrics, arrays = json.loads((folder / "metrics.json").read_text()), load_file(folder / "arrays.safetensors")
    pictures = {
        place.name: read_pictures([place / f"test{i}-1.png" for i in range(8)]).float()
        for place in (folder / "controls").iterdir()
    }
    assert set(metrics["controls"]) == {*pictures, "class_prior"} and len(pictures) == 12
    page = (folder / "index.html").read_text()
    for name in pictures:
        assert {"5_way_top1", "two_way_mse", "two_way_clip"} <= set(metrics["controls"][name])
        assert (
            ("retrieval_top1" in metrics["controls"][name]) == name.endswith("_eeg") == (f"{name}.embedding" in arrays)
        )
        assert page.count(f"controls/{name}/test0-1.png") >= 1
    assert (pictures["grey"] == 127).all() and pictures["mean_image"].std(0).max() == 0
    assert pictures["mean_image"].std() > 0 and pictures["zero_condition"].std(0).max() > 0  # seeds differ
    label = np.array([row.split(",")[3] for row in (folder / "trials.csv").read_text().splitlines()[1:]])
    assert metrics["baselines"]["time_only"]["class_accuracy"]["n"] == 8 and len(set(label)) > 1
    assert metrics["run"]["split"]["opened_at"].startswith("20") and "commit" in metrics["run"]
    truth = read_pictures([folder / "samples" / f"test{i}-0.png" for i in range(8)]).float()
    assert (pictures["vae_round_trip"] - truth).abs().mean() > 0 and pictures["vae_round_trip"].shape == truth.shape


def test_training_pictures_that_cannot_be_read_are_named(tmp_path):
    paths = [tmp_path / f"n01_{i}.JPEG" for i in range(3)]
    for path in paths[:2]:
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path)
    assert controls.readable_pictures([*paths[:2], *paths[:2]]) == (paths[:2], [])
    paths[1].write_bytes(paths[1].read_bytes()[:40])
    kept, notes = controls.readable_pictures(paths)
    assert kept == paths[:1] and notes == [
        "The retrieval baseline and mean_image are of the others: 2 of 3 training pictures cannot be read "
        "(n01_1, n01_2)."
    ]
    kept, notes = controls.readable_pictures(paths[1:])
    assert kept == [] and "left out: 2 of 2" in notes[0] and controls.readable_pictures([]) == ([], [])


def test_without_a_training_picture_there_is_no_mean():
    assert list(controls.without_eeg(2, 8, [])) == ["grey"]


def test_a_system_draws_only_the_ceilings_that_it_is_told_enough_for(tmp_path):
    nothing = SimpleNamespace(no_context=torch.zeros(2, 3), from_context=print, text_states=None, base_folder=None)
    shown = Shown(torch.zeros(2, dtype=torch.int64), [tmp_path / "n01_0.JPEG"] * 2, ["house"], torch.zeros(2))
    assert list(ceilings(nothing, shown, Sampling())) == ["zero_condition", "vae_round_trip"]
    assert list(ceilings(nothing, Shown(shown.label), Sampling())) == ["zero_condition"]
