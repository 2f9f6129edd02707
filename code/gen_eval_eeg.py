"""Stage C: pictures from EEG that no training saw, scores with their controls, a page.

python code/gen_eval_eeg.py                                   # the paper's run, on pretrains/generation/paper.pth
python code/gen_eval_eeg.py preset=miniature                  # the demo's
python code/gen_eval_eeg.py --dataset EEG --model_path pretrains/models/checkpoint.pth

Shapes: N test trials, S pictures a trial, C electrodes, T time points.
"""

import hashlib
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from config import GenerateConfig, from_cli
from data.signals import read_manifest
from data.splits import told
from data.stimuli import leave_out_missing
from data.trials_file import open_trial_file
from dataset import Trials, open_trials
from dc_ldm import weights
from dc_ldm.generator import EEGImageGenerator, check_sampler
from dc_ldm.published import about_stage_b
from dc_ldm.weights import TIME_CONDITION
from evaluation.baselines import baselines
from evaluation.controls import KINDS, Control, cost, plan
from evaluation.features import network_arrays
from evaluation.folder import places
from evaluation.page.page import write_page
from evaluation.page.tables import table
from evaluation.record import about_trials, hashes_of, machine, write_trials
from evaluation.sampling import draw, picture_seeds, show
from evaluation.scores import write_metrics
from generate import load_generator
from runtime import checkpoints, ranks
from runtime.devices import compile_in_place, free_memory, pick_device, pick_dtype
from runtime.errors import UserError
from runtime.file_kinds import PUBLISHED_B, file_kind
from runtime.memory import ESTIMATED, count
from runtime.paths import file_or_name, in_place, under_root
from runtime.pictures import load_image
from runtime.runs import open_for_all, run_config
from vision.cache import clip_embeddings
from vision.classifier import PictureClassifier, describe, load_classifier
from vision.clip import OPEN_CLIP, FrozenCLIP, OpenCLIP, load_clip


def main() -> None:
    cfg = from_cli(GenerateConfig)
    started = time.time()
    check_sampler(cfg.sampler, cfg.ddim_steps)
    if cfg.controls not in KINDS:
        raise UserError(f"controls={cfg.controls}: no such choice; there are {', '.join(KINDS)}")
    paths = input_paths(cfg)
    model = about_stage_b(paths["model_path"], paths["pretrain_gm_path"])
    hashes = input_hashes(paths)
    folder, config = under_root(cfg.root_path, f"results/eval/{cfg.name}"), identity(cfg) | hashes
    run = open_for_all(cfg, folder, config)
    page = run.folder / "index.html"
    if run.finished:
        print(f"{run.folder} is finished; its page is {page}")
        return
    facts = evaluate(cfg, run.folder, paths, model)
    if facts is None:
        return
    facts |= {"hashes": facts["hashes"] | hashes, "seconds": round(time.time() - started, 1)}
    metrics = write_metrics(run.folder, facts, facts["device"], root=cfg.root_path)
    write_page(run.folder)
    run.finish(seconds=round(time.time() - started, 1))
    print(table(metrics), f"stage C done in {time.time() - started:.0f} s -> {page}", sep="\n")


def identity(cfg: GenerateConfig) -> dict:
    """The settings that make a run what it is, with what precision=auto means here; the batch does not count."""
    half = pick_dtype(cfg.precision, cfg.device) == torch.bfloat16
    return run_config(cfg, "batch_size") | {"precision": "bf16" if half else "32"}


def input_hashes(paths: dict) -> dict[str, str]:
    """sha256 of the checkpoint, the splits and the EEG: other files behind the same names make another run."""
    hashes = {f"{name}_sha256": checkpoints.sha256(paths[f"{name}_path"]) for name in ("model", "splits")}
    file = ranks.lead_first(lambda: open_trial_file(paths["eeg_signals_path"]))
    return hashes | {"eeg_sha256": file.about["sha256"]}


