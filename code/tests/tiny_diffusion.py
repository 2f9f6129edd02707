"""A world small enough for a test: random Stable Diffusion, CLIP, stage A and trials, in the real formats."""

import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import save_file

from dc_ldm import weights
from dc_ldm.models.autoencoder import AutoencoderKL
from dc_ldm.models.unet import UNet
from dc_ldm.modules.conditioner import EEGConditioner
from dc_ldm.weights import CONDITIONER_PREFIX, SCHEDULE, UNET_PREFIX, VAE_PREFIX
from runtime import checkpoints
from sc_mbm.mae_for_eeg import EEGEncoder, MAEforEEG

UNET = {
    "in_channels": 4, "out_channels": 4, "model_channels": 32, "attention_resolutions": [2, 1],
    "num_res_blocks": 1, "channel_mult": [1, 2], "num_heads": 2, "context_dim": 16,
}  # fmt: skip
VAE = {"ch": 8, "ch_mult": [1, 1, 2, 2], "num_res_blocks": 1, "z_channels": 4}
SIZE = 32  # pixels
MAE = {
    "n_chans": 8, "n_times": 64, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2, "mlp_ratio": 1.0,
    "decoder_embed_dim": 8, "decoder_depth": 1, "decoder_num_heads": 2,
}  # fmt: skip
ENCODER = {name: value for name, value in MAE.items() if not name.startswith("decoder")}


def base_state() -> dict[str, torch.Tensor]:
    """Random weights of a tiny Stable Diffusion under the published names; no layer is left at zero."""
    torch.manual_seed(0)
    parts = {UNET_PREFIX: UNet(**UNET, use_time_cond=False), VAE_PREFIX: AutoencoderKL(**VAE)}
    state = {prefix + name: value for prefix, module in parts.items() for name, value in module.state_dict().items()}
    return {name: value + 0.02 * torch.randn_like(value) for name, value in state.items()}


def write_base(root: Path) -> Path:
    """`root/models/` with v1-5-pruned.safetensors (fp16) and config15.yaml; returns root (pretrain_gm_path)."""
    (root / "models").mkdir(parents=True, exist_ok=True)
    half = {name: value.half() for name, value in base_state().items()}
    save_file(half, root / "models" / "v1-5-pruned.safetensors")
    params = {
        "linear_start": 0.00085, "linear_end": 0.0120, "scale_factor": 0.18215,
        "unet_config": {"target": "os.system", "params": {**UNET, "use_checkpoint": True}},
        "first_stage_config": {"params": {"embed_dim": 4, "ddconfig": {**VAE, "resolution": 256}}},
    }  # fmt: skip
    OmegaConf.save(OmegaConf.create({"model": {"params": params}}), root / "models" / "config15.yaml")
    return root


def write_clip(folder: Path) -> Path:
    """A tiny random CLIPModel folder with preprocessing and a tokenizer of a few words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, PreTrainedTokenizerFast

    torch.manual_seed(1)
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**tower, "vocab_size": 6, "max_position_embeddings": 77, "eos_token_id": 1, "bos_token_id": 0}
    vision = {**tower, "image_size": SIZE, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)).save_pretrained(folder)
    size = {"shortest_edge": SIZE}
    CLIPImageProcessorPil(size=size, crop_size={"height": SIZE, "width": SIZE}).save_pretrained(folder)
    words = {"<s>": 0, "</s>": 1, "[UNK]": 2, "red": 3, "blue": 4, "disc": 5}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"eos_token": "</s>", "pad_token": "</s>", "unk_token": "[UNK]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    return folder


def write_stage_a(path: Path) -> Path:
    """A stage A checkpoint of an untrained autoencoder."""
    torch.manual_seed(2)
    known = {"scale": 1.0, "sfreq": 1000.0, "ch_names": None, "band": None}
    content = {"format": "eeg-mae-1", "model": MAEforEEG(**MAE).state_dict(), "config": MAE, "input": known, "run": {}}
    checkpoints.save(path, content)
    return path


def published_state() -> dict[str, torch.Tensor]:
    """The published generation checkpoint's tensors at toy size: condition, UNet, VAE, CLIP's tower, schedule."""
    torch.manual_seed(4)
    conditioner = EEGConditioner(EEGEncoder(**ENCODER), context_dim=16, clip_dim=12)
    unet = UNet(**UNET).state_dict()
    state = {UNET_PREFIX + k: torch.randn_like(v) / 8 for k, v in unet.items() if "time_embed_condtion" in k}
    state |= {CONDITIONER_PREFIX + k: v for k, v in conditioner.state_dict().items()}
    tower = {"image_embedder.transformer.vision_model.embeddings.position_ids": torch.arange(5)}
    return base_state() | state | tower | {name: torch.ones(1000) for name in SCHEDULE[:12]}


def write_published_b(path: Path, state: dict | None = None, old: bool = False, **config: object) -> Path:
    """The published generation checkpoint at toy size, with its pickled config of a module that is not here."""
    with foreign_class("config", "Config_Generative_Model") as kind:
        given = kind()
        vars(given).update({"seed": 2022, "num_heads": 2, "img_size": SIZE, "clip_tune": True, "HW": None} | config)
        content = {"model_state_dict": state or published_state(), "config": given, "state": torch.get_rng_state()}
        torch.save(content, path, _use_new_zipfile_serialization=not old)
    return path


def write_published_a(path: Path, old: bool = False, **more: torch.Tensor) -> Path:
    """The published stage A checkpoint at toy size."""
    torch.manual_seed(5)
    with foreign_class("config", "Config_MBM_EEG") as kind:
        given = kind()
        vars(given).update({"num_heads": 2, "decoder_num_heads": 2, "patch_size": 4, "focus_range": None})
        content = {"model": MAEforEEG(**MAE).state_dict() | more, "optimizer": {"state": {}}, "epoch": 499}
        content |= {"scaler": {"scale": 65536.0}, "config": given}
        torch.save(content, path, _use_new_zipfile_serialization=not old)
    return path


@contextmanager
def foreign_class(module: str, name: str) -> Iterator[type]:
    """A class that pickle files under another module's name, as long as the context lasts."""
    kind = type(name, (), {"__module__": module})
    before = sys.modules.get(module)
    sys.modules[module] = types.ModuleType(module)
    setattr(sys.modules[module], name, kind)
    try:
        yield kind
    finally:
        del sys.modules[module]
        if before is not None:
            sys.modules[module] = before


