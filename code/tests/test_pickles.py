"""Pickles that would keep torch's reader busy for days are refused by what they ask for; honest ones are not."""

import pickle
import struct
import zipfile
from collections import OrderedDict

import pytest
import torch

from runtime import checkpoints, pickles
from runtime.errors import UserError
from runtime.file_kinds import UNKNOWN, file_kind

MAGIC = 0x1950A86A20F9469CFC6C
ORDERED, SIZE = b"ccollections\nOrderedDict\nq\x00", b"ctorch\nSize\nq\x00"
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\nq\x00"
MANY = 40_000  # of what is copied, and of its copies


def text(content: str) -> bytes:
    return b"X" + struct.pack("<I", len(content.encode())) + content.encode()


def integer(value: int) -> bytes:
    content = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(content)]) + content


def doubled(first: bytes, wrap: bytes) -> bytes:
    """Something memoised, in a pair of itself, forty times over."""
    return first + b"q\x05" + b"".join(b"h%ch%c%bq%c" % (5 + i, 5 + i, wrap, 6 + i) for i in range(40))


ENTRIES = b"}q\x01(" + b"".join(b"J" + struct.pack("<i", i) + b"N" for i in range(MANY)) + b"u"
PAIRS = b"](" + b"".join(b"](J" + struct.pack("<i", i) + b"Ne" for i in range(MANY)) + b"e"  # as Python 2 wrote them
ITEMS = b"(" + b"K\x01" * MANY
BOMBS = {
    "copies of one dict": b"](" + ORDERED + ENTRIES + b"h\x00h\x01\x85R" * MANY + b"e",
    "copies of one list of pairs": b"](" + ORDERED + PAIRS + b"\x85q\x01R" + b"h\x00h\x01R" * MANY + b"e",
    "a pair of pairs as a key": ORDERED + b"](](" + doubled(b"K\x01", b"\x86") + b"Neee\x85R",
    "states of one dict": b"](" + ORDERED + b")R" + ENTRIES + b"h\x00)Rh\x01b" * MANY + b"e",
    "one shape": b"](" + REBUILD + ITEMS + b"tq\x01" + b"h\x00(K\x00K\x00h\x01h\x01tR" * MANY + b"e",
    "one size": b"](" + SIZE + ITEMS + b"tq\x01" + b"h\x00h\x01\x85R" * MANY + b"e",
    "arguments that grow afterwards": b"]("
    + SIZE
    + b"]q\x02\x85q\x01h\x02"
    + ITEMS
    + b"e"
    + b"h\x00h\x01R" * MANY
    + b"e",
    "a key of pairs of pairs": b"}" + doubled(b"K\x01", b"\x86") + b"Ns",
    "lists of lists": b"}" + text("a") + b"](" + doubled(b"]", b"\x86") + b"es",
    "keys of one hash": b"}(" + b"".join(integer((2**61 - 1) * (i + 1)) + b"N" for i in range(MANY)) + b"u",
    "a quadratic codec": b"c_codecs\nencode\n"
    + text("".join(map(chr, range(20_000, 50_000))))
    + text("punycode")
    + b"\x86R",
    "one long text": b"](c_codecs\nencode\nq\x00"
    + text("a" * 10**6)
    + b"q\x01"
    + b"h\x00h\x01X\x06\0\0\0latin1\x86R" * MANY,
    "gigabytes by one call": b"c__builtin__\nbytearray\n" + integer(10**11) + b"\x85R",
    "an empty tensor of gigabytes": b"ctorch\nTensor\n" + integer(10**11) + b"\x85R",
    "many dicts": b"](" + b"}" * 400_000 + b"e",
    "many lists in lists": b"]" * 400_000 + b"a" * 399_999,
    "a list in itself": b"}" + text("a") + b"]q\x00h\x00as",
    "an integer of 250 bytes": b"}" + text("a") + integer(256**250) + b"s",
    "values that are not there": b"}h\x07s",
    "nothing": b"",
}


def write(path, content, zipped):
    content = b"\x80\x02" + content + b"."
    if not zipped:
        path.write_bytes(b"".join(pickle.dumps(part, 2) for part in (MAGIC, 1001, {})) + content + pickle.dumps([], 2))
        return path
    with zipfile.ZipFile(path, "w") as archive:
        for name, part in {"data.pkl": content, "byteorder": b"little", "version": b"3\n"}.items():
            archive.writestr(f"archive/{name}", part)
    return path


