"""Weights from files, strictly: Stable Diffusion 1.5's, our checkpoints, and the published ones of stages A and B."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from inspect import signature
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from dc_ldm.models.autoencoder import AutoencoderKL
from dc_ldm.models.unet import UNet
from dc_ldm.modules.conditioner import EEGConditioner
from runtime import checkpoints, digests
from runtime.checkpoints import check_finite, check_state, check_tensors, load_strictly, on_meta
from runtime.contents import Positive, Size
from runtime.errors import UserError
from runtime.file_kinds import PUBLISHED_A, PUBLISHED_B, SD1, UNKNOWN, expect, file_kind, names_in
from runtime.model_files import read_tensors
from runtime.plain import checked, read_yaml, record

FORMAT = "eeg-ldm-1"
UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
CONDITIONER_PREFIX = "cond_stage_model."
TIME_CONDITION = "time_embed_condtion."  # of the UNet, misspelt as published; Stable Diffusion has no such part
BASE_NAMES = ("v1-5-pruned.safetensors", "v1-5-pruned.ckpt")
UNET_SIZES = ("in_channels", "out_channels", "model_channels", "attention_resolutions", "num_res_blocks")
UNET_SIZES += ("channel_mult", "num_heads", "context_dim")
VAE_SIZES = ("ch", "ch_mult", "num_res_blocks", "z_channels")
# Kinds of these, and of config15.yaml as far as it is read
_FEW, _LEVELS = Annotated[int, Field(ge=1, le=16)], Annotated[Sequence[Size], Field(min_length=1, max_length=16)]
UNET_KINDS = dict.fromkeys(UNET_SIZES, Size) | {"num_res_blocks": _FEW}
UNET_KINDS |= {"channel_mult": _LEVELS, "attention_resolutions": Annotated[Sequence[Size], Field(max_length=16)]}
VAE_KINDS = dict.fromkeys(VAE_SIZES, Size) | {"num_res_blocks": _FEW, "ch_mult": _LEVELS}
NOISE_KINDS = {"scale_factor": Positive} | dict.fromkeys(
    ("linear_start", "linear_end"), Annotated[Positive, Field(lt=1)]
)
_PARTS = {"unet_config": record(params=record(**UNET_KINDS))}
_PARTS["first_stage_config"] = record(params=record(ddconfig=record(**VAE_KINDS)))
CONFIG15 = record(model=record(params=record(**_PARTS, **NOISE_KINDS)))
# What foreign files hold besides: noise schedule (computed anew), averages, CLIP's towers (read from their own files).
# Each stands for all names that begin so.
SCHEDULE = """betas alphas_cumprod alphas_cumprod_prev sqrt_alphas_cumprod sqrt_one_minus_alphas_cumprod
log_one_minus_alphas_cumprod sqrt_recip_alphas_cumprod sqrt_recipm1_alphas_cumprod posterior_variance
posterior_log_variance_clipped posterior_mean_coef1 posterior_mean_coef2 lvlb_weights logvar scale_factor""".split()
IGNORED = {
    SD1: (*SCHEDULE, "model_ema.", CONDITIONER_PREFIX),
    PUBLISHED_B: (*SCHEDULE, "model_ema.", "image_embedder.", CONDITIONER_PREFIX + "cls_net."),
    PUBLISHED_A: ("nature_img_",),
}
# Classes of modules that are not here, which foreign files mention
FOREIGN_MODULES = ("config.", "pytorch_lightning.", "lightning.")


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
        whole = factor * 2 ** (len(self.unet["channel_mult"]) - 1)  # the UNet halves the latent too
        if img_size <= 0 or img_size % whole:
            raise UserError(f"img_size={img_size}: these networks take positive multiples of {whole}")
        return self.vae["z_channels"], img_size // factor, img_size // factor


def published_sizes() -> BaseSizes:
    """Those of Stable Diffusion 1.5, which the constructors have as defaults."""
    unet, vae = signature(UNet).parameters, signature(AutoencoderKL).parameters
    return BaseSizes({name: unet[name].default for name in UNET_SIZES}, {name: vae[name].default for name in VAE_SIZES})


@dataclass
class Base:
    """Frozen Stable Diffusion, with its file's name and sha256, which our checkpoints hold in its stead."""

    unet: UNet
    vae: AutoencoderKL
    sizes: BaseSizes
    name: str
    sha256: str

    def ready(self, device: torch.device, dtype: torch.dtype) -> tuple[UNet, AutoencoderKL]:
        """Networks ready to sample, channels last: measured no slower anywhere, and up to 1.8 times faster."""
        return tuple(m.to(device, dtype, memory_format=torch.channels_last) for m in (self.unet, self.vae))


