"""What a file is, told from the names in it. Nothing in a file is executed, and no weight is read."""

from __future__ import annotations

import pickletools
import zipfile
from pathlib import Path
from typing import BinaryIO

from safetensors import SafetensorError, safe_open

from runtime.errors import UserError

OURS_A, OURS_B = "stage A checkpoint (ours)", "stage B checkpoint (ours)"
PUBLISHED_A, PUBLISHED_B = "published stage A checkpoint", "published generation checkpoint"
SD1, SD1_EMA, SD2 = "Stable Diffusion 1.x", "Stable Diffusion 1.x, EMA only", "Stable Diffusion 2.x"
LFS, HTML, EMPTY = "Git LFS pointer", "HTML page", "empty file"
TENSORS_A, TENSORS_B = "stage A tensors (safetensors)", "stage B tensors (safetensors)"
V1 = "Stable Diffusion 1.x with an EEG condition (v1 layout)"
TRUNCATED, DIFFUSERS, UNKNOWN = "truncated file", "diffusers folder", "file of an unknown kind"

# A kind needs all its signs: each is a name in the file (a key, a tensor's name, our format), or how one begins
SIGNS = {
    V1: ("state_dict", "cond_stage_model.mae.", "first_stage_model."),
    OURS_A: ("eeg-mae-1",),
    OURS_B: ("eeg-ldm-1",),
    "resume point (ours)": ("resume-1",),
    PUBLISHED_B: ("model_state_dict", "cond_stage_model.mae."),
    TENSORS_B: ("cond_stage_model.mae.",),
    PUBLISHED_A: ("model", "mask_token", "decoder_blocks.0."),
    TENSORS_A: ("mask_token", "decoder_blocks.0."),
    SD2: ("model.diffusion_model.", "cond_stage_model.model."),
    "Stable Diffusion XL": ("model.diffusion_model.", "conditioner.embedders."),
    "Stable Diffusion 1.x with its EMA": ("model.diffusion_model.", "first_stage_model.", "model_ema."),
    SD1_EMA: ("model.diffusion_model.", "cond_stage_model.transformer."),
    "EMA of Stable Diffusion": ("model_ema.",),
    SD1: ("model.diffusion_model.", "first_stage_model."),
    "diffusers UNet": ("down_blocks.0.resnets.0.", "time_embedding."),
    "diffusers autoencoder": ("encoder.down_blocks.0.", "quant_conv."),
    "CLIP": ("vision_model.",),
    "EEG trials file": ("dataset", "labels", "images", "eeg", "subject"),
    "splits file": ("splits", "train", "test"),
}
SAME = {"Stable Diffusion 1.x with its EMA": SD1, "EMA of Stable Diffusion": SD1_EMA}
ADVICE = {
    LFS: "fetch the file itself (git lfs pull)",
    HTML: "download the file itself, not the page about it",
    EMPTY: "download it again",
    TRUNCATED: "download or copy it again",
    SD1_EMA: "get v1-5-pruned, which also holds the weights without averaging",
    SD2: "get Stable Diffusion 1.5's v1-5-pruned",
    DIFFUSERS: "get v1-5-pruned as one file",
}
# how files that are none of ours begin, in small letters, white space aside
BEGINNINGS = {b"version https://git-lfs": LFS, b"<!doctype html": HTML, b"<html": HTML, b"\x93numpy": "NumPy array"}
OLD_TORCH = b"\x8a\nl\xfc\x9cF\xf9"  # how the magic number of torch's format before 1.6 begins, behind the protocol


def file_kind(path: str | Path) -> str:
    """What lies at `path`, by a constant of this module or another key of SIGNS; "missing" where nothing does."""
    path = Path(path)
    if path.is_dir():
        return DIFFUSERS if (path / "model_index.json").is_file() or (path / "unet").is_dir() else "folder"
    if not path.is_file():
        return "missing"
    with open(path, "rb") as file:
        head = file.read(200).lstrip().lower()
    if not path.stat().st_size:
        return EMPTY
    if known := next((kind for beginning, kind in BEGINNINGS.items() if head.startswith(beginning)), ""):
        return known
    try:
        names, _ = names_in(path)
    except ValueError:
        return UNKNOWN
    except EOFError:
        return TRUNCATED
    found = (kind for kind, signs in SIGNS.items() if all(any(n.startswith(s) for n in names) for s in signs))
    kind = next(found, UNKNOWN)
    return SAME.get(kind, kind)


def expect(path: str | Path, kinds: tuple[str, ...], what: str) -> str:
    """The kind of the file at `path`, one of `kinds`; otherwise a UserError that says what it is instead of `what`."""
    kind = file_kind(path)
    if kind == "missing":
        raise UserError(f"{path}: no such file; expected a {what}")
    if kind not in kinds:
        advice = f": {ADVICE[kind]}" if kind in ADVICE else ""
        raise UserError(f"{path}: expected a {what}, found this: {kind}{advice}")
    return kind


def names_in(path: str | Path) -> tuple[set[str], set[str]]:
    """All strings in a torch or safetensors file, and all classes and functions that it asks for ("module.name").

    Raises ValueError for a file of neither format, EOFError for one that was cut off.
    """
    with open(path, "rb") as file:
        magic = file.read(9)
        file.seek(0)
        if magic.startswith(b"PK"):
            return _names_in_zip(file)
        if magic[:1] == b"\x80" and magic[2:] == OLD_TORCH:
            # magic number, protocol and system, each a pickle, then the content's; keys and numbers follow
            return [_names_in_pickle(file) for _ in range(4)][3]
    if magic[8:] != b"{":
        raise ValueError(f"{path} is neither a torch nor a safetensors file")
    try:
        with safe_open(path, "np") as tensors:
            return set(tensors.keys()), set()
    except SafetensorError as error:
        raise EOFError(f"the header or tensors are cut off ({error})") from error


def _names_in_zip(file: BinaryIO) -> tuple[set[str], set[str]]:
    try:
        with zipfile.ZipFile(file) as archive:
            name = next((name for name in archive.namelist() if name.endswith("/data.pkl")), None)
            if name is None:
                raise ValueError("a zip file, but none of torch's")
            if archive.getinfo(name).compress_type != zipfile.ZIP_STORED:
                raise ValueError("compressed, which torch never does; it might unpack to any size")
            with archive.open(name) as content:
                return _names_in_pickle(content)
    except zipfile.BadZipFile as error:
        raise EOFError("the zip file's end is missing") from error


def _names_in_pickle(file: BinaryIO) -> tuple[set[str], set[str]]:
    strings, classes = set(), set()
    try:
        for opcode, argument, _ in pickletools.genops(file):
            if opcode.name == "GLOBAL":
                classes.add(argument.replace(" ", "."))
            elif isinstance(argument, str):
                strings.add(argument)
    except ValueError as error:
        if "unknown" in str(error):  # a byte that is no instruction; all other complaints are about a missing rest
            raise
        raise EOFError(str(error)) from error
    return strings, classes
