"""The processes of torchrun as one: who they are, what they tell each other, how they stop together.

Alone, without torchrun, nothing here does anything. Only the first process (rank 0) writes files and speaks.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from runtime import errors

T = TypeVar("T")


class SharedError(errors.UserError):
    """An error that every process raises at the same place."""


def rank() -> int:
    """Number of this process among all, from torchrun's environment."""
    return int(os.environ.get("RANK", 0))


def world() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", 1))


def lead() -> bool:
    """Whether this process writes and speaks."""
    return rank() == 0


def share(value: Any = None, problem: str = "") -> list:
    """Every process's `value` (plain), in order of rank; waits for all of them.

    Raises:
        SharedError: on every process, where any has a `problem`.
    """
    everyone = [(problem, value)] * world()
    if world() > 1:
        dist.all_gather_object(everyone, (problem, value))
    for said, _ in everyone:
        if said:
            raise SharedError(said)
    return [own for _, own in everyone]


@contextmanager
def together() -> Iterator[None]:
    """Leave the block when all processes do; where one fails with a UserError, raise it on all."""
    problem = ""
    try:
        yield
    except SharedError:
        raise
    except errors.UserError as error:
        problem = str(error)
    share(problem=problem)


def from_lead(make: Callable[[], T]) -> T:
    """What the first process makes (a plain value), on all of them; the others do not call `make`."""
    with together():
        made = make() if lead() else None
    return share(made)[0]


def lead_first(make: Callable[[], T]) -> T:
    """`make()` on every process, on the others when the first is done: they find the files that it wrote."""
    for turn in (True, False):
        with together():
            if lead() == turn:
                made = make()
    return made


def cli(main: Callable[[], None]) -> None:
    """`errors.cli` for all processes at once: one speaks, and an error of one stops all."""
    if world() == 1:
        return errors.cli(main)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=timedelta(days=7))  # the others wait while the first makes caches
    with open(os.devnull, "w") as silence:
        out, err = (sys.stdout, sys.stderr) if lead() else (silence, silence)
        try:
            with redirect_stdout(out), redirect_stderr(err):
                errors.cli(together()(main))
        except SystemExit:
            dist.barrier()  # torchrun ends all when one ends: not before the first has spoken
            raise
    dist.barrier()
    dist.destroy_process_group()
