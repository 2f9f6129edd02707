"""Photographs by kind as training pictures: a few files, many altered copies."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageEnhance

from miniature.renderer import a_photo_of
from miniature.training import Pictures, as_pixels
from runtime import draws
from runtime.errors import UserError
from runtime.pictures import load_image

SUFFIXES = (".jpeg", ".jpg", ".png")
SIDE = 64  # pixels


def find_photographs(folder: Path) -> dict[str, list[Path]]:
    """Picture files in `folder/<kind>/`, by kind, both in alphabetical order.

    Raises:
        UserError: fewer than two kinds.
    """
    kinds = sorted(folder.glob("*/"))
    found = {kind.name: sorted(f for f in kind.iterdir() if f.suffix.lower() in SUFFIXES) for kind in kinds}
    found = {kind: files for kind, files in found.items() if files}
    if len(found) < 2:
        raise UserError(f"images={folder}: expected at least two folders <kind>/ of photographs, found {len(found)}")
    return found


def divide(found: dict[str, list[Path]], stems_file: Path) -> tuple[dict[str, list[Path]], dict[str, list[Path]]]:
    """Photographs whose stem (file name without suffix) is a line of `stems_file`, and the others.

    Raises:
        UserError: the file is missing, or leaves a kind without photographs.
    """
    if not stems_file.is_file():
        raise UserError(f"stems={stems_file}: no such file; expected one photograph name a line")
    stems = set(stems_file.read_text().split())
    chosen = {kind: [f for f in files if f.stem in stems] for kind, files in found.items()}
    if empty := [kind for kind, files in chosen.items() if not files]:
        raise UserError(f"stems={stems_file}: names no photograph of {empty[0]}; every kind needs some")
    others = {kind: [f for f in files if f.stem not in stems] for kind, files in found.items()}
    return chosen, others


def altered(image: Image.Image, u: Sequence[float]) -> Image.Image:
    """A mirrored, turned, cropped and relit variant of a photograph; `u` are seven numbers in [0, 1)."""
    image = image.resize((2 * SIDE, 2 * SIDE), Image.Resampling.BILINEAR)
    if u[0] < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    image = image.rotate(10 * (2 * u[1] - 1), Image.Resampling.BILINEAR, fillcolor=image.getpixel((0, 0)))
    side = 2 * SIDE * (0.8 + 0.2 * u[2])
    left, top = u[3] * (2 * SIDE - side), u[4] * (2 * SIDE - side)
    image = image.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
    image = ImageEnhance.Brightness(image).enhance(0.85 + 0.3 * u[5])
    return ImageEnhance.Contrast(image).enhance(0.85 + 0.3 * u[6])


def photographs(files: dict[str, list[Path]], names: Sequence[str], copies: int, seed: int) -> Pictures:
    """`copies` altered variants of each kind's photographs, or the plain photographs once each where `copies` is 0.

    Args:
        names: what the kinds are called in captions, in the order of `files`.

    Raises:
        UserError: a file cannot be read as a whole picture.
    """
    pictures, labels = [], []
    for label, paths in enumerate(files.values()):
        plain = [load_image(path) for path in paths]
        for i in range(copies or len(plain)):
            image = plain[i % len(plain)]
            u = draws.rand((7,), seed, "altered photograph", label, i).tolist()
            pictures.append(altered(image, u) if copies else image.resize((SIDE, SIDE), Image.Resampling.BILINEAR))
            labels.append(label)
    captions = [[a_photo_of(names[label]) for label in labels]]
    return Pictures(as_pixels(pictures), torch.tensor(labels), captions, list(files), list(names))
