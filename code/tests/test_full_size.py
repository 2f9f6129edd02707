"""The paper's sizes on this machine: one step of stage A and B each, one picture, inside 20 GB of memory.

Weights are random, so only shapes, finiteness, what changes, time and memory can be checked. Each part runs in a
process of its own, whose peak memory is its own: `python code/tests/test_full_size.py stage_b` runs one by hand.
"""

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from fidelity import random_weights

from dc_ldm.generator import EEGImageGenerator
from dc_ldm.ldm_for_eeg import EEGLatentDiffusion, LatentBatch
from dc_ldm.models.autoencoder import AutoencoderKL
from dc_ldm.models.samplers import sd_alphas_cumprod
from dc_ldm.models.unet import UNet
from dc_ldm.modules.conditioner import EEGConditioner
from runtime.devices import pick_dtype
from runtime.draws import Batch
from runtime.sampling import Sampling
from sc_mbm.mae_for_eeg import EEGEncoder, MAEforEEG
from sc_mbm.trainer import MaskedPretraining

LIMIT = 20.0  # GB
LATENT = (4, 64, 64)  # of a picture of 512 pixels
NO_CONTEXT = torch.zeros(77, 768)  # the condition of no EEG


def paper_conditioner() -> EEGConditioner:
    return EEGConditioner(EEGEncoder(mlp_ratio=4.0), clip_head="condition")


def one_share(n: int, step: int) -> Batch:
    return Batch(step=step, index=torch.arange(n), start=0, total=n, weight=1.0)


def mixed_precision() -> torch.autocast:
    """bfloat16 where training takes it on this CPU, else single precision."""
    return torch.autocast("cpu", torch.bfloat16, enabled=pick_dtype("auto", "cpu") == torch.bfloat16)


def train_step(module, optimizer: torch.optim.Optimizer, item: tuple) -> float:
    """One optimizer step; the loss."""
    with mixed_precision():
        loss = module(*item)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def stage_a() -> dict:
    """Three steps on one batch of 8 windows."""
    module = MaskedPretraining(random_weights(lambda: MAEforEEG(mlp_ratio=4.0)), 0.75, 2.5e-4, 0.0, 0.05, 0, 3, seed=0)
    optimizer = module.configure_optimizers()
    eeg = torch.randn(8, 128, 512)
    losses = [train_step(module, optimizer, (one_share(8, 0), eeg)) for _ in range(3)]
    return {"losses": losses, "parameters": sum(p.numel() for p in module.parameters())}


def stage_b() -> dict:
    """One step, batch 1: what changed, and what the optimizer holds."""
    module = EEGLatentDiffusion(
        random_weights(paper_conditioner), random_weights(UNet), sd_alphas_cumprod(), NO_CONTEXT
    )
    optimizer = module.configure_optimizers()
    unet = dict(module.unet.named_parameters())
    first_seen = {name: p.detach().flatten()[:100].clone() for name, p in unet.items()}
    noisy_part = (torch.randn(1, *LATENT), torch.randn(1, *LATENT), torch.tensor([500]))
    data = LatentBatch(torch.randn(1, 128, 512), *noisy_part, torch.ones(1, 1, 1), torch.randn(1, 768))
    loss = train_step(module, optimizer, (one_share(1, 0), data))
    changed = {name for name, p in unet.items() if not torch.equal(p.detach().flatten()[:100], first_seen[name])}
    stepped = {id(p) for group in optimizer.param_groups for p in group["params"]}
    in_unet = {name: p.numel() for name, p in unet.items() if id(p) in stepped}
    return {
        "losses": [loss],
        "trained": sum(p.numel() for p in module.parameters() if id(p) in stepped),
        "adam_states": sum(state["exp_avg"].numel() for state in optimizer.state.values()),
        "trained_in_unet": [len(in_unet), sum(in_unet.values())],
        "frozen_but_changed": sorted(changed - in_unet.keys()),
        "trained_but_unchanged": sorted(in_unet.keys() - changed),
    }


def picture() -> dict:
    """One picture of 512 pixels from EEG by 20 steps of DPM-Solver++."""
    parts = [random_weights(build).eval() for build in (paper_conditioner, UNet, AutoencoderKL)]
    generator = EEGImageGenerator(*parts, sd_alphas_cumprod(), NO_CONTEXT, LATENT)
    with mixed_precision():
        image = generator.generate(torch.randn(1, 128, 512), torch.tensor([7]), Sampling("dpm_solver", 20))
    return {"shape": list(image.shape), "type": str(image.dtype), "grey_levels": len(image.unique())}


def measured(part: str) -> dict:
    """The part's figures, with seconds and peak memory (GB), from a process of its own."""
    code = Path(__file__).parents[1]
    run = subprocess.run(
        [sys.executable, __file__, part], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(code)}
    )
    assert run.returncode == 0, run.stderr[-2000:]
    figures = json.loads(run.stdout.splitlines()[-1])
    print(f"\n{part}: {figures['seconds']:.0f} s, {figures['peak']:.1f} GB")
    assert figures["peak"] < LIMIT
    return figures


@pytest.mark.full
def test_stage_a_trains_at_the_papers_size():
    figures = measured("stage_a")
    losses = figures["losses"]
    assert figures["parameters"] > 300e6
    assert torch.tensor(losses).isfinite().all() and losses[2] < losses[1] < losses[0]


@pytest.mark.full
def test_stage_b_trains_the_published_part_at_512_pixels():
    figures = measured("stage_b")
    assert torch.tensor(figures["losses"]).isfinite().all()
    # Cross-attention, the norms before it and the time condition: tensors and values of spec 5.4
    assert figures["trained_in_unet"] == [80 + 32 + 6, 43_962_560 + 24_960 + 987_323]
    assert not figures["frozen_but_changed"] and not figures["trained_but_unchanged"]
    assert figures["adam_states"] == figures["trained"] < 360e6


@pytest.mark.full
def test_a_picture_of_512_pixels_from_eeg():
    figures = measured("picture")
    assert figures["shape"] == [1, 512, 512, 3] and figures["type"] == "torch.uint8"
    assert figures["grey_levels"] > 10


if __name__ == "__main__":
    torch.manual_seed(0)
    started = time.time()
    figures = {"stage_a": stage_a, "stage_b": stage_b, "picture": picture}[sys.argv[1]]()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    print(json.dumps({**figures, "seconds": time.time() - started, "peak": peak}))
