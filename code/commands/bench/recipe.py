"""The rows of `benchmark.py` against the published recipe: steps of stages A and B, a picture from EEG.

The recipe (bbaaii/DreamDiffusion, 8e14797) is written from its description: float32; attention with its whole matrix in
memory; gradient checkpointing in every block; gradients for everything that is not optimised either; the VAE and CLIP
run on every batch; one trial sampled at a time, five copies of it, 250 PLMS steps that compute everything anew; stage A
reads and interpolates each recording with scipy and correlates each prediction on the CPU.

Shapes: B batch, C electrodes, T samples, h latent side, S = 8 h picture side in pixels.
"""

import copy
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import repeat
from scipy.interpolate import interp1d
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from commands.bench.sizes import PAPER_ENCODER, SMALL_ENCODER, Machine, Row, Size, new_conditioner, new_unet, product
from data.windows import ResidentWindows
from dataset import EEGWindows
from dc_ldm.ldm_for_eeg import EEGLatentDiffusion, LatentTrials
from dc_ldm.models.autoencoder import AutoencoderKL
from dc_ldm.models.samplers import plms, sd_alphas_cumprod
from dc_ldm.models.unet import UNet
from dc_ldm.modules.conditioner import EEGConditioner
from runtime.devices import compile_in_place
from runtime.draws import Batch, StepBatches
from runtime.loop import Items, Trainer
from runtime.sampling import Sampling
from sc_mbm.mae_for_eeg import MAEforEEG
from sc_mbm.trainer import MaskedPretraining


def recipe_peers(step: Callable[[], object], machine: Machine) -> dict[str, Callable[[], object]]:
    """A step of the recipe in its own precision and in ours."""

    def call(autocast: bool) -> None:
        # attention as softmax(q k) v with the whole matrix in memory, as an einsum computes it
        with torch.autocast(machine.device.type, machine.dtype, enabled=autocast), sdpa_kernel(SDPBackend.MATH):
            step()

    calls = {"published recipe, 32": partial(call, False)}
    if machine.dtype != torch.float32:
        calls["published recipe, bf16"] = partial(call, True)
    return calls


def step_of(module: nn.Module, items: Items, batch: Batch, machine: Machine, clip_grad: float) -> Callable[[], float]:
    """An optimizer step on a batch, as the stage of this training module takes it."""
    optimizer, device = module.configure_optimizers(), str(machine.device)
    trainer = Trainer(module, optimizer, device, machine.precision, clip_grad=clip_grad)
    return lambda: trainer.step(module.lr, [(batch, items[batch])])


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


def stage_a_step(mae: MAEforEEG, optimizer: torch.optim.Optimizer, files: list[Path], mask_ratio: float) -> None:
    """The recipe's optimizer step of stage A on a batch read from its files."""
    eeg = torch.stack([read_window(path) for path in files]).to(next(mae.parameters()).device)
    loss, predicted, _ = mae(eeg, mask_ratio)
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(mae.parameters(), 0.8)
    optimizer.step()
    first = mae.unpatchify(predicted.detach().float())[:, 0].cpu().numpy()
    np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(first, eeg[:, 0].cpu().numpy(), strict=True)])


def stage_a(size: Size, machine: Machine, compiled: bool = False) -> Row:
    """A step of stage A at mask ratio 0.75, batch 32, reading included; the recipe in float32 and in our precision."""
    folder = tempfile.TemporaryDirectory()
    rng = np.random.default_rng(0)
    files = [Path(folder.name) / f"{i}.npy" for i in range(32)]
    for path in files:
        np.save(path, rng.standard_normal((64, 400)).astype(np.float32))
    windows = EEGWindows(folder.name, held_out=0)
    items = ResidentWindows(windows, machine.device) if machine.device.type == "cuda" else windows
    batch = next(iter(StepBatches(32, 32, 0, 0, 1)))
    networks = [MAEforEEG(**size.encoder, **size.decoder).to(machine.device) for _ in range(2)]
    modules = [MaskedPretraining(network, 0.75, 2.5e-4, 0.0, 0.05, 0, 1, 0) for network in networks]
    step = partial(step_of, items=items, batch=batch, machine=machine, clip_grad=0.8)
    if compiled:
        compile_in_place(modules[0].mae)
        return Row(step(modules[0]), {"ours, not compiled": step(modules[1])})
    optimizer = torch.optim.AdamW(networks[1].parameters(), lr=2.5e-4)

    def published() -> None:
        assert folder  # the files live as long as this call may be made
        stage_a_step(networks[1], optimizer, files, 0.75)

    return Row(step(modules[0]), recipe_peers(published, machine))


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


