"""Plain values that a file holds, checked before anything uses them: bounds on their size, then names and types.

Readers say what they want as a TypedDict (of typing_extensions, as Python 3.11's says too little), or another type that
pydantic knows, close to where it is read.
"""

from __future__ import annotations

import difflib
import json
import math
import re
import reprlib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, NotRequired, TypeVar

from runtime.errors import UserError, first_line

T = TypeVar("T")
LARGEST_JSON = 64 << 20  # bytes; of our own files none comes near
# bytes of a YAML file, how many parts it may have, characters of a value, lists in lists
LARGEST_YAML, MOST_PARTS, LONGEST_VALUE, DEEPEST = 2 << 20, 100_000, 10_000, 20
LARGEST_INTEGER = 1 << 63
# Of a terminal, of HTML, and of the direction of writing: they can make a text say what it does not hold
CONTROL = re.compile("[\0-\b\v-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
OF_UNIONS = ("str", "int", "constrained-int", "constrained-float")  # what pydantic adds to a place in one
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


def visible(value: Any) -> Any:
    """A text with its control characters written out, and any other value as it is."""
    return CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", value) if type(value) is str else value


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
    place = ".".join(str(part) for part in first["loc"] if part not in OF_UNIONS) or "the whole"
    message = first["msg"].replace("Input should be", "expected")
    ending = f"; {hint}" if hint else ""
    if first["type"] == "missing":
        found = sorted(map(short, first["input"]))
        near = difflib.get_close_matches(repr(first["loc"][-1]), found, n=1, cutoff=0.75)
        meant = f"; is {near[0]} meant for it?" if near else f"; found {', '.join(found[:8]) or 'nothing'}"
        raise UserError(f"{where}: lacks {place}{meant}{ending}")
    raise UserError(f"{where}: {place} is {short(first['input'])}, {message}{ending}")


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


def read_json(path: str | Path, what: str, hint: str = "write it anew as JSON") -> Any:
    """The content of a JSON file, whatever its type (then `checked`).

    Args:
        what: name of the wanted file in error messages, for example "manifest".
        hint: what to do, at the end of the message about a damaged file.

    Raises:
        UserError: missing, no plain file, too large, not UTF-8, no JSON, or nested deeper than Python reads.
    """

    def parse(text: bytes) -> Any:
        content = json.loads(text)
        json.dumps(content, ensure_ascii=False).encode()  # halves of surrogate pairs cannot be written anywhere
        return content

    return _read(Path(path), f"{what} (JSON)", LARGEST_JSON, parse, hint)


def read_yaml(path: str | Path, what: str, hint: str = "write it anew as YAML") -> Any:
    """The content of a YAML file of plain values, whatever its type (then `checked`); arguments as `read_json`'s.

    Raises:
        UserError: as `read_json`; a tag that asks for more than plain values; an alias, by which a small file stands
            for an endless one.
    """
    import yaml  # pulls in its C parser, which few commands need

    def parse(text: bytes) -> Any:
        depth = 0
        try:
            for count, event in enumerate(yaml.parse(text, Loader=yaml.CSafeLoader)):
                depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
                large = len(getattr(event, "value", "")) > LONGEST_VALUE or count > MOST_PARTS or depth > DEEPEST
                if large or isinstance(event, yaml.AliasEvent) or getattr(event, "tag", None):
                    kind = "more, longer or deeper values than it may hold" if large else "an alias or a tag"
                    raise ValueError(f"line {event.start_mark.line + 1}: {kind}")
            return yaml.load(text, Loader=yaml.CSafeLoader)
        except (yaml.YAMLError, ArithmeticError) as error:
            raise ValueError(first_line(error)) from error

    return _read(Path(path), f"{what} (YAML)", LARGEST_YAML, parse, hint)


def _read(path: Path, what: str, largest: int, parse: Callable[[bytes], Any], hint: str) -> Any:
    if not path.is_file():
        raise UserError(f"{path}: {'is no plain file' if path.exists() else 'no such file'}; expected a {what}")
    if path.stat().st_size > largest:
        raise UserError(f"{path}: has {path.stat().st_size / 1e6:.0f} MB, more than any {what}")
    try:
        return parse(path.read_bytes())
    except (ValueError, RecursionError, OSError) as error:
        raise UserError(f"{path}: cannot be read as a {what} ({first_line(error)}); {hint}") from error
