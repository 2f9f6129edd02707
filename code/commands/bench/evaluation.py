"""The rows of `benchmark.py` on scores: 164 trials with 5 pictures each, ours against the straightforward way.

Shapes: N trials, S pictures of a trial, K classes of the classifier, H x H pixels.
"""

import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from commands.bench.sizes import Machine, Row, Size
from evaluation.folder import Outcome, Truth
from evaluation.n_way import n_way_accuracy
from evaluation.scores import item_scores
from evaluation.similarity import pixel_mse
from runtime.errors import UserError
from vision.networks import lpips_vectors

N, S, K, SIDE, WAYS, DRAWS = 164, 5, 1000, 64, 50, 50
SHARE = 5  # pictures of the N S that the loop is timed on, all their pairs with the N truths


class MadeUp(NamedTuple):
    """Pictures half way between a truth and noise, and logits that lean towards the true class."""

    outcome: Outcome
    truth: Truth


def made_up(seed: int = 0) -> MadeUp:
    """Always the same for a seed."""
    g = np.random.default_rng(seed)
    shown = g.integers(0, 256, (N, SIDE, SIDE, 3), dtype=np.uint8)
    noise = g.integers(0, 256, (N, S, SIDE, SIDE, 3), dtype=np.uint8)
    label = g.integers(0, K, N)
    logits = g.standard_normal((N, S, K)).astype(np.float32)
    logits[np.arange(N), :, label] += 1
    pixels = (shown[:, None] // 2 + noise // 2).astype(np.uint8)
    truth = Truth(label, label, np.array([f"{i:03}" for i in range(N)]), np.eye(K)[label], shown)
    return MadeUp(Outcome(logits=logits, pixels=pixels), truth)


@lru_cache(maxsize=1)
def lpips_networks() -> tuple[Callable[[torch.Tensor], torch.Tensor], torch.nn.Module]:
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
def our_scores(data: MadeUp) -> dict:
    """Our whole evaluation: features of every picture once, then all scores of all pairs."""
    vectors, _ = lpips_networks()
    made, shown = (torch.from_numpy(v) for v in (data.outcome.pixels, data.truth.pixels))
    a, b = (torch.cat([vectors(some) for some in v.split(32)]).numpy() for v in (made.flatten(0, 1), shown))
    alike = {"lpips": -pixel_mse(a, b).reshape(N, S, N)}
    return item_scores(data.outcome._replace(alike=alike), data.truth, WAYS)


@torch.inference_mode()
def by_pairs(data: MadeUp, pictures: int = SHARE) -> dict[str, np.ndarray]:
    """Two-way scores (pictures,) of the first pictures: every pair by itself through torchmetrics."""
    from torchmetrics.functional import mean_squared_error, pearson_corrcoef
    from torchmetrics.functional.image import structural_similarity_index_measure

    def ssim(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        # the places where windows fit; its own mean takes in a margin of mirrored pixels
        _, places = structural_similarity_index_measure(a[None], b[None], data_range=255.0, return_full_image=True)
        return places[..., 5:-5, 5:-5].mean()

    perceptual = lpips_networks()[1]
    shown = torch.from_numpy(data.truth.pixels).movedim(-1, 1).float().contiguous()
    made = torch.from_numpy(data.outcome.pixels).flatten(0, 1).movedim(-1, 1).float()[:pictures].contiguous()
    measures = {
        "two_way_mse": lambda a, b: -mean_squared_error(a, b),
        "two_way_pearson": lambda a, b: pearson_corrcoef(a.flatten(), b.flatten()),
        "two_way_ssim": ssim,
        "two_way_lpips": lambda a, b: -perceptual(a[None] / 127.5 - 1, b[None] / 127.5 - 1),
    }
    found = {name: np.zeros(len(made)) for name in measures}
    for p, picture in enumerate(made):
        own = p // S
        for name, measure in measures.items():
            alike = np.array([float(measure(picture, truth)) for truth in shown])
            others = np.delete(alike, own)
            found[name][p] = ((alike[own] > others) + (alike[own] == others) / 2).mean()
    return found


def by_draws(data: MadeUp, pictures: int = N * S) -> np.ndarray:
    """50-way top-1 scores (pictures,): the mean of 50 random draws of 49 other classes for each picture."""
    g, found = np.random.default_rng(0), np.zeros(pictures)
    for p in range(pictures):
        row, own = data.outcome.logits[p // S, p % S], data.truth.class_index[p // S]
        others = np.delete(np.arange(K), own)
        found[p] = np.mean([row[own] > row[g.choice(others, WAYS - 1, replace=False)].max() for _ in range(DRAWS)])
    return found


def check(data: MadeUp) -> None:
    """Raises UserError where ours and the straightforward way disagree: draws by more than 5 standard errors."""
    ours = our_scores(data)
    few = 2 * S
    for name, values in by_pairs(data, few).items():
        # one pair in a hundred thousand may change its order by rounding
        if not np.allclose(ours[name].samples.T.ravel()[:few], values, atol=1e-9 if name != "two_way_lpips" else 0.01):
            raise UserError(f"{name}: our values and those of the loop over pairs differ; do not trust this benchmark")
    exact, drawn = ours[f"{WAYS}_way_top1"].samples.T.ravel(), by_draws(data)
    error = np.sqrt((exact * (1 - exact) / DRAWS).sum()) / len(exact)
    if abs(drawn.mean() - exact.mean()) > 5 * error:
        raise UserError(f"{WAYS}-way: {DRAWS} draws give {drawn.mean():.4f}, exact {exact.mean():.4f}")


def evaluation(size: Size, machine: Machine) -> Row:
    """Two-way by MSE, Pearson, SSIM and LPIPS, 50-way top-1, of 164 x 5 pictures; loops are timed on a part of them."""
    data = made_up()
    check(data)

    def loops() -> None:
        by_pairs(data)
        by_draws(data, SHARE)

    name = "torchmetrics by pair, 50 draws"
    return Row(lambda: our_scores(data), {name: loops}, {"ours": N * S, name: SHARE}, "picture")


def n_way(size: Size, machine: Machine) -> Row:
    """50-way top-1 of 164 x 5 pictures over 1000 classes, against 50 random draws a picture.

    Each draw judged by torchmetrics, as the published recipe judges it (timed on a tenth of the pictures), or by numpy.
    """
    from torchmetrics.functional import accuracy

    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(820, 1000, generator=generator)
    truth = torch.randint(0, 1000, (820,), generator=generator)
    others, first = np.random.default_rng(0), torch.tensor([0])

    def draws(pictures: int, hit: Callable[[np.ndarray], float]) -> float:
        table, hits = scores.numpy(), []
        for row, c in zip(table[:pictures], truth[:pictures].tolist(), strict=True):
            rest = np.delete(row, c)
            hits += [hit(np.append(row[c], others.choice(rest, 49, replace=False))) for _ in range(50)]
        return float(np.mean(hits))

    def judged(drawn: np.ndarray) -> float:
        return float(accuracy(torch.from_numpy(drawn)[None], first, task="multiclass", num_classes=50, top_k=1))

    peers = {
        "50 draws, torchmetrics": lambda: draws(82, judged),
        "50 draws, numpy": lambda: draws(820, lambda drawn: drawn[0] > drawn[1:].max()),
    }
    per = {"ours": 820, "50 draws, torchmetrics": 82, "50 draws, numpy": 820}
    return Row(lambda: n_way_accuracy(scores, truth, 50), peers, per, "picture")
