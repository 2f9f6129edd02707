"""Is everything in place for a stage? What is there, what is wrong, what to get, and where to put it.

python code/run.py check_setup stage=b                           # with the settings that the stage itself will get
python code/run.py check_setup stage=all preset=miniature        # all three; what an earlier stage makes may be missing
python code/run.py check_setup stage=a --plan                    # also parameters, memory, and time from real steps
python code/run.py check_setup stage=b memory=12 --plan          # which batch fits in 12 GB
python code/run.py check_setup stage=c --json                    # one JSON object and nothing else
The stage's own code opens its inputs, as with dry_run=true. Exit status: 0 the stage can start, 1 it cannot, 2 wrong
arguments. Nothing is downloaded, and nothing written but the cache of the trials, which the stages need as well.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, field, fields
from fnmatch import fnmatch
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from omegaconf import OmegaConf
from torch import nn

import training_inputs
from config import ALIASES, NO_EFFECT, FinetuneConfig, GenerateConfig, PretrainConfig, from_cli, setting
from dc_ldm import weights
from dc_ldm.generator import EEGImageGenerator, check_sampler
from dc_ldm.ldm_for_eeg import LatentTrials
from evaluation import inputs as stage_c
from evaluation.controls import look_ahead
from generate import load_generator
from runtime import digests
from runtime.devices import free_memory, installed_memory, pick_device, pick_dtype
from runtime.draws import StepBatches, steps_per_epoch
from runtime.file_kinds import PUBLISHED_B, UNKNOWN, file_kind
from runtime.findings import LATER, NOTE, WRONG, Finding, Findings
from runtime.loop import Trainer
from runtime.memory import ESTIMATED, MemoryPlan, count, smaller
from runtime.paths import file_or_name, under_root
from runtime.runs import look_at_folder, run_config
from runtime.sampling import Sampling
from sc_mbm.trainer import MaskedPretraining
from sc_mbm.trainer import check as check_pretraining
from vision.clip import OPEN_CLIP
from vision.clip_files import look_at_clip

PROBE_STEPS, PROBE_SECONDS = 20, 60
UNITS = {"parameters": (1e6, "million"), "memory": (1e9, "GB"), "time": (1, "")}
LARGE = 1 << 30  # bytes; above it a file is hashed only on demand
REMEDIES = OmegaConf.to_container(OmegaConf.load(Path(__file__).with_suffix(".yaml")))

sha256 = cache(digests.sha256)


@dataclass
class SetupConfig:
    """Check what a stage needs, with the settings that the stage itself will get."""

    stage: Literal["all", "a", "b", "c"] = setting("all", "which")
    plan: bool = setting(False, "also tell parameters, memory by part, and the time, from up to 20 real steps")
    hash: bool = setting(False, "also hash files above 1 GiB")
    memory: float = setting(0.0, "GB that the stage may take; 0: the GPU's, or the machine's", least=0)
    json: bool = setting(False, "print one JSON object instead of text")


@dataclass
class Opened:
    """How a stage's inputs open, and what its run will take."""

    cfg: Any
    findings: Findings
    plan: MemoryPlan | None = None
    config: dict | None = None  # what makes the run what it is, as far as its inputs tell
    time: Callable[[], dict] | None = None  # measures real steps
    hours: dict = field(default_factory=dict)


def open_pretraining(cfg: PretrainConfig, findings: Findings, memory: float) -> Opened:
    """Stage A, by its own code."""
    inputs = training_inputs.open_pretraining(cfg, findings)

    def measure() -> dict:
        return time_training(MaskedPretraining.of(cfg, 1), inputs.windows, cfg, cfg.accum_iter)

    return Opened(cfg, findings, inputs.plan, run_config(cfg), measure)


