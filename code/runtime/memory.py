"""What a run will hold in memory, told beforehand, and the refusal of a batch that cannot fit.

Models are counted on torch's meta device, which has shapes but no numbers: that costs no memory and less than a second.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from config import FinetuneConfig, GenerateConfig, PretrainConfig
from dc_ldm.generator import EEGImageGenerator, free_memory
from dc_ldm.ldm_for_eeg import EEGLatentDiffusion, LatentBatch
from dc_ldm.models.autoencoder import AutoencoderKL
from dc_ldm.models.samplers import sd_alphas_cumprod
from dc_ldm.models.unet import UNet
from dc_ldm.modules.conditioner import EEGConditioner
from dc_ldm.weights import TIME_CONDITION, BaseSizes
from runtime import ranks
from runtime.activations import activations
from runtime.errors import UserError
from runtime.loop import pick_device, pick_precision
from sc_mbm.mae_for_eeg import EEGEncoder
from sc_mbm.trainer import MaskedPretraining
from vision.clip import OPEN_CLIP

INPUT = {"n_chans": 128, "n_times": 512, "patch_size": 4}
MULT = (1, 2, 4, 4)
PUBLISHED_BASE = BaseSizes({"channel_mult": MULT}, {"ch_mult": MULT, "z_channels": 4})  # the constructors' defaults
PUBLISHED_CLIP = (768, 427_616_513)  # width of ViT-L/14's space, parameters of its two towers
ESTIMATED = "activations (estimate)"
SURELY = 1.25  # plans of full size lay at most 9 % above the peaks measured on a CPU, so beyond this nothing runs


def check_fits(cfg: PretrainConfig | FinetuneConfig, plan: dict) -> None:
    """Refuse a batch whose step would take clearly more memory than is free, on all processes alike.

    plan: of one process's share, as `plan_pretraining` and `plan_finetuning` give it. Raises UserError.
    """
    device, needed = pick_device(cfg.device), sum(plan["memory"].values())
    free = free_memory(device)
    with ranks.together():
        if needed > SURELY * free:
            each = f"each of {ranks.world()} processes" if ranks.world() > 1 else "a step"
            raise UserError(
                f"batch_size={cfg.batch_size} does not fit in memory: {each} would take about {needed / 1e9:.1f} GB, "
                f"and {free / 1e9:.1f} GB are free ({device}); {smaller(cfg, plan, free)} (estimate)"
            )


def smaller(cfg: Any, plan: dict, there: float) -> str:
    """The end of a sentence: the batch that fits in `there` bytes, with the accumulation that leaves the steps of
    training as they are; or, where none does, what else is needed.

    plan: of one process, the batch that it names is of all. "Might" is a single item within the plan's own error.
    """
    memory, planned = plan["memory"], plan["batch_size"]
    fixed, each = sum(memory.values()) - memory[ESTIMATED], memory[ESTIMATED] / planned
    fits, verb = int((there - fixed) / each), "would"
    if fits < 1 and fixed + each <= SURELY * there:
        fits, verb = 1, "might"
    if not 0 < fits < planned:
        return "more memory is needed, or smaller networks or pictures"
    names = [name for name in ("accum_iter", "accumulate_grad") if hasattr(cfg, name)]
    if not names:
        return f"batch_size={fits} {verb}"
    # a divisor, so that a step still holds the same items
    fits = next(n for n in range(fits * ranks.world(), 0, -1) if cfg.batch_size % n == 0)
    return f"batch_size={fits} {names[0]}={getattr(cfg, names[0]) * cfg.batch_size // fits} {verb}, with equal steps"


def count(**parts: nn.Module) -> dict[str, int]:
    """Parameters of each part, those that train and those that are frozen apart."""
    counts: dict[str, int] = {}
    for name, module in parts.items():
        for p in module.parameters():
            key = f"{name}, {'trained' if p.requires_grad else 'frozen'}"
            counts[key] = counts.get(key, 0) + p.numel()
    return counts


def own_batch(cfg: PretrainConfig | FinetuneConfig) -> int:
    """How many items of a batch one process gets, at most."""
    return -(-cfg.batch_size // ranks.world())


def plan_step(counts: dict[str, int], module: nn.Module, loss: Callable[[], Tensor], cfg: Any) -> dict:
    """Parameters, and bytes of a training step: fp32 weights, gradients, AdamW's two moments; the rest estimated.

    Of one process, whose `own_batch` the `loss` is of.
    """
    trained = sum(n for name, n in counts.items() if name.endswith("trained"))
    memory = {"weights": 4 * sum(counts.values()), "gradients": 4 * trained, "AdamW state": 8 * trained}
    half = is_half(cfg)
    # factors measured on the CPU: backward keeps some more for a while; half precision halves most of it
    memory[ESTIMATED] = round((0.65 if half else 1.3) * activations(loss, module))
    memory["16-bit copies"] = 2 * trained if half else 0
    return {"parameters": counts, "memory": memory, "batch_size": own_batch(cfg)}


def is_half(cfg: Any) -> bool:
    """Whether training multiplies in bfloat16."""
    return pick_precision(cfg.precision, pick_device(cfg.device)) == "bf16-mixed"


def plan_pretraining(cfg: PretrainConfig, build: Callable[[PretrainConfig, int], MaskedPretraining]) -> dict:
    """Parameters and memory of stage A; build: stage A's own."""
    with torch.device("meta"):
        module = build(cfg, 1)
        eeg = torch.empty(own_batch(cfg), cfg.n_chans, cfg.n_times)
        noise = torch.empty(own_batch(cfg), module.mae.num_tokens)
        return plan_step(count(mae=module.mae), module, lambda: module.mae(eeg, cfg.mask_ratio, noise)[0], cfg)


