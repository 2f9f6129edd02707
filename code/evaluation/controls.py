"""Controls of stage C: EEG that cannot tell what the person saw, pictures without EEG, ceilings.

All start from the seeds of the first sample.

Shapes: N trials, C electrodes, T time points.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from data.stimuli import image_path
from dataset import Trials
from dc_ldm.generator import EEGImageGenerator, in_precision
from dc_ldm.models.samplers import sd_alphas_cumprod
from dc_ldm.weights import Base, load_base
from runtime import draws
from runtime.errors import UserError
from runtime.pictures import image_tensor, load_image, readable, to_uint8
from vision.classifier import PictureClassifier
from vision.clip import FrozenCLIP, OpenCLIP

KINDS = ("none", "basic", "all")
CLASS_EEG = ("same_class_eeg", "other_class_eeg")


class Control(NamedTuple):
    """How the pictures of a control are made."""

    given: Tensor  # (N, ...) what stands in for each trial's EEG
    make: Callable[[Tensor, Tensor], Tensor]  # (given (n, ...), seeds (n,)) -> pictures (n, H, W, 3) uint8
    sampled: bool = True  # through the UNet


def gaussian_eeg(eeg: Tensor, seed: int) -> Tensor:
    """White Gaussian EEG with each electrode's mean and standard deviation over all trials and samples.

    The two figures are of the whole set, not of the trial: a trial's own amplitude may well depend on what it shows.

    Args:
        eeg: (N, C, T).

    Returns:
        (N, C, T) float32; trial i depends only on the seed, i and the set's figures.
    """
    noise = torch.stack([draws.randn(eeg.shape[1:], seed, "gaussian_eeg", i) for i in range(len(eeg))])
    mean, std = eeg.double().mean((0, 2)), eeg.double().std((0, 2), correction=0)
    return noise * std[:, None].float() + mean[:, None].float()


def other_trial(group: Tensor, seed: int) -> Tensor:
    """For each trial another one to borrow the EEG of, from another group: a permutation, so each is lent once.

    Trials are laid on a circle, groups in random order and whole, and everyone borrows from as many places ahead as
    the largest group has members, hence never from within the own group. With groups of one this is a uniformly
    random single cycle, so no trial keeps its own.

    Args:
        group: (N,) int64, equal where two trials showed the same picture (another subject's trial of it is no control).

    Returns:
        (N,) int64 positions.

    Raises:
        UserError: one group holds more than half of the trials.
    """
    _, number, sizes = torch.unique(group, return_inverse=True, return_counts=True)
    largest = int(sizes.max())
    if 2 * largest > len(group):
        raise UserError(
            f"the control of other trials' EEG needs trials of other pictures, but {largest} of the {len(group)} test "
            "trials show the same one: test on more pictures or set controls=none"
        )
    place = draws.permutation(len(sizes), seed, "other_trials_eeg", 0)[number] * len(group)
    place += draws.permutation(len(group), seed, "other_trials_eeg", 1)
    circle = place.argsort()
    source = torch.empty_like(circle)
    source[circle] = circle.roll(-largest)
    return source


def another(allowed: Tensor, seed: int, purpose: str) -> Tensor | None:
    """For each trial one of those it may borrow from, each as likely: allowed (N, N) bool -> (N,) int64.

    None if a trial has nobody to borrow from.
    """
    chance = torch.stack([draws.rand((len(allowed),), seed, purpose, i) for i in range(len(allowed))])
    return (chance + 1).mul(allowed).argmax(1) if allowed.any(1).all() else None


def phase_randomised_eeg(eeg: Tensor, seed: int) -> Tensor:
    """The same EEG (N, C, T) with random phases: spectra and cross-spectra stay, what happened when is lost.

    All channels of a trial are turned by the same phase at each frequency (Prichard and Theiler 1994).
    """
    spectrum = torch.fft.rfft(eeg.double())
    turns = torch.stack([draws.rand(spectrum.shape[2:], seed, "phase_randomised_eeg", i) for i in range(len(eeg))])
    turns[:, 0] = 0  # the mean
    if eeg.shape[2] % 2 == 0:
        turns[:, -1] = 0  # the highest frequency has no phase
    return torch.fft.irfft(spectrum * torch.exp(2j * torch.pi * turns.double())[:, None], n=eeg.shape[2]).float()


def make_controls(kind: str, eeg: Tensor, group: Tensor, label: Tensor, seed: int) -> dict[str, Tensor]:
    """Control name -> EEG (N, C, T) for `kind` "none", "basic" or "all".

    Args:
        group: (N,) int64, equal where two trials showed the same picture; label: (N,) int64, their classes.

    The EEG of the same or of another class is left out where a trial has no such other trial.

    Raises:
        UserError: no such kind, or too few pictures for it.
    """
    if kind not in KINDS:
        raise UserError(f"controls={kind}: no such choice; there are {', '.join(KINDS)}")
    if kind == "none":
        return {}
    made = {"gaussian_eeg": gaussian_eeg(eeg, seed), "other_trials_eeg": eeg[other_trial(group, seed)]}
    if kind == "all":
        same, shown = label[:, None] == label, group[:, None] == group
        made["phase_randomised_eeg"] = phase_randomised_eeg(eeg, seed)
        for name, allowed in zip(CLASS_EEG, (same & ~shown, ~same), strict=True):
            source = another(allowed, seed, name)
            if source is not None:  # the caller says that it is left out
                made[name] = eeg[source]
    return made


def mean_of(train: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """The distinct training pictures that can be read, and sentences about those that cannot."""
    distinct = sorted(set(train))
    kept = [path for path in distinct if readable(path)]
    lost = ", ".join([path.stem for path in distinct if path not in kept][:10])
    if not lost:
        return kept, []
    n = f"{len(distinct) - len(kept)} of {len(distinct)} training pictures cannot be read ({lost})"
    return kept, [f"mean_image is {'the mean of the others' if kept else 'left out'}: {n}."]


def without_eeg(
    generator: EEGImageGenerator, settings: dict, size: int, n: int, truth: Sequence[Path], train: Sequence[Path]
) -> dict[str, Control]:
    """Pictures that no EEG went into: from the condition of no EEG, plain grey, the mean training image, and as a
    ceiling the truth encoded and decoded by the VAE.

    Args:
        settings: steps, sampler, guidance and batch_size of the run; size: pixels; n: trials.
        truth: (n,) files of the images shown; train: the distinct ones of the training split. Empty where unknown.
    """
    nothing = torch.zeros(n, 1)
    grey = torch.full((size, size, 3), 127, dtype=torch.uint8)
    empty = generator.no_context.cpu().expand(n, -1, -1)
    made = {
        "zero_condition": Control(empty, partial(generator.from_context, **settings)),
        "grey": Control(nothing, lambda given, _: grey.expand(len(given), -1, -1, -1), sampled=False),
    }
    if train:
        mean = to_uint8(sum(image_tensor(load_image(path), size) for path in train)[None] / len(train))
        made["mean_image"] = Control(nothing, lambda given, _: mean.expand(len(given), -1, -1, -1), sampled=False)
    if truth:

        def round_trip(rows: Tensor, _: Tensor) -> Tensor:
            return generator.round_trip(torch.stack([image_tensor(load_image(truth[i]), size) for i in rows]))

        made["vae_round_trip"] = Control(torch.arange(n), round_trip, sampled=False)
    return made


def by_name(
    base: Base, clip: FrozenCLIP, dtype: torch.dtype, settings: dict, size: int, names: Sequence[str], label: Tensor,
    other: Tensor,
):  # fmt: skip
    """Ceiling and its floor: Stable Diffusion before any EEG, prompted with the true and with another trial's class.

    Args:
        dtype: in what to sample.
        names: of the classes; label, other: (N,) int64, class of each trial and of another trial.
    """
    captions = [f"a photo of {'an' if name[0] in 'aeiou' else 'a'} {name}" for name in names]
    states = clip.text_states([*captions, ""]).cpu()
    device = clip.device
    prompted = EEGImageGenerator(
        torch.nn.Identity(), *in_precision(base, device, dtype),
        sd_alphas_cumprod(base.sizes.linear_start, base.sizes.linear_end), states[-1].to(device),
        base.sizes.latent_shape(size), base.sizes.scale_factor,
    )  # fmt: skip

    def draw(own: Tensor, seeds: Tensor) -> Tensor:
        return prompted.from_context(states[own], seeds, **settings)

    return {"true_class_name": Control(label, draw), "other_class_name": Control(other, draw)}


def plan(
    kind: str, trials: dict[str, Trials], generator: EEGImageGenerator, settings: dict, clip: FrozenCLIP | OpenCLIP,
    classifier: PictureClassifier | None, paths: dict[str, Path], size: int, seed: int,
) -> tuple[dict[str, Control], list[str]]:  # fmt: skip
    """The controls of `kind` for the test trials, by name, and a sentence for each that cannot be had.

    Args:
        settings: steps, sampler, guidance and batch_size of the run, which controls share.
        paths: "imagenet_path" (where images are known) and "pretrain_gm_path".
        size: pixels of the pictures.
    """
    test, known = trials["test"], trials["test"].info["image_known"]
    borrowed = make_controls(kind, test.eeg, test.image if known else test.position, test.label, seed)
    controls = {name: Control(eeg, partial(generator.generate, **settings)) for name, eeg in borrowed.items()}
    if kind != "all":
        return controls, []
    truth, train = (
        [image_path(paths["imagenet_path"], name) for name in t.names] if known else [] for t in (test, trials["train"])
    )
    learnt, absent = mean_of(train)
    controls |= without_eeg(generator, settings, size, len(test), truth, learnt)
    absent += [f"{name} is left out: a trial has no such other trial." for name in CLASS_EEG if name not in borrowed]
    index = [-1] if classifier is None else classifier.index_of(test.wnids).tolist()
    source = another(test.label[:, None] != test.label, seed, "other_class_name")
    if min(index) < 0 or source is None or not isinstance(clip, FrozenCLIP):
        why = "they need a classifier that names two classes or more, and Stable Diffusion's own CLIP"
        return controls, [*absent, f"Pictures by class name are left out: {why}."]
    base, names = load_base(paths["pretrain_gm_path"], use_time_cond=False), [classifier.names[k] for k in index]
    named = by_name(base, clip, generator.dtype, settings, size, names, test.label, test.label[source])
    return controls | named, absent


def cost(n: int, samples: int, controls: dict[str, Control], settings: dict) -> str:
    """What a run will take: pictures and UNet forwards of the real run and of its controls."""
    sampled = sum(control.sampled for control in controls.values())
    each = (settings["steps"] + (settings["sampler"] == "plms")) * (1 + (settings["guidance"] != 1))
    return (
        f"{n * samples} pictures from EEG and {n * len(controls)} of {len(controls)} controls, "
        f"{n * (samples + sampled) * each} UNet forwards ({n * sampled * each} of them for controls)"
    )
