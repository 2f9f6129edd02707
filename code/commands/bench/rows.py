"""The rows of `benchmark.py`: for each, our way and its named peers, as calls without arguments.

Shapes: B batch, C electrodes, T samples, h latent side.
"""

import copy
import tempfile
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

import commands.bench.peers as peers
from commands.bench.data import data_batches, data_start
from commands.bench.evaluation import evaluation, n_way
from commands.bench.recipe import picture, stage_a, stage_b
from commands.bench.sizes import Machine, Row, Size, awake, inputs, product
from commands.bench.sizes import unet as new_unet
from dc_ldm.generator import EEGImageGenerator
from dc_ldm.models.autoencoder import AutoencoderKL
from runtime.devices import compile_in_place
from runtime.sampling import Sampling
from sc_mbm.mae_for_eeg import EEGEncoder
from vision.clip import FrozenCLIP


def layouts(network: nn.Module) -> dict[str, nn.Module]:
    """A peer's network in torch's usual layout and, as a copy, channels last."""
    last = copy.deepcopy(network).to(memory_format=torch.channels_last)
    return {"diffusers": network, "diffusers channels_last": last}


def sides(call: Callable, ours: nn.Module, theirs: nn.Module, compiled: bool) -> Row:
    """`call` with our network and with diffusers'; compiled: ours so, beside ours as it is and their fastest."""
    peer_networks = layouts(theirs)
    if compiled:
        fastest = torch.compile(peer_networks["diffusers channels_last"])
        peer_networks = {"ours, not compiled": ours, "diffusers channels_last, compiled": fastest}
    mine = torch.compile(ours) if compiled else ours
    return Row(partial(call, mine), {who: partial(call, network) for who, network in peer_networks.items()})


def same_answers(ours: Tensor, theirs: Tensor) -> None:
    """Refuse to time networks that do not compute the same, rounding aside."""
    apart = ((ours - theirs).float().norm() / theirs.float().norm()).item()
    assert apart < 0.05, f"the peer's answer is {apart:.0%} away from ours"


def unet_forward(size: Size, machine: Machine, compiled: bool = False) -> Row:
    """One prediction of the noise."""
    ours, (x, t, context) = awake(new_unet(size)), inputs(size, machine, size.pictures)
    theirs = peers.diffusers_unet(ours, size.unet, size.context_dim).eval().to(*machine)
    ours = product(size, machine, ours, AutoencoderKL(**size.vae)).unet

    def call(network: Callable) -> Tensor:
        with torch.inference_mode():
            return network(x, t, context)

    same_answers(call(ours), call(theirs).sample)
    return sides(call, ours, theirs, compiled)


def unet_training(size: Size, machine: Machine, compiled: bool = False) -> Row:
    """Forward and backward with gradients for the cross-attention alone; autocast on both sides."""
    ours, (x, t, context) = awake(new_unet(size)), inputs(size, Machine(machine.device, torch.float32), size.batch)
    theirs = peers.diffusers_unet(ours, size.unet, size.context_dim)
    for network in (ours, theirs):
        network.to(machine.device)
        for name, parameter in network.named_parameters():
            parameter.requires_grad_("attn2" in name or "transformer_blocks" in name and "norm2" in name)
    ours.to(memory_format=torch.channels_last)  # as stage B trains

    def call(network: Callable) -> None:
        with machine.autocast():
            answer = network(x, t, context)
        F.mse_loss((answer if isinstance(answer, Tensor) else answer.sample).float(), x).backward()

    return sides(call, ours, theirs, compiled)


def sampling(size: Size, machine: Machine, compiled: bool = False, steps: int = 10) -> Row:
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

    def mine(own: EEGImageGenerator) -> Tensor:
        return own.from_context(condition, seeds, Sampling("dpm_solver", steps, batch=len(x)))

    if not compiled:
        both = {who: partial(diffusers, network, their_vae[who]) for who, network in theirs.items()}
        return Row(partial(mine, generator), both)
    fast, best = copy.deepcopy(generator), "diffusers channels_last"
    compile_in_place(fast.unet)
    others = {
        "ours, not compiled": partial(mine, generator),
        f"{best}, compiled": partial(diffusers, torch.compile(theirs[best]), their_vae[best]),
    }
    return Row(partial(mine, fast), others)


