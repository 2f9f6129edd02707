"""What every training of the miniature world shares: pictures with captions in memory, and one loop."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from miniature import renderer
from runtime import draws
from runtime.loop import Trainer


@dataclass
class Pictures:
    """Captioned pictures of K kinds, in memory.

    `captions[v][i]` is the v-th way to describe picture i; within one way, equal captions mean the same thing.
    """

    pixels: Tensor  # (N, 3, S, S) uint8
    labels: Tensor  # (N,) int64, 0..K-1
    captions: list[list[str]]
    wnids: list[str]  # (K,)
    names: list[str]  # (K,)

    def __len__(self) -> int:
        return len(self.labels)

    def images(self, index: Tensor | slice = slice(None)) -> Tensor:
        """Pictures `index` (n,), by default all, as (n, 3, S, S) float32 in [-1, 1]."""
        return self.pixels[index].float() / 127.5 - 1

    def class_captions(self) -> list[str]:
        """The plain caption of each kind, (K,)."""
        return [renderer.a_photo_of(name) for name in self.names]


def rendered(per_class: int, first_seed: int) -> Pictures:
    """`per_class` renders of each of the 100 classes, with picture seeds from `first_seed` on."""
    classes = [c for c in range(len(renderer.NAMES)) for _ in range(per_class)]
    seeds = [first_seed + i for i in range(per_class)] * len(renderer.NAMES)
    pictures = [renderer.render(c, s) for c, s in zip(classes, seeds, strict=True)]
    scenes = [renderer.Scene(c, s) for c, s in zip(classes, seeds, strict=True)]
    captions = [[renderer.caption(s, words) for s in scenes] for words in range(4)]
    return Pictures(as_pixels(pictures), torch.tensor(classes), captions, renderer.WNIDS, renderer.NAMES)


def as_pixels(pictures: Sequence[Image.Image]) -> Tensor:
    """RGB pictures of one size S to (n, 3, S, S) uint8."""
    return torch.from_numpy(np.stack([np.asarray(p) for p in pictures])).movedim(-1, 1).contiguous()


class _Objective(nn.Module):
    """A model and what it is trained for, as `Trainer` steps with it."""

    def __init__(self, model: nn.Module, loss_of: Callable[[int, Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.forward = model, loss_of


def train(
    name: str, model: nn.Module, loss_of: Callable[[int, Tensor], Tensor], n_pictures: int, batch_size: int, lr: float,
    steps: int, seed: int,
) -> dict:  # fmt: skip
    """Minimise `loss_of(step, numbers of its pictures (batch_size,))` over the parameters of `model`; then freeze it.

    AdamW with 5 % linear warm-up and a cosine to zero, gradients clipped to norm 1, bfloat16 autocast.

    Returns:
        {"steps", "loss": mean of the last tenth, "core_seconds": processor time of all threads}.
    """
    parameters = model.train().requires_grad_(True).parameters()
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.98), weight_decay=0.01)
    trainer = Trainer(_Objective(model, loss_of), optimizer, "cpu", "bf16", clip_grad=1.0)
    start, core_start, losses = time.time(), time.process_time(), []
    for step in range(steps):
        index = draws.randint(0, n_pictures, (batch_size,), seed, name, step)
        rate = lr * min(1.0, (step + 1) / (0.05 * steps)) * 0.5 * (1 + math.cos(math.pi * step / steps))
        losses.append(trainer.step(rate, [(step, index)]))
        if (step + 1) % 100 == 0 or step + 1 == steps:
            mean = np.mean(losses[-max(1, min(100, steps // 10)) :])
            print(f"{name}: step {step + 1}/{steps}, loss {mean:.4f}, {time.time() - start:.0f} s", flush=True)
    model.eval().requires_grad_(False)
    loss, core_seconds = float(np.mean(losses[-max(1, steps // 10) :])), round(time.process_time() - core_start)
    return {"steps": steps, "loss": round(loss, 4), "core_seconds": core_seconds}