def evaluate(cfg: GenerateConfig, folder: Path, paths: dict, model: dict) -> dict | None:
    """Write pictures, trials.csv and arrays.safetensors; returns the `run` part of metrics.json, on the first process.

    paths: as `input_paths` returns them; model: the stage B checkpoint. Raises UserError.
    """
    device = pick_device(cfg.device)

    # Trials: here, and only here, the test split is opened
    trials, notes = ranks.lead_first(lambda: open_splits(cfg, paths, model))
    test, opened_at = trials["test"], datetime.now(UTC).isoformat(timespec="seconds")

    # Models
    generator, classifier, clip, absent = load_models(cfg, paths, device)
    notes += [absent] if absent else []
    print(told(test.info["split"]), *notes, f"{len(test)} test trials of {paths['eeg_signals_path']}", sep="\n")

    found, gap = baselines(trials["train"], test)  # before hours of sampling: it may refuse the trials
    ranks.from_lead(lambda: same_trials(folder, test))

    # Pictures, and what the frozen networks see in them
    seeds = picture_seeds(cfg.seed, test.position, cfg.num_samples)
    settings = {"steps": cfg.ddim_steps, "sampler": cfg.sampler, "guidance": cfg.guidance}
    settings["batch_size"] = seeds.numel()  # all that `draw` asks for at once
    generate = partial(generator.generate, **settings)
    see = partial(describe, classifier=classifier, embed_images=clip.embed_images)
    size = model["config"]["img_size"]
    controls, absent = plan(cfg.controls, trials, generator, settings, clip, classifier, paths, size, cfg.seed)
    batch_size = cfg.batch_size or generator.fitting_batch(cfg.guidance)  # only now: controls may hold a second UNet
    notes += absent
    price = cost(len(test), cfg.num_samples, controls, settings)
    print(*absent, price, sep="\n")
    arrays = draw(folder / "samples", generate, test.eeg, seeds, batch_size, see, "real")
    arrays["real.embedding"] = generator.embed(test.eeg)
    made, seconds = draw_controls(folder / "controls", controls, seeds[:, :1], batch_size, see, generator.embed)
    if not ranks.lead():
        return None
    if test.info["image_known"]:
        # retrieval asks for what stage B aligned with: the embedding of the plain image, not of our copy
        embed = partial(clip_embeddings, under_root(cfg.root_path, "datasets/cache"), clip, open_image=load_image)
        arrays |= show(folder / "samples", paths["imagenet_path"], test.names, size, see, embed)
        arrays |= network_arrays(cfg.root_path, places(folder, controls), test.names, str(device))
    arrays |= made | found
    write_trials(folder / "trials.csv", test, classifier, seeds, arrays.get("real.logits"), gap)
    content = {name: values.contiguous() for name, values in arrays.items()}
    checkpoints.write_bytes(folder / "arrays.safetensors", save(content))
    facts = {
        "name": cfg.name,
        "n": len(test),
        "samples": cfg.num_samples,
        "config": identity(cfg),
        "seeds": {"run": cfg.seed, "pictures": "trials.csv"},
        "hashes": hashes_of(run_config(cfg, "batch_size"), model, clip, classifier),
        "controls": {"asked": cfg.controls, "cost": price, "seconds": seconds},
        "classifier": classifier and classifier.name,
        "classifier_agrees": agreement(arrays, classifier, test),
        "notes": notes,
    }
    return about_trials(trials, opened_at) | machine(device) | facts


def load_models(
    cfg: GenerateConfig, paths: dict, device: torch.device
) -> tuple[EEGImageGenerator, PictureClassifier | None, FrozenCLIP | OpenCLIP, str]:
    """Generator, picture classifier, CLIP; why there is no classifier, if there is none. Raises UserError."""
    generator = load_generator(paths["model_path"], paths["pretrain_gm_path"], str(device), cfg.precision)
    if cfg.compile:
        compile_in_place(generator.unet)
    classifier, absent = load_classifier(paths["classifier"], str(device))
    return generator, classifier, load_clip(paths["clip"], device), absent


