"""The miniature picture classifier: a tiny timm network, trained so that it stays sane on slightly wrong pictures."""

import json
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from miniature.training import Pictures, train
from runtime import draws

ARCHITECTURE = "test_byobnet"  # 0.24 M parameters, features 256 wide, at 32 to 2 pixels


def build(num_classes: int) -> nn.Module:
    """The untrained network; it takes pictures in [-1, 1]."""
    return timm.create_model(ARCHITECTURE, num_classes=num_classes)


def degraded(images: Tensor, seed: int, step: int) -> Tensor:
    """Pictures (n, 3, S, S) in [-1, 1] as a generative model may return them: blurred, noisy, of other brightness."""
    n = len(images)
    u = draws.rand((6, n, 1, 1, 1), seed, "degrade", step)
    coarse = F.interpolate(F.avg_pool2d(images, 2), scale_factor=2.0, mode="bilinear")
    images = torch.lerp(images, coarse, 1.2 * u[0] * (u[1] < 0.6))
    images = images * (0.85 + 0.3 * u[2]) + 0.2 * (u[3] - 0.5)
    noise = draws.randn(images.shape, seed, "degrade noise", step)
    return (images + 0.12 * u[4] * (u[5] < 0.5) * noise).clamp(-1, 1)


def train_classifier(model: nn.Module, folder: Path, pictures: Pictures, steps: int, seed: int) -> dict:
    """Cross-entropy with label smoothing on degraded pictures, shifted by up to 4 pixels; returns `train`'s figures.

    `config.json` and `model.safetensors` (fp16), which vision/classifier.py reads, go to `folder`.
    """

    def loss_of(step: int, index: Tensor) -> Tensor:
        images = degraded(pictures.images(index), seed, step)
        dx, dy = draws.randint(-4, 5, (2,), seed, "shift", step).tolist()
        logits = model(images.roll((dy, dx), (2, 3)))
        return F.cross_entropy(logits.float(), pictures.labels[index], label_smoothing=0.05)

    figures = train("classifier", model, loss_of, len(pictures), 64, 4e-3, steps, seed)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(model.half().state_dict(), folder / "model.safetensors")
    config = {"architecture": ARCHITECTURE, "num_classes": len(pictures.names), "img_size": pictures.pixels.shape[-1]}
    config |= {"mean": [0.5] * 3, "std": [0.5] * 3, "classes": pictures.wnids, "names": pictures.names}
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    return figures


@torch.inference_mode()
def classify(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """(N, 3, S, S) in [-1, 1] -> logits (N, K) and penultimate features (N, F)."""
    features = [model.forward_head(model.forward_features(x), pre_logits=True) for x in images.split(250)]
    return torch.cat([model.get_classifier()(x) for x in features]), torch.cat(features)


def stages(model: nn.Module, images: Tensor) -> list[Tensor]:
    """Feature maps (N, c, h, w) at a half, a quarter and an eighth of the side, for a perceptual loss."""
    return model.forward_intermediates(images, indices=[0, 1, 2], intermediates_only=True, stop_early=True)


def load_classifier(folder: Path) -> nn.Module:
    """The network that `train_classifier` wrote, frozen."""
    model = build(json.loads((folder / "config.json").read_text())["num_classes"])
    model.load_state_dict(load_file(folder / "model.safetensors"))  # which turns fp16 into the model's fp32
    return model.eval().requires_grad_(False)
