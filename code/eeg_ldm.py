"""Stage B: teach Stable Diffusion's cross-attention to listen to EEG, aligned with CLIP.

python code/eeg_ldm.py                          # the paper's run, on pretrains/eeg_pretrain/paper.pth
python code/eeg_ldm.py preset=miniature         # the demo's
python code/eeg_ldm.py --dataset EEG --pretrain_mbm_path pretrains/eeg_pretrain/paper.pth --batch_size 4
"""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import torch

from config import FinetuneConfig, from_cli
from data.splits import describe_splits
from data.stimuli import image_path, leave_out_missing
from dataset import Trials, open_trials
from dc_ldm import weights
from dc_ldm.generator import EEGImageGenerator, check_sampler
from dc_ldm.ldm_for_eeg import (
    EEGLatentDiffusion,
    LatentBatch,
    LatentTrials,
    check_finetune,
    reciprocal_rank,
    validation_losses,
)
from dc_ldm.models.autoencoder import AutoencoderKL
from dc_ldm.models.samplers import sd_alphas_cumprod
from dc_ldm.models.unet import UNet
from dc_ldm.modules.conditioner import CLIP_HEADS, EEGConditioner
from dc_ldm.published import read_stage_a
from dc_ldm.weights import BaseSizes
from evaluation.validation import cost, load_judge, look
from runtime import checkpoints, ranks
from runtime.checkpoints import load_strictly
from runtime.devices import compile_in_place, pick_device, pick_precision
from runtime.errors import UserError
from runtime.loop import Schedule, fit
from runtime.memory import check_fits, count, is_half, own_batch, plan_step
from runtime.paths import file_or_name, in_place, under_root
from runtime.pictures import image_tensor, load_image
from runtime.runs import Run, run_config, train_stage
from sc_mbm.mae_for_eeg import EEGEncoder, encoder_state
from vision.cache import clip_embeddings, latent_moments
from vision.clip import FrozenCLIP, OpenCLIP, load_clip

