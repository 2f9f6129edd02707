"""How alike two pictures are: every picture of one set against every picture of another, in one go.

Shapes: N and M pictures of H x W pixels in 3 channels, uint8.
"""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import torch

from evaluation.folder import Outcome, Truth
from runtime.errors import UserError


def _moments(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, ...]:
    """Sums over all but the first axis of a, b, a^2, b^2 (N,) or (M,), and of a b (N, M). Exact for uint8."""
    a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
    if a.shape[1] != b.shape[1]:
        raise UserError(f"items of different sizes cannot be compared: {a.shape[1]} and {b.shape[1]} numbers each")
    sums = [np.zeros(len(a)), np.zeros(len(b)), np.zeros(len(a)), np.zeros(len(b)), np.zeros((len(a), len(b)))]
    for start in range(0, a.shape[1], 16_384):  # a part at a time: float64 copies of large pictures would not fit
        x, y = (v[:, start : start + 16_384].astype(np.float64) for v in (a, b))
        for total, part in zip(sums, (x.sum(1), y.sum(1), (x * x).sum(1), (y * y).sum(1), x @ y.T), strict=True):
            total += part
    return tuple(sums)


def pixel_mse(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Mean squared difference of every pair, (N, ...) and (M, ...) -> (N, M), in floats.

    The published score subtracts in uint8, which wraps at 256: there 10 and 200 differ by 4 (spec 6.3).
    """
    _, _, aa, bb, ab = _moments(a, b)
    return (aa[:, None] + bb[None] - 2 * ab) / a[0].size


def wrapping_mse(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The published score: uint8 differences and squares that wrap at 256, (N, ...) and (M, ...) -> (N, M).

    Here 10 and 200 differ by 4, and pictures that differ by 16 everywhere by 0 (spec 6.3). Kept to be compared with.
    """
    a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
    return np.stack([np.square(b - row).sum(1, dtype=np.uint32) for row in a]) / a.shape[1]


def pearson(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Correlation of every pair, (N, ...) and (M, ...) -> (N, M). A constant item correlates 0 with all."""
    sa, sb, aa, bb, ab = _moments(a, b)
    n = a[0].size
    covariance = n * ab - np.outer(sa, sb)
    scale = np.sqrt(np.outer(np.maximum(n * aa - sa**2, 0), np.maximum(n * bb - sb**2, 0)))
    return np.divide(covariance, scale, out=np.zeros_like(covariance), where=scale > 0)


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosine of every pair of vectors, (N, D) and (M, D) -> (N, M). A vector of zeros has 0 with all."""
    a, b = (v.astype(np.float64) for v in (a, b))
    a, b = (v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), np.finfo(np.float64).tiny) for v in (a, b))
    return a @ b.T


def _blur(x: torch.Tensor) -> torch.Tensor:
    """(..., H, W) -> (..., H - 10, W - 10): the 11-tap gaussian of sigma 1.5 along both, at every place where it fits.

    As matrix products with a band, a block of places at a time: these beat a convolution.
    """
    *_, height, width = x.shape
    flat = x.reshape(-1, width)
    columns = flat.new_empty(len(flat), width - 10)
    for start, stop, band in _bands(width - 10, x.device):
        torch.mm(flat[:, start : stop + 10], band, out=columns[:, start:stop])
    columns = columns.view(-1, height, width - 10)
    blurred = columns.new_empty(len(columns), height - 10, width - 10)
    for start, stop, band in _bands(height - 10, x.device):
        torch.bmm(band.T.expand(len(columns), -1, -1), columns[:, start : stop + 10], out=blurred[:, start:stop])
    return blurred.view(*x.shape[:-2], height - 10, width - 10)


@lru_cache(maxsize=16)
def _bands(places: int, device: torch.device, size: int = 18) -> list[tuple[int, int, torch.Tensor]]:
    """Blocks (start, stop) of windows, with the matrix (stop - start + 10, stop - start) that applies them."""
    taps, bands = torch.exp(-((torch.arange(11.0) - 5) ** 2) / (2 * 1.5**2)), []
    for start in range(0, places, size):
        n = min(size, places - start)
        band = torch.zeros(n + 10, n)
        for k, tap in enumerate(taps / taps.sum()):
            band.diagonal(-k).copy_(tap.expand(n))
        bands.append((start, start + n, band.to(device)))
    return bands


