"""The pictures that were shown: where they lie, how they are read and made into tensors (spec 1.3, 3.3)."""

from collections.abc import Mapping
from pathlib import Path, PureWindowsPath

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from runtime.errors import UserError

# corrupt in the copy of ImageNet-EEG's pictures that is handed around (the published repository's issue 41)
KNOWN_CORRUPT = frozenset({"n03452741_17620"})
TOLERATED_SHARE = 0.005  # of the pictures, may be missing and their trials left out (DESIGN 6)


def image_path(root: str | Path, name: str) -> Path:
    """`root/<wnid>/<wnid>_<number>.JPEG` of the stem `name`.

    Raises:
        UserError: the name would lead out of the folder.
    """
    unsafe = not isinstance(name, str) or not name or any(part in name for part in ("/", "\\", "..", "\0"))
    if unsafe or PureWindowsPath(name).drive:
        raise UserError(f"image name {name!r} is not a plain file stem such as 'n02951358_31190'; it is not opened")
    return Path(root) / name.split("_")[0] / f"{name}.JPEG"


def load_image(path: str | Path) -> Image.Image:
    """A picture as PIL RGB.

    Raises:
        UserError: missing, truncated or not a picture.
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: cannot be read as a picture ({error})") from error


def image_tensor(image: Image.Image, size: int, crop: tuple[int, int, int] | None = None) -> Tensor:
    """(3, size, size) float32 in [-1, 1]: bilinear, no antialiasing, aspect ratio not kept (spec 3.3).

    Args:
        crop: (top, left, side) within the resized picture, resized to `size` again; published: 410 of 512.
    """
    array = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].double()
    resized = F.interpolate(array / 255 * 2 - 1, (size, size), mode="bilinear", align_corners=False)
    if crop is not None:
        top, left, side = crop
        resized = F.interpolate(
            resized[..., top : top + side, left : left + side], (size, size), mode="bilinear", align_corners=False
        )
    return resized[0].float()


def readable(path: Path) -> bool:
    """Whether the file decodes to its end; a JPEG at an eighth of its size, which still reads every byte."""
    try:
        with Image.open(path) as image:
            image.draft("RGB", (32, 32))
            image.load()
    except (OSError, SyntaxError, Image.DecompressionBombError):
        return False
    return True


def leave_out_missing(trials: Mapping, root: str | Path, allow_missing: int = 0) -> tuple[dict, list[str]]:
    """Splits (name -> Trials) without trials whose picture is missing or corrupt, and one line per change.

    The known corrupt file and up to TOLERATED_SHARE of the pictures, or `allow_missing` of them, may go.

    Raises:
        UserError: no such folder, or more pictures are missing.
    """
    root = Path(root)
    names = sorted({name for part in trials.values() for name in part.names})
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; it should hold the pictures as <wnid>/<wnid>_<number>.JPEG")
    missing = [name for name in names if not readable(image_path(root, name))]
    limit = max(allow_missing, int(TOLERATED_SHARE * len(names)))
    unknown = [name for name in missing if name not in KNOWN_CORRUPT]
    if len(unknown) > limit:
        raise UserError(
            f"{image_path(root, unknown[0])}: missing or corrupt, {len(unknown)} of {len(names)} pictures; "
            f"at most {limit} may be left out (allow_missing={len(unknown)} to go on without them)"
        )
    if not missing:
        return dict(trials), []
    lines = [f"pictures missing or corrupt, their trials left out: {', '.join(missing)}"]
    kept = {}
    for split, part in trials.items():
        rows = [i for i, name in enumerate(part.names) if name not in missing]
        if not rows:
            raise UserError(f"{root}: split '{split}' has no trial left whose picture can be read")
        kept[split] = part if len(rows) == len(part) else part.select(rows)
        lines.append(f"  {split}: {len(rows)} of {len(part)} trials remain")
    return kept, lines
