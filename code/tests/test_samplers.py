"""Samplers against diffusers' schedulers and against a denoiser that knows the answer."""

import pytest
import torch
from fidelity import agrees

from dc_ldm.models.samplers import ddim, dpm_solver, guided, plms, sd_alphas_cumprod
from runtime.errors import UserError

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def toy(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """A smooth denoiser that mixes the values of an item."""
    return 0.7 * x.roll(1, dims=-1) * torch.cos(t.double() / 400)[:, None] + 0.2 * x.sin() + 0.05


def with_diffusers(name: str, steps: int, x: torch.Tensor, **options) -> torch.Tensor:
    """The same run by a scheduler of diffusers."""
    schedulers = pytest.importorskip("diffusers.schedulers")
    scheduler = getattr(schedulers, name)(**SD, **options)
    scheduler.alphas_cumprod = sd_alphas_cumprod().double()  # theirs is summed in single precision
    if name == "DPMSolverMultistepScheduler":
        scheduler.alpha_t = scheduler.alphas_cumprod.sqrt()
        scheduler.sigma_t = (1 - scheduler.alphas_cumprod).sqrt()
        scheduler.lambda_t = (scheduler.alpha_t / scheduler.sigma_t).log()
    else:
        scheduler.final_alpha_cumprod = scheduler.alphas_cumprod[0]
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        x = scheduler.step(toy(x, t[None].expand(len(x))), t, x).prev_sample
    return x


@pytest.fixture
def start() -> torch.Tensor:
    return torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("steps", [1, 4, 20, 50, 250])
def test_ddim(start, steps):
    wanted = with_diffusers("DDIMScheduler", steps, start, steps_offset=1, clip_sample=False, set_alpha_to_one=False)
    agrees("DDIM", "diffusers DDIMScheduler", ddim(toy, start, sd_alphas_cumprod(), steps), wanted, 1e-10, 1e-10)


@pytest.mark.parametrize("steps", [4, 20, 50, 250])
def test_plms(start, steps):
    wanted = with_diffusers("PNDMScheduler", steps, start, steps_offset=1, skip_prk_steps=True, set_alpha_to_one=False)
    agrees("PLMS", "diffusers PNDMScheduler", plms(toy, start, sd_alphas_cumprod(), steps), wanted, 1e-10, 1e-10)


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 20, 33, 50])
def test_dpm_solver(start, steps):
    wanted = with_diffusers(
        "DPMSolverMultistepScheduler",
        steps,
        start,
        algorithm_type="dpmsolver++",
        solver_order=2,
        timestep_spacing="linspace",
        lower_order_final=True,
        final_sigmas_type="zero",
    )
    found = dpm_solver(toy, start, sd_alphas_cumprod(), steps)
    # Their table of sigmas is single precision.
    agrees("DPM-Solver++(2M)", "diffusers DPMSolverMultistepScheduler", found, wanted, 2e-5, 2e-5)


def test_schedule():
    schedulers = pytest.importorskip("diffusers.schedulers")
    wanted = schedulers.DDPMScheduler(**SD).alphas_cumprod
    agrees("noise schedule, all of abar", "diffusers DDPMScheduler", sd_alphas_cumprod(), wanted, 1e-6)


@pytest.mark.parametrize("sampler", [plms, ddim, dpm_solver])
def test_a_denoiser_that_knows_the_picture_leads_to_it(sampler):
    abar = sd_alphas_cumprod()
    picture = torch.linspace(-1, 1, 12).reshape(2, 6)

    def denoise(x, t):
        a = abar[t][:, None]
        return (x - a.sqrt() * picture) / (1 - a).sqrt()

    noise = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))
    left_over = 5 * (1 - abar[0]).sqrt().item()  # PLMS and DDIM end at abar[0], not without noise
    torch.testing.assert_close(sampler(denoise, noise, abar, 50), picture, rtol=0, atol=left_over)


@pytest.mark.parametrize("sampler", [plms, ddim])
@pytest.mark.parametrize(("steps", "near"), [(30, "25 and 40"), (300, "250 and 500"), (1000, "250 and 500")])
def test_impossible_steps_name_possible_ones(sampler, steps, near):
    with pytest.raises(UserError, match=near):
        sampler(toy, torch.zeros(1, 6), sd_alphas_cumprod(), steps)


@pytest.mark.parametrize("sampler", [plms, ddim, dpm_solver])
def test_no_steps_is_refused(sampler):
    with pytest.raises(UserError):
        sampler(toy, torch.zeros(1, 6), sd_alphas_cumprod(), 0)


@pytest.mark.parametrize("sampler", [ddim, dpm_solver])
@pytest.mark.parametrize("steps", [5, 20])
def test_steps_are_exactly_as_asked_and_items_are_independent(sampler, steps, start):
    calls = []

    def counted(x, t):
        assert t.dtype == torch.int64 and t.shape == (len(x),)
        calls.append(t[0].item())
        return toy(x, t)

    together = sampler(counted, start, sd_alphas_cumprod(), steps)
    assert len(calls) == steps and calls == sorted(calls, reverse=True)
    torch.testing.assert_close(sampler(toy, start[1:2], sd_alphas_cumprod(), steps), together[1:2])


def test_guidance():
    x, t = torch.tensor([[10.0, 20.0], [30.0, 40.0]]), torch.tensor([3, 4])

    def denoise(x, t):  # the first half is without the condition
        return x + t[:, None] + torch.tensor([0.0, 0.0, 1.0, 1.0])[:, None]

    assert guided(denoise, 7.5)(x, t).tolist() == [[20.5, 30.5], [41.5, 51.5]]
