"""Is everything in place for a stage? What is there, what is wrong, what to get, and where to put it.

python code/check_setup.py stage=b                           # with the settings that the stage itself will get
python code/check_setup.py stage=all preset=miniature        # all three; what an earlier stage makes may be missing
python code/check_setup.py stage=a --plan                    # also parameters, memory, and time from real steps
python code/check_setup.py stage=c --json                    # one JSON object and nothing else
Exit status: 0 the stage can start, 1 it cannot, 2 wrong arguments. Nothing is downloaded and nothing kept.
"""

import io
import json
import os
import re
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, field, fields
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

import eeg_ldm as stage_b
import gen_eval_eeg as stage_c
import setup_plan as plans
import stageA1_eeg_pretrain as stage_a
from config import ALIASES, NO_EFFECT, FinetuneConfig, GenerateConfig, PretrainConfig, from_cli, setting, under_root
from dataset import EEGWindows, open_trials
from dc_ldm import weights
from dc_ldm.models.autoencoder import AutoencoderKL
from dc_ldm.models.unet import UNet
from eeg_signals import mapped, spans_of
from runtime import checkpoints
from runtime.errors import UserError, cli
from runtime.loop import pick_device, pick_precision
from runtime.runs import Run, begun, check_hand_on
from scorers import load_classifier
from stimuli import KNOWN_CORRUPT, image_path, leave_out_missing, readable

STAGES = {"a": PretrainConfig, "b": FinetuneConfig, "c": GenerateConfig}
LARGE = 1 << 30  # bytes; above it a file is read to its end only on demand
CLIP_FILES = ("config.json", "preprocessor_config.json", "model.safetensors")
GET = {
    "recordings": "unlabelled EEG as .npy files; `python code/prepare_eeg.py` makes them of your recordings",
    "trials": "eeg_5_95_std.pth and block_splits_by_image_single.pth of perceivelab/eeg_visual_classification (GitHub)",
    "pictures": "the 1,996 pictures of ImageNet that were shown, as <wnid>/<wnid>_<number>.JPEG; its train folder fits",
    "stage A": "`python code/stageA1_eeg_pretrain.py` makes it; or name one with pretrain_mbm_path=",
    "stage B": "`python code/eeg_ldm.py` makes it; or name one with model_path=",
    "base": "v1-5-pruned.safetensors or .ckpt (7.7 GB; not emaonly) of stable-diffusion-v1-5/stable-diffusion-v1-5 on "
    "the Hugging Face hub, and config15.yaml of DreamDiffusion's files",
    "clip": "`hf download openai/clip-vit-large-patch14`, or the stage itself loads it (1.7 GB) where the hub answers",
    "classifier": "vit_h_14_swag-80465313.pth of torchvision (2.5 GB)",
}  # fmt: skip
MINIATURE = dict.fromkeys(("recordings", "trials", "pictures"), "`python code/simulate_eeg.py` makes it")
MINIATURE |= dict.fromkeys(("base", "clip", "classifier"), "`git checkout -- pretrains/miniature` puts it back")
# what the published README, its forks and browsers call a file or folder that we look for under another name
OTHER_NAMES = {
    "recordings": ("mne_data", "eeg_train"),
    "trials": ("eeg_5_95_std.pth", "block_splits_by_image_*.pth"),
    "base": ("v1-5-pruned.*", "v1-5-pruned-emaonly.*", "config15.yaml", "config.yaml"),
    "stage A": ("checkpoint*.pth",),
    "stage B": ("checkpoint*.pth",),
}


@dataclass
class SetupConfig:
    """Check what a stage needs, with the settings that the stage itself will get."""

    stage: str = setting("all", "a, b, c or all")
    plan: bool = setting(False, "also tell parameters, memory by part, and the time, from up to 20 real steps")
    hash: bool = setting(False, "also hash files above 1 GiB, and read every file of a large corpus")
    json: bool = setting(False, "print one JSON object instead of text")


@dataclass
class Finding:
    """One thing that was looked at. state: ok, note (the stage can start), later (an earlier stage makes it), WRONG."""

    what: str
    state: str
    about: str
    files: list[dict] = field(default_factory=list)
    get: str = ""


