"""The denoiser of Stable Diffusion 1.5, with DreamDiffusion's second path for the condition.

Shapes: B batch, c channels, h x w latent size, E width of the time embedding (4 x model_channels).
Parameter names are those of the published checkpoints, `time_embed_condtion` (sic) included.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dc_ldm.modules.attention import GroupNorm, KeysValues, SpatialTransformer, named, residual, upsample, zeroed
from runtime.errors import UserError


def timestep_embedding(t: Tensor, dim: int) -> Tensor:
    """Sinusoids of the time steps t (B,): (B, dim) float32, cosines first, frequencies 10000^(-2k/dim)."""
    frequency = torch.exp(torch.arange(dim // 2, dtype=torch.float32, device=t.device) * (-math.log(10000) * 2 / dim))
    angle = t[:, None].float() * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


class ResBlock(nn.Module):
    """Two convolutions with the time embedding added between them."""

    def __init__(self, in_channels: int, out_channels: int, emb_dim: int):
        super().__init__()
        conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.in_layers = nn.Sequential(GroupNorm(in_channels, eps=1e-5), nn.SiLU(), conv)
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_dim, out_channels))
        # Index 2 is the published model's dropout of zero.
        last = zeroed(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.out_layers = nn.Sequential(GroupNorm(out_channels, eps=1e-5), nn.SiLU(), nn.Identity(), last)
        self.skip_connection = residual(in_channels, out_channels)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """x (B, in, h, w), emb (B, E) -> (B, out, h, w)."""
        hidden = self.in_layers(x) + self.emb_layers(emb)[:, :, None, None]
        return self.skip_connection(x) + self.out_layers(hidden)


class Prepared(NamedTuple):
    """What a UNet needs of a context, whatever the latent and the time step."""

    emb: Tensor | None  # (B, E), added to the time embedding
    keys_values: list[KeysValues]  # of each SpatialTransformer, in the order of their turns


class Step(nn.Sequential):
    """Layers in a row; each is given what it needs of the time embedding and the context."""

    def forward(self, x: Tensor, emb: Tensor, keys_values: Iterator[KeysValues]) -> Tensor:
        """x (B, c, h, w), emb (B, E), what is left of the context's keys and values -> (B, c', h', w')."""
        for layer in self:
            if isinstance(layer, ResBlock):
                x = layer(x, emb)
            elif isinstance(layer, SpatialTransformer):
                x = layer(x, next(keys_values))
            else:
                x = layer(x)
        return x


class UNet(nn.Module):
    """Predicts the noise in a latent from its time step and a condition; defaults are the published sizes.

    `attention_resolutions` are the factors of reduction at which there is attention. With `use_time_cond` the
    condition (exactly `context_length` tokens of it) is also mixed down to one token and added to the time
    embedding, as in the published model; Stable Diffusion itself is this class without it.
    """

    def __init__(
        self, in_channels: int = 4, out_channels: int = 4, model_channels: int = 320,
        attention_resolutions: tuple[int, ...] = (4, 2, 1), num_res_blocks: int = 2,
        channel_mult: tuple[int, ...] = (1, 2, 4, 4), num_heads: int = 8,
        context_dim: int = 768, use_time_cond: bool = True, context_length: int = 77,
    ):  # fmt: skip
        super().__init__()
        if model_channels % num_heads or model_channels % 32:
            raise UserError(
                f"the UNet's model_channels must be a multiple of num_heads ({num_heads}) and of 32, "
                f"but is {model_channels}; change one of them"
            )
        self.model_channels = model_channels
        emb_dim = 4 * model_channels
        self.time_embed = nn.Sequential(nn.Linear(model_channels, emb_dim), nn.SiLU(), nn.Linear(emb_dim, emb_dim))
        self.use_time_cond = use_time_cond
        if use_time_cond:
            half = context_length // 2
            self.time_embed_condtion = nn.Sequential(
                nn.Conv1d(context_length, half, 1), nn.Conv1d(half, 1, 1), nn.Linear(context_dim, emb_dim)
            )

        def block(before: int, after: int, level: int | None) -> list[nn.Module]:
            layers: list[nn.Module] = [ResBlock(before, after, emb_dim)]
            if level is None or 2**level in attention_resolutions:
                layers.append(SpatialTransformer(after, context_dim, num_heads))
            return layers

        # The way down; halving follows every level but the last. `skips`: the width of each step's answer
        width, skips = model_channels, [model_channels]
        self.input_blocks = nn.ModuleList([Step(nn.Conv2d(in_channels, width, 3, padding=1))])
        for level, mult in enumerate(channel_mult):
            for _ in range(num_res_blocks):
                self.input_blocks.append(Step(*block(width, mult * model_channels, level)))
                width = mult * model_channels
                skips.append(width)
            if level < len(channel_mult) - 1:
                self.input_blocks.append(Step(named(op=nn.Conv2d(width, width, 3, stride=2, padding=1))))
                skips.append(width)
        self.middle_block = Step(*block(width, width, None), ResBlock(width, width, emb_dim))
        # The way up; every block is also given one step's answer, last first, and doubling closes each level but 0
        self.output_blocks = nn.ModuleList()
        for level, mult in reversed(list(enumerate(channel_mult))):
            for i in range(num_res_blocks + 1):
                layers = block(width + skips.pop(), mult * model_channels, level)
                width = mult * model_channels
                if level > 0 and i == num_res_blocks:
                    layers.append(upsample(width))
                self.output_blocks.append(Step(*layers))
        last = zeroed(nn.Conv2d(width, out_channels, 3, padding=1))
        self.out = nn.Sequential(GroupNorm(width, eps=1e-5), nn.SiLU(), last)

    def prepare(self, context: Tensor) -> Prepared:
        """What is the same in every call with a context (B, context_length, context_dim), computed once."""
        emb = self.time_embed_condtion(context).squeeze(1) if self.use_time_cond else None
        layers = [layer for layer in self.modules() if isinstance(layer, SpatialTransformer)]
        return Prepared(emb, [layer.keys_values(context) for layer in layers])

    def forward(self, x: Tensor, t: Tensor, context: Tensor | Prepared) -> Tensor:
        """x (B, in, h, w), t int64 (B,), context (B, context_length, context_dim) -> noise (B, out, h, w).

        A sampler, which asks for one context many times, gives what `prepare` made of it.
        """
        prepared = context if isinstance(context, Prepared) else self.prepare(context)
        emb = self.time_embed(timestep_embedding(t, self.model_channels).to(self.time_embed[0].weight.dtype))
        if prepared.emb is not None:
            emb = emb + prepared.emb
        hidden, skips, keys_values = x, [], iter(prepared.keys_values)
        for block in self.input_blocks:
            hidden = block(hidden, emb, keys_values)
            skips.append(hidden)
        hidden = self.middle_block(hidden, emb, keys_values)
        for block in self.output_blocks:
            hidden = block(torch.cat([hidden, skips.pop()], dim=1), emb, keys_values)
        # In mixed precision the layers answer in bfloat16; the sampler stays in the latent's type.
        return self.out(hidden).to(x.dtype)
