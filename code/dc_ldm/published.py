"""Checkpoints of stages A and B as we write them, from our own files or from the published ones."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dc_ldm import weights
from dc_ldm.weights import CONDITIONER_PREFIX, UNET_PREFIX, VAE_PREFIX, Base, part
from runtime import checkpoints
from runtime.errors import UserError
from runtime.file_kinds import OURS_A, OURS_B, PUBLISHED_A, PUBLISHED_B, expect

MAE_PARTS = ("cls_token", "pos_embed", "mask_token", "patch_embed.", "blocks.", "norm.", "decoder_")
# eeg_5_95_std.pth, which the published models saw; the authors divided the EEG by ten in stage A only
INPUT = {"sfreq": 1000.0, "ch_names": None, "band": None}
HEADS = 16  # of the published encoder, where a file does not say; shapes cannot


def depth(state: dict[str, Tensor], pattern: str) -> int:
    """How many of "name.{}.name", counted from 0, are in `state`."""
    return next(i for i in count() if pattern.format(i) not in state)


def encoder_sizes(state: dict[str, Tensor], num_heads: int) -> dict[str, Any]:
    """EEGEncoder's arguments from the shapes of its tensors."""
    width, n_chans, patch = state["patch_embed.proj.weight"].shape
    return {
        "n_chans": n_chans,
        "n_times": (state["pos_embed"].shape[1] - 1) * patch,
        "patch_size": patch,
        "embed_dim": width,
        "depth": depth(state, "blocks.{}.norm1.weight"),
        "num_heads": num_heads,
        "mlp_ratio": len(state["blocks.0.mlp.fc1.bias"]) / width,
    }


def read_stage_a(path: str | Path) -> dict:
    """A stage A checkpoint's content (`model`, `config`, `input`), translated where it has the published layout.

    That one's sizes are read from shapes, its heads from its config. Raises UserError.
    """
    what = "stage A checkpoint"
    if expect(path, (OURS_A, PUBLISHED_A), what) == OURS_A:
        return checkpoints.load(path, ("eeg-mae-1",), what)
    content = weights.read_foreign(path, what)
    state = weights.known_part(content["model"], MAE_PARTS, PUBLISHED_A, path)
    given = vars(content.get("config", weights.Inert()))
    config = encoder_sizes(state, given.get("num_heads", HEADS))
    config |= {
        "decoder_embed_dim": len(state["decoder_norm.weight"]),
        "decoder_depth": depth(state, "decoder_blocks.{}.norm1.weight"),
        "decoder_num_heads": given.get("decoder_num_heads", HEADS),
    }
    run = {"origin": PUBLISHED_A, "epoch": content.get("epoch")}
    return {"format": "eeg-mae-1", "model": state, "config": config, "input": INPUT | {"scale": 0.1}, "run": run}


def read_stage_b(path: str | Path, pretrain_gm_path: str | Path) -> dict:
    """A stage B checkpoint's content as eeg_ldm.py writes it, translated where it is the published one.

    That one carries its own base, as base["state"] and base["sizes"]: those of config15.yaml under pretrain_gm_path,
    or else Stable Diffusion 1.5's. Its CLIP head reads tokens, and no EEG is a condition of zeros. Raises UserError.
    """
    what = "stage B checkpoint"
    if expect(path, (OURS_B, PUBLISHED_B), what) == OURS_B:
        return checkpoints.load(path, (weights.FORMAT,), what)
    content = weights.read_foreign(path, what)
    known = (UNET_PREFIX, VAE_PREFIX, CONDITIONER_PREFIX)
    state = weights.known_part(content["model_state_dict"], known, PUBLISHED_B, path)
    yaml = Path(pretrain_gm_path) / "models" / "config15.yaml"
    sizes = weights.read_sizes(yaml) if yaml.is_file() else weights.published_sizes()
    given = vars(content.get("config", weights.Inert()))
    condition = part(state, CONDITIONER_PREFIX)
    context_dim, clip_dim = len(condition["dim_mapper.bias"]), len(condition["mapping.fc.bias"])
    use_time_cond = any(name.startswith(f"{UNET_PREFIX}time_embed_condtion.") for name in state)
    encoder = encoder_sizes(part(condition, "mae."), given.get("num_heads", HEADS))
    maps = {"context_dim": context_dim, "clip_dim": clip_dim, "clip_head": "tokens"}
    return {
        "format": weights.FORMAT,
        "model": weights.trained_part(state),
        "no_context": torch.zeros(len(condition["channel_mapper.1.bias"]), context_dim),
        "config": weights.model_config(sizes, encoder, maps, use_time_cond, given.get("img_size", 512), 0.0),
        "base": {"name": Path(path).name, "sha256": "", "state": state, "sizes": sizes},
        "input": INPUT | {"scale": 1.0, "window": [20, 460], "simulated": False},
        "run": {"origin": PUBLISHED_B},
    }


def load_base_of(content: dict, checkpoint: str | Path, pretrain_gm_path: str | Path) -> Base:
    """The Stable Diffusion that `content`, from `read_stage_b`, belongs to: its own or pretrain_gm_path's."""
    named, use_time_cond = content["base"], content["config"]["unet"]["use_time_cond"]
    if "state" in named:
        return weights.assemble(named["state"], named["sizes"], use_time_cond, str(checkpoint), "")
    base = weights.load_base(pretrain_gm_path, use_time_cond)
    if base.sha256 != named["sha256"]:
        raise UserError(
            f"{checkpoint} was trained on a {named['name']} with sha256 {named['sha256'][:12]}..., but "
            f"{pretrain_gm_path} has one with {base.sha256[:12]}...; point pretrain_gm_path at the former"
        )
    return base
