"""A fingerprint notices a file that was changed in place and given its old time back; by it hashes are remembered."""

import json
import os

import pytest

from runtime import digests
from runtime.digests import BLOCK, BLOCKS, fingerprint


@pytest.mark.parametrize("place", [0, 5 * BLOCK + 3, -1])
@pytest.mark.parametrize("size", [6 * BLOCK, BLOCK * BLOCKS])
def test_a_byte_of_a_file_up_to_16_mb_is_noticed(tmp_path, size, place):
    path = tmp_path / "f"
    content = bytearray(size)
    path.write_bytes(content)
    before = fingerprint(path)
    content[place] = 1
    path.write_bytes(content)
    os.utime(path, ns=(before["mtime_ns"], before["mtime_ns"]))
    after = fingerprint(path)
    assert after != before and (after["size"], after["mtime_ns"]) == (before["size"], before["mtime_ns"])


def test_both_ends_of_a_large_file_are_read(tmp_path):
    path, size = tmp_path / "f", 3 * BLOCK * BLOCKS + 17
    digests = []
    for place in (None, 0, size - 1):
        content = bytearray(size)
        if place is not None:
            content[place] = 1
        path.write_bytes(content)
        digests.append(fingerprint(path)["sampled"])
    assert len(set(digests)) == 3


def test_an_empty_file(tmp_path):
    (tmp_path / "f").touch()
    assert fingerprint(tmp_path / "f")["size"] == 0


def test_a_large_file_is_hashed_once_until_it_changes(tmp_path, monkeypatch):
    path, memory, hashed, whole = tmp_path / "large", tmp_path / "cache/hashes.json", [], digests._hashed
    monkeypatch.setattr(digests, "_hashed", lambda path: hashed.append(path) or whole(path))
    monkeypatch.setattr(digests, "LARGE", 16_000)
    for name, value in {"kept": None, "writes": False, "there": {}, "new": {}}.items():
        monkeypatch.setattr(digests._Known, name, value)
    path.write_bytes(bytes(100_000))

    def sha256() -> int:
        digests._Known.here.clear()  # as in another process
        digests.remember_in(memory, writes=True)
        assert digests.sha256(path) == whole(path)
        digests.write_down()
        return len(hashed)

    assert [sha256(), sha256()] == [1, 1] and memory.is_file()
    status = path.stat()
    path.write_bytes(b"1" + bytes(99_999))
    assert sha256() == 2, "another time of change"
    path.write_bytes(b"2" + bytes(99_999))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert sha256() == 3, "the same size and time of change"
    for damage in ("{", "[1]", '{"large": 3}', json_of(path, {"sha256": 5})):
        memory.write_text(damage)
        assert sha256() == len(hashed)
    memory.unlink()
    memory.parent.rmdir()
    memory.parent.write_text("no folder")
    assert sha256() == len(hashed)


def json_of(path, more) -> str:
    return json.dumps({str(path): digests.fingerprint(path) | more})


def test_hashes_of_many_files_are_read_and_written_once_beside_those_of_others(tmp_path, monkeypatch):
    memory, reads, read = tmp_path / "hashes.json", [], digests._read
    monkeypatch.setattr(digests, "_read", lambda path: reads.append(path) or read(path))
    monkeypatch.setattr(digests, "LARGE", 10)
    for name in ("here", "there", "new"):
        monkeypatch.setattr(digests._Known, name, {})
    monkeypatch.setattr(digests._Known, "kept", None)
    monkeypatch.setattr(digests._Known, "writes", False)
    for writes in (False, True):
        digests._Known.here.clear()
        digests.remember_in(memory, writes)
        for i in range(5):
            (tmp_path / str(i)).write_bytes(bytes(100 + i))
            digests.sha256(tmp_path / str(i))
        memory.write_text('{"/another": {"sha256": "of another process"}}')
        digests.write_down()
        assert len(json.loads(memory.read_text())) == (6 if writes else 1)
    assert len(reads) == 3
