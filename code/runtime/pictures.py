"""Pictures as files and as tensors: read, resized, written whole or not at all.

Shapes: N pictures, S pictures of a trial, H x W pixels.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image, ImageDraw
from torch import Tensor

from runtime import checkpoints
from runtime.errors import UserError

UNREADABLE = (OSError, SyntaxError, Image.DecompressionBombError)  # what PIL raises on a file that is no picture


def decoded(path: str | Path) -> Image.Image:
    """A picture as PIL has it, read to its end; every reader of whole pictures asks here.

    Raises:
        UserError: missing, truncated or not a picture.
    """
    try:
        with Image.open(path) as image:
            image.load()
    except UNREADABLE as error:
        raise UserError(
            f"{path}: cannot be read as a whole picture ({error}); copy it again, or run again what made it"
        ) from error
    return image


def load_image(path: str | Path) -> Image.Image:
    """A picture as PIL RGB. Raises UserError as `decoded`."""
    return decoded(path).convert("RGB")


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
    except UNREADABLE:
        return False
    return True


def read_picture(path: Path) -> tuple[np.ndarray, str]:
    """(H, W, 3) uint8, and how PIL calls what the file holds instead of "RGB".

    Raises:
        UserError: missing, half written, transparent in part, or of numbers that 8-bit RGB cannot hold.
    """
    picture = decoded(path)
    if picture.mode not in ("RGB", "RGBA", "L", "LA", "P", "PA", "1"):
        raise UserError(f"{path}: holds {picture.mode} pixels, which 8-bit RGB cannot tell; save it as RGB")
    if picture.has_transparency_data and picture.convert("RGBA").getextrema()[3][0] < 255:
        raise UserError(f"{path}: has transparent parts, which no score can see; save it as RGB")
    return np.asarray(picture.convert("RGB")), picture.mode


def read_pictures(paths: Sequence[Path]) -> torch.Tensor:
    """(len(paths), H, W, 3) uint8. Raises UserError as `read_picture`."""
    return torch.from_numpy(np.stack([read_picture(path)[0] for path in paths]))


def write_picture(path: Path, picture: Tensor) -> None:
    """Write (H, W, 3) uint8 as PNG, whole or not at all."""
    content = io.BytesIO()
    Image.fromarray(picture.numpy()).save(content, "PNG", compress_level=1)
    checkpoints.write_bytes(path, content.getvalue())


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
    checkpoints.write_bytes(path, content.getvalue())
