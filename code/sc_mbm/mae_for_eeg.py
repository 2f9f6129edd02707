"""Masked autoencoder of EEG and the encoder taken from it (arXiv 2306.16934, section 3.1, after arXiv 2111.06377).

Shapes: B batch, C electrodes, T time points, P of them in a patch, L = T/P tokens, K kept, D width, H heads,
E width of a head. A patch is a row of P*C values, time-major: index t*C + c is electrode c at time t.
Parameter names are those of the published checkpoints.
"""

from collections import OrderedDict

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from runtime.attention import attention
from runtime.errors import UserError


class Attention(nn.Module):
    """Multi-head self-attention with a bias on queries, keys and values."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        if dim % num_heads or dim % 2:
            raise UserError(f"a width must be even and a multiple of its heads, not {dim} of {num_heads}")
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, N, D) -> the same."""
        q, k, v = rearrange(self.qkv(x), "b n (three h e) -> three b h n e", three=3, h=self.num_heads)
        return self.proj(rearrange(attention(q, k, v), "b h n e -> b n (h e)"))


class Block(nn.Module):
    """Pre-norm transformer block (arXiv 2010.11929), without dropout as in the published model."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-5)
        self.attn = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-5)
        hidden = int(mlp_ratio * dim)
        self.mlp = nn.Sequential(
            OrderedDict(fc1=nn.Linear(dim, hidden), act=nn.GELU(), fc2=nn.Linear(hidden, dim))  # published names
        )

    def forward(self, x: Tensor) -> Tensor:
        """x (B, N, D) -> the same."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


