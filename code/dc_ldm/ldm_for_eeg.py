"""Stage B's training: Stable Diffusion given EEG, aligned with CLIP (arXiv 2306.16934, 3.2, 3.3); what it holds.

Shapes: B batch, C electrodes, T samples, M pictures, K crops, h x w latent size, D width of CLIP.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dc_ldm import weights
from dc_ldm.models.autoencoder import AutoencoderKL
from dc_ldm.models.samplers import sd_alphas_cumprod
from dc_ldm.models.unet import UNet
from dc_ldm.modules.conditioner import EEGConditioner
from dc_ldm.published import CONTEXT_LENGTH
from dc_ldm.weights import BaseSizes, is_trained
from runtime import draws
from runtime.devices import adamw
from runtime.errors import UserError
from runtime.memory import MemoryPlan, count, plan_step

TIMESTEPS = 1000


class LatentBatch(NamedTuple):
    """What one training step needs, with every random draw already made."""

    eeg: Tensor  # (B, C, T)
    latent: Tensor  # (B, 4, h, w), scaled posterior sample of the picture
    noise: Tensor  # (B, 4, h, w)
    t: Tensor  # (B,) int64 in 0..999
    keep: Tensor  # (B, 1, 1) float32: 0 where the condition is replaced by the one of no EEG
    clip: Tensor  # (B, D), CLIP embedding of the plain picture


@dataclass
class LatentTrials:
    """Trials in memory: EEG beside the cached latents and CLIP embedding of the picture that was seen."""

    eeg: Tensor  # (N, C, T)
    picture: Tensor  # (N,) int64: each trial's row of moments and clip
    moments: Tensor  # (M, 1 + K, 2, 4, h, w), as `vision.cache.latent_moments` gives them
    clip: Tensor  # (M, D)
    scale_factor: float = 0.18215
    cond_drop: float = 0.0
    seed: int = 2022

    def __len__(self) -> int:
        return len(self.eeg)

    def __getitem__(self, batch: draws.Batch) -> LatentBatch:
        """The batch's items; draws depend on (seed, step, position in the global batch) alone."""
        shape, views = (batch.total, *self.moments.shape[3:]), self.moments.shape[1]

        def drawn(draw: Callable[..., Tensor], purpose: str, *arguments: object) -> Tensor:
            return batch.mine(draw(*arguments, self.seed, purpose, batch.step))

        picture = self.picture[batch.index]
        # A crop with probability 0.5 (spec 3.3), otherwise the plain picture, which is view 0.
        crop = 1 + (drawn(draws.rand, "which crop", shape[:1]) * (views - 1)).long().clamp(max=max(views - 2, 0))
        view = torch.where((drawn(draws.rand, "crop or plain", shape[:1]) < 0.5) & (views > 1), crop, 0)
        mean, std = self.moments[picture, view].unbind(1)
        return LatentBatch(
            eeg=self.eeg[batch.index],
            latent=self.scale_factor * (mean + std * drawn(draws.randn, "posterior", shape)),
            noise=drawn(draws.randn, "noise", shape),
            t=drawn(draws.randint, "time step", 0, TIMESTEPS, shape[:1]),
            keep=(drawn(draws.rand, "condition dropout", shape[:1]) >= self.cond_drop).float()[:, None, None],
            clip=self.clip[picture],
        )


def add_noise(latent: Tensor, noise: Tensor, abar: Tensor) -> Tensor:
    """sqrt(abar) latent + sqrt(1 - abar) noise (arXiv 2006.11239, eq. 4); abar (B,)."""
    abar = abar[:, None, None, None]
    return abar.sqrt() * latent + (1 - abar).sqrt() * noise


FINETUNE = ("E", "A", "E+A")


