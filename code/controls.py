"""Control inputs for stage C: EEG that cannot tell what the person saw, made before any feature is taken.

Shapes: N trials, C electrodes, T time points.
"""

import torch
from torch import Tensor

from runtime import draws
from runtime.errors import UserError


def gaussian_eeg(eeg: Tensor, seed: int) -> Tensor:
    """White Gaussian EEG with each electrode's mean and standard deviation over all trials and samples.

    The two figures are of the whole set, not of the trial: a trial's own amplitude may well depend on what it shows.

    Args:
        eeg: (N, C, T).

    Returns:
        (N, C, T) float32; trial i depends only on the seed, i and the set's figures.
    """
    noise = torch.stack([draws.randn(eeg.shape[1:], seed, "gaussian_eeg", i) for i in range(len(eeg))])
    mean, std = eeg.double().mean((0, 2)), eeg.double().std((0, 2), correction=0)
    return noise * std[:, None].float() + mean[:, None].float()


def other_trial(group: Tensor, seed: int) -> Tensor:
    """For each trial another one to borrow the EEG of, from another group: a permutation, so each is lent once.

    Trials are laid on a circle, groups in random order and whole, and everyone borrows from as many places ahead as
    the largest group has members, hence never from within the own group. With groups of one this is a uniformly
    random single cycle, so no trial keeps its own.

    Args:
        group: (N,) int64, equal where two trials showed the same picture (another subject's trial of it is no control).

    Returns:
        (N,) int64 positions.

    Raises:
        UserError: one group holds more than half of the trials.
    """
    _, number, sizes = torch.unique(group, return_inverse=True, return_counts=True)
    largest = int(sizes.max())
    if 2 * largest > len(group):
        raise UserError(
            f"the control of other trials' EEG needs trials of other pictures, but {largest} of the {len(group)} test "
            "trials show the same one: test on more pictures or set controls=none"
        )
    place = draws.permutation(len(sizes), seed, "other_trials_eeg", 0)[number] * len(group)
    place += draws.permutation(len(group), seed, "other_trials_eeg", 1)
    circle = place.argsort()
    source = torch.empty_like(circle)
    source[circle] = circle.roll(-largest)
    return source


def other_trials_eeg(eeg: Tensor, group: Tensor, seed: int) -> Tensor:
    """The same recordings (N, C, T), handed to the wrong trials (see `other_trial`)."""
    return eeg[other_trial(group, seed)]


def make_controls(kind: str, eeg: Tensor, group: Tensor, seed: int) -> dict[str, Tensor]:
    """Control name -> EEG (N, C, T) for `kind` "none" or "basic"."""
    if kind == "none":
        return {}
    return {"gaussian_eeg": gaussian_eeg(eeg, seed), "other_trials_eeg": other_trials_eeg(eeg, group, seed)}