def stage_b_step(
    conditioner: EEGConditioner, unet: UNet, vae: nn.Module, clip: nn.Module, optimizer: torch.optim.Optimizer,
    data: tuple[Tensor, Tensor, Tensor], alphas_cumprod: Tensor,
) -> None:  # fmt: skip
    """The recipe's optimizer step of stage B; data: eeg (B, C, T), image (B, 3, S, S) in [-1, 1], the same for CLIP."""
    eeg, image, plain = data
    with checkpointed(unet, "ResBlock", "TransformerBlock"):
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


def stage_b(size: Size, machine: Machine, compiled: bool = False) -> Row:
    """A step of stage B; pictures and their CLIP embeddings come from our cache, and anew in the peers.

    So that both sides fit in 24 GB, the encoder is the published code's at half size (24 x 1024, MLP ratio 1) and the
    miniature's beside the full networks; it is the same on both sides.
    """
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    half_encoder = PAPER_ENCODER | {"mlp_ratio": 1.0}
    size = size._replace(encoder=half_encoder if size.name == "half" else SMALL_ENCODER)
    n, abar = size.batch, sd_alphas_cumprod()
    eeg, dim = torch.randn(n, 128, 512), size.clip["projection_dim"]
    moments = torch.randn(n, 5, 2, 4, size.latent, size.latent)
    items = LatentTrials(eeg, torch.arange(n), moments, torch.randn(n, dim))
    batch = next(iter(StepBatches(n, n, 0, 0, 1)))

    def new_module() -> EEGLatentDiffusion:
        unet, start = new_unet(size, use_time_cond=True), torch.zeros(77, size.base.unet["context_dim"])
        module = EEGLatentDiffusion(new_conditioner(size), unet, abar, start)
        if machine.dtype == torch.bfloat16:
            module.halve_frozen()
        return module

    module, step = new_module(), partial(step_of, items=items, batch=batch, machine=machine, clip_grad=0.5)
    if compiled:
        compile_in_place(module.unet)
        return Row(step(module), {"ours, not compiled": step(new_module())})

    conditioner, unet = new_conditioner(size), new_unet(size, use_time_cond=True)
    vae, clip = AutoencoderKL(**size.base.vae), CLIPVisionModelWithProjection(CLIPVisionConfig(**size.clip))
    networks = [network.to(machine.device) for network in (conditioner, unet, vae, clip)]
    trained = [p for name, p in unet.named_parameters() if any(k in name for k in ("attn2", "norm2", "condtion"))]
    optimizer = torch.optim.AdamW([*conditioner.parameters(), *trained], lr=5.3e-5)
    side, clip_side = 8 * size.latent, size.clip["image_size"]
    data = (eeg, torch.rand(n, 3, side, side) * 2 - 1, torch.randn(n, 3, clip_side, clip_side))
    data = tuple(value.to(machine.device) for value in data)
    return Row(step(module), recipe_peers(partial(stage_b_step, *networks, optimizer, data, abar), machine))


@torch.no_grad()
def pictures_of_a_trial(
    conditioner: EEGConditioner, unet: UNet, vae: nn.Module, eeg: Tensor, alphas_cumprod: Tensor, noise: Tensor,
    steps: int,
) -> Tensor:  # fmt: skip
    """The recipe's pictures of one trial (C, T), one from each noise: the encoder runs on every copy, in float32."""
    context = conditioner(eeg.expand(len(noise), -1, -1))[0]
    latent = plms(lambda x, t: unet(x, t, context), noise, alphas_cumprod, steps)
    # a shortened call stands for a long one, of which decoding is a small part: it is left out, in its favour
    return vae.decode(latent / 0.18215) if steps == 250 else latent


def picture(size: Size, machine: Machine) -> Row:
    """A picture from EEG, end to end: 20 DPM-Solver++ steps, trials in one batch, against the published protocol.

    The recipe samples five copies of one trial by PLMS; above the miniature it is timed at 5 of its 250 steps,
    without decoding.
    """
    steps = 250 if size.name == "miniature" else 5
    parts = new_conditioner(size), new_unet(size, use_time_cond=True), AutoencoderKL(**size.base.vae)
    for network in parts:
        network.eval().requires_grad_(False).to(machine.device)
    generator = product(size, machine, *(copy.deepcopy(part) for part in parts[1:]), parts[0])
    eeg = repeat(torch.randn(128, 512), "c t -> n c t", n=size.pictures)
    ours = partial(generator.generate, eeg, torch.arange(len(eeg)), Sampling("dpm_solver", 20, batch=len(eeg)))
    noise = torch.randn(5, 4, size.latent, size.latent, device=machine.device)
    trial, abar = eeg[0].to(machine.device), sd_alphas_cumprod()
    theirs = recipe_peers(partial(pictures_of_a_trial, *parts, trial, abar, noise, steps), machine)
    per = {"ours": size.pictures} | dict.fromkeys(theirs, 5 * (steps + 1) / 251)
    return Row(ours, theirs, per, "picture")