class EEGLatentDiffusion(nn.Module):
    """Trains the conditioner and, of the UNet, cross-attention, the norm before it and the time condition.

    `finetune` says which of the two parts that come pretrained train (the paper's ablation): E, the EEG encoder;
    A, the UNet's cross-attention with the norm before it; E+A, both. What has no pretrained state always trains: the
    maps from encoder to condition and to CLIP, and the time condition, which left at its random start would only
    disturb the UNet. A frozen part has neither gradients nor optimizer state. Raises UserError for another word.
    """

    def __init__(
        self, conditioner: EEGConditioner, unet: UNet, alphas_cumprod: Tensor, no_context: Tensor,
        lr: float = 5.3e-5, weight_decay: float = 0.01, clip_weight: float = 1.0, finetune: str = "E+A",
    ):  # fmt: skip
        super().__init__()
        if finetune not in FINETUNE:
            raise UserError(f"finetune={finetune}: use {', '.join(FINETUNE)}")
        self.conditioner, self.unet = conditioner, unet
        self.register_buffer("alphas_cumprod", alphas_cumprod, persistent=False)
        self.register_buffer("no_context", no_context, persistent=False)
        self.lr, self.weight_decay, self.clip_weight = lr, weight_decay, clip_weight
        self.state: dict[str, Any] = {}  # survives a stop: plain values and tensors only
        unet.to(memory_format=torch.channels_last).requires_grad_(False)  # the layout of the fast convolutions
        for name, parameter in weights.trained_unet_tensors(unet).items():
            parameter.requires_grad_("A" in finetune or name.startswith(weights.TIME_CONDITION))
        if "E" not in finetune:
            conditioner.mae.requires_grad_(False)

    def halve_frozen(self) -> None:
        """Hold the UNet's frozen layers in bfloat16, for training in mixed precision, which multiplies in it anyway.

        Otherwise 0.8 billion weights would be rounded anew in every step, and be in memory twice. The answers are the
        same to the bit. What a checkpoint holds, whether it trains here or not, and the norms stay in float32.
        """
        for name, layer in self.unet.named_modules():
            if isinstance(layer, nn.Conv2d | nn.Conv1d | nn.Linear) and not is_trained(f"{name}."):
                layer.to(torch.bfloat16)

    def forward(self, batch: draws.Batch, data: LatentBatch) -> Tensor:
        """Weighted loss of one share of a batch."""
        loss_noise, loss_clip = self.losses(data)
        return (loss_noise + self.clip_weight * loss_clip) * batch.weight

    def losses(self, data: LatentBatch) -> tuple[Tensor, Tensor]:
        """L_simple (squared error of the predicted noise) and L_clip (1 - cosine) of one batch: means, scalars.

        no_context (77, 768) stands where the condition is dropped.
        """
        context, embedding = self.conditioner(data.eeg)
        noisy = add_noise(data.latent, data.noise, self.alphas_cumprod[data.t])
        predicted = self.unet(noisy, data.t, context * data.keep + self.no_context * (1 - data.keep))
        loss_clip = 1 - F.cosine_similarity(embedding.float(), data.clip).mean()
        return F.mse_loss(predicted.float(), data.noise), loss_clip

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW over what trains, each tensor once (the published code steps some twice; spec 5.4)."""
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return adamw(trained, lr=self.lr, betas=(0.9, 0.999), weight_decay=self.weight_decay)

    def lr_at(self, step: int) -> float:
        """Constant, as published."""
        return self.lr

    def training_state(self) -> dict[str, Tensor]:
        """Copies of the trained tensors under the published names."""
        return weights.trained_state(self.conditioner, self.unet)

    def load_training_state(self, state: dict[str, Tensor]) -> None:
        """Inverse of training_state. Raises UserError."""
        weights.load_trained_state(self.conditioner, self.unet, state, "the resume point")


@torch.no_grad()
def validation_losses(module: EEGLatentDiffusion, trials: LatentTrials, batch_size: int) -> dict[str, float]:
    """Both losses over all validation trials, with the same draws every time."""
    batches = draws.StepBatches(len(trials), batch_size, trials.seed, 0, -(-len(trials) // batch_size))
    sums = torch.zeros(2)
    for batch in batches:
        data = LatentBatch(*(value.to(module.no_context.device) for value in trials[batch]))
        pair = module.losses(data)
        sums += torch.stack(pair).cpu() * len(batch.index)
    noise, clip = (sums / len(trials)).tolist()
    return {"val_noise_loss": noise, "val_clip_loss": clip}


def reciprocal_rank(embedding: Tensor, targets: Tensor, target: Tensor) -> Tensor:
    """How high each embedding ranks its own target among all, by cosine: 1 / rank, (N,) float64; 1 is best.

    embedding (N, D), targets (M, D), target (N,) int64. Among ties the expectation over all orders is taken.
    """
    similarity = F.normalize(embedding.double(), dim=1) @ F.normalize(targets.double(), dim=1).T
    own = similarity.gather(1, target[:, None])
    above, tied = (similarity > own).sum(1), (similarity == own).sum(1)
    harmonic = F.pad((1 / torch.arange(1, len(targets) + 1, dtype=torch.float64)).cumsum(0), (1, 0))
    return (harmonic[above + tied] - harmonic[above]) / tied


def new_finetuning(
    encoder: nn.Module, unet: UNet, sizes: BaseSizes, clip_dim: int, clip_head: str,
    text_start: tuple[Tensor, Tensor] | None, **learning: Any,
) -> EEGLatentDiffusion:  # fmt: skip
    """What trains, as training begins; on the meta device, what its plan is made of.

    Args:
        text_start: CLIP's empty caption (77, W), which then is the condition of no EEG, and its text projection, as
            `EEGConditioner.start_at_text` takes them; None: a random start, and zeros for no EEG.
        learning: arguments of EEGLatentDiffusion.

    Raises:
        UserError: as `start_at_text` and EEGLatentDiffusion.
    """
    context_dim = sizes.unet["context_dim"]
    conditioner = EEGConditioner(encoder, CONTEXT_LENGTH, context_dim, clip_dim, clip_head)
    no_context = torch.zeros(CONTEXT_LENGTH, context_dim)
    if text_start:
        no_context, projection = (part.clone() for part in text_start)  # several processes write into them
        conditioner.start_at_text(no_context, projection)
    abar = sd_alphas_cumprod(sizes.linear_start, sizes.linear_end).to(no_context.device)
    return EEGLatentDiffusion(conditioner, unet, abar, no_context, **learning)


def plan_finetuning(
    module: EEGLatentDiffusion, sizes: BaseSizes, img_size: int, batch_size: int, half: bool, clip_parameters: int
) -> MemoryPlan:
    """Parameters and memory of a process of stage B whose share of a batch is `batch_size`. Raises UserError.

    module: as `new_finetuning` makes it on the meta device; half: in mixed precision; clip_parameters: CLIP's.
    """
    latent, encoder = (batch_size, *sizes.latent_shape(img_size)), module.conditioner.mae
    clip_dim = module.conditioner.mapping.fc.out_features
    eeg = (batch_size, encoder.n_chans, encoder.n_times)
    shapes = (eeg, latent, latent, (batch_size,), (batch_size, 1, 1), (batch_size, clip_dim))
    with torch.device("meta"):
        data = LatentBatch(*(torch.zeros(shape) for shape in shapes))
        data = data._replace(t=data.t.long())
        vae = AutoencoderKL(**sizes.vae).requires_grad_(False)
        counts = count(conditioner=module.conditioner, unet=module.unet, vae=vae)
        plan = plan_step(counts, module, lambda: sum(module.losses(data)), batch_size, half)
    if half:
        module.halve_frozen()
    plan.memory["weights"] = sum(p.nbytes for part in (module, vae) for p in part.parameters())
    plan.parameters["clip, frozen, before training"] = clip_parameters
    return plan
