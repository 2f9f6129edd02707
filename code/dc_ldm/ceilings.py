"""What Stable Diffusion draws without EEG: ceilings and floors of any score, which only this system can draw.

Shapes: N trials, K classes, W width of the condition.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from dc_ldm.weights import load_base
from runtime.pictures import image_tensor, load_image
from runtime.sampling import Sampling
from runtime.system import Drawing, Shown


def ceilings(generator: Any, trials: Shown, sampling: Sampling) -> dict[str, Drawing]:
    """Pictures from the condition of no EEG; the truth through the autoencoder; the class by its name in words.

    generator: an EEGImageGenerator, whose module calls this one.
    """
    empty = generator.no_context.cpu().expand(len(trials.label), -1, -1)  # stands in training in the place of EEG
    drawings = {"zero_condition": Drawing(empty, lambda given, seeds: generator.from_context(given, seeds, sampling))}
    if trials.images:
        drawings["vae_round_trip"] = vae_round_trip(generator, trials)
    if trials.class_names and trials.other_label is not None and generator.text_states and generator.base_folder:
        drawings |= by_class_name(generator, trials, sampling)
    return drawings


def vae_round_trip(generator: Any, trials: Shown) -> Drawing:
    """The picture itself, coded and decoded: no picture can be closer to it."""

    def draw(rows: Tensor, _: Tensor) -> Tensor:
        images = [image_tensor(load_image(trials.images[i]), generator.img_size) for i in rows]
        return generator.round_trip(torch.stack(images))

    return Drawing(torch.arange(len(trials.label)), draw, sampled=False)


def by_class_name(generator: Any, trials: Shown, sampling: Sampling) -> dict[str, Drawing]:
    """Stable Diffusion before any EEG, prompted with the true class (ceiling) and with another trial's (floor)."""
    captions = [f"a photo of {'an' if name[0] in 'aeiou' else 'a'} {name}" for name in trials.class_names]
    states = generator.text_states([*captions, ""]).cpu()  # (K + 1, 77, W)
    base = load_base(generator.base_folder, use_time_cond=False)
    unet, vae = base.ready(generator.device, generator.dtype)
    no_context = states[-1].to(generator.device)
    prompted = replace(generator, conditioner=nn.Identity(), unet=unet, vae=vae, no_context=no_context)

    def draw(label: Tensor, seeds: Tensor) -> Tensor:
        return prompted.from_context(states[label], seeds, sampling)

    return {"true_class_name": Drawing(trials.label, draw), "other_class_name": Drawing(trials.other_label, draw)}
