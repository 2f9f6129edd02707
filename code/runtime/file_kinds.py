"""What a file is, told from the names in it. Nothing in a file is executed, and no weight is read."""

from __future__ import annotations

from pathlib import Path

from safetensors import safe_open

from runtime import pickles
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
LARGEST_HEADER = 16 << 20  # bytes of a safetensors header; Stable Diffusion's has a fifth of a megabyte


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

    Raises ValueError for a file of neither format or one that asks for too much, EOFError for one that was cut off.
    """
    with open(path, "rb") as file:
        head = file.read(9)
    if head[8:] != b"{" or head.startswith(b"PK"):
        found = pickles.survey(path)
        return found.strings, found.classes
    if int.from_bytes(head[:8], "little") > LARGEST_HEADER:
        raise EOFError("a header longer than any")
    try:
        with safe_open(path, "np") as tensors:
            return set(tensors.keys()), set()
    except Exception as error:  # a damaged header fails in any way
        raise EOFError(f"the header or tensors are cut off ({error})") from error
