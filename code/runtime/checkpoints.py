"""Checkpoints as plain dicts: written whole or not at all, read without executing anything."""

from __future__ import annotations

import contextlib
import glob
import os
import pickle
import re
import secrets
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from runtime import digests, pickles, plain
from runtime.errors import UserError

NEVER = "which is neither a tensor nor a plain value and is never loaded"


def replace_atomically(path: Path, write) -> None:
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


def save(path: str | Path, content: dict) -> None:
    """Write a plain dict of tensors and plain values; an earlier file at `path` stays whole until the new one is.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    sweep(Path(path))
    replace_atomically(Path(path), lambda file: torch.save(content, file))


def write_text(path: str | Path, text: str) -> None:
    """Write a text file (utf-8) by the same rename."""
    replace_atomically(Path(path), lambda file: file.write(text.encode()))


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write bytes by the same rename."""
    replace_atomically(Path(path), lambda file: file.write(content))


def read_plain(path: str | Path, what: str) -> dict:
    """Read a torch file that holds plain values only (`weights_only=True`); zip files are memory-mapped.

    Before anything is made of it, its pickles are surveyed (`runtime.pickles`), and of a zip file the CRC-32 of every
    record is compared, which reads it once (about 1 GB/s). Files of the format before torch 1.6 hold no checksum.

    Args:
        what: name of the wanted file in error messages, for example "stage A checkpoint".

    Raises:
        UserError: missing, truncated, damaged, not a torch file, holding anything but tensors and plain values, or
            holding values that are far more, written out, than the file.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected a {what}")
    try:
        found = pickles.survey(path)
        known = {part[1] for part in torch.serialization.get_safe_globals() if isinstance(part, tuple)}
        if foreign := sorted(found.calls - pickles.CALLED - known):
            raise pickles.Refused(f"holds {foreign[0]}, {NEVER}")
        if found.zipped and (record := pickles.damaged_record(path, *digests.fingerprint(path).values())):
            raise pickles.Refused(f"is damaged: the checksum of its part {record} is another; copy it again")
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=found.zipped or None)
    except pickles.Refused as error:
        raise UserError(f"{path}: {error}; expected a {what}") from error
    except pickle.UnpicklingError as error:
        if named := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise UserError(f"{path}: holds {named[1]}, {NEVER}; expected a {what}") from error
        raise UserError(f"{path}: is not a {what}: its content cannot be read (truncated or another kind)") from error
    except Exception as error:  # on a damaged file the unpickler fails in any way
        raise UserError(f"{path}: is truncated or not a torch file; expected a {what}") from error
    plain.check_extent(content, found.n_bytes, str(path))
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}, expected the dict of a {what}")
    return content


def load(path: str | Path, formats: tuple[str, ...], what: str) -> dict:
    """Read one of our checkpoints and check its `format` field.

    Raises:
        UserError: as `read_plain`, or the file is a checkpoint of another kind.
    """
    content = read_plain(path, what)
    found = content.get("format")
    if found not in formats:
        keys = ", ".join(map(plain.short, list(content)[:4]))
        kind = f"format {plain.short(found)}" if found else f"no format field (keys: {keys})"
        raise UserError(f"{path}: has {kind}; expected a {what} ({' or '.join(formats)})")
    return content


def check_state(own: dict[str, Tensor], state: dict[str, Tensor], what: str) -> None:
    """Raise UserError, with counts and the first ten names, unless names and shapes of `state` are those of `own`."""
    pairs = [(name, tuple(state[name].shape), tuple(own[name].shape)) for name in own if name in state]
    problems = {
        "lacks {} tensors": [name for name in own if name not in state],
        "holds {} that this model has not": [name for name in state if name not in own],
        "has {} of another shape": [f"{name} is {a}, expected {b}" for name, a, b in pairs if a != b],
    }
    said = [f"{text.format(len(names))} (first: {', '.join(names[:10])})" for text, names in problems.items() if names]
    if said:
        raise UserError(f"{what} {', '.join(said)}; is it the file of another model or size?")


def load_strictly(module: nn.Module, state: dict[str, Tensor], what: str) -> None:
    """Load `state` into `module`, in the module's precision. Raises UserError as `check_state`.

    A module on the meta device takes the tensors themselves, so that memory-mapped ones are never copied.
    """
    own = module.state_dict()
    check_state(own, state, what)
    converted = {name: value.to(own[name].dtype) for name, value in state.items()}
    module.load_state_dict(converted, assign=any(value.is_meta for value in own.values()))
