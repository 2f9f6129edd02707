"""What training holds in memory: frozen layers in half precision, batches that cannot fit or do not, full disks."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from test_stage_a import SMALL, slow_waves
from test_stage_b import some_trials, tiny_module, whole
from tiny_diffusion import stage_b_arguments
from two_processes import launch

import eeg_ldm
import runtime.memory as memory_plan
import stageA1_eeg_pretrain as stage_a
import training_inputs
from config import PretrainConfig, from_cli
from runtime import atomic
from runtime.devices import adamw
from runtime.errors import UserError
from runtime.loop import Schedule, fit
from runtime.runs import open_run
from sc_mbm.trainer import plan_pretraining
from vision import cache as image_cache


def loss_and_gradients(halved: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    module, batch = tiny_module(), whole(6)
    for i, value in enumerate(module.unet.parameters()):  # zeroed layers would pass nothing on
        if not value.any():
            value.data.normal_(std=0.1, generator=torch.Generator().manual_seed(i))
    if halved:
        module.halve_frozen()
    with torch.autocast("cpu", torch.bfloat16):
        loss = module(batch, some_trials()[batch])
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in module.named_parameters() if p.requires_grad}


def test_frozen_layers_in_half_precision_change_no_bit_of_a_step():
    (loss, gradients), (same, equal) = loss_and_gradients(False), loss_and_gradients(True)
    assert torch.equal(loss, same) and gradients.keys() == equal.keys()
    assert all(torch.equal(value, equal[name]) for name, value in gradients.items())


def test_only_frozen_products_are_halved():
    module = tiny_module()
    module.halve_frozen()
    kinds = {name: p.dtype for name, p in module.named_parameters()}
    assert all(kinds[name] == torch.float32 for name, p in module.named_parameters() if p.requires_grad)
    assert all(dtype == torch.float32 for name, dtype in kinds.items() if "norm" in name)
    halved = sum(p.numel() for p in module.unet.parameters() if p.dtype == torch.bfloat16)
    assert halved > 0.8 * sum(p.numel() for p in module.unet.parameters() if not p.requires_grad)


@pytest.mark.parametrize("finetune", ["E", "A", "E+A"])
def test_a_checkpoint_is_not_rounded_whatever_trains(finetune):
    module = tiny_module(finetune=finetune)
    before = module.training_state()
    module.halve_frozen()
    after = module.training_state()
    assert after.keys() == before.keys()
    assert all(value.dtype == torch.float32 and torch.equal(value, before[name]) for name, value in after.items())


def test_the_optimizer_in_one_kernel_steps_as_the_plain_one():
    torch.manual_seed(0)
    weights = [torch.randn(50, requires_grad=True) for _ in range(2)]
    weights[1].data.copy_(weights[0].data)
    settings = {"lr": 0.1, "betas": (0.9, 0.95), "weight_decay": 0.3}
    optimizers = [adamw([weights[0]], **settings), torch.optim.AdamW([weights[1]], **settings)]
    for step in range(5):
        for weight, optimizer in zip(weights, optimizers, strict=True):
            weight.grad = (torch.arange(50.0) - step).sin()
            optimizer.step()
    assert torch.allclose(*weights, rtol=1e-5, atol=1e-6)


def test_a_batch_that_does_not_fit_is_told_one_that_should(tmp_path, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    module = tiny_module()
    monkeypatch.setattr(module, "forward", full)
    schedule = Schedule(batch_size=5, num_epoch=1, seed=1, accumulate=2, device="cpu")
    with pytest.raises(UserError, match="batch_size=5 does not fit .* batch_size=2 should, with 6 batches"):
        fit(module, some_trials(), open_run(tmp_path, {}), schedule, lambda epoch: {})


def test_a_cache_of_pictures_is_whole_or_not_there(tmp_path, monkeypatch):
    picture, folder = tmp_path / "a.png", tmp_path / "cache"
    picture.write_bytes(b"content")

    def cached(compute=lambda: torch.ones(3), depends="one"):
        return image_cache.cached(folder, "latents", [picture], [depends], compute)

    def interrupted():
        raise KeyboardInterrupt

    def full(_):
        raise OSError(28, "No space left on device")

    with pytest.raises(KeyboardInterrupt):
        cached(interrupted)
    assert not folder.exists() or not list(folder.iterdir())
    first = cached()
    with monkeypatch.context() as patch:
        patch.setattr(atomic.os, "fsync", full)
        with pytest.raises(UserError, match="latents-.*could not be written .*No space left"):
            cached(depends="another")
    assert len(list(folder.iterdir())) == 1 and torch.equal(cached(interrupted), first), "the earlier one is whole"
    assert torch.equal(cached(lambda: torch.zeros(3), "another"), torch.zeros(3)), "made for what it depends on"


def command(stage: str, root: Path) -> tuple[Path, list[str]]:
    """Command line of a run that takes a second, and the folder of stage B's caches below `root`."""
    if stage == "eeg_ldm":
        return stage_b_arguments(root)
    (root / "eeg").mkdir(parents=True)
    for i in range(5):
        np.save(root / "eeg" / f"{i}.npy", slow_waves(6, 300, i))
    return [f"root_path={root}", *SMALL, "device=cpu", "num_epoch=1", "batch_size=6"]


