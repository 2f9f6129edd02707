"""Pictures of an evaluation folder: which are missing, making them, keeping them as PNG files.

Shapes: N trials, S pictures a trial, C electrodes, T time points, H x W pixels.
"""

import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from data.stimuli import image_path
from evaluation.controls import cost, plan_controls
from evaluation.features import network_arrays, run_arrays, truth_arrays
from evaluation.folder import picture_path, run_folder, run_folders
from evaluation.inputs import Inputs
from runtime import draws, ranks
from runtime.pictures import image_tensor, load_image, readable, to_uint8, write_picture
from runtime.sampling import Sampling
from vision.cache import clip_embeddings
from vision.classifier import describe


def picture_seeds(seed: int, position: Tensor, num_samples: int) -> Tensor:
    """(N, num_samples) int64; each depends on the run's seed, the trial's place in its file, the sample's number."""
    rows = [[draws.randint(0, 2**62, (), seed, "picture", int(p), k) for k in range(num_samples)] for p in position]
    return torch.tensor(rows)


def generate_missing(
    folder: Path, generate: Callable[[Tensor, Tensor], Tensor], eeg: Tensor, seeds: Tensor, batch_size: int
) -> None:
    """Write pictures 1..S of every trial that are not there yet; a broken one is made again.

    A thread encodes and writes a batch while the next one is sampled. Under torchrun each process makes its share, and
    all wait until all are there.

    Args:
        generate: (eeg (n, C, T), seeds (n,)) -> (n, H, W, 3) uint8.
        eeg: (N, C, T).
        seeds: (N, S) int64.
        batch_size: pictures made at once.
    """
    wanted = [(i, k) for i in range(len(eeg)) for k in range(seeds.shape[1])]
    todo = ranks.from_lead(lambda: [(i, k) for i, k in wanted if not readable(picture_path(folder, i, k + 1))])
    mine = todo[ranks.rank() :: ranks.world()]
    bar = tqdm(total=len(mine), desc=folder.name, unit="picture", disable=not mine)
    with ranks.together(), bar, ThreadPoolExecutor(1) as writer:
        written: Iterable[None] = ()
        for start in range(0, len(mine), batch_size):
            some = mine[start : start + batch_size]
            trial, sample = torch.tensor(some).T
            pictures = generate(eeg[trial], seeds[trial, sample])
            if len(pictures) != len(some):
                raise ValueError(f"{folder}: {len(pictures)} pictures were made where {len(some)} were asked for")
            list(written)  # the batch before: waits for it, raises what went wrong
            written = writer.map(write_picture, [picture_path(folder, i, k + 1) for i, k in some], pictures)
            bar.update(len(some))
        list(written)


def draw(
    folder: Path, generate: Callable[[Tensor, Tensor], Tensor], given: Tensor, seeds: Tensor, batch_size: int,
    look: Callable[[list[Path]], dict[str, Tensor]], name: str,
) -> dict[str, Tensor]:  # fmt: skip
    """Write what is missing of the pictures (see `generate_missing`); the first process then looks at all of them.

    Args:
        look: paths (n,) -> arrays (n, ...) by name.

    Returns:
        `<name>.<what>`, each (N, S, ...); nothing on other processes than the first.
    """
    generate_missing(folder, generate, given, seeds, batch_size)
    return run_arrays(folder, name, seeds.shape, look) if ranks.lead() else {}


def write_truths(inputs: Inputs, folder: Path, look: Callable) -> dict[str, Tensor]:
    """Write each test trial's image as its picture 0, at the size of the generated ones.

    Returns:
        `truth.<what>`, each (N, ...): as `look` (see `draw`) sees these pictures, but CLIP the original files:
        retrieval asks for what stage B aligned with.
    """
    names, size = inputs.test.names, inputs.generator.about().img_size
    distinct, row = np.unique(names, return_inverse=True)
    files = [image_path(inputs.paths.imagenet, name) for name in distinct]
    pictures = [to_uint8(image_tensor(load_image(file), size)[None])[0] for file in files]
    for i, k in enumerate(row):
        write_picture(picture_path(folder, i, 0), pictures[k])
    embedding = clip_embeddings(inputs.paths.cache, inputs.clip, files)
    return truth_arrays(folder, names, look) | {"truth.clip": embedding[row]}


@dataclass
class Sampled:
    """The pictures of a run, as the frozen networks see them."""

    seeds: Tensor  # (N, S)
    arrays: dict[str, Tensor]  # as `evaluation/folder.py` lists them
    notes: list[str]  # on controls that cannot be had
    cost: str
    seconds: dict[str, float]  # that each control took


def sample_and_look(inputs: Inputs, folder: Path) -> Sampled | None:
    """Pictures of every test trial and of its controls, written and looked at; None on all processes but the first."""
    cfg, test, generator = inputs.cfg, inputs.test, inputs.generator
    seeds = picture_seeds(cfg.seed, test.position, cfg.num_samples)
    sampling = Sampling.of(cfg, batch=seeds.numel())  # all that `draw` asks for at once
    controls, notes = plan_controls(inputs, sampling)
    batch_size = cfg.batch_size or generator.fitting_batch(sampling)  # only now: ceilings may hold a second UNet
    price = cost(len(test), cfg.num_samples, controls, sampling)
    print(*notes, price, sep="\n")

    look = partial(describe, classifier=inputs.classifier, embed_images=inputs.clip.embed_images)
    from_eeg = partial(generator.generate, sampling=sampling)
    arrays = draw(folder / "samples", from_eeg, test.eeg, seeds, batch_size, look, "real")
    arrays["real.embedding"] = generator.embed(test.eeg)
    seconds = {}
    for name, control in controls.items():
        begun = time.time()
        arrays |= draw(run_folder(folder, name), control.draw, control.given, seeds[:, :1], batch_size, look, name)
        if name.endswith("_eeg"):
            arrays[f"{name}.embedding"] = generator.embed(control.given)
        seconds[name] = round(time.time() - begun, 1)
    if not ranks.lead():
        return None
    if inputs.image_known:
        arrays |= write_truths(inputs, folder / "samples", look)
        where = run_folders(folder, controls), test.names, str(inputs.device), inputs.paths.cache
        arrays |= network_arrays(cfg.root_path, *where)
    return Sampled(seeds, arrays, notes, price, seconds)
