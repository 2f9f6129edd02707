"""Pictures of an evaluation folder: which are missing, making them, keeping them as PNG files.

Shapes: N trials, S pictures a trial, C electrodes, T time points, H x W pixels.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from data.stimuli import image_path
from runtime import draws, ranks
from runtime.pictures import image_tensor, load_image, readable, to_uint8, write_picture


def picture_path(folder: Path, i: int, k: int) -> Path:
    """`test{i}-{k}.png`: k = 0 is the truth of trial i, 1..S its pictures."""
    return folder / f"test{i}-{k}.png"


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
    folder: Path, generate: Callable[[Tensor, Tensor], Tensor], eeg: Tensor, seeds: Tensor, batch_size: int,
    see: Callable[[list[Path]], dict[str, Tensor]], name: str,
) -> dict[str, Tensor]:  # fmt: skip
    """Write what is missing of the pictures (see `generate_missing`); the first process then looks at all of them.

    Args:
        see: paths (n,) -> arrays (n, ...) by name.

    Returns:
        `<name>.<what>`, each (N, S, ...); nothing on other processes than the first.
    """
    generate_missing(folder, generate, eeg, seeds, batch_size)
    if not ranks.lead():
        return {}
    paths = [picture_path(folder, i, k + 1) for i in range(len(seeds)) for k in range(seeds.shape[1])]
    return {f"{name}.{what}": values.unflatten(0, seeds.shape) for what, values in see(paths).items()}


def show(
    folder: Path, root: Path, names: list[str], size: int, see: Callable, embed: Callable[..., Tensor]
) -> dict[str, Tensor]:
    """Write each trial's image as its picture 0, at the size of the generated ones.

    Args:
        root: folder of the images.
        names: (N,) image stem of each trial.
        size: pixels.
        see: as in `draw`.
        embed: paths -> CLIP embeddings (n, D) of the original files.

    Returns:
        `truth.<what>`, each (N, ...); every image is looked at once, however many trials showed it.
    """
    distinct, first, row = np.unique(names, return_index=True, return_inverse=True)
    files = [image_path(root, name) for name in distinct]
    truth = [to_uint8(image_tensor(load_image(file), size)[None])[0] for file in files]
    for i, k in enumerate(row):
        write_picture(picture_path(folder, i, 0), truth[k])
    seen = see([picture_path(folder, i, 0) for i in first]) | {"clip": embed(paths=files)}
    return {f"truth.{what}": values[row] for what, values in seen.items()}
