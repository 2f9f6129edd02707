"""Sizes, machine and inputs of `benchmark.py`.

Shapes: n pictures, h latent side, W width of the condition.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dc_ldm.generator import EEGImageGenerator
from dc_ldm.models.autoencoder import AutoencoderKL
from dc_ldm.models.samplers import sd_alphas_cumprod
from dc_ldm.models.unet import UNet
from dc_ldm.modules.conditioner import EEGConditioner
from dc_ldm.weights import Base, BaseSizes, published_sizes
from miniature.diffusion import UNET_SIZES, VAE_SIZES
from sc_mbm.mae_for_eeg import EEGEncoder

SMALL_ENCODER = {"embed_dim": 128, "depth": 2, "num_heads": 2, "mlp_ratio": 2.0}
PAPER_ENCODER = {"embed_dim": 1024, "depth": 24, "num_heads": 16, "mlp_ratio": 4.0}
PAPER_DECODER = {"decoder_embed_dim": 512, "decoder_depth": 8, "decoder_num_heads": 16}
SMALL_DECODER = {"decoder_embed_dim": 128, "decoder_depth": 2, "decoder_num_heads": 2}
FULL = published_sizes()


class Size(NamedTuple):
    """Networks of one size, and how much work a timed call is."""

    name: str
    base: BaseSizes  # of UNet and autoencoder
    latent: int  # h
    encoder: dict
    decoder: dict
    batch: int  # trials or windows in a training step
    pictures: int  # pictures that our sampler draws at once
    clip: dict  # of transformers' vision tower


def _clip(width: int, layers: int, patch: int, side: int, dim: int) -> dict:
    return {
        "hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers,
        "num_attention_heads": width // 64, "patch_size": patch, "image_size": side, "projection_dim": dim,
    }  # fmt: skip


_HALF = BaseSizes(FULL.unet | {"model_channels": 160}, FULL.vae | {"ch": 64})
_ALL = (
    Size("miniature", BaseSizes(UNET_SIZES, VAE_SIZES), 8, SMALL_ENCODER, SMALL_DECODER, 32, 16,
         _clip(64, 2, 8, 64, 64)),
    Size("half", _HALF, 32, PAPER_ENCODER, PAPER_DECODER, 4, 4, _clip(512, 12, 14, 224, 768)),
    Size("full", FULL, 64, PAPER_ENCODER, PAPER_DECODER, 1, 1, _clip(1024, 24, 14, 224, 768)),
)  # fmt: skip
SIZES = {size.name: size for size in _ALL}


class Machine(NamedTuple):
    """Where and in what precision the networks run."""

    device: torch.device
    dtype: torch.dtype

    @property
    def precision(self) -> str:
        """The stages' word for `dtype`."""
        return "32" if self.dtype == torch.float32 else "bf16"

    def autocast(self) -> torch.autocast:
        """Our training's precision: weights in float32, products in `dtype`."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)


class Row(NamedTuple):
    """One comparison: calls that do the same work; `per` says what one call's time is divided by."""

    ours: Callable[[], object]
    peers: dict[str, Callable[[], object]]
    per: dict[str, float] | None = None  # calls may do different amounts of work: units done by "ours" and each peer
    unit: str = "call"


def new_unet(size: Size, use_time_cond: bool = False) -> UNet:
    """Our network, always with the same random weights, also where Stable Diffusion's branches start at zero."""
    torch.manual_seed(0)
    unet = UNet(**size.base.unet, use_time_cond=use_time_cond)
    for parameter in unet.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    return unet


def new_conditioner(size: Size) -> EEGConditioner:
    """Our encoder and its maps, untrained."""
    torch.manual_seed(0)
    widths = {"context_dim": size.base.unet["context_dim"], "clip_dim": size.clip["projection_dim"]}
    return EEGConditioner(EEGEncoder(**size.encoder), **widths)


def inputs(size: Size, machine: Machine, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Latents (n, 4, h, h), time steps (n,), condition (n, 77, W)."""
    x, context = torch.randn(n, 4, size.latent, size.latent), torch.randn(n, 77, size.base.unet["context_dim"])
    return x.to(*machine), torch.randint(0, 1000, (n,), device=machine.device), context.to(*machine)


def product(
    size: Size, machine: Machine, unet: UNet, vae: AutoencoderKL, conditioner: nn.Module | None = None
) -> EEGImageGenerator:
    """Our networks, placed and laid out in memory as they are for every user's pictures."""
    placed = Base(unet.eval(), vae.eval(), size.base, "untrained", "").ready(*machine)
    shape, nothing = (4, size.latent, size.latent), torch.zeros(77, size.base.unet["context_dim"])
    return EEGImageGenerator(conditioner or nn.Identity(), *placed, sd_alphas_cumprod(), nothing, shape)
