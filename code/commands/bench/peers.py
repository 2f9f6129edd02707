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

from dc_ldm.models.autoencoder import AutoencoderKL
from dc_ldm.models.samplers import plms
from dc_ldm.models.unet import UNet
from dc_ldm.modules.attention import GroupNorm
from dc_ldm.modules.conditioner import EEGConditioner
from sc_mbm.mae_for_eeg import MAEforEEG


def diffusers_unet(ours: UNet, sizes: dict, context_dim: int) -> nn.Module:
    """diffusers' network with our weights."""
    from diffusers import UNet2DConditionModel
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    mult, levels = sizes["channel_mult"], [2**i for i in range(len(sizes["channel_mult"]))]
    crossed = [level in sizes["attention_resolutions"] for level in levels]
    theirs = UNet2DConditionModel(
        block_out_channels=[sizes["model_channels"] * m for m in mult],
        layers_per_block=sizes.get("num_res_blocks", 2),
        down_block_types=["CrossAttnDownBlock2D" if c else "DownBlock2D" for c in crossed],
        up_block_types=["CrossAttnUpBlock2D" if c else "UpBlock2D" for c in reversed(crossed)],
        attention_head_dim=sizes.get("num_heads", 8),
        cross_attention_dim=context_dim,
    )
    weights = {f"model.diffusion_model.{name}": value for name, value in ours.state_dict().items()}
    theirs.load_state_dict(convert_ldm_unet_checkpoint(weights, theirs.config))
    return theirs


def diffusers_vae(ours: AutoencoderKL, ch: int = 128) -> nn.Module:
    """diffusers' autoencoder with our weights."""
    from diffusers import AutoencoderKL as Theirs
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    theirs = Theirs(
        block_out_channels=[ch, 2 * ch, 4 * ch, 4 * ch], layers_per_block=2, norm_num_groups=ch // 4,
        down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4,
    )  # fmt: skip
    weights = {f"first_stage_model.{name}": value for name, value in ours.state_dict().items()}
    theirs.load_state_dict(convert_ldm_vae_checkpoint(weights, theirs.config))
    for norm in (m for m in theirs.modules() if isinstance(m, nn.GroupNorm)):
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


def read_window(path: Path, n_times: int = 512, n_chans: int = 128) -> Tensor:
    """One recording read and interpolated for one item, (n_chans, n_times): scipy, float64, channels replicated."""
    data = np.load(path)
    if data.shape[-1] > n_times:
        start = np.random.randint(0, data.shape[-1] - n_times + 1)
        data = data[:, start : start + n_times]
    else:
        grid = np.linspace(0, 1, data.shape[-1])
        data = interp1d(grid, data)(np.linspace(0, 1, n_times))
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
