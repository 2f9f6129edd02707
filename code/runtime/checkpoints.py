"""Checkpoints as plain dicts: written whole or not at all, read without executing anything."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from runtime import atomic, digests, pickles
from runtime.errors import UserError, as_sentence, machine_failed
from runtime.plain import check_extent, short

NUMBERS = {torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.bool, torch.uint8}  # of networks
NUMBERS |= {torch.int8, torch.int16, torch.int32, torch.int64}
NEVER = "which is neither a tensor nor a plain value and is never loaded"


def save(path: str | Path, content: dict) -> None:
    """Write a plain dict of tensors and plain values; an earlier file at `path` stays whole until the new one is.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    atomic.sweep(Path(path))
    atomic.replace_atomically(Path(path), lambda file: torch.save(content, file))


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
        if machine_failed(error):
            if isinstance(error, OSError):
                error.filename = str(path)
            raise
        raise UserError(f"{path}: is truncated or not a torch file; expected a {what}") from error
    check_extent(content, found.n_bytes, str(path))
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
        keys = ", ".join(map(short, list(content)[:4]))
        kind = f"format {short(found)}" if found else f"no format field (keys: {keys})"
        raise UserError(f"{path}: has {kind}; expected a {what} ({' or '.join(formats)})")
    return content


def check_tensors(state: Any, what: str) -> dict[str, Tensor]:
    """`state`, if it is what a network is loaded from: dense tensors of real numbers by name. Raises UserError."""
    if not isinstance(state, dict):
        raise UserError(f"{what} is {short(state)}, expected tensors by name; is it another file?")
    for name, value in state.items():
        dense = isinstance(value, Tensor) and value.layout == torch.strided
        if not isinstance(name, str) or not dense or value.dtype not in NUMBERS:
            found = f"a {value.layout} tensor of {value.dtype}" if isinstance(value, Tensor) else short(value)
            raise UserError(f"{what}: {short(name)} is {found}, expected a dense tensor of real numbers under a name")
    return state


def check_state(own: dict[str, Tensor], state: Any, what: str) -> None:
    """Raise UserError, with counts and the first ten names, unless names and shapes of `state` are those of `own`.

    So are whole numbers and others; and as `check_tensors`.
    """
    both = [(name, check_tensors(state, what)[name], own[name]) for name in own if name in state]
    shapes = [(name, tuple(a.shape), tuple(b.shape)) for name, a, b in both]
    kinds = [(name, a.dtype, b.dtype) for name, a, b in both if a.is_floating_point() != b.is_floating_point()]
    problems = {
        "lacks {} tensors": [name for name in own if name not in state],
        "holds {} that this model has not": [name for name in state if name not in own],
        "has {} of another shape": [f"{name} is {a}, expected {b}" for name, a, b in shapes if a != b],
        "has {} of other numbers": [f"{name} is {a}, expected {b}" for name, a, b in kinds],
    }
    said = [f"{text.format(len(names))} (first: {', '.join(names[:10])})" for text, names in problems.items() if names]
    if said:
        raise UserError(f"{what} {', '.join(said)}; is it the file of another model or size?")


def check_finite(state: dict[str, Tensor], what: str) -> None:
    """Raise UserError where weights are NaN or infinite. One pass over them: 2 s for 4 billion."""
    numbers = {name: v for name, v in state.items() if v.is_floating_point() and v.numel() and not v.is_meta}
    if bad := [name for name, v in numbers.items() if not all(edge.isfinite() for edge in v.aminmax())]:
        found = f"{len(bad)} of {len(state)} tensors hold NaN or infinite numbers (first: {', '.join(bad[:10])})"
        raise UserError(f"{what}: {found}; copy it again, or take an earlier one")


def on_meta(build: Callable[[], nn.Module], what: str) -> nn.Module:
    """The network that `build` makes, with shapes but no numbers, so that no size can fill the memory.

    Raises:
        UserError: the sizes that `build` was told are those of no network.
    """
    try:
        with as_sentence("its sizes are those of no network"), torch.device("meta"):
            return build()
    except UserError as error:
        raise UserError(f"{what}: {error}") from error


def load_strictly(module: nn.Module, state: Any, what: str) -> None:
    """Load `state` into `module`, in the module's precision, and print how many tensors that were.

    A module on the meta device takes the tensors themselves, so that memory-mapped ones are never copied. Raises
    UserError as `check_state` and `check_finite`.
    """
    own = module.state_dict()
    check_state(own, state, what)
    converted = {name: value.to(own[name].dtype) for name, value in state.items()}
    check_finite(converted, what)
    module.load_state_dict(converted, assign=any(value.is_meta for value in own.values()))
    print(f"{what}: {loaded(module)} tensors loaded")


def loaded(*modules: nn.Module) -> str:
    """How many of their tensors networks have: none that lies on the meta device was assigned."""
    tensors = [value for module in modules for value in module.state_dict().values()]
    return f"{sum(not value.is_meta for value in tensors)} of {len(tensors)}"
