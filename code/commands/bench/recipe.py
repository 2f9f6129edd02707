"""The rows of `benchmark.py` against the published recipe: steps of stages A and B, a picture from EEG.

Shapes: B batch, C electrodes, T samples, h latent side, S = 8 h picture side.
"""

import copy
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from einops import repeat
from torch import nn

import commands.bench.peers as peers
from commands.bench.sizes import PAPER_ENCODER, SMALL_ENCODER, Machine, Row, Size, new_conditioner, new_unet, product
from data.windows import ResidentWindows
from dataset import EEGWindows
from dc_ldm.ldm_for_eeg import EEGLatentDiffusion, LatentTrials
from dc_ldm.models.autoencoder import AutoencoderKL
from dc_ldm.models.samplers import sd_alphas_cumprod
from runtime.devices import compile_in_place
from runtime.draws import Batch, StepBatches
from runtime.loop import Items, Trainer
from runtime.sampling import Sampling
from sc_mbm.mae_for_eeg import MAEforEEG
from sc_mbm.trainer import MaskedPretraining


def recipe_peers(step: Callable[[], object], machine: Machine) -> dict[str, Callable[[], object]]:
    """A step of the recipe in its own precision and in ours."""

    def call(autocast: bool) -> None:
        with torch.autocast(machine.device.type, machine.dtype, enabled=autocast):
            step()

    calls = {"published recipe, 32": partial(call, False)}
    if machine.dtype != torch.float32:
        calls["published recipe, bf16"] = partial(call, True)
    return calls


def step_of(module: nn.Module, items: Items, batch: Batch, machine: Machine, clip_grad: float) -> Callable[[], float]:
    """An optimizer step on a batch, as the stage of this training module takes it."""
    trainer = Trainer(
        module, module.configure_optimizers(), str(machine.device), machine.precision, clip_grad=clip_grad
    )
    return lambda: trainer.step(module.lr, [(batch, items[batch])])


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
    their_optimizer = torch.optim.AdamW(networks[1].parameters(), lr=2.5e-4)

    def published() -> None:
        assert folder  # the files live as long as this call may be made
        peers.stage_a_step(networks[1], their_optimizer, files, 0.75)

    return Row(step(modules[0]), recipe_peers(published, machine))


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
        unet = new_unet(size, use_time_cond=True)
        module = EEGLatentDiffusion(new_conditioner(size), unet, abar, torch.zeros(77, size.base.unet["context_dim"]))
        if machine.dtype == torch.bfloat16:
            module.halve_frozen()
        return module

    module, step = new_module(), partial(step_of, items=items, batch=batch, machine=machine, clip_grad=0.5)
    if compiled:
        compile_in_place(module.unet)
        return Row(step(module), {"ours, not compiled": step(new_module())})

    conditioner, unet = new_conditioner(size), new_unet(size, use_time_cond=True)
    vae, clip = AutoencoderKL(**size.base.vae), CLIPVisionModelWithProjection(CLIPVisionConfig(**size.clip))
    trained = [p for name, p in unet.named_parameters() if any(k in name for k in ("attn2", "norm2", "condtion"))]
    their_optimizer = torch.optim.AdamW([*conditioner.parameters(), *trained], lr=5.3e-5)
    for network in (conditioner, unet, vae, clip):
        network.to(machine.device)
    side = 8 * size.latent
    data = (eeg, torch.rand(n, 3, side, side) * 2 - 1, torch.randn(n, 3, *2 * [size.clip["image_size"]]))
    data = tuple(value.to(machine.device) for value in data)
    published = partial(peers.stage_b_step, conditioner, unet, vae, clip, their_optimizer, data, abar)
    return Row(step(module), recipe_peers(published, machine))


def picture(size: Size, machine: Machine) -> Row:
    """A picture from EEG, end to end: 20 DPM-Solver++ steps, trials in one batch, against the published protocol.

    The recipe samples five copies of one trial by PLMS; above the miniature it is timed at 5 of its 250 steps,
    without decoding.
    """
    steps = 250 if size.name == "miniature" else 5
    parts = new_conditioner(size), new_unet(size, use_time_cond=True), AutoencoderKL(**size.base.vae)
    for network in parts:
        network.eval().requires_grad_(False).to(machine.device)
    shape, abar = (4, size.latent, size.latent), sd_alphas_cumprod()
    generator = product(size, machine, *(copy.deepcopy(part) for part in parts[1:]), parts[0])
    eeg = repeat(torch.randn(128, 512), "c t -> n c t", n=size.pictures)

    def mine() -> None:
        generator.generate(eeg, torch.arange(len(eeg)), Sampling("dpm_solver", 20, batch=len(eeg)))

    trial = eeg[0].to(machine.device)
    theirs = recipe_peers(partial(peers.pictures_of_a_trial, *parts, trial, abar, shape, steps), machine)
    per = {"ours": size.pictures} | dict.fromkeys(theirs, 5 * (steps + 1) / 251)
    return Row(mine, theirs, per, "picture")
