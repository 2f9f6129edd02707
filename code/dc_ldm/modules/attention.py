"""Attention, normalisation and what else the networks of Stable Diffusion have in common.

Shapes: B batch, N tokens, M context tokens, D width, H heads, E width of a head, c channels, h x w latent.
Module names are those of the published weights (`attn1`, `to_q`, `ff.net.0.proj` ...).
"""

from collections import OrderedDict

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from runtime.attention import attention


class GroupNorm(nn.GroupNorm):
    """Group normalisation answered in the input's type, with statistics in at least float32.

    32 groups as in the published weights. Narrower ones (the miniature autoencoder's) get groups of 4 channels,
    which is what the published autoencoder has at full resolution: with one channel a group, a picture's mean
    colour would be normalised away.
    """

    def __init__(self, channels: int, eps: float):
        super().__init__(32 if channels >= 32 else max(1, channels // 4), channels, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x (B, c, ...)."""
        half = x.dtype == torch.bfloat16
        if half and x.device.type == "cpu" and x[0, 0].numel() < 1024 and not x.is_contiguous():
            x32 = x.float()  # below 1024 pixels the CPU's kernel for channels last is 4 to 10 times slower in bfloat16
            return F.group_norm(x32, self.num_groups, self.weight.float(), self.bias.float(), self.eps).to(x.dtype)
        # torch's kernels take bfloat16 and sum it in float32; autocast on a GPU makes float32 copies all the same
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        return F.group_norm(x, self.num_groups, weight, bias, self.eps).to(x.dtype)


KeysValues = tuple[Tensor, Tensor]  # of a context: both (B, H, M, E)


class CrossAttention(nn.Module):
    """Multi-head attention of x over a context, or over x itself where none is given."""

    def __init__(self, dim: int, context_dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_k = nn.Linear(context_dim, dim, bias=False)
        self.to_v = nn.Linear(context_dim, dim, bias=False)
        self.to_out = nn.Sequential(nn.Linear(dim, dim))

    def split(self, x: Tensor) -> Tensor:
        """(B, N, H * E) -> (B, H, N, E)."""
        return rearrange(x, "b n (h e) -> b h n e", h=self.num_heads)

    def keys_values(self, context: Tensor) -> KeysValues:
        """What `forward` needs of a context (B, M, context_dim)."""
        return self.split(self.to_k(context)), self.split(self.to_v(context))

    def forward(self, x: Tensor, context: KeysValues | None = None) -> Tensor:
        """x (B, N, D), keys and values of a context -> (B, N, D)."""
        k, v = self.keys_values(x) if context is None else context
        return self.to_out(rearrange(attention(self.split(self.to_q(x)), k, v), "b h n e -> b n (h e)"))


class GEGLU(nn.Module):
    """Gated linear unit with an exact GELU on the second half (arXiv 2002.05202)."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.proj = nn.Linear(dim, 2 * hidden)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, N, dim) -> (B, N, hidden)."""
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class TransformerBlock(nn.Module):
    """Self-attention, attention over the context, feed-forward; each after a LayerNorm and added back."""

    def __init__(self, dim: int, context_dim: int, num_heads: int):
        super().__init__()
        self.attn1 = CrossAttention(dim, dim, num_heads)
        # Index 1 is the published model's dropout of zero.
        self.ff = named(net=nn.Sequential(GEGLU(dim, 4 * dim), nn.Identity(), nn.Linear(4 * dim, dim)))
        self.attn2 = CrossAttention(dim, context_dim, num_heads)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)

    def forward(self, x: Tensor, context: KeysValues) -> Tensor:
        """x (B, N, D), keys and values of a context -> (B, N, D)."""
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """A transformer block over the pixels of a feature map, added to it."""

    def __init__(self, channels: int, context_dim: int, num_heads: int):
        super().__init__()
        self.norm = GroupNorm(channels, eps=1e-6)
        self.proj_in = nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(channels, context_dim, num_heads)])
        self.proj_out = zeroed(nn.Conv2d(channels, channels, 1))

    def keys_values(self, context: Tensor) -> KeysValues:
        """What `forward` needs of a context (B, M, context_dim)."""
        return self.transformer_blocks[0].attn2.keys_values(context)

    def forward(self, x: Tensor, context: KeysValues) -> Tensor:
        """x (B, c, h, w), keys and values of a context -> (B, c, h, w)."""
        tokens = rearrange(self.proj_in(self.norm(x)), "b c h w -> b (h w) c")
        tokens = self.transformer_blocks[0](tokens, context)
        return x + self.proj_out(rearrange(tokens, "b (h w) c -> b c h w", h=x.shape[2]))


def named(**layers: nn.Module) -> nn.Sequential:
    """Layers in a row whose parameters are called after their keyword."""
    return nn.Sequential(OrderedDict(layers))


def upsample(channels: int) -> nn.Sequential:
    """Double height and width: (B, c, h, w) -> (B, c, 2h, 2w), each pixel four times, then a convolution."""
    return named(larger=nn.Upsample(scale_factor=2), conv=nn.Conv2d(channels, channels, 3, padding=1))


def residual(in_channels: int, out_channels: int) -> nn.Module:
    """What a block adds its answer to: its input, brought to the new width where that differs."""
    return nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)


def zeroed(module: nn.Module) -> nn.Module:
    """The module with all parameters at zero: a residual branch that starts as the identity."""
    for p in module.parameters():
        nn.init.zeros_(p)
    return module
