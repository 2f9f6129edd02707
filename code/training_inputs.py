"""What stages A and B read: every input opened as a finding, so that a dry run and the doctor can list them.

Here rooms meet that do not know each other: trials and their pictures, stage A's encoder, Stable Diffusion, CLIP.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from config import FinetuneConfig, PretrainConfig
from data.splits import describe_splits
from data.stimuli import about_pictures, image_path, leave_out_missing
from dataset import EEGWindows, Trials, open_trials
from dc_ldm import weights
from dc_ldm.generator import check_sampler
from dc_ldm.ldm_for_eeg import EEGLatentDiffusion, LatentTrials, new_finetuning, plan_finetuning
from dc_ldm.models.unet import UNet
from dc_ldm.published import read_stage_a
from dc_ldm.weights import Base, BaseSizes
from evaluation.inputs import files_read
from evaluation.validation import Judge, load_judge
from runtime import checkpoints, digests, ranks
from runtime.devices import about_device, pick_device, pick_dtype
from runtime.draws import steps_per_epoch
from runtime.errors import UserError
from runtime.findings import Findings
from runtime.memory import MemoryPlan, check_fits, local_batch
from runtime.paths import cache_of, file_or_name, in_place, under_root
from sc_mbm.mae_for_eeg import EEGEncoder, encoder_state
from sc_mbm.trainer import plan_pretraining
from vision.cache import clip_embeddings, latent_moments
from vision.clip import FrozenCLIP, OpenCLIP
from vision.clip_files import VIT_L_14, look_at_clip

ENCODER_SIZES = ("n_chans", "n_times", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio")
LEARNING = ("lr", "weight_decay", "clip_weight", "finetune")  # arguments of EEGLatentDiffusion


def eeg_folder(cfg: PretrainConfig) -> Path:
    """The asked folder, or the published `datasets/mne_data` where the default one is missing."""
    asked, published = (under_root(cfg.root_path, path) for path in (cfg.eeg_path, "datasets/mne_data"))
    default = cfg.eeg_path == PretrainConfig.eeg_path and not asked.is_dir()
    return published if default and published.is_dir() else asked


@dataclass
class PretrainingInputs:
    """What stage A trains on; in a dry run None where it does not open."""

    plan: MemoryPlan | None
    windows: EEGWindows | None


def pretraining_files(cfg: PretrainConfig) -> list[dict[str, Path]]:
    """All that stage A reads, by what messages call it."""
    folder = eeg_folder(cfg)
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() == ".npy")  # those of EEGWindows
    found = {f"recording {path.relative_to(folder)}": path for path in files}
    return [{"manifest.json": folder / "manifest.json"} | found]


def open_pretraining(
    cfg: PretrainConfig, findings: Findings, note: Callable[[], None] = lambda: None
) -> PretrainingInputs:
    """All that stage A reads, each opened as a finding; `note()` comes before what is large.

    Raises UserError, as `Findings.open`.
    """
    folder = eeg_folder(cfg)
    device = findings.open("device", lambda: pick_device(cfg.device), about_device)
    if not findings.keep_going:  # what is missing is said before a batch that does not fit
        in_place(cfg, {"eeg_path": ("folder of recordings (.npy)", str(folder.absolute()))})
    if plan := device and findings.open("plan", lambda: plan_pretraining(cfg), str):
        findings.open("memory", lambda: check_fits(cfg, plan), lambda free: f"{free / 1e9:.1f} GB are free")
    note()
    how = cfg.n_chans, cfg.n_times, cfg.eeg_scale, cfg.seed, cfg.held_out
    windows = findings.open(
        "recordings", lambda: EEGWindows(folder, *how),
        lambda w: f"{w.n_recordings} files, {len(w)} training windows an epoch", [folder],
    )  # fmt: skip
    if windows:
        open_steps(findings, len(windows), cfg.batch_size, cfg.accum_iter)
    return PretrainingInputs(plan, windows)


def open_steps(findings: Findings, *sizes: int) -> None:
    """That an epoch holds a step at least; sizes: as `steps_per_epoch` takes them. Raises UserError."""
    findings.open("steps", lambda: steps_per_epoch(*sizes), lambda count: f"{count} an epoch")


@dataclass(frozen=True)
class StageA:
    """The EEG encoder that training starts from."""

    encoder: EEGEncoder
    sizes: dict[str, Any]  # its arguments
    scale: float  # factor on the EEG
    sha256: str | None = None  # of the file; None: untrained
    excludes_test: str | None = None  # what the file says of test trials among its recordings

    def __str__(self) -> str:
        form = "{depth} blocks of width {embed_dim}, for {n_chans} channels x {n_times} samples".format(**self.sizes)
        return f"{'an' if self.sha256 else 'an untrained'} encoder: {form}"


@dataclass
class FinetuningInputs:
    """What stage B trains on; in a dry run None where it does not open. Stable Diffusion and CLIP are loaded later."""

    stage_a: StageA | None
    trials: dict[str, Trials] | None  # "train" and "val"; the test split is read for likeness alone
    judge: Judge | None  # of select=n_way
    plan: MemoryPlan | None


def check_finetuning(cfg: FinetuneConfig) -> None:
    """Refuse settings that make no sense together. Raises UserError."""
    if cfg.guidance != 1 and not cfg.cond_drop:
        raise UserError(f"guidance={cfg.guidance}: needs cond_drop=0.1 or so in training; use it, or guidance=1")
    check_sampler(cfg.sampler, cfg.ddim_steps)


def wanted_files(cfg: FinetuneConfig) -> dict[str, tuple[str, str]]:
    """What must be there, by setting: in words, and the path."""
    stage_a = cfg.pretrain_mbm_path or f"pretrains/eeg_pretrain/{cfg.name}.pth"
    return {
        "eeg_signals_path": ("EEG of the trials", cfg.eeg_signals_path),
        "splits_path": ("splits", cfg.splits_path),
        "imagenet_path": ("folder of the images shown", cfg.imagenet_path),
        "pretrain_gm_path": ("folder of Stable Diffusion", cfg.pretrain_gm_path),
    } | ({} if stage_a == "none" else {"pretrain_mbm_path": ("stage A checkpoint", stage_a)})


def finetuning_files(cfg: FinetuneConfig) -> Iterator[dict[str, Path]]:
    """All that stage B reads, by what messages call it."""
    _, stage_a = wanted_files(cfg).get("pretrain_mbm_path", ("", ""))
    more = {"stage A file": under_root(cfg.root_path, stage_a)} if stage_a else {}
    return files_read(cfg, ("train", "val"), cfg.select == "n_way", more)


def open_finetuning(
    cfg: FinetuneConfig, findings: Findings, note: Callable[[], None] = lambda: None
) -> FinetuningInputs:
    """All that stage B reads, what is cheap first; `note()` comes before what is large.

    Raises UserError, as `Findings.open`; it names all missing files.
    """
    wanted = wanted_files(cfg)
    paths = {name: under_root(cfg.root_path, value) for name, (_, value) in wanted.items()}
    device = findings.open("device", lambda: pick_device(cfg.device), about_device)
    if not findings.keep_going:
        in_place(cfg, wanted)

    # Networks, and what training will hold of them
    judge = stage_a = plan = None
    if cfg.select == "n_way":
        classifier = file_or_name(cfg.root_path, cfg.classifier)
        judge = findings.open(
            "classifier", lambda: load_judge(classifier, device or "cpu"), lambda j: j.classifier.name
        )
    file, subject = paths.get("pretrain_mbm_path"), "stage A checkpoint"
    if cfg.pretrain_mbm_path or not findings.comes_later(subject, file):
        stage_a = findings.open(subject, lambda: open_stage_a(cfg, file), str, [file] if file else [])
    sizes, scale = (stage_a.sizes, stage_a.scale) if stage_a else (untrained_sizes(cfg), 1.0)
    models = [paths["pretrain_gm_path"] / "models" / name for name in (*weights.BASE_NAMES, "config15.yaml")]
    base = findings.open(
        "Stable Diffusion", lambda: weights.look_at_base(paths["pretrain_gm_path"], findings.keep_going),
        lambda _: "as config15.yaml describes it", models,
    )  # fmt: skip
    clip = look_at_clip(file_or_name(cfg.root_path, cfg.clip), findings) if findings.keep_going else VIT_L_14
    if device and (base or cfg.img_size % 64 == 0):
        plan = findings.open("plan", lambda: plan_run(cfg, sizes, base or weights.published_sizes(), clip), str)
    if plan:
        findings.open("memory", lambda: check_fits(cfg, plan), lambda free: f"{free / 1e9:.1f} GB are free")

    # Trials, and the pictures that they showed
    note()
    files, imagenet = (paths["eeg_signals_path"], paths["splits_path"]), paths["imagenet_path"]
    trials = findings.open(
        "trials", lambda: ranks.lead_first(lambda: read_trials(cfg, files, sizes, scale)), paths=files
    )
    trials = findings.open(
        "pictures", lambda: readable_trials(cfg, trials, imagenet), lambda kept: about_pictures(kept, imagenet)
    )
    if trials:
        open_steps(findings, len(trials["train"]), cfg.batch_size, cfg.accumulate_grad)
    if judge and trials:  # refuses, before any work, what it does not know
        findings.open("classifier", lambda: judge.classes(trials["val"]), lambda _: "knows the trials' classes")
    return FinetuningInputs(stage_a, trials, judge, plan)


FINETUNING = check_finetuning, open_finetuning, finetuning_files


def untrained_sizes(cfg: FinetuneConfig) -> dict[str, Any]:
    """Arguments of an encoder without a stage A checkpoint."""
    sizes = {name.removeprefix("encoder_"): v for name, v in asdict(cfg).items() if name.startswith("encoder_")}
    return {"n_chans": 128, "n_times": 512, "patch_size": 4} | sizes


def open_stage_a(cfg: FinetuneConfig, path: Path | None) -> StageA:
    """Stage A's encoder, untrained where there is no path. Raises UserError."""
    if path is None:
        torch.manual_seed(cfg.seed)
        sizes = untrained_sizes(cfg)
        return StageA(EEGEncoder(**sizes), sizes, cfg.eeg_scale or 1.0)
    content = read_stage_a(path)
    sizes = {name: content["config"][name] for name in ENCODER_SIZES}
    state, what = encoder_state(content["model"]), f"{path}: the encoder"
    checkpoints.check_state(checkpoints.on_meta(lambda: EEGEncoder(**sizes), what).state_dict(), state, what)
    encoder = EEGEncoder(**sizes)
    checkpoints.load_strictly(encoder, state, what)
    scale = cfg.eeg_scale or float(content["input"]["scale"])
    return StageA(encoder, sizes, scale, digests.sha256(path), content["input"].get("excludes_test"))