class Report:
    """What was found for one stage."""

    def __init__(self, stage: str, cfg: Any, asked: SetupConfig) -> None:
        self.stage, self.cfg, self.asked = stage, cfg, asked
        self.findings: list[Finding] = []
        self.plan: dict = {}

    @property
    def ready(self) -> bool:
        """Whether the stage can start."""
        return all(finding.state != "WRONG" for finding in self.findings)

    def path(self, text: str) -> Path:
        """A path of the stage's settings."""
        return under_root(self.cfg.root_path, text)

    def note(self, what: str, about: str, state: str = "note") -> None:
        """Add a finding of its own."""
        self.findings.append(Finding(what, state, about))

    def see(self, what: str, check: Callable[[], tuple[Any, str]], paths: list[Path], key: str = "") -> Any:
        """Run one of the stage's own checks; its UserError is the finding. Returns the check's value or None."""
        try:
            with redirect_stdout(io.StringIO()), warnings.catch_warnings(action="ignore"):
                value, about = check()
        except UserError as error:
            get = GET | (MINIATURE if "miniature" in self.cfg.preset else {})
            self.findings.append(
                Finding(what, "WRONG", " ".join(str(error).split()), self.files(paths), get.get(key, ""))
            )
            for path in self.elsewhere(paths, key):
                self.note(what, f"{path} looks like it; move it, or name it in the settings")
            return None
        self.findings.append(Finding(what, "ok", about, self.files(paths)))
        return value

    def files(self, paths: list[Path]) -> list[dict]:
        """Size in bytes and sha256 (None above LARGE unless asked for) of those that are files."""
        sizes = {path: path.stat().st_size for path in paths if path.is_file()}
        return [
            {
                "path": str(path),
                "bytes": size,
                "sha256": checkpoints.sha256(path) if size < LARGE or self.asked.hash else None,
            }
            for path, size in sizes.items()
        ]

    def elsewhere(self, paths: list[Path], key: str) -> Iterator[Path]:
        """Files and folders under root_path that bear the name of something missing, or one often given to it."""
        names = {path.name for path in paths if not path.exists()} | set(OTHER_NAMES.get(key, ()))
        for folder, below, there in os.walk(self.path("")):
            depth = len(Path(folder).relative_to(self.path("")).parts)
            below[:] = [
                d for d in below if depth < 4 and not re.match(r"\.|n\d{8}$|miniature$|results$|code$|cache$", d)
            ]
            for name in there + below:
                path = Path(folder, name)
                if path not in paths and any(fnmatch(name.lower(), wanted.lower()) for wanted in names):
                    yield path


