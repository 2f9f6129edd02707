"""Randomness as a function of (seed, purpose, step or item, position in the global batch); DESIGN section 5.

Nothing here keeps state, so resuming, more workers or more processes change no draw.
"""

import hashlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from runtime.errors import UserError


def generator(seed: int, purpose: str, *index: int) -> torch.Generator:
    """A CPU generator whose stream depends on nothing but the arguments."""
    key = ":".join([str(int(seed)), purpose, *(str(int(i)) for i in index)])
    digest = hashlib.sha256(key.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def randn(shape: Sequence[int], seed: int, purpose: str, *index: int) -> Tensor:
    """Standard normal float32 of `shape`."""
    return torch.randn(tuple(shape), generator=generator(seed, purpose, *index))


def rand(shape: Sequence[int], seed: int, purpose: str, *index: int) -> Tensor:
    """Uniform float32 in [0, 1) of `shape`."""
    return torch.rand(tuple(shape), generator=generator(seed, purpose, *index))


def randint(low: int, high: int, shape: Sequence[int], seed: int, purpose: str, *index: int) -> Tensor:
    """Uniform int64 in [low, high) of `shape`."""
    return torch.randint(low, high, tuple(shape), generator=generator(seed, purpose, *index))


def permutation(n: int, seed: int, purpose: str, *index: int) -> Tensor:
    """A random order of 0..n-1, int64."""
    return torch.randperm(n, generator=generator(seed, purpose, *index))


class Batch(NamedTuple):
    """One process's share of one micro-batch of one optimizer step.

    Draw for all `total` positions of the global batch, then keep `mine(...)`: so the draws of a step are the same
    however the batch is cut over processes and accumulation steps.
    """

    step: int  # optimizer step, from 0
    index: Tensor  # (n,) int64: which items of the data set
    start: int  # position of the first of them in the global batch
    total: int  # items in the global batch
    weight: float  # makes the mean over processes and micro-batches the mean over the global batch

    def mine(self, drawn: Tensor) -> Tensor:
        """The rows of a (total, ...) draw that belong to this share."""
        return drawn[self.start : self.start + len(self.index)]


def steps_per_epoch(n_items: int, batch_size: int, accumulate: int = 1) -> int:
    """Optimizer steps in one pass over the data; the last, smaller batch counts. Raises UserError: too many for one."""
    if accumulate > (batches := -(-n_items // batch_size)):
        raise UserError(f"accum_iter= or accumulate_grad= {accumulate}: an epoch holds {batches} batches; lower it")
    return -(-n_items // (batch_size * accumulate))


class StepBatches:
    """The batches of steps [first_step, last_step), for one rank, in order.

    Each epoch is a fresh shuffle cut into global batches of `batch_size * accumulate`; the last, smaller one is kept.
    Where it has fewer items than shares, some shares hold one item of weight 0: processes stay in step, and nothing
    depends on how many there are.

    Args:
        batch_size: items in a micro-batch over all processes together.
        accumulate: micro-batches in an optimizer step.
    """

    def __init__(
        self, n_items: int, batch_size: int, seed: int, first_step: int, last_step: int,
        accumulate: int = 1, rank: int = 0, world: int = 1,
    ) -> None:  # fmt: skip
        self.n_items, self.batch_size, self.seed = n_items, batch_size, seed
        self.steps = range(first_step, last_step)
        self.accumulate, self.rank, self.world = accumulate, rank, world

    def __len__(self) -> int:
        return len(self.steps) * self.accumulate

    def __iter__(self) -> Iterator[Batch]:
        order, order_epoch = torch.empty(0), -1
        size = self.batch_size * self.accumulate
        for step in self.steps:
            epoch, k = divmod(step, steps_per_epoch(self.n_items, size))
            if epoch != order_epoch:
                order, order_epoch = permutation(self.n_items, self.seed, "shuffle", epoch), epoch
            whole = order[k * size : (k + 1) * size]
            shares = torch.tensor_split(torch.arange(len(whole)), self.accumulate * self.world)
            for at in shares[self.rank :: self.world]:
                weight = len(at) * len(shares) / len(whole)
                at = at if len(at) else torch.zeros(1, dtype=torch.int64)
                yield Batch(step, whole[at], int(at[0]), len(whole), weight)
