"""Controls keep the statistics they promise and nothing that belongs to the trial."""

import pytest
import torch

import controls
from runtime.errors import UserError


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


def test_kinds():
    eeg, group = torch.randn(4, 2, 30), torch.arange(4)
    assert controls.make_controls("none", eeg, group, 0) == {}
    made = controls.make_controls("basic", eeg, group, 0)
    assert list(made) == ["gaussian_eeg", "other_trials_eeg"]
    assert all(x.shape == eeg.shape for x in made.values())
