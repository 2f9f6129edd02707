"""Plain values that a file holds, checked before anything uses them: bounds on their size, then names and types.

Readers say what they want as a TypedDict (of typing_extensions, as Python 3.11's says too little), or another type that
pydantic knows, close to where it is read.
"""

from __future__ import annotations

import difflib
import json
import math
import reprlib
from functools import lru_cache
from pathlib import Path
from typing import Any, NotRequired, TypeVar

from runtime.errors import UserError, as_sentence, first_line

T = TypeVar("T")
LARGEST_JSON = 64 << 20  # bytes; of our own files none comes near
LARGEST_YAML = 1 << 16  # which is read at 100 kB a second; ours have 2 kB
LARGEST_INTEGER = 1 << 63
PARTS_A_BYTE = 8  # values that a byte of a file may stand for; without shared containers it is less than one


class _Short(reprlib.Repr):
    """repr within a line: also of an integer of a million digits, which Python refuses to write."""

    def __init__(self):  # the keywords of the class are younger than Python 3.11
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother = 2, 60, 60

    def repr_int(self, value: int, level: int) -> str:
        """An integer, by its size where it is long."""
        return repr(value) if abs(value) < LARGEST_INTEGER else f"an integer of {value.bit_length()} bits"


_short = _Short()


def short(value: Any) -> str:
    """A value as an error message shows it: at most a line, whatever it is."""
    return _short.repr(value)


def checked(kind: type[T], value: Any, where: str, hint: str = "") -> T:
    """`value` if it is of `kind`, strictly: no number is read from text, no whole number from a boolean.

    Args:
        kind: anything that pydantic can check; a dict may have more keys than a TypedDict names.
        where: the file, and the place in it, that begin the message.
        hint: what to do, at the end of the message.

    Raises:
        UserError: a key is missing, or a value of another type or out of its bounds.
    """
    from pydantic import ValidationError

    try:
        _adapter(kind).validate_python(value, strict=True)
        return value
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    place, message = ".".join(map(str, first["loc"])) or "the whole", first["msg"].removeprefix("Input should be ")
    ending = f"; {hint}" if hint else ""
    if first["type"] == "missing":
        found = sorted(map(short, first["input"]))
        near = difflib.get_close_matches(repr(first["loc"][-1]), found, n=1, cutoff=0.75)
        meant = f"; is {near[0]} meant for it?" if near else f"; found {', '.join(found[:8]) or 'nothing'}"
        raise UserError(f"{where}: lacks {place}{meant}{ending}")
    raise UserError(f"{where}: {place} is {short(first['input'])}, expected {message}{ending}")


def record(optional: dict[str, Any] | None = None, **required: Any) -> Any:
    """A TypedDict of entries and their kinds, for `checked`."""
    from typing_extensions import TypedDict

    return TypedDict("record", required | {name: NotRequired[kind] for name, kind in (optional or {}).items()})


@lru_cache
def _adapter(kind: Any) -> Any:
    from pydantic import TypeAdapter  # 0.2 s

    return TypeAdapter(kind)


def check_extent(value: Any, n_bytes: int, where: str) -> None:
    """Refuse plain values that are, written out, far more than the `n_bytes` that they were read from.

    A file of a hundred bytes can hold a list of two lists of two lists ..., each the same one: nothing to keep, and
    longer than any memory to write out, compare or hash. Values within themselves are refused likewise.

    Raises:
        UserError: too many values, a value within itself, or an integer that 64 bits do not hold.
    """
    counts: dict[int, float] = {}  # by identity: how many values a container is when written out; NaN: being counted
    stack, limit = [(value, False)], PARTS_A_BYTE * n_bytes + 1000
    while stack:
        part, children_counted = stack.pop()
        inside = _inside(part)
        if inside is None:
            if isinstance(part, int) and not -LARGEST_INTEGER <= part < LARGEST_INTEGER:
                raise UserError(f"{where}: holds {short(part)}, more than any setting or index can be")
        elif children_counted:
            counts[id(part)] = 1 + sum(counts.get(id(child), 1) for child in inside)
            if counts[id(part)] > limit:
                raise UserError(
                    f"{where}: holds lists in lists that are, written out, far more than its {n_bytes} bytes"
                )
        elif id(part) not in counts:
            counts[id(part)] = math.nan
            stack += [(part, True), *((child, False) for child in inside)]
        elif math.isnan(counts[id(part)]):
            raise UserError(f"{where}: holds a list or dict that contains itself")


def _inside(value: Any) -> list | None:
    """The values in a container; None for anything else."""
    if isinstance(value, dict):
        return [*value.keys(), *value.values()]
    return list(value) if isinstance(value, list | tuple | set | frozenset) else None


def read_json(path: str | Path, what: str) -> Any:
    """The content of a JSON file, whatever its type (then `checked`).

    Args:
        what: name of the wanted file in error messages, for example "manifest".

    Raises:
        UserError: missing, no plain file, too large, not UTF-8, no JSON, or nested deeper than Python reads.
    """
    raw = _bytes_of(Path(path), f"{what} (JSON)", LARGEST_JSON)
    try:
        content = json.loads(raw)
        json.dumps(content, ensure_ascii=False).encode()  # halves of surrogate pairs cannot be written anywhere
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as a {what} ({first_line(error)}); write it anew as JSON") from error
    return content


def read_yaml(path: str | Path, what: str) -> Any:
    """The content of a YAML file as plain values (then `checked`): no tags, no interpolation, no merged mappings.

    Raises UserError as `read_json`, or where it would be, written out, far larger than it is.
    """
    import yaml

    raw = _bytes_of(Path(path), f"{what} (YAML)", LARGEST_YAML)
    with as_sentence(f"{path}: cannot be read as a {what}", "write it anew as YAML"):
        loader = yaml.SafeLoader(raw)
        loader.flatten_mapping = lambda node: None  # merges (<<) copy: a few lines of them would fill any memory
        content = loader.get_single_data()
    check_extent(content, len(raw), str(path))
    return content


def _bytes_of(path: Path, what: str, most: int) -> bytes:
    """What a file holds, if it is a plain one of at most `most` bytes. Raises UserError."""
    if not path.is_file():
        there = "is no plain file" if path.exists() else "no such file"
        raise UserError(f"{path}: {there}; expected a {what}")
    if path.stat().st_size > most:
        raise UserError(f"{path}: has {path.stat().st_size / 1e6:.3g} MB, more than any {what}")
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read as a {what} ({first_line(error)})") from error
