"""Turn a checkpoint of stage A or B into another format; every tensor stays as it is, to the bit.

python code/run.py convert_checkpoint checkpoint=<published .pth> to=ours out=pretrains/generation/published.pth
python code/run.py convert_checkpoint checkpoint=pretrains/generation/paper.pth to=safetensors out=paper.safetensors
python code/run.py convert_checkpoint checkpoint=paper.safetensors to=ours out=paper.pth  # and paper.json
python code/run.py convert_checkpoint checkpoint=pretrains/generation/paper.pth to=v1 out=paper.ckpt
python code/run.py convert_checkpoint checkpoint=pretrains/generation/paper.pth to=diffusers out=paper-diffusers
"""

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save
from torch import Tensor

from config import from_cli, setting
from dc_ldm import weights
from dc_ldm.published import FORMATS, check_content, load_base_of, read_stage_a, read_stage_b
from generate import find_base
from runtime import atomic, checkpoints, digests, file_kinds
from runtime.checkpoints import check_tensors
from runtime.errors import UserError, as_sentence
from runtime.model_files import read_tensors
from runtime.plain import checked, read_json, record

Format = Literal["ours", "safetensors", "v1", "diffusers"]
FACTS = "eeg_ldm"  # the entry of a v1-layout file that holds what makes it ours again
MIXERS = tuple(f"{weights.TIME_CONDITION}{i}." for i in (0, 1))  # layers of the time condition, before the last
CLASS_EMBEDDING = f"{weights.TIME_CONDITION}2."  # which diffusers calls so


@dataclass
class ConvertConfig:
    """Convert a checkpoint of stage A or B between formats."""

    checkpoint: str = setting("", "file to convert: ours, published, safetensors with its .json, or v1 layout")
    to: Format = setting("ours", "v1: one .ckpt with the base, as Stable Diffusion 1.x; diffusers: a folder")
    out: str = setting("", "file or folder to write; it must not exist")
    pretrain_gm_path: str = setting("", "folder whose models/ holds Stable Diffusion; empty: searched near the file")


def main() -> None:
    cfg = from_cli(ConvertConfig)
    if not cfg.checkpoint or not cfg.out:
        raise UserError("checkpoint= and out= must be given, as paths; see --help")
    written = [Path(cfg.out)] + ([Path(cfg.out).with_suffix(".json")] if cfg.to == "safetensors" else [])
    if there := [path for path in written if path.exists()]:
        raise UserError(f"out={there[0]} exists; choose another name")
    content = read_any(Path(cfg.checkpoint), cfg.pretrain_gm_path)
    if content["format"] != weights.FORMAT and cfg.to in ("v1", "diffusers"):
        raise UserError(f"{cfg.checkpoint}: stage A holds no Stable Diffusion; to={cfg.to} needs a stage B checkpoint")
    WRITERS[cfg.to](content, cfg)
    print(f"wrote {cfg.out} from {cfg.checkpoint} ({file_kinds.file_kind(cfg.checkpoint)})")


def read_any(path: Path, pretrain_gm_path: str) -> dict:
    """The content of a checkpoint in any of the formats, as ours. Raises UserError."""
    kind = file_kinds.file_kind(path)
    if kind in (file_kinds.OURS_A, file_kinds.PUBLISHED_A):
        return read_stage_a(path)
    if kind in (file_kinds.TENSORS_A, file_kinds.TENSORS_B):
        return read_safetensors(path)
    if kind == file_kinds.V1:
        return read_v1(path)
    return read_stage_b(path, pretrain_gm_path or "pretrains")


def write_ours(content: dict, cfg: ConvertConfig) -> None:
    """A `.pth` that stages B or C read. A published stage B's frozen tensors must be those of the base on disk."""
    if "state" in content.get("base", {}):
        carried = content["base"]["state"]
        path, _ = weights.base_files(cfg.pretrain_gm_path or "pretrains")
        frozen = {name: value for name, value in weights.read_base(path).items() if name not in content["model"]}
        # the same numbers, in whatever precision they are stored
        differ = [k for k, v in frozen.items() if k not in carried or not torch.equal(carried[k].float(), v.float())]
        if differ:
            raise UserError(
                f"{cfg.checkpoint}: {len(differ)} frozen tensors differ from {path} (first: {', '.join(differ[:10])}); "
                "use the file as it is, or name the base it was trained on with pretrain_gm_path"
            )
        content = content | {"base": {"name": path.name, "sha256": digests.sha256(path)}}
    checkpoints.save(cfg.out, content)


def write_safetensors(content: dict, cfg: ConvertConfig) -> None:
    """Tensors as `out`, everything else in a .json beside it."""
    if "state" in content.get("base", {}):
        raise UserError(f"{cfg.checkpoint} carries its own base; convert it with to=ours first")
    tensors = content["model"] | {k: v for k, v in content.items() if isinstance(v, Tensor)}
    rest = {name: value for name, value in content.items() if name != "model" and not isinstance(value, Tensor)}
    with as_sentence(f"{cfg.checkpoint}: holds what JSON cannot", "convert it to another format"):
        description = json.dumps(rest, indent=1)
    save_tensors(tensors, Path(cfg.out))
    atomic.write_text(Path(cfg.out).with_suffix(".json"), description)


def read_safetensors(path: Path) -> dict:
    """Inverse of `write_safetensors`. Raises UserError where the .json is not there."""
    beside = path.with_suffix(".json")
    if not beside.is_file():
        raise UserError(f"{beside}: missing; it holds the sizes of the model whose tensors are in {path.name}")
    content = checked(record(format=Literal[FORMATS]), read_json(beside, "description of tensors"), str(beside))
    tensors = read_tensors(path, "a checkpoint's tensors")
    beside_model = {"no_context": tensors.pop("no_context")} if "no_context" in tensors else {}
    return check_content(content | beside_model | {"model": tensors}, path)


