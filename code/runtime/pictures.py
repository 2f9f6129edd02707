"""Pictures as files and as tensors: read, resized, written whole or not at all.

Shapes: N pictures, S pictures of a trial, H x W pixels.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image, ImageDraw
from torch import Tensor

from runtime import atomic
from runtime.errors import UserError, as_sentence

# PIL would try some forty, and start Ghostscript for one of them; what a file is called says nothing
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
MODES = ("RGB", "RGBA", "RGBX", "L", "LA", "P", "PA", "1", "CMYK", "YCbCr")  # whose colours 8-bit RGB can tell
MOST_PIXELS = 1 << 25  # 1 GB as float64, in which pictures are resized
MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")  # of a JPEG; not 0 nor a restart, which pixels hold
LEAST_SIDE, LONGEST = 4, 32  # pixels; times the shorter side


def decoded(path: str | Path, sketch: bool = False) -> Image.Image:
    """A picture as PIL has it, read to its end; every reader of pictures asks here.

    Of an animation the first picture. CMYK is converted as without a colour profile, the custom for ImageNet.

    Args:
        sketch: a JPEG at an eighth of its size or so, which still reads every byte.

    Raises:
        UserError: missing, no plain file, truncated, none of FORMATS, of absurd size, transparent in part, or of
            numbers that 8-bit RGB cannot hold.
    """
    problem, advice = f"{path}: cannot be read as a whole picture", "copy it again, or run again what made it"
    with as_sentence(problem, advice), warnings.catch_warnings(action="ignore"):
        if not Path(path).is_file():
            raise UserError(
                f"{path}: {'is no plain file' if Path(path).exists() else 'no such file'}; expected a picture"
            )
        with Image.open(path, formats=FORMATS) as image:
            _check_opened(image, path)
            if sketch:
                image.draft("RGB", (32, 32))
            image.load()
        if image.has_transparency_data and image.convert("RGBA").getextrema()[3][0] < 255:
            raise UserError(f"{path}: has transparent parts; what was seen through them is unknown: save it as RGB")
    return image


def _check_opened(image: Image.Image, path: str | Path) -> None:
    """What can be told before a picture takes memory. Raises UserError, as `decoded`."""
    short, long = sorted(image.size)
    if short < LEAST_SIDE or long > LONGEST * short or short * long > MOST_PIXELS:
        most = f"{MOST_PIXELS / 1e6:.0f} million in all at most, no side {LONGEST} times the other"
        raise UserError(
            f"{path}: has {image.width} x {image.height} pixels, expected {LEAST_SIDE} a side or more, {most}"
        )
    if image.mode not in MODES:
        raise UserError(f"{path}: holds {image.mode} pixels, which 8-bit RGB cannot tell; save it as RGB")
    # libjpeg fills what a scan lacks with grey, and PIL minds only if the file ends there, not if zeros follow
    if image.format in ("JPEG", "MPO") and not _has_end(Path(path).read_bytes()):
        raise UserError(f"{path}: cannot be read as a whole picture (the JPEG's end is missing); copy it again")


def _has_end(jpeg: bytes) -> bool:
    """Whether a JPEG's segments lead to its end marker, whatever follows that (phones append a film) or is in them."""
    at = 2
    while found := MARKER.search(jpeg, at):
        if found[1] in (b"\xd8", b"\xd9"):
            return found[1] == b"\xd9"
        at = found.end() + int.from_bytes(jpeg[found.end() : found.end() + 2])
    return False


def load_image(path: str | Path) -> Image.Image:
    """A picture as PIL RGB. Raises UserError as `decoded`."""
    return decoded(path).convert("RGB")


def image_tensor(image: Image.Image, size: int, crop: tuple[int, int, int] | None = None) -> Tensor:
    """(3, size, size) float32 in [-1, 1]: bilinear, no antialiasing, aspect ratio not kept (spec 3.3).

    Args:
        crop: (top, left, side) within the resized picture, resized to `size` again; published: 410 of 512.
    """
    array = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].double()
    array.div_(255).mul_(2).sub_(1)  # in place, as it may have a gigabyte
    resized = F.interpolate(array, (size, size), mode="bilinear", align_corners=False)
    if crop is not None:
        top, left, side = crop
        resized = F.interpolate(
            resized[..., top : top + side, left : left + side], (size, size), mode="bilinear", align_corners=False
        )
    return resized[0].float()


def fault(path: Path) -> str:
    """Why a picture cannot be read to its end, in a sentence; empty where it can."""
    try:
        decoded(path, sketch=True)
    except UserError as error:
        return str(error)
    return ""


def readable(path: Path) -> bool:
    """Whether a picture can be read to its end."""
    return not fault(path)


def read_picture(path: Path) -> tuple[np.ndarray, str]:
    """(H, W, 3) uint8, and how PIL calls what the file holds instead of "RGB".

    Raises UserError as `decoded`.
    """
    picture = decoded(path)
    return np.asarray(picture.convert("RGB")), picture.mode


def read_pictures(paths: Sequence[Path]) -> torch.Tensor:
    """(len(paths), H, W, 3) uint8. Raises UserError as `read_picture`."""
    return torch.from_numpy(np.stack([read_picture(path)[0] for path in paths]))


def write_picture(path: Path, picture: Tensor) -> None:
    """Write (H, W, 3) uint8 as PNG, whole or not at all."""
    content = io.BytesIO()
    Image.fromarray(picture.numpy()).save(content, "PNG", compress_level=1)
    atomic.write_bytes(path, content.getvalue())


def to_uint8(images: Tensor) -> Tensor:
    """(B, 3, H, W) in [-1, 1] -> (B, H, W, 3) uint8 on the CPU: floor(255 x), not rounded, as published."""
    return (255 * ((images.float() + 1) / 2).clamp(0, 1)).to(torch.uint8).permute(0, 2, 3, 1).cpu()


def save_grid(path: Path, truth: Tensor, samples: Tensor, caption: str) -> None:
    """A PNG, one row a trial: truth (N, 3, H, W) in [-1, 1], then samples (N, S, H, W, 3) uint8."""
    rows = torch.cat([to_uint8(truth)[:, None], samples], dim=1)
    pixels = rearrange(rows, "n s h w c -> (n h) (s w) c").numpy()
    grid = Image.new("RGB", (max(pixels.shape[1], 7 * len(caption)), pixels.shape[0] + 14), "white")
    grid.paste(Image.fromarray(pixels), (0, 14))
    ImageDraw.Draw(grid).text((2, 1), caption, fill="black")
    content = io.BytesIO()
    grid.save(content, "PNG")
    atomic.write_bytes(path, content.getvalue())
