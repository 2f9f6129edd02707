"""Whether CLIP's files are at hand, seen without loading or downloading them."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from runtime.errors import UserError
from runtime.findings import NOTE, Findings
from vision.clip import OPEN_CLIP

FILES = ("config.json", "preprocessor_config.json", "model.safetensors")
VIT_L_14 = (768, 427_616_513)  # width of its space, parameters of its two towers


def look_at_clip(name: str | Path, findings: Findings) -> tuple[int, int]:
    """Width of CLIP's space and number of its parameters; those of ViT-L/14 where its files do not tell."""
    if str(name).startswith(OPEN_CLIP):
        findings.add("CLIP", NOTE, f"{name}: not looked at; the stage loads it, from the hub if it must")
        return VIT_L_14
    paths = clip_files(name)
    about = lambda facts: f"{name}, {facts[1] / 1e6:.1f} M parameters"  # noqa: E731
    return findings.open("CLIP", lambda: read_facts(name, paths), about, paths) or VIT_L_14


def clip_files(name: str | Path) -> list[Path]:
    """Those of FILES that lie in the folder `name`, or in the hub's cache where it is a hub name."""
    from huggingface_hub import try_to_load_from_cache

    hub = partial(try_to_load_from_cache, str(name)) if str(name).count("/") == 1 else str
    places = [Path(name) / file if Path(name).is_dir() else hub(file) for file in FILES]
    return [Path(place) for place in places if isinstance(place, str | Path) and Path(place).is_file()]


def read_facts(name: str | Path, paths: list[Path]) -> tuple[int, int]:
    """Width and parameters from CLIP's files. Raises UserError where one is missing or unreadable."""
    from safetensors import SafetensorError, safe_open
    from transformers import CLIPConfig, CLIPModel

    if len(paths) < len(FILES):
        raise UserError(f"{name}: {len(paths)} of {', '.join(FILES)} are in that folder or the hub's cache")
    try:
        config = CLIPConfig.from_pretrained(paths[0].parent)
        with safe_open(paths[-1], "pt"), torch.device("meta"):
            return config.projection_dim, sum(p.numel() for p in CLIPModel(config).parameters())
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{paths[-1].parent}: is truncated or not CLIP ({error})") from error
