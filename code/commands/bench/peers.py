"""What `benchmark.py` measures against: diffusers' networks, and the published recipe written from its description.

The recipe (bbaaii/DreamDiffusion, 8e14797): float32; attention with its whole matrix in memory; gradient checkpointing
in every block; gradients for everything that is not optimised either; the VAE and CLIP run on every batch; one trial
sampled at a time, five copies of it, 250 PLMS steps that compute everything anew; stage A reads and interpolates each
recording with scipy and correlates each prediction on the CPU.

Shapes: B batch, C electrodes, T samples, L tokens, S picture side in pixels.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy.interpolate import interp1d
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from commands.convert_checkpoint import in_diffusers
from dc_ldm.models.autoencoder import AutoencoderKL
from dc_ldm.models.samplers import plms
from dc_ldm.models.unet import UNet
from dc_ldm.modules.attention import GroupNorm
from dc_ldm.modules.conditioner import EEGConditioner
from dc_ldm.weights import BaseSizes
from sc_mbm.mae_for_eeg import MAEforEEG


def diffusers_twin(ours: UNet | AutoencoderKL, sizes: BaseSizes) -> nn.Module:
    """Diffusers' network with our weights."""
    import diffusers

    part = "unet" if isinstance(ours, UNet) else "vae"
    states = {"unet": {}, "vae": {}} | {part: ours.state_dict()}
    config, state = in_diffusers(**states, sizes=sizes, img_size=512)[part]
    groups = {"norm_num_groups": 32 if part == "unet" else sizes.vae["ch"] // 4}
    theirs = getattr(diffusers, config.pop("_class_name")).from_config(config | groups)
    theirs.load_state_dict(state)
    for norm in (m for m in theirs.modules() if isinstance(m, nn.GroupNorm) and part == "vae"):
        norm.num_groups = GroupNorm(norm.num_channels, norm.eps).num_groups  # theirs knows one number for all widths
    return theirs


@contextmanager
def slow_attention() -> Iterator[None]:
    """Attention as softmax(q k) v with the whole matrix in memory, as an einsum computes it."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


@contextmanager
def checkpointed(module: nn.Module, *kinds: str) -> Iterator[None]:
    """Recompute every submodule whose class is named one of `kinds` in the backward pass."""
    chosen = [part for part in module.modules() if type(part).__name__ in kinds]
    assert {type(part).__name__ for part in chosen} == set(kinds)
    with ExitStack() as undo:
        for part in chosen:
            part.forward = lambda *args, plain=part.forward: checkpoint(plain, *args, use_reentrant=False)
            undo.callback(delattr, part, "forward")
        yield


def interpolated(data: np.ndarray, n_times: int) -> np.ndarray:
    """(C, T) -> (C, n_times) float64, linearly, both ends kept."""
    return interp1d(np.linspace(0, 1, data.shape[-1]), data)(np.linspace(0, 1, n_times))


def read_window(path: Path, n_times: int = 512, n_chans: int = 128) -> Tensor:
    """One recording read and interpolated for one item, (n_chans, n_times): scipy, float64, channels replicated."""
    data = np.load(path)
    if data.shape[-1] > n_times:
        start = np.random.randint(0, data.shape[-1] - n_times + 1)
        data = data[:, start : start + n_times]
    else:
        data = interpolated(data, n_times)
    rows = np.concatenate([data] * -(-n_chans // len(data)))[:n_chans]
    return torch.from_numpy(rows / 10).float()


def stage_a_step(mae: MAEforEEG, optimizer: torch.optim.Optimizer, files: list[Path], mask_ratio: float) -> float:
    """One optimizer step on a batch read from its files; returns the loss."""
    eeg = torch.stack([read_window(path) for path in files]).to(next(mae.parameters()).device)
    with slow_attention():
        loss, predicted, _ = mae(eeg, mask_ratio)
        optimizer.zero_grad()
        loss.backward()
    nn.utils.clip_grad_norm_(mae.parameters(), 0.8)
    optimizer.step()
    first = mae.unpatchify(predicted.detach().float())[:, 0].cpu().numpy()
    np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(first, eeg[:, 0].cpu().numpy(), strict=True)])
    return loss.item()


def stage_b_step(
    conditioner: EEGConditioner,
    unet: UNet,
    vae: nn.Module,
    clip: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: tuple[Tensor, Tensor, Tensor],
    alphas_cumprod: Tensor,
) -> float:
    """One optimizer step; data: eeg (B, C, T), image (B, 3, S, S) in [-1, 1], the same for CLIP (B, 3, 224, 224)."""
    eeg, image, plain = data
    with slow_attention(), checkpointed(unet, "ResBlock", "TransformerBlock"):
        with torch.no_grad():
            posterior = vae.encode(image)
            latent = 0.18215 * posterior.sample(torch.randn_like(posterior.mean))
        context, embedding = conditioner(eeg)
        target = clip(pixel_values=plain).image_embeds
        t, noise = torch.randint(0, 1000, (len(eeg),), device=eeg.device), torch.randn_like(latent)
        abar = alphas_cumprod.to(t.device)[t].view(-1, 1, 1, 1)
        predicted = unet(abar.sqrt() * latent + (1 - abar).sqrt() * noise, t, context)
        loss = F.mse_loss(predicted, noise) + 1 - F.cosine_similarity(embedding, target).mean()
        loss.backward()
    nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 0.5)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


@torch.no_grad()
def pictures_of_a_trial(
    conditioner: EEGConditioner,
    unet: UNet,
    vae: nn.Module,
    eeg: Tensor,
    alphas_cumprod: Tensor,
    latent_shape: tuple[int, int, int],
    steps: int = 250,
    copies: int = 5,
) -> Tensor:
    """Pictures (copies, 3, S, S) of one trial (C, T): the encoder runs on every copy, in float32."""
    with slow_attention():
        context = conditioner(eeg.expand(copies, -1, -1))[0]
        latent = plms(
            lambda x, t: unet(x, t, context),
            torch.randn(copies, *latent_shape, device=eeg.device),
            alphas_cumprod,
            steps,
        )
        # a shortened call stands for a long one, of which decoding is a small part: it is left out, in its favour
        return vae.decode(latent / 0.18215) if steps == 250 else latent
