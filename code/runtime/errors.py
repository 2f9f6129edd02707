"""Errors that a user can act on: one sentence, no traceback."""

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# How torch, numpy and the system say of a CPU that memory ended; of a GPU torch says "out of memory"
LESS = "ask for smaller batches, pictures or networks, or use another device; check_setup --plan tells what takes it"
MEMORY_ENDED = ("allocate memory", "out of memory", "Storage size calculation overflowed", "bad_alloc")


class UserError(Exception):
    """Something the user can mend. The message says what is wrong, where, and what to do, in one sentence."""


def first_line(error: Exception) -> str:
    """What an error says first; its kind where it says nothing."""
    return str(error).strip().split("\n")[0][:200] or type(error).__name__


def memory_ended(error: Exception) -> bool:
    """Whether an error means that there was not enough memory, of a GPU or of this machine."""
    said = isinstance(error, RuntimeError | OSError) and any(words in str(error) for words in MEMORY_ENDED)
    return said or isinstance(error, MemoryError)


def machine_failed(error: Exception) -> bool:
    """Whether an error while a file is read is none of its content: memory ended, or a disk or the system failed."""
    # a damaged zip file has Python seek to where no file goes, which is an invalid argument
    if "size calculation overflowed" in str(error):  # of a tensor that no memory holds
        return False
    return memory_ended(error) or (isinstance(error, OSError) and error.errno not in (None, errno.EINVAL))


def sentence(error: Exception) -> str | None:
    """What the user can do about memory that ended, or what the system refuses of a file that it names; else None."""
    if memory_ended(error):
        return f"not enough memory ({first_line(error)}): {LESS}"
    if isinstance(error, OSError) and error.filename:
        return f"{os.fsdecode(error.filename)}: {error.strerror}; make it usable, or name another"
    return None


@contextmanager
def in_words() -> Iterator[None]:
    """What `sentence` has words for is a UserError."""
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if not (said := sentence(error)):
            raise
        raise UserError(said) from error


@contextmanager
def as_sentence(problem: str, advice: str = "") -> Iterator[None]:
    """Whatever a library raises in the block becomes a UserError: `problem (what it said); advice`.

    To be put directly around the one call that reads a file: on a damaged one, libraries raise anything.
    """
    try:
        yield
    except Exception as error:  # as said: KeyError, IndexError and RecursionError too
        if isinstance(error, UserError) or memory_ended(error):
            raise
        raise UserError(f"{problem} ({first_line(error)}){advice and '; '}{advice}") from error


def cli(main: Callable[[], None]) -> None:
    """Run a script's `main`; a UserError becomes one line on stderr and exit status 2, Ctrl-C one and status 130."""
    try:
        with in_words():
            main()
    except UserError as error:
        lines = map(str.strip, str(error).splitlines())  # within one, two spaces may belong to a name
        print(f"error: {' '.join(lines)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)
