"""Noise schedule and samplers. A sampler is a function of a denoiser: it knows no network and no EEG.

`denoise(x, t)` takes x (B, ...) and t int64 (B,) on x's device and answers the predicted noise.
Symbols: abar = product of (1 - beta) up to a step, tau = the grid of time steps, eps = predicted noise.
Coefficients are Python floats (double precision), so a step costs no transfer from the accelerator.
"""

from bisect import bisect
from collections.abc import Callable

import torch
from torch import Tensor

from runtime.errors import UserError

Denoiser = Callable[[Tensor, Tensor], Tensor]

# Linear multi-step weights of the newest prediction and those before it, by how many there are (Adams-Bashforth).
ADAMS_BASHFORTH = {2: (3 / 2, -1 / 2), 3: (23 / 12, -16 / 12, 5 / 12), 4: (55 / 24, -59 / 24, 37 / 24, -9 / 24)}


def sd_alphas_cumprod(linear_start: float = 0.00085, linear_end: float = 0.0120, timesteps: int = 1000) -> Tensor:
    """abar of Stable Diffusion (T,) float32: betas are squares of an even grid between roots.

    Computed in double precision and then rounded, as the published checkpoint's buffer was.
    """
    betas = torch.linspace(linear_start**0.5, linear_end**0.5, timesteps, dtype=torch.float64, device="cpu") ** 2
    return (1 - betas).cumprod(dim=0).float()


def guided(denoise: Denoiser, scale: float) -> Denoiser:
    """Classifier-free guidance (arXiv 2207.12598): eps_u + scale (eps_c - eps_u), for a scale other than 1.

    denoise answers 2B items in one pass: B without the condition, then the same with it.
    """

    def both(x: Tensor, t: Tensor) -> Tensor:
        uncond, cond = denoise(torch.cat([x, x]), torch.cat([t, t])).chunk(2)
        return uncond + scale * (cond - uncond)

    return both


def check_steps(steps: int, sampler: str, timesteps: int = 1000) -> None:
    """Refuse a number of steps that the sampler ("plms", "ddim", "dpm_solver") cannot do: UserError."""
    if sampler == "dpm_solver":
        if not 1 <= steps < timesteps:
            raise UserError(f"steps must lie between 1 and {timesteps - 1} for {sampler}, but is {steps}")
        return
    # The grid starts at 1, so one step for every time step would run past the end of the schedule.
    possible = [s for s in range(1, timesteps) if timesteps % s == 0]
    if steps not in possible:
        above = min(bisect(possible, steps), len(possible) - 1)
        near = possible[max(0, above - 1) :][:2]  # the neighbours on both sides
        raise UserError(
            f"{sampler} needs steps that divide {timesteps} evenly and are fewer, but was asked for {steps}; "
            f"the nearest are {near[0]} and {near[1]} (dpm_solver takes any number)"
        )


def even_grid(alphas_cumprod: Tensor, steps: int) -> tuple[list[int], list[float], list[float]]:
    """Ascending tau = 1, 1 + c, 1 + 2c ... (c = T / steps), abar at tau, and abar one grid point earlier.

    Before the first point stands abar[0], not 1: the published grid never reaches a noiseless latent.
    """
    abar = alphas_cumprod.double().tolist()
    taus = list(range(1, len(abar), len(abar) // steps))
    now = [abar[t] for t in taus]
    return taus, now, [abar[0], *now[:-1]]


def ddim_step(x: Tensor, eps: Tensor, abar: float, abar_prev: float) -> Tensor:
    """One deterministic step (arXiv 2010.02502, eq. 12 with sigma 0) from abar to abar_prev."""
    x0 = (x - (1 - abar) ** 0.5 * eps) / abar**0.5
    return abar_prev**0.5 * x0 + (1 - abar_prev) ** 0.5 * eps


def at(x: Tensor, t: int) -> Tensor:
    """The time step t for every item of x: int64 (B,)."""
    return torch.full((x.shape[0],), t, dtype=torch.int64, device=x.device)


@torch.no_grad()
def ddim(denoise: Denoiser, x: Tensor, alphas_cumprod: Tensor, steps: int = 250) -> Tensor:
    """Deterministic DDIM (arXiv 2010.02502) from noise x (B, ...) to a latent of the same shape."""
    check_steps(steps, "ddim", len(alphas_cumprod))
    taus, abar, abar_prev = even_grid(alphas_cumprod, steps)
    for i in reversed(range(steps)):
        x = ddim_step(x, denoise(x, at(x, taus[i])), abar[i], abar_prev[i])
    return x


@torch.no_grad()
def plms(denoise: Denoiser, x: Tensor, alphas_cumprod: Tensor, steps: int = 250) -> Tensor:
    """Pseudo linear multi-step sampling (arXiv 2202.09778) from noise x (B, ...); steps + 1 calls."""
    check_steps(steps, "plms", len(alphas_cumprod))
    taus, abar, abar_prev = even_grid(alphas_cumprod, steps)
    known: list[Tensor] = []  # raw predictions, newest first, at most four
    for i in reversed(range(steps)):
        known = [denoise(x, at(x, taus[i])), *known[:3]]
        if len(known) == 1:  # no history yet: average with the prediction at the next point (Heun)
            ahead = denoise(ddim_step(x, known[0], abar[i], abar_prev[i]), at(x, taus[max(i - 1, 0)]))
            eps = (known[0] + ahead) / 2
        else:
            eps = sum(weight * e for weight, e in zip(ADAMS_BASHFORTH[len(known)], known, strict=True))
        x = ddim_step(x, eps, abar[i], abar_prev[i])
    return x


@torch.no_grad()
def dpm_solver(denoise: Denoiser, x: Tensor, alphas_cumprod: Tensor, steps: int = 20) -> Tensor:
    """DPM-Solver++(2M) (arXiv 2211.01095, algorithm 2) from noise x (B, ...); one call a step.

    Time steps evenly spaced from the last one down, first and last step of order 1, ending without noise.
    """
    timesteps = len(alphas_cumprod)
    check_steps(steps, "dpm_solver", timesteps)
    taus = torch.linspace(timesteps - 1, 0, steps + 1, dtype=torch.float64, device="cpu")[:-1].round().long()
    abar = alphas_cumprod.double().cpu()[taus]
    alpha, sigma = abar.sqrt().tolist(), (1 - abar).sqrt().tolist()
    half_logsnr = (0.5 * (abar / (1 - abar)).log()).tolist()
    last_x0, h = None, 0.0
    for i, tau in enumerate(taus.tolist()):
        x0 = (x - sigma[i] * denoise(x, at(x, tau))) / alpha[i]
        if i == steps - 1:
            return x0  # sigma 0: the step of order 1 is the prediction itself
        last_h, h = h, half_logsnr[i + 1] - half_logsnr[i]
        target = x0 if last_x0 is None else x0 + (x0 - last_x0) * h / (2 * last_h)
        shrink = sigma[i + 1] / sigma[i]
        x = shrink * x + (alpha[i + 1] - shrink * alpha[i]) * target
        last_x0 = x0
    return x
