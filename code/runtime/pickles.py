"""What the pickle of a torch file asks for, told from its opcodes before anything is made of it.

torch's weights-only reader runs no foreign code, but copies and hashes whatever it is told to: half a megabyte can
copy one dict sixty thousand times, or hash a tuple of 2^40 parts. Here every opcode is counted on a stack of sizes.
What costs more than its own bytes is a call (REDUCE, NEWOBJ), a state (BUILD), and the hash of a key: each is charged
with the size, at that moment, of what it is given, and keys are texts and numbers. So the count bounds time and memory.
"""

import io
import pickletools
import zipfile
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch

from runtime.errors import machine_failed
from runtime.plain import LARGEST_INTEGER, short

OLD_TORCH = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch's magic number before 1.6, behind two bytes of protocol
SHORT, LARGEST = 8 << 20, 64 << 20  # bytes of one pickle: of a file that is nothing else, of any; a trial takes 300
# Steps that any file may take, and one more for so many of its bytes. A trial with four of numpy's scalars takes 340
# steps, and with its samples and records is no shorter than 1 kB; a step is about a microsecond and 100 bytes.
FREE, BYTES_A_STEP = 1_500_000, 4
CONTAINER, CALL = 4, 6  # steps more than one that a container takes, and a call beside its arguments
GETS, PUTS = {"GET", "BINGET", "LONG_BINGET"}, {"PUT", "BINPUT", "LONG_BINPUT"}
GROWING = {"APPEND", "APPENDS", "SETITEM", "SETITEMS", "BUILD"}
CALLING = {"REDUCE", "NEWOBJ", "BINPERSID"}
ATOMS = {"NONE", "NEWTRUE", "NEWFALSE"}
EMPTY, ENCODE = "collections.OrderedDict", "_codecs.encode"  # called with nothing or pairs; with text and latin1
REBUILD = ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter")
# all that files of tensors and plain values call
CALLED = {EMPTY, ENCODE, "torch.Size", "torch.device", *(f"torch._utils.{name}" for name in REBUILD)}


class Survey(NamedTuple):
    """What a file's pickles hold."""

    strings: set[str]
    classes: set[str]  # all classes and functions that are asked for, "module.name"
    calls: set[str]  # those of them that are called
    n_bytes: int  # of the file's pickles
    zipped: bool  # whether the file has the format since torch 1.6


class Refused(ValueError):
    """A file that is of another kind, asks for too much, or for what torch never writes; in words after its name."""


class _Value:
    """A value that the pickle would make: `size` parts; what it is made of (None: a text or number, or a container)."""

    __slots__ = ("keyed", "pairs", "parts", "size", "text")

    def __init__(self, size: int = 1, parts: list | None = None, text: str = ""):
        self.size, self.parts, self.text = size, parts, text
        self.keyed, self.pairs = False, True  # of a list: begins with what may be a key; holds nothing but pairs

    def is_pair(self) -> bool:
        """Whether it is a list or tuple of two, the first of which may be a key."""
        if self.parts is None:
            return self.size == 3 and self.keyed
        return len(self.parts) == 2 and self.parts[0].parts is None

    def cost(self) -> int:
        """Of copying it, or reading all that it holds."""
        return self.size + sum(part.size for part in self.parts or ())


def survey(path: str | Path) -> Survey:
    """What the pickles of a torch file of either format ask for.

    Raises:
        Refused: it is no torch file, or asks for more than its size can mean.
        EOFError: it was cut off or damaged.
    """
    size = Path(path).stat().st_size
    limit, longest = FREE + size // BYTES_A_STEP, min(LARGEST, SHORT + size // 4)
    try:
        with open(path, "rb") as file:
            head = file.read(2 + len(OLD_TORCH))
            if zipped := head.startswith(b"PK\x03\x04"):
                content, n_pickles = _pickle_of_zip(file, longest), 1
            elif head[2:] == OLD_TORCH:  # protocol, system, content and the storages' keys follow, a pickle each
                content, n_pickles = io.BytesIO(file.read(longest)), 4
            else:
                raise Refused("cannot be read as a torch file (truncated or another kind)")
        found = [_survey(content, limit) for _ in range(n_pickles)]
    except Refused:
        raise
    except Exception as error:  # on a damaged file pickletools and the readers of zip files fail in any way
        if machine_failed(error):
            raise
        if "unknown" in str(error):  # a byte that is no opcode; other complaints are about a missing rest
            raise Refused(f"cannot be read: {error}") from error
        raise EOFError(str(error)) from error
    return Survey(*(set().union(*sets) for sets in zip(*found, strict=True)), content.tell(), zipped)


