"""What a linear prediction of the masked samples from the visible ones achieves: the bar for pretraining.

Shapes: N windows, C electrodes, T samples, K components, P samples in a token, L = T/P tokens.

For a stationary Gaussian signal the best prediction of all is linear: E[masked | visible] = S_mv S_vv^-1 visible, with
S the covariance of the samples of a window. S is estimated from the training windows as lagged covariances (block
Toeplitz), which takes far fewer windows than a free covariance. With many electrodes the signal is rotated to its
principal components, which are predicted jointly in groups of eight.
"""

import torch
from einops import rearrange
from torch import Tensor

GROUP = 8


def lagged_covariance(x: Tensor) -> Tensor:
    """x (N, K, T), centred -> R (T, K, K) float64 with R[d, i, j] = E[x_i(t + d) x_j(t)].

    The biased estimate, because it is positive.
    """
    n_times = x.shape[-1]
    total = torch.zeros(n_times + 1, x.shape[1], x.shape[1], dtype=torch.complex128)
    for part in x.split(64):
        spectrum = torch.fft.rfft(part.double(), n=2 * n_times)  # (n, K, T + 1)
        total += torch.einsum("nif,njf->fij", spectrum, spectrum.conj())
    lags = torch.fft.irfft(rearrange(total, "f i j -> i j f"), n=2 * n_times)[..., :n_times]
    return rearrange(lags, "i j d -> d i j") / (len(x) * n_times)


def window_covariance(lags: Tensor) -> Tensor:
    """Lagged covariances (T, K, K) -> covariance (K*T, K*T) of a whole window, component-major."""
    n_times = len(lags)
    delay = torch.arange(n_times)[:, None] - torch.arange(n_times)[None, :]  # (T, T) of t - s
    forward = lags[delay.clamp(min=0)]  # (T, T, K, K)
    backward = lags[(-delay).clamp(min=0)].transpose(-1, -2)
    whole = torch.where((delay >= 0)[..., None, None], forward, backward)
    return rearrange(whole, "t s i j -> (i t) (j s)")


def linear_share(train: Tensor, held_out: Tensor, masks: Tensor) -> float:
    """Squared error of the linear prediction of masked samples, as a share of their variance.

    1.0 is what predicting the mean achieves.

    Args:
        train: (N, C, T) windows for the covariance.
        held_out: (M, C, T) windows to predict.
        masks: (J, L) of 0 visible and 1 masked; each mask is applied to all windows.
    """
    mean = train.mean((0, 2), keepdim=True)
    samples = rearrange(train - mean, "n c t -> c (n t)").double()
    values, vectors = torch.linalg.eigh(torch.atleast_2d(torch.cov(samples)))
    keep = values > 1e-6 * values[-1]  # replicated electrodes add no component
    basis = vectors[:, keep].flip(1)  # largest first
    train, held_out = (torch.einsum("nct,ck->nkt", x - mean, basis.float()) for x in (train, held_out))
    error = variance = 0.0
    hidden = masks.bool().repeat_interleave(train.shape[-1] // masks.shape[1], dim=1)  # (J, T)
    for first in range(0, train.shape[1], GROUP):
        some, target = train[:, first : first + GROUP], held_out[:, first : first + GROUP]
        covariance = window_covariance(lagged_covariance(some))
        # a millionth of the variance keeps the solve stable where a filter has emptied part of the spectrum
        covariance.diagonal().add_(1e-6 * covariance.diagonal().mean())
        flat = rearrange(target, "n k t -> (k t) n").double()
        for row in hidden:
            masked = row.repeat(some.shape[1])
            seen = covariance[~masked][:, ~masked]
            predicted = covariance[masked][:, ~masked] @ torch.linalg.solve(seen, flat[~masked])
            error += float((flat[masked] - predicted).square().sum())
            variance += float(flat[masked].square().sum())
    return error / variance
