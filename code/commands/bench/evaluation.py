"""The rows of `benchmark.py` on scores: 164 trials with 5 pictures each, ours against the straightforward way.

Shapes: N trials, S pictures of a trial, K classes of the classifier, H x W pixels.
"""

import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from commands.bench.sizes import Machine, Row, Size
from evaluation.folder import Outcome, Truth
from evaluation.n_way import n_way_accuracy
from evaluation.scores import item_scores
from evaluation.similarity import pixel_mse
from vision.networks import lpips_vectors

N, S, K, SIDE, WAYS, DRAWS = 164, 5, 1000, 64, 50, 50
SHARE = 5  # pictures of the N S that the loop is timed on, all their pairs with the N truths


def made_up() -> tuple[Outcome, Truth]:
    """Pictures half way between a truth and noise, and logits that lean towards the true class; always the same."""
    g = np.random.default_rng(0)
    truths = g.integers(0, 256, (N, SIDE, SIDE, 3), dtype=np.uint8)
    noise = g.integers(0, 256, (N, S, SIDE, SIDE, 3), dtype=np.uint8)
    label = g.integers(0, K, N)
    logits = g.standard_normal((N, S, K)).astype(np.float32)
    logits[np.arange(N), :, label] += 1
    pixels = (truths[:, None] // 2 + noise // 2).astype(np.uint8)
    truth = Truth(label, label, np.array([f"{i:03}" for i in range(N)]), np.eye(K)[label], truths)
    return Outcome(logits=logits, pixels=pixels), truth


@lru_cache(maxsize=1)
def lpips_networks() -> tuple[Callable[[Tensor], Tensor], torch.nn.Module]:
    """Our LPIPS, pictures (n, H, W, 3) uint8 -> vectors, and torchmetrics' network; an AlexNet of random weights."""
    from torchmetrics.functional.image.lpips import _LPIPS

    torch.manual_seed(0)
    theirs = _LPIPS(net="alex", pnet_rand=True).eval()
    slices = [getattr(theirs.net, f"slice{k}") for k in range(1, 6)]
    state = {f"features.{name}": value for part in slices for name, value in part.state_dict().items()}
    with tempfile.TemporaryDirectory() as folder:
        torch.save(state, Path(folder) / "alexnet.pth")
        see = lpips_vectors(Path(folder) / "alexnet.pth", "cpu")
    return (lambda pictures: see(pictures)["lpips"]), theirs


@torch.inference_mode()
def our_scores(outcome: Outcome, truth: Truth) -> dict:
    """Our whole evaluation: features of every picture once, then all scores of all pairs."""
    vectors, _ = lpips_networks()
    pictures, truths = torch.from_numpy(outcome.pixels).flatten(0, 1), torch.from_numpy(truth.pixels)
    a, b = (torch.cat([vectors(some) for some in v.split(32)]).numpy() for v in (pictures, truths))
    alike = {"lpips": -pixel_mse(a, b).reshape(N, S, N)}
    return item_scores(outcome._replace(alike=alike), truth, WAYS)


@torch.inference_mode()
def by_pairs(outcome: Outcome, truth: Truth, n_pictures: int = SHARE) -> dict[str, np.ndarray]:
    """Two-way scores (n_pictures,) of the first pictures: every pair by itself through torchmetrics."""
    from torchmetrics.functional import mean_squared_error, pearson_corrcoef
    from torchmetrics.functional.image import structural_similarity_index_measure

    def ssim(a: Tensor, b: Tensor) -> Tensor:
        # the places where windows fit; its own mean takes in a margin of mirrored pixels
        _, everywhere = structural_similarity_index_measure(a[None], b[None], data_range=255.0, return_full_image=True)
        return everywhere[..., 5:-5, 5:-5].mean()

    perceptual = lpips_networks()[1]
    truths = torch.from_numpy(truth.pixels).movedim(-1, 1).float().contiguous()
    pictures = torch.from_numpy(outcome.pixels).flatten(0, 1)[:n_pictures].movedim(-1, 1).float().contiguous()
    measures = {
        "two_way_mse": lambda a, b: -mean_squared_error(a, b),
        "two_way_pearson": lambda a, b: pearson_corrcoef(a.flatten(), b.flatten()),
        "two_way_ssim": ssim,
        "two_way_lpips": lambda a, b: -perceptual(a[None] / 127.5 - 1, b[None] / 127.5 - 1),
    }
    scores = {name: np.zeros(n_pictures) for name in measures}
    for p, picture in enumerate(pictures):
        for name, measure in measures.items():
            alike = np.array([float(measure(picture, other)) for other in truths])
            own, others = alike[p // S], np.delete(alike, p // S)
            scores[name][p] = ((own > others) + (own == others) / 2).mean()
    return scores


def best(drawn: np.ndarray) -> float:
    """Whether the first of the scores (WAYS,) is above all others."""
    return float(drawn[0] > drawn[1:].max())


def by_draws(outcome: Outcome, truth: Truth, n_pictures: int = N * S, hit: Callable = best) -> np.ndarray:
    """50-way top-1 scores (n_pictures,): the mean of 50 random draws of 49 other classes for each picture."""
    g = np.random.default_rng(0)
    logits, label = outcome.logits.reshape(N * S, K), np.repeat(truth.class_index, S)
    scores = np.zeros(n_pictures)
    for p, (row, own) in enumerate(zip(logits[:n_pictures], label[:n_pictures], strict=True)):
        others = np.delete(row, own)
        hits = [hit(np.append(row[own], g.choice(others, WAYS - 1, replace=False))) for _ in range(DRAWS)]
        scores[p] = np.mean(hits)
    return scores


def check(outcome: Outcome, truth: Truth) -> None:
    """Refuse to time ours and the straightforward way where they disagree: draws by more than 5 standard errors."""
    ours, few = our_scores(outcome, truth), 2 * S
    for name, values in by_pairs(outcome, truth, few).items():
        # one pair in a hundred thousand may change its order by rounding
        limit = 0.01 if name == "two_way_lpips" else 1e-9
        assert np.allclose(ours[name].samples.T.ravel()[:few], values, atol=limit), f"{name} differs from the loop's"
    exact, drawn = ours[f"{WAYS}_way_top1"].samples.T.ravel(), by_draws(outcome, truth)
    error = np.sqrt((exact * (1 - exact) / DRAWS).sum()) / len(exact)
    assert abs(drawn.mean() - exact.mean()) < 5 * error, f"draws give {drawn.mean():.4f}, exact {exact.mean():.4f}"


def evaluation(size: Size, machine: Machine) -> Row:
    """Two-way by MSE, Pearson, SSIM and LPIPS, 50-way top-1, of 164 x 5 pictures; loops are timed on a part of them."""
    data, name = made_up(), "torchmetrics by pair, 50 draws"
    check(*data)
    loops = {name: lambda: (by_pairs(*data), by_draws(*data, SHARE))}
    return Row(lambda: our_scores(*data), loops, {"ours": N * S, name: SHARE}, "picture")


def n_way(size: Size, machine: Machine) -> Row:
    """50-way top-1 of 164 x 5 pictures over 1000 classes, against 50 random draws a picture.

    Each draw judged by torchmetrics, as the published recipe judges it (timed on a tenth of the pictures), or by numpy.
    """
    from torchmetrics.functional import accuracy

    data, first, tenth = made_up(), torch.tensor([0]), N * S // 10
    scores, label = torch.from_numpy(data[0].logits).flatten(0, 1), torch.from_numpy(np.repeat(data[1].class_index, S))

    def judged(drawn: np.ndarray) -> float:
        return float(accuracy(torch.from_numpy(drawn)[None], first, task="multiclass", num_classes=WAYS, top_k=1))

    slow, quick = f"{DRAWS} draws, torchmetrics", f"{DRAWS} draws, numpy"
    peers = {slow: lambda: by_draws(*data, tenth, judged), quick: lambda: by_draws(*data)}
    per = {"ours": N * S, slow: tenth, quick: N * S}
    return Row(lambda: n_way_accuracy(scores, label, WAYS), peers, per, "picture")
