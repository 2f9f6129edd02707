"""Settings of the three stages: one dataclass each, whose defaults are the paper's run; presets; the command line.

Usage in a script: `cfg = from_cli(PretrainConfig)`. Both `name=value` and `--name value` set a field.
"""

import difflib
import operator
import re
import sys
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any, Literal, TypeVar, get_args

from omegaconf import OmegaConf

from runtime.errors import UserError
from runtime.paths import NAMES, check_name
from runtime.plain import short

T = TypeVar("T")
PAPER, PUBLISHED, OURS = "paper", "published code", "ours"
_OPEN_CLIP = "open_clip:<model>/<tag> or open_clip:<model>:<file>"
Precision = Literal["auto", "32", "bf16"]
Sampler = Literal["plms", "ddim", "dpm_solver"]
Controls = Literal["none", "basic", "all"]
# bounds of a number, as keywords of `setting`: how they are said, and what must hold of (value, bound)
BOUNDS = {"least": ("at least", operator.ge), "above": ("more than", operator.gt), "below": ("below", operator.lt)}
BOUNDS |= {"most": ("at most", operator.le)}
# how a value is written, between which sizes a number other than 0 lies, and how that is said
WRITTEN = {
    int: (r"[+-]?\d{1,19}", 1, 2**63 - 1, "a value of type int within 64 bits"),
    float: (r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", 1e-12, 1e12, "a value of type float, 0 or 1e-12 to 1e12"),
    str: (r"[^\x00-\x1f\x7f-\x9f\ud800-\udfff]*", 0, 0, "text in UTF-8 without control characters"),
    bool: ("(?i)true|yes|y|on|1|false|no|n|off|0", 0, 0, "a value of type bool"),
}


def setting(default: Any, about: str, source: str = OURS, **bounds: float) -> Any:
    """A field with its explanation (unit included) and where the default comes from; both are shown by --help.

    bounds: of a number, by the names of BOUNDS. Choices are the field's type, a Literal.
    """
    return field(default=default, metadata={"about": about, "source": source, "bounds": bounds})


@dataclass
class _Run:
    """What every stage has."""

    preset: str = setting("paper", "paper, published (rules) and miniature (a size), combined left to right by commas")
    name: str = setting("", f"run name; empty: the preset's; {NAMES}")
    root_path: str = setting(".", "folder that holds datasets/, pretrains/ and results/", PUBLISHED)
    cache: str = setting("", "folder for what is computed once (for read-only data); empty: cache/ beside the data")
    seed: int = setting(2022, "of every random draw", PUBLISHED, least=0)
    device: str = setting("auto", "auto, cpu, cuda or cuda:N")
    overwrite: bool = setting(False, "move an earlier run of this name aside")
    dry_run: bool = setting(False, "open and check every input, list what is there and what is wrong, and stop")


@dataclass
class _Training(_Run):
    """What stages A and B share."""

    precision: Precision = setting("auto", "auto is bf16 where the device computes in it")
    compile: bool = setting(False, "torch.compile: a minute or more at the first step, then faster (docs/speed.md)")
    wandb: bool = setting(False, "also log to wandb")


@dataclass
class _Pictures(_Run):
    """What stages B and C share."""

    eeg_signals_path: str = setting("datasets/eeg_5_95_std.pth", "EEG of the trials", PUBLISHED)
    splits_path: str = setting("datasets/block_splits_by_image_single.pth", "train, val and test indices", PUBLISHED)
    imagenet_path: str = setting("datasets/imageNet_images", "folder <wnid>/<wnid>_<n>.JPEG", PUBLISHED)
    subject: int = setting(4, "subject 1..6; 0: all", PAPER)
    allow_missing: int = setting(-1, "images that may be missing; -1: the known corrupt one and 0.5 %", least=-1)
    pretrain_gm_path: str = setting("pretrains", "folder whose models/ holds v1-5-pruned", PUBLISHED)
    clip: str = setting("openai/clip-vit-large-patch14", f"CLIP: a folder, a hub name, {_OPEN_CLIP}", PUBLISHED)
    classifier: str = setting("vit_h_14", "picture classifier: a torchvision name or a folder", PUBLISHED)
    num_samples: int = setting(5, "pictures a trial (B: validation's, as the next 3)", PUBLISHED, least=1, most=100)
    ddim_steps: int = setting(250, "sampling steps", PUBLISHED, least=1)
    sampler: Sampler = setting("plms", "method of sampling", PUBLISHED)
    guidance: float = setting(1.0, "classifier-free guidance scale; 1: none", PUBLISHED, least=0, most=1000)


@dataclass
class PretrainConfig(_Training):
    """Stage A: masked modelling of unlabelled EEG."""

    eeg_path: str = setting("datasets/eeg_train", "folder of .npy recordings, (C, T) or (n, C, T)", PUBLISHED)
    eeg_scale: float = setting(1.0, "factor on the recordings; published code: 0.1 in stage A only", above=0)
    held_out: float = setting(0.1, "share of the recordings to report the loss on, not trained on", above=0, below=1)
    n_chans: int = setting(128, "electrodes after replication or cropping", PUBLISHED, least=1, most=4096)
    n_times: int = setting(512, "samples in a window", PAPER, least=1, most=65_536)
    patch_size: int = setting(4, "samples in a token", PAPER, least=1)
    embed_dim: int = setting(1024, "width of the encoder", PAPER, least=1, most=8192)
    depth: int = setting(24, "blocks of the encoder", PAPER, least=1, most=128)
    num_heads: int = setting(16, "heads of the encoder", PAPER, least=1, most=1024)
    mlp_ratio: float = setting(4.0, "hidden over outer width of an MLP; published code: 1", PAPER, above=0, most=64)
    decoder_embed_dim: int = setting(512, "width of the decoder", PUBLISHED, least=1, most=8192)
    decoder_depth: int = setting(8, "blocks of the decoder", PUBLISHED, least=1, most=128)
    decoder_num_heads: int = setting(16, "heads of the decoder", PUBLISHED, least=1, most=1024)
    mask_ratio: float = setting(0.75, "share of the tokens masked; published code: 0.1", PAPER, least=0, below=1)
    lr: float = setting(2.5e-4, "peak learning rate, not scaled by the batch", PUBLISHED, least=0)
    min_lr: float = setting(0.0, "learning rate at the end of the cosine", PUBLISHED, least=0)
    weight_decay: float = setting(0.05, "AdamW, on everything but biases and norms", PUBLISHED, least=0)
    num_epoch: int = setting(500, "epochs", PAPER, least=1, most=10**6)
    warmup_epochs: float = setting(40.0, "epochs of linear warm-up", PUBLISHED, least=0, most=10**6)
    batch_size: int = setting(100, "windows in a batch, over all processes together", PUBLISHED, least=1, most=10**9)
    accum_iter: int = setting(1, "batches in an optimizer step", PUBLISHED, least=1, most=1000)
    clip_grad: float = setting(0.8, "largest global gradient norm", PUBLISHED, least=0)
    local_start: float = setting(0.0, "gain of queries and keys that start equal: attention starts near", least=0)
    validate_every: int = setting(20, "epochs between held-out losses, resume points", PUBLISHED, least=1, most=10**6)


@dataclass
class FinetuneConfig(_Pictures, _Training):
    """Stage B: Stable Diffusion's cross-attention and the EEG conditioner, with CLIP alignment."""

    dataset: Literal["EEG"] = setting("EEG", "nothing else exists", PUBLISHED)
    eeg_scale: float = setting(0.0, "factor on the trials; 0: stage A's, so that both see one scale", least=0)
    pretrain_mbm_path: str = setting("", "stage A's file; empty: pretrains/eeg_pretrain/<name>.pth; none: untrained")
    finetune: Literal["E", "A", "E+A"] = setting("E+A", "what trains: E, the EEG encoder; A, cross-attention", PAPER)
    clip_head: Literal["condition", "tokens"] = setting("condition", "aligned with CLIP; published code: tokens", PAPER)
    clip_weight: float = setting(1.0, "weight of the CLIP loss; 0: none", PUBLISHED, least=0)
    text_start: bool = setting(True, "the condition starts at CLIP's empty caption, its head at CLIP's text projection")
    use_time_cond: bool = setting(True, "also add the condition to the time embedding", PUBLISHED)
    img_size: int = setting(512, "pixels", PUBLISHED, least=1, most=2048)
    crop_ratio: float = setting(0.2, "share cut off by a training crop", PUBLISHED, least=0, below=1)
    n_crops: int = setting(4, "cached random crops an image, standing for the endless stream", least=0, most=1000)
    cond_drop: float = setting(0.0, "share of training conditions replaced by no EEG's, for guidance", least=0, below=1)
    lr: float = setting(5.3e-5, "learning rate, constant", PUBLISHED, least=0)
    weight_decay: float = setting(0.01, "AdamW, on everything that trains", PUBLISHED, least=0)
    num_epoch: int = setting(300, "epochs", PAPER, least=1, most=10**6)
    batch_size: int = setting(25, "trials in a batch, over all processes together", PUBLISHED, least=1, most=10**9)
    accumulate_grad: int = setting(1, "batches in an optimizer step", PUBLISHED, least=1, most=1000)
    clip_grad: float = setting(0.5, "largest global gradient norm", PUBLISHED, least=0)
    select: Literal["clip_retrieval", "n_way"] = setting("clip_retrieval", "best epoch on validation; n_way: pictures'")
    validate_every: int = setting(10, "epochs between validations", PUBLISHED, least=1, most=10**6)
    encoder_embed_dim: int = setting(1024, "encoder width without a stage A checkpoint", PAPER, least=1, most=8192)
    encoder_depth: int = setting(24, "encoder blocks without a stage A checkpoint", PAPER, least=1, most=128)
    encoder_num_heads: int = setting(16, "encoder heads without a stage A checkpoint", PAPER, least=1, most=1024)
    encoder_mlp_ratio: float = setting(4.0, "encoder MLP ratio without a stage A checkpoint", PAPER, above=0, most=64)


@dataclass
class GenerateConfig(_Pictures):
    """Stage C: pictures from unseen EEG, scores with controls, a page."""

    model_path: str = setting("", "stage B checkpoint; empty: pretrains/generation/<name>.pth", PUBLISHED)
    max_items: int = setting(0, "score only the first test trials; 0: all", least=0, most=10**9)
    controls: Controls = setting("basic", "basic: Gaussian EEG and other trials' EEG; all: cost is printed")
    precision: Precision = setting("auto", "of sampling; auto is bf16 where the device computes in it")
    compile: bool = setting(False, "torch.compile: a minute or more at the first picture, then faster")
    batch_size: int = setting(0, "pictures sampled at once; 0: as many as memory takes", least=0, most=10**9)


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

_RANK = {"local_rank": "torchrun's environment tells the rank"}
_FMRI = ("roi", "aug_times", "num_sub_limit", "include_hcp", "include_kam")
_DECODER = ("use_nature_img_loss", "img_recon_weight")
NO_EFFECT: dict[type, dict[str, str]] = {
    PretrainConfig: _RANK
    | dict.fromkeys(_FMRI, "a leftover of fMRI code")
    | dict.fromkeys(_DECODER, "the image decoder was never used"),
    FinetuneConfig: _RANK
    | {
        "global_pool": "the published path fails in its CLIP head, so tokens are always kept",
        "eval_avg": "scores are computed by stage C, over all samples",
        "checkpoint_path": "a run resumes from its own folder",
    },
    GenerateConfig: _RANK
    | {"dataset": "only EEG exists", "config_patch": "models/config15.yaml beside the weights is read"},
}
ALIASES = {"root": "root_path", "local-rank": "local_rank"}


def from_cli(cls: type[T], argv: Sequence[str] | None = None) -> T:
    """Build `cls` from its defaults, then presets, then the command line.

    Args:
        cls: a dataclass whose fields were made by `setting`.
        argv: arguments without the program's name; sys.argv[1:] when None.

    Raises:
        UserError: an unknown name (the nearest is named) or preset, a missing, wrong-typed or senseless value.
    """
    given = _arguments(cls, sys.argv[1:] if argv is None else argv)
    config = OmegaConf.structured(cls)
    if presets := presets_of(cls):
        chosen = given.get("preset", "paper").split(",")
        for preset in chosen:
            if preset not in presets:
                raise UserError(f"preset={short(preset)}: no such preset; there are {', '.join(presets)}")
            config.merge_with(presets[preset])
        config.name = "-".join(chosen)
        if not given.get("name"):
            given.pop("name", None)
    texts = {name: text for name, text in given.items() if _written(cls, name, text) is str}
    config.merge_with({name: text for name, text in given.items() if name not in texts})
    cfg = replace(OmegaConf.to_object(config), **texts)  # a text is itself, whatever OmegaConf would read in it
    for f in fields(cls):
        value, bounds = getattr(cfg, f.name), f.metadata["bounds"]
        _, least, most, words = WRITTEN.get(f.type, ("", 0, 0, ""))
        if most and value and not least <= abs(value) <= most:
            raise UserError(f"{f.name}={short(value)}: expected {words} (see --help)")
        if not all(BOUNDS[word][1](value, bound) for word, bound in bounds.items()):
            expected = " and ".join(f"{BOUNDS[word][0]} {bound:.10g}" for word, bound in bounds.items())
            raise UserError(f"{f.name}={value}: expected {expected}")
    if getattr(cfg, "name", ""):
        check_name(cfg.name)
    return cfg


def _written(cls: type, name: str, text: str) -> Any:
    """The type of a setting, if `text` is written as its values are, so that nothing in it refers to anything else.

    Raises:
        UserError: it is not.
    """
    kind = cls.__dataclass_fields__[name].type
    choices = get_args(kind)
    pattern, _, _, words = WRITTEN.get(kind, ("|".join(map(re.escape, choices)), 0, 0, " or ".join(choices)))
    if not re.fullmatch(pattern, text):
        shown = text if len(text) < 100 and text.isprintable() else short(text)
        raise UserError(f"{name}={shown}: expected {words} (see --help)")
    return kind


def presets_of(cls: type) -> dict[str, dict[str, Any]]:
    """The presets of a stage's settings, or of the stage whose settings `cls` extends; none: {}."""
    return next((PRESETS[kind] for kind in cls.__mro__ if kind in PRESETS), {})


def _arguments(cls: type, argv: Sequence[str]) -> dict[str, str]:
    """`name=value`, `--name value` and `--name=value` as a dict of known names; --help prints and exits."""
    given: dict[str, str] = {}
    known, silent, words = [f.name for f in fields(cls)], NO_EFFECT.get(cls, {}), iter(argv)
    for word in words:
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
        value = value if equals else next(words, None)
        if value is None:
            raise UserError(f"--{name}: a value is missing")
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
        choices = f"({' | '.join(get_args(f.type))}) " if get_args(f.type) else ""
        lines.append(f"  {f.name + '=' + str(default):44} {choices}{f.metadata['about']} [{f.metadata['source']}]")
    for preset, values in presets_of(cls).items():
        shown = " ".join(f"{k}={v}" for k, v in values.items())
        lines.append(f"\npreset={preset}: {shown or 'the defaults above'}")
    if cls in NO_EFFECT:
        lines.append(f"\nAccepted without effect: {', '.join(NO_EFFECT[cls])}")
    return "\n".join(lines)
