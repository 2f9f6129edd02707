"""What run.py check_setup tells: its findings, in words, and how long a run will take, from a few real steps."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from config import FinetuneConfig, GenerateConfig, setting
from dc_ldm.generator import EEGImageGenerator
from dc_ldm.ldm_for_eeg import LatentTrials
from dc_ldm.weights import TIME_CONDITION, BaseSizes
from runtime import checkpoints
from runtime.devices import free_memory, pick_device, pick_dtype
from runtime.draws import StepBatches, steps_per_epoch
from runtime.file_kinds import UNKNOWN, file_kind
from runtime.findings import WRONG, Finding, Findings
from runtime.loop import Trainer
from runtime.memory import ESTIMATED, count
from runtime.paths import under_root
from runtime.sampling import Sampling
from training_inputs import new_module
from vision.clip import OPEN_CLIP

PROBE_STEPS, PROBE_SECONDS = 20, 60
UNITS = {"parameters": (1e6, "million"), "memory": (1e9, "GB"), "time": (1, "")}
LARGE = 1 << 30  # bytes; above it a file is read to its end only on demand
IMAGENET_EEG = "eeg_5_95_std.pth and block_splits_by_image_single.pth: github.com/perceivelab/eeg_visual_classification"
# what to get, and the names that the published README, its forks and browsers give to what belongs elsewhere
GET = {
    "recordings": ("unlabelled EEG as .npy; code/run.py prepare_eeg makes it of recordings", "mne_data eeg_train"),
    "trials": (IMAGENET_EEG, "eeg_5_95_std.pth block_splits_by_image_*.pth"),
    "pictures": ("the 1,996 ImageNet pictures shown, <wnid>/<wnid>_<n>.JPEG; ImageNet's own train folder fits", ""),
    "stage A checkpoint": ("code/stageA1_eeg_pretrain.py makes it, or set pretrain_mbm_path=", "checkpoint*.pth"),
    "stage B checkpoint": ("code/eeg_ldm.py makes it, or set model_path=", "checkpoint*.pth"),
    "Stable Diffusion": (
        "v1-5-pruned.safetensors or .ckpt (7.7 GB, not emaonly): hub, stable-diffusion-v1-5/stable-diffusion-v1-5",
        "v1-5-pruned* config15.yaml config.yaml v1-inference.yaml",
    ),
    "CLIP": ("`hf download openai/clip-vit-large-patch14`; online, the stage does so itself (1.7 GB)", ""),
    "classifier": ("torchvision's vit_h_14_swag-80465313.pth (2.5 GB)", "vit_h_14*.pth"),
}
MINIATURE = dict.fromkeys(("recordings", "trials", "pictures"), "code/run.py simulate_eeg makes it")
MINIATURE |= dict.fromkeys(("Stable Diffusion", "CLIP", "classifier"), "git checkout -- pretrains/miniature")

sha256 = cache(checkpoints.sha256)


@dataclass
class SetupConfig:
    """Check what a stage needs, with the settings that the stage itself will get."""

    stage: str = setting("all", "a, b, c or all")
    plan: bool = setting(False, "also tell parameters, memory by part, and the time, from up to 20 real steps")
    hash: bool = setting(False, "also hash files above 1 GiB, and read every file of a large corpus")
    memory: float = setting(0.0, "GB that the stage may take; 0: the GPU's, or the machine's")
    json: bool = setting(False, "print one JSON object instead of text")


class Report:
    """What was found for one stage: findings, each with its state, and the plan.

    States: ok; note (the stage can start); later (the stage before makes it); WRONG.
    """

    def __init__(self, stage: str, cfg: Any, asked: SetupConfig) -> None:
        self.stage, self.cfg, self.asked = stage, cfg, asked
        self.findings: list[dict] = []
        self.plan: dict = {}

    @property
    def ready(self) -> bool:
        """Whether the stage can start."""
        return all(finding["state"] != "WRONG" for finding in self.findings)

    def path(self, text: str) -> Path:
        """A path of the stage's settings."""
        return under_root(self.cfg.root_path, text)

    def add(self, what: str, state: str, about: str, paths: Sequence[Path] = (), get: str = "") -> None:
        """Note a finding; of `paths` those that are files are listed with size, sha256 and kind."""
        files = []
        for path in filter(Path.is_file, paths):
            size = path.stat().st_size
            digest = sha256(path) if size < LARGE or self.asked.hash else None
            files.append({"path": str(path), "bytes": size, "sha256": digest, "kind": file_kind(path)})
        self.findings.append({"what": what, "state": state, "about": about, "files": files, "get": get})

    def see(self, what: str, check: Callable[[], tuple[Any, str]], paths: Sequence[Path] = ()) -> Any:
        """Run one of the stage's own checks, whose UserError is then the finding. Returns its value, or None."""
        findings = Findings(keep_going=True)
        pair = findings.open(what, check, lambda pair: pair[1], paths)
        self.take(findings.findings)
        return pair and pair[0]

    def take(self, findings: Iterable[Finding]) -> None:
        """Keep the stage's own findings; of those that are WRONG also where to get the file, and what may be it."""
        for finding in findings:
            what, paths, get = finding.subject, finding.paths, ""
            if finding.state == WRONG:
                get, names = GET.get(what, ("", ""))
                if "miniature" in self.cfg.preset:
                    get = MINIATURE.get(what, get)
            self.add(what, finding.state, finding.message, paths, get)
            if finding.state == WRONG:
                self.guess(what, paths, [path.name for path in paths if not path.exists()] + names.split())

    def guess(self, what: str, paths: Sequence[Path], wanted: list[str]) -> None:
        """Note files elsewhere whose names are like the wanted ones."""
        for pattern in ("*/*", "*/*/*", "pretrains/*/*/*"):
            for path in set(self.path("").glob(pattern)) - set(paths):
                if "miniature" not in path.parts and any(fnmatch(path.name.lower(), name) for name in wanted):
                    self.add(what, "note", f"{path} ({file_kind(path)}) may be it; move it, or name it in a setting")

    def comes_later(self, what: str, path: Path, given: str) -> bool:
        """Whether an earlier stage will make `path`, all stages being asked for."""
        later = self.asked.stage == "all" and not given and not path.exists()
        if later:
            self.add(what, "later", f"{path}: the stage before puts it there")
        return later