@lru_cache(maxsize=64)
def damaged_record(path: str | Path, *seen: int | str) -> str | None:
    """The first record of a zipped torch file whose CRC-32 is not that of its content; None: all are whole.

    Reads the whole file, once for each fingerprint (`seen`). Files of the format before torch 1.6 hold no checksum.
    """
    with zipfile.ZipFile(path) as archive:
        return archive.testzip()


def _pickle_of_zip(file: BinaryIO, longest: int) -> BinaryIO:
    """The pickle in a torch zip file, the very one that torch will read."""
    archive = zipfile.ZipFile(file)
    records = {record.filename: record for record in archive.infolist()}
    pickled = next((record for name, record in records.items() if name.endswith("/data.pkl")), None)
    stored = all(record.compress_type == zipfile.ZIP_STORED for record in records.values())
    if pickled is None or not stored or len(records) < len(archive.infolist()) or pickled.file_size > longest:
        unlike = f"a record is compressed or named twice, or data.pkl is missing or longer than {longest} bytes"
        raise Refused(f"is no zip file as torch writes it: {unlike}")
    content = archive.read(pickled)
    file.seek(0)
    if torch._C.PyTorchFileReader(file).get_record("data.pkl") != content:
        raise Refused("is a zip file that two readers read differently")
    return io.BytesIO(content)


def _survey(content: BinaryIO, limit: int) -> tuple[set[str], set[str], set[str]]:
    """Strings, classes and calls of the pickle that begins here; any exception where it is damaged."""
    strings, classes, calls = set(), set(), set()
    stack: list[_Value] = []
    marks: list[int] = []
    memo: dict[int, _Value] = {}
    number, steps = _Value(), 0
    for opcode, argument, _ in pickletools.genops(content):
        name, steps = opcode.name, steps + 1
        if name in PUTS:
            memo[argument] = stack[-1]
            steps += 1
        elif name in GETS:
            stack.append(memo[argument])
        elif name == "MARK":
            marks.append(len(stack))
            steps += CONTAINER
        elif isinstance(argument, str):
            named = argument.replace(" ", ".") if name == "GLOBAL" else argument
            (classes if name == "GLOBAL" else strings).add(named)
            stack.append(_Value(1 + len(named) // 64, None, named))
        elif opcode.stack_before:
            steps += _take(opcode, stack, marks, calls)
        elif opcode.stack_after:
            if isinstance(argument, int) and not -LARGEST_INTEGER <= argument < LARGEST_INTEGER:
                raise Refused(f"holds {short(argument)}, more than any setting or index can be")
            plain = name in ATOMS or argument is not None
            stack.append(number if plain else _Value(1, [] if name == "EMPTY_TUPLE" else None))
            steps += 0 if plain else CONTAINER
        if steps > limit:
            raise Refused("holds far more, written out, than its bytes: copies of copies")
    return strings, classes, calls


def _take(opcode: pickletools.OpcodeInfo, stack: list[_Value], marks: list[int], calls: set[str]) -> int:
    """Do an opcode that takes values from the stack; returns how many steps it costs beyond one."""
    marked = pickletools.markobject in opcode.stack_before
    grows = opcode.name in GROWING
    begin = marks.pop() if marked else len(stack) - len(opcode.stack_before) + grows
    taken = stack[begin:]
    del stack[begin:]
    if grows:
        if opcode.name.startswith("SETITEM") and any(key.parts is not None for key in taken[::2]):
            raise Refused("holds a dict with keys that are neither text nor numbers")
        grown = stack[-1]
        if opcode.name.startswith("APPEND"):
            grown.keyed = taken[0].parts is None if taken and grown.size == 1 else grown.keyed
            grown.pairs &= all(value.is_pair() for value in taken)
        grown.size += len(taken)
        return taken[0].cost() if opcode.name == "BUILD" else 0
    if opcode.name not in CALLING:  # a tuple
        stack.append(_Value(1 + len(taken), taken))
        return CONTAINER
    cost = taken[-1].cost()
    if opcode.name != "BINPERSID":
        called, given = taken[0].text or "what another call gives", taken[1].parts
        fine = called != ENCODE or [part.text for part in given[1:]] == ["latin1"]
        if called == EMPTY:  # Python 2 wrote an OrderedDict as the list of its pairs
            fine = not given or (len(given) == 1 and given[0].parts is None and given[0].pairs)
        if given is None or not fine:
            raise Refused(f"calls {called} with what torch never gives it")
        calls.add(called)
    stack.append(_Value(cost, []))
    return CALL + cost
