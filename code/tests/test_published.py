"""The published checkpoints of stages A and B, made at toy size, load strictly and safely; wrong files are named."""

import fcntl
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from goldens import read_golden
from tiny_diffusion import (
    ENCODER,
    MAE,
    SIZE,
    UNET,
    VAE,
    foreign_class,
    published_state,
    write_base,
    write_published_a,
    write_published_b,
    write_stage_a,
    write_stage_b,
)

from dc_ldm import weights
from dc_ldm.generator import load_generator
from dc_ldm.published import encoder_sizes, read_stage_a, read_stage_b
from runtime.errors import UserError
from runtime.sampling import Sampling
from sc_mbm.mae_for_eeg import EEGEncoder, MAEforEEG, encoder_state

PREFIXES = {"conditioner": "cond_stage_model.", "unet": "model.diffusion_model.", "vae": "first_stage_model."}


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("yaml", [False, True])
def test_published_generation_checkpoint_gives_all_its_parts(tmp_path, monkeypatch, old, yaml):
    if yaml:
        write_base(tmp_path)
    else:
        monkeypatch.setattr(weights, "published_sizes", lambda: weights.BaseSizes(UNET, VAE))
    state = published_state() | {"cond_stage_model.cls_net.fc.weight": torch.zeros(40, 16)}
    path = write_published_b(tmp_path / "checkpoint.pth", state, old)
    generator = load_generator(path, tmp_path, "cpu", EEGEncoder)
    for name, prefix in PREFIXES.items():
        own = getattr(generator, name).state_dict()
        wanted = {k: v for k, v in weights.part(state, prefix).items() if not k.startswith("cls_net.")}
        assert own.keys() == wanted.keys() and all(torch.equal(own[k], wanted[k]) for k in own)
    assert generator.conditioner.clip_head == "tokens" and not generator.guidable
    assert torch.equal(generator.no_context, torch.zeros(77, 16))
    assert generator.conditioner.mae.blocks[0].attn.num_heads == 2
    eeg = torch.randn(2, 8, 64)
    assert generator.generate(eeg, torch.tensor([1, 2]), Sampling(steps=2)).shape == (2, SIZE, SIZE, 3)
    content = read_stage_b(path, tmp_path)
    assert content["input"]["scale"] == 1.0 and content["config"]["encoder"] == ENCODER


@pytest.mark.parametrize("old", [False, True])
def test_published_stage_a_checkpoint_gives_encoder_sizes_and_scale(tmp_path, old):
    path = write_published_a(tmp_path / "checkpoint.pth", old, **{"nature_img_decoder.weight": torch.zeros(1)})
    content = read_stage_a(path)
    assert content["config"] == MAE and content["input"]["scale"] == 0.1 and content["run"]["epoch"] == 499
    MAEforEEG(**content["config"]).load_state_dict(content["model"])
    EEGEncoder(**ENCODER).load_state_dict(encoder_state(content["model"]))


def test_sizes_of_the_published_models():
    with torch.device("meta"):
        state = EEGEncoder().state_dict()
    assert encoder_sizes(state, 16) == {
        "n_chans": 128, "n_times": 512, "patch_size": 4, "embed_dim": 1024, "depth": 24, "num_heads": 16,
        "mlp_ratio": 1.0,
    }  # fmt: skip
    sizes = weights.published_sizes()
    assert sizes.unet == {
        "in_channels": 4, "out_channels": 4, "model_channels": 320, "attention_resolutions": (4, 2, 1),
        "num_res_blocks": 2, "channel_mult": (1, 2, 4, 4), "num_heads": 8, "context_dim": 768,
    }  # fmt: skip
    assert sizes.vae == {"ch": 128, "ch_mult": (1, 2, 4, 4), "num_res_blocks": 2, "z_channels": 4}


def test_a_file_of_other_sizes_than_the_published_needs_its_config15_yaml(tmp_path):
    path = write_published_b(tmp_path / "checkpoint.pth")
    with pytest.raises(UserError, match=r"the UNet .*of another shape .*is it the file of another model or size"):
        load_generator(path, tmp_path, "cpu", EEGEncoder)


def test_every_key_of_the_published_file_is_a_part_or_on_the_list_of_the_ignored():
    keys = read_golden("generation_keys.json")
    state = {name: torch.empty(shape, device="meta") for name, (shape, _) in keys.items()}
    kept = weights.known_part(state, tuple(PREFIXES.values()), weights.PUBLISHED_B, "file")
    counts = {prefix: sum(name.startswith(prefix) for name in kept) for prefix in PREFIXES.values()}
    assert counts == {"cond_stage_model.": 305, "model.diffusion_model.": 692, "first_stage_model.": 248}
    assert len(keys) - len(kept) == 392 + 12


def test_a_published_file_with_unknown_missing_or_other_tensors_is_refused_by_name(tmp_path):
    write_base(tmp_path)
    state = published_state() | {f"strange.{i}": torch.zeros(1) for i in range(12)}
    path = write_published_b(tmp_path / "more.pth", state)
    with pytest.raises(UserError, match=r"12 tensors belong to no part .*strange.0, .*strange.9\)"):
        read_stage_b(path, tmp_path)
    state = {name: value for name, value in published_state().items() if "attn2" not in name}
    path = write_published_b(tmp_path / "less.pth", state)
    with pytest.raises(UserError, match=r"lacks \d+ tensors \(first: .*attn2"):
        load_generator(path, tmp_path, "cpu", EEGEncoder)


