"""What a backward pass will keep in memory, told without computing anything."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


class _FusedAttention(TorchFunctionMode):
    """Attention that keeps no matrix of scores, as the fused kernels do it; the meta device would spell it out."""

    def __torch_function__(self, func, types, args=(), kwargs=None) -> Any:
        if func is F.scaled_dot_product_attention:
            return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*args[:3])[0]
        return func(*args, **(kwargs or {}))


def activations(loss: Callable[[], Tensor], module: nn.Module) -> int:
    """Bytes that a backward pass of `loss()` would keep in fp32, parameters aside; everything on the meta device."""
    own = {p.untyped_storage()._cdata for p in module.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), _FusedAttention():
        loss()
    return sum(tensor.untyped_storage().nbytes() for place, tensor in kept.items() if place not in own)