def new_module(
    cfg: FinetuneConfig, encoder: EEGEncoder, unet: UNet, sizes: BaseSizes, clip_dim: int,
    text_start: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> EEGLatentDiffusion:  # fmt: skip
    """What trains, as training begins; text_start: as `new_finetuning` takes it. Raises UserError."""
    learning = {name: getattr(cfg, name) for name in LEARNING}
    return new_finetuning(encoder, unet, sizes, clip_dim, cfg.clip_head, text_start, **learning)


def untrained(cfg: FinetuneConfig, encoder: dict[str, Any], sizes: BaseSizes, clip_dim: int) -> EEGLatentDiffusion:
    """`new_module` with random weights, on torch's default device; encoder: its arguments."""
    unet = UNet(**sizes.unet, use_time_cond=cfg.use_time_cond)
    return new_module(cfg, EEGEncoder(**encoder), unet, sizes, clip_dim)


def plan_run(cfg: FinetuneConfig, encoder: dict[str, Any], base: BaseSizes, clip: tuple[int, int]) -> MemoryPlan:
    """Parameters and memory of a process of stage B; clip: width of its space, number of its parameters."""
    half = pick_dtype(cfg.precision, cfg.device) == torch.bfloat16
    with torch.device("meta"):
        module = untrained(cfg, encoder, base, clip[0])
    return plan_finetuning(module, base, cfg.img_size, local_batch(cfg.batch_size), half, clip[1])


def read_trials(cfg: FinetuneConfig, files: tuple[Path, Path], encoder: dict[str, Any], scale: float) -> dict:
    """Training and validation trials of (EEG, splits), as the encoder takes them. Raises UserError."""
    shape = encoder["n_chans"], encoder["n_times"], scale
    trials = open_trials(*files, cfg.subject, ("train", "val"), *shape, cache_of(cfg))
    print(describe_splits(trials["train"].info["split"]))
    return trials


def readable_trials(cfg: FinetuneConfig, trials: dict[str, Trials] | None, imagenet: Path) -> dict[str, Trials]:
    """Those whose picture can be read; without trials, whether the folder is there. Raises UserError."""
    kept, lines = leave_out_missing(trials or {}, imagenet, cfg.allow_missing)
    for line in lines:
        print(line)
    if kept:
        print(f"{len(kept['train'])} training and {len(kept['val'])} validation trials")
    return kept


def latent_trials(
    cfg: FinetuneConfig, base: Base, clip: FrozenCLIP | OpenCLIP, trials: dict[str, Trials], device: torch.device
) -> dict[str, LatentTrials]:
    """Per split, trials beside their pictures' latents and CLIP embeddings, computed once."""
    folder, imagenet = (under_root(cfg.root_path, path) for path in (cfg.cache or "datasets/cache", cfg.imagenet_path))
    base.vae.to(device)
    items = {}
    for split, part in trials.items():
        names, picture = np.unique(part.names, return_inverse=True)
        paths = [image_path(imagenet, name) for name in names]
        n_crops, drop = (cfg.n_crops, cfg.cond_drop) if split == "train" else (0, 0.0)
        moments = latent_moments(folder, base.vae, paths, cfg.img_size, n_crops, cfg.crop_ratio, cfg.seed)
        targets = clip_embeddings(folder, clip, paths)
        rows = torch.from_numpy(picture)
        items[split] = LatentTrials(part.eeg, rows, moments, targets, base.sizes.scale_factor, drop, cfg.seed)
    return items
