"""Files in a picture's place: read as pictures by content, in bounded memory, with no interpreter; or one sentence."""

import io
import os
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from runtime import ranks
from runtime.errors import UserError, cli
from runtime.memory import advise
from runtime.pictures import MOST_PIXELS, fault, load_image, read_picture

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8))
GREY = NOISE.convert("L")


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def encoded(kind: str, image: Image.Image = NOISE, **options: object) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def png_with(kind: bytes, data: bytes) -> bytes:
    whole = encoded("PNG")
    return whole[:33] + chunk(kind, data) + whole[33:]  # behind its first chunk


def png_of(width: int, height: int) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 999)) + chunk(b"IEND", b"")


def half_of_zeros() -> bytes:
    whole = encoded("JPEG")
    return whole[: len(whole) // 2] + bytes(len(whole) // 2)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 50 50\n%%EndComments\nshowpage\n%%EOF\n"
BOMB = zlib.compress(bytes(10_000_000))
HOSTILE = {
    "EPS": EPS,
    "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
    "text bomb": png_with(b"zTXt", b"a\0\0" + BOMB),
    "profile bomb": png_with(b"iCCP", b"a\0\0" + BOMB),
    "too many pixels": png_of(13_000, 13_000),
    "just too many": png_of(8192, 1 + MOST_PIXELS // 8192),
    "decompression bomb": png_of(40_000, 40_000),
    "one pixel": encoded("PNG", Image.new("RGB", (1, 1))),
    "a line": encoded("PNG", Image.new("RGB", (5, 60_000))),
    "16-bit grey": encoded("PNG", Image.new("I;16", (40, 48), 40_000)),
    "real numbers": encoded("TIFF", Image.new("F", (40, 48))),
    "Lab": encoded("TIFF", Image.new("LAB", (40, 48))),
    "transparent": encoded("PNG", Image.new("RGBA", (40, 48), (9, 9, 9, 254))),
    "transparent palette": encoded("GIF", Image.new("P", (40, 48)), transparency=0),
    "JPEG of zeros behind its middle": half_of_zeros(),
    "JPEG of zeros, then a film": half_of_zeros() + b"\xff\xda film \xff\xd9"[:7],
    "JPEG cut, then another": encoded("JPEG")[:700] + encoded("JPEG"),
    "JPEG cut": encoded("JPEG")[:700],
    "PNG cut": encoded("PNG")[:700],
    "no pixels": b"GIF89a\0\0\5\0\0\0\0;",
    "TIFF of tags": b"II*\0\x08\0\0\0\xff\xff" + b"\xff" * 200,
    "DDS": b"DDS |\0\0\0" + b"\xff" * 120,
    "nothing": b"",
    "text": b"hello",
}
IN_THE_WAY = {
    "folder": Path.mkdir,
    "FIFO": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "dangling": lambda path: path.symlink_to("/nonexistent"),
    "circle": lambda path: path.symlink_to(path),
    "missing": lambda path: None,
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_is_no_sound_picture_is_a_sentence(tmp_path, case):
    path = tmp_path / "n0_1.JPEG"
    path.write_bytes(HOSTILE[case])
    for read in (load_image, read_picture):
        with pytest.raises(UserError) as error:
            read(path)
        assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)
    assert fault(path) == str(error.value)


@pytest.mark.parametrize("case", IN_THE_WAY)
def test_what_is_no_file_is_named_and_never_opened(tmp_path, case):
    path = tmp_path / "n0_1.JPEG"
    IN_THE_WAY[case](path)
    assert fault(path).startswith(f"{path}: ") and load_refuses(path)


def load_refuses(path: Path) -> bool:
    try:
        load_image(path)
    except UserError:
        return True
    return False


def test_no_program_is_started_for_a_picture(tmp_path, monkeypatch):
    program = tmp_path / "gs"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    for name in ("a.JPEG", "a.eps", "a.png"):
        (tmp_path / name).write_bytes(EPS)
        assert fault(tmp_path / name)
    assert not (tmp_path / "started").exists()


SOUND: dict[str, tuple[bytes, Callable[[np.ndarray], bool]]] = {
    kind: (encoded(kind, **options), lambda found: found.shape == (60, 80, 3))
    for kind, options in {"JPEG": {}, "PNG": {}, "WEBP": {}, "BMP": {}, "TIFF": {}, "GIF": {}}.items()
} | {
    "progressive": (encoded("JPEG", progressive=True), lambda found: found.std() > 10),
    "behind its end": (encoded("JPEG") + bytes(100), lambda found: found.std() > 10),
    "a film behind it": (encoded("JPEG") + b"\xff\xda film", lambda found: found.std() > 10),
    "a thumbnail in it": (
        encoded("JPEG", exif=b"Exif\0\0" + encoded("JPEG", GREY.resize((8, 8)))), lambda found: found.std() > 10
    ),
    "restarts": (encoded("JPEG", restart_marker_rows=1), lambda found: found.std() > 10),
    "grey": (encoded("PNG", GREY), lambda found: (found == np.asarray(GREY)[..., None]).all()),
    "opaque": (encoded("PNG", NOISE.convert("RGBA")), lambda found: (found == np.asarray(NOISE)).all()),
    "CMYK": (encoded("JPEG", Image.new("CMYK", (40, 48), (255, 0, 0, 0))), lambda found: (found[..., 0] < 10).all()),
    "an animation": (encoded("GIF", save_all=True, append_images=[NOISE]), lambda found: found.shape == (60, 80, 3)),
}  # fmt: skip


@pytest.mark.parametrize("case", SOUND)
def test_pictures_are_known_by_content_whatever_their_name(tmp_path, case):
    content, right = SOUND[case]
    path = tmp_path / "n0_1.JPEG"
    path.write_bytes(content)
    assert fault(path) == "" and right(np.asarray(load_image(path))) and right(read_picture(path)[0])


ENDED = [
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
    RuntimeError("Storage size calculation overflowed with sizes=[4398046511104, 1099511627776]"),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    np._core._exceptions._ArrayMemoryError((10**6, 10**6), np.dtype("f8")),
    MemoryError(),
    OSError(12, "Cannot allocate memory"),
]


@pytest.mark.parametrize("error", ENDED, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("command", [cli, ranks.cli])
def test_memory_that_ends_is_one_sentence_in_every_command(capsys, command, error):
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as ended:
        command(main)
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.startswith("error: not enough memory (") and said.count("\n") == 1


def test_another_error_is_not_taken_for_it(capsys):
    def main() -> None:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        cli(main)


def test_a_training_step_on_the_cpu_says_which_batch_fits():
    with pytest.raises(UserError, match="batch_size=8 does not fit in the memory of cpu; batch_size=4 should"):
        with advise(8, 1, "cpu"):
            raise ENDED[0]


def test_an_allocation_that_cannot_be_is_the_same_sentence(capsys):
    with pytest.raises(SystemExit):
        cli(lambda: torch.empty(2**62, dtype=torch.uint8))
    assert capsys.readouterr().err.startswith("error: not enough memory (")
    assert "torch" in sys.modules