def show(r: Report) -> None:
    """The report in words."""
    print(f"\nStage {r.stage.upper()}, name={r.cfg.name}, below {r.path('').resolve()}")
    for finding in r.findings:
        print(f"  {finding['state']:5}  {finding['what']}: {finding['about']}")
        for file in finding["files"]:
            digest = f"sha256 {file['sha256'][:12]}..." if file["sha256"] else "not hashed (hash=true does)"
            kind = "" if file["kind"] == UNKNOWN else f", {file['kind']}"
            print(f"           {file['path']}: {file['bytes']:,} bytes, {digest}{kind}")
        if finding["get"]:
            print(f"         get: {finding['get']}")
    if r.plan:
        print(f"  memory: about {sum(r.plan['memory'].values()) / 1e9:.1f} GB, estimated beforehand")
    for section, (unit, name) in UNITS.items() if r.asked.plan else ():
        for what, value in r.plan.get(section, {}).items():
            print(f"    {section:11} {what:36} {value / unit:10,.4g} {name}")
    if r.asked.plan and "time" not in r.plan:
        print("    time: told from real steps, once all is in place (of a corpus above 1 GiB with hash=true)")
    wrong = sum(finding["state"] == "WRONG" for finding in r.findings)
    print(f"Stage {r.stage.upper()} {'can start' if r.ready else f'cannot start; look for WRONG ({wrong}) above'}")


def time_training(module: Any, items: Any, cfg: Any, accumulate: int) -> dict:
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


def time_finetuning(cfg: FinetuneConfig, eeg: Tensor, encoder: dict, sizes: BaseSizes, clip_dim: int) -> dict:
    """As `time_training`, with random weights and pictures, which take as long as real ones; eeg (N, C, T)."""
    moments = torch.rand(1, 1 + cfg.n_crops, 2, *sizes.latent_shape(cfg.img_size))
    picture = torch.zeros(len(eeg), dtype=torch.int64)
    items = LatentTrials(eeg, picture, moments, torch.ones(1, clip_dim), sizes.scale_factor, cfg.cond_drop, cfg.seed)
    module = new_module(cfg, encoder, sizes, clip_dim)
    if pick_dtype(cfg.precision, cfg.device) == torch.bfloat16:
        module.halve_frozen()
    return time_training(module, items, cfg, cfg.accumulate_grad)


def time_sampling(cfg: GenerateConfig, generator: EEGImageGenerator, eeg: Tensor) -> dict:
    """Hours of drawing all pictures, controls too, from 12 sampling steps of one batch; eeg (N, C, T) of the test."""
    batch_size = cfg.batch_size or generator.fitting_batch(Sampling.of(cfg))
    some, seconds = eeg[torch.arange(batch_size) % len(eeg)], []
    for steps in (2, 2, 8):  # the first warms up
        started = time.perf_counter()
        generator.generate(some, torch.arange(len(some)), Sampling("ddim", steps, cfg.guidance, batch_size))
        seconds.append(time.perf_counter() - started)
    step = (seconds[2] - seconds[1]) / 6
    pictures = len(eeg) * (cfg.num_samples + {"none": 0, "basic": 2}.get(cfg.controls, 8))
    batches = -(-pictures // batch_size)
    hours = batches * (seconds[1] + (cfg.ddim_steps - 2) * step) / 3600
    return {"seconds a step of a batch": step, "pictures": pictures, "hours": hours}


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
    batch_size = cfg.batch_size or generator.fitting_batch(Sampling.of(cfg), free)
    needed = generator.memory(batch_size, cfg.guidance)
    plan = {"weights": weights, ESTIMATED: needed}
    return {"parameters": counts, "memory": plan, "batch_size": batch_size}
