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

from commands.bench.data import data_batches, data_start
from commands.bench.evaluation import evaluation, n_way
from commands.bench.recipe import picture, stage_a, stage_b
from commands.bench.sizes import Machine, Row, Size, inputs, new_unet, product
from commands.convert_checkpoint import in_diffusers
from dc_ldm.generator import EEGImageGenerator
from dc_ldm.models.autoencoder import AutoencoderKL
from dc_ldm.models.unet import UNet
from dc_ldm.modules.attention import GroupNorm
from dc_ldm.weights import BaseSizes
from runtime.devices import compile_in_place
from runtime.sampling import Sampling
from sc_mbm.mae_for_eeg import EEGEncoder
from vision.clip import FrozenCLIP

PLAIN, LAST = "diffusers", "diffusers channels_last"


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


def layouts(network: nn.Module) -> dict[str, nn.Module]:
    """A peer's network in torch's usual layout and, as a copy, channels last."""
    return {PLAIN: network, LAST: copy.deepcopy(network).to(memory_format=torch.channels_last)}


def sides(call: Callable, ours: nn.Module, theirs: nn.Module, compiled: bool = False) -> Row:
    """`call` with our network and with diffusers'; compiled: ours so, beside ours as it is and their fastest."""
    networks = layouts(theirs)
    if compiled:
        networks = {"ours, not compiled": ours, f"{LAST}, compiled": torch.compile(networks[LAST])}
    mine = torch.compile(ours) if compiled else ours
    return Row(partial(call, mine), {who: partial(call, network) for who, network in networks.items()})


def same_answers(ours: Tensor, theirs: Tensor) -> None:
    """Refuse to time networks that do not compute the same, rounding aside."""
    apart = ((ours - theirs).float().norm() / theirs.float().norm()).item()
    assert apart < 0.05, f"the peer's answer is {apart:.0%} away from ours"


def unet_forward(size: Size, machine: Machine, compiled: bool = False) -> Row:
    """One prediction of the noise."""
    ours, (x, t, context) = new_unet(size), inputs(size, machine, size.pictures)
    theirs = diffusers_twin(ours, size.base).eval().to(*machine)
    ours = product(size, machine, ours, AutoencoderKL(**size.base.vae)).unet

    @torch.inference_mode()
    def call(network: Callable) -> Tensor:
        return network(x, t, context)

    same_answers(call(ours), call(theirs).sample)
    return sides(call, ours, theirs, compiled)


def unet_training(size: Size, machine: Machine, compiled: bool = False) -> Row:
    """Forward and backward with gradients for the cross-attention alone; autocast on both sides."""
    ours, (x, t, context) = new_unet(size), inputs(size, Machine(machine.device, torch.float32), size.batch)
    theirs = diffusers_twin(ours, size.base)
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

    ours, (x, _, context) = (new_unet(size), AutoencoderKL(**size.base.vae)), inputs(size, machine, size.pictures)
    theirs, their_vae = (layouts(diffusers_twin(network, size.base).eval().to(*machine)) for network in ours)
    generator, condition, seeds = product(size, machine, *ours), context.float().cpu(), torch.arange(len(x))
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

    def mine(own: EEGImageGenerator) -> Callable[[], Tensor]:
        return partial(own.from_context, condition, seeds, Sampling("dpm_solver", steps, batch=len(x)))

    if not compiled:
        return Row(mine(generator), {who: partial(diffusers, theirs[who], their_vae[who]) for who in theirs})
    fast, plain = copy.deepcopy(generator), mine(generator)
    compile_in_place(fast.unet)
    best = partial(diffusers, torch.compile(theirs[LAST]), their_vae[LAST])
    return Row(mine(fast), {"ours, not compiled": plain, f"{LAST}, compiled": best})


def vae_decode(size: Size, machine: Machine) -> Row:
    """Latents to pixels."""
    ours, (z, _, _) = AutoencoderKL(**size.base.vae), inputs(size, machine, size.pictures)
    theirs = diffusers_twin(ours, size.base).eval().to(*machine)
    ours = product(size, machine, new_unet(size), ours).vae

    @torch.inference_mode()
    def call(network: nn.Module) -> Tensor:
        return network.decode(z)

    same_answers(call(ours), call(theirs).sample)
    return sides(call, ours, theirs)


def clip_embedding(size: Size, machine: Machine, n: int = 8) -> Row:
    """Pictures to CLIP's space, in float32. Ours is transformers' network too, so the ratio is one of preprocessing.

    What stage B saves by doing this once for each picture is in the row stage_b.
    """
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    side, shape = size.clip["image_size"], (8 * size.latent, 8 * size.latent, 3)
    torch.manual_seed(0)
    config = CLIPConfig(vision_config=size.clip, projection_dim=size.clip["projection_dim"])
    crop = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    with tempfile.TemporaryDirectory() as folder:
        CLIPModel(config).save_pretrained(folder)
        CLIPImageProcessor(**crop).save_pretrained(folder)
        ours, theirs = FrozenCLIP(folder, machine.device), CLIPModel.from_pretrained(folder).to(machine.device)
        processor, random = CLIPImageProcessor.from_pretrained(folder), np.random.default_rng(0)
    pictures = [Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8)) for _ in range(n)]

    @torch.inference_mode()
    def transformers() -> None:
        pixels = processor(images=pictures, return_tensors="pt")["pixel_values"].to(machine.device)
        theirs.get_image_features(pixel_values=pixels)

    return Row(partial(ours.embed_images, pictures), {"transformers": transformers})


def encoder(size: Size, machine: Machine) -> Row:
    """EEG to tokens; the peer is timm's blocks between our first and last layer."""
    from timm.models.vision_transformer import Block

    torch.manual_seed(0)
    ours = EEGEncoder(**size.encoder)
    width, heads, ratio = (size.encoder[k] for k in ("embed_dim", "num_heads", "mlp_ratio"))
    theirs, norm = copy.deepcopy(ours), partial(nn.LayerNorm, eps=1e-5)
    theirs.blocks = nn.ModuleList(
        Block(width, heads, mlp_ratio=ratio, qkv_bias=True, norm_layer=norm) for _ in ours.blocks
    )
    theirs.load_state_dict(ours.state_dict())
    ours, theirs = (network.eval().to(*machine) for network in (ours, theirs))
    eeg = torch.randn(size.batch, 128, 512).to(*machine)

    @torch.inference_mode()
    def call(network: nn.Module) -> Tensor:
        return network(eeg)

    same_answers(call(ours), call(theirs))
    return Row(partial(call, ours), {"timm": partial(call, theirs)})


_ALL = (
    data_start, data_batches, encoder, clip_embedding, stage_a, unet_forward, unet_training, stage_b, vae_decode,
    sampling, picture, n_way, evaluation,
)  # fmt: skip
ROWS: dict[str, Callable[[Size, Machine], Row]] = {row.__name__: row for row in _ALL}
# the same by torch.compile's code: a minute or more before the first answer, so in no table unless asked for
_COMPILED = {"unet": unet_forward, "training": unet_training, "sampling": sampling}
_COMPILED |= {"stage_a": stage_a, "stage_b": stage_b}
ONLY_IF_ASKED = tuple(f"{name}_compiled" for name in _COMPILED)
ROWS |= {f"{name}_compiled": partial(row, compiled=True) for name, row in _COMPILED.items()}
