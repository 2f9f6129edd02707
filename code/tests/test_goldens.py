"""Our models, filled with known weights, answer what the published ones answer (float64 to 1e-9, float32 to 1e-5)."""

import math

import pytest
import torch
from fidelity import agrees
from goldens import assert_golden, assert_number, filled, read_golden, wave_input
from torch import Tensor
from torch.nn import functional as F

from dc_ldm.models.autoencoder import AutoencoderKL
from dc_ldm.models.samplers import ddim, even_grid, plms, sd_alphas_cumprod
from dc_ldm.models.unet import UNet, timestep_embedding
from dc_ldm.modules.conditioner import EEGConditioner
from sc_mbm.mae_for_eeg import EEGEncoder, MAEforEEG, encoder_state, sincos_table

SMALL = {"n_chans": 8, "n_times": 32, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 4}


@pytest.fixture(scope="module")
def golden() -> dict:
    return read_golden("goldens.json")


@pytest.fixture(scope="module")
def small_mae() -> MAEforEEG:
    return filled(MAEforEEG(**SMALL, decoder_embed_dim=8, decoder_depth=1, decoder_num_heads=2).double())


@pytest.mark.parametrize("training", [True, False])
def test_masked_autoencoder(golden, small_mae, training):
    eeg = wave_input(2, 8, 32, dtype=torch.float64)
    noise = torch.tensor([[(0.618 * (token + 1) + 0.3 * n) % 1 for token in range(8)] for n in range(2)])
    with torch.set_grad_enabled(training):
        latent, mask, ids_restore = small_mae.forward_encoder(eeg, 0.75, noise)
        loss, pred, _ = small_mae(eeg, 0.75, noise)
    assert_golden("MAE float64", latent, golden["mae_small.latent"], 1e-9)
    assert mask.tolist() == golden["mae_small.mask"]
    assert ids_restore.tolist() == golden["mae_small.ids_restore"]
    assert_golden("MAE float64", pred, golden["mae_small.pred"], 1e-9)
    assert_number("MAE float64, loss", loss, golden["mae_small.loss"], 1e-9)
    assert_golden("position table", small_mae.pos_embed, golden["mae_small.pos_embed"], 1e-9)


def test_encoder_made_from_the_autoencoder(golden, small_mae):
    encoder = EEGEncoder(**SMALL).double()
    encoder.load_state_dict(encoder_state(small_mae.state_dict()))
    tokens = encoder(wave_input(2, 8, 32, dtype=torch.float64))
    assert_golden("EEG encoder float64", tokens, golden["eeg_encoder_small.out"], 1e-9)


