"""Files of networks in formats of other libraries: local, without code, of sizes that a network has."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from runtime.errors import UserError, as_sentence
from runtime.plain import read_json, short

# Entries by which a folder of transformers or diffusers has code run, or is told to fetch other files
ELSEWHERE = {"auto_map", "custom_pipeline", "custom_pipelines", "custom_generate", "trust_remote_code"}
ELSEWHERE |= {"quantization_config", "kernel_config", "use_kernels", "base_model_name_or_path"}
LARGEST = 1 << 20  # of any size or number of labels; what a tokenizer says of its longest text means no limit
ATTENTION = ("attn_implementation", "attn_implementation_internal")
OWN_ATTENTION = (None, "eager", "sdpa")  # others are compiled kernels, from the hub where they are not installed


def check_local(folder: Path) -> None:
    """Refuse a model's folder whose JSON files cannot be read, or ask for code or files from elsewhere: UserError."""
    for path in sorted([*folder.glob("*.json"), *folder.glob("*/*.json")]):
        content = read_json(path, "part of a model")
        described = path.name.endswith(("config.json", "model_index.json"))  # others: vocabularies, of any words
        for key, value in _entries(content) if described else ():
            foreign = key.lstrip("_") in ATTENTION and value not in OWN_ATTENTION
            if foreign or (key in ELSEWHERE and value):
                raise UserError(f"{path}: {key} asks for code or files from elsewhere ({short(value)}): remove it")
            if isinstance(value, int) and value > LARGEST and key != "model_max_length":
                raise UserError(f"{path}: {key} is {short(value)}, more than any network has")


def _entries(content: Any) -> Iterator[tuple[str, Any]]:
    """Every key and value of a JSON file, at any depth."""
    stack = [content]
    while stack:
        part = stack.pop()
        if isinstance(part, dict):
            yield from part.items()
        stack += part.values() if isinstance(part, dict) else part if isinstance(part, list) else []


def read_tensors(path: Path, what: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file, memory-mapped: none is read before it is used. Raises UserError."""
    from safetensors.torch import load_file

    if not path.is_file():
        raise UserError(f"{path}: no such file; expected {what}")
    with as_sentence(f"{path}: is truncated or no safetensors file of {what}"):
        return load_file(path)
