"""Checkpoints of stages A and B as we write them, from our own files or from the published ones."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, InstanceOf
from torch import Tensor

from dc_ldm import weights
from dc_ldm.weights import CONDITIONER_PREFIX, UNET_PREFIX, VAE_PREFIX, Base, part
from runtime import checkpoints
from runtime.checkpoints import check_finite, check_state, check_tensors
from runtime.contents import Depth, Positive, Side, Size, TrainedOn, Training
from runtime.errors import UserError, as_sentence
from runtime.file_kinds import OURS_A, OURS_B, PUBLISHED_A, PUBLISHED_B, expect
from runtime.plain import checked, record

MAE_PARTS = ("cls_token", "pos_embed", "mask_token", "patch_embed.", "blocks.", "norm.", "decoder_")
# eeg_5_95_std.pth, which the published models saw; the authors divided the EEG by ten in stage A only
INPUT = {"sfreq": 1000.0, "ch_names": None, "band": None}
# What our checkpoints hold, and what is read of the configuration in published ones
_SIDE = Annotated[Side, Field(multiple_of=8)]
_ENCODER = dict.fromkeys(("n_chans", "n_times", "patch_size", "embed_dim", "num_heads"), Size)
_ENCODER |= {"depth": Depth, "mlp_ratio": Positive}
_DECODER = {"decoder_embed_dim": Size, "decoder_depth": Depth, "decoder_num_heads": Size}
STAGE_A = record({"run": Training}, model=dict, config=record(_DECODER, **_ENCODER), input=TrainedOn)
_MAPS = record({"clip_head": Literal["tokens", "condition"]}, context_dim=Size, clip_dim=Size)
_NETWORKS = {"unet": record(**weights.UNET_KINDS, use_time_cond=bool), "vae": record(**weights.VAE_KINDS)}
_NETWORKS |= {"encoder": record(**_ENCODER), "conditioner": _MAPS}
_CONFIG = record(**_NETWORKS, **weights.NOISE_KINDS, img_size=_SIDE, cond_drop=Annotated[float, Field(ge=0, lt=1)])
_NAME, _HASH = (Annotated[str, Field(pattern=form)] for form in (r"^[^/\\\x00]+$", "^([0-9a-f]{64})?$"))
_BASE = record(name=_NAME, sha256=_HASH)
STAGE_B = record(
    {"run": Training}, model=dict, config=_CONFIG, no_context=InstanceOf[Tensor], base=_BASE, input=TrainedOn
)
FORMATS = ("eeg-mae-1", weights.FORMAT)
GIVEN = record({"num_heads": Size, "decoder_num_heads": Size, "img_size": _SIDE})
CONTEXT_LENGTH = 77  # tokens of Stable Diffusion 1.5's condition
HEADS = 16  # of the published encoder, where a file does not say; shapes cannot


def depth(state: dict[str, Tensor], pattern: str) -> int:
    """How many of "name.{}.name", counted from 0, are in `state`."""
    return next(i for i in count() if pattern.format(i) not in state)


def check_content(content: dict, path: str | Path) -> dict:
    """`content`, if it is that of a checkpoint of stage A or B (by its `format`) as far as its tensors are not needed.

    Raises UserError.
    """
    checked(record(format=Literal[FORMATS]), content, str(path))
    stage_b = content["format"] == weights.FORMAT
    checked(STAGE_B if stage_b else STAGE_A, content, str(path), "is it a whole checkpoint?")
    check_tensors(content["model"], f"{path}: model")
    if stage_b:
        condition = torch.empty(CONTEXT_LENGTH, content["config"]["conditioner"]["context_dim"], device="meta")
        check_state({"no_context": condition}, {"no_context": content["no_context"]}, f"{path}:")
        check_finite({"no_context": content["no_context"]}, str(path))
    return content


def _published(content: dict, key: str, parts: tuple[str, ...], kind: str, path: str | Path) -> tuple[dict, dict]:
    """Tensors and the configuration of a published file. Raises UserError."""
    state = weights.known_part(content.get(key), parts, kind, path)
    given = content.get("config")
    given = vars(given) if isinstance(given, weights.Inert) else given or {}
    return state, checked(GIVEN, given, f"{path}: config")


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
        return check_content(checkpoints.load(path, ("eeg-mae-1",), what), path)
    content = weights.read_foreign(path, what)
    state, given = _published(content, "model", MAE_PARTS, PUBLISHED_A, path)
    with as_sentence(f"{path}: lacks tensors of a {what}, or has them in other shapes"):
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
        return check_content(checkpoints.load(path, (weights.FORMAT,), what), path)
    content = weights.read_foreign(path, what)
    known = (UNET_PREFIX, VAE_PREFIX, CONDITIONER_PREFIX)
    state, given = _published(content, "model_state_dict", known, PUBLISHED_B, path)
    yaml = Path(pretrain_gm_path) / "models" / "config15.yaml"
    sizes = weights.read_sizes(yaml) if yaml.is_file() else weights.published_sizes()
    condition = part(state, CONDITIONER_PREFIX)
    use_time_cond = any(name.startswith(f"{UNET_PREFIX}time_embed_condtion.") for name in state)
    with as_sentence(f"{path}: lacks tensors of a {what}, or has them in other shapes"):
        context_dim, clip_dim = len(condition["dim_mapper.bias"]), len(condition["mapping.fc.bias"])
        length = len(condition["channel_mapper.1.bias"])
        encoder = encoder_sizes(part(condition, "mae."), given.get("num_heads", HEADS))
    maps = {"context_dim": context_dim, "clip_dim": clip_dim, "clip_head": "tokens"}
    return {
        "format": weights.FORMAT,
        "model": weights.trained_part(state),
        "no_context": torch.zeros(length, context_dim),
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