def draw_controls(
    folder: Path, controls: dict[str, Control], seeds: Tensor, batch_size: int, see: Callable, embed: Callable
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """As `samples.draw`, for every control, and the EEG embeddings of those that have EEG; seconds that each took."""
    arrays, seconds = {}, {}
    for name, control in controls.items():
        begun = time.time()
        arrays |= draw(folder / name, control.make, control.given, seeds, batch_size, see, name)
        if name.endswith("_eeg"):
            arrays[f"{name}.embedding"] = embed(control.given)
        seconds[name] = round(time.time() - begun, 1)
    return arrays, seconds


def input_paths(cfg: GenerateConfig) -> dict:
    """Where the inputs lie, by setting; `clip` and `classifier` may be names instead of paths.

    Raises UserError that names everything missing, in one sentence.
    """
    wanted = {
        "model_path": ("stage B checkpoint", cfg.model_path or f"pretrains/generation/{cfg.name}.pth"),
        "eeg_signals_path": ("EEG of the trials", cfg.eeg_signals_path),
        "splits_path": ("splits", cfg.splits_path),
        "imagenet_path": ("folder of the images shown", cfg.imagenet_path),
        "pretrain_gm_path": ("folder of Stable Diffusion", cfg.pretrain_gm_path),
    }
    manifest = under_root(cfg.root_path, cfg.eeg_signals_path).with_suffix(".json")
    if not read_manifest(manifest).get("image_known", True):
        del wanted["imagenet_path"]
    paths: dict = in_place(cfg, wanted)
    if file_kind(paths["model_path"]) != PUBLISHED_B:  # which carries its own
        weights.base_files(paths["pretrain_gm_path"])
    for name in ("clip", "classifier"):
        paths[name] = file_or_name(cfg.root_path, getattr(cfg, name))
    return paths


def open_splits(cfg: GenerateConfig, paths: dict, model: dict) -> tuple[dict[str, Trials], list[str]]:
    """Test and training trials, scaled as the checkpoint's training was, without those whose image is missing."""
    sizes, wanted = model["config"]["encoder"], model["input"]
    trials = open_trials(
        paths["eeg_signals_path"], paths["splits_path"], cfg.subject, ("train", "test"), sizes["n_chans"],
        sizes["n_times"], wanted["scale"],
    )  # fmt: skip
    for key in ("sfreq", "window", "ch_names"):
        there = trials["test"].info[key]
        if None not in (there, wanted.get(key)) and there != wanted[key]:
            raise UserError(
                f"{paths['eeg_signals_path']}: {key} is {there}, but {paths['model_path']} was trained on {wanted[key]}"
            )
    unsure = refuse_trained(trials["test"], model, paths)
    if trials["test"].info["image_known"]:
        needed, notes = leave_out_missing({"test": trials["test"]}, paths["imagenet_path"], cfg.allow_missing)
        trials |= needed
    else:
        notes = ["which image was shown is unknown, so only class scores are computed"]
    if cfg.max_items:
        trials["test"] = trials["test"].select(range(min(cfg.max_items, len(trials["test"]))))
        notes.append(f"max_items={cfg.max_items}: only the first {len(trials['test'])} test trials are scored")
    return trials, notes + unsure


def same_trials(folder: Path, test: Trials) -> None:
    """Raises UserError where pictures in the folder were made of other trials: files or the manifest changed since."""
    record = folder / "begun.json"
    now = {"names": test.names, "eeg_sha256": hashlib.sha256(test.eeg.numpy().tobytes()).hexdigest()}
    if record.is_file() and json.loads(record.read_text()) != now:
        raise UserError(f"{folder}: was begun with other trials; take another name=, or overwrite=true")
    checkpoints.write_text(record, json.dumps(now))


def refuse_trained(test: Trials, model: dict, paths: dict, kind: str = "test") -> list[str]:
    """Raises UserError where stage B was trained or selected on trials now to be tested; notes on what none can tell.

    Stage A's recordings are continuous, so only their manifest can say that no test trial is among them.
    """
    trained, notes = model.get("run", {}), []
    if trained.get("stage_a_sha256"):
        known = trained.get("stage_a_excludes_test")
        notes = [
            f"stage A and the test trials: {known or 'its manifest.json (excludes_test) does not say that it saw none'}"
        ]
    if "positions" not in trained:
        return [*notes, f"{paths['model_path']} does not say on which trials it was trained"]
    if trained["split"]["eeg_sha256"] != test.info["split"]["eeg_sha256"]:
        return [
            *notes,
            f"{paths['model_path']} was trained on another file; whether it holds these {kind} trials too is unknown",
        ]
    both = {i for part in trained["positions"].values() for i in part} & set(test.position.tolist())
    if both:
        raise UserError(
            f"{paths['model_path']}: was trained or selected on {len(both)} of the {len(test)} {kind} trials of "
            f"{paths['splits_path']}; use the splits that it was trained with"
        )
    return notes


def agreement(arrays: dict[str, Tensor], classifier: PictureClassifier | None, test: Trials) -> float | None:
    """Share of the truths in which the classifier sees the data set's class; the published score trusts it instead."""
    if "truth.logits" not in arrays:
        return None
    own = classifier.index_of(test.wnids)[test.label]
    return float((arrays["truth.logits"].argmax(1) == own).double().mean())


if __name__ == "__main__":
    ranks.cli(main)


def plan_sampling(cfg: GenerateConfig, generator: EEGImageGenerator, others: dict[str, int], memory: float) -> dict:
    """Parameters and memory of stage C; others: parameters of CLIP and the classifier; memory: bytes, 0: as is free.

    Pictures by class name, of controls=all, are drawn by a second, untouched UNet with its VAE.
    """
    counts = count(conditioner=generator.conditioner, unet=generator.unet, vae=generator.vae) | others
    parts, device = (generator.conditioner, generator.unet, generator.vae), pick_device(cfg.device)
    weights = sum(p.nbytes for part in parts for p in part.parameters()) + 4 * sum(others.values())
    if cfg.controls == "all" and others["classifier, frozen"] and not cfg.clip.startswith(OPEN_CLIP):
        untouched = {name: p for name, p in generator.unet.named_parameters() if not name.startswith(TIME_CONDITION)}
        second = [*untouched.values(), *generator.vae.parameters()]
        counts["unet and vae of the controls, frozen"] = sum(p.numel() for p in second)
        weights += sum(p.nbytes for p in second)
    free = (memory or free_memory(device)) - weights  # the stage asks once its networks are there
    batch_size = cfg.batch_size or generator.fitting_batch(cfg.guidance, device, free)
    needed = generator.memory(batch_size, cfg.guidance)
    plan = {"weights": weights, ESTIMATED: needed}
    return {"parameters": counts, "memory": plan, "batch_size": batch_size}
