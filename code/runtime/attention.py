"""Softmax attention, as every network here computes it."""

import torch
from torch import Tensor
from torch.nn import functional as F


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of q (B, H, N, E) over k, v (B, H, M, E), scaled by E^-0.5; returns (B, H, N, E).

    torch's fused kernel is slow for short sequences on the CPU, in half precision above all (backward up to nine
    times), so there the formula is spelt out. Both ways are deterministic and agree within rounding.
    """
    short = 96 if q.dtype in (torch.float32, torch.float64) else 512  # tokens; where the two were measured to meet
    if q.device.type == "cpu" and max(q.shape[2], k.shape[2]) <= short:
        return (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(dim=-1) @ v
    return F.scaled_dot_product_attention(q, k, v)
