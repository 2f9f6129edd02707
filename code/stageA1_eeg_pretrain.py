"""Stage A: pretrain an EEG encoder by masking stretches of time and predicting them.

python code/stageA1_eeg_pretrain.py                                   # the paper's run, datasets/eeg_train
python code/stageA1_eeg_pretrain.py preset=miniature                  # the demo's
python code/stageA1_eeg_pretrain.py --mask_ratio 0.75 --num_epoch 800 --batch_size 2
"""

import time
from dataclasses import asdict, fields
from inspect import signature

import torch

from config import PretrainConfig, from_cli, under_root
from dataset import EEGWindows
from runtime import checkpoints
from runtime.draws import StepBatches, rand
from runtime.errors import UserError, cli
from runtime.loop import Schedule, fit, pick_device, pick_precision
from runtime.runs import check_hand_on, hand_on, open_run
from sc_mbm.linear_reference import linear_share
from sc_mbm.mae_for_eeg import MAEforEEG, start_local
from sc_mbm.trainer import MaskedPretraining, draw_reconstruction, held_out_figures

N_MASKS = 4  # masks that model and linear reference are compared on
SIZES = [f.name for f in fields(PretrainConfig) if f.name in signature(MAEforEEG).parameters]


def main() -> None:
    cfg = from_cli(PretrainConfig)
    started = time.time()
    pick_precision(cfg.precision, pick_device(cfg.device))

    # Run folder
    run = open_run(under_root(cfg.root_path, f"results/eeg_pretrain/{cfg.name}"), run_config(cfg), cfg.overwrite)
    target = under_root(cfg.root_path, f"pretrains/eeg_pretrain/{cfg.name}.pth")
    if run.finished:
        print(f"{run.folder} is finished; its checkpoint is {target}")
        return
    check_hand_on(target, run)

    # Data
    windows = EEGWindows(eeg_folder(cfg), cfg.n_chans, cfg.n_times, cfg.eeg_scale, cfg.seed, cfg.held_out)
    held_out = windows.held_out_windows(256)
    print(f"{len(windows)} training windows an epoch, {len(held_out)} held-out windows of {cfg.n_times} samples")

    # The bar: the best linear prediction of what is masked
    masks = held_out_masks(cfg)
    linear = linear_share(windows.training_windows(512, cfg.seed), held_out, masks)
    print(f"masked share of variance: 1.0 predicts the mean, {linear:.4f} is the best linear prediction")

    # Model
    module = build(cfg, StepBatches(len(windows), cfg.batch_size, cfg.seed, 0, 0, cfg.accum_iter).steps_per_epoch)

    # Train
    def validate(epoch: int) -> dict[str, float]:
        figures = held_out_figures(module.mae, held_out, masks)
        figures |= {"linear_share": linear, "way_to_linear": (1 - figures["masked_share"]) / (1 - linear)}
        picture = run.folder / "reconstruction.png"
        draw_reconstruction(picture, module.mae, held_out[0], masks[0], windows.info.get("sfreq"))
        module.state["figures"] = figures
        return figures

    plan = Schedule(
        cfg.batch_size, cfg.num_epoch, cfg.seed, cfg.accum_iter, cfg.clip_grad, cfg.precision, cfg.device,
        cfg.validate_every,
    )  # fmt: skip
    fit(module, windows, run, plan, validate, cfg.wandb)

    # Hand on
    figures = module.state["figures"]
    content = {
        "format": "eeg-mae-1",
        "model": {k: v.cpu() for k, v in module.mae.state_dict().items()},
        "config": sizes(cfg),
        "input": {"scale": cfg.eeg_scale, **{k: windows.info.get(k) for k in ("sfreq", "ch_names", "band")}},
        "run": {"config": run_config(cfg), "figures": figures},
    }
    checkpoints.save(run.checkpoint, content)
    run.finish(seconds=round(time.time() - started, 1), sha256=hand_on(run, target), **figures)
    print("masked share {masked_share:.4f} on held-out windows, linear {linear_share:.4f}: ".format(**figures), end="")
    print("{way_to_linear:.2f} of the way from the mean to the linear prediction".format(**figures))
    print(f"stage A done in {time.time() - started:.0f} s -> {target}")


def sizes(cfg: PretrainConfig) -> dict:
    """The model's constructor arguments."""
    return {k: getattr(cfg, k) for k in SIZES}


def build(cfg: PretrainConfig, steps_per_epoch: int) -> MaskedPretraining:
    """The model, whose first weights depend on the seed alone, in its training module."""
    torch.manual_seed(cfg.seed)
    mae = MAEforEEG(**sizes(cfg))
    if cfg.local_start:
        start_local(mae, cfg.local_start)
    return MaskedPretraining(
        mae, cfg.mask_ratio, cfg.lr, cfg.min_lr, cfg.weight_decay, round(cfg.warmup_epochs * steps_per_epoch),
        cfg.num_epoch * steps_per_epoch, cfg.seed,
    )  # fmt: skip


def held_out_masks(cfg: PretrainConfig) -> torch.Tensor:
    """(N_MASKS, L) fixed masks, 1 = hidden."""
    n_tokens = cfg.n_times // cfg.patch_size
    ranks = rand((N_MASKS, n_tokens), cfg.seed, "held-out masks").argsort(1).argsort(1)
    return (ranks >= int(n_tokens * (1 - cfg.mask_ratio))).long()


def run_config(cfg: PretrainConfig) -> dict:
    """The settings that make the run what it is."""
    return {k: v for k, v in asdict(cfg).items() if k not in ("overwrite", "wandb", "device", "root_path")}


def eeg_folder(cfg: PretrainConfig):
    """The asked folder, or the published `datasets/mne_data` where the default one is missing.

    Raises:
        UserError: neither exists.
    """
    asked, published = (under_root(cfg.root_path, p) for p in (cfg.eeg_path, "datasets/mne_data"))
    default = PretrainConfig.eeg_path == cfg.eeg_path
    if not asked.is_dir() and default and published.is_dir():
        return published
    if not asked.is_dir():
        raise UserError(f"{asked}: no such folder; put .npy recordings (C, T) there, or give eeg_path=")
    return asked


if __name__ == "__main__":
    cli(main)
