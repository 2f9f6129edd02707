"""What a frozen network says about each picture, computed once, in a file named by all that it depends on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import safetensors
import torch
from safetensors.torch import save
from torch import Tensor, nn

from runtime import atomic, digests, draws
from runtime.pictures import image_tensor, load_image
from vision.clip import FrozenCLIP, OpenCLIP

DIGEST = "sha256"  # entry of a cache file


def fingerprint(module: nn.Module) -> str:
    """Hex digest of a network's names and weights."""
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        digest.update(f"{name}{tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def cached(
    folder: Path, kind: str, paths: Sequence[Path], depends: Iterable[object], compute: Callable[[], Tensor]
) -> Tensor:
    """`compute()`, or what a call with the same pictures (bytes, order) and `depends` stored.

    A file whose content is not what was written (a copy broken off, say) is computed again and replaced.
    """
    digest = hashlib.sha256(repr([kind, *depends]).encode())
    for path in paths:
        digest.update(digests.sha256(path).encode())
    file = folder / f"{kind}-{digest.hexdigest()[:20]}.safetensors"
    if file.is_file():
        if (stored := _read(file, kind)) is not None:
            return stored
        print(f"{file} is damaged, or from before caches held a digest; computing it again")
    atomic.sweep(file)
    result = compute().contiguous()
    atomic.write_bytes(file, save({kind: result}, {DIGEST: _digest(result)}))
    return result


def _digest(value: Tensor) -> str:
    """Of shape and numbers: a second for 1.2 GB, beside the pictures' own hashes."""
    return digests.of_bytes(f"{value.dtype}{tuple(value.shape)}".encode(), value.numpy())


def _read(file: Path, kind: str) -> Tensor | None:
    """What a cache file holds; None unless it is what was written."""
    try:
        with safetensors.safe_open(file, "pt") as stored:
            value, digest = stored.get_tensor(kind), (stored.metadata() or {}).get(DIGEST)
    except safetensors.SafetensorError:
        return None
    return value if digest == _digest(value) else None


def clip_embeddings(folder: Path, clip: FrozenCLIP | OpenCLIP, paths: Sequence[Path]) -> Tensor:
    """CLIP image embeddings (N, D) float32 of the plain pictures."""

    def compute() -> Tensor:
        chunks = [paths[i : i + 32] for i in range(0, len(paths), 32)]
        return torch.cat([clip.embed_images([load_image(path) for path in chunk]) for chunk in chunks])

    tower, preprocessing = clip.fingerprint_parts()
    return cached(folder, "clip", paths, [fingerprint(tower), preprocessing], compute)


def latent_moments(
    folder: Path, vae: nn.Module, paths: Sequence[Path], size: int, n_crops: int, crop_ratio: float, seed: int
) -> Tensor:
    """VAE posterior mean and deviation, (N, 1 + n_crops, 2, 4, h, w) float32: plain picture, then crops.

    A crop has a side of size - int(crop_ratio * size), of `size` pixels. The published loader draws a new crop each
    time; n_crops drawn once stand for that stream.
    """
    side, device = size - int(crop_ratio * size), next(vae.parameters()).device

    @torch.inference_mode()
    def moments(path: Path, item: int) -> Tensor:
        image = load_image(path)
        corners = draws.randint(0, size - side + 1, (n_crops, 2), seed, "crop", item).tolist()
        views = [image_tensor(image, size, crop) for crop in (None, *((top, left, side) for top, left in corners))]
        posterior = vae.encode(torch.stack(views).to(device))
        return torch.stack([posterior.mean, posterior.std], dim=1).float().cpu()

    depends = [fingerprint(vae), size, n_crops, crop_ratio, seed]
    return cached(folder, "latents", paths, depends, lambda: torch.stack([*map(moments, paths, range(len(paths)))]))
