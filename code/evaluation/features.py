"""Frozen networks look at the pictures of an evaluation folder after the fact.

Shapes: N trials, S pictures of a trial, U distinct images among the truths.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import cache, partial
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save
from torch import Tensor

from evaluation.folder import Outcome, count_samples, is_bare, picture_path, read_folder
from evaluation.similarity import pearson, pixel_mse
from runtime import checkpoints
from runtime.checkpoints import write_bytes
from runtime.errors import UserError
from runtime.pictures import read_pictures
from vision.cache import cached
from vision.classifier import describe, load_classifier
from vision.clip import load_clip
from vision.networks import NETWORKS, PREPARED, See


def look(
    folder: str | Path, classifier: str, clip: str, networks: str, root: str | Path, device: str
) -> tuple[dict[str, np.ndarray], dict]:
    """Arrays, named as in arrays.safetensors, of what the asked networks see; and what `run` should say of them.

    Args:
        classifier, clip: as `load_classifier` and `load_clip` take them, for a bare folder alone: of another one,
            stage C asked its own. Empty: none.
        networks: "auto" for those of `feature_networks` whose weights are at hand, or "".

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
    truth, outcomes, _, _, _ = read_folder(folder)
    if truth.image is None:
        raise UserError(f"{folder}: which images were shown is unknown, so no network can compare with them")
    arrays, facts = {}, {}
    places = {name: outcome.place for name, outcome in outcomes.items()}
    judge, absent = load_classifier(classifier, device) if classifier else (None, "")
    if judge is not None:
        facts = {"classifier": judge.name, "hashes": {"classifier_sha256": judge.sha256}}
    embed = load_clip(clip, device).embed_images if clip else None
    if judge is not None or embed is not None:
        _, first, row = np.unique(truth.image, return_index=True, return_inverse=True)
        place, n = places["real"], len(truth.image)
        shape = n, count_samples(place)
        made = describe([picture_path(place, i, k + 1) for i in range(n) for k in range(shape[1])], judge, embed)
        shown = describe([picture_path(place, i, 0) for i in first], judge, embed)
        arrays |= {f"real.{name}": values.unflatten(0, shape).numpy() for name, values in made.items()}
        arrays |= {f"truth.{name}": values[row].numpy() for name, values in shown.items()}
        facts |= {"clip": clip} if clip else {}
    if networks:
        arrays |= {name: values.numpy() for name, values in network_arrays(root, places, truth.image, device).items()}
    if absent:
        print(absent)
    return arrays, facts


def keep(folder: str | Path, arrays: dict[str, np.ndarray]) -> None:
    """Add arrays to the folder's arrays.safetensors."""
    path = Path(folder) / "arrays.safetensors"
    content = load_file(path) | arrays
    write_bytes(path, save({name: np.ascontiguousarray(values) for name, values in content.items()}))


def never_looked(real: Outcome, root: str | Path) -> list[str]:
    """A sentence for each network whose scores a run lacks. root: folder that holds `pretrains/features`."""
    known = {*real.alike, *(["fid"] if real.fid is not None else [])}
    return [network.left_out(root) for network in NETWORKS if not known.issuperset(network.names)]


@torch.inference_mode()
def _seen(see: See, paths: Sequence[Path], device: str) -> dict[str, Tensor]:
    """Features of pictures, float32 on the CPU."""
    return {name: values.float().cpu() for name, values in see(read_pictures(paths).to(device)).items()}


def _compared(made: dict[str, Tensor], shown: dict[str, Tensor]) -> dict[str, Tensor]:
    """Features (n, D) of pictures and (U, D) of truths -> what is kept of the pictures (n, ...)."""
    found = {}
    for name, values in made.items():
        a, b = values.numpy(), shown[name].numpy()
        if name == "fid":  # compares sets
            found[name] = values
        else:
            alike = -pixel_mse(a, b) * a.shape[1] if name == "lpips" else pearson(a, b)
            found[f"alike_{name}"] = torch.from_numpy(alike)
    return found


def _batches(paths: Sequence[Path], size: int = 32) -> Iterator[Sequence[Path]]:
    return (paths[start : start + size] for start in range(0, len(paths), size))


def _joined(parts: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
    parts = list(parts)
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def network_arrays(
    root: str | Path, places: dict[str, Path], image: Sequence[str], device: str = "cpu"
) -> dict[str, Tensor]:
    """What all networks whose weights are at hand say of an evaluation's pictures, for arrays.safetensors.

    Features of the truths are kept in `datasets/cache`, under the pixels and the weights that they depend on.

    Args:
        root: folder that holds `pretrains/features` and `datasets/cache`.
        places: run ("real" and controls) -> folder of its test<i>-<k>.png; truths lie in that of "real".
        image: (N,) name of the image that each trial showed.

    Returns:
        `<run>.alike_<name>` (N, S, U); `<run>.fid` (N, S, 2048) and `truth.fid` (N, 2048), float32.
        Nothing of a network without weights: `never_looked` says so.

    Raises:
        UserError: a weights file is damaged or of another network, or a picture is missing.
    """
    store = Path(root) / "datasets/cache"
    _, first, row = np.unique(image, return_index=True, return_inverse=True)
    shown = [picture_path(places["real"], i, 0) for i in first.tolist()]
    pixels = sha256(b"".join(sha256(read_pictures([path]).numpy().tobytes()).digest() for path in shown)).hexdigest()
    arrays = {}
    for network in NETWORKS:
        path = network.weights(root)
        if path is None:
            continue
        seen = partial(_seen, network.load(path, device), device=device)
        truths = cache(lambda seen=seen: _joined(seen(paths) for paths in _batches(shown)))
        known = {
            name: cached(store, name, [], [PREPARED, pixels, checkpoints.sha256(path)], lambda n=name, t=truths: t()[n])
            for name in network.names
        }
        arrays |= {"truth.fid": known["fid"][row]} if "fid" in known else {}
        for run, place in places.items():
            shape = len(image), count_samples(place)
            paths = [picture_path(place, i, k + 1) for i in range(shape[0]) for k in range(shape[1])]
            found = _joined(_compared(seen(some), known) for some in _batches(paths))
            arrays |= {f"{run}.{name}": values.float().unflatten(0, shape) for name, values in found.items()}
    return arrays
