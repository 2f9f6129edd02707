"""Frozen networks look at the pictures of an evaluation folder after the fact.

Shapes: N trials, S pictures of a trial, U distinct images among the truths.
"""

from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save

from evaluation.folder import count_samples, is_bare, read_folder
from evaluation.sampling import picture_path
from runtime.checkpoints import write_bytes
from runtime.errors import UserError
from vision.classifier import describe, load_classifier
from vision.clip import load_clip
from vision.networks import network_arrays


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
