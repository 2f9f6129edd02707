"""What a run will take, told beforehand: parameters, memory by part, and time from a few real steps.

Models are built on torch's meta device, which has shapes but no numbers, so counting costs no memory.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import stageA1_eeg_pretrain as stage_a
from config import FinetuneConfig, GenerateConfig, PretrainConfig
from dc_ldm.generator import EEGImageGenerator
from dc_ldm.ldm_for_eeg import EEGLatentDiffusion, LatentBatch, LatentTrials
from dc_ldm.models.autoencoder import AutoencoderKL
from dc_ldm.models.samplers import sd_alphas_cumprod
from dc_ldm.models.unet import UNet
from dc_ldm.modules.conditioner import EEGConditioner
from dc_ldm.weights import BaseSizes
from runtime.loop import Schedule, fit, pick_device, pick_precision
from runtime.runs import Run
from sc_mbm.mae_for_eeg import EEGEncoder

PUBLISHED_BASE = BaseSizes(unet={}, vae={"ch_mult": (1, 2, 4, 4), "z_channels": 4})  # the constructors' defaults
CONTEXT_LENGTH = 77
PROBE_STEPS, PROBE_SECONDS = 20, 60


class _Observed(TorchFunctionMode):
    """Attention without its matrix, as the fused kernels compute it; notes the largest tensor made, in bytes."""

    largest = 0

    def __torch_function__(self, func, types, args=(), kwargs=None) -> Any:
        if func is F.scaled_dot_product_attention:
            return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*args[:3])[0]
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor):
            self.largest = max(self.largest, out.numel() * out.element_size())
        return out


def activations(loss: Callable[[], Tensor], module: nn.Module) -> int:
    """Bytes that a backward pass of `loss()` would keep, parameters aside, in fp32; everything on the meta device."""
    own = {p.untyped_storage()._cdata for p in module.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), _Observed():
        loss()
    return sum(tensor.untyped_storage().nbytes() for place, tensor in kept.items() if place not in own)


def parameters(**parts: nn.Module) -> dict[str, dict[str, int]]:
    """Per part, how many parameters train and how many are frozen."""
    counts = {name: [(p.numel(), p.requires_grad) for p in module.parameters()] for name, module in parts.items()}
    return {
        name: {"trained": sum(n for n, on in sizes if on), "frozen": sum(n for n, on in sizes if not on)}
        for name, sizes in counts.items()
    }


def training_memory(counts: dict, kept: int, in_step: nn.Module, precision: str) -> dict[str, int]:
    """Bytes by part of a training step: fp32 weights, gradients and AdamW's two moments; activations estimated.

    kept: as `activations` counts; in_step: what computes in every step, and keeps 16-bit copies under bf16.
    """
    trained, frozen = (sum(part[kind] for part in counts.values()) for kind in ("trained", "frozen"))
    memory = {"weights": 4 * (trained + frozen), "gradients": 4 * trained, "AdamW state": 8 * trained}
    if precision == "bf16-mixed":
        copies = 2 * sum(p.numel() for p in in_step.parameters())
        return memory | {"16-bit copies of weights, estimated": copies, "activations, estimated": kept // 2}
    return memory | {"activations, estimated": kept}


def plan_pretraining(cfg: PretrainConfig) -> dict:
    """Parameters and memory of stage A."""
    with torch.device("meta"):
        module = stage_a.build(cfg, 1)
        eeg = torch.empty(cfg.batch_size, cfg.n_chans, cfg.n_times)
        noise = torch.empty(cfg.batch_size, module.mae.num_tokens)
        kept = activations(lambda: module.mae(eeg, cfg.mask_ratio, noise)[0], module)
    counts = parameters(autoencoder=module.mae)
    precision = pick_precision(cfg.precision, pick_device(cfg.device))
    return {"parameters": counts, "memory": training_memory(counts, kept, module, precision), "precision": precision}


def diffusion_module(
    cfg: FinetuneConfig, encoder: dict, sizes: BaseSizes, clip_dim: int
) -> tuple[EEGLatentDiffusion, AutoencoderKL]:
    """Stage B's models with random weights, and the autoencoder, on the device that is torch's default."""
    width = sizes.unet.get("context_dim", 768)
    conditioner = EEGConditioner(EEGEncoder(**encoder), context_dim=width, clip_dim=clip_dim, clip_head=cfg.clip_head)
    unet = UNet(**sizes.unet, use_time_cond=cfg.use_time_cond)
    abar, nothing = sd_alphas_cumprod(sizes.linear_start, sizes.linear_end), torch.zeros(CONTEXT_LENGTH, width)
    module = EEGLatentDiffusion(conditioner, unet, abar, nothing, cfg.lr, cfg.weight_decay, cfg.clip_weight)
    return module, AutoencoderKL(**sizes.vae).requires_grad_(False)


def plan_finetuning(cfg: FinetuneConfig, encoder: dict, sizes: BaseSizes, clip_dim: int, clip_size: int) -> dict:
    """Parameters and memory of stage B. clip_dim: width of CLIP's space; clip_size: its parameters."""
    batch, latent = cfg.batch_size, (cfg.batch_size, *sizes.latent_shape(cfg.img_size))
    with torch.device("meta"):
        module, vae = diffusion_module(cfg, encoder, sizes, clip_dim)
        module.alphas_cumprod = module.alphas_cumprod.to("meta")
        data = LatentBatch(
            torch.empty(batch, encoder["n_chans"], encoder["n_times"]), torch.empty(latent), torch.empty(latent),
            torch.zeros(batch, dtype=torch.int64), torch.empty(batch, 1, 1), torch.empty(batch, clip_dim),
        )  # fmt: skip
        kept = activations(lambda: sum(module.losses(data)), module)
    counts = parameters(conditioner=module.conditioner, unet=module.unet, autoencoder=vae)
    counts["clip"] = {"trained": 0, "frozen": clip_size}
    precision = pick_precision(cfg.precision, pick_device(cfg.device))
    return {"parameters": counts, "memory": training_memory(counts, kept, module, precision), "precision": precision}


