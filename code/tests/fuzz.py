"""Valid files, damaged at random from a seed, and what a loader makes of them: one sentence, or what was there before.

A loader of another room joins by `LOADERS["name"] = Loader(make, open, guarded)`, and is then tried by test_fuzz.
"""

import io
import itertools
import pickletools
import random
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from runtime.errors import UserError


@dataclass(frozen=True)
class Loader:
    """How a valid file is written into an empty folder, and opened: into anything that `same` compares.

    `guarded`: a checksum or digest covers the file, so that what opens must be what was written.
    """

    make: Callable[[Path], Path]
    open: Callable[[Path], Any]
    guarded: bool


LOADERS: dict[str, Loader] = {}


def same(a: Any, b: Any) -> bool:
    """Whether two contents are equal, to the bit."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):  # of dtypes that numpy has not, too
        raw = [value.detach().contiguous().flatten().view(torch.uint8).numpy() for value in (a, b)]
        return (a.shape, a.dtype) == (b.shape, b.dtype) and same(*raw)
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return (a.shape, a.dtype, a.tobytes()) == (b.shape, b.dtype, b.tobytes())
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def bits(content: bytearray, draw: random.Random) -> None:
    """One to eight bits turned over."""
    for _ in range(draw.choice([1, 1, 2, 8])):
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)


def bytes_of_the_head(content: bytearray, draw: random.Random) -> None:
    """Other bytes where headers are, at either end."""
    for _ in range(draw.choice([1, 1, 2, 5])):
        place = draw.randrange(min(400, len(content)))
        content[place if draw.random() < 0.5 else -1 - place] = draw.randrange(256)


def cut(content: bytearray, draw: random.Random) -> None:
    """The rest is missing."""
    del content[draw.randrange(len(content)) :]


def hole(content: bytearray, draw: random.Random) -> None:
    """A part is missing."""
    begin = draw.randrange(len(content))
    del content[begin : begin + draw.choice([1, 4, 64, 512])]


def zeros(content: bytearray, draw: random.Random) -> None:
    """A part is zero."""
    begin, length = draw.randrange(len(content)), draw.choice([1, 8, 64, 512])
    content[begin : begin + length] = bytes(len(content[begin : begin + length]))


def exchange(content: bytearray, draw: random.Random) -> None:
    """Two parts of equal length are exchanged."""
    length = draw.choice([1, 4, 16, 64, 256])
    first, second = sorted(draw.randrange(max(1, len(content) - length)) for _ in range(2))
    if first + length <= second:
        one, two = content[first : first + length], content[second : second + length]
        content[first : first + length], content[second : second + length] = two, one


def again(content: bytearray, draw: random.Random) -> None:
    """A part comes twice."""
    begin = draw.randrange(len(content))
    content[begin:begin] = content[begin : begin + draw.choice([1, 4, 64, 512])]


def edited(pickled: bytes, draw: random.Random) -> bytes:
    """A pickle with one to three opcodes left out, doubled, exchanged, or with other arguments."""
    places = [place for _, _, place in pickletools.genops(pickled)] + [len(pickled)]
    parts = [bytearray(pickled[a:b]) for a, b in itertools.pairwise(places)]
    for _ in range(draw.choice([1, 1, 2, 3])):
        one, two = draw.randrange(len(parts) - 1), draw.randrange(len(parts) - 1)
        kind = draw.choice(["out", "double", "exchange", "argument", "opcode"])
        if kind == "out" and len(parts) > 2:
            del parts[one]
        elif kind == "double":
            parts.insert(two, parts[one])
        elif kind == "exchange":
            parts[one], parts[two] = parts[two], parts[one]
        elif kind == "argument" and len(parts[one]) > 1:
            parts[one] = bytearray(parts[one])
            parts[one][draw.randrange(1, len(parts[one]))] = draw.randrange(256)
        else:
            parts[one] = bytearray(draw.choice(pickletools.opcodes).code.encode("latin-1") + parts[one][1:])
    return b"".join(parts)


def opcodes(content: bytearray, draw: random.Random) -> None:
    """The pickle of a torch file says something else, and its checksum is that of what it says."""
    whole = bytes(content)
    if whole.startswith(b"PK"):
        changed = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(whole)) as old, zipfile.ZipFile(changed, "w") as new:
            for name in old.namelist():
                part = old.read(name)
                new.writestr(name, edited(part, draw) if name.endswith("data.pkl") else part)
        content[:] = changed.getvalue()
        return
    stream = io.BytesIO(whole)
    for _ in range(3):  # magic number, protocol, system
        list(pickletools.genops(stream))
    begin = stream.tell()
    list(pickletools.genops(stream))
    content[begin : stream.tell()] = edited(whole[begin : stream.tell()], draw)


DAMAGES = (bits, bits, bytes_of_the_head, cut, hole, zeros, exchange, again)


def is_torch(content: bytes) -> bool:
    return content.startswith(b"PK") or content[1:4] == b"\x02\x8a\n"


def try_out(name: str, folder: Path, n: int, seed: int = 0) -> Counter:
    """Open n damaged files of a loader: how many were refused, read as before, or (where not guarded) as another.

    Raises:
        AssertionError: a traceback, or another content of a guarded file; says how to see it again.
    """
    loader, found = LOADERS[name], Counter()
    (folder / "valid").mkdir(parents=True)
    valid = loader.make(folder / "valid")
    before, whole = loader.open(valid), valid.read_bytes()
    for number in range(n):
        draw = random.Random(f"{name}/{seed}/{number}")
        damage = opcodes if is_torch(whole) and draw.random() < 0.25 else draw.choice(DAMAGES)
        content = bytearray(whole)
        damage(content, draw)
        if bytes(content) == whole:
            continue
        valid.write_bytes(content)
        case = f"{name}, {damage.__name__}: fuzz.try_out({name!r}, folder, {number + 1}, {seed}) ends with it"
        try:
            after = loader.open(valid)
        except UserError as error:
            assert "\n" not in str(error).strip(), f"{case}: more than a line: {error}"
            found["refused"] += 1
            continue
        except Exception:
            raise AssertionError(f"{case}\n{traceback.format_exc()}") from None
        equal = same(before, after)
        assert equal or not loader.guarded or damage is opcodes, f"{case}: opens as another content"
        found["as before" if equal else "as another"] += 1
    return found
