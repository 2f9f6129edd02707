"""Settings of the three stages: one dataclass each, whose defaults are the paper's run; presets; the command line.

Usage in a script: `cfg = from_cli(PretrainConfig)`. Both `name=value` and `--name value` set a field.
"""

import difflib
import sys
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from runtime.errors import UserError

T = TypeVar("T")
PAPER, PUBLISHED, OURS = "paper", "published code", "ours"
_OPEN_CLIP = "open_clip:<model>/<tag> or open_clip:<model>:<file>"


def setting(default: Any, about: str, source: str = OURS) -> Any:
    """A field with its explanation (unit included) and where the default comes from; both are shown by --help."""
    return field(default=default, metadata={"about": about, "source": source})


@dataclass
class _Run:
    """What every stage has."""

    preset: str = setting("paper", "paper, published (rules) and miniature (a size), combined left to right by commas")
    name: str = setting("", "run name; empty: the preset's")
    root_path: str = setting(".", "folder that holds datasets/, pretrains/ and results/", PUBLISHED)
    seed: int = setting(2022, "of every random draw", PUBLISHED)
    device: str = setting("auto", "auto, cpu, cuda or cuda:N")
    overwrite: bool = setting(False, "move an earlier run of this name aside")
    dry_run: bool = setting(False, "open and check every input, list what is there and what is wrong, and stop")


@dataclass
class _Training(_Run):
    """What stages A and B share."""

    precision: str = setting("auto", "32, bf16, or auto: bf16 where the device computes in it")
    compile: bool = setting(False, "torch.compile: a minute or more at the first step, then faster (README, Speed)")
    wandb: bool = setting(False, "also log to wandb")


@dataclass
class _Pictures(_Run):
    """What stages B and C share."""

    eeg_signals_path: str = setting("datasets/eeg_5_95_std.pth", "EEG of the trials", PUBLISHED)
    splits_path: str = setting("datasets/block_splits_by_image_single.pth", "train, val and test indices", PUBLISHED)
    imagenet_path: str = setting("datasets/imageNet_images", "folder <wnid>/<wnid>_<n>.JPEG", PUBLISHED)
    subject: int = setting(4, "subject 1..6; 0: all", PAPER)
    allow_missing: int = setting(-1, "images that may be missing; -1: the known corrupt one and 0.5 %")
    pretrain_gm_path: str = setting("pretrains", "folder whose models/ holds v1-5-pruned", PUBLISHED)
    clip: str = setting("openai/clip-vit-large-patch14", f"CLIP: a folder, a hub name, {_OPEN_CLIP}", PUBLISHED)
    classifier: str = setting("vit_h_14", "picture classifier: a torchvision name or a folder", PUBLISHED)
    num_samples: int = setting(5, "pictures a trial (stage B: in validation, as the next three)", PUBLISHED)
    ddim_steps: int = setting(250, "sampling steps", PUBLISHED)
    sampler: str = setting("plms", "plms, ddim or dpm_solver", PUBLISHED)
    guidance: float = setting(1.0, "classifier-free guidance scale; 1: none", PUBLISHED)


