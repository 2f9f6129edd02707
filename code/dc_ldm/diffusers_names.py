"""UNet and autoencoder under the names, and with the configs, that the diffusers library loads."""

from __future__ import annotations

import re
from collections.abc import Callable

from torch import Tensor

from dc_ldm.weights import BaseSizes
from runtime.errors import UserError

# ours -> theirs, tried in this order; {0} and {1} are the numbers found, {d} and {m} block and place in it, {u} the
# autoencoder's block on the way up, which diffusers counts from the other end
UNET_PLACES = {
    r"time_embed\.0": "time_embedding.linear_1",
    r"time_embed\.2": "time_embedding.linear_2",
    r"time_embed_condtion\.2": "class_embedding",
    r"input_blocks\.0\.0": "conv_in",
    r"input_blocks\.(\d+)\.0\.op": "down_blocks.{d}.downsamplers.0.conv",
    r"input_blocks\.(\d+)\.0\.": "down_blocks.{d}.resnets.{m}.",
    r"input_blocks\.(\d+)\.1\.": "down_blocks.{d}.attentions.{m}.",
    r"middle_block\.0\.": "mid_block.resnets.0.",
    r"middle_block\.1\.": "mid_block.attentions.0.",
    r"middle_block\.2\.": "mid_block.resnets.1.",
    r"output_blocks\.(\d+)\.0\.": "up_blocks.{d}.resnets.{m}.",
    r"output_blocks\.(\d+)\.[12]\.conv": "up_blocks.{d}.upsamplers.0.conv",
    r"output_blocks\.(\d+)\.1\.": "up_blocks.{d}.attentions.{m}.",
    r"out\.0": "conv_norm_out",
    r"out\.2": "conv_out",
}
VAE_PLACES = {
    r"encoder\.down\.(\d+)\.block\.(\d+)": "encoder.down_blocks.{0}.resnets.{1}",
    r"encoder\.down\.(\d+)\.downsample": "encoder.down_blocks.{0}.downsamplers.0",
    r"decoder\.up\.(\d+)\.block\.(\d+)": "decoder.up_blocks.{u}.resnets.{1}",
    r"decoder\.up\.(\d+)\.upsample": "decoder.up_blocks.{u}.upsamplers.0",
    r"(\w+)\.mid\.block_1": "{0}.mid_block.resnets.0",
    r"(\w+)\.mid\.block_2": "{0}.mid_block.resnets.1",
    r"(\w+)\.mid\.attn_1": "{0}.mid_block.attentions.0",
    r"(\w+)\.norm_out": "{0}.conv_norm_out",
}
INSIDE = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
    "nin_shortcut": "conv_shortcut",
}
VAE_ATTENTION = {
    ".norm.": ".group_norm.",
    ".q.": ".to_q.",
    ".k.": ".to_k.",
    ".v.": ".to_v.",
    ".proj_out.": ".to_out.0.",
}
MIXERS = ("time_embed_condtion.0.", "time_embed_condtion.1.")


def unet_tensors(state: dict[str, Tensor], sizes: dict) -> dict[str, Tensor]:
    """A UNet's tensors under diffusers' names.

    Of a time condition, the last layer becomes the class embedding; the two before it belong to the conditioner.
    """
    per_level = sizes["num_res_blocks"] + 1

    def number(name: str, i: int) -> dict[str, int]:
        level, place = divmod(i - name.startswith("input_blocks"), per_level)
        return {"d": level, "m": place}

    kept = {name: value for name, value in state.items() if not name.startswith(MIXERS)}
    return {_renamed(name, UNET_PLACES, number): value for name, value in kept.items()}


def vae_tensors(state: dict[str, Tensor], sizes: dict) -> dict[str, Tensor]:
    """An autoencoder's tensors under diffusers' names; its attention's 1x1 convolutions become matrices."""
    levels = len(sizes["ch_mult"])
    renamed = {}
    for name, value in state.items():
        new = _renamed(name, VAE_PLACES, lambda _, i: {"u": levels - 1 - i})
        if ".attentions." in new:
            for ours, theirs in VAE_ATTENTION.items():
                new = new.replace(ours, theirs)
            value = value.flatten(1) if value.ndim == 4 else value
        renamed[new] = value
    return renamed


def _renamed(name: str, places: dict[str, str], number: Callable[[str, int], dict[str, int]]) -> str:
    for pattern, theirs in places.items():
        if found := re.match(pattern, name):
            groups = found.groups()
            numbers = number(name, int(groups[0])) if groups and groups[0].isdigit() else {}
            name = theirs.format(*groups, **numbers) + name[found.end() :]
            break
    for ours, theirs in INSIDE.items():
        name = name.replace(f".{ours}.", f".{theirs}.")
    return name


def unet_config(sizes: BaseSizes, use_time_cond: bool, latent_size: int) -> dict:
    """The config.json of diffusers' UNet2DConditionModel; latent_size is the side of a latent."""
    unet = sizes.unet
    attends = [2**level in unet["attention_resolutions"] for level in range(len(unet["channel_mult"]))]
    condition = {"class_embed_type": "simple_projection", "projection_class_embeddings_input_dim": unet["context_dim"]}
    return {
        "_class_name": "UNet2DConditionModel",
        "sample_size": latent_size,
        "in_channels": unet["in_channels"],
        "out_channels": unet["out_channels"],
        "layers_per_block": unet["num_res_blocks"],
        "block_out_channels": [mult * unet["model_channels"] for mult in unet["channel_mult"]],
        "down_block_types": ["CrossAttnDownBlock2D" if attend else "DownBlock2D" for attend in attends],
        "up_block_types": ["CrossAttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(attends)],
        "attention_head_dim": unet["num_heads"],  # diffusers calls the number of heads so in Stable Diffusion 1.x
        "cross_attention_dim": unet["context_dim"],
    } | (condition if use_time_cond else {})


def vae_config(sizes: BaseSizes, img_size: int) -> dict:
    """The config.json of diffusers' AutoencoderKL, which knows only one number of groups. Raises UserError."""
    ch, mults = sizes.vae["ch"], sizes.vae["ch_mult"]
    if ch < 32:
        raise UserError(f"this autoencoder is {ch} channels wide; diffusers cannot express its groups of 4 channels")
    return {
        "_class_name": "AutoencoderKL",
        "sample_size": img_size,
        "block_out_channels": [mult * ch for mult in mults],
        "down_block_types": ["DownEncoderBlock2D"] * len(mults),
        "up_block_types": ["UpDecoderBlock2D"] * len(mults),
        "layers_per_block": sizes.vae["num_res_blocks"],
        "latent_channels": sizes.vae["z_channels"],
        "scaling_factor": sizes.scale_factor,
    }