def plan_sampling(cfg: GenerateConfig, model: dict, sizes: BaseSizes, others: dict[str, int]) -> dict:
    """Parameters and memory of stage C; model: the checkpoint's config; others: part -> parameters of CLIP and such."""
    width = sizes.unet.get("context_dim", 768)
    with torch.device("meta"), torch.no_grad(), _Observed() as seen:
        unet, vae = UNet(**sizes.unet), AutoencoderKL(**sizes.vae)
        conditioner = EEGConditioner(EEGEncoder(**model["encoder"]), **model["conditioner"])
        latent = torch.empty(cfg.batch_size, *sizes.latent_shape(model["img_size"]))
        seen.largest = 0
        unet(latent, torch.zeros(cfg.batch_size, dtype=torch.int64), torch.empty(cfg.batch_size, CONTEXT_LENGTH, width))
        vae.decode(latent)
    counts = parameters(conditioner=conditioner, unet=unet, autoencoder=vae) | others
    for name, part in counts.items():
        counts[name] = {"trained": 0, "frozen": part if isinstance(part, int) else sum(part.values())}
    weights = 4 * sum(part["frozen"] for part in counts.values())
    # four of the largest live at once in a residual block of the decoder: input, normalised, convolved, sum
    return {"parameters": counts, "memory": {"weights": weights, "activations, estimated": 4 * seen.largest}}


class _Timed:
    """A stand-in for `items` that notes when each batch is asked for, and ends the probe when time is up."""

    def __init__(self, items: Any, n: int) -> None:
        self.items, self.n, self.times = items, n, []

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, batch: Any) -> Any:
        self.times.append(time.perf_counter())
        if len(self.times) > 3 and self.times[-1] - self.times[0] > PROBE_SECONDS:
            raise _Enough
        return self.items[batch._replace(index=batch.index % len(self.items))]


class _Enough(Exception):
    """The probe has seen what it wants."""


def step_seconds(module: Any, items: Any, schedule: Schedule) -> tuple[float, int]:
    """Median seconds of an optimizer step of `fit`, over up to PROBE_STEPS steps or PROBE_SECONDS, and their number."""

    def stop(epoch: int) -> dict[str, float]:
        raise _Enough

    timed = _Timed(items, PROBE_STEPS * schedule.batch_size * schedule.accumulate)
    with tempfile.TemporaryDirectory() as folder:
        try:
            fit(module, timed, Run(Path(folder), False), schedule, stop)
        except _Enough:
            timed.times.append(time.perf_counter())
    between = torch.tensor(timed.times).diff()
    return float(between[1:].median()) * schedule.accumulate, len(between) // schedule.accumulate


def some_pictures(cfg: FinetuneConfig, eeg: Tensor, sizes: BaseSizes, clip_dim: int) -> LatentTrials:
    """Trials with made-up latents and embeddings: the time of a step does not depend on their values."""
    n_crops, shape = cfg.n_crops, sizes.latent_shape(cfg.img_size)
    moments, targets = torch.rand(1, 1 + n_crops, 2, *shape), torch.ones(1, clip_dim)
    return LatentTrials(eeg, torch.zeros(len(eeg), dtype=torch.int64), moments, targets, sizes.scale_factor)


def picture_seconds(generator: EEGImageGenerator, eeg: Tensor, sampler: str, guidance: float) -> tuple[float, float]:
    """Seconds of one sampling step of a batch of eeg (B, C, T), and of everything else a batch takes."""
    seconds = []
    for steps in (2, 2, 10):  # the first warms up
        started = time.perf_counter()
        generator.generate(eeg, torch.arange(len(eeg)), steps, sampler, guidance, len(eeg))
        seconds.append(time.perf_counter() - started)
    each = (seconds[2] - seconds[1]) / 8
    return each, max(0.0, seconds[1] - 2 * each)
