"""Stage B: teach Stable Diffusion's cross-attention to listen to EEG, aligned with CLIP.

python code/eeg_ldm.py                          # the paper's run, on pretrains/eeg_pretrain/paper.pth
python code/eeg_ldm.py preset=miniature         # the demo's
python code/eeg_ldm.py --dataset EEG --pretrain_mbm_path pretrains/eeg_pretrain/paper.pth --batch_size 4
"""

from functools import partial
from typing import Any

import torch

from config import FinetuneConfig, from_cli
from dc_ldm import weights
from dc_ldm.generator import EEGImageGenerator
from dc_ldm.ldm_for_eeg import CONTEXT_LENGTH, reciprocal_rank, validation_losses
from evaluation.inputs import clip_hashes
from evaluation.validation import Validation
from runtime import ranks
from runtime.devices import compile_in_place, pick_device, pick_dtype
from runtime.draws import steps_per_epoch
from runtime.loop import Schedule, fit
from runtime.paths import file_or_name, under_root
from runtime.runs import Run, Trained, run_config, train_stage
from runtime.sampling import Sampling
from training_inputs import FINETUNING, FinetuningInputs, latent_trials, new_module
from vision.clip import load_clip

INPUT_FACTS = ("sfreq", "window", "ch_names", "band", "simulated")


def main() -> None:
    train_stage(from_cli(FinetuneConfig), "B", "generation", *FINETUNING, train)


def train(cfg: FinetuneConfig, run: Run, inputs: FinetuningInputs) -> Trained | None:
    """Train; the first process hands on the trained part of the selected epoch. Raises UserError."""
    device, half = pick_device(cfg.device), pick_dtype(cfg.precision, cfg.device) == torch.bfloat16
    trials, stage_a = inputs.trials, inputs.stage_a

    # How validation selects: by retrieval, or by what pictures from the EEG show
    criterion, means = "val_clip_mrr", "reciprocal rank"
    imagenet, sampling = under_root(cfg.root_path, cfg.imagenet_path), Sampling.of(cfg, cfg.batch_size)
    validation = Validation(trials["val"], imagenet, cfg.img_size, cfg.num_samples, sampling, cfg.seed, inputs.judge)
    if inputs.judge:
        criterion, means = "val_n_way_top1", f"{inputs.judge.n_way}-way top-1 of pictures"
        size = cfg.batch_size * cfg.accumulate_grad
        steps = cfg.num_epoch * steps_per_epoch(len(trials["train"]), size)
        print(validation.cost(-(-cfg.num_epoch // cfg.validate_every), steps, size))

    # Models: Stable Diffusion and CLIP are frozen, but for what EEGLatentDiffusion trains
    torch.manual_seed(cfg.seed)
    base = weights.load_base(under_root(cfg.root_path, cfg.pretrain_gm_path), cfg.use_time_cond)
    clip = load_clip(file_or_name(cfg.root_path, cfg.clip), device)
    items = ranks.lead_first(partial(latent_trials, cfg, base, clip, trials, device))
    text_start = clip.text_start(CONTEXT_LENGTH) if cfg.text_start else None
    module = new_module(cfg, stage_a.encoder, base.unet, base.sizes, clip.dim, text_start)
    shape = {"context_dim": base.sizes.unet["context_dim"], "clip_dim": clip.dim, "clip_head": cfg.clip_head}
    del clip  # gigabytes that training has no use for
    if half:
        module.halve_frozen()
    if cfg.compile:
        compile_in_place(base.unet)
    no_context, latent_shape = module.no_context, base.sizes.latent_shape(cfg.img_size)
    generator = EEGImageGenerator(
        module.conditioner, base.unet, base.vae, module.alphas_cumprod, no_context, latent_shape,
        base.sizes.scale_factor, cfg.cond_drop > 0,
    )  # fmt: skip

    # Train; the best epoch's weights are kept in module.state, so that a resumed run still has them
    def validate(epoch: int) -> dict[str, float]:
        val = items["val"]
        mrr = reciprocal_rank(generator.embed(val.eeg), val.clip, val.picture).mean()
        with torch.autocast(device.type, torch.bfloat16, half):
            figures = {**validation_losses(module, val, cfg.batch_size), "val_clip_mrr": float(mrr)}
            figures |= validation.look(generator, run.folder / f"validation-{epoch:04d}.png")
        if figures[criterion] > module.state.get("score", -1.0):
            module.state = {"score": figures[criterion], "epoch": epoch, "model": module.training_state()}
        return figures

    run.sources.begin(clip_hashes(cfg) | {"EEG": trials["train"].info["split"]["eeg_sha256"]})
    kept = {"score": float, "epoch": int, "model": dict[str, Any]}
    fit(module, items["train"], run, Schedule.of(cfg, cfg.accumulate_grad), validate, kept)
    if not ranks.lead():
        return None

    return checkpoint(cfg, inputs, base, no_context, shape, module.state, criterion, means)


def checkpoint(
    cfg: FinetuneConfig, inputs: FinetuningInputs, base: weights.Base, no_context: torch.Tensor, shape: dict,
    state: dict, criterion: str, means: str,
) -> Trained:  # fmt: skip
    """The trained part of the selected epoch, with everything needed to build its models again.

    shape: EEGConditioner's arguments; state: what training kept of that epoch; criterion: by which it was selected.
    """
    trials, stage_a, sizes = inputs.trials, inputs.stage_a, base.sizes
    info, positions = trials["train"].info, {split: part.position.tolist() for split, part in trials.items()}
    record = {"config": run_config(cfg), "stage_a_sha256": stage_a.sha256}
    record |= {"stage_a_excludes_test": stage_a.excludes_test, "split": info["split"], "positions": positions}
    facts = {"epoch": state["epoch"], criterion: state["score"]}
    content = {
        "format": weights.FORMAT,
        "model": state["model"],
        "no_context": no_context,
        "config": weights.model_config(sizes, stage_a.sizes, shape, cfg.use_time_cond, cfg.img_size, cfg.cond_drop),
        "base": {"name": base.name, "sha256": base.sha256},
        "input": {"scale": stage_a.scale} | {k: info[k] for k in INPUT_FACTS},
        "run": record | facts,
    }
    return Trained(content, facts, f"selected epoch {facts['epoch']}, validation mean {means} {facts[criterion]:.3f}")


if __name__ == "__main__":
    ranks.cli(main)
