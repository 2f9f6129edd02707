"""What frozen networks say of an evaluation's pictures: in stage C, or of its folder later on.

Shapes: N trials, S pictures of a trial, U distinct images among the truths.
"""

from collections.abc import Callable, Sequence
from functools import cache, partial
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save
from torch import Tensor

from evaluation.folder import PAIRS, Outcome, count_samples, is_bare, picture_path, read_folder, stored
from evaluation.similarity import pearson, pixel_mse
from runtime import digests
from runtime.atomic import write_bytes
from runtime.errors import UserError
from runtime.pictures import read_pictures
from vision.cache import cached
from vision.classifier import describe, load_classifier, see_files
from vision.clip import load_clip
from vision.networks import NETWORKS, PREPARED, See


def run_arrays(folder: Path, run: str, shape: Sequence[int], look: Callable) -> dict[str, Tensor]:
    """`<run>.<array>`, each (N, S, ...), of the pictures 1..S of N trials; look: paths (n,) -> arrays (n, ...)."""
    paths = [picture_path(folder, i, k + 1) for i in range(shape[0]) for k in range(shape[1])]
    return {f"{run}.{name}": values.unflatten(0, shape) for name, values in look(paths).items()}


def truth_arrays(folder: Path, image: Sequence[str], look: Callable) -> dict[str, Tensor]:
    """`truth.<array>`, each (N, ...); every image (N,) is looked at once, however many trials showed it."""
    _, first, row = np.unique(image, return_index=True, return_inverse=True)
    seen = look([picture_path(folder, i, 0) for i in first.tolist()])
    return {f"truth.{name}": values[row] for name, values in seen.items()}


def network_arrays(
    root: str | Path, folders: dict[str, Path], image: Sequence[str], device: str = "cpu", store: Path | None = None
) -> dict[str, Tensor]:
    """What all networks whose weights are at hand say of an evaluation's pictures, for arrays.safetensors.

    Features of the truths are kept in `datasets/cache`, under the pixels and the weights that they depend on.

    Args:
        root: folder that holds `pretrains/features` and `datasets/cache`.
        folders: run ("real" and controls) -> folder of its test<i>-<k>.png; truths lie in that of "real".
        image: (N,) name of the image that each trial showed.
        store: another folder than `datasets/cache`.

    Returns:
        `<run>.alike_<name>` (N, S, U); `<run>.fid` (N, S, 2048) and `truth.fid` (N, 2048), float32.
        Nothing of a network without weights: `never_looked` says so. Beyond PAIRS trials times images, `fid` alone.

    Raises:
        UserError: a weights file is damaged or of another network, or a picture is missing.
    """
    store = store or Path(root) / "datasets/cache"
    _, first, row = np.unique(image, return_index=True, return_inverse=True)
    truths = [picture_path(folders["real"], i, 0) for i in first.tolist()]
    pixels = sha256(b"".join(sha256(read_pictures([path]).numpy().tobytes()).digest() for path in truths)).hexdigest()
    arrays = {}
    for network in NETWORKS:
        names = [name for name in network.names if name == "fid" or len(first) * len(image) <= PAIRS]
        if not names or (path := network.weights(root)) is None:
            continue
        see = partial(_features, network.load(path, device), device)
        seen = cache(partial(see_files, truths, see))
        known = {
            name: cached(store, name, [], [PREPARED, pixels, digests.sha256(path)], lambda n=name, s=seen: s()[n])
            for name in names
        }
        arrays |= {"truth.fid": known["fid"][row]} if "fid" in known else {}
        look = partial(see_files, see=lambda pictures, see=see, known=known: _compared(see(pictures), known))
        for run, folder in folders.items():
            arrays |= run_arrays(folder, run, (len(image), count_samples(folder)), look)
    return arrays


@torch.inference_mode()
def _features(see: See, device: str, pictures: Tensor) -> dict[str, Tensor]:
    """Float32, on the CPU."""
    return {name: values.float().cpu() for name, values in see(pictures.to(device)).items()}


def _compared(features: dict[str, Tensor], truths: dict[str, Tensor]) -> dict[str, Tensor]:
    """Features (n, D) of pictures and (U, D) of truths -> what is kept of the pictures (n, ...), float32."""
    kept = {}
    for name in truths:
        values, a, b = features[name], features[name].numpy(), truths[name].numpy()
        if name == "fid":  # compares sets
            kept[name] = values
        else:
            alike = -pixel_mse(a, b) * a.shape[1] if name == "lpips" else pearson(a, b)
            kept[f"alike_{name}"] = torch.from_numpy(alike).float()
    return kept


def never_looked(real: Outcome, root: str | Path, pairs: bool = True) -> list[str]:
    """A sentence for each network whose scores a run lacks; without `pairs`, of those that compare sets.

    root: folder that holds `pretrains/features`.
    """
    known = {*real.alike, *(["fid"] if real.fid is not None else [])}
    return [
        network.left_out(root)
        for network in NETWORKS
        if (pairs or "fid" in network.names) and not known.issuperset(network.names)
    ]


def look(
    folder: str | Path, classifier: str, clip: str, networks: str, root: str | Path, device: str
) -> tuple[dict[str, np.ndarray], dict]:
    """Arrays, named as in arrays.safetensors, of what the asked networks see; and what `run` should say of them.

    Args:
        classifier, clip: as `load_classifier` and `load_clip` take them, for a bare folder alone: of another one,
            stage C asked its own. Empty: none.
        networks: "auto" for those of `vision.networks` whose weights are at hand, or "".

    Raises:
        UserError: as the loaders and `read_folder`; a classifier or CLIP for a folder that has its own; no images.
    """
    if networks not in ("", "auto"):
        raise UserError(f"networks={networks}: use networks=auto, or leave it out")
    if not (classifier or clip or networks):
        return {}, {}
    if (classifier or clip) and not is_bare(folder):
        raise UserError(
            f"{folder}: stage C's own classifier and CLIP have seen these pictures; only networks= looks anew"
        )
    contents = read_folder(folder)
    image, folders = contents.truth.image, {name: outcome.folder for name, outcome in contents.outcomes.items()}
    if image is None:
        raise UserError(f"{folder}: which images were shown is unknown, so no network can compare with them")
    judge, absent = load_classifier(classifier, device) if classifier else (None, "")
    facts = {"classifier": judge.name, "hashes": {"classifier_sha256": judge.sha256}} if judge is not None else {}
    facts |= {"clip": clip} if clip else {}
    arrays = network_arrays(root, folders, image, device) if networks else {}
    if facts:
        see = partial(describe, classifier=judge, embed_images=load_clip(clip, device).embed_images if clip else None)
        samples = folders["real"]
        arrays |= run_arrays(samples, "real", (len(image), count_samples(samples)), see)
        arrays |= truth_arrays(samples, image, see)
    if absent:
        print(absent)
    return {name: values.numpy() for name, values in arrays.items()}, facts


def keep(folder: str | Path, arrays: dict[str, np.ndarray]) -> None:
    """Add arrays to the folder's arrays.safetensors."""
    path = Path(folder) / "arrays.safetensors"
    content = stored(path) | arrays
    write_bytes(path, save({name: np.ascontiguousarray(values) for name, values in content.items()}))