@torch.no_grad()
def test_conditioner(golden):
    conditioner = filled(EEGConditioner(EEGEncoder(depth=1)))
    eeg = wave_input(1, 128, 512)
    context, clip = conditioner(eeg)
    assert_golden("conditioner float32", conditioner.mae(eeg), golden["cond_stage.latent"], 1e-5)
    assert_golden("conditioner float32", context, golden["cond_stage.out"], 1e-5)
    assert_golden("conditioner float32", clip, golden["cond_stage.mapping"], 1e-5)
    loss = 1 - F.cosine_similarity(clip, torch.cos(0.1 * torch.arange(768))[None]).mean()
    assert_number("conditioner float32, CLIP loss", loss, golden["cond_stage.clip_loss"], 1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_unet(golden, training):
    unet = filled(
        UNet(
            model_channels=32,
            attention_resolutions=(2, 1),
            num_res_blocks=1,
            channel_mult=(1, 2),
            num_heads=2,
            context_dim=16,
        )
    )
    assert sum(p.numel() for p in unet.parameters()) == golden["unet_small.n_params"]
    context = wave_input(2, 77, 16)
    with torch.set_grad_enabled(training):
        noise = unet(wave_input(2, 4, 8, 8), torch.tensor([3, 777]), context)
        time_cond = unet.time_embed_condtion(context)
    assert_golden("UNet float32", noise, golden["unet_small.out"], 1e-5)
    assert_golden("UNet float32", time_cond, golden["unet_small.time_cond"], 1e-5)


@torch.no_grad()
def test_autoencoder(golden):
    vae = filled(AutoencoderKL(ch=32, ch_mult=(1, 2), num_res_blocks=1).double())
    assert sum(p.numel() for p in vae.parameters()) == golden["vae_small.n_params"]
    posterior = vae.encode(wave_input(1, 3, 16, 16, dtype=torch.float64))
    assert_golden("VAE float64", posterior.mean, golden["vae_small.mean"], 1e-9)
    assert_golden("VAE float64", posterior.logvar, golden["vae_small.logvar"], 1e-9)
    assert_golden("VAE float64", vae.decode(posterior.mean), golden["vae_small.decode_mean"], 1e-9)
    torch.testing.assert_close(posterior.sample(torch.ones(1, 4, 8, 8)), posterior.mean + (posterior.logvar / 2).exp())


def printed(part: str, found: Tensor | list[float], wanted: list[float], atol: float) -> None:
    """Compare with numbers that the spec prints, to the digits it prints."""
    agrees(part, "published code, printed", torch.as_tensor(found).double(), torch.tensor(wanted).double(), atol)


def test_noise_schedule():
    abar = sd_alphas_cumprod()
    assert abar.dtype == torch.float32 and abar.shape == (1000,)
    wanted = [0.99915, 0.99829603, 0.67543241, 0.27766965, 0.27633268, 0.05662349, 0.0047167, 0.0046601]
    printed("noise schedule, abar", abar[[0, 1, 249, 499, 500, 749, 998, 999]], wanted, 4e-8)
    before = torch.cat([torch.ones(1), abar[:-1]]).double()
    beta = 1 - abar.double() / before
    # abar is single precision, so what follows from neighbours is known to about 6e-8 / abar
    printed("noise schedule, beta", beta[[0, 1, 500]], [0.00085, 0.0008547, 0.00481495], 3e-7)
    printed("noise schedule, last beta", beta[[999]], [0.012], 3e-7)
    posterior = beta * (1 - before) / (1 - abar.double())
    printed("noise schedule, posterior variance", posterior[[0, 1, 999]], [0, 0.00042635, 0.01199932], 3e-7)


def test_even_grid():
    abar = sd_alphas_cumprod()
    taus, now, before = even_grid(abar, 250)
    assert taus == list(range(1, 1000, 4))
    printed("sampling grid, abar", [now[i] for i in (0, 1, 249)], [0.99829602, 0.99484038, 0.00477390], 4e-8)
    printed("sampling grid, abar before", [before[i] for i in (0, 1, 249)], [0.99915, 0.99829602, 0.00500884], 4e-8)
    assert even_grid(abar, 50)[0][::49] == [1, 981]


def test_sinusoids():
    embedding = timestep_embedding(torch.tensor([1]), 320)[0, [0, 1, 159, 160, 161, 319]]
    wanted = [0.54030234, 0.58650380, 1.0, 0.84147097, 0.80994648, 1.0592537e-4]
    printed("time embedding", embedding, wanted, 1e-7)
    table = sincos_table(128, 1024)[0]
    assert table.shape == (129, 1024) and not table[0].any()
    row = table[2, [0, 1, 511, 512, 513, 1023]]
    printed("position table, 1024 wide", row, [0.84147, 0.83171, 1.0182e-4, 0.54030, 0.55522, 1.0], 5e-6)


def test_masking_keeps_the_tokens_that_the_published_code_keeps():
    mae = MAEforEEG(**{**SMALL, "n_times": 512}, decoder_embed_dim=8, decoder_depth=1, decoder_num_heads=2)
    torch.manual_seed(123)
    mask = mae(torch.zeros(1, 8, 512), 0.75)[2][0]
    torch.manual_seed(123)
    ids_restore = mae.forward_encoder(torch.zeros(1, 8, 512), 0.75, torch.rand(1, 128))[2][0]
    assert ids_restore.argsort()[:6].tolist() == [77, 68, 62, 55, 29, 4]
    assert mask.tolist() == (ids_restore >= 32).tolist()


TOY = {
    (plms, 5): [1.4689944, -1.6824465, 0.6811343, 3.0447159],
    (plms, 10): [2.6155186, -2.9296029, 1.2292377, 5.3880796],
    (plms, 50): [4.6741490, -5.1538634, 2.2171464, 9.5881500],
    (plms, 250): [5.3320122, -5.8621187, 2.5334790, 10.9290829],
    (ddim, 5): [1.9718599, -2.2263672, 0.9223028, 4.0709739],
    (ddim, 10): [3.0485811, -3.3940258, 1.4379289, 6.2698841],
    (ddim, 50): [4.8153648, -5.3038769, 2.2855563, 9.8749818],
    (ddim, 250): [5.3615708, -5.8934093, 2.5478225, 10.9890537],
}


@pytest.mark.parametrize(("sampler", "steps"), TOY)
def test_samplers_on_a_toy_denoiser(sampler, steps):
    calls = []

    def denoise(x, t):
        calls.append(t.item())
        return 0.9 * x * math.cos(t.item() / 500) + 0.05

    start = torch.tensor([[1.0, -1.0, 0.5, 2.0]])
    result = sampler(denoise, start, sd_alphas_cumprod(), steps)
    wanted = torch.tensor(TOY[sampler, steps])
    agrees(f"{sampler.__name__} on a toy denoiser", "published code, printed", result[0], wanted, atol=0, rtol=3e-6)
    if (sampler, steps) == (plms, 250):
        assert calls[:4] == [997, 993, 993, 989] and calls[-2:] == [5, 1] and len(calls) == 251
