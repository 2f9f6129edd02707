"""What a run will hold in memory, said beforehand; the refusal of a batch that cannot fit, advice on one that did not.

Models are counted on torch's meta device, which has shapes but no numbers: that costs no memory and less than a second.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from runtime import ranks
from runtime.devices import free_memory, pick_device
from runtime.errors import UserError, memory_ended, sentence

ESTIMATED = "activations (estimate)"
SURELY = 1.25  # plans of full size lay at most 9 % above the peaks measured on a CPU, so beyond this nothing runs


@dataclass
class MemoryPlan:
    """What one process will hold."""

    parameters: dict[str, int]  # how many, by part
    memory: dict[str, float]  # bytes, by part
    batch_size: int  # items in its share of a batch

    @property
    def total(self) -> float:
        """Bytes of all parts."""
        return sum(self.memory.values())

    def __str__(self) -> str:
        return f"about {self.total / 1e9:.1f} GB of memory, estimated beforehand"


def check_fits(cfg: Any, plan: MemoryPlan) -> float:
    """Bytes that are free, by a stage's settings `device`, `batch_size` and accumulation.

    Raises:
        UserError: a step would take clearly more; on all processes alike.
    """
    device = pick_device(cfg.device)
    free = free_memory(device)
    with ranks.together():
        if plan.total > SURELY * free:
            each = f"each of {ranks.world()} processes" if ranks.world() > 1 else "a step"
            raise UserError(
                f"batch_size={cfg.batch_size} does not fit in memory: {each} would take about {plan.total / 1e9:.1f} "
                f"GB, and {free / 1e9:.1f} GB are free ({device}); {smaller(cfg, plan, free)} (estimate)"
            )
    return free


def smaller(cfg: Any, plan: MemoryPlan, free: float) -> str:
    """The end of a sentence: the batch that fits in `free` bytes, with the accumulation that leaves the steps of
    training as they are; or, where none does, what else is needed.

    plan: of one process, the batch that it names is of all. "Might" is a single item within the plan's own error.
    """
    fixed, each = plan.total - plan.memory[ESTIMATED], plan.memory[ESTIMATED] / plan.batch_size
    fits, verb = int((free - fixed) / each), "would"
    if fits < 1 and fixed + each <= SURELY * free:
        fits, verb = 1, "might"
    if not 0 < fits < plan.batch_size:
        return "more memory is needed, or smaller networks or pictures"
    names = [name for name in ("accum_iter", "accumulate_grad") if hasattr(cfg, name)]
    if not names:
        return f"batch_size={fits} {verb}"
    # a divisor, so that a step still holds the same items
    fits = next(n for n in range(fits * ranks.world(), 0, -1) if cfg.batch_size % n == 0)
    return f"batch_size={fits} {names[0]}={getattr(cfg, names[0]) * cfg.batch_size // fits} {verb}, with equal steps"


@contextmanager
def advise(batch_size: int, accumulate: int, device: str) -> Iterator[None]:
    """Where memory ends in the block, one sentence that says which batch should fit: UserError or ranks.LoneError."""
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if not memory_ended(error):
            if ranks.world() > 1 and (said := sentence(error)):
                raise ranks.LoneError(said) from error
            raise
        half, advice = max(1, batch_size // 2), "smaller pictures or networks, or another GPU may"
        if batch_size > 1:
            batches = f"{accumulate * -(-batch_size // half)} batches in an optimizer step"
            advice = f"batch_size={half} should, with {batches} (accum_iter=, in stage B accumulate_grad=)"
        kind = UserError if ranks.world() == 1 else ranks.LoneError
        raise kind(f"batch_size={batch_size} does not fit in the memory of {pick_device(device)}; {advice}") from error


def count(**parts: nn.Module) -> dict[str, int]:
    """Parameters of each part, those that train and those that are frozen apart."""
    counts: dict[str, int] = {}
    for name, module in parts.items():
        for p in module.parameters():
            key = f"{name}, {'trained' if p.requires_grad else 'frozen'}"
            counts[key] = counts.get(key, 0) + p.numel()
    return counts


def local_batch(batch_size: int) -> int:
    """How many items of a batch one process gets, at most."""
    return -(-batch_size // ranks.world())


def plan_step(
    counts: dict[str, int], module: nn.Module, loss: Callable[[], Tensor], batch_size: int, half: bool
) -> MemoryPlan:
    """Parameters, and bytes of a training step: fp32 weights, gradients, AdamW's two moments; the rest estimated.

    loss: of one process's share, `batch_size` items; half: multiplied in bfloat16.
    """
    trained = sum(n for name, n in counts.items() if name.endswith("trained"))
    memory = {"weights": 4 * sum(counts.values()), "gradients": 4 * trained, "AdamW state": 8 * trained}
    # factors measured on the CPU: backward keeps some more for a while; half precision halves most of it
    memory[ESTIMATED] = round((0.65 if half else 1.3) * activations(loss, module))
    memory["16-bit copies"] = 2 * trained if half else 0
    return MemoryPlan(counts, memory, batch_size)


class _FusedAttention(TorchFunctionMode):
    """Attention that keeps no matrix of scores, as the fused kernels do it; the meta device would spell it out."""

    def __torch_function__(self, func, types, args=(), kwargs=None) -> Any:
        if func is F.scaled_dot_product_attention:
            return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*args[:3])[0]
        return func(*args, **(kwargs or {}))


def activations(loss: Callable[[], Tensor], module: nn.Module) -> int:
    """Bytes that a backward pass of `loss()` would keep in fp32, parameters aside; everything on the meta device."""
    weights = {p.untyped_storage()._cdata for p in module.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), _FusedAttention():
        loss()
    return sum(tensor.untyped_storage().nbytes() for key, tensor in kept.items() if key not in weights)
