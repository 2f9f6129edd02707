"""Our networks against diffusers' and timm's with the same weights, and what their parts promise."""

from functools import partial

import numpy as np
import pytest
import torch
from fidelity import agrees, random_weights
from PIL import Image
from torch import nn
from torch.nn import functional as F

from dc_ldm.models.autoencoder import AutoencoderKL
from dc_ldm.models.unet import UNet
from dc_ldm.modules.attention import GroupNorm
from dc_ldm.modules.conditioner import EEGConditioner
from runtime.attention import attention
from runtime.errors import UserError
from sc_mbm.mae_for_eeg import Block, EEGEncoder, MAEforEEG
from vision.clip import FrozenCLIP

TINY = {"n_chans": 6, "n_times": 32, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 4}
MINIATURE = {"model_channels": 64, "channel_mult": (1, 2), "num_res_blocks": 1, "context_dim": 64}


def tiny_mae() -> MAEforEEG:
    torch.manual_seed(0)
    return MAEforEEG(**TINY, decoder_embed_dim=8, decoder_depth=1, decoder_num_heads=2)


def twin(name: str, convert: str, prefix: str, ours: nn.Module, **sizes) -> nn.Module:
    """Diffusers' class `name` with the very tensors of `ours`: each parameter of one lies where the other's does."""
    diffusers = pytest.importorskip("diffusers")
    from diffusers.loaders import single_file_utils

    with torch.device("meta"):
        theirs = getattr(diffusers, name)(**sizes).eval()
    weights = {prefix + name: value for name, value in ours.state_dict().items()}
    theirs.load_state_dict(getattr(single_file_utils, convert)(weights, theirs.config), assign=True)
    return theirs


def compare_gradients(part: str, oracle: str, answers: list, modules: list, inputs: list, names: tuple = ()) -> None:
    """Gradients of a random weighting of both answers, by inputs and parameters (named by ours; none: all of them).

    Each gradient is divided by its largest value, so that the agreement is relative; by no less than a thousandth of
    the largest of all, because some are nothing but rounding: a bias of keys, or one that a normalisation takes away.
    """
    ours, theirs = ({p.data_ptr(): p for p in module.parameters()} for module in modules)
    chosen = [p for name, p in modules[0].named_parameters() if not names or name in names]
    assert ours.keys() == theirs.keys() and len(chosen) == (len(names) or len(ours))
    weighting = torch.randn_like(answers[0])
    found = torch.autograd.grad((answers[0] * weighting).sum(), inputs + chosen)
    wanted = torch.autograd.grad((answers[1] * weighting).sum(), inputs + [theirs[p.data_ptr()] for p in chosen])
    floor = 1e-3 * max(b.abs().max() for b in wanted)
    for a, b in zip(found, wanted, strict=True):
        scale = b.abs().max().clamp(min=floor)
        agrees(f"{part}, gradients (each over its largest)", oracle, a / scale, b.view_as(a) / scale, atol=1e-3)


UNET_ENDS = (
    "time_embed.0.weight", "input_blocks.0.0.weight", "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight",
    "input_blocks.7.0.skip_connection.weight", "middle_block.1.transformer_blocks.0.ff.net.0.proj.weight",
    "output_blocks.11.1.transformer_blocks.0.norm2.weight", "out.2.bias",
)  # fmt: skip
VAE_ENDS = (
    "encoder.conv_in.weight", "encoder.mid.attn_1.q.weight", "quant_conv.weight", "post_quant_conv.weight",
    "decoder.up.0.block.0.nin_shortcut.weight", "decoder.conv_out.bias",
)  # fmt: skip
FULL = pytest.mark.full


@pytest.mark.parametrize(("width", "names"), [(32, ()), pytest.param(320, UNET_ENDS, marks=FULL)])
def test_unet_equals_diffusers(width, names):
    context_dim = {32: 16, 320: 768}[width]
    ours = random_weights(lambda: UNet(model_channels=width, context_dim=context_dim, use_time_cond=False))
    theirs = twin(
        "UNet2DConditionModel", "convert_ldm_unet_checkpoint", "model.diffusion_model.", ours,
        block_out_channels=(width, 2 * width, 4 * width, 4 * width),
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        attention_head_dim=8,
        cross_attention_dim=context_dim,
    )  # fmt: skip
    for module in (ours, theirs):
        module.requires_grad_(not names)
    pairs = {p.data_ptr(): p for p in theirs.parameters()}
    for name in names:
        ours.get_parameter(name).requires_grad_(True)
        pairs[ours.get_parameter(name).data_ptr()].requires_grad_(True)
    x, context = torch.randn(1, 4, 8, 8, requires_grad=True), torch.randn(1, 77, context_dim, requires_grad=True)
    t = torch.tensor([640])
    answers = [ours(x, t, context), theirs(x, t, context).sample]
    agrees(f"UNet, {width} wide", "diffusers", *answers, atol=2e-5, rtol=1e-5)
    compare_gradients(f"UNet, {width} wide", "diffusers", answers, [ours, theirs], [x, context], names)