def open_finetuning(cfg: FinetuneConfig, findings: Findings, memory: float) -> Opened:
    """Stage B, by its own code."""
    inputs = training_inputs.open_finetuning(cfg, findings)

    def measure() -> dict:
        """With random weights and pictures, which take as long as real ones."""
        base = weights.look_at_base(under_root(cfg.root_path, cfg.pretrain_gm_path), whole=False)
        encoder = inputs.stage_a.sizes if inputs.stage_a else training_inputs.untrained_sizes(cfg)
        clip_dim, eeg = clip_facts(cfg)[0], inputs.trials["train"].eeg
        moments = torch.rand(1, 1 + cfg.n_crops, 2, *base.latent_shape(cfg.img_size))
        picture, targets = torch.zeros(len(eeg), dtype=torch.int64), torch.ones(1, clip_dim)
        items = LatentTrials(eeg, picture, moments, targets, base.scale_factor, cfg.cond_drop, cfg.seed)
        module = training_inputs.untrained(cfg, encoder, base, clip_dim)
        if pick_dtype(cfg.precision, cfg.device) == torch.bfloat16:
            module.halve_frozen()
        return time_training(module, items, cfg, cfg.accumulate_grad)

    return Opened(cfg, findings, inputs.plan, run_config(cfg), measure)


def open_sampling(cfg: GenerateConfig, findings: Findings, memory: float) -> Opened:
    """Stage C, by its own code; Stable Diffusion apart, so that it is seen before there is a checkpoint."""
    paths = stage_c.paths_of(cfg)
    if file_kind(paths.model) != PUBLISHED_B:  # which carries its own
        files = [paths.stable_diffusion / "models" / name for name in (*weights.BASE_NAMES, "config15.yaml")]
        look = lambda: weights.look_at_base(paths.stable_diffusion, whole=True)  # noqa: E731
        findings.open("Stable Diffusion", look, lambda _: "as config15.yaml describes it", files)
    inputs = stage_c.open_inputs(cfg, paths, load_generator, findings)
    look_ahead(inputs, findings)
    opened = Opened(cfg, findings)
    if inputs.generator:
        if isinstance(inputs.generator, EEGImageGenerator):  # of another system's memory nothing is known
            opened.plan = plan_sampling(cfg, inputs, memory)
        if inputs.trials:
            opened.config = stage_c.identity(cfg) | stage_c.input_hashes(paths)
            opened.time = lambda: time_sampling(cfg, inputs)
    return opened


class Stage(NamedTuple):
    """How a stage is called and opened."""

    config: type
    check: Callable[[Any], None]  # refuses settings that make no sense together
    open: Callable[[Any, Findings, float], Opened]
    folder: str  # below results/
    earlier: tuple[str, ...] = ()  # what an earlier stage makes


STAGES = {
    "a": Stage(PretrainConfig, check_pretraining, open_pretraining, "eeg_pretrain"),
    "b": Stage(
        FinetuneConfig, training_inputs.check_finetuning, open_finetuning, "generation", ("stage A checkpoint",)
    ),
    "c": Stage(
        GenerateConfig,
        lambda cfg: check_sampler(cfg.sampler, cfg.ddim_steps),
        open_sampling,
        "eval",
        ("stage B checkpoint",),
    ),
}


def clip_facts(cfg: Any) -> tuple[int, int]:
    """Width of CLIP's space and its parameters, from its files."""
    return look_at_clip(file_or_name(cfg.root_path, cfg.clip), Findings(keep_going=True))


def plan_sampling(cfg: GenerateConfig, inputs: stage_c.Inputs, memory: float) -> MemoryPlan:
    """Parameters and memory of stage C in `memory` bytes (0: as many as are free).

    Pictures by class name, of controls=all, are drawn by a second, untouched UNet with its VAE.
    """
    system: EEGImageGenerator = inputs.generator
    parts = {"conditioner": system.conditioner, "unet": system.unet, "vae": system.vae}
    judge = inputs.classifier
    others = {"clip, frozen": clip_facts(cfg)[1]}
    others["classifier, frozen"] = sum(p.numel() for p in judge.features.parameters()) if judge else 0
    counts = count(**parts) | others
    held = sum(p.nbytes for part in parts.values() for p in part.parameters()) + 4 * sum(others.values())
    if cfg.controls == "all" and judge and not cfg.clip.startswith(OPEN_CLIP):
        weight = {name: p for name, p in system.unet.named_parameters() if not name.startswith(weights.TIME_CONDITION)}
        second = [*weight.values(), *system.vae.parameters()]
        counts["unet and vae of the controls, frozen"] = sum(p.numel() for p in second)
        held += sum(p.nbytes for p in second)
    free = (memory or free_memory(inputs.device)) - held  # the stage asks once its networks are there
    batch_size = cfg.batch_size or system.fitting_batch(Sampling.of(cfg), free)
    return MemoryPlan(counts, {"weights": held, ESTIMATED: system.memory(batch_size, cfg.guidance)}, batch_size)


