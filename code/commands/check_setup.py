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
import sys
from contextlib import redirect_stdout
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch

import commands.setup.report as told
import runtime.memory as memory_plan
import stageA1_eeg_pretrain as stage_a
import training_inputs as stage_b
from config import ALIASES, NO_EFFECT, FinetuneConfig, GenerateConfig, PretrainConfig, from_cli
from data.signals import mapped, spans_of
from data.stimuli import about_pictures, leave_out_missing
from dataset import EEGWindows, open_trials
from dc_ldm import weights
from dc_ldm.generator import check_sampler, load_generator
from dc_ldm.published import about_stage_b
from evaluation import inputs as stage_c
from evaluation.controls import make_controls
from runtime.devices import about_device, pick_device, pick_dtype
from runtime.errors import UserError
from runtime.file_kinds import PUBLISHED_B, file_kind
from runtime.findings import Findings
from runtime.memory import MemoryPlan
from runtime.paths import file_or_name
from runtime.runs import look_at_folder, run_config
from sc_mbm.mae_for_eeg import EEGEncoder
from sc_mbm.trainer import MaskedPretraining, plan_pretraining
from vision.classifier import load_classifier
from vision.clip_files import look_at_clip

STAGES = {"a": PretrainConfig, "b": FinetuneConfig, "c": GenerateConfig}


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
    r.plan = asdict(plan_pretraining(cfg))
    check_place(r, "eeg_pretrain", run_config(cfg))
    if windows and r.asked.plan and r.ready:
        r.plan["time"] = told.time_training(MaskedPretraining.of(cfg, 1), windows, cfg, cfg.accum_iter)


def check_finetuning(cfg: FinetuneConfig, r: told.Report) -> None:
    """Stage B: settings, stage A's encoder, trials, pictures, Stable Diffusion, CLIP; opened as the stage does."""
    findings = Findings(keep_going=True, later=("stage A checkpoint",) if r.asked.stage == "all" else ())
    findings.open("settings", lambda: stage_b.check(cfg), lambda _: "understood")
    inputs = stage_b.open_inputs(cfg, findings)
    r.take(finding for finding in findings.findings if finding.subject not in ("device", "plan"))
    r.plan = asdict(inputs.plan) if inputs.plan else {}
    check_place(r, "generation", run_config(cfg))
    if inputs.trials and r.asked.plan and r.ready:
        encoder = inputs.stage_a.sizes if inputs.stage_a else stage_b.untrained_sizes(cfg)
        base = weights.look_at_base(r.path(cfg.pretrain_gm_path), whole=False)
        clip = look_at_clip(file_or_name(cfg.root_path, cfg.clip), Findings(keep_going=True))
        r.plan["time"] = told.time_finetuning(cfg, inputs.trials["train"].eeg, encoder, base, clip[0])


def check_sampling(cfg: GenerateConfig, r: told.Report) -> None:
    """Stage C: stage B's checkpoint, trials, pictures, Stable Diffusion, CLIP, classifier."""
    path, base = r.path(cfg.model_path or f"pretrains/generation/{cfg.name}.pth"), r.path(cfg.pretrain_gm_path)
    r.see("settings", lambda: (check_sampler(cfg.sampler, cfg.ddim_steps), "understood"))
    clip, local, generator, model = check_clip(cfg, r), r.path(cfg.classifier), None, None
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
    trials = check_trials(cfg, r, ("test",), model["config"]["encoder"] if model else {"n_chans": 128, "n_times": 512})
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
    """As `leave_out_missing`, in words as well."""
    kept, lines = leave_out_missing(trials, root, allow_missing)
    return kept, "; ".join([about_pictures(trials, root), *map(str.strip, lines)])


def check_base(cfg: Any, r: told.Report) -> weights.BaseSizes | None:
    """Stable Diffusion, whose file must have the tensors that config15.yaml describes."""
    folder, names = r.path(cfg.pretrain_gm_path), (*weights.BASE_NAMES, "config15.yaml")
    read = lambda: (weights.look_at_base(folder, whole=True), "as config15.yaml describes it")  # noqa: E731
    return r.see("Stable Diffusion", read, [folder / "models" / name for name in names])


def check_clip(cfg: Any, r: told.Report) -> tuple[int, int]:
    """Width of CLIP's space and its parameters, from its folder or the hub's cache."""
    findings = Findings(keep_going=True)
    facts = look_at_clip(file_or_name(cfg.root_path, cfg.clip), findings)
    r.take(findings.findings)
    return facts


def check_place(r: told.Report, kind: str, config: dict | None) -> None:
    """Device; whether the run's folder is free for it and can be written; whether the disk holds its checkpoints."""
    plan = MemoryPlan(**{f.name: r.plan[f.name] for f in fields(MemoryPlan)}) if r.plan else None

    def device() -> tuple[None, str]:
        chosen = pick_device(r.cfg.device)
        installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if chosen.type == "cuda":
            installed = torch.cuda.get_device_properties(chosen.index or 0).total_memory
        there = 1e9 * r.asked.memory or installed
        if plan and plan.total > there:
            advice = f"{memory_plan.smaller(r.cfg, plan, there)} (estimate)"
            r.add("memory", "note", f"{plan.total / 1e9:.1f} GB will not fit in {there / 1e9:.1f} GB; {advice}")
        return None, about_device(chosen)

    r.see("device", device)
    r.see("run folder", lambda: (None, look_at_folder(r.cfg, kind, config, plan)))


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
