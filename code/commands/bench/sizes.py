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
from dc_ldm.weights import Base, BaseSizes
from sc_mbm.mae_for_eeg import EEGEncoder

FULL_UNET = {"model_channels": 320, "attention_resolutions": (4, 2, 1), "channel_mult": (1, 2, 4, 4)}
SMALL_ENCODER = {"embed_dim": 128, "depth": 2, "num_heads": 2, "mlp_ratio": 2.0}
PAPER_ENCODER = {"embed_dim": 1024, "depth": 24, "num_heads": 16, "mlp_ratio": 4.0}


class Size(NamedTuple):
    """Networks of one size, and how much work a timed call is."""

    unet: dict
    vae: dict
    context_dim: int
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


def _decoder(width: int, depth: int, heads: int) -> dict:
    return {"decoder_embed_dim": width, "decoder_depth": depth, "decoder_num_heads": heads}


SIZES = {
    "miniature": Size(
        {"model_channels": 64, "attention_resolutions": (2, 1), "num_res_blocks": 1, "channel_mult": (1, 2),
         "num_heads": 4},
        {"ch": 16}, 64, 8, SMALL_ENCODER, _decoder(128, 2, 2), 32, 16, _clip(64, 2, 8, 64, 64),
    ),
    "half": Size(FULL_UNET | {"model_channels": 160}, {"ch": 64}, 768, 32, PAPER_ENCODER, _decoder(512, 8, 16), 4, 4,
                 _clip(512, 12, 14, 224, 768)),
    "full": Size(FULL_UNET, {}, 768, 64, PAPER_ENCODER, _decoder(512, 8, 16), 1, 1, _clip(1024, 24, 14, 224, 768)),
}  # fmt: skip


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


def unet(size: Size, **changes) -> UNet:
    """Our network, always with the same random weights; `changes` are arguments of UNet."""
    torch.manual_seed(0)
    return UNet(**size.unet, context_dim=size.context_dim, **{"use_time_cond": False} | changes)


def awake(unet: UNet) -> UNet:
    """The network with small random weights where Stable Diffusion's branches start at zero, so that answers differ."""
    for parameter in unet.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    return unet


def inputs(size: Size, machine: Machine, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Latents (n, 4, h, h), time steps (n,), condition (n, 77, W)."""
    x = torch.randn(n, 4, size.latent, size.latent).to(*machine)
    return x, torch.randint(0, 1000, (n,), device=machine.device), torch.randn(n, 77, size.context_dim).to(*machine)


def product(
    size: Size, machine: Machine, unet: UNet, vae: AutoencoderKL, conditioner: nn.Module | None = None
) -> EEGImageGenerator:
    """Our networks, placed and laid out in memory as they are for every user's pictures."""
    placed = Base(unet.eval(), vae.eval(), BaseSizes(size.unet, size.vae), "untrained", "").ready(*machine)
    shape, nothing = (4, size.latent, size.latent), torch.zeros(77, size.context_dim)
    return EEGImageGenerator(conditioner or nn.Identity(), *placed, sd_alphas_cumprod(), nothing, shape)


def conditioner(size: Size) -> EEGConditioner:
    """Our encoder and its maps, untrained."""
    torch.manual_seed(0)
    return EEGConditioner(
        EEGEncoder(**size.encoder), context_dim=size.context_dim, clip_dim=size.clip["projection_dim"]
    )