def diffusion(cfg: FinetuneConfig, encoder: dict, sizes: BaseSizes, clip_dim: int) -> EEGLatentDiffusion:
    """Stage B's training module with random weights, on torch's default device; encoder: EEGEncoder's arguments."""
    shape = {"context_dim": sizes.unet.get("context_dim", 768), "clip_dim": clip_dim, "clip_head": cfg.clip_head}
    conditioner = EEGConditioner(EEGEncoder(**encoder), **shape)
    unet = UNet(**sizes.unet, use_time_cond=cfg.use_time_cond)
    abar = sd_alphas_cumprod(sizes.linear_start, sizes.linear_end).to(torch.get_default_device())
    start = torch.zeros(77, shape["context_dim"])
    return EEGLatentDiffusion(conditioner, unet, abar, start, cfg.lr, cfg.weight_decay, finetune=cfg.finetune)


def plan_finetuning(
    cfg: FinetuneConfig, encoder: dict, sizes: BaseSizes, clip: tuple[int, int] = PUBLISHED_CLIP
) -> dict:
    """Parameters and memory of stage B; clip: width of its space, which hardly counts, number of its parameters."""
    b, latent = own_batch(cfg), (own_batch(cfg), *sizes.latent_shape(cfg.img_size))
    shapes = ((b, encoder["n_chans"], encoder["n_times"]), latent, latent, (b,), (b, 1, 1), (b, clip[0]))
    with torch.device("meta"):
        module = diffusion(cfg, encoder, sizes, clip[0])
        data = LatentBatch(*(torch.zeros(shape) for shape in shapes))
        data = data._replace(t=data.t.long())
        vae = AutoencoderKL(**sizes.vae).requires_grad_(False)
        counts = count(conditioner=module.conditioner, unet=module.unet, vae=vae)
        plan = plan_step(counts, module, lambda: sum(module.losses(data)), cfg)
        if is_half(cfg):
            module.halve_frozen()
        plan["memory"]["weights"] = sum(p.nbytes for part in (module, vae) for p in part.parameters())
        plan["parameters"] |= {"clip, frozen, before training": clip[1]}
        return plan


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
