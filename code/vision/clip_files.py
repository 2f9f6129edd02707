"""CLIP's files: whether they are at hand, and whether they are one CLIP, seen without loading or downloading them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from runtime.checkpoints import check_state, on_meta
from runtime.contents import Colour, Depth, Deviations, Positive, Side, Size
from runtime.errors import UserError, as_sentence
from runtime.findings import NOTE, Findings
from runtime.model_files import check_local, read_tensors
from runtime.plain import checked, read_json, record

OPEN_CLIP = "open_clip:"
FILES = ("config.json", "preprocessor_config.json", "model.safetensors")
WORDS = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json")
VIT_L_14 = (768, 427_616_513)  # width of its space, parameters of its two towers
_SIZES = Side | Annotated[dict[str, Side | None], Field(min_length=1)] | None
_TOWER = dict.fromkeys(("hidden_size", "intermediate_size", "num_attention_heads", "max_position_embeddings"), Size)
_TOWER |= {"num_hidden_layers": Depth, "vocab_size": Size, "image_size": Side, "patch_size": Side}
TOWER = record(_TOWER)
# By file. Of tokenizers, some of other classes would read their words from a pickle
_TOKENIZERS = Literal["CLIPTokenizer", "CLIPTokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend"]
_LOOK = {"image_mean": Colour, "image_std": Deviations, "rescale_factor": Positive, "size": _SIZES, "crop_size": _SIZES}
KINDS = {
    "config.json": record({"projection_dim": Size}, model_type=Literal["clip"]),
    "preprocessor_config.json": record(_LOOK),
    "tokenizer_config.json": record({"tokenizer_class": _TOKENIZERS}),
}


def look_at_clip(name: str | Path, findings: Findings) -> tuple[int, int]:
    """Width of CLIP's space and number of its parameters; those of ViT-L/14 where its files do not tell."""
    if str(name).startswith(OPEN_CLIP):
        findings.add("CLIP", NOTE, f"{name}: not looked at; the stage loads it, from the hub if it must")
        return VIT_L_14
    paths = clip_files(name)
    about = lambda facts: f"{name}, {facts[1] / 1e6:.1f} M parameters"  # noqa: E731
    return findings.open("CLIP", lambda: read_facts(name, paths), about, paths) or VIT_L_14


def clip_files(name: str | Path) -> list[Path]:
    """Those of FILES that lie in the folder `name`, or in the hub's cache where it is a hub name."""
    from huggingface_hub import try_to_load_from_cache

    hub = partial(try_to_load_from_cache, str(name)) if str(name).count("/") == 1 else str
    places = [Path(name) / file if Path(name).is_dir() else hub(file) for file in FILES]
    return [Path(place) for place in places if isinstance(place, str | Path) and Path(place).is_file()]


def fetch_clip(name: str | Path) -> Path:
    """The folder `name`, or the hub's model of that name, of which the files that are read are downloaded.

    Nothing is downloaded for a folder, or for what is in the hub's cache. Raises UserError.
    """
    if Path(name).is_dir():
        return Path(name)
    if str(name).count("/") != 1:
        raise UserError(f"{name}: no such folder; name one, or a hub model such as openai/clip-vit-large-patch14")
    if len(there := clip_files(name)) == len(FILES):
        words = {path.name for path in there[0].parent.iterdir()}
        if "tokenizer.json" in words or {"vocab.json", "merges.txt"} <= words:
            return there[0].parent
    from huggingface_hub import snapshot_download

    with as_sentence(f"{name} is not a CLIP model that transformers can load"):
        return Path(snapshot_download(str(name), allow_patterns=[*FILES, *WORDS]))


def read_facts(name: str | Path, paths: list[Path]) -> tuple[int, int]:
    """Width and parameters from CLIP's files, `clip_files(name)`, whose weights are not read.

    Raises:
        UserError: a file is missing or unreadable, or they do not go together, or ask for code or other files.
    """
    from transformers import CLIPConfig, CLIPModel

    if len(paths) < len(FILES):
        raise UserError(f"{name}: {len(paths)} of {', '.join(FILES)} are in that folder or the hub's cache")
    folder, weights = paths[0].parent, paths[-1]
    check_local(folder)
    for file, kind in KINDS.items():
        if (folder / file).is_file():
            checked(kind, read_json(folder / file, "part of a CLIP model"), str(folder / file))
    with as_sentence(f"{folder / FILES[0]}: does not describe a CLIP model"):
        config = CLIPConfig.from_pretrained(folder, local_files_only=True)
    towers = {"text_config": config.text_config.to_dict(), "vision_config": config.vision_config.to_dict()}
    checked(record(text_config=TOWER, vision_config=TOWER), towers, str(folder / FILES[0]))
    model = on_meta(lambda: CLIPModel(config), str(folder / FILES[0]))
    there = read_tensors(weights, "a CLIP model").items()
    state = {k: v for k, v in there if not k.endswith("position_ids")}  # of earlier files; they are made anew
    check_state(model.state_dict(), state, f"{weights}: as CLIP")
    return config.projection_dim, sum(p.numel() for p in model.parameters())
