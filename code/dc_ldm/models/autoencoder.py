"""The variational autoencoder of Stable Diffusion 1.5: pictures to latents an eighth as wide, and back.

Shapes: B batch, c channels, H x W picture, h x w latent. Values of pictures lie in [-1, 1].
Parameter names are those of the published weights (`encoder.down.0.block.0.conv1` ...).
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from dc_ldm.modules.attention import GroupNorm, named, residual, upsample
from runtime.attention import attention

EPS = 1e-6  # of every normalisation in the published autoencoder


class ResBlock(nn.Module):
    """Two convolutions, each after normalisation and swish, added to the input."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.norm1 = GroupNorm(in_channels, EPS)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = GroupNorm(out_channels, EPS)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.nin_shortcut = residual(in_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, in, h, w) -> (B, out, h, w)."""
        hidden = self.conv1(F.silu(self.norm1(x)))
        return self.nin_shortcut(x) + self.conv2(F.silu(self.norm2(hidden)))


class AttnBlock(nn.Module):
    """One-head attention over the pixels, added to the input."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = GroupNorm(channels, EPS)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, c, h, w) -> the same."""
        normed = self.norm(x)
        q, k, v = (rearrange(conv(normed), "b c h w -> b 1 (h w) c") for conv in (self.q, self.k, self.v))
        return x + self.proj_out(rearrange(attention(q, k, v), "b 1 (h w) c -> b c h w", h=x.shape[2]))


def downsample(channels: int) -> nn.Sequential:
    """Halve height and width: (B, c, h, w) -> (B, c, h/2, w/2)."""
    # The weights were trained with padding on the right and below only.
    return named(pad=nn.ZeroPad2d((0, 1, 0, 1)), conv=nn.Conv2d(channels, channels, 3, stride=2))


def middle(channels: int) -> nn.Sequential:
    """Block, attention, block at the lowest resolution: (B, c, h, w) -> the same."""
    return named(block_1=ResBlock(channels, channels), attn_1=AttnBlock(channels), block_2=ResBlock(channels, channels))


def level(in_channels: int, out_channels: int, num_blocks: int, **change: nn.Module) -> nn.Sequential:
    """The blocks of one resolution, then its `change`, if any: (B, in, h, w) -> (B, out, h', w')."""
    widths = [in_channels] + [out_channels] * num_blocks
    return named(block=nn.Sequential(*(ResBlock(*pair) for pair in pairwise(widths))), **change)


def encoder(ch: int, ch_mult: tuple[int, ...], num_res_blocks: int, z_channels: int) -> nn.Sequential:
    """Picture (B, 3, H, W) -> moments (B, 2z, h, w) before the last 1 x 1 convolution."""
    *inner, last = pairwise([ch] + [ch * mult for mult in ch_mult])
    levels = [level(*pair, num_res_blocks, downsample=downsample(pair[1])) for pair in inner]
    return named(
        conv_in=nn.Conv2d(3, ch, 3, padding=1),
        down=nn.Sequential(*levels, level(*last, num_res_blocks)),
        mid=middle(last[1]),
        norm_out=GroupNorm(last[1], EPS),
        swish=nn.SiLU(),
        conv_out=nn.Conv2d(last[1], 2 * z_channels, 3, padding=1),
    )


def decoder(ch: int, ch_mult: tuple[int, ...], num_res_blocks: int, z_channels: int) -> nn.Sequential:
    """Latent (B, z, h, w) -> picture (B, 3, H, W); numbered by resolution, so the last level runs first."""
    widths = [ch * mult for mult in ch_mult]
    levels = {}
    for i, (after, before) in enumerate(pairwise([*widths, widths[-1]])):
        change = {"upsample": upsample(after)} if i else {}
        levels[str(i)] = level(before, after, num_res_blocks + 1, **change)
    return named(
        conv_in=nn.Conv2d(z_channels, widths[-1], 3, padding=1),
        mid=middle(widths[-1]),
        up=named(**dict(reversed(levels.items()))),
        norm_out=GroupNorm(widths[0], EPS),
        swish=nn.SiLU(),
        conv_out=nn.Conv2d(widths[0], 3, 3, padding=1),
    )


@dataclass
class Posterior:
    """Gaussian over latents: mean and log-variance, both (B, z, h, w)."""

    mean: Tensor
    logvar: Tensor

    @property
    def std(self) -> Tensor:
        """Standard deviation (B, z, h, w)."""
        return torch.exp(0.5 * self.logvar)

    def sample(self, noise: Tensor) -> Tensor:
        """mean + std * noise, for standard normal noise (B, z, h, w) drawn by the caller."""
        return self.mean + self.std * noise


class AutoencoderKL(nn.Module):
    """The autoencoder of arXiv 2112.10752 (KL-regularised); the defaults are Stable Diffusion 1.5's sizes.

    The picture shrinks by 2^(len(ch_mult) - 1) in each direction. Latents here are unscaled; Stable Diffusion
    multiplies them by its scale factor (0.18215) outside.
    """

    def __init__(
        self, ch: int = 128, ch_mult: tuple[int, ...] = (1, 2, 4, 4), num_res_blocks: int = 2, z_channels: int = 4
    ):
        super().__init__()
        self.encoder = encoder(ch, ch_mult, num_res_blocks, z_channels)
        self.decoder = decoder(ch, ch_mult, num_res_blocks, z_channels)
        self.quant_conv = nn.Conv2d(2 * z_channels, 2 * z_channels, 1)
        self.post_quant_conv = nn.Conv2d(z_channels, z_channels, 1)

    def encode(self, x: Tensor) -> Posterior:
        """Pictures (B, 3, H, W) in [-1, 1] -> posterior over latents (B, z, h, w)."""
        mean, logvar = self.quant_conv(self.encoder(x)).chunk(2, dim=1)
        return Posterior(mean, logvar.clamp(-30.0, 20.0))

    def decode(self, z: Tensor) -> Tensor:
        """Latents (B, z, h, w), unscaled -> pictures (B, 3, H, W), about [-1, 1]."""
        return self.decoder(self.post_quant_conv(z))