def write_stage_b(root: Path, cond_drop: float = 0.3) -> Path:
    """A stage B checkpoint of random weights on the base of `root/pretrains`, handed on as `tiny`."""
    base = weights.load_base(write_base(root / "pretrains"))
    torch.manual_seed(6)
    shape = {"context_dim": 16, "clip_dim": 12, "clip_head": "condition"}
    conditioner = EEGConditioner(EEGEncoder(**ENCODER), **shape)
    for parameter in weights.trained_unet_tensors(base.unet).values():
        parameter.add_(0.02 * torch.randn_like(parameter))
    content = {
        "format": weights.FORMAT,
        "model": weights.trained_state(conditioner, base.unet),
        "config": weights.model_config(base.sizes, ENCODER, shape, True, SIZE, cond_drop),
        "no_context": torch.randn(77, 16),
        "base": {"name": base.name, "sha256": base.sha256},
        "input": {"scale": 1.0, "sfreq": 1000.0, "window": [20, 460], "ch_names": None, "band": None},
        "run": {"config": {"seed": 2022}, "epoch": 1},
    }
    path = root / "pretrains" / "generation" / "tiny.pth"
    checkpoints.save(path, content)
    return path


def write_trials(folder: Path, n_trials: int = 24, sealed: bool = True) -> Path:
    """EEG of subject 4 who saw 8 pictures of 2 classes, splits, and pictures; sealed test trials hold NaN."""
    generator = torch.Generator().manual_seed(3)
    names = [f"n0000000{i % 2}_{i}" for i in range(8)]
    trials = [
        {"eeg": torch.randn(8, 500, generator=generator), "image": i % 8, "label": i % 2, "subject": 4}
        for i in range(n_trials)
    ]
    test = list(range(n_trials - 4, n_trials))
    for i in test if sealed else ():
        trials[i]["eeg"][:] = torch.nan
    labels = ["n00000000", "n00000001"]
    checkpoints.save(folder / "eeg_5_95_std.pth", {"dataset": trials, "labels": labels, "images": names})
    splits = [{"train": list(range(n_trials - 8)), "val": list(range(n_trials - 8, n_trials - 4)), "test": test}]
    checkpoints.save(folder / "block_splits_by_image_single.pth", {"splits": splits})
    random = np.random.default_rng(0)
    for name in names:
        path = folder / "imageNet_images" / name.split("_")[0] / f"{name}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 255, (40, 48, 3), dtype=np.uint8)).save(path)
    return folder


def stage_b_arguments(root: Path, **changed: object) -> list[str]:
    """Command line of a run of two epochs on the world under `root`, which is written there if it is not yet."""
    if not (root / "datasets").exists():
        write_base(root / "pretrains")
        write_clip(root / "pretrains" / "clip")
        write_stage_a(root / "pretrains" / "eeg_pretrain" / "tiny.pth")
        write_trials(root / "datasets")
    values = {
        "root_path": root, "name": "tiny", "clip": "pretrains/clip", "img_size": SIZE, "num_epoch": 2, "batch_size": 6,
        "n_crops": 2, "validate_every": 1, "num_samples": 2, "ddim_steps": 4, "lr": 0.01, "device": "cpu",
    } | changed  # fmt: skip
    return [f"{name}={value}" for name, value in values.items()]
