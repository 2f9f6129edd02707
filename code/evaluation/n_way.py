"""The exact N-way score: the true class against others drawn without replacement, in expectation.

Shapes: N trials, K classes, C columns.
"""

from functools import lru_cache
from math import comb

import numpy as np
import torch

from runtime.errors import UserError


@lru_cache(maxsize=64)
def _chance_by_rank(classes: int, n_way: int, top_k: int) -> np.ndarray:
    """(classes + 1,): sums over r < index of P, the chance of a hit when r classes score above the true one.

    P = sum_{j<k} C(r, j) C(K-1-r, n-1-j) / C(K-1, n-1), where j is the number of the n - 1 distractors, drawn
    without replacement, that stand above (spec 6.3). Integers until the division.
    """
    total = comb(classes - 1, n_way - 1)
    ways = [sum(comb(r, j) * comb(classes - 1 - r, n_way - 1 - j) for j in range(top_k)) for r in range(classes)]
    return np.concatenate([[0.0], np.cumsum([w / total for w in ways])])


def expected(scores: np.ndarray, n_way: int, top_k: int = 1, columns: slice | np.ndarray = slice(None)) -> np.ndarray:
    """(N, K) -> (N, C): the expected N-way top-k score of every row, were the true class one of `columns`."""
    running = _chance_by_rank(scores.shape[1], n_way, top_k)[::-1]  # by the number of classes at or below
    classes = np.arange(scores.shape[1])
    out, ordered = np.empty((len(scores), len(classes[columns]))), np.empty(len(classes), scores.dtype)
    for row, values in zip(scores, out, strict=True):
        ordered[:] = row
        ordered.sort()
        wanted = row[columns]
        below, up_to = ordered.searchsorted(wanted, "left"), ordered.searchsorted(wanted, "right")
        values[:] = (running[below] - running[up_to]) / (up_to - below)
    return out


def expected_own(scores: np.ndarray, own: np.ndarray, n_way: int, top_k: int = 1) -> np.ndarray:
    """(N, K), (N,) -> (N,): column own[i] of row i of `expected`, by counting instead of sorting."""
    mine = scores[np.arange(len(own)), own][:, None]
    # sums of bytes are several times faster than sums of booleans; without ties the second need not be taken
    better, tied = (scores > mine).view(np.uint8).sum(1, dtype=np.uint32), scores == mine
    equal = 1 if np.count_nonzero(tied) == len(own) else tied.view(np.uint8).sum(1, dtype=np.uint32)
    running = _chance_by_rank(scores.shape[1], n_way, top_k)
    return (running[better + equal] - running[better]) / equal


def n_way_accuracy(scores, true_class, n_way: int, top_k: int = 1):
    """Expected N-way top-k accuracy: the true class against n_way - 1 others drawn without replacement.

    Exact: the published protocol draws 50 times (spec 6.3), this is its mean over all draws. Ties are broken at
    random, in expectation.

    Args:
        scores: (N, K) array or tensor, larger is more likely; at least 32-bit.
        true_class: (N,) integers in 0..K-1.
        n_way: 1..K classes are compared, the true one included.
        top_k: 1..n_way; a hit is a true class among the top_k of these.

    Returns:
        (N,) float64, in the kind of `scores` (array or tensor).

    Raises:
        UserError: half precision (it makes ties), NaN, wrong shapes, n_way, top_k or class out of range.
    """
    tensor, true_class = torch.as_tensor(scores).detach().cpu(), np.asarray(torch.as_tensor(true_class).cpu())
    if tensor.dtype in (torch.float16, torch.bfloat16):
        raise UserError("scores are in half precision, whose rounding makes ties: compute them in float32")
    if tensor.ndim != 2 or true_class.shape != tensor.shape[:1]:
        shapes = f"{tuple(tensor.shape)} and {true_class.shape}"
        raise UserError(f"expected scores (N, K) and true_class (N,), found {shapes}")
    values, classes = (tensor if tensor.is_floating_point() else tensor.double()).numpy(), tensor.shape[1]
    if values.size and np.isnan(values.max()):
        raise UserError(f"scores hold NaN, first in row {np.isnan(values).any(1).argmax()}: look at that picture")
    check_ways(n_way, top_k, classes)
    if true_class.dtype.kind not in "iu" or ((true_class < 0) | (true_class >= classes)).any():
        raise UserError(f"true_class must hold integers in 0..{classes - 1}, found {np.unique(true_class)[:5]}")
    exact = expected_own(values, true_class, n_way, top_k)
    return torch.from_numpy(exact) if isinstance(scores, torch.Tensor) else exact


def check_ways(n_way: int, top_k: int, classes: int) -> None:
    """Raises UserError where so many cannot be compared."""
    if not 1 <= n_way <= classes:
        raise UserError(f"n_way={n_way}: the classifier has {classes} classes, so 1 to {classes} can be compared")
    if not 1 <= top_k <= n_way:
        raise UserError(f"top_k={top_k}: with n_way={n_way} it must lie in 1 to {n_way}")
