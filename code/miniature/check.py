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


def _accuracy(logits: Tensor, labels: Tensor) -> float:
    return (logits.argmax(1) == labels).float().mean().item()


def _spread(features: Tensor, labels: Tensor) -> float:
    """Root mean squared distance of features (N, F) from their class mean."""
    squares = []
    for label in labels.unique():
        own = features[labels == label]
        squares.append((own - own.mean(0)).square().sum(1) * len(own) / (len(own) - 1))
    return torch.cat(squares).mean().sqrt().item()


@torch.inference_mode()
def check_vae(vae: nn.Module, classifier: nn.Module, pictures: Pictures) -> tuple[dict, Tensor]:
    """Mean peak signal-to-noise ratio (dB) and share rightly classified of the reconstructions; and these."""
    images = pictures.images(torch.arange(len(pictures)))
    back = torch.cat([vae.decode(vae.encode(x).mean).clamp(-1, 1) for x in images.split(100)])
    psnr = -10 * ((back - images) / 2).square().mean((1, 2, 3)).log10().mean().item()
    logits, _ = classify(classifier, back)
    return {"vae_psnr_db": psnr, "vae_classified": _accuracy(logits, pictures.labels)}, back


def check_captions(
    generate: Callable[[list[str], list[int]], Tensor], classifier: nn.Module, pictures: Pictures, per_class: int = 5
) -> tuple[dict, Tensor]:
    """Pictures made from the plain captions: share first-ranked as their class, spread in a class against real ones.

    `generate(captions, seeds)` gives (n, 3, S, S) in [-1, 1]; it is called with one caption of each class at a time.
    """
    start, kinds = time.time(), len(pictures.names)
    made = torch.cat(
        [generate(pictures.class_captions(), [k * per_class + i for k in range(kinds)]) for i in range(per_class)]
    )
    seconds = (time.time() - start) / len(made) * 100
    labels = torch.arange(kinds).repeat(per_class)
    logits, features = classify(classifier, made)
    _, real = classify(classifier, pictures.images(torch.arange(len(pictures))))
    figures = {
        "captions_first_ranked": _accuracy(logits, labels),
        "captions_spread": _spread(features, labels) / _spread(real, pictures.labels),
        "seconds_for_100_pictures": seconds,
    }
    return figures, made


def check_classifier(classifier: nn.Module, pictures: Pictures) -> dict:
    """Share of unseen pictures classified rightly."""
    logits, _ = classify(classifier, pictures.images(torch.arange(len(pictures))))
    return {"classifier_accuracy": _accuracy(logits, pictures.labels)}


def shortfalls(figures: dict) -> list[str]:
    """The floors that are not reached, in words."""
    missed = []
    for name, floor in FLOORS.items():
        worse = figures[name] > floor if name.startswith("seconds") else figures[name] < floor
        if worse:
            missed.append(f"{name} is {figures[name]:.3f}, asked: {floor}")
    return missed
