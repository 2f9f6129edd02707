"""Is everything in place for a stage? What is there, what is wrong, what to get, and where to put it.

python code/run.py check_setup stage=b                           # with the settings that the stage itself will get
python code/run.py check_setup stage=all preset=miniature        # all three; what an earlier stage makes may be missing
python code/run.py check_setup stage=a --plan                    # also parameters, memory, and time from real steps
python code/run.py check_setup stage=b memory=12 --plan          # which batch fits in 12 GB
python code/run.py check_setup stage=c --json                    # one JSON object and nothing else
Exit status: 0 the stage can start, 1 it cannot, 2 wrong arguments. Nothing is downloaded, and nothing written but the
cache of the trials, which the stages need as well.
"""

import json
import os
import shutil
import sys
import tempfile
from contextlib import redirect_stdout
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

import commands.setup.report as told
import eeg_ldm as stage_b
import runtime.memory as memory_plan
import stageA1_eeg_pretrain as stage_a
from config import ALIASES, NO_EFFECT, FinetuneConfig, GenerateConfig, PretrainConfig, from_cli
from data.signals import mapped, spans_of
from data.stimuli import KNOWN_CORRUPT, image_path, leave_out_missing
from dataset import EEGWindows, open_trials
from dc_ldm import weights
from dc_ldm.generator import check_sampler, load_generator
from dc_ldm.published import about_stage_b
from evaluation import inputs as stage_c
from evaluation.controls import make_controls
from runtime.devices import pick_device, pick_dtype
from runtime.errors import UserError
from runtime.file_kinds import PUBLISHED_B, file_kind
from runtime.pictures import readable
from runtime.runs import Run, begun, check_hand_on, run_config
from sc_mbm.mae_for_eeg import EEGEncoder
from vision.classifier import load_classifier
from vision.clip import OPEN_CLIP

STAGES = {"a": PretrainConfig, "b": FinetuneConfig, "c": GenerateConfig}
CLIP_FILES = ("config.json", "preprocessor_config.json", "model.safetensors")


