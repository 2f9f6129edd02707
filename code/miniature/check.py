"""How good a set of miniature models is, on pictures that none of them was trained on."""

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from miniature.classifier import classify
from miniature.training import Pictures

# The least each figure may be (seconds: the most) for the committed models.
FLOORS = {
    "classifier_accuracy": 0.98,
    "vae_psnr_db": 24.5,
    "vae_classified": 0.95,
    "captions_first_ranked": 0.85,
    "captions_spread": 0.5,
    "seconds_for_100_pictures": 10.0,
}


def first_ranked(judge: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of pictures (N, 3, S, S) whose first-ranked class is that of `labels` (N,)."""
    return (classify(judge, images)[0].argmax(1) == labels).float().mean().item()


def _spread(features: Tensor, labels: Tensor) -> float:
    """Root mean squared distance of features (N, F) from their class mean."""
    classes = [features[labels == label] for label in labels.unique()]
    return torch.cat([own.var(0).sum().expand(len(own)) for own in classes]).mean().sqrt().item()


@torch.inference_mode()
def check_vae(vae: nn.Module, judge: nn.Module, pictures: Pictures) -> tuple[dict, Tensor]:
    """Mean peak signal-to-noise ratio (dB) and share rightly classified of the reconstructions; and these."""
    images = pictures.images()
    back = torch.cat([vae.decode(vae.encode(x).mean).clamp(-1, 1) for x in images.split(100)])
    psnr = -10 * ((back - images) / 2).square().mean((1, 2, 3)).log10().mean().item()
    return {"vae_psnr_db": psnr, "vae_classified": first_ranked(judge, back, pictures.labels)}, back


def check_captions(
    generate: Callable[[list[str], list[int]], Tensor], judge: nn.Module, pictures: Pictures, per_class: int
) -> tuple[dict, Tensor]:
    """Pictures made from the plain captions: share first-ranked as their class, spread in a class against real ones.

    `generate(captions, seeds)` gives (n, 3, S, S) in [-1, 1]; it is called with one caption of each class at a time.
    """
    start, captions = time.time(), pictures.class_captions()
    seeds = torch.arange(len(captions) * per_class).view(-1, per_class).T.tolist()
    made = torch.cat([generate(captions, own) for own in seeds])
    seconds = (time.time() - start) / len(made) * 100
    labels = torch.arange(len(captions)).repeat(per_class)
    features, real = (classify(judge, images)[1] for images in (made, pictures.images()))
    return {
        "captions_first_ranked": first_ranked(judge, made, labels),
        "captions_spread": _spread(features, labels) / _spread(real, pictures.labels),
        "seconds_for_100_pictures": seconds,
    }, made


def shortfalls(figures: dict) -> list[str]:
    """The floors that are not reached, in words."""

    def missed(name: str, floor: float) -> bool:
        return figures[name] > floor if name.startswith("seconds") else figures[name] < floor

    return [f"{name} is {figures[name]:.3f}, asked: {floor}" for name, floor in FLOORS.items() if missed(name, floor)]
