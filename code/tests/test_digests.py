"""A fingerprint notices a file that was changed in place and given its old time back."""

import os

import pytest

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