def sincos_table(length: int, dim: int) -> nn.Parameter:
    """Frozen positions (1, 1 + L, D) float32: sines of p 10000^(-2k/D), cosines; row 0 is 0."""
    frequency = 10000.0 ** (-torch.arange(dim // 2, dtype=torch.float64) / (dim / 2))
    angle = torch.arange(length, dtype=torch.float64)[:, None] * frequency
    table = F.pad(torch.cat([angle.sin(), angle.cos()], dim=1), (0, 0, 1, 0))
    return nn.Parameter(table[None].float(), requires_grad=False)


def init_weights(module: nn.Module) -> None:
    """The published initialisation of one layer: Xavier for linear layers, normal 0.02 for the patch convolution."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
    elif isinstance(module, nn.Conv1d):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear | nn.Conv1d):
        nn.init.zeros_(module.bias)


def token(dim: int) -> nn.Parameter:
    """A learned token (1, 1, D), normal 0.02 at the start."""
    return nn.Parameter(torch.randn(1, 1, dim) * 0.02)


class Tokens(nn.Module):
    """EEG to encoded tokens: what MAEforEEG and EEGEncoder have in common. Arguments as theirs."""

    def __init__(
        self, n_chans: int, n_times: int, patch_size: int, embed_dim: int, depth: int, num_heads: int, mlp_ratio: float
    ):
        super().__init__()
        if n_times % patch_size:
            raise UserError(f"n_times must be a multiple of patch_size, but {n_times} is none of {patch_size}")
        self.n_chans, self.n_times, self.patch_size = n_chans, n_times, patch_size
        self.num_tokens, self.embed_dim = n_times // patch_size, embed_dim
        # each run of P time points of all electrodes becomes one token
        self.patch_embed = nn.Sequential(OrderedDict(proj=nn.Conv1d(n_chans, embed_dim, patch_size, patch_size)))
        self.cls_token = token(embed_dim)
        self.pos_embed = sincos_table(self.num_tokens, embed_dim)
        self.blocks = nn.ModuleList(Block(embed_dim, num_heads, mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(embed_dim, eps=1e-5)

    def embed(self, eeg: Tensor) -> Tensor:
        """eeg (B, C, T) -> tokens (B, L, D) with their positions. Raises UserError where the shape is another."""
        if eeg.ndim != 3 or eeg.shape[1:] != (self.n_chans, self.n_times):
            raise UserError(
                f"the encoder takes EEG of shape (batch, {self.n_chans}, {self.n_times}), but was given "
                f"{tuple(eeg.shape)}; fit channels and length first"
            )
        return self.patch_embed(eeg).transpose(1, 2) + self.pos_embed[:, 1:]

    def encode(self, tokens: Tensor) -> Tensor:
        """The blocks and the last normalisation over tokens (B, N, D)."""
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)


class MAEforEEG(Tokens):
    """Masked autoencoder: reconstructs hidden runs of time points, all electrodes at once.

    The defaults are the published checkpoint's sizes (its `mlp_ratio` of 1 too; the paper's ViT-Large has 4).
    """

    def __init__(
        self, n_chans: int = 128, n_times: int = 512, patch_size: int = 4,
        embed_dim: int = 1024, depth: int = 24, num_heads: int = 16, mlp_ratio: float = 1.0,
        decoder_embed_dim: int = 512, decoder_depth: int = 8, decoder_num_heads: int = 16,
    ):  # fmt: skip
        super().__init__(n_chans, n_times, patch_size, embed_dim, depth, num_heads, mlp_ratio)
        self.decoder_embed = nn.Linear(embed_dim, decoder_embed_dim)
        self.mask_token = token(decoder_embed_dim)
        self.decoder_pos_embed = sincos_table(self.num_tokens, decoder_embed_dim)
        self.decoder_blocks = nn.ModuleList(
            Block(decoder_embed_dim, decoder_num_heads, mlp_ratio) for _ in range(decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(decoder_embed_dim, eps=1e-5)
        self.decoder_pred = nn.Linear(decoder_embed_dim, patch_size * n_chans)
        self.apply(init_weights)

    def patchify(self, eeg: Tensor) -> Tensor:
        """eeg (B, C, T) -> patches (B, L, P*C)."""
        return rearrange(eeg, "b c (l p) -> b l (p c)", p=self.patch_size)

    def unpatchify(self, patches: Tensor) -> Tensor:
        """patches (B, L, P*C) -> eeg (B, C, T)."""
        return rearrange(patches, "b l (p c) -> b c (l p)", p=self.patch_size)

    def forward_encoder(self, eeg: Tensor, mask_ratio: float, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encode the tokens with the smallest noise (B, L), in the order of their noise, behind the class token.

        Returns latent (B, 1 + K, D) with K = int(L (1 - mask_ratio)), mask (B, L) (1 where hidden) and ids_restore
        (B, L), which puts kept-then-hidden tokens back into their places.
        """
        tokens = self.embed(eeg)
        keep = int(self.num_tokens * (1 - mask_ratio))
        if not (0 <= mask_ratio < 1 and keep):
            raise UserError(
                f"mask_ratio must lie in [0, 1) and leave one of {self.num_tokens} tokens, but is {mask_ratio}"
            )
        ids_shuffle = noise.argsort(dim=1, stable=True)
        ids_restore = ids_shuffle.argsort(dim=1)
        mask = (ids_restore >= keep).to(eeg.dtype)
        tokens = tokens.gather(1, ids_shuffle[:, :keep, None].expand(-1, -1, tokens.shape[2]))
        cls = (self.cls_token + self.pos_embed[:, :1]).expand(len(eeg), -1, -1)
        return self.encode(torch.cat([cls, tokens], dim=1)), mask, ids_restore

    def forward_decoder(self, latent: Tensor, ids_restore: Tensor) -> Tensor:
        """latent (B, 1 + K, D), ids_restore (B, L) -> predicted patches (B, L, P*C)."""
        x = self.decoder_embed(latent)
        hidden = self.mask_token.to(x.dtype).expand(len(x), self.num_tokens + 1 - x.shape[1], -1)
        tokens = torch.cat([x[:, 1:], hidden], dim=1)
        tokens = tokens.gather(1, ids_restore[:, :, None].expand(-1, -1, tokens.shape[2]))
        x = torch.cat([x[:, :1], tokens], dim=1) + self.decoder_pos_embed
        for block in self.decoder_blocks:
            x = block(x)
        return self.decoder_pred(self.decoder_norm(x))[:, 1:]

    def forward_loss(self, eeg: Tensor, pred: Tensor, mask: Tensor) -> Tensor:
        """Mean squared error of the hidden patches, not normalised; a scalar, 0 where nothing is hidden."""
        error = (pred.to(eeg.dtype) - self.patchify(eeg)).square().mean(dim=-1)  # (B, L)
        return (error * mask).sum() / mask.sum().clamp(min=1)

    def forward(
        self, eeg: Tensor, mask_ratio: float = 0.75, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """eeg (B, C, T) -> loss, pred (B, L, P*C), mask (B, L), 1 where hidden.

        noise (B, L): the smallest are kept. Training passes it, so that masks depend on the step alone; without it
        it comes from torch's global generator.
        """
        if noise is None:
            noise = torch.rand(len(eeg), self.num_tokens, device=eeg.device)
        latent, mask, ids_restore = self.forward_encoder(eeg, mask_ratio, noise)
        pred = self.forward_decoder(latent, ids_restore)
        return self.forward_loss(eeg, pred, mask), pred, mask


def start_local(model: MAEforEEG, gain: float) -> None:
    """Let attention begin on tokens near in time: every block's keys start equal to its queries, both times `gain`.

    From the published start attention is uniform, an average over time predicts nothing of an oscillation, and a small
    model stays at the mean for hundreds of steps. Equal queries and keys make a logit grow with the likeness of two
    tokens, and with a position table likeness falls with distance (compare arXiv 2305.09828). What the decoder is
    given of the visible tokens starts small, so that their positions are not drowned by what they hold.
    """
    with torch.no_grad():
        model.decoder_embed.weight.mul_(0.3)
        for attn in (module for module in model.modules() if isinstance(module, Attention)):
            queries, keys, _ = attn.qkv.weight.chunk(3)
            queries.mul_(gain)
            keys.copy_(queries)


class EEGEncoder(Tokens):
    """The encoder of MAEforEEG for unmasked EEG, as stage B uses it: every token, no class token.

    The class token and a mask token are kept, frozen, because published checkpoints hold them.
    """

    def __init__(
        self, n_chans: int = 128, n_times: int = 512, patch_size: int = 4,
        embed_dim: int = 1024, depth: int = 24, num_heads: int = 16, mlp_ratio: float = 1.0,
    ):  # fmt: skip
        super().__init__(n_chans, n_times, patch_size, embed_dim, depth, num_heads, mlp_ratio)
        self.cls_token.requires_grad_(False)
        self.mask_token = token(embed_dim).requires_grad_(False)
        self.apply(init_weights)

    def forward(self, eeg: Tensor) -> Tensor:
        """eeg (B, C, T) -> tokens (B, L, D)."""
        return self.encode(self.embed(eeg))


def encoder_state(mae_state: dict[str, Tensor]) -> dict[str, Tensor]:
    """EEGEncoder's state dict out of MAEforEEG's: no decoder, and a mask token of zeros.

    The autoencoder's own mask token has the decoder's width, not the encoder's, and the encoder uses none.
    """
    drop = ("decoder_", "mask_token")
    state = {name: value for name, value in mae_state.items() if not name.startswith(drop)}
    return state | ({"mask_token": torch.zeros_like(state["cls_token"])} if "cls_token" in state else {})