@pytest.mark.parametrize("stage", [stage_a, eeg_ldm])
def test_a_batch_that_cannot_fit_is_refused_before_any_work(tmp_path, monkeypatch, stage):
    words, plans, smaller = command(stage.__name__, tmp_path), [], memory_plan.smaller
    monkeypatch.setattr(memory_plan, "smaller", lambda *given: plans.append(given[1]) or smaller(*given))

    def start(*more: str) -> None:
        monkeypatch.setattr(memory_plan, "free_memory", lambda device: room)
        monkeypatch.setattr(sys, "argv", ["stage", *words, *more])
        stage.main()

    def no_work(*_):
        raise AssertionError("work was begun")

    room = 1.0
    with monkeypatch.context() as patch:
        patch.setattr(training_inputs, "EEGWindows" if stage is stage_a else "open_trials", no_work)
        with pytest.raises(UserError, match="batch_size=6 does not fit .* more memory is needed"):
            start()
        kept, needed = plans[-1].memory[memory_plan.ESTIMATED], plans[-1].total
        room = needed - kept * 3.5 / 6
        with pytest.raises(UserError, match="batch_size=6 does not fit") as refused:
            start()
        room = needed / 1.2
        with pytest.raises(AssertionError, match="work was begun"):  # an estimate so near is no reason to refuse
            start()
    better = re.findall(r"\w+=\d+", str(refused.value))[1:]
    assert better == ["batch_size=2", f"{'accum_iter' if stage is stage_a else 'accumulate_grad'}=3"]
    room = needed - kept * 3.5 / 6
    start(*better)
    assert list(tmp_path.rglob("finished.json"))


def test_several_processes_share_a_batch_and_refuse_alike(tmp_path, monkeypatch):
    cfg = from_cli(PretrainConfig, ["preset=miniature", "device=cpu", "batch_size=12"])
    alone = plan_pretraining(cfg)
    monkeypatch.setenv("WORLD_SIZE", "2")
    half = plan_pretraining(cfg)
    assert half.batch_size == 6
    kept = half.memory.pop(memory_plan.ESTIMATED)
    assert kept == pytest.approx(alone.memory.pop(memory_plan.ESTIMATED) / 2, rel=0.01)
    assert half.memory == alone.memory
    room = half.total + kept * 2.5 / 6  # two items in each of two processes
    half.memory[memory_plan.ESTIMATED] = kept
    assert "batch_size=4 accum_iter=3 would" in memory_plan.smaller(cfg, half, room)
    monkeypatch.delenv("WORLD_SIZE")
    codes, said = launch("stageA1_eeg_pretrain", [*command("A", tmp_path), "batch_size=1000000000"], tmp_path / "logs")
    assert codes == [2, 2] and said[0].count("error: ") == 1 and "each of 2 processes" in said[0] and not said[1], said
