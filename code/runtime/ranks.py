"""The processes of torchrun as one: who they are, what they tell each other, how they stop together.

Alone, without torchrun, nothing here does anything. Only the first process (rank 0) writes files and speaks.
"""

import functools
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from datetime import timedelta
from types import FrameType
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from runtime import errors

T = TypeVar("T")


class SharedError(errors.UserError):
    """An error that every process raises at the same place."""


class LoneError(Exception):
    """What the user can mend, of one process alone while the others wait in a sum of gradients, so it ends at once.

    No `errors.UserError`: those are shared by `together`, which the others would not reach.
    """


class _Stop:
    """What `_stopped` knows, of this process."""

    gathering = False  # an error out of the handler would then leave the others in the middle of it
    number = 0  # of the signal that came


def rank() -> int:
    """Number of this process among all, from torchrun's environment."""
    return int(os.environ.get("RANK", 0))


def world() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", 1))


def lead() -> bool:
    """Whether this process writes and speaks."""
    return rank() == 0


@contextmanager
def signals_to(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Call `handler` on SIGTERM and SIGINT, which ask a run to stop; afterwards, whatever was called before."""
    before = {which: signal.signal(which, handler) for which in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for which, earlier in before.items():
            signal.signal(which, earlier)


@functools.cache
def _patient() -> dist.ProcessGroup:
    """All processes. It waits for days: the first may be making caches; but one that ended is noticed at once."""
    return dist.new_group(backend="gloo", timeout=timedelta(days=7))


def share(value: Any = None, problem: str = "") -> list:
    """Every process's `value` (plain), in order of rank; waits for all of them.

    Raises:
        SharedError: on every process, where any has a `problem`.
        UserError: a signal came meanwhile, and none has a problem.
    """
    everyone = [(problem, value)] * world()
    if world() > 1:
        _Stop.gathering = True
        try:
            dist.all_gather_object(everyone, (problem, value), _patient())
        except (pickle.UnpicklingError, EOFError) as error:
            raise dist.DistError("what another process said broke off") from error
    for said, _ in everyone:
        if said:
            raise SharedError(said)  # still "gathering": all are about to end
    _Stop.gathering = False
    if _Stop.number:
        raise _stop()
    return [own for _, own in everyone]


def agree(facts: dict[str, Any]) -> None:
    """Raises SharedError, on all, where processes hold different values of the same names, and names them."""
    everyone = share(facts)
    for number, theirs in enumerate(everyone):
        differ = [f"{k} {everyone[0][k]!r} and {theirs[k]!r}" for k in facts if theirs[k] != everyone[0][k]]
        if differ:
            raise SharedError(
                f"processes 0 and {number} differ in {'; '.join(differ)}: start all with the same command and code, "
                "with datasets/, pretrains/ and results/ on a disk that all machines share"
            )


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
    """`errors.cli` for all processes at once: one speaks, and whatever ends one of them ends all.

    An error that nobody foresaw ends its process with a traceback; the others end, silently, when they next wait for
    it. Where a process ended without a word (killed, out of memory), one of the others says so. A signal that stops
    the run is an error of one line, too; exit status 128 + its number.
    """
    if world() > 1:
        errors.cli(functools.partial(_on_all, errors.in_words()(main)))
        return
    try:
        with signals_to(_stopped):
            errors.cli(main)
    except _Halt:
        number, _Stop.number = _Stop.number, 0
        print(f"error: {_stop_sentence(number)}", file=sys.stderr)
        sys.exit(128 + number)
    except SystemExit as end:
        number, _Stop.number = _Stop.number, 0
        sys.exit(128 + number if number else end.code)


def _on_all(main: Callable[[], None]) -> NoReturn:
    store, status = _join(), 0
    for which in (signal.SIGTERM, signal.SIGINT):
        signal.signal(which, _stopped)  # training puts its own in their place
    try:
        with open(os.devnull, "w") as silence:
            out, err = (sys.stdout, sys.stderr) if lead() else (silence, silence)
            with redirect_stdout(out), redirect_stderr(err):
                try:
                    errors.cli(together()(main))
                except SystemExit as end:
                    status = end.code
        for which in (signal.SIGTERM, signal.SIGINT):
            signal.signal(which, signal.SIG_IGN)  # nothing is left to stop
        number, _Stop.number = _Stop.number, 0
        told = max(share(number))  # torchrun ends all when one ends: not before the first has spoken
        status = 128 + told if told else status
    except Exception as error:
        _last_words(error, store)
    dist.destroy_process_group()
    sys.exit(status)


def _join() -> dist.Store:
    """Meet the other processes; returns a store that they have in common. Raises UserError.

    The default group, whose gradients NCCL sums between GPUs, takes ten minutes of silence for a failure.
    """
    wait = timedelta(minutes=10)
    try:
        store = next(rendezvous("env://", timeout=wait))[0]
    except (dist.DistError, ValueError) as error:
        place = ":".join(os.environ.get(name) or f"(no {name})" for name in ("MASTER_ADDR", "MASTER_PORT"))
        raise errors.UserError(
            f"the processes cannot meet at {place} "
            f"({str(error).splitlines()[0]}): on one machine use torchrun --standalone, on several another port"
        ) from error
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=rank(), world_size=world(), timeout=wait)
    _patient()  # made here, where no signal is caught yet
    return dist.PrefixStore("last words", store)


def _stopped(number: int, frame: FrameType | None) -> None:
    """Stop at once, unless in the middle of a gather or stopping already; `share` raises what is only noted here."""
    wait, _Stop.number = _Stop.gathering or _Stop.number, number
    if not wait:
        raise _Halt if world() == 1 else _stop()


class _Halt(BaseException):
    """A signal in a process that is alone: no Exception, which a library might catch on the way."""


def _stop() -> errors.UserError:
    return errors.UserError(_stop_sentence(_Stop.number))


def _stop_sentence(number: int) -> str:
    return f"stopped by {signal.Signals(number).name}; the same command goes on from there"


def _last_words(error: Exception, store: dist.Store) -> NoReturn:
    """Say what ended the run, unless another process has said it, and end without waiting for anyone."""
    for which in (signal.SIGTERM, signal.SIGINT):
        signal.signal(which, signal.SIG_IGN)  # torchrun's, for the others' sake
    try:
        first = store.add("spoken", 1) == 1
    except dist.DistError:
        first = True  # the store went with the process that held it
    if first:
        if isinstance(error, dist.DistError) or any(word in str(error) for word in ("gloo", "NCCL")):
            said = f"another process ended without a word (killed? out of memory?), seen by process {rank()}"
        elif isinstance(error, LoneError):
            said = str(error)
        else:
            traceback.print_exception(error)
            said = f"process {rank()} failed: {type(error).__name__}: {error}"
        resume = "the last resume point is whole, and the same command goes on from it"
        print(f"error: {' '.join(said.split())}; all {world()} are stopped; {resume}", file=sys.stderr, flush=True)
    os._exit(1)  # not sys.exit: threads of NCCL may wait for those that are gone
