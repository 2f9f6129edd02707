"""Stage A: pretrain an EEG encoder by masking stretches of time and predicting them.

python code/stageA1_eeg_pretrain.py                                   # the paper's run, datasets/eeg_train
python code/stageA1_eeg_pretrain.py preset=miniature                  # the demo's
python code/stageA1_eeg_pretrain.py --mask_ratio 0.75 --num_epoch 800 --batch_size 2
"""

from collections.abc import Callable
from inspect import signature
from pathlib import Path

import torch

from config import PretrainConfig, from_cli
from data.windows import training_items
from dataset import EEGWindows
from runtime import ranks
from runtime.devices import compile_in_place, pick_device, pick_precision
from runtime.draws import rand, steps_per_epoch
from runtime.errors import UserError
from runtime.loop import Schedule, fit
from runtime.memory import SURELY, check_fits, count, own_batch, plan_step
from runtime.paths import in_place, under_root
from runtime.runs import Run, run_config, train_stage
from sc_mbm.linear_reference import linear_share
from sc_mbm.mae_for_eeg import MAEforEEG, start_local
from sc_mbm.trainer import MaskedPretraining, draw_reconstruction, held_out_figures

INPUT_FACTS = ("sfreq", "ch_names", "band", "excludes_test")
N_MASKS = 4  # masks that model and linear reference are compared on


def main() -> None:
    cfg = from_cli(PretrainConfig)
    check(cfg)
    train_stage(cfg, "A", "eeg_pretrain", train)


def check(cfg: PretrainConfig) -> None:
    """Refuse, before any work, what stage A cannot do. Raises UserError."""
    pick_precision(cfg.precision, pick_device(cfg.device))
    for name in ("held_out", "eeg_scale", "mlp_ratio"):
        if not getattr(cfg, name) > 0:
            raise UserError(f"{name}={getattr(cfg, name)}: expected more than 0")
    if cfg.n_times % cfg.patch_size:
        raise UserError(f"n_times={cfg.n_times} patch_size={cfg.patch_size}: a window must be a whole number of tokens")
    n_tokens = cfg.n_times // cfg.patch_size
    kept = int(n_tokens * (1 - cfg.mask_ratio))
    if not 0 < kept < n_tokens:
        raise UserError(
            f"mask_ratio={cfg.mask_ratio}: keeps {kept} of {n_tokens} tokens; it must keep some and hide some"
        )


def train(cfg: PretrainConfig, run: Run) -> tuple[dict, dict, str] | None:
    """Train; the first process gets the checkpoint's content, the last figures, a line about them. Raises UserError."""
    in_place(cfg, {"eeg_path": ("folder of recordings (.npy)", str(eeg_folder(cfg).absolute()))})
    plan = plan_pretraining(cfg, build)
    check_fits(cfg, plan)
    windows = EEGWindows(eeg_folder(cfg), cfg.n_chans, cfg.n_times, cfg.eeg_scale, cfg.seed, cfg.held_out)
    held_out = windows.held_out_windows(256)
    print(f"{len(windows)} training windows an epoch, {len(held_out)} held-out windows of {cfg.n_times} samples")
    if not windows.info["excludes_test"]:
        print("note: the folder's manifest.json does not say (excludes_test) that no test trial is among them")

    # The bar: the best linear prediction of what is masked
    n_tokens = cfg.n_times // cfg.patch_size
    order = rand((N_MASKS, n_tokens), cfg.seed, "held-out masks").argsort(1).argsort(1)
    masks = (order >= int(n_tokens * (1 - cfg.mask_ratio))).long()  # (N_MASKS, L), 1 = hidden
    linear = linear_share(windows.training_windows(512, cfg.seed), held_out, masks)
    print(f"masked share of variance: 1.0 predicts the mean, {linear:.4f} is the best linear prediction")

    module = build(cfg, steps_per_epoch(len(windows), cfg.batch_size, cfg.accum_iter))
    if cfg.compile:
        compile_in_place(module.mae)

    def validate(epoch: int) -> dict[str, float]:
        figures = held_out_figures(module.mae, held_out, masks)
        figures |= {"linear_share": linear, "way_to_linear": (1 - figures["masked_share"]) / (1 - linear)}
        picture = run.folder / "reconstruction.png"
        draw_reconstruction(picture, module.mae, held_out[0], masks[0], windows.info.get("sfreq"))
        module.state["figures"] = figures
        return figures

    items = training_items(windows, pick_device(cfg.device), SURELY * sum(plan["memory"].values()))
    fit(module, items, run, Schedule.of(cfg, cfg.accum_iter), validate, cfg.wandb)

    if not ranks.lead():
        return None
    figures = module.state["figures"]
    summary = (
        "masked share {masked_share:.4f} on held-out windows, linear {linear_share:.4f}: "
        "{way_to_linear:.2f} of the way from the mean to the linear prediction"
    ).format(**figures)
    content = {
        "format": "eeg-mae-1",
        "model": {k: v.cpu() for k, v in module.mae.state_dict().items()},
        "config": sizes(cfg),
        "input": {"scale": cfg.eeg_scale} | {k: windows.info[k] for k in INPUT_FACTS},
        "run": {"config": run_config(cfg), "figures": figures},
    }
    return content, figures, summary


def sizes(cfg: PretrainConfig) -> dict:
    """The model's constructor arguments."""
    return {name: getattr(cfg, name) for name in signature(MAEforEEG).parameters}


def build(cfg: PretrainConfig, epoch_steps: int) -> MaskedPretraining:
    """The model, whose first weights depend on the seed alone, in its training module."""
    torch.manual_seed(cfg.seed)
    mae = MAEforEEG(**sizes(cfg))
    if cfg.local_start:
        start_local(mae, cfg.local_start)
    return MaskedPretraining(
        mae, cfg.mask_ratio, cfg.lr, cfg.min_lr, cfg.weight_decay, round(cfg.warmup_epochs * epoch_steps),
        cfg.num_epoch * epoch_steps, cfg.seed,
    )  # fmt: skip


def eeg_folder(cfg: PretrainConfig) -> Path:
    """The asked folder, or the published `datasets/mne_data` where the default one is missing."""
    asked, published = (under_root(cfg.root_path, path) for path in (cfg.eeg_path, "datasets/mne_data"))
    default = cfg.eeg_path == PretrainConfig.eeg_path and not asked.is_dir()
    return published if default and published.is_dir() else asked


if __name__ == "__main__":
    ranks.cli(main)


def plan_pretraining(cfg: PretrainConfig, build: Callable[[PretrainConfig, int], MaskedPretraining]) -> dict:
    """Parameters and memory of stage A; build: stage A's own."""
    with torch.device("meta"):
        module = build(cfg, 1)
        eeg = torch.empty(own_batch(cfg), cfg.n_chans, cfg.n_times)
        noise = torch.empty(own_batch(cfg), module.mae.num_tokens)
        return plan_step(count(mae=module.mae), module, lambda: module.mae(eeg, cfg.mask_ratio, noise)[0], cfg)
