"""Files that are written whole or not at all."""

import contextlib
import glob
import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from runtime.errors import UserError


def replace_atomically(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Call `write(file)` on a temporary file beside `path`, flush it to disk, then rename it onto `path`.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")  # two machines may share disk and process id
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except (OSError, RuntimeError) as error:
        # torch reports a full disk as a RuntimeError of its zip writer
        raise UserError(
            f"{path}: could not be written ({error}); the earlier file, if any, is untouched: make room on that disk, "
            "or the folder writable, and give the same command again"
        ) from error
    finally:
        if part.exists():
            part.unlink()


def sweep(path: Path) -> None:
    """Remove what writers of `path` that were killed have left beside it, unless one may still be at work."""
    for part in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        with contextlib.suppress(FileNotFoundError):  # another process sweeps, or has just finished it
            if time.time() - part.stat().st_mtime > 3600:
                part.unlink()


def write_text(path: str | Path, text: str) -> None:
    """Write a text file (utf-8) by the same rename."""
    replace_atomically(Path(path), lambda file: file.write(text.encode()))


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write bytes by the same rename."""
    replace_atomically(Path(path), lambda file: file.write(content))