def vae_decode(size: Size, machine: Machine) -> Row:
    """Latents to pixels."""
    ours, (z, _, _) = AutoencoderKL(**size.vae), inputs(size, machine, size.pictures)
    theirs = peers.diffusers_vae(ours, **size.vae).eval().to(*machine)
    ours = product(size, machine, new_unet(size), ours).vae

    def call(network: nn.Module) -> Tensor:
        with torch.inference_mode():
            return network.decode(z)

    same_answers(call(ours), call(theirs).sample)
    return sides(call, ours, theirs, compiled=False)


def clip_embedding(size: Size, machine: Machine, n: int = 8) -> Row:
    """Pictures to CLIP's space, in float32. Ours is transformers' network too, so the ratio is one of preprocessing.

    What stage B saves by doing this once for each picture is in the row stage_b.
    """
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    folder, side = tempfile.TemporaryDirectory(), size.clip["image_size"]
    torch.manual_seed(0)
    config = CLIPConfig(vision_config=size.clip, projection_dim=size.clip["projection_dim"])
    CLIPModel(config).save_pretrained(folder.name)
    crop = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    CLIPImageProcessor(**crop).save_pretrained(folder.name)
    ours, theirs = FrozenCLIP(folder.name, machine.device), CLIPModel.from_pretrained(folder.name).to(machine.device)
    processor, random = CLIPImageProcessor.from_pretrained(folder.name), np.random.default_rng(0)
    folder.cleanup()
    shape = (8 * size.latent, 8 * size.latent, 3)
    pictures = [Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8)) for _ in range(n)]

    def transformers() -> None:
        pixels = processor(images=pictures, return_tensors="pt")["pixel_values"].to(machine.device)
        with torch.inference_mode():
            theirs.get_image_features(pixel_values=pixels)

    return Row(partial(ours.embed_images, pictures), {"transformers": transformers})


def encoder(size: Size, machine: Machine) -> Row:
    """EEG to tokens; the peer is timm's blocks between our first and last layer."""
    from timm.models.vision_transformer import Block

    torch.manual_seed(0)
    ours = EEGEncoder(**size.encoder)
    width, heads, ratio = (size.encoder[k] for k in ("embed_dim", "num_heads", "mlp_ratio"))
    theirs = copy.deepcopy(ours)
    theirs.blocks = nn.ModuleList(Block(width, heads, mlp_ratio=ratio, qkv_bias=True) for _ in ours.blocks)
    for block in theirs.blocks:
        block.norm1.eps = block.norm2.eps = 1e-5
    theirs.load_state_dict(ours.state_dict())
    ours, theirs = (network.eval().to(*machine) for network in (ours, theirs))
    eeg = torch.randn(size.batch, 128, 512).to(*machine)

    def call(network: nn.Module) -> Tensor:
        with torch.inference_mode():
            return network(eeg)

    same_answers(call(ours), call(theirs))
    return Row(partial(call, ours), {"timm": partial(call, theirs)})


_ALL = (
    data_start, data_batches, encoder, clip_embedding, stage_a, unet_forward, unet_training, stage_b, vae_decode,
    sampling, picture, n_way, evaluation,
)  # fmt: skip
ROWS: dict[str, Callable[[Size, Machine], Row]] = {row.__name__: row for row in _ALL}
# the same by torch.compile's code: a minute or more before the first answer, so in no table unless asked for
_COMPILED = {
    "unet": unet_forward,
    "training": unet_training,
    "sampling": sampling,
    "stage_a": stage_a,
    "stage_b": stage_b,
}
ONLY_IF_ASKED = tuple(f"{name}_compiled" for name in _COMPILED)
ROWS |= {f"{name}_compiled": partial(row, compiled=True) for name, row in _COMPILED.items()}
