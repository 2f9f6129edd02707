"""Stable Diffusion 1.5's file in, our stage B checkpoint in and out; strictly, parts of a file by prefix."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from safetensors.torch import load_file
from torch import Tensor, nn
from yaml import YAMLError

from dc_ldm.models.autoencoder import AutoencoderKL
from dc_ldm.models.unet import UNet
from dc_ldm.modules.conditioner import EEGConditioner
from runtime import checkpoints
from runtime.errors import UserError

FORMAT = "eeg-ldm-1"
UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
CONDITIONER_PREFIX = "cond_stage_model."
BASE_NAMES = ("v1-5-pruned.safetensors", "v1-5-pruned.ckpt")
UNET_SIZES = ("in_channels", "out_channels", "model_channels", "attention_resolutions", "num_res_blocks")
UNET_SIZES += ("channel_mult", "num_heads", "context_dim")
VAE_SIZES = ("ch", "ch_mult", "num_res_blocks", "z_channels")


@dataclass
class BaseSizes:
    """What Stable Diffusion's file does not say: arguments of UNet and AutoencoderKL, latent scale, betas."""

    unet: dict[str, Any]
    vae: dict[str, Any]
    scale_factor: float = 0.18215
    linear_start: float = 0.00085
    linear_end: float = 0.0120

    def latent_shape(self, img_size: int) -> tuple[int, int, int]:
        """(4, h, w) of a picture of img_size pixels a side: an eighth of it for Stable Diffusion. Raises UserError."""
        factor = 2 ** (len(self.vae["ch_mult"]) - 1)
        if img_size <= 0 or img_size % factor:
            raise UserError(f"img_size={img_size}: this autoencoder takes positive multiples of {factor}")
        return self.vae["z_channels"], img_size // factor, img_size // factor


@dataclass
class Base:
    """Frozen Stable Diffusion, with its file's name and sha256, which our checkpoints hold in its stead."""

    unet: UNet
    vae: AutoencoderKL
    sizes: BaseSizes
    name: str
    sha256: str


