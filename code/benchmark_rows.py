"""The rows of `benchmark.py`: for each, our way and its named peers, as calls without arguments.

Shapes: B batch, C electrodes, T samples, h latent side, S = 8 h picture side.
"""

import copy
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import repeat
from torch import Tensor, nn

import benchmark_peers as peers
from benchmark_data import data_batches, data_start
from benchmark_evaluation import evaluation, n_way
from benchmark_sizes import SIZES, Machine, Row, Size, inputs
from benchmark_sizes import conditioner as new_conditioner
from benchmark_sizes import unet as new_unet
from dataset import EEGWindows
from dc_ldm.generator import EEGImageGenerator, in_precision
from dc_ldm.ldm_for_eeg import EEGLatentDiffusion, LatentTrials
from dc_ldm.models.autoencoder import AutoencoderKL
from dc_ldm.models.samplers import sd_alphas_cumprod
from dc_ldm.models.unet import UNet
from dc_ldm.weights import Base, BaseSizes
from runtime.draws import StepBatches
from sc_mbm.mae_for_eeg import EEGEncoder, MAEforEEG
from sc_mbm.trainer import MaskedPretraining


def product(
    size: Size, machine: Machine, unet: UNet, vae: AutoencoderKL, conditioner: nn.Module | None = None
) -> EEGImageGenerator:
    """Our networks, placed and laid out in memory as they are for every user's pictures."""
    placed = in_precision(Base(unet.eval(), vae.eval(), BaseSizes(size.unet, size.vae), "untrained", ""), *machine)
    shape, nothing = (4, size.latent, size.latent), torch.zeros(77, size.context_dim)
    return EEGImageGenerator(conditioner or nn.Identity(), *placed, sd_alphas_cumprod(), nothing, shape)


def layouts(network: nn.Module) -> dict[str, nn.Module]:
    """A peer's network in torch's usual layout and, as a copy, channels last."""
    last = copy.deepcopy(network).to(memory_format=torch.channels_last)
    return {"diffusers": network, "diffusers channels_last": last}


def unet_forward(size: Size, machine: Machine) -> Row:
    """One prediction of the noise."""
    ours, (x, t, context) = new_unet(size), inputs(size, machine, size.pictures)
    theirs = peers.diffusers_unet(ours, size.unet, size.context_dim).eval().to(*machine)
    ours = product(size, machine, ours, AutoencoderKL(**size.vae)).unet

    def call(network: Callable) -> None:
        with torch.inference_mode():
            network(x, t, context)

    return Row(partial(call, ours), {who: partial(call, network) for who, network in layouts(theirs).items()})


def unet_compiled(size: Size, machine: Machine) -> Row:
    """The same by torch.compile's code; a minute or more before the first answer, so in no table unless asked for."""
    ours, (x, t, context) = new_unet(size).eval(), inputs(size, machine, size.pictures)
    theirs = peers.diffusers_unet(ours, size.unet, size.context_dim).eval()
    ours, theirs = (m.to(*machine, memory_format=torch.channels_last) for m in (ours, theirs))
    x = x.to(memory_format=torch.channels_last)

    def call(network: Callable) -> None:
        with torch.inference_mode():
            network(x, t, context)

    others = {"ours, not compiled": ours, "diffusers channels_last, compiled": torch.compile(theirs)}
    return Row(partial(call, torch.compile(ours)), {who: partial(call, network) for who, network in others.items()})


def unet_training(size: Size, machine: Machine) -> Row:
    """Forward and backward with gradients for the cross-attention alone; autocast on both sides."""
    ours, (x, t, context) = new_unet(size), inputs(size, Machine(machine.device, torch.float32), size.batch)
    theirs = peers.diffusers_unet(ours, size.unet, size.context_dim)
    for network in (ours, theirs):
        network.to(machine.device)
        for name, parameter in network.named_parameters():
            parameter.requires_grad_("attn2" in name or "transformer_blocks" in name and "norm2" in name)

    def call(network: Callable) -> None:
        with machine.autocast():
            answer = network(x, t, context)
        F.mse_loss((answer if isinstance(answer, Tensor) else answer.sample).float(), x).backward()

    return Row(partial(call, ours), {who: partial(call, network) for who, network in layouts(theirs).items()})