@dataclass
class PretrainConfig(_Training):
    """Stage A: masked modelling of unlabelled EEG."""

    eeg_path: str = setting("datasets/eeg_train", "folder of .npy recordings, (C, T) or (n, C, T)", PUBLISHED)
    eeg_scale: float = setting(1.0, "factor on the recordings; published code: 0.1 in stage A only")
    held_out: float = setting(0.1, "share of the recordings kept out of training to report the loss on")
    n_chans: int = setting(128, "electrodes after replication or cropping", PUBLISHED)
    n_times: int = setting(512, "samples in a window", PAPER)
    patch_size: int = setting(4, "samples in a token", PAPER)
    embed_dim: int = setting(1024, "width of the encoder", PAPER)
    depth: int = setting(24, "blocks of the encoder", PAPER)
    num_heads: int = setting(16, "heads of the encoder", PAPER)
    mlp_ratio: float = setting(4.0, "hidden over outer width of an MLP; published code: 1", PAPER)
    decoder_embed_dim: int = setting(512, "width of the decoder", PUBLISHED)
    decoder_depth: int = setting(8, "blocks of the decoder", PUBLISHED)
    decoder_num_heads: int = setting(16, "heads of the decoder", PUBLISHED)
    mask_ratio: float = setting(0.75, "share of the tokens masked; published code: 0.1", PAPER)
    lr: float = setting(2.5e-4, "peak learning rate, not scaled by the batch", PUBLISHED)
    min_lr: float = setting(0.0, "learning rate at the end of the cosine", PUBLISHED)
    weight_decay: float = setting(0.05, "AdamW, on everything but biases and norms", PUBLISHED)
    num_epoch: int = setting(500, "epochs", PAPER)
    warmup_epochs: float = setting(40.0, "epochs of linear warm-up", PUBLISHED)
    batch_size: int = setting(100, "windows in a batch, over all processes together", PUBLISHED)
    accum_iter: int = setting(1, "batches in an optimizer step", PUBLISHED)
    clip_grad: float = setting(0.8, "largest global gradient norm", PUBLISHED)
    local_start: float = setting(0.0, "gain of queries and keys that start equal: attention starts near; 0: off")
    validate_every: int = setting(20, "epochs between held-out losses, figures and resume points", PUBLISHED)


@dataclass
class FinetuneConfig(_Pictures, _Training):
    """Stage B: Stable Diffusion's cross-attention and the EEG conditioner, with CLIP alignment."""

    dataset: str = setting("EEG", "only EEG exists", PUBLISHED)
    eeg_scale: float = setting(0.0, "factor on the trials; 0: stage A's, so that both stages see one scale")
    pretrain_mbm_path: str = setting("", "stage A's file; empty: pretrains/eeg_pretrain/<name>.pth; none: untrained")
    finetune: str = setting("E+A", "pretrained parts that train: E (EEG encoder), A (cross-attention) or E+A", PAPER)
    clip_head: str = setting("condition", "aligned with CLIP: the condition (paper) or the tokens (published)", PAPER)
    clip_weight: float = setting(1.0, "weight of the CLIP loss; 0: none", PUBLISHED)
    text_start: bool = setting(True, "the condition starts at CLIP's empty caption, its head at CLIP's text projection")
    use_time_cond: bool = setting(True, "also add the condition to the time embedding", PUBLISHED)
    img_size: int = setting(512, "pixels", PUBLISHED)
    crop_ratio: float = setting(0.2, "share cut off by a training crop", PUBLISHED)
    n_crops: int = setting(4, "cached random crops an image, standing for the endless stream")
    cond_drop: float = setting(0.0, "share of training conditions replaced by that of no EEG; needed for guidance")
    lr: float = setting(5.3e-5, "learning rate, constant", PUBLISHED)
    weight_decay: float = setting(0.01, "AdamW, on everything that trains", PUBLISHED)
    num_epoch: int = setting(300, "epochs", PAPER)
    batch_size: int = setting(25, "trials in a batch, over all processes together", PUBLISHED)
    accumulate_grad: int = setting(1, "batches in an optimizer step", PUBLISHED)
    clip_grad: float = setting(0.5, "largest global gradient norm", PUBLISHED)
    select: str = setting("clip_retrieval", "best epoch on validation: clip_retrieval, or n_way of generated pictures")
    validate_every: int = setting(10, "epochs between validations", PUBLISHED)
    encoder_embed_dim: int = setting(1024, "encoder width without a stage A checkpoint", PAPER)
    encoder_depth: int = setting(24, "encoder blocks without a stage A checkpoint", PAPER)
    encoder_num_heads: int = setting(16, "encoder heads without a stage A checkpoint", PAPER)
    encoder_mlp_ratio: float = setting(4.0, "encoder MLP ratio without a stage A checkpoint", PAPER)


