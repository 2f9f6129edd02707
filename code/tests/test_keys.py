"""State dicts have the published names and shapes, so that published weights load with strict=True."""

import math

import pytest
import torch
from goldens import read_golden

from dc_ldm.models.autoencoder import AutoencoderKL
from dc_ldm.models.unet import UNet
from dc_ldm.modules.conditioner import EEGConditioner
from sc_mbm.mae_for_eeg import EEGEncoder, MAEforEEG, encoder_state


def shapes(module: torch.nn.Module) -> dict[str, list[int]]:
    return {name: list(value.shape) for name, value in module.state_dict().items()}


PARTS = {
    "model.diffusion_model.": UNet,
    "first_stage_model.": AutoencoderKL,
    "cond_stage_model.": lambda: EEGConditioner(EEGEncoder()),
}
# What we keep no tensor for: numbers that follow from the noise schedule's two ends, and CLIP's image tower, which is
# frozen here and loaded from its own folder.
SCHEDULE = {
    "betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "posterior_variance",
    "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2",
}  # fmt: skip
CLIP_TOWER = "image_embedder.transformer."


@pytest.mark.parametrize(("prefix", "build"), PARTS.items())
def test_generation_checkpoint(prefix, build):
    published = read_golden("generation_keys.json")
    with torch.device("meta"):
        model = build()
    wanted = {name.removeprefix(prefix): v[0] for name, v in published.items() if name.startswith(prefix)}
    assert wanted and shapes(model) == wanted


def test_what_is_left_of_the_generation_checkpoint():
    """All other tensors are the schedule's and CLIP's. It holds no EMA copies (`model_ema.`): EMA was off."""
    published = read_golden("generation_keys.json")
    left = {name for name in published if not name.startswith(tuple(PARTS))}
    clip = {name for name in left if name.startswith(CLIP_TOWER)}
    assert left - clip == SCHEDULE and len(clip) == 392
    for prefix, size in zip((*PARTS, CLIP_TOWER), (860_508_287, 83_653_863, 153_489_998, 303_966_208), strict=True):
        assert sum(math.prod(v[0]) for name, v in published.items() if name.startswith(prefix)) == size
    assert {v[1] for v in published.values()} == {"torch.float32"}


def test_masked_autoencoder():
    with torch.device("meta"):
        model, encoder = MAEforEEG(), EEGEncoder()
    assert shapes(model) == read_golden("mae_keys.json")
    assert sum(p.numel() for p in model.parameters()) == 165_380_096
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 165_181_952
    assert sum(p.numel() for p in encoder.parameters()) == 151_902_208
    taken = encoder_state(model.state_dict())
    assert {name: list(value.shape) for name, value in taken.items()} == shapes(encoder)


def test_small_unet():
    with torch.device("meta"):
        unet = UNet(4, 4, 32, (2, 1), 1, (1, 2), num_heads=2, context_dim=16)
    assert shapes(unet) == read_golden("unet_small_keys.json")


def test_stable_diffusion_is_the_unet_without_its_time_condition():
    with torch.device("meta"):
        plain, full = UNet(use_time_cond=False), UNet()
    extra = set(full.state_dict()) - set(plain.state_dict())
    assert len(plain.state_dict()) == 686 and len(extra) == 6
    assert all(name.startswith("time_embed_condtion.") for name in extra)


def test_the_encoders_constants_are_frozen():
    with torch.device("meta"):
        conditioner = EEGConditioner(EEGEncoder())
    frozen = {name for name, p in conditioner.named_parameters() if not p.requires_grad}
    assert frozen == {"mae.cls_token", "mae.mask_token", "mae.pos_embed"}