def check_pretraining(cfg: PretrainConfig, r: told.Report) -> None:
    """Stage A: recordings."""

    def read() -> tuple[EEGWindows | None, str]:
        folder = stage_a.eeg_folder(cfg)
        paths = sorted(folder.rglob("*.npy"))
        if sum(path.stat().st_size for path in paths) > told.LARGE and not r.asked.hash:
            some = paths[:: -(-len(paths) // 50)]
            for path in paths:
                (spans_of if path in some else mapped)(path)
            return None, f"{len(paths)} files in {folder}; {len(some)} of them read to the end (hash=true: all)"
        windows = EEGWindows(folder, cfg.n_chans, cfg.n_times, cfg.eeg_scale, cfg.seed, cfg.held_out)
        return windows, f"{windows.n_recordings} files, {len(windows)} windows an epoch, in {folder}"

    windows = r.see("recordings", read, [r.path(cfg.eeg_path)])
    r.plan = stage_a.plan_pretraining(cfg, stage_a.build)
    check_place(r, "eeg_pretrain", run_config(cfg))
    if windows and r.asked.plan and r.ready:
        r.plan["time"] = told.time_training(stage_a.build(cfg, 1), windows, cfg, cfg.accum_iter)


def check_finetuning(cfg: FinetuneConfig, r: told.Report) -> None:
    """Stage B: settings, stage A's encoder, trials, pictures, Stable Diffusion, CLIP."""
    r.see("settings", lambda: (stage_b.check(cfg), "understood"))
    path = r.path(cfg.pretrain_mbm_path or f"pretrains/eeg_pretrain/{cfg.name}.pth")
    encoder = {name: getattr(cfg, f"encoder_{name}", 0) for name in stage_b.ENCODER_SIZES} | stage_b.INPUT
    with torch.device("meta"):  # checks names and shapes as the stage does, and fills no memory
        if cfg.pretrain_mbm_path != "none" and not r.comes_later("stage A checkpoint", path, cfg.pretrain_mbm_path):
            found = r.see("stage A checkpoint", lambda: (stage_b.stage_a(cfg), "an encoder is in it"), [path])
            encoder = found[1] if found else encoder
        base = check_base(cfg, r)
    trials = check_trials(cfg, r, ("train", "val"), encoder)
    sizes = base.sizes if base else stage_b.PUBLISHED_BASE
    clip = check_clip(cfg, r) or stage_b.PUBLISHED_CLIP
    if base or cfg.img_size % 64 == 0:  # what the published networks take
        r.plan = stage_b.plan_finetuning(cfg, encoder, sizes, clip)
    check_place(r, "generation", run_config(cfg))
    if trials and r.asked.plan and r.ready:
        r.plan["time"] = told.time_finetuning(cfg, trials["train"].eeg, encoder, sizes, clip[0])


def check_sampling(cfg: GenerateConfig, r: told.Report) -> None:
    """Stage C: stage B's checkpoint, trials, pictures, Stable Diffusion, CLIP, classifier."""
    path, base = r.path(cfg.model_path or f"pretrains/generation/{cfg.name}.pth"), r.path(cfg.pretrain_gm_path)
    r.see("settings", lambda: (check_sampler(cfg.sampler, cfg.ddim_steps), "understood"))
    clip, local, generator, model = check_clip(cfg, r) or stage_b.PUBLISHED_CLIP, r.path(cfg.classifier), None, None
    where = str(local) if local.exists() else cfg.classifier
    with torch.device("meta"):
        files = [local, local / "model.safetensors"]
        judge, absent = r.see("classifier", lambda: (load_classifier(where, "meta"), where), files) or (None, "")
        if absent:
            r.findings[-1] |= {"state": "note", "about": absent, "get": told.GET["classifier"][0]}
        complete = file_kind(path) == PUBLISHED_B or check_base(cfg, r)  # the published file carries its own base
    if complete and not r.comes_later("stage B checkpoint", path, cfg.model_path):
        load = partial(load_generator, path, base, pick_device(cfg.device), EEGEncoder)
        how = cfg.precision, cfg.device
        generator = r.see("stage B checkpoint", lambda: (load(pick_dtype(*how)), "a trained model"), [path])
    model = about_stage_b(path, base) if generator else None
    trials = check_trials(cfg, r, ("test",), model["config"]["encoder"] if model else stage_b.INPUT)
    config = None
    if model and trials:
        fit = "rate, window and channels are those of the model's training"
        test = trials["test"]
        group = test.image if test.info["image_known"] else test.position
        r.see("EEG", lambda: (stage_c.open_splits(cfg, stage_c.find_paths(cfg), generator), fit))
        r.see("controls", lambda: (make_controls(cfg.controls, test.eeg, group, test.label, cfg.seed), cfg.controls))
        hashes = {
            f"{name}_sha256": told.sha256(p) for name, p in (("model", path), ("splits", r.path(cfg.splits_path)))
        }
        hashes["eeg_sha256"] = test.info["split"]["eeg_sha256"]
        config = stage_c.identity(cfg) | hashes
    if generator:
        judging = sum(p.numel() for p in judge.features.parameters()) if judge else 0
        others = {"clip, frozen": clip[1], "classifier, frozen": judging}
        r.plan = told.plan_sampling(cfg, generator, others, 1e9 * r.asked.memory)
    check_place(r, "eval", config)
    if generator and trials and r.asked.plan and r.ready:
        r.plan["time"] = told.time_sampling(cfg, generator, trials["test"].eeg)


def check_trials(cfg: Any, r: told.Report, splits: tuple[str, ...], sizes: dict) -> dict | None:
    """EEG, splits, and the pictures that they need: name -> trials that can be used."""
    paths, root = [r.path(cfg.eeg_signals_path), r.path(cfg.splits_path)], r.path(cfg.imagenet_path)

    def read() -> tuple[dict, str]:
        trials = open_trials(*paths, cfg.subject, splits, sizes["n_chans"], sizes["n_times"])
        split = trials[splits[0]].info["split"]
        sizes_of = ", ".join(f"{name} {n}" for name, n in split["sizes"].items())
        return trials, f"subject {cfg.subject}: {sizes_of}, counted in {split['index_space']}"

    trials = r.see("trials", read, paths)
    if trials is None:
        r.see(
            "pictures", lambda: (leave_out_missing({}, root), f"{root} is there; the trials will tell what is needed")
        )
        return None
    info = trials[splits[0]].info
    shared = {pair: n["pictures"] for pair, n in info["split"]["shared"].items() if n["pictures"]}
    if shared:
        r.add("trials", "note", f"parts share pictures, {shared}: are these the splits of another file or subject?")
    return (
        r.see("pictures", partial(look_at_pictures, trials, root, cfg.allow_missing)) if info["image_known"] else trials
    )


def look_at_pictures(trials: dict, root: Path, allow_missing: int) -> tuple[dict, str]:
    """As `leave_out_missing`; its error also names the missing classes and a folder that has them."""
    names = sorted({name for part in trials.values() for name in part.names})
    wnids = sorted({name.split("_")[0] for name in names})
    try:
        kept, lines = leave_out_missing(trials, root, allow_missing)
    except UserError as error:
        gone = [wnid for wnid in wnids if not (root / wnid).is_dir()]
        about = f"{error}; {len(gone)} of {len(wnids)} class folders are missing: {', '.join(gone) or 'none'}"
        for place in (root.parent, *root.parent.glob("*/"), *root.glob("*/")):
            if gone and (place / gone[0]).is_dir():
                about += f"; they lie in {place}: set imagenet_path={place}"
        raise UserError(about) from error
    for path in (image_path(root, name) for name in sorted(KNOWN_CORRUPT)):
        if path.is_file():
            lines.append(
                f"{path.name}, corrupt in the copy handed around, is {'whole' if readable(path) else 'so'} here"
            )
    return kept, "; ".join([f"{len(names)} of {len(wnids)} classes in {root}", *map(str.strip, lines)])


def check_base(cfg: Any, r: told.Report) -> weights.Base | None:
    """Stable Diffusion, whose file must have the tensors that config15.yaml describes; on the meta device."""
    folder = r.path(cfg.pretrain_gm_path)

    def read() -> tuple[weights.Base, str]:
        file, config = weights.base_files(folder)
        state = {name: value.to("meta") for name, value in weights.read_base(file).items()}
        return weights.assemble(state, weights.read_sizes(config), True, str(file), ""), "as config15.yaml describes it"

    names = (*weights.BASE_NAMES, "config15.yaml")
    return r.see("Stable Diffusion", read, [folder / "models" / name for name in names])


def check_clip(cfg: Any, r: told.Report) -> tuple[int, int] | None:
    """Width of CLIP's space and its parameters, from its folder or the hub's cache."""
    from huggingface_hub import try_to_load_from_cache
    from transformers import CLIPConfig, CLIPModel

    if cfg.clip.startswith(OPEN_CLIP):
        return r.add("CLIP", "note", f"{cfg.clip}: not looked at; the stage loads it, from the hub if it must")
    own, hub = r.path(cfg.clip), partial(try_to_load_from_cache, cfg.clip) if cfg.clip.count("/") == 1 else str
    found = [own / name if own.is_dir() else hub(name) for name in CLIP_FILES]
    paths = [Path(place) for place in found if isinstance(place, (str, Path)) and Path(place).is_file()]

    def read() -> tuple[tuple[int, int], str]:
        if len(paths) < len(CLIP_FILES):
            raise UserError(
                f"{cfg.clip}: {len(paths)} of {', '.join(CLIP_FILES)} are in that folder or the hub's cache"
            )
        try:
            config = CLIPConfig.from_pretrained(paths[0].parent)
            with safe_open(paths[-1], "pt"), torch.device("meta"):
                size = sum(p.numel() for p in CLIPModel(config).parameters())
        except (SafetensorError, OSError, ValueError) as error:
            raise UserError(f"{paths[-1].parent}: is truncated or not CLIP ({error})") from error
        return (config.projection_dim, size), f"{cfg.clip}, {size / 1e6:.1f} M parameters"

    return r.see("CLIP", read, paths)


def check_place(r: told.Report, kind: str, config: dict | None) -> None:
    """Device; whether the run's folder is free for it and can be written; whether the disk holds its checkpoints."""
    folder = r.path(f"results/{kind}/{r.cfg.name}")
    above = next(place for place in (folder, *folder.parents) if place.exists())
    need = 8 * r.plan.get("memory", {}).get("gradients", 0) / 1e9  # weights and moments, twice while replaced; hand-on
    free = shutil.disk_usage(above).free / 1e9

    def device() -> tuple[None, str]:
        chosen = pick_device(r.cfg.device)
        gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        seen = ", ".join(f"{gpu.name} {gpu.total_memory / 1e9:.0f} GB" for gpu in gpus) or "torch sees no GPU"
        own = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        there = 1e9 * r.asked.memory or (gpus[chosen.index or 0].total_memory if chosen.type == "cuda" else own)
        total = sum(r.plan.get("memory", {}).values())
        if total > there:
            advice = memory_plan.smaller(r.cfg, r.plan, there)
            r.add("memory", "note", f"{total / 1e9:.1f} GB will not fit in {there / 1e9:.1f} GB; {advice} (estimate)")
        return None, f"{chosen} ({seen}; {os.cpu_count()} cores, {own / 1e9:.0f} GB)"

    def place() -> tuple[None, str]:
        run = Run(folder, (folder / "finished.json").exists())
        there = config is not None and not r.cfg.overwrite and begun(folder, config)
        if kind != "eval":
            check_hand_on(r.path(f"pretrains/{kind}/{r.cfg.name}.pth"), run)
        try:
            tempfile.TemporaryFile(dir=above).close()
        except OSError as error:
            raise UserError(f"{above}: cannot be written ({error}); give another root_path=") from error
        if free < need:
            raise UserError(f"{above}: {free:.1f} GB are free, the checkpoints take {need:.1f} GB; make room")
        state = "finished, nothing is left to do" if run.finished else "begun, goes on" if there else "free"
        return None, f"{folder}: {state}; {free:.0f} GB of disk{f' for checkpoints of {need:.1f} GB' if need else ''}"

    r.see("device", device)
    r.see("run folder", place)


def read_arguments(argv: list[str]) -> tuple[told.SetupConfig, dict[str, Any]]:
    """Our own settings, and the asked stages' from the rest; of all three stages, each takes what it knows."""
    words, pairs = list(argv), []
    while words:
        word = words.pop(0)
        name = word.removeprefix("--").partition("=")[0]
        if word in ("--plan", "--hash", "--json"):
            word = f"{name}=true"
        elif word.startswith("--") and "=" not in word and words:
            word += f"={words.pop(0)}"
        pairs.append((name, word))
    own = {f.name for f in fields(told.SetupConfig)} | {"-h", "help"}
    asked = from_cli(told.SetupConfig, [word for name, word in pairs if name in own])
    if asked.stage not in (*STAGES, "all"):
        raise UserError(f"stage={asked.stage}: no such stage; there are a, b, c and all")
    classes = STAGES if asked.stage == "all" else {asked.stage: STAGES[asked.stage]}
    knows = {s: {f.name for f in fields(cls)} | NO_EFFECT[cls].keys() | ALIASES.keys() for s, cls in classes.items()}
    rest = [(name, word) for name, word in pairs if name not in own]
    nobody = {name for name, _ in rest} - set().union(*knows.values())
    mine = {stage: [word for name, word in rest if name in knows[stage] | nobody] for stage in classes}
    return asked, {stage: from_cli(cls, mine[stage]) for stage, cls in classes.items()}


def main() -> None:
    with redirect_stdout(sys.stderr):
        asked, configs = read_arguments(sys.argv[1:])
    reports = [told.Report(stage, cfg, asked) for stage, cfg in configs.items()]
    for r in reports:
        with redirect_stdout(sys.stderr):
            {"a": check_pretraining, "b": check_finetuning, "c": check_sampling}[r.stage](r.cfg, r)
        if not asked.json:
            told.show(r)
    ready = all(r.ready for r in reports)
    if asked.json:
        stages = {r.stage: {"ready": r.ready, "findings": r.findings, "plan": r.plan} for r in reports}
        print(json.dumps({"ready": ready, "stages": stages}, indent=1))
    sys.exit(0 if ready else 1)