@dataclass
class GenerateConfig(_Pictures):
    """Stage C: pictures from unseen EEG, scores with controls, a page."""

    model_path: str = setting("", "stage B checkpoint; empty: pretrains/generation/<name>.pth", PUBLISHED)
    max_items: int = setting(0, "score only the first test trials; 0: all")
    controls: str = setting("basic", "none, basic (Gaussian EEG, other trials' EEG) or all (cost is printed)")
    precision: str = setting("auto", "of sampling: 32, bf16, or auto: bf16 where the device computes in it")
    compile: bool = setting(False, "torch.compile: a minute or more at the first picture, then faster")
    batch_size: int = setting(0, "pictures sampled at once; 0: as many as memory takes")


_MINIATURE_DATA = {
    "eeg_signals_path": "datasets/miniature/eeg_5_95_std.pth",
    "splits_path": "datasets/miniature/block_splits_by_image_single.pth",
    "imagenet_path": "datasets/miniature/imageNet_images",
    "pretrain_gm_path": "pretrains/miniature",
    "clip": "pretrains/miniature/clip",
    "classifier": "pretrains/miniature/classifier",
    "sampler": "dpm_solver",
    "guidance": 3.0,
}
PRESETS: dict[type, dict[str, dict[str, Any]]] = {
    PretrainConfig: {
        "paper": {},
        "published": {"mask_ratio": 0.1, "mlp_ratio": 1.0, "eeg_scale": 0.1},
        "miniature": {
            "eeg_path": "datasets/miniature/eeg_train", "embed_dim": 128, "depth": 2, "num_heads": 2,
            "mlp_ratio": 2.0, "decoder_embed_dim": 128, "decoder_depth": 2, "decoder_num_heads": 2, "lr": 4e-3,
            "num_epoch": 26, "warmup_epochs": 1.0, "batch_size": 32, "local_start": 2.0, "validate_every": 5,
        },
    },
    FinetuneConfig: {
        "paper": {},
        "published": {
            "num_epoch": 500, "clip_head": "tokens", "text_start": False, "encoder_mlp_ratio": 1.0, "eeg_scale": 1.0,
        },
        "miniature": {
            **_MINIATURE_DATA, "img_size": 64, "lr": 1e-3, "num_epoch": 10, "batch_size": 32, "validate_every": 5,
            "cond_drop": 0.1, "clip_grad": 5.0, "num_samples": 2, "ddim_steps": 10, "encoder_embed_dim": 128,
            "encoder_depth": 2, "encoder_num_heads": 2, "encoder_mlp_ratio": 2.0,
        },
    },
    GenerateConfig: {
        "paper": {},
        "published": {},
        "miniature": {**_MINIATURE_DATA, "num_samples": 3, "ddim_steps": 20, "batch_size": 80},
    },
}  # fmt: skip

_FMRI = "a leftover of fMRI code"
_RANK = "torchrun's environment tells the rank"
NO_EFFECT: dict[type, dict[str, str]] = {
    PretrainConfig: {
        **dict.fromkeys(("roi", "aug_times", "num_sub_limit", "include_hcp", "include_kam"), _FMRI),
        **dict.fromkeys(("use_nature_img_loss", "img_recon_weight"), "the image decoder was never used"),
        "local_rank": _RANK,
    },
    FinetuneConfig: {
        "global_pool": "the published path fails in its CLIP head, so tokens are always kept",
        "eval_avg": "scores are computed by stage C, over all samples",
        "checkpoint_path": "a run resumes from its own folder",
        "local_rank": _RANK,
    },
    GenerateConfig: {
        "dataset": "only EEG exists",
        "config_patch": "models/config15.yaml beside the weights is read",
        "local_rank": _RANK,
    },
}
ALIASES = {"root": "root_path", "local-rank": "local_rank"}


# the lowest sensible value of settings, in every config that has them, defaults aside; shares lie from 0 to below 1
_AT_LEAST_1 = """n_chans n_times patch_size embed_dim depth num_heads decoder_embed_dim decoder_depth decoder_num_heads
    encoder_embed_dim encoder_depth encoder_num_heads num_epoch batch_size accum_iter accumulate_grad validate_every
    img_size num_samples ddim_steps repeats""".split()