def sampling(size: Size, machine: Machine, steps: int = 10) -> Row:
    """Ten steps of DPM-Solver++(2M) from noise to pixels; ours also draws the noise and hands over uint8."""
    from diffusers import DPMSolverMultistepScheduler

    ours, vae, (x, _, context) = new_unet(size), AutoencoderKL(**size.vae), inputs(size, machine, size.pictures)
    theirs, their_vae = (
        layouts(m.eval().to(*machine))
        for m in (peers.diffusers_unet(ours, size.unet, size.context_dim), peers.diffusers_vae(vae, **size.vae))
    )
    generator, condition, seeds = product(size, machine, ours, vae), context.float().cpu(), torch.arange(len(x))
    schedule = DPMSolverMultistepScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, timestep_spacing="linspace"
    )

    @torch.inference_mode()
    def diffusers(network: nn.Module, decoder: nn.Module) -> Tensor:
        z = x
        schedule.set_timesteps(steps)
        for t in schedule.timesteps:
            z = schedule.step(network(z, t, context).sample, t, z).prev_sample
        return decoder.decode(z / 0.18215).sample

    mine = partial(generator.from_context, condition, seeds, steps, "dpm_solver", 1.0, len(x))
    return Row(mine, {who: partial(diffusers, network, their_vae[who]) for who, network in theirs.items()})


def vae_decode(size: Size, machine: Machine) -> Row:
    """Latents to pixels."""
    ours, (z, _, _) = AutoencoderKL(**size.vae), inputs(size, machine, size.pictures)
    theirs = peers.diffusers_vae(ours, **size.vae).eval().to(*machine)
    ours = product(size, machine, new_unet(size), ours).vae

    def call(network: nn.Module) -> None:
        with torch.inference_mode():
            network.decode(z)

    return Row(partial(call, ours), {who: partial(call, network) for who, network in layouts(theirs).items()})


def encoder(size: Size, machine: Machine) -> Row:
    """EEG to tokens, against timm's blocks of the same width and depth."""
    from timm.models.vision_transformer import Block

    torch.manual_seed(0)
    ours = EEGEncoder(**size.encoder)
    width, heads, ratio = (size.encoder[k] for k in ("embed_dim", "num_heads", "mlp_ratio"))
    blocks = [Block(width, heads, mlp_ratio=ratio, qkv_bias=True) for _ in ours.blocks]
    for theirs, block in zip(blocks, ours.blocks, strict=True):
        theirs.load_state_dict(block.state_dict())
    theirs = nn.Sequential(*blocks).eval().to(*machine)
    ours = ours.eval().to(*machine)
    eeg = torch.randn(size.batch, 128, 512).to(*machine)
    tokens = torch.randn(size.batch, 128, width).to(*machine)

    def call(network: nn.Module, x: Tensor) -> None:
        with torch.inference_mode():
            network(x)

    return Row(partial(call, ours, eeg), {"timm (blocks alone)": partial(call, theirs, tokens)})


def stage_a(size: Size, machine: Machine) -> Row:
    """A step of stage A at mask ratio 0.75, batch 32, reading included; the recipe in float32 and in our precision."""
    folder = tempfile.TemporaryDirectory()
    rng = np.random.default_rng(0)
    files = [Path(folder.name) / f"{i}.npy" for i in range(32)]
    for path in files:
        np.save(path, rng.standard_normal((64, 400)).astype(np.float32))
    windows = EEGWindows(folder.name, held_out=0)
    batch = next(iter(StepBatches(32, 32, 0, 0, 1)))
    networks = [MAEforEEG(**size.encoder, **size.decoder).to(machine.device) for _ in range(2)]
    module = MaskedPretraining(networks[0], 0.75, 2.5e-4, 0.0, 0.05, 0, 1, 0)
    optimizers = [module.configure_optimizers(), torch.optim.AdamW(networks[1].parameters(), lr=2.5e-4)]

    def mine() -> None:
        with machine.autocast():
            loss = module.training_step((batch, windows[batch].to(machine.device)), 0)
        optimizers[0].zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(networks[0].parameters(), 0.8)
        optimizers[0].step()

    def published(autocast: bool) -> None:
        assert folder  # the files live as long as this call may be made
        with torch.autocast(machine.device.type, machine.dtype, enabled=autocast):
            peers.stage_a_step(networks[1], optimizers[1], files, 0.75)

    return Row(mine, _recipe_peers(published, machine))


