"""Controls of stage C: EEG that cannot tell what the person saw, pictures without EEG, ceilings.

All start from the seeds of the first sample.

Shapes: N trials, C electrodes, T time points.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from evaluation.baselines import baselines
from evaluation.inputs import Inputs, same_trials
from evaluation.retrieval import NearestTrainingPicture
from runtime import draws, ranks
from runtime.errors import UserError
from runtime.findings import Findings
from runtime.paths import under_root
from runtime.pictures import image_tensor, load_image, readable, to_uint8
from runtime.sampling import Sampling
from runtime.system import Drawing, Shown
from vision.cache import clip_embeddings

CLASS_EEG = ("same_class_eeg", "other_class_eeg")


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
    """Control name -> EEG (N, C, T) for `kind` "basic" or "all".

    Args:
        group: (N,) int64, equal where two trials showed the same picture; label: (N,) int64, their classes.

    The EEG of the same or of another class is left out where a trial has no such other trial.

    Raises:
        UserError: too few pictures.
    """
    made = {"gaussian_eeg": gaussian_eeg(eeg, seed), "other_trials_eeg": eeg[other_trial(group, seed)]}
    if kind == "all":
        same, shown = label[:, None] == label, group[:, None] == group
        made["phase_randomised_eeg"] = phase_randomised_eeg(eeg, seed)
        for name, allowed in zip(CLASS_EEG, (same & ~shown, ~same), strict=True):
            source = another(allowed, seed, name)
            if source is not None:  # the caller says that it is left out
                made[name] = eeg[source]
    return made


def readable_pictures(paths: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """The distinct training pictures that can be read, and sentences about those that cannot."""
    distinct = sorted(set(paths))
    kept = [path for path in distinct if readable(path)]
    if len(kept) == len(distinct):
        return kept, []
    lost = ", ".join([path.stem for path in distinct if path not in kept][:10])
    n = f"{len(distinct) - len(kept)} of {len(distinct)} training pictures cannot be read ({lost})"
    return kept, [f"The retrieval baseline and mean_image are {'of the others' if kept else 'left out'}: {n}."]


def without_eeg(n: int, size: int, train: Sequence[Path]) -> dict[str, Drawing]:
    """Pictures that neither EEG nor a model went into: plain grey, and the mean training picture.

    Args:
        n: trials; size: pixels.
        train: files of the distinct training pictures; empty where unknown.
    """
    pictures = {"grey": torch.full((size, size, 3), 127, dtype=torch.uint8)}
    if train:
        mean = sum(image_tensor(load_image(path), size) for path in train)[None] / len(train)
        pictures["mean_image"] = to_uint8(mean)[0]

    def same_for_all(picture: Tensor) -> Drawing:
        return Drawing(torch.zeros(n, 1), lambda given, _: picture.expand(len(given), -1, -1, -1), sampled=False)

    return {name: same_for_all(picture) for name, picture in pictures.items()}


def borrowed_eeg(inputs: Inputs) -> dict[str, Tensor]:
    """`make_controls` of the test trials, as the settings ask for. Raises UserError."""
    test, cfg = inputs.test, inputs.cfg
    group = test.image if inputs.image_known else test.position
    return make_controls(cfg.controls, test.eeg, group, test.label, cfg.seed)


def look_ahead(inputs: Inputs, findings: Findings) -> None:
    """What stage C may refuse once its inputs are open, for a dry run: too few trials for baselines or controls, and a
    folder whose pictures are of others."""
    if not {"train", "test"} <= inputs.trials.keys():
        return
    cfg, test = inputs.cfg, inputs.test
    findings.open("baselines", lambda: baselines(inputs.trials["train"], test), lambda _: "can be fitted")
    if cfg.controls != "none":
        findings.open("controls", lambda: borrowed_eeg(inputs), ", ".join)
    if not cfg.overwrite:
        folder = under_root(cfg.root_path, f"results/eval/{cfg.name}")
        findings.open("trials of the run", lambda: same_trials(folder, test), lambda _: "no others were begun with")


def plan_controls(inputs: Inputs, sampling: Sampling) -> tuple[dict[str, Drawing], list[str]]:
    """The controls that the settings ask for, by name, and a sentence for each that cannot be had.

    Args:
        sampling: of the run, which controls share.
    """
    cfg, test, generator = inputs.cfg, inputs.test, inputs.generator
    if cfg.controls == "none":
        return {}, []

    borrowed = borrowed_eeg(inputs)
    from_eeg = partial(generator.generate, sampling=sampling)
    controls = {name: Drawing(eeg, from_eeg) for name, eeg in borrowed.items()}
    train, absent = readable_pictures(inputs.pictures("train"))
    size = generator.about().img_size
    if train:
        targets = ranks.lead_first(lambda: clip_embeddings(inputs.paths.cache, inputs.clip, train))
        retrieval = NearestTrainingPicture(generator.embed, targets, train, size, generator.input)
        if generator.embed(test.eeg[:1]).shape[1] == targets.shape[1]:
            nearest = partial(retrieval.generate, sampling=sampling)
            controls["nearest_training_picture"] = Drawing(test.eeg, nearest, sampled=False)
        else:
            absent.append("The retrieval baseline is left out: the EEG's embedding is not in this CLIP's space.")
    if cfg.controls == "basic":
        return controls, absent

    absent += [f"{name} is left out: a trial has no such other trial." for name in CLASS_EEG if name not in borrowed]
    classifier = inputs.classifier
    index = [-1] if classifier is None else classifier.index_of(test.wnids).tolist()
    names = [] if min(index) < 0 else [classifier.names[k] for k in index]
    source = another(test.label[:, None] != test.label, cfg.seed, "other_class_name")
    shown = Shown(test.label, inputs.pictures("test"), names, None if source is None else test.label[source])
    ceilings = generator.ceilings(shown, sampling)
    if "true_class_name" not in ceilings:
        why = "they need a classifier that names two classes or more, and a system that draws from words"
        absent.append(f"Pictures by class name are left out: {why}.")
    return controls | without_eeg(len(test), size, train) | ceilings, absent


def cost(n: int, samples: int, controls: dict[str, Drawing], sampling: Sampling) -> str:
    """What a run will take: pictures and denoiser calls of the real run and of its controls."""
    sampled = sum(control.sampled for control in controls.values())
    calls = n * sampling.calls
    return (
        f"{n * samples} pictures from EEG and {n * len(controls)} of {len(controls)} controls, "
        f"{(samples + sampled) * calls} UNet forwards ({sampled * calls} of them for controls)"
    )
