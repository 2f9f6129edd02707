"""What identifies a file: its sha256, and a fingerprint that tells in milliseconds whether it is still the same."""

import contextlib
import hashlib
import json
import os
import time
from pathlib import Path

from runtime import atomic
from runtime.errors import UserError
from runtime.plain import checked, read_json

BLOCK, BLOCKS = 1 << 16, 256  # a fingerprint reads 16 MB at most; a file up to that size is read whole
LARGE = 1 << 28  # bytes; only of files above it hashes are remembered, which takes a fingerprint
SETTLED = 2_000_000_000  # ns; a file that changed later may change again within one tick of its disk's clock


class _Known:
    """What is known of files that were hashed."""

    here: dict[tuple, str] = {}  # in this process, by path and status: a change of content cannot hide its time there
    kept: Path | None = None  # a JSON file in which those of large files outlive the process
    writes = False
    there: dict[str, dict] = {}  # what it held
    new: dict[str, dict] = {}  # what it is to hold besides


def remember_in(path: Path, writes: bool) -> None:
    """From now on, know the sha256 of large files by their fingerprint from this JSON file.

    writes: `write_down` adds what is new.
    """
    _Known.kept, _Known.writes, _Known.there = path, writes, _read(path)


def write_down() -> None:
    """Add to the file of `remember_in` what was hashed since, beside what other processes have added."""
    if _Known.new and _Known.writes:
        with contextlib.suppress(UserError):  # not writable: the next run hashes it again
            atomic.write_text(_Known.kept, json.dumps(_read(_Known.kept) | _Known.new, indent=1))
        _Known.new = {}


def _read(memory: Path) -> dict[str, dict]:
    with contextlib.suppress(UserError):  # missing or damaged: the files are hashed again
        return checked(dict[str, dict[str, int | str]], read_json(memory, "memory of hashes"), str(memory))
    return {}


def sha256(path: str | Path) -> str:
    """Hex digest of a file's content, which is read once, as long as nobody changes the file."""
    path, status = os.path.abspath(path), os.stat(path)
    key = path, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
    if key not in _Known.here or time.time_ns() - status.st_ctime_ns < SETTLED:
        large = _Known.kept and status.st_size > LARGE
        _Known.here[key] = _remembered(path) if large else _hashed(path)
    return _Known.here[key]


def of_bytes(*parts: bytes | memoryview) -> str:
    """Hex digest of bytes, or of arrays that lie in one piece: of what a cache holds, to tell damage."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _hashed(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _remembered(path: str) -> str:
    """A large file's sha256, by its fingerprint where an earlier run has hashed it."""
    seen, before = fingerprint(path), _Known.there.get(path, {})
    if before == seen | {"sha256": str(before.get("sha256"))}:
        return before["sha256"]
    digest = _hashed(path)
    if fingerprint(path) == seen:
        _Known.new[path] = seen | {"sha256": digest}
    return digest


def fingerprint(path: str | Path, blocks: int = BLOCKS) -> dict[str, int | str]:
    """Size, time of change, and a digest of blocks (64 kB) spread evenly over the file, first and last among them.

    Size and time alone miss a file that was changed in place and given its old time back. The blocks hold all of a
    file up to 16 MB, and of a larger one enough to miss only changes that are short beside it.
    """
    status = Path(path).stat()
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        for block in range(blocks):
            file.seek(max(block * BLOCK, block * (status.st_size - BLOCK) // (blocks - 1)))
            digest.update(file.read(BLOCK))
    return {"size": status.st_size, "mtime_ns": status.st_mtime_ns, "sampled": digest.hexdigest()}