def write_v1(content: dict, cfg: ConvertConfig) -> None:
    """One file in the layout of Stable Diffusion 1.x, the EEG condition in place of the captions'."""
    base = base_of(content, cfg)
    state = _prefixed(weights.UNET_PREFIX, base.unet.state_dict())
    state |= _prefixed(weights.VAE_PREFIX, base.vae.state_dict())
    facts = {name: value for name, value in content.items() if name != "model"}
    if "state" in facts["base"]:
        facts["base"] = {name: facts["base"][name] for name in ("name", "sha256")}
    checkpoints.save(cfg.out, {"state_dict": state | content["model"], "global_step": 0, FACTS: facts})


def read_v1(path: Path) -> dict:
    """Inverse of `write_v1`. Raises UserError for a file that it did not write."""
    content = checkpoints.read_plain(path, "checkpoint in the v1 layout")
    checked(record(**{FACTS: dict, "state_dict": dict}), content, str(path), "it was not written by this command")
    facts, state = content[FACTS], check_tensors(content["state_dict"], str(path))
    check_content(facts | {"model": state}, path)
    if not facts["base"]["sha256"]:  # made from the published checkpoint, which carries its own base
        config = {f.name: facts["config"][f.name] for f in fields(weights.BaseSizes)}
        config["unet"] = {name: config["unet"][name] for name in weights.UNET_SIZES}
        facts["base"] |= {"state": state, "sizes": weights.BaseSizes(**config)}
    return facts | {"model": weights.trained_part(state)}


def write_diffusers(content: dict, cfg: ConvertConfig) -> None:
    """Folders unet and vae, which diffusers loads, and eeg_conditioner with what it has no place for.

    That is the conditioner and the time condition's first layers.
    """
    base, config, out = base_of(content, cfg), content["config"], Path(cfg.out)
    if (width := base.sizes.vae["ch"]) < 32:
        raise UserError(f"this autoencoder is {width} channels wide; diffusers cannot express its groups of 4 channels")
    unet = base.unet.state_dict() | weights.part(content["model"], weights.UNET_PREFIX)
    parts = in_diffusers(unet, base.vae.state_dict(), base.sizes, config["img_size"])
    beside = weights.part(content["model"], weights.CONDITIONER_PREFIX) | {"no_context": content["no_context"]}
    beside |= {name: value for name, value in unet.items() if name.startswith(MIXERS)}
    about = {name: config[name] for name in ("encoder", "conditioner")} | {"input": content["input"]}
    for name, (description, tensors) in (parts | {"eeg_conditioner": (about, beside)}).items():
        file = "model" if name == "eeg_conditioner" else "diffusion_pytorch_model"
        save_tensors(tensors, out / name / f"{file}.safetensors")
        atomic.write_text(out / name / "config.json", json.dumps(description, indent=1))


def in_diffusers(
    unet: dict[str, Tensor], vae: dict[str, Tensor], sizes: weights.BaseSizes, img_size: int
) -> dict[str, tuple[dict, dict[str, Tensor]]]:
    """Of "unet" and "vae", config and tensors as diffusers' UNet2DConditionModel and AutoencoderKL have them.

    Of a time condition, the last layer becomes the class embedding; those before it are left out. Raises UserError.
    """
    try:
        from diffusers.loaders import single_file_utils as library
    except ImportError as error:
        raise UserError(f"to=diffusers needs the diffusers library ({error}): pip install diffusers==0.42.1") from error
    # as Stable Diffusion's own yaml says it
    params = {
        "unet_config": {"params": sizes.unet | {"transformer_depth": 1}},
        "first_stage_config": {"params": {"ddconfig": sizes.vae | {"in_channels": 3, "out_ch": 3}}},
        "scale_factor": sizes.scale_factor,
    }
    yaml, latent_side = {"model": {"params": params}}, sizes.latent_shape(img_size)[1]
    unet_config = library.create_unet_diffusers_config_from_ldm(yaml, {}) | {"sample_size": latent_side}
    vae_config = library.create_vae_diffusers_config_from_ldm(yaml, {}) | {"sample_size": img_size}
    unet_tensors = library.convert_ldm_unet_checkpoint(_prefixed(weights.UNET_PREFIX, unet), unet_config)
    vae_tensors = library.convert_ldm_vae_checkpoint(_prefixed(weights.VAE_PREFIX, vae), vae_config)
    if condition := weights.part(unet, CLASS_EMBEDDING):
        unet_tensors |= _prefixed("class_embedding.", condition)
        unet_config["class_embed_type"] = "simple_projection"
        unet_config["projection_class_embeddings_input_dim"] = sizes.unet["context_dim"]
    return {
        "unet": ({"_class_name": "UNet2DConditionModel"} | unet_config, unet_tensors),
        "vae": ({"_class_name": "AutoencoderKL"} | vae_config, vae_tensors),
    }


def _prefixed(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state.items()}


def base_of(content: dict, cfg: ConvertConfig) -> weights.Base:
    """The Stable Diffusion that belongs to a stage B checkpoint. Raises UserError."""
    folder = cfg.pretrain_gm_path or find_base(cfg.checkpoint, content["base"])
    return load_base_of(content, cfg.checkpoint, folder)


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """A safetensors file and its folder."""
    atomic.write_bytes(path, save({name: value.contiguous() for name, value in tensors.items()}))


WRITERS = {"ours": write_ours, "safetensors": write_safetensors, "v1": write_v1, "diffusers": write_diffusers}