ENCODER_SIZES = ("n_chans", "n_times", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio")
INPUT_FACTS = ("sfreq", "window", "ch_names", "band", "simulated")
LEARNING = ("lr", "weight_decay", "clip_weight", "finetune")
CONTEXT_LENGTH = 77  # tokens of Stable Diffusion 1.5's condition


def main() -> None:
    cfg = from_cli(FinetuneConfig)
    check(cfg)
    train_stage(cfg, "B", "generation", train)


def train(cfg: FinetuneConfig, run: Run) -> tuple[dict, dict, str] | None:
    """Train; the first process gets the checkpoint's content, what was selected, a line about it. Raises UserError."""
    device = pick_device(cfg.device)
    folder = check_inputs(cfg)["pretrain_gm_path"]
    judge, (encoder, sizes, scale) = load_judge(cfg, device), stage_a(cfg)
    check_fits(cfg, plan_finetuning(cfg, sizes, weights.read_sizes(weights.base_files(folder)[1])))
    trials = ranks.lead_first(lambda: open_training_data(cfg, sizes, scale))
    criterion, means = "val_clip_mrr", "reciprocal rank"
    if judge:
        criterion, means = "val_n_way_top1", f"{judge.n_way}-way top-1 of pictures"
        judge.classes(trials["val"])  # refuses, before any work, what it does not know
        print(cost(cfg, len(trials["train"]), len(trials["val"])))

    # Models: Stable Diffusion and CLIP are frozen, but for what EEGLatentDiffusion trains
    torch.manual_seed(cfg.seed)
    base = weights.load_base(folder, cfg.use_time_cond)
    abar = sd_alphas_cumprod(base.sizes.linear_start, base.sizes.linear_end)
    clip = load_clip(file_or_name(cfg.root_path, cfg.clip), device)
    items = ranks.lead_first(partial(cached_items, cfg, base, clip, trials, device))
    conditioner, no_context, shape = new_conditioner(cfg, encoder, clip, base.sizes.unet["context_dim"])
    del clip  # gigabytes that training has no use for
    half = pick_precision(cfg.precision, device) == "bf16-mixed"
    module = new_module(cfg, conditioner, base.unet, abar, no_context, half)
    generator = EEGImageGenerator(
        conditioner, base.unet, base.vae, abar, no_context, base.sizes.latent_shape(cfg.img_size),
        base.sizes.scale_factor, cfg.cond_drop > 0,
    )  # fmt: skip

    # Train; the best epoch's weights are kept in module.state, so that a resumed run still has them
    def validate(epoch: int) -> dict[str, float]:
        val = items["val"]
        places = reciprocal_rank(generator.embed(val.eeg), val.clip, val.picture)
        with torch.autocast(device.type, torch.bfloat16, half):
            figures = {**validation_losses(module, val, cfg.batch_size), "val_clip_mrr": float(places.mean())}
            figures |= look(cfg, generator, trials["val"], run.folder / f"validation-{epoch:04d}.png", judge)
        score = figures[criterion]
        if score > module.state.get("score", -1.0):
            module.state = {"score": score, "epoch": epoch, "model": module.training_state()}
        return figures

    fit(module, items["train"], run, Schedule.of(cfg, cfg.accumulate_grad), validate, cfg.wandb)
    if not ranks.lead():
        return None

    # The trained part, with everything needed to build its models again
    info, positions = trials["train"].info, {split: part.position.tolist() for split, part in trials.items()}
    record = {"config": run_config(cfg)} | about_stage_a(cfg)
    facts = {"epoch": module.state["epoch"], criterion: module.state["score"]}
    content = {
        "format": weights.FORMAT,
        "model": module.state["model"],
        "no_context": no_context,
        "config": weights.model_config(base, sizes, shape, cfg.use_time_cond, cfg.img_size, cfg.cond_drop),
        "base": {"name": base.name, "sha256": base.sha256},
        "input": {"scale": scale} | {k: info[k] for k in INPUT_FACTS},
        "run": record | {"split": info["split"], "positions": positions} | facts,
    }
    return content, facts, f"selected epoch {facts['epoch']}, validation mean {means} {facts[criterion]:.3f}"


def new_conditioner(
    cfg: FinetuneConfig, encoder: EEGEncoder, clip: FrozenCLIP | OpenCLIP, context_dim: int
) -> tuple[EEGConditioner, torch.Tensor, dict]:
    """The conditioner as it starts, the condition of no EEG (77, context_dim), and the conditioner's sizes."""
    shape = {"context_dim": context_dim, "clip_dim": clip.dim, "clip_head": cfg.clip_head}
    conditioner, no_context = EEGConditioner(encoder, **shape), torch.zeros(CONTEXT_LENGTH, context_dim)
    if cfg.text_start:
        no_context, projection = (made.clone() for made in clip.text_start(CONTEXT_LENGTH))  # DDP writes into them
        conditioner.start_at_text(no_context, projection)
    return conditioner, no_context, shape


def new_module(
    cfg: FinetuneConfig,
    conditioner: EEGConditioner,
    unet: UNet,
    abar: torch.Tensor,
    no_context: torch.Tensor,
    half: bool,
) -> EEGLatentDiffusion:
    """What trains, as it starts; half: in mixed precision. abar (1000,), no_context as `new_conditioner` gives it."""
    module = EEGLatentDiffusion(conditioner, unet, abar, no_context, **{k: getattr(cfg, k) for k in LEARNING})
    if half:
        module.halve_frozen()
    if cfg.compile:
        compile_in_place(unet)
    return module


def check(cfg: FinetuneConfig) -> None:
    """Refuse, before any work, what stage B cannot do. Raises UserError."""
    if cfg.dataset != "EEG":
        raise UserError(f"dataset={cfg.dataset}: only EEG exists")
    if cfg.select not in ("clip_retrieval", "n_way"):
        raise UserError(f"select={cfg.select}: use clip_retrieval or n_way")
    check_finetune(cfg.finetune)
    if cfg.clip_head not in CLIP_HEADS:
        raise UserError(f"clip_head={cfg.clip_head}: use {' or '.join(CLIP_HEADS)}")
    if cfg.guidance != 1 and not cfg.cond_drop:
        raise UserError(f"guidance={cfg.guidance}: needs cond_drop=0.1 or so in training; use it, or guidance=1")
    pick_precision(cfg.precision, pick_device(cfg.device))
    check_sampler(cfg.sampler, cfg.ddim_steps)


def check_inputs(cfg: FinetuneConfig) -> dict[str, Path]:
    """Where the inputs lie, by setting. Raises UserError that names every file and folder that is missing."""
    wanted = {
        "eeg_signals_path": ("EEG of the trials", cfg.eeg_signals_path),
        "splits_path": ("splits", cfg.splits_path),
        "imagenet_path": ("folder of the images shown", cfg.imagenet_path),
        "pretrain_gm_path": ("folder of Stable Diffusion", cfg.pretrain_gm_path),
    }
    if cfg.pretrain_mbm_path != "none":
        wanted["pretrain_mbm_path"] = ("stage A checkpoint", stage_a_path(cfg))
    return in_place(cfg, wanted)


def stage_a_path(cfg: FinetuneConfig) -> str:
    """The stage A checkpoint asked for, or that of the same name."""
    return cfg.pretrain_mbm_path or f"pretrains/eeg_pretrain/{cfg.name}.pth"


def about_stage_a(cfg: FinetuneConfig) -> dict:
    """Hash of the stage A checkpoint that training starts from, and what it says of test trials; None if untrained."""
    if cfg.pretrain_mbm_path == "none":
        return {"stage_a_sha256": None, "stage_a_excludes_test": None}
    path = under_root(cfg.root_path, stage_a_path(cfg))
    known = read_stage_a(path)["input"].get("excludes_test")
    return {"stage_a_sha256": checkpoints.sha256(path), "stage_a_excludes_test": known}


def stage_a(cfg: FinetuneConfig) -> tuple[EEGEncoder, dict, float]:
    """Stage A's encoder (untrained if pretrain_mbm_path=none), its sizes, factor on the EEG. Raises UserError."""
    if cfg.pretrain_mbm_path == "none":
        sizes = {"n_chans": 128, "n_times": 512, "patch_size": 4}
        sizes |= {k.removeprefix("encoder_"): v for k, v in asdict(cfg).items() if k.startswith("encoder_")}
        torch.manual_seed(cfg.seed)
        return EEGEncoder(**sizes), sizes, cfg.eeg_scale or 1.0
    path = under_root(cfg.root_path, stage_a_path(cfg))
    content = read_stage_a(path)
    sizes = {k: content["config"][k] for k in ENCODER_SIZES}
    encoder = EEGEncoder(**sizes)
    load_strictly(encoder, encoder_state(content["model"]), f"{path}: the encoder")
    return encoder, sizes, cfg.eeg_scale or float(content["input"]["scale"])


def open_training_data(cfg: FinetuneConfig, sizes: dict, scale: float) -> dict[str, Trials]:
    """Training and validation trials whose pictures exist; the test split stays closed. Raises UserError."""
    signals, splits = (under_root(cfg.root_path, path) for path in (cfg.eeg_signals_path, cfg.splits_path))
    trials = open_trials(signals, splits, cfg.subject, ("train", "val"), sizes["n_chans"], sizes["n_times"], scale)
    trials, left_out = leave_out_missing(trials, under_root(cfg.root_path, cfg.imagenet_path), cfg.allow_missing)
    print(describe_splits(trials["train"].info["split"]), *left_out, sep="\n")
    print(f"{len(trials['train'])} training and {len(trials['val'])} validation trials")
    return trials


def cached_items(
    cfg: FinetuneConfig, base: weights.Base, clip: FrozenCLIP, trials: dict[str, Trials], device: torch.device
) -> dict[str, LatentTrials]:
    """Per split, trials beside their pictures' latents and CLIP embeddings, computed once."""
    folder, imagenet = (under_root(cfg.root_path, path) for path in ("datasets/cache", cfg.imagenet_path))
    base.vae.to(device)
    items = {}
    for split, part in trials.items():
        names, picture = np.unique(part.names, return_inverse=True)
        paths = [image_path(imagenet, name) for name in names]
        n_crops, drop = (cfg.n_crops, cfg.cond_drop) if split == "train" else (0, 0.0)
        moments = latent_moments(
            folder, base.vae, paths, load_image, image_tensor, cfg.img_size, n_crops, cfg.crop_ratio, cfg.seed
        )
        targets = clip_embeddings(folder, clip, paths, load_image)
        places = torch.from_numpy(picture)
        items[split] = LatentTrials(part.eeg, places, moments, targets, base.sizes.scale_factor, drop, cfg.seed)
    return items


if __name__ == "__main__":
    ranks.cli(main)


INPUT = {"n_chans": 128, "n_times": 512, "patch_size": 4}


MULT = (1, 2, 4, 4)


PUBLISHED_BASE = BaseSizes({"channel_mult": MULT}, {"ch_mult": MULT, "z_channels": 4})  # the constructors' defaults


PUBLISHED_CLIP = (768, 427_616_513)  # width of ViT-L/14's space, parameters of its two towers


def plan_finetuning(
    cfg: FinetuneConfig, encoder: dict, sizes: BaseSizes, clip: tuple[int, int] = PUBLISHED_CLIP
) -> dict:
    """Parameters and memory of stage B; clip: width of its space, which hardly counts, number of its parameters."""
    b, latent = own_batch(cfg), (own_batch(cfg), *sizes.latent_shape(cfg.img_size))
    shapes = ((b, encoder["n_chans"], encoder["n_times"]), latent, latent, (b,), (b, 1, 1), (b, clip[0]))
    with torch.device("meta"):
        module = diffusion(cfg, encoder, sizes, clip[0])
        data = LatentBatch(*(torch.zeros(shape) for shape in shapes))
        data = data._replace(t=data.t.long())
        vae = AutoencoderKL(**sizes.vae).requires_grad_(False)
        counts = count(conditioner=module.conditioner, unet=module.unet, vae=vae)
        plan = plan_step(counts, module, lambda: sum(module.losses(data)), cfg)
        if is_half(cfg):
            module.halve_frozen()
        plan["memory"]["weights"] = sum(p.nbytes for part in (module, vae) for p in part.parameters())
        plan["parameters"] |= {"clip, frozen, before training": clip[1]}
        return plan


def diffusion(cfg: FinetuneConfig, encoder: dict, sizes: BaseSizes, clip_dim: int) -> EEGLatentDiffusion:
    """Stage B's training module with random weights, on torch's default device; encoder: EEGEncoder's arguments."""
    shape = {"context_dim": sizes.unet.get("context_dim", 768), "clip_dim": clip_dim, "clip_head": cfg.clip_head}
    conditioner = EEGConditioner(EEGEncoder(**encoder), **shape)
    unet = UNet(**sizes.unet, use_time_cond=cfg.use_time_cond)
    abar = sd_alphas_cumprod(sizes.linear_start, sizes.linear_end).to(torch.get_default_device())
    start = torch.zeros(77, shape["context_dim"])
    return EEGLatentDiffusion(conditioner, unet, abar, start, cfg.lr, cfg.weight_decay, finetune=cfg.finetune)
