"""How alike two pictures are: every picture of one set against every picture of another, in one go.

Shapes: N and M pictures of H x W pixels in 3 channels, uint8.
"""

import numpy as np
import torch

from eval_folder import Outcome, Truth
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


def _window(length: int, device: str) -> torch.Tensor:
    """(length, length - 10): the 11-tap gaussian of sigma 1.5 at every place where it fits, as a matrix."""
    taps = torch.exp(-((torch.arange(11, device=device) - 5.0) ** 2) / (2 * 1.5**2))
    window = torch.zeros(length, length - 10, device=device)
    for k, tap in enumerate(taps / taps.sum()):
        window.diagonal(-k).copy_(tap.expand(length - 10))
    return window


def ssim(a: np.ndarray, b: np.ndarray, device: str = "cpu") -> np.ndarray:
    """Structural similarity of every pair of uint8 pictures, (N, H, W, 3) and (M, H, W, 3) -> (N, M).

    Wang et al. 2004: gaussian window 11 x 11, sigma 1.5, K = (0.01, 0.03), mean over channels and over the windows
    inside the picture. The window is two matrix products, which beat a convolution at these sizes.
    """
    if a.shape[1:] != b.shape[1:] or min(a.shape[1:3]) < 11:
        raise UserError(f"SSIM needs pictures of one size, at least 11 x 11; found {a.shape[1:]} and {b.shape[1:]}")
    rows, columns = _window(a.shape[1], device).T, _window(a.shape[2], device)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    x, y = (torch.from_numpy(v).to(device).movedim(-1, 1).float() for v in (a, b))
    # Variances do not change when a channel's mean is taken off, and their float32 rounding gets small
    level_x, level_y = (v.mean((2, 3), keepdim=True) for v in (x, y))
    x, y = x - level_x, y - level_y
    mean_y, square_y = rows @ y @ columns, rows @ (y * y) @ columns
    similarity = []
    for picture, level in zip(x, level_x, strict=True):
        mean_x, square_x = rows @ picture @ columns, rows @ (picture * picture) @ columns
        covariance = rows @ (picture * y) @ columns - mean_x * mean_y
        variances = square_x - mean_x**2 + square_y - mean_y**2
        light_x, light_y = mean_x + level, mean_y + level_y
        value = (
            (2 * light_x * light_y + c1) * (2 * covariance + c2) / ((light_x**2 + light_y**2 + c1) * (variances + c2))
        )
        similarity.append(value.mean((1, 2, 3)))
    return torch.stack(similarity).double().cpu().numpy()


def likeness(outcome: Outcome, truth: Truth, first: np.ndarray, device: str = "cpu") -> dict[str, np.ndarray]:
    """How alike each picture and each distinct truth are, by all measures at hand: (S, N, U), larger is more alike.

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
    found = {name: matrix.swapaxes(0, 1) for name, matrix in outcome.alike.items()}
    for name, (field, measure) in measures.items():
        made, shown = getattr(outcome, field), getattr(truth, field)
        if made is not None and shown is not None:
            found[name] = np.stack([measure(made[:, s], shown[first]) for s in range(made.shape[1])])
    return found
