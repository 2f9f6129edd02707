"""The variational autoencoder of Stable Diffusion 1.5: pictures to latents an eighth as wide, and back.

Shapes: B batch, c channels, H x W picture, h x w latent. Values of pictures lie in [-1, 1].
Parameter names are those of the published weights (`encoder.down.0.block.0.conv1` ...).
"""

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from dc_ldm.modules.attention import GroupNorm, attention

EPS = 1e-6  # of every normalisation in the published autoencoder


def norm_swish(norm: nn.Module, x: Tensor) -> Tensor:
    """x * sigmoid(x) of the normalised input, shape kept."""
    return F.silu(norm(x))


class ResBlock(nn.Module):
    """Two convolutions, each after normalisation and swish, added to the input."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.norm1 = GroupNorm(in_channels, EPS)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = GroupNorm(out_channels, EPS)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        if in_channels != out_channels:
            self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, in, h, w) -> (B, out, h, w)."""
        hidden = self.conv1(norm_swish(self.norm1, x))
        hidden = self.conv2(norm_swish(self.norm2, hidden))
        return hidden + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


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


class Downsample(nn.Module):
    """Halve height and width."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, c, h, w) -> (B, c, h/2, w/2)."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))  # the weights were trained with padding on the right and below only


class Upsample(nn.Module):
    """Double height and width."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, c, h, w) -> (B, c, 2h, 2w)."""
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class Middle(nn.Module):
    """Block, attention, block at the lowest resolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.block_1 = ResBlock(channels, channels)
        self.attn_1 = AttnBlock(channels)
        self.block_2 = ResBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, c, h, w) -> the same."""
        return self.block_2(self.attn_1(self.block_1(x)))


class Level(nn.Module):
    """The blocks of one resolution; the change of resolution follows as `downsample` or `upsample`."""

    def __init__(self, in_channels: int, out_channels: int, num_blocks: int):
        super().__init__()
        widths = [in_channels] + [out_channels] * num_blocks
        self.block = nn.ModuleList(ResBlock(*pair) for pair in zip(widths, widths[1:], strict=False))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, in, h, w) -> (B, out, h', w')."""
        for block in self.block:
            x = block(x)
        for name in ("downsample", "upsample"):
            if hasattr(self, name):
                x = getattr(self, name)(x)
        return x


class Encoder(nn.Module):
    """Picture (B, 3, H, W) -> moments (B, 2z, h, w) before the last 1 x 1 convolution."""

    def __init__(self, ch: int, ch_mult: tuple[int, ...], num_res_blocks: int, z_channels: int):
        super().__init__()
        widths = [ch] + [ch * mult for mult in ch_mult]
        self.conv_in = nn.Conv2d(3, ch, 3, padding=1)
        pairs = zip(widths, widths[1:], strict=False)
        self.down = nn.ModuleList(Level(*pair, num_res_blocks) for pair in pairs)
        for level in self.down[:-1]:
            level.downsample = Downsample(level.block[-1].conv2.out_channels)
        self.mid = Middle(widths[-1])
        self.norm_out = GroupNorm(widths[-1], EPS)
        self.conv_out = nn.Conv2d(widths[-1], 2 * z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, 3, H, W) -> (B, 2z, h, w)."""
        hidden = self.conv_in(x)
        for level in self.down:
            hidden = level(hidden)
        return self.conv_out(norm_swish(self.norm_out, self.mid(hidden)))


class Decoder(nn.Module):
    """Latent (B, z, h, w) -> picture (B, 3, H, W); numbered by resolution, so the last level runs first."""

    def __init__(self, ch: int, ch_mult: tuple[int, ...], num_res_blocks: int, z_channels: int):
        super().__init__()
        widths = [ch * mult for mult in ch_mult]
        widths.append(widths[-1])
        self.conv_in = nn.Conv2d(z_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1])
        levels = zip(widths[1:], widths, strict=False)
        self.up = nn.ModuleList(Level(*pair, num_res_blocks + 1) for pair in levels)
        for level in self.up[1:]:
            level.upsample = Upsample(level.block[-1].conv2.out_channels)
        self.norm_out = GroupNorm(widths[0], EPS)
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """z (B, z, h, w) -> (B, 3, H, W)."""
        hidden = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            hidden = level(hidden)
        return self.conv_out(norm_swish(self.norm_out, hidden))


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
        self.encoder = Encoder(ch, ch_mult, num_res_blocks, z_channels)
        self.decoder = Decoder(ch, ch_mult, num_res_blocks, z_channels)
        self.quant_conv = nn.Conv2d(2 * z_channels, 2 * z_channels, 1)
        self.post_quant_conv = nn.Conv2d(z_channels, z_channels, 1)

    def encode(self, x: Tensor) -> Posterior:
        """Pictures (B, 3, H, W) in [-1, 1] -> posterior over latents (B, z, h, w)."""
        mean, logvar = self.quant_conv(self.encoder(x)).chunk(2, dim=1)
        return Posterior(mean, logvar.clamp(-30.0, 20.0))

    def decode(self, z: Tensor) -> Tensor:
        """Latents (B, z, h, w), unscaled -> pictures (B, 3, H, W), about [-1, 1]."""
        return self.decoder(self.post_quant_conv(z))