def part(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose name starts with `prefix`, under their name without it."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def base_files(pretrain_gm_path: str | Path) -> tuple[Path, Path]:
    """Weights (safetensors first) and config15.yaml under `<pretrain_gm_path>/models/`. Raises UserError."""
    folder = Path(pretrain_gm_path) / "models"
    weights = next((folder / name for name in BASE_NAMES if (folder / name).is_file()), None)
    if weights is None:
        there = [(path.name, file_kind(path)) for path in (folder.parent, *sorted(folder.glob("*.*")))]
        said = "".join(f"; {name}: {kind}" for name, kind in there if kind not in ("folder", UNKNOWN, "missing"))
        raise UserError(
            f"{folder}: no Stable Diffusion weights ({' or '.join(BASE_NAMES)}){said}; "
            "put them there, or set pretrain_gm_path"
        )
    config = folder / "config15.yaml"
    if not config.is_file():
        raise UserError(f"{config} is missing; it holds the sizes of {weights.name}")
    return weights, config


def read_sizes(path: str | Path) -> BaseSizes:
    """Sizes from config15.yaml, whose class names (`target`) are never read. Raises UserError."""
    hint = "take Stable Diffusion 1.5's own"
    params = checked(CONFIG15, read_yaml(path, "Stable Diffusion config"), str(path), hint)["model"]["params"]
    unet, stage = params["unet_config"]["params"], params["first_stage_config"]["params"]["ddconfig"]
    return BaseSizes(
        unet={name: unet[name] for name in UNET_SIZES},
        vae={name: stage[name] for name in VAE_SIZES},
        **{name: float(params[name]) for name in ("scale_factor", "linear_start", "linear_end")},
    )


class Inert:
    """Stands for a class whose module is not here, such as the published `config`; holds attributes, does nothing."""

    def __init__(self, *_: object):
        """Takes what the class took."""


def read_foreign(path: str | Path, what: str) -> dict:
    """A torch file of somebody else's with nothing in it executed; classes of FOREIGN_MODULES become `Inert`.

    Raises UserError, as `checkpoints.read_plain`.
    """
    inert = [(Inert, name) for name in names_in(path)[1] if name.startswith(FOREIGN_MODULES)]
    with torch.serialization.safe_globals(inert):
        return checkpoints.read_plain(path, what)


def known_part(state: Any, known: tuple[str, ...], kind: str, path: str | Path) -> dict[str, Tensor]:
    """The tensors whose names start with one of `known`, without those of IGNORED[kind].

    Raises UserError as `check_tensors`, and for names of neither sort; says so of weights in half precision.
    """
    check_tensors(state, str(path))
    state = {name: value for name, value in state.items() if not name.startswith(IGNORED[kind])}
    if foreign := [name for name in state if not name.startswith(known)]:
        names = ", ".join(foreign[:10])
        raise UserError(f"{path}: {len(foreign)} tensors belong to no part of a {kind} file (first: {names})")
    if half := {value.dtype for value in state.values() if value.is_floating_point()} - {torch.float32}:
        print(f"{path} is stored as {half.pop()}; it is read as float32")
    return state


def read_base(path: str | Path) -> dict[str, Tensor]:
    """UNet and autoencoder of v1-5-pruned in either file format, nothing executed. Raises UserError."""
    what = "Stable Diffusion checkpoint (v1-5-pruned)"
    expect(path, (SD1,), what)
    read = read_tensors if Path(path).suffix == ".safetensors" else read_foreign
    content = read(Path(path), what)
    return known_part(content.get("state_dict", content), (UNET_PREFIX, VAE_PREFIX), SD1, path)


def assemble(state: dict[str, Tensor], sizes: BaseSizes, use_time_cond: bool, name: str, sha256: str) -> Base:
    """UNet and autoencoder in fp32 that hold the tensors of `state` themselves, nothing trainable. Raises UserError.

    A time condition that `state` lacks starts at random, from torch's global generator: seed it, or load over it.
    """
    unet = on_meta(lambda: UNet(**sizes.unet, use_time_cond=use_time_cond), f"{name}: the UNet")
    vae = on_meta(lambda: AutoencoderKL(**sizes.vae), f"{name}: the VAE")
    own = part(state, UNET_PREFIX)
    if use_time_cond and not part(own, TIME_CONDITION):
        for layer in unet.time_embed_condtion:
            layer.to_empty(device="cpu").reset_parameters()
        own |= {f"time_embed_condtion.{k}": value for k, value in unet.time_embed_condtion.state_dict().items()}
    load_strictly(unet, own, f"{name}: the UNet")
    load_strictly(vae, part(state, VAE_PREFIX), f"{name}: the VAE")
    for module in (unet, vae):
        module.eval().requires_grad_(False)
    return Base(unet, vae, sizes, Path(name).name, sha256)


def load_base(pretrain_gm_path: str | Path, use_time_cond: bool = True) -> Base:
    """Stable Diffusion in fp32 on the CPU, nothing trainable, as `assemble` says. Raises UserError."""
    path, config = base_files(pretrain_gm_path)
    return assemble(read_base(path), read_sizes(config), use_time_cond, str(path), digests.sha256(path))


def look_at_base(pretrain_gm_path: str | Path, whole: bool) -> BaseSizes:
    """Sizes of the Stable Diffusion in a folder; whole: also that its tensors are those of these sizes.

    Keeps none of them in memory. Raises UserError.
    """
    path, config = base_files(pretrain_gm_path)
    sizes = read_sizes(config)
    if whole:
        assemble({name: value.to("meta") for name, value in read_base(path).items()}, sizes, True, str(path), "")
    return sizes


def trained_unet_tensors(unet: UNet) -> dict[str, nn.Parameter]:
    """The UNet's trained part, by name: cross-attention, the norm before it, the time condition."""
    return {name: parameter for name, parameter in unet.named_parameters() if is_trained(name)}


def is_trained(name: str) -> bool:
    """Whether stage B trains the UNet's tensor of this name."""
    return name.startswith(TIME_CONDITION) or ".attn2." in name or "transformer_blocks.0.norm2." in name


def trained_part(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of tensors under their published names, those that a stage B checkpoint of ours holds."""
    held = (k for k in state if k.startswith(CONDITIONER_PREFIX) or is_trained(k.removeprefix(UNET_PREFIX)))
    return {name: state[name] for name in held}


def trained_state(conditioner: EEGConditioner, unet: UNet) -> dict[str, Tensor]:
    """Copies of the trained part (and of the conditioner's constants), under the published names."""
    state = {CONDITIONER_PREFIX + name: value for name, value in conditioner.state_dict().items()}
    state |= {UNET_PREFIX + name: value for name, value in trained_unet_tensors(unet).items()}
    return {name: value.detach().cpu().clone() for name, value in state.items()}


@torch.no_grad()
def load_trained_state(conditioner: EEGConditioner, unet: UNet, state: dict[str, Tensor], what: str) -> None:
    """Inverse of `trained_state`: strict about names and shapes on both sides. Raises UserError."""
    load_strictly(conditioner, part(state, CONDITIONER_PREFIX), f"{what}: the EEG conditioner")
    own, trained = trained_unet_tensors(unet), part(state, UNET_PREFIX)
    check_state(own, trained, f"{what}: the trained part of the UNet")
    check_finite(trained, f"{what}: the trained part of the UNet")
    for name, parameter in own.items():
        parameter.copy_(trained[name])
    print(f"{what}: the trained part of the UNet: {len(trained)} of {len(own)} tensors loaded")


def model_config(
    sizes: BaseSizes, encoder: dict, conditioner: dict, use_time_cond: bool, img_size: int, cond_drop: float
) -> dict[str, Any]:
    """The `config` entry of a stage B checkpoint: what is needed to build its models again, in plain values.

    encoder and conditioner are their classes' keyword arguments; img_size is in pixels, cond_drop a share.
    """
    config = asdict(sizes) | {"encoder": encoder, "conditioner": conditioner}
    config["unet"]["use_time_cond"] = use_time_cond
    return config | {"img_size": img_size, "cond_drop": cond_drop}
