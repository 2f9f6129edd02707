"""Stage A: pretrain an EEG encoder by masking stretches of time and predicting them.

python code/stageA1_eeg_pretrain.py                                   # the paper's run, datasets/eeg_train
python code/stageA1_eeg_pretrain.py preset=miniature                  # the demo's
python code/stageA1_eeg_pretrain.py --mask_ratio 0.75 --num_epoch 800 --batch_size 2
"""

from dataclasses import dataclass
from pathlib import Path

from config import PretrainConfig, from_cli
from data.windows import training_items
from dataset import EEGWindows
from runtime import ranks
from runtime.devices import about_device, compile_in_place, pick_device
from runtime.draws import steps_per_epoch
from runtime.findings import Findings
from runtime.loop import Schedule, fit
from runtime.memory import SURELY, MemoryPlan, check_fits
from runtime.paths import in_place, under_root
from runtime.runs import Run, Trained, run_config, train_stage
from sc_mbm.held_out import HeldOut, draw_reconstruction, units_of
from sc_mbm.trainer import MaskedPretraining, check, plan_pretraining, sizes_of

INPUT_FACTS = ("sfreq", "ch_names", "band", "excludes_test")
N_HELD_OUT = 256  # windows, at most, that figures are taken on


def main() -> None:
    train_stage(from_cli(PretrainConfig), "A", "eeg_pretrain", check, open_inputs, train)


def eeg_folder(cfg: PretrainConfig) -> Path:
    """The asked folder, or the published `datasets/mne_data` where the default one is missing."""
    asked, published = (under_root(cfg.root_path, path) for path in (cfg.eeg_path, "datasets/mne_data"))
    default = cfg.eeg_path == PretrainConfig.eeg_path and not asked.is_dir()
    return published if default and published.is_dir() else asked


@dataclass
class Inputs:
    """What stage A trains on; in a dry run None where it does not open."""

    plan: MemoryPlan | None
    windows: EEGWindows | None


def open_inputs(cfg: PretrainConfig, findings: Findings) -> Inputs:
    """All that stage A reads, each opened as a finding. Raises UserError, as `Findings.open`."""
    folder = eeg_folder(cfg)
    device = findings.open("device", lambda: pick_device(cfg.device), about_device)
    if not findings.keep_going:  # what is missing is said before a batch that does not fit
        in_place(cfg, {"eeg_path": ("folder of recordings (.npy)", str(folder.absolute()))})
    if plan := device and findings.open("plan", lambda: plan_pretraining(cfg), str):
        findings.open("memory", lambda: check_fits(cfg, plan), lambda free: f"{free / 1e9:.1f} GB are free")
    how = cfg.n_chans, cfg.n_times, cfg.eeg_scale, cfg.seed, cfg.held_out
    windows = findings.open(
        "recordings", lambda: EEGWindows(folder, *how),
        lambda w: f"{w.n_recordings} files, {len(w)} training windows an epoch", [folder],
    )  # fmt: skip
    return Inputs(plan, windows)


def train(cfg: PretrainConfig, run: Run, inputs: Inputs) -> Trained | None:
    """Train; the first process hands on the autoencoder. Raises UserError."""
    windows, info = inputs.windows, inputs.windows.info
    training, held_out = windows.training_windows(512, cfg.seed), windows.held_out_windows(N_HELD_OUT)
    print(f"{len(windows)} training windows an epoch, {len(held_out)} held-out windows of {cfg.n_times} samples")
    if not info["excludes_test"]:
        print("note: the folder's manifest.json does not say (excludes_test) that no test trial is among them")

    # The bar: the best linear prediction of what is masked
    judge = HeldOut.of(training, held_out, cfg.n_times // cfg.patch_size, cfg.mask_ratio, cfg.seed)
    print(f"masked share of variance: 1.0 predicts the mean, {judge.linear_share:.4f} is the best linear prediction")

    # Train
    module = MaskedPretraining.of(cfg, steps_per_epoch(len(windows), cfg.batch_size, cfg.accum_iter))
    if cfg.compile:
        compile_in_place(module.mae)
    first = windows.held_out[0].path.name if len(held_out) < N_HELD_OUT else ""  # of more, any may come first
    units = units_of(info, first, cfg.eeg_scale)

    def validate(epoch: int) -> dict[str, float]:
        picture = run.folder / "reconstruction.png"
        draw_reconstruction(picture, module.mae, held_out[0], judge.masks[0], *units)
        module.state["figures"] = judge.figures(module.mae)
        return module.state["figures"]

    items = training_items(windows, pick_device(cfg.device), SURELY * inputs.plan.total)
    fit(module, items, run, Schedule.of(cfg, cfg.accum_iter), validate)
    if not ranks.lead():
        return None

    # Hand on
    figures = module.state["figures"]
    content = {
        "format": "eeg-mae-1",
        "model": {k: v.cpu() for k, v in module.mae.state_dict().items()},
        "config": sizes_of(cfg),
        "input": {"scale": cfg.eeg_scale} | {k: info[k] for k in INPUT_FACTS},
        "run": {"config": run_config(cfg), "figures": figures},
    }
    summary = (
        "masked share {masked_share:.4f} on held-out windows, linear {linear_share:.4f}: "
        "{way_to_linear:.2f} of the way from the mean to the linear prediction"
    ).format(**figures)
    return Trained(content, figures, summary)


if __name__ == "__main__":
    ranks.cli(main)
