"""From EEG to the condition of Stable Diffusion, and to a point in CLIP's space.

Shapes: B batch, L EEG tokens, D their width, N condition tokens (77), W their width (768), V CLIP's width.
Parameter names are those of the published checkpoints (`cond_stage_model.*`).
"""

import torch
from torch import Tensor, nn

from dc_ldm.modules.attention import named
from runtime.errors import UserError

CLIP_HEADS = ("tokens", "condition")


class EEGConditioner(nn.Module):
    """An EEG encoder and the maps behind it (arXiv 2306.16934, sections 3.2 and 3.3).

    clip_head says what is aligned with CLIP: "tokens", the raw encoder tokens (published code), or "condition",
    what Stable Diffusion sees (the paper's formula; the pooling is ours). The encoder has `num_tokens` and
    `embed_dim` and answers (B, L, D); of its parameters, those it freezes itself stay frozen.
    """

    def __init__(
        self, encoder: nn.Module,
        context_length: int = 77, context_dim: int = 768, clip_dim: int = 768, clip_head: str = "tokens",
    ):  # fmt: skip
        super().__init__()
        if clip_head not in CLIP_HEADS:
            raise UserError(f"clip_head must be one of {', '.join(CLIP_HEADS)}, but is {clip_head!r}")
        self.clip_head = clip_head
        self.mae = encoder
        half = encoder.num_tokens // 2
        self.channel_mapper = nn.Sequential(nn.Conv1d(encoder.num_tokens, half, 1), nn.Conv1d(half, context_length, 1))
        self.dim_mapper = nn.Linear(encoder.embed_dim, context_dim)
        seen = {"tokens": (encoder.num_tokens, encoder.embed_dim), "condition": (context_length, context_dim)}
        length, width = seen[clip_head]
        # A learned mix of all tokens into one, (B, 1, width); `maxpool` is its published name.
        self.mapping = named(maxpool=nn.Conv1d(length, 1, 1), fc=nn.Linear(width, clip_dim), one=nn.Flatten(1))

    @torch.no_grad()
    def start_at_text(self, empty: Tensor, projection: Tensor) -> None:
        """Start where Stable Diffusion already understands: at the empty caption, seen by CLIP as a text is.

        All condition tokens start alike, as the states behind a caption's end are, around the empty caption's
        (N, W); a head on the condition starts as CLIP's text projection (V, W) of their mean. Aligning it with the
        picture's embedding then moves the condition towards the states of a fitting caption. Without the time
        condition the tokens stay alike, since nothing then tells them apart.

        Raises UserError where the widths differ.
        """
        if empty.shape[1] != self.dim_mapper.out_features:
            raise UserError(
                f"text_start: CLIP's text states have width {empty.shape[1]}, but Stable Diffusion's condition has "
                f"{self.dim_mapper.out_features}; use text_start=false"
            )
        last = self.channel_mapper[1]
        last.weight.copy_(last.weight[:1].expand_as(last.weight))
        last.bias.zero_()
        self.dim_mapper.bias.copy_(empty[1:].mean(0))
        if self.clip_head == "condition":
            self.mapping.maxpool.weight.fill_(1 / len(empty))
            self.mapping.maxpool.bias.zero_()
            self.mapping.fc.weight.copy_(projection)
            self.mapping.fc.bias.zero_()

    def forward(self, eeg: Tensor) -> tuple[Tensor, Tensor]:
        """eeg (B, C, T) -> context (B, N, W), clip_embedding (B, V), not normalised."""
        tokens = self.mae(eeg)
        context = self.dim_mapper(self.channel_mapper(tokens))
        return context, self.mapping(tokens if self.clip_head == "tokens" else context)