def time_training(module: nn.Module, items: Any, cfg: Any, accumulate: int) -> dict:
    """Hours of the run, from the median of up to PROBE_STEPS real steps in PROBE_SECONDS, validation left aside."""
    seconds: list[float] = []
    trainer = Trainer(module, module.configure_optimizers(), cfg.device, cfg.precision, clip_grad=cfg.clip_grad)
    for batch in StepBatches(len(items), cfg.batch_size, cfg.seed, 0, PROBE_STEPS):
        started = time.perf_counter()
        trainer.step(cfg.lr, [(batch, items[batch])])
        seconds.append(time.perf_counter() - started)
        if len(seconds) > 2 and sum(seconds) > PROBE_SECONDS:
            break
    step = sorted(seconds[1:])[len(seconds[1:]) // 2] * accumulate
    steps = cfg.num_epoch * steps_per_epoch(len(items), cfg.batch_size, accumulate)
    hours = steps * step / 3600
    return {"steps tried": len(seconds), "seconds a step": step, "steps of the run": steps, "hours": hours}


def time_sampling(cfg: GenerateConfig, inputs: stage_c.Inputs) -> dict:
    """Hours of drawing all pictures, controls too, from 12 sampling steps of one batch."""
    system, eeg = inputs.generator, inputs.test.eeg
    batch_size = cfg.batch_size or system.fitting_batch(Sampling.of(cfg))
    some, seconds = eeg[torch.arange(batch_size) % len(eeg)], []
    for steps in (2, 2, 8):  # the first warms up
        started = time.perf_counter()
        system.generate(some, torch.arange(len(some)), Sampling("ddim", steps, cfg.guidance, batch_size))
        seconds.append(time.perf_counter() - started)
    step = (seconds[2] - seconds[1]) / 6
    pictures = len(eeg) * (cfg.num_samples + {"none": 0, "basic": 2}.get(cfg.controls, 8))
    hours = -(-pictures // batch_size) * (seconds[1] + (cfg.ddim_steps - 2) * step) / 3600
    return {"seconds a step of a batch": step, "pictures": pictures, "hours": hours}


def check(stage: str, cfg: Any, asked: SetupConfig) -> Opened:
    """Open a stage's inputs, look at its folder and at the memory, and measure its time if that is asked for."""
    findings = Findings(keep_going=True, later=STAGES[stage].earlier if asked.stage == "all" else ())
    findings.open("settings", lambda: STAGES[stage].check(cfg), lambda _: "understood")
    opened = STAGES[stage].open(cfg, findings, 1e9 * asked.memory)
    plan = opened.plan
    room = 1e9 * asked.memory or (plan and installed_memory(pick_device(cfg.device)))
    told = any(f.subject == "memory" and f.state == WRONG for f in findings.findings)
    if plan and plan.total > room and not told:
        advice = f"{smaller(cfg, plan, room)} (estimate)"
        findings.add("memory", NOTE, f"{plan.total / 1e9:.1f} GB will not fit in {room / 1e9:.1f} GB; {advice}")
    files = {"a": training_inputs.pretraining_files, "b": training_inputs.finetuning_files}
    place = STAGES[stage].folder, opened.config, plan, files.get(stage, stage_c.evaluation_files)
    findings.open("run folder", lambda: look_at_folder(cfg, *place), str)
    if opened.time and asked.plan and findings.ready and not any(f.state == LATER for f in findings.findings):
        opened.hours = opened.time()
    return opened


def described(finding: Finding, opened: Opened, asked: SetupConfig) -> list[dict]:
    """A finding as it is printed: its files with size, sha256 and kind; of a wrong one what to get, what may be it."""
    files = []
    for path in filter(Path.is_file, finding.paths):
        size = path.stat().st_size
        digest = sha256(path) if size < LARGE or asked.hash else None
        files.append({"path": str(path), "bytes": size, "sha256": digest, "kind": file_kind(path)})
    row = {"what": finding.subject, "state": finding.state, "about": finding.message, "files": files, "get": ""}
    if finding.state != WRONG:
        return [row]
    remedy = {"get": "", "names": []} | REMEDIES.get(finding.subject, {})
    row["get"] = remedy.get("miniature", remedy["get"]) if "miniature" in opened.cfg.preset else remedy["get"]
    wanted, guesses = [path.name for path in finding.paths if not path.exists()] + remedy["names"], []
    for pattern in ("*/*", "*/*/*", "pretrains/*/*/*"):
        for path in set(under_root(opened.cfg.root_path, "").glob(pattern)) - set(finding.paths):
            if "miniature" not in path.parts and any(fnmatch(path.name.lower(), name) for name in wanted):
                message = f"{path} ({file_kind(path)}) may be it; move it, or name it in a setting"
                guesses.append(row | {"state": NOTE, "about": message, "files": [], "get": ""})
    return [row, *guesses]


def show(stage: str, opened: Opened, rows: list[dict], asked: SetupConfig) -> None:
    """The findings and the plan in words."""
    print(f"\nStage {stage.upper()}, name={opened.cfg.name}, below {under_root(opened.cfg.root_path, '').resolve()}")
    for row in rows:
        print(f"  {row['state']:5}  {row['what']}: {row['about']}")
        for file in row["files"]:
            digest = f"sha256 {file['sha256'][:12]}..." if file["sha256"] else "not hashed (hash=true does)"
            kind = "" if file["kind"] == UNKNOWN else f", {file['kind']}"
            print(f"           {file['path']}: {file['bytes']:,} bytes, {digest}{kind}")
        if row["get"]:
            print(f"         get: {row['get']}")
    if opened.plan:
        print(f"  memory: {opened.plan}")
    for section, (unit, name) in UNITS.items() if asked.plan else ():
        for part, value in plan_of(opened).get(section, {}).items():
            print(f"    {section:11} {part:36} {value / unit:10,.4g} {name}")
    if asked.plan and not opened.hours:
        print("    time: told from real steps, once all is in place")
    wrong = sum(row["state"] == WRONG for row in rows)
    print(f"Stage {stage.upper()} {'can start' if not wrong else f'cannot start; look for WRONG ({wrong}) above'}")


def plan_of(opened: Opened) -> dict:
    """Parameters, memory and time as plain values."""
    return (asdict(opened.plan) if opened.plan else {}) | ({"time": opened.hours} if opened.hours else {})


def read_arguments(argv: list[str]) -> tuple[SetupConfig, dict[str, Any]]:
    """Our own settings, and the asked stages' from the rest; of all three stages, each takes what it knows."""
    words, pairs = iter(argv), []
    for word in words:
        name = word.removeprefix("--").partition("=")[0]
        if word in ("--plan", "--hash", "--json"):
            word = f"{name}=true"
        elif word.startswith("--") and "=" not in word:
            word = "=".join([word, *islice(words, 1)])
        pairs.append((name, word))
    ours = {f.name for f in fields(SetupConfig)} | {"-h", "help"}
    asked = from_cli(SetupConfig, [word for name, word in pairs if name in ours])
    kinds = {stage: STAGES[stage].config for stage in (STAGES if asked.stage == "all" else [asked.stage])}
    knows = {s: {f.name for f in fields(kind)} | NO_EFFECT[kind].keys() | ALIASES.keys() for s, kind in kinds.items()}
    elsewhere = {s: ours.union(*knows.values()) - knows[s] for s in kinds}  # what nobody knows, each stage refuses
    words_of = {s: [word for name, word in pairs if name not in elsewhere[s]] for s in kinds}
    return asked, {stage: from_cli(kind, words_of[stage]) for stage, kind in kinds.items()}


def main() -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    stages = {}
    with redirect_stdout(sys.stderr):
        asked, configs = read_arguments(sys.argv[1:])
    for stage, cfg in configs.items():
        with redirect_stdout(sys.stderr):
            opened = check(stage, cfg, asked)
            rows = [row for finding in opened.findings.findings for row in described(finding, opened, asked)]
        if not asked.json:
            show(stage, opened, rows, asked)
        stages[stage] = {"ready": opened.findings.ready, "findings": rows, "plan": plan_of(opened)}
    ready = all(stage["ready"] for stage in stages.values())
    if asked.json:
        print(json.dumps({"ready": ready, "stages": stages}, indent=1))
    sys.exit(0 if ready else 1)
