"""Folders of networks in other libraries' formats: local, without code, weighed before they take any memory."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from runtime.errors import UserError, as_sentence
from runtime.plain import read_json, short

# Entries by which a folder of transformers or diffusers has code run, or is told to fetch other files
ELSEWHERE = {"auto_map", "custom_pipeline", "custom_pipelines", "custom_generate", "trust_remote_code"}
ELSEWHERE |= {"quantization_config", "kernel_config", "use_kernels", "base_model_name_or_path"}
OWN_ATTENTION = (None, "eager", "sdpa")  # others are compiled kernels, from the hub where they are not installed


def check_local(folder: Path) -> None:
    """Refuse a model's folder whose JSON files cannot be read, or ask for code or files from elsewhere: UserError."""
    for path in sorted([*folder.glob("*.json"), *folder.glob("*/*.json")]):
        content = read_json(path, "part of a model")
        if not path.name.endswith(("config.json", "model_index.json")):
            continue  # vocabularies, which may hold any word
        for key, value in _entries(content):
            if (key in ELSEWHERE and value) or ("attn_implementation" in key and value not in OWN_ATTENTION):
                raise UserError(
                    f"{path}: {key} is {short(value)}, which asks for code or files from elsewhere; a folder is read "
                    "as it is, and nothing in it runs: remove that entry"
                )


def _entries(content: Any) -> Iterator[tuple[str, Any]]:
    """Every key and value of a JSON file, at any depth."""
    stack = [content]
    while stack:
        part = stack.pop()
        if isinstance(part, dict):
            yield from part.items()
        stack += part.values() if isinstance(part, dict) else part if isinstance(part, list) else []


def shapes_in(path: Path, what: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file on the meta device, as its header describes them. Raises UserError."""
    from safetensors import safe_open

    if not path.is_file():
        raise UserError(f"{path}: no such file; expected {what}")
    with as_sentence(f"{path}: is truncated or no safetensors file of {what}"), safe_open(path, "pt") as file:
        parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        kinds = {name: torch.float32 if "F" in part.get_dtype() else torch.int64 for name, part in parts.items()}
        return {n: torch.empty(part.get_shape(), dtype=kinds[n], device="meta") for n, part in parts.items()}