def _recipe_peers(published: Callable[[bool], object], machine: Machine) -> dict[str, Callable[[], object]]:
    calls = {"published recipe, 32": partial(published, False)}
    if machine.dtype != torch.float32:
        calls["published recipe, bf16"] = partial(published, True)
    return calls


def stage_b(size: Size, machine: Machine) -> Row:
    """A step of stage B; pictures and their CLIP embeddings come from our cache, and anew in the peers."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    n, abar = size.batch, sd_alphas_cumprod()
    eeg, dim = torch.randn(n, 128, 512), size.clip["projection_dim"]
    moments = torch.randn(n, 5, 2, 4, size.latent, size.latent)
    items = LatentTrials(eeg, torch.arange(n), moments, torch.randn(n, dim))
    no_context = torch.zeros(77, size.context_dim)
    module = EEGLatentDiffusion(new_conditioner(size), new_unet(size, use_time_cond=True), abar, no_context)
    if machine.dtype == torch.bfloat16:
        module.halve_frozen()
    module.to(machine.device)
    optimizer = module.configure_optimizers()
    batch = next(iter(StepBatches(n, n, 0, 0, 1)))

    conditioner, unet = new_conditioner(size), new_unet(size, use_time_cond=True)
    vae, clip = AutoencoderKL(**size.vae), CLIPVisionModelWithProjection(CLIPVisionConfig(**size.clip))
    trained = [p for name, p in unet.named_parameters() if any(k in name for k in ("attn2", "norm2", "condtion"))]
    their_optimizer = torch.optim.AdamW([*conditioner.parameters(), *trained], lr=5.3e-5)
    for network in (conditioner, unet, vae, clip):
        network.to(machine.device)
    side = 8 * size.latent
    data = (eeg, torch.rand(n, 3, side, side) * 2 - 1, torch.randn(n, 3, *2 * [size.clip["image_size"]]))
    data = tuple(value.to(machine.device) for value in data)

    def mine() -> None:
        with machine.autocast():
            data = items[batch]
            loss = module.training_step((batch, type(data)(*(v.to(machine.device) for v in data))), 0)
        loss.backward()
        nn.utils.clip_grad_norm_([p for p in module.parameters() if p.requires_grad], 0.5)
        optimizer.step()
        optimizer.zero_grad()

    def published(autocast: bool) -> None:
        with torch.autocast(machine.device.type, machine.dtype, enabled=autocast):
            peers.stage_b_step(conditioner, unet, vae, clip, their_optimizer, data, abar)

    return Row(mine, _recipe_peers(published, machine))


def picture(size: Size, machine: Machine) -> Row:
    """A picture from EEG, end to end: 20 DPM-Solver++ steps, trials in one batch, against the published protocol.

    The recipe samples five copies of one trial by PLMS; above the miniature it is timed at 5 of its 250 steps,
    without decoding.
    """
    steps = 250 if size is SIZES["miniature"] else 5
    parts = new_conditioner(size).eval(), new_unet(size, use_time_cond=True).eval(), AutoencoderKL(**size.vae).eval()
    for network in parts:
        network.requires_grad_(False).to(machine.device)
    shape, abar = (4, size.latent, size.latent), sd_alphas_cumprod()
    generator = product(size, machine, *(copy.deepcopy(part) for part in parts[1:]), parts[0])
    eeg = repeat(torch.randn(128, 512), "c t -> n c t", n=size.pictures)

    def mine() -> None:
        generator.generate(eeg, torch.arange(len(eeg)), 20, "dpm_solver", batch_size=len(eeg))

    theirs = partial(peers.pictures_of_a_trial, *parts, eeg[0].to(machine.device), abar, shape, steps)
    per = {"ours": size.pictures, "published protocol, 32": 5 * (steps + 1) / 251}
    return Row(mine, {"published protocol, 32": theirs}, per, "picture")


_ALL = (
    data_start, data_batches, encoder, stage_a, unet_forward, unet_training, stage_b, vae_decode, sampling, picture,
    n_way, evaluation, unet_compiled,
)  # fmt: skip
ROWS: dict[str, Callable[[Size, Machine], Row]] = {row.__name__: row for row in _ALL}
ONLY_IF_ASKED = ("unet_compiled",)