def check_pretraining(cfg: PretrainConfig, r: Report) -> None:
    """Stage A: recordings."""
    r.see("device", lambda: machine(cfg, pick_precision(cfg.precision, pick_device(cfg.device))), [])
    folder = r.path(cfg.eeg_path)

    def recordings() -> tuple[EEGWindows | None, str]:
        found = stage_a.eeg_folder(cfg)
        size = sum(path.stat().st_size for path in found.rglob("*.npy"))
        if size > LARGE and not r.asked.hash:
            paths = sorted(found.rglob("*.npy"))
            some = paths[:: -(-len(paths) // 50)]
            for path in paths:
                (spans_of if path in some else mapped)(path)
            return None, f"{len(paths)} files, {size / 1e9:.1f} GB in {found}; {len(some)} read (hash=true: all)"
        windows = EEGWindows(found, cfg.n_chans, cfg.n_times, cfg.eeg_scale, cfg.seed, cfg.held_out)
        return windows, f"{windows.n_recordings} files, {len(windows)} windows an epoch, in {found}"

    windows = r.see("recordings", recordings, [folder], "recordings")
    r.plan = plans.plan_pretraining(cfg)
    check_place(r, "eeg_pretrain", stage_a.run_config(cfg))
    if r.asked.plan and r.ready and windows:
        r.plan["time"] = plans.time_pretraining(cfg, windows)


def check_finetuning(cfg: FinetuneConfig, r: Report) -> None:
    """Stage B: stage A's encoder, trials, pictures, Stable Diffusion, CLIP."""
    r.see("settings", lambda: (stage_b.check(cfg), "understood"), [])
    r.see("device", lambda: machine(cfg, pick_precision(cfg.precision, pick_device(cfg.device))), [])
    sizes, scale = {name: getattr(cfg, f"encoder_{name}", None) for name in stage_b.ENCODER_SIZES}, 1.0
    sizes |= {"n_chans": 128, "n_times": 512, "patch_size": 4}
    path = r.path(cfg.pretrain_mbm_path or f"pretrains/eeg_pretrain/{cfg.name}.pth")
    if made_earlier(r, path, cfg.pretrain_mbm_path, "stage A checkpoint"):
        with torch.device("meta"):
            found = r.see("stage A checkpoint", lambda: (stage_b.stage_a(cfg), "holds an encoder"), [path], "stage A")
        _, sizes, scale = found or (None, sizes, scale)
    trials = check_trials(cfg, r, ("train", "val"), sizes, scale)
    base = check_base(cfg, r)
    clip_dim, clip_size = check_clip(cfg, r) or (768, 427_616_513)
    sizes_of_base = base or plans.PUBLISHED_BASE
    r.plan = plans.plan_finetuning(cfg, sizes, sizes_of_base, clip_dim, clip_size)
    check_place(r, "generation", stage_b.run_config(cfg))
    if r.asked.plan and r.ready and trials:
        r.plan["time"] = plans.time_finetuning(cfg, trials, sizes, sizes_of_base, clip_dim)


def check_sampling(cfg: GenerateConfig, r: Report) -> None:
    """Stage C: stage B's checkpoint, trials, pictures, Stable Diffusion, CLIP, classifier."""
    r.see("device", lambda: machine(cfg, "32-true"), [])
    path = r.path(cfg.model_path or f"pretrains/generation/{cfg.name}.pth")
    model = None
    if made_earlier(r, path, cfg.model_path, "stage B checkpoint"):
        read = lambda: (checkpoints.load(path, (weights.FORMAT,), "stage B checkpoint"), "a stage B checkpoint")
        model = r.see("stage B checkpoint", read, [path], "stage B")
    sizes = model["config"]["encoder"] if model else {"n_chans": 128, "n_times": 512}
    check_trials(cfg, r, ("test",), sizes, 1.0)
    check_base(cfg, r)
    check_clip(cfg, r)
    local = r.path(cfg.classifier)
    where = str(local) if local.exists() else cfg.classifier
    with torch.device("meta"):
        found = r.see(
            "classifier",
            lambda: (load_classifier(where, "meta"), "fits"),
            [local, local / "model.safetensors"],
            "classifier",
        )
    if found and found[1]:
        r.note("classifier", found[1])
    check_place(r, "eval", None)


def machine(cfg: Any, precision: str) -> tuple[torch.device, str]:
    """The device the stage will take, and what torch sees of the machine."""
    device = pick_device(cfg.device)
    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    seen = ", ".join(f"{gpu.name} {gpu.total_memory / 1e9:.0f} GB" for gpu in gpus) or "no GPU seen by torch"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return device, f"{device}, {precision}; torch {torch.__version__}, {seen}, {os.cpu_count()} cores, {memory:.0f} GB"


def made_earlier(r: Report, path: Path, given: str, what: str) -> bool:
    """Whether `path` is to be checked now: not where stage=all will make it, nor where `given` asks for none."""
    if r.asked.stage == "all" and not given and not path.exists():
        r.note(what, f"{path}: an earlier stage will put it there", "later")
        return False
    return given != "none"


def check_trials(cfg: Any, r: Report, splits: tuple[str, ...], sizes: dict, scale: float) -> dict | None:
    """EEG, splits, and the pictures that they need."""
    paths = [r.path(cfg.eeg_signals_path), r.path(cfg.splits_path)]

    def read() -> tuple[dict, str]:
        trials = open_trials(*paths, cfg.subject, splits, sizes["n_chans"], sizes["n_times"], scale)
        counts = ", ".join(
            f"{split} {len(part)} (+{part.info['left_out']} of odd length)" for split, part in trials.items()
        )
        return trials, f"subject {cfg.subject}: {counts}; indices count in {trials[splits[0]].info['index_space']}"

    trials = r.see("trials", read, paths, "trials")
    if trials is None:
        return None
    info = trials[splits[0]].info
    shared = {pair: n for pair, n in info["image_overlap"].items() if n}
    if shared:
        r.note("trials", f"splits share pictures ({shared}): they look like the splits of another file or subject")
    if not info["image_known"]:
        return trials
    root = r.path(cfg.imagenet_path)
    kept = r.see("pictures", lambda: look_at_pictures(trials, root, cfg.allow_missing), [root], "pictures")
    return kept


def look_at_pictures(trials: dict, root: Path, allow_missing: int) -> tuple[dict, str]:
    """As `leave_out_missing`; its error also names the missing classes and where the class folders lie instead."""
    names = sorted({name for part in trials.values() for name in part.names})
    wnids = sorted({name.split("_")[0] for name in names})
    try:
        kept, lines = leave_out_missing(trials, root, allow_missing)
    except UserError as error:
        gone = [wnid for wnid in wnids if not (root / wnid).is_dir()]
        message = (
            f"{error}; {len(gone)} of {len(wnids)} class folders are missing: {', '.join(gone)}" if gone else str(error)
        )
        for place in [root.parent, *root.parent.glob("*/"), *root.glob("*/")]:
            if gone and place != root and (place / gone[0]).is_dir():
                message += f"; {place} has them: set imagenet_path={place}"
        raise UserError(message) from error
    known = [name for name in sorted(KNOWN_CORRUPT) if image_path(root, name).exists()]
    lines += [
        f"{name}, corrupt in the copy handed around, {'is whole here' if readable(image_path(root, name)) else 'is'}"
        for name in known
    ]
    return kept, "; ".join([f"{len(names)} pictures of {len(wnids)} classes in {root}", *map(str.strip, lines)])


def check_base(cfg: Any, r: Report) -> weights.BaseSizes | None:
    """Stable Diffusion: its file has the tensors of the networks that config15.yaml describes."""
    folder = r.path(cfg.pretrain_gm_path)

    def read() -> tuple[weights.BaseSizes, str]:
        file, config = weights.base_files(folder)
        sizes, state = weights.read_sizes(config), weights.read_base(file)
        with torch.device("meta"):
            unet, vae = UNet(**sizes.unet, use_time_cond=False), AutoencoderKL(**sizes.vae)
        weights.load_strictly(unet, weights.part(state, weights.UNET_PREFIX), f"{file}: the UNet")
        weights.load_strictly(vae, weights.part(state, weights.VAE_PREFIX), f"{file}: the VAE")
        return sizes, "UNet and autoencoder fit config15.yaml"

    names = (*weights.BASE_NAMES, "config15.yaml")
    return r.see("Stable Diffusion", read, [folder / "models" / name for name in names], "base")


def check_clip(cfg: Any, r: Report) -> tuple[int, int] | None:
    """Width of CLIP's space and its parameters, from its folder or the hub's cache; nothing is downloaded."""
    from huggingface_hub import try_to_load_from_cache
    from transformers import CLIPConfig, CLIPModel

    own = r.path(cfg.clip)
    cached = {name: own / name if own.is_dir() else try_to_load_from_cache(cfg.clip, name) for name in CLIP_FILES}
    paths = [Path(place) for place in cached.values() if isinstance(place, (str, Path))]

    def read() -> tuple[tuple[int, int], str]:
        lacking = sorted(CLIP_FILES[i] for i in range(3) if CLIP_FILES[i] not in {p.name for p in paths if p.is_file()})
        if lacking:
            raise UserError(f"{cfg.clip}: {', '.join(lacking)} not found, as a folder or in the hub's cache")
        try:
            with safe_open(paths[2], "pt"):
                config = CLIPConfig.from_pretrained(paths[0].parent)
        except (SafetensorError, OSError, ValueError) as error:
            raise UserError(f"{paths[2]}: is truncated, or not CLIP's weights ({error})") from error
        with torch.device("meta"):
            size = sum(p.numel() for p in CLIPModel(config).parameters())
        return (config.projection_dim, size), f"{size / 1e6:.1f} M parameters, {config.projection_dim} wide"

    return r.see("CLIP", read, paths, "clip")


def check_place(r: Report, kind: str, config: dict | None) -> None:
    """Whether the run's folder is free for it, can be written, and the disk holds its checkpoints."""
    folder = r.path(f"results/{kind}/{r.cfg.name}")

    def free() -> tuple[None, str]:
        run = Run(folder, (folder / "finished.json").exists())
        there = config is not None and not r.cfg.overwrite and begun(folder, config)
        if kind != "eval":
            check_hand_on(r.path(f"pretrains/{kind}/{r.cfg.name}.pth"), run)
        return None, f"{folder}: {'finished' if run.finished else 'begun; it would go on' if there else 'free'}"

    r.see("run folder", free, [])
    above = next(place for place in (folder, *folder.parents) if place.exists())
    trained = sum(part["trained"] for part in r.plan.get("parameters", {}).values())
    need, disk = 32 * trained, shutil.disk_usage(above).free  # weights and moments, twice while replaced; hand-on

    def write() -> tuple[None, str]:
        try:
            tempfile.TemporaryFile(dir=above).close()
        except OSError as error:
            raise UserError(f"{above}: cannot be written ({error}); give another root_path=") from error
        if disk < need:
            raise UserError(f"{above}: {disk / 1e9:.1f} GB free, the checkpoints take {need / 1e9:.1f} GB; make room")
        return None, f"{disk / 1e9:.1f} GB free in {above}, checkpoints take up to {need / 1e9:.1f} GB"

    r.see("disk", write, [])


def read_arguments(argv: list[str]) -> tuple[SetupConfig, dict[str, Any]]:
    """Our own settings, and the asked stages' configs from the rest; of all three stages each takes what it knows."""
    pairs: list[tuple[str, list[str]]] = []
    words = list(argv)
    while words:
        word = words.pop(0)
        name = word.removeprefix("--").partition("=")[0]
        if word in ("--plan", "--hash", "--json"):
            word = f"{name}=true"
        pairs.append((name, [word, words.pop(0)] if word.startswith("--") and "=" not in word and words else [word]))
    own = {f.name for f in fields(SetupConfig)} | {"-h", "help"}
    asked = from_cli(SetupConfig, sum((pair for name, pair in pairs if name in own), []))
    if asked.stage not in (*STAGES, "all"):
        raise UserError(f"stage={asked.stage}: no such stage; there are a, b, c and all")
    classes = STAGES if asked.stage == "all" else {asked.stage: STAGES[asked.stage]}
    known = {s: {f.name for f in fields(cls)} | NO_EFFECT[cls].keys() | ALIASES.keys() for s, cls in classes.items()}
    rest = [(name, pair) for name, pair in pairs if name not in own]
    configs = {}
    for stage, cls in classes.items():
        mine = [pair for name, pair in rest if name in known[stage] or not any(name in k for k in known.values())]
        configs[stage] = from_cli(cls, sum(mine, []))
    return asked, configs


def show(r: Report) -> None:
    """The report in words."""
    print(f"\nStage {r.stage.upper()} (name={r.cfg.name})")
    for finding in r.findings:
        print(f"  {finding.state:6} {finding.what}: {finding.about}")
        for file in finding.files:
            digest = f"sha256 {file['sha256']}" if file["sha256"] else "not hashed (hash=true does)"
            print(f"           {file['path']}  {file['bytes']:,} bytes  {digest}")
        if finding.get:
            print(f"         get: {finding.get}")
    if r.plan:
        print(f"  memory the run will need, estimated: {sum(r.plan['memory'].values()) / 1e9:.1f} GB")
    for part, counts in r.plan.get("parameters", {}).items() if r.asked.plan else ():
        print(f"    {part:12} {counts['trained']:>13,} parameters trained, {counts['frozen']:>13,} frozen")
    for part, size in r.plan.get("memory", {}).items() if r.asked.plan else ():
        print(f"    {part:36} {size / 1e9:7.2f} GB")
    for line in r.plan.get("time", []):
        print(f"    {line}")
    wrong = sum(finding.state == "WRONG" for finding in r.findings)
    print(f"Stage {r.stage.upper()} {'can start' if r.ready else f'cannot start: {wrong} WRONG above'}")


def main() -> None:
    with redirect_stdout(sys.stderr):
        asked, configs = read_arguments(sys.argv[1:])
    reports = [Report(stage, cfg, asked) for stage, cfg in configs.items()]
    for r in reports:
        {"a": check_pretraining, "b": check_finetuning, "c": check_sampling}[r.stage](r.cfg, r)
    ready = all(r.ready for r in reports)
    if asked.json:
        stages = {
            r.stage: {"ready": r.ready, "findings": [asdict(f) for f in r.findings], "plan": r.plan} for r in reports
        }
        print(json.dumps({"ready": ready, "stages": stages}, indent=1))
    else:
        for r in reports:
            show(r)
    sys.exit(0 if ready else 1)


if __name__ == "__main__":
    cli(main)
