"""Our networks against diffusers' and timm's with the same weights, and what their parts promise."""

import pytest
import torch
from torch.nn import functional as F

from dc_ldm.models.autoencoder import AutoencoderKL
from dc_ldm.models.unet import UNet
from dc_ldm.modules import attention as unet_attention
from dc_ldm.modules.conditioner import EEGConditioner
from runtime.errors import UserError
from sc_mbm import mae_for_eeg
from sc_mbm.mae_for_eeg import Block, EEGEncoder, MAEforEEG

TINY = {"n_chans": 6, "n_times": 32, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 4}
MINIATURE = {"model_channels": 64, "channel_mult": (1, 2), "num_res_blocks": 1, "context_dim": 64}


def shaken(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """The module with a little noise on every weight, so that branches that start at zero count too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=generator))
    return module


def tiny_mae() -> MAEforEEG:
    torch.manual_seed(0)
    return MAEforEEG(**TINY, decoder_embed_dim=8, decoder_depth=1, decoder_num_heads=2)


@torch.no_grad()
def test_unet_equals_diffusers():
    diffusers = pytest.importorskip("diffusers")
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    ours = shaken(UNet(4, 4, 32, (2, 1), 1, (1, 2), num_heads=2, context_dim=16, use_time_cond=False))
    theirs = diffusers.UNet2DConditionModel(
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        attention_head_dim=2,
        cross_attention_dim=16,
    ).eval()
    weights = {f"model.diffusion_model.{name}": value for name, value in ours.state_dict().items()}
    theirs.load_state_dict(convert_ldm_unet_checkpoint(weights, theirs.config))
    x, t, context = torch.randn(2, 4, 8, 8), torch.tensor([0, 640]), torch.randn(2, 77, 16)
    torch.testing.assert_close(ours(x, t, context), theirs(x, t, context).sample, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_autoencoder_equals_diffusers():
    diffusers = pytest.importorskip("diffusers")
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    ours = shaken(AutoencoderKL(ch=32, ch_mult=(1, 2, 2), num_res_blocks=1))
    theirs = diffusers.AutoencoderKL(
        block_out_channels=(32, 64, 64),
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
    ).eval()
    weights = {f"first_stage_model.{name}": value for name, value in ours.state_dict().items()}
    theirs.load_state_dict(convert_ldm_vae_checkpoint(weights, theirs.config))
    image, noise = torch.randn(2, 3, 16, 16), torch.randn(2, 4, 4, 4)
    posterior, wanted = ours.encode(image), theirs.encode(image).latent_dist
    torch.testing.assert_close(posterior.mean, wanted.mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(posterior.std, wanted.std, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.decode(noise), theirs.decode(noise).sample, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tokens", [9, 130])
def test_encoder_block_equals_timm_with_gradients(tokens):
    vit = pytest.importorskip("timm.models.vision_transformer")
    ours = shaken(Block(16, 4, 1.0))
    theirs = vit.Block(16, 4, mlp_ratio=1.0, qkv_bias=True)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, tokens, 16)
    answers = [block(x) for block in (ours, theirs)]
    torch.testing.assert_close(*answers, rtol=1e-4, atol=1e-5)
    for answer in answers:
        answer.square().sum().backward()
    torch.testing.assert_close(ours.attn.qkv.weight.grad, theirs.attn.qkv.weight.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("module", [unet_attention, mae_for_eeg])
@pytest.mark.parametrize("tokens", [8, 96, 97, 200])
def test_attention_on_both_sides_of_its_switch(module, tokens):
    q, k, v = torch.randn(3, 2, 4, tokens, 8)
    torch.testing.assert_close(module.attention(q, k, v), F.scaled_dot_product_attention(q, k, v), rtol=1e-4, atol=1e-5)


def test_the_smallest_noise_is_kept():
    eeg, noise = torch.randn(3, 6, 32), torch.rand(3, 8)
    loss, pred, mask = tiny_mae()(eeg, 0.75, noise)
    assert pred.shape == (3, 8, 24) and mask.sum(1).tolist() == [6, 6, 6]
    hidden_noise = noise.masked_fill(mask == 0, torch.inf).amin(1)
    assert (noise.masked_fill(mask == 1, -torch.inf).amax(1) < hidden_noise).all()
    assert loss.requires_grad


def test_hidden_patches_do_not_reach_the_prediction_and_alone_make_the_loss():
    mae, eeg, noise = tiny_mae(), torch.randn(1, 6, 32), torch.rand(1, 8)
    loss, pred, mask = mae(eeg, 0.75, noise)
    hidden = mae.unpatchify(mask[..., None].expand(-1, -1, 24)).bool()
    changed = torch.where(hidden, torch.randn_like(eeg), eeg)
    torch.testing.assert_close(mae(changed, 0.75, noise)[1], pred)
    error = (mae.unpatchify(pred) - eeg)[hidden].square().mean()
    torch.testing.assert_close(loss, error)


@pytest.mark.parametrize(("ratio", "kept"), [(0.1, 115), (0.5, 64), (0.75, 32), (0.85, 19), (0.0, 128)])
def test_number_of_kept_tokens(ratio, kept):
    mae = MAEforEEG(2, 512, 4, 8, 1, 2, 1.0, 8, 1, 2)
    loss, _, mask = mae(torch.randn(1, 2, 512), ratio)
    assert (mask == 0).sum() == kept
    assert torch.isfinite(loss) and (ratio > 0 or loss == 0)


def test_patches_are_time_major_and_come_back():
    mae, eeg = tiny_mae(), torch.randn(2, 6, 32)
    patches = mae.patchify(eeg)
    assert patches[1, 3, 2 * 6 + 5] == eeg[1, 5, 4 * 3 + 2]
    assert torch.equal(mae.unpatchify(patches), eeg)


@pytest.mark.parametrize("clip_head", ["tokens", "condition"])
def test_what_the_clip_head_sees(clip_head):
    conditioner = EEGConditioner(EEGEncoder(**TINY), 77, 64, clip_dim=32, clip_head=clip_head)
    context, clip = conditioner(torch.randn(2, 6, 32))
    assert context.shape == (2, 77, 64) and clip.shape == (2, 32)
    clip.sum().backward()
    assert (conditioner.dim_mapper.weight.grad is not None) == (clip_head == "condition")
    assert conditioner.mae.blocks[0].attn.qkv.weight.grad.any()


def test_miniature_sizes_train_in_bfloat16():
    unet = shaken(UNet(**MINIATURE))
    x, context = torch.randn(2, 4, 8, 8), torch.randn(2, 77, 64)
    with torch.autocast("cpu", torch.bfloat16):
        noise = unet(x, torch.tensor([1, 999]), context)
    assert noise.dtype == torch.float32
    torch.testing.assert_close(noise, unet(x, torch.tensor([1, 999]), context), rtol=0.1, atol=0.1)
    noise.square().mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in unet.parameters())


@torch.no_grad()
def test_narrow_normalisation_keeps_the_colour_of_a_flat_picture():
    flat = torch.arange(16.0)[None, :, None, None].expand(1, 16, 8, 8)
    assert unet_attention.GroupNorm(16, 1e-6)(flat).abs().mean() > 0.5
    assert [unet_attention.GroupNorm(c, 1e-6).num_groups for c in (32, 64, 320, 1280)] == [32] * 4


@torch.no_grad()
def test_miniature_autoencoder_sizes():
    vae = AutoencoderKL(ch=16)
    mean = vae.encode(torch.randn(2, 3, 64, 64)).mean
    assert mean.shape == (2, 4, 8, 8) and vae.decode(mean).shape == (2, 3, 64, 64)


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: MAEforEEG(n_times=510), "n_times"),
        (lambda: EEGEncoder(embed_dim=24, num_heads=16), "heads"),
        (lambda: UNet(model_channels=48), "model_channels"),
        (lambda: EEGConditioner(EEGEncoder(**TINY), clip_head="token"), "clip_head"),
        (lambda: EEGEncoder(**TINY)(torch.zeros(1, 5, 32)), r"\(batch, 6, 32\).*\(1, 5, 32\)"),
        (lambda: tiny_mae()(torch.zeros(1, 6, 32), 1.0), "mask_ratio"),
        (lambda: tiny_mae()(torch.zeros(1, 6, 32), -0.1), "mask_ratio"),
    ],
)
def test_bad_input_gets_one_sentence(build, said):
    with pytest.raises(UserError, match=said), torch.device("meta"):
        build()