def ssim(a: np.ndarray, b: np.ndarray, device: str = "cpu") -> np.ndarray:
    """Structural similarity of every pair of uint8 pictures, (N, H, W, 3) and (M, H, W, 3) -> (N, M).

    Wang et al. 2004: gaussian window 11 x 11, sigma 1.5, K = (0.01, 0.03), mean over channels and over the windows
    inside the picture. A few of `b` at a time, so that what is worked on stays in the processor's cache.
    """
    if a.shape[1:] != b.shape[1:] or min(a.shape[1:3]) < 11:
        raise UserError(f"SSIM needs pictures of one size, at least 11 x 11; found {a.shape[1:]} and {b.shape[1:]}")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # thousands of products of a fraction of a millisecond: waking other threads costs more
    try:
        return _all_pairs(a, b, device)
    finally:
        torch.set_num_threads(threads)


def _all_pairs(a: np.ndarray, b: np.ndarray, device: str) -> np.ndarray:
    """As `ssim`."""
    few = max(1, (200_000 if device == "cpu" else 20_000_000) // a[0].size)
    values = np.empty((len(a), len(b)))
    for start in range(0, len(a), 4 * few):
        x = _local(a[start : start + 4 * few], device)
        for column in range(0, len(b), few):
            y = _local(b[column : column + few], device)
            rows = [_similarity(*(v[i] for v in x), *y) for i in range(len(x[0]))]
            values[start : start + 4 * few, column : column + few] = torch.stack(rows).cpu()
    return values


def _local(pictures: np.ndarray, device: str) -> tuple[torch.Tensor, ...]:
    """Pictures (n, 3, H, W) less their channels' means; of every window mean, mean with the channel's, variance."""
    x = torch.from_numpy(pictures).to(device).movedim(-1, 1).float().contiguous()
    # Variances do not change when a channel's mean is taken off, and their float32 rounding gets small
    level = x.mean((2, 3), keepdim=True)
    x -= level
    mean = _blur(x)
    return x, mean, mean + level, _blur(x * x) - mean**2


def _similarity(*parts: torch.Tensor) -> torch.Tensor:
    """(n,) SSIM of a picture with n others, from `_local` of it and of them; in place, for speed."""
    x, mean_x, light_x, variance_x, y, mean_y, light_y, variance_y = parts
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    covariance = _blur(x * y).sub_(mean_x * mean_y)
    value = covariance.mul_(2).add_(c2).mul_((light_x * light_y).mul_(2).add_(c1))
    value.div_((light_y * light_y).add_(light_x * light_x).add_(c1)).div_((variance_x + variance_y).add_(c2))
    return value.mean((1, 2, 3))


def likeness(
    outcome: Outcome, truth: Truth, first: np.ndarray, device: str = "cpu"
) -> Iterator[tuple[str, np.ndarray]]:
    """How alike each picture and each distinct truth are, by one measure at hand after the other: (S, N, U), larger is
    more alike.

    first: (U,) a trial that showed each distinct image.
    """
    measures = {
        "mse": ("pixels", lambda a, b: -pixel_mse(a, b)),
        "mse_wrapping_uint8": ("pixels", lambda a, b: -wrapping_mse(a, b)),
        "pearson": ("pixels", pearson),
        "ssim": ("pixels", lambda a, b: ssim(a, b, device)),
        "features": ("features", pearson),
        "clip": ("clip", cosine),
    }
    yield from ((name, matrix.swapaxes(0, 1)) for name, matrix in outcome.alike.items())
    for name, (field, measure) in measures.items():
        pictures, truths = getattr(outcome, field), getattr(truth, field)
        if pictures is not None and truths is not None:
            yield name, np.stack([measure(sample, truths[first]) for sample in pictures.swapaxes(0, 1)])