def part(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose name starts with `prefix`, under their name without it."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def load_strictly(module: nn.Module, state: dict[str, Tensor], what: str) -> None:
    """Copy `state` into `module`. Raises UserError, with counts and a name, unless names and shapes agree."""
    own = module.state_dict()
    missing = [name for name in own if name not in state]
    unexpected = [name for name in state if name not in own]
    reshaped = [name for name in own if name in state and own[name].shape != state[name].shape]
    problems = [f"lacks {len(missing)} tensors (first: {missing[0]})"] if missing else []
    if unexpected:
        problems.append(f"holds {len(unexpected)} that this model has not (first: {unexpected[0]})")
    if reshaped:
        name = reshaped[0]
        found, expected = tuple(state[name].shape), tuple(own[name].shape)
        problems.append(f"has {len(reshaped)} of another shape (first: {name} is {found}, expected {expected})")
    if problems:
        raise UserError(f"{what} {', '.join(problems)}; is it the file of another model or size?")
    module.load_state_dict(state)


def base_files(pretrain_gm_path: str | Path) -> tuple[Path, Path]:
    """Weights (safetensors first) and config15.yaml under `<pretrain_gm_path>/models/`. Raises UserError."""
    folder = Path(pretrain_gm_path) / "models"
    weights = next((folder / name for name in BASE_NAMES if (folder / name).is_file()), None)
    if weights is None:
        raise UserError(
            f"{folder}: no Stable Diffusion weights ({' or '.join(BASE_NAMES)}); "
            "put them there, or set pretrain_gm_path"
        )
    config = folder / "config15.yaml"
    if not config.is_file():
        raise UserError(f"{config} is missing; it holds the sizes of {weights.name}")
    return weights, config


def read_sizes(path: str | Path) -> BaseSizes:
    """Sizes from config15.yaml, whose class names (`target`) are never read. Raises UserError."""
    try:
        params = OmegaConf.to_container(OmegaConf.load(path), resolve=True)["model"]["params"]
        unet, stage = params["unet_config"]["params"], params["first_stage_config"]["params"]["ddconfig"]
        return BaseSizes(
            unet={name: unet[name] for name in UNET_SIZES},
            vae={name: stage[name] for name in VAE_SIZES},
            **{name: float(params[name]) for name in ("scale_factor", "linear_start", "linear_end")},
        )
    except KeyError as error:
        raise UserError(f"{path} has no entry {error} where Stable Diffusion's config15.yaml has one") from error
    except (OSError, TypeError, ValueError, YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{path} is not a Stable Diffusion config: {str(error).splitlines()[0]}") from error


class _Inert:
    """Stands for the Lightning class whose bare name is a dictionary key in v1-5-pruned.ckpt."""


def read_base(path: str | Path) -> dict[str, Tensor]:
    """Tensors of v1-5-pruned in either file format, without executing anything in it. Raises UserError."""
    path = Path(path)
    if path.suffix != ".safetensors":
        with torch.serialization.safe_globals(
            [(_Inert, "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint")]
        ):
            content = checkpoints.read_plain(path, "Stable Diffusion checkpoint")
        if not isinstance(content.get("state_dict"), dict):
            raise UserError(f"{path} has no `state_dict`; it is not a Stable Diffusion checkpoint")
        return content["state_dict"]
    try:
        return load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{path} is truncated or not a safetensors file: {str(error).splitlines()[0]}") from error


def load_base(pretrain_gm_path: str | Path, use_time_cond: bool = True) -> Base:
    """Stable Diffusion in fp32 on the CPU, nothing trainable. Raises UserError.

    The time condition, which the file does not have, keeps its random start.
    The random start comes from torch's global generator: seed it, or load a checkpoint over it.
    """
    path, config = base_files(pretrain_gm_path)
    sizes = read_sizes(config)
    state = read_base(path)
    unet = UNet(**sizes.unet, use_time_cond=use_time_cond)
    vae = AutoencoderKL(**sizes.vae)
    added = {name: value for name, value in unet.state_dict().items() if name.startswith("time_embed_condtion.")}
    load_strictly(unet, part(state, UNET_PREFIX) | added, f"{path}: the UNet")
    load_strictly(vae, part(state, VAE_PREFIX), f"{path}: the VAE")
    for module in (unet, vae):
        module.eval().requires_grad_(False)
    return Base(unet, vae, sizes, path.name, checkpoints.sha256(path))


def trained_unet_tensors(unet: UNet) -> dict[str, nn.Parameter]:
    """The UNet's trained part, by name: cross-attention, the norm before it, the time condition."""
    return {
        name: parameter
        for name, parameter in unet.named_parameters()
        if name.startswith("time_embed_condtion.")
        or ".attn2." in name
        or ("transformer_blocks" in name and ".norm2." in name)
    }


def trained_state(conditioner: EEGConditioner, unet: UNet) -> dict[str, Tensor]:
    """Copies of the trained part (and of the conditioner's constants), under the published names."""
    state = {CONDITIONER_PREFIX + name: value for name, value in conditioner.state_dict().items()}
    state |= {UNET_PREFIX + name: value for name, value in trained_unet_tensors(unet).items()}
    return {name: value.detach().cpu().clone() for name, value in state.items()}


def load_trained_state(conditioner: EEGConditioner, unet: UNet, state: dict[str, Tensor], what: str) -> None:
    """Inverse of `trained_state`: strict about names and shapes on both sides. Raises UserError."""
    load_strictly(conditioner, part(state, CONDITIONER_PREFIX), f"{what}: the EEG conditioner")
    trained = part(state, UNET_PREFIX)
    foreign = set(trained) ^ set(trained_unet_tensors(unet))
    if foreign:
        raise UserError(
            f"{what}: the trained part of the UNet differs by {len(foreign)} tensors (first: {min(foreign)})"
        )
    load_strictly(unet, unet.state_dict() | trained, f"{what}: the UNet")


def model_config(
    base: Base, encoder: dict, conditioner: dict, use_time_cond: bool, img_size: int, cond_drop: float
) -> dict[str, Any]:
    """The `config` entry of a stage B checkpoint: what is needed to build its models again, in plain values.

    encoder and conditioner are their classes' keyword arguments; img_size is in pixels, cond_drop a share.
    """
    sizes = asdict(base.sizes)
    sizes["unet"]["use_time_cond"] = use_time_cond
    parts = {"encoder": encoder, "conditioner": conditioner}
    return sizes | parts | {"img_size": img_size, "cond_drop": cond_drop}