def test_a_half_precision_file_is_read_as_single(tmp_path, capsys):
    write_base(tmp_path)
    state = {name: v.half() if v.is_floating_point() else v for name, v in published_state().items()}
    generator = load_generator(write_published_b(tmp_path / "half.pth", state), tmp_path, "cpu", EEGEncoder)
    assert "half.pth is stored as torch.float16; it is read as float32" in capsys.readouterr().out
    for name, prefix in PREFIXES.items():
        for key, value in getattr(generator, name).state_dict().items():
            assert value.dtype == torch.float32 and torch.equal(value, state[prefix + key].float())


@pytest.mark.parametrize("old", [False, True])
def test_a_config_of_foreign_code_runs_nothing(tmp_path, old):
    with foreign_class("config", "Config_Evil") as kind:
        kind.__reduce__ = lambda self: (type(self), ("touch me",), {"num_heads": 2})
        content = {"model": MAEforEEG(**MAE).state_dict(), "config": kind()}
        torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=not old)
    assert read_stage_a(tmp_path / "a.pth")["config"]["num_heads"] == 2
    with foreign_class("other", "Config") as kind:
        torch.save({**content, "config": kind()}, tmp_path / "b.pth", _use_new_zipfile_serialization=not old)
    with pytest.raises(UserError, match="never loaded"):
        read_stage_a(tmp_path / "b.pth")


def test_each_wrong_file_is_called_what_it_is(tmp_path):
    write_stage_b(tmp_path)
    made = {
        "stage A checkpoint (ours)": write_stage_a(tmp_path / "a.pth"),
        "published stage A checkpoint": write_published_a(tmp_path / "pa.pth"),
        "stage B checkpoint (ours)": tmp_path / "pretrains/generation/tiny.pth",
        "published generation checkpoint": write_published_b(tmp_path / "pb.pth"),
        "Stable Diffusion 1.x": tmp_path / "pretrains/models/v1-5-pruned.safetensors",
        "Git LFS pointer": tmp_path / "lfs",
        "HTML page": tmp_path / "page",
        "diffusers folder": tmp_path / "folder",
        "truncated file": tmp_path / "cut",
    }
    made["Git LFS pointer"].write_text("version https://git-lfs.github.com/spec/v1\n")
    made["HTML page"].write_text("<!doctype html>")
    (made["diffusers folder"] / "unet").mkdir(parents=True)
    made["truncated file"].write_bytes(made["published generation checkpoint"].read_bytes()[:-300])
    wanted = {
        "a stage A checkpoint": (read_stage_a, ("stage A", "published stage A")),
        "a stage B checkpoint": (lambda path: read_stage_b(path, tmp_path), ("stage B", "published generation")),
        "a Stable Diffusion checkpoint": (weights.read_base, ("Stable Diffusion 1.x",)),
    }
    for what, (read, right) in wanted.items():
        for kind, path in made.items():
            if not kind.startswith(right):
                with pytest.raises(UserError) as error:
                    read(path)
                assert f"expected {what}" in str(error.value) and f"found this: {kind}" in str(error.value)


WRITE = """
import json, sys, torch
sys.path.insert(0, sys.argv[1])
from tiny_diffusion import write_published_b
state = {}
for name, (shape, kind) in json.load(open(sys.argv[2])).items():
    state[name] = torch.empty(shape, dtype=getattr(torch, kind.removeprefix("torch."))).normal_()
write_published_b(sys.argv[3], state, num_heads=16, img_size=512)
"""
READ = """
import resource, sys, time, torch
started = time.time()
from generate import load_generator
generator = load_generator(sys.argv[1], sys.argv[2], "cpu")
seconds = time.time() - started
for module in (generator.unet, generator.vae, generator.conditioner):
    assert all(torch.isfinite(value.sum()) for value in module.state_dict().values())
print(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.full
def test_the_published_checkpoint_at_full_size_is_read_in_1_3_times_its_memory(tmp_path):
    read_golden("generation_keys.json")
    tests, path = Path(__file__).parent, tmp_path / "checkpoint.pth"
    keys = tests.parents[2] / "shared/golden/generation_keys.json"

    def run(code, *arguments):
        command = [sys.executable, "-c", code, *map(str, arguments)]
        return subprocess.run(command, cwd=tests.parent, capture_output=True, text=True, check=True).stdout

    with open("/tmp/big.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            run(WRITE, tests, keys, path)
            size = path.stat().st_size
            seconds, peak = map(float, run(READ, path, tmp_path).split()[-2:])  # behind what was loaded
        finally:
            path.unlink(missing_ok=True)
    print(f"{size / 1e9:.2f} GB read in {seconds:.1f} s, peak memory {peak / 1e9:.2f} GB = {peak / size:.2f} files")
    assert 5.5e9 < size < 5.7e9 and peak <= 1.3 * size
