"""Stage A: pretrain an EEG encoder by masking stretches of time and predicting them.

python code/stageA1_eeg_pretrain.py                                   # the paper's run, datasets/eeg_train
python code/stageA1_eeg_pretrain.py preset=miniature                  # the demo's
python code/stageA1_eeg_pretrain.py --mask_ratio 0.75 --num_epoch 800 --batch_size 2
"""

import hashlib

from config import PretrainConfig, from_cli
from data.signals import mapped
from data.windows import training_items
from runtime import digests, ranks
from runtime.devices import compile_in_place, pick_device
from runtime.draws import steps_per_epoch
from runtime.errors import UserError
from runtime.loop import Schedule, fit
from runtime.memory import SURELY
from runtime.runs import Run, Trained, run_config, train_stage
from sc_mbm.held_out import HeldOut, draw_reconstruction, labels_of
from sc_mbm.trainer import MaskedPretraining, check, sizes_of
from training_inputs import PretrainingInputs, open_pretraining, pretraining_files

INPUT_FACTS = ("sfreq", "ch_names", "band", "excludes_test")
N_HELD_OUT = 256  # windows, at most, that figures are taken on


def main() -> None:
    train_stage(from_cli(PretrainConfig), "A", "eeg_pretrain", check, open_pretraining, pretraining_files, train)


def train(cfg: PretrainConfig, run: Run, inputs: PretrainingInputs) -> Trained | None:
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
    labels = labels_of(info, first, cfg.eeg_scale)

    def validate(epoch: int) -> dict[str, float]:
        picture = run.folder / "reconstruction.png"
        draw_reconstruction(picture, module.mae, held_out[0], judge.masks[0], labels)
        module.state["figures"] = judge.figures(module.mae)
        return module.state["figures"]

    items = training_items(windows, pick_device(cfg.device), SURELY * inputs.plan.total)
    run.sources.begin({})

    def intact() -> None:  # a mapped file that is changed in place is no longer what was hashed; one replaced still is
        for name, path in pretraining_files(cfg)[0].items():
            was = run.sources.sha256.get(name)
            if was and path.suffix == ".npy" and digests.sha256(path) != was:
                if hashlib.sha256(mapped(path).base).hexdigest() != was:
                    raise UserError(f"{path}: was changed while it is trained on; put it back and run the same command")

    fit(module, items, run, Schedule.of(cfg, cfg.accum_iter), validate, {"figures": dict[str, float]}, intact)
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