@pytest.mark.parametrize("zipped", [False, True], ids=["legacy", "zip"])
@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_one_sentence(tmp_path, name, zipped):
    path = write(tmp_path / "file.pth", BOMBS[name], zipped)
    with pytest.raises(UserError, match=r"file.pth: (holds|calls|is truncated)"):
        checkpoints.read_plain(path, "thing")
    assert file_kind(path) in (UNKNOWN, "truncated file")


def test_a_bomb_in_any_pickle_of_the_old_format_is_found(tmp_path):
    parts = [pickle.dumps(part, 2) for part in (MAGIC, 1001, {}, {"a": 1}, [])]
    for place in range(1, 5):
        hostile = b"\x80\x02" + BOMBS["states of one dict"] + b"."
        (tmp_path / "file.pth").write_bytes(b"".join([*parts[:place], hostile, *parts[place + 1 :]]))
        with pytest.raises(UserError, match="copies of copies"):
            checkpoints.read_plain(tmp_path / "file.pth", "thing")


@pytest.mark.parametrize("zipped", [False, True], ids=["legacy", "zip"])
def test_honest_files_are_read(tmp_path, zipped):
    module = torch.nn.BatchNorm1d(3)
    optimizer = torch.optim.AdamW([{"params": [p], "betas": (0.9, 0.95)} for p in module.parameters()])
    module(torch.randn(4, 3)).square().sum().backward()
    optimizer.step()
    shared = ["C3", "C4"] * 50  # one list in many places
    content = {
        "module": module.state_dict(), "optimizer": optimizer.state_dict(), "weight": module.weight,
        "size": torch.Size([2, 3]), "half": torch.zeros(2, dtype=torch.bfloat16), "none": None, "flag": True,
        "trials": [{"channels": shared, "onset": 0.5 * i, "pair": (i, -i)} for i in range(500)],
        "ordered": OrderedDict(a=1), "largest": 2**63 - 1, "dtype": torch.float16,
    }  # fmt: skip
    torch.save(content, tmp_path / "file.pth", _use_new_zipfile_serialization=zipped)
    read = checkpoints.read_plain(tmp_path / "file.pth", "thing")
    assert read.keys() == content.keys() and read["trials"] == content["trials"] and read["size"] == content["size"]
    assert torch.equal(read["weight"], module.weight) and read["optimizer"]["param_groups"][0]["betas"] == (0.9, 0.95)
    assert read["largest"] == 2**63 - 1 and read["ordered"] == {"a": 1}


def test_an_ordered_dict_as_python_2_wrote_it_is_read(tmp_path):
    content = b"}" + text("a") + ORDERED + PAIRS + b"\x85Rs"
    path = write(tmp_path / "old.pth", content, False)
    assert list(checkpoints.read_plain(path, "file")["a"]) == [*range(MANY)]


def test_any_damaged_record_is_named(tmp_path):
    path = tmp_path / "file.pth"
    torch.save({"a": torch.arange(100.0), "b": torch.ones(50)}, path)
    whole = path.read_bytes()
    assert pickles.damaged_record(path) is None
    at = whole.index(torch.arange(100.0).numpy().tobytes())
    path.write_bytes(whole[: at + 40] + b"\x55" + whole[at + 41 :])
    with pytest.raises(UserError, match="file.pth: is damaged: the checksum of its part file/data/0 is another"):
        checkpoints.read_plain(path, "thing")


def test_a_zip_with_two_contents_is_refused(tmp_path):
    path = write(tmp_path / "file.pth", b"}", True)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("archive/data.pkl", b"\x80\x02]q\x00.")
    with pytest.raises(UserError, match="compressed or named twice"):
        checkpoints.read_plain(path, "thing")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/version", "3\n")
        archive.writestr("other/data.pkl", b"\x80\x02}.")
        archive.writestr("archive/data.pkl", b"\x80\x02]q\x00.")
    with pytest.raises(UserError, match="two readers read differently"):
        checkpoints.read_plain(path, "thing")