_LOWEST = dict.fromkeys(_AT_LEAST_1, 1)
_LOWEST |= dict.fromkeys(("lr", "min_lr", "weight_decay", "clip_grad", "warmup_epochs", "max_items", "n_crops"), 0)
_SHARES = ("mask_ratio", "held_out", "crop_ratio", "cond_drop")


def from_cli(cls: type[T], argv: Sequence[str] | None = None) -> T:
    """Build `cls` from its defaults, then presets, then the command line.

    Args:
        cls: a dataclass whose fields were made by `setting`.
        argv: arguments without the program's name; sys.argv[1:] when None.

    Raises:
        UserError: an unknown name (the nearest is named) or preset, a missing, wrong-typed or senseless value.
    """
    given = _arguments(cls, list(sys.argv[1:] if argv is None else argv))
    config = OmegaConf.structured(cls)
    if presets := presets_of(cls):
        chosen = given.get("preset", "paper").split(",")
        for preset in filter(None, chosen):
            if preset not in presets:
                raise UserError(f"preset={preset}: no such preset; there are {', '.join(presets)}")
            config.merge_with(presets[preset])
        config.name = "-".join(chosen)
        if not given.get("name"):
            given.pop("name", None)
    try:
        for name, text in given.items():
            OmegaConf.update(config, name, None if text.lower() == "null" else text)
    except OmegaConfBaseException as error:
        kind = {f.name: getattr(f.type, "__name__", f.type) for f in fields(cls)}[name]
        raise UserError(f"{name}={text}: expected a value of type {kind} (see --help)") from error
    for name, value in config.items():
        if name in _LOWEST and not value >= _LOWEST[name] and value != getattr(cls, name):
            raise UserError(f"{name}={value}: expected at least {_LOWEST[name]}")
        if name in _SHARES and not 0 <= value < 1:
            raise UserError(f"{name}={value}: expected a share, from 0 to below 1")
    return OmegaConf.to_object(config)


def presets_of(cls: type) -> dict[str, dict[str, Any]]:
    """The presets of a stage's settings, or of the stage whose settings `cls` extends; none: {}."""
    return next((PRESETS[kind] for kind in cls.__mro__ if kind in PRESETS), {})


def _arguments(cls: type, argv: list[str]) -> dict[str, str]:
    """`name=value`, `--name value` and `--name=value` as a dict of known names; --help prints and exits."""
    given: dict[str, str] = {}
    known = [f.name for f in fields(cls)]
    silent = NO_EFFECT.get(cls, {})
    while argv:
        word = argv.pop(0)
        if word in ("-h", "--help"):
            print(help_text(cls))
            sys.exit(0)
        name, equals, value = word.removeprefix("--").partition("=")
        name = ALIASES.get(name, name)
        if not equals and not word.startswith("--"):
            raise UserError(f"{word}: expected name=value or --name value (see --help)")
        if name not in known and name not in silent:
            near = difflib.get_close_matches(name, [*known, *silent], n=1)
            raise UserError(f"{name}: no such setting{f'; did you mean {near[0]}?' if near else ''} (see --help)")
        if not equals:
            if not argv:
                raise UserError(f"--{name}: a value is missing")
            value = argv.pop(0)
        if name in silent:
            print(f"{name} has no effect: {silent[name]}")
        else:
            given[name] = value
    return given


def help_text(cls: type) -> str:
    """All settings with default, explanation and source; presets; accepted names without effect."""
    lines = [str(cls.__doc__).strip().splitlines()[0], "", "Settings, as name=value or --name value:"]
    for f in fields(cls):
        default = "" if f.default is MISSING else f.default
        source = f.metadata.get("source", OURS)
        lines.append(f"  {f.name + '=' + str(default):44} {f.metadata.get('about', '')} [{source}]")
    for preset, values in presets_of(cls).items():
        shown = " ".join(f"{k}={v}" for k, v in values.items())
        lines.append(f"\npreset={preset}: {shown or 'the defaults above'}")
    if cls in NO_EFFECT:
        lines.append(f"\nAccepted without effect: {', '.join(NO_EFFECT[cls])}")
    return "\n".join(lines)