@pytest.mark.parametrize(("width", "names"), [(32, ()), pytest.param(128, VAE_ENDS, marks=FULL)])
def test_autoencoder_equals_diffusers(width, names):
    ours = random_weights(lambda: AutoencoderKL(ch=width))
    theirs = twin(
        "AutoencoderKL", "convert_ldm_vae_checkpoint", "first_stage_model.", ours,
        block_out_channels=(width, 2 * width, 4 * width, 4 * width),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
    )  # fmt: skip
    image, z = torch.randn(1, 3, 64, 64, requires_grad=True), torch.randn(1, 4, 8, 8, requires_grad=True)
    found, wanted = ours.encode(image), theirs.encode(image).latent_dist
    part = f"VAE, {width} wide"
    agrees(f"{part}, posterior mean", "diffusers", found.mean, wanted.mean, atol=2e-5, rtol=1e-5)
    agrees(f"{part}, posterior deviation", "diffusers", found.std, wanted.std, atol=2e-5, rtol=1e-5)
    pictures = [ours.decode(z), theirs.decode(z).sample]
    agrees(f"{part}, picture", "diffusers", *pictures, atol=2e-5, rtol=1e-5)
    both = [
        torch.cat([part.flatten() for part in parts])
        for parts in ((found.mean, found.std, pictures[0]), (wanted.mean, wanted.std, pictures[1]))
    ]
    compare_gradients(part, "diffusers", both, [ours, theirs], [image, z], names)


@pytest.mark.parametrize(
    ("width", "heads", "ratio", "tokens"), [(16, 4, 1.0, 9), (16, 4, 1.0, 130), (1024, 16, 4.0, 129)]
)
def test_encoder_block_equals_timm(width, heads, ratio, tokens):
    vit = pytest.importorskip("timm.models.vision_transformer")
    ours = random_weights(lambda: Block(width, heads, ratio))
    norm = partial(nn.LayerNorm, eps=1e-5)
    theirs = vit.Block(width, heads, mlp_ratio=ratio, qkv_bias=True, norm_layer=norm)
    theirs.load_state_dict(ours.state_dict(), assign=True)
    x = torch.randn(2, tokens, width, requires_grad=True)
    answers = [ours(x), theirs(x)]
    agrees(f"EEG encoder's block, {width} wide", "timm", *answers, atol=1e-5, rtol=1e-5)
    compare_gradients(f"EEG encoder's block, {width} wide", "timm", answers, [ours, theirs], [x])


@pytest.mark.parametrize("tokens", [8, 96, 97, 200])
def test_attention_on_both_sides_of_its_switch(tokens):
    q, k, v = torch.randn(3, 2, 4, tokens, 8)
    torch.testing.assert_close(attention(q, k, v), F.scaled_dot_product_attention(q, k, v), rtol=1e-4, atol=1e-5)


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
    unet = random_weights(lambda: UNet(**MINIATURE))
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
    assert GroupNorm(16, 1e-6)(flat).abs().mean() > 0.5
    assert [GroupNorm(c, 1e-6).num_groups for c in (32, 64, 320, 1280)] == [32] * 4


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


def test_clip_sees_pictures_as_transformers_prepares_them(tmp_path):
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    torch.manual_seed(0)
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    CLIPModel(CLIPConfig(text_config=tower, vision_config=tower, projection_dim=8)).save_pretrained(tmp_path)
    CLIPImageProcessor().save_pretrained(tmp_path)  # the defaults are openai/clip-vit-large-patch14's
    clip = FrozenCLIP(tmp_path)
    noise = np.random.default_rng(0)
    for size in ((500, 375), (224, 224), (100, 333)):
        coarse = noise.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
        found = clip.processor(images=[picture], return_tensors="pt")["pixel_values"]
        wanted = CLIPImageProcessor()(images=[picture], return_tensors="pt")["pixel_values"]
        assert found.shape == (1, 3, 224, 224)
        grey_level = 1 / 255 / 0.2613  # torch and PIL round a resized pixel differently now and then
        agrees("CLIP's pixels", "transformers CLIPImageProcessor", found, wanted, atol=2.1 * grey_level)
        # By hand: bicubic to 224 on the shorter side, the middle 224 x 224, the published mean and deviation
        short = 224 / min(size)
        resized = picture.resize([int(side * short) for side in size], Image.Resampling.BICUBIC)
        left, top = ((side - 224) // 2 for side in resized.size)
        pixels = np.asarray(resized.crop((left, top, left + 224, top + 224)), dtype=np.float64) / 255
        mean, std = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
        by_hand = torch.from_numpy((pixels - mean) / std).permute(2, 0, 1)[None]
        agrees("CLIP's pixels", "resize, crop and scale by hand", found, by_hand, atol=1e-5)
        embedding = clip.model.get_image_features(pixel_values=wanted).pooler_output
        agrees("CLIP's embedding", "transformers CLIPModel", clip.embed_images([picture]), embedding, atol=1e-2)


@pytest.mark.parametrize("side", [4, 31, 32])
def test_group_norm_is_the_same_in_both_layouts(side):
    # below 1024 pixels channels last takes a way of its own in bfloat16
    norm, x = GroupNorm(64, 1e-5), 3 + 2 * torch.randn(2, 64, side, side).bfloat16()
    nn.init.normal_(norm.weight)
    last = norm(x.to(memory_format=torch.channels_last))
    exact = F.group_norm(x.double(), 32, norm.weight.double(), norm.bias.double(), 1e-5)
    assert last.dtype == torch.bfloat16 and last.is_contiguous(memory_format=torch.channels_last)
    for found in (norm(x), last):
        assert (found - exact).abs().max() < 0.02 * exact.abs().max()
