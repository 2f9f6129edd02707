"""The generator: a picture depends on its EEG and seed alone; guidance, embeddings, and files that do not fit."""

import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_diffusion import write_stage_a, write_stage_b
from torch.testing import assert_close

import generate
from dc_ldm import weights
from dc_ldm.generator import EEGImageGenerator, load_generator, save_grid, to_uint8
from runtime import checkpoints
from runtime.errors import UserError
from sc_mbm.mae_for_eeg import EEGEncoder

SEEDS = torch.tensor([11, 22, 33, 44, 55])


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A stage B checkpoint with condition dropout, a stage A checkpoint, a resume point."""
    root = tmp_path_factory.mktemp("world")
    write_stage_b(root)
    write_stage_a(root / "pretrains/eeg_pretrain/tiny.pth")
    checkpoints.save(root / "last.pth", {"format": "resume-1"})
    return root


@pytest.fixture(scope="module")
def generator(world) -> EEGImageGenerator:
    return load(world)


def load(root, checkpoint="pretrains/generation/tiny.pth") -> EEGImageGenerator:
    return load_generator(root / checkpoint, root / "pretrains", "cpu", EEGEncoder)


@pytest.fixture(scope="module")
def eeg() -> torch.Tensor:
    return torch.randn(5, 8, 64, generator=torch.Generator().manual_seed(5))


def apart(one: torch.Tensor, two: torch.Tensor) -> int:
    """Largest difference of two uint8 pictures."""
    return int((one.int() - two.int()).abs().max())


@pytest.mark.parametrize("sampler", ["plms", "ddim", "dpm_solver"])
def test_picture_depends_on_eeg_and_seed_not_on_its_batch(generator, eeg, sampler):
    settings = {"steps": 4, "sampler": sampler}
    together = generator.generate(eeg, SEEDS, batch_size=5, **settings)
    assert together.shape == (5, 32, 32, 3) and together.dtype == torch.uint8
    assert apart(generator.generate(eeg, SEEDS, batch_size=2, **settings), together) <= 1
    backwards = generator.generate(eeg.flip(0), SEEDS.flip(0), batch_size=3, **settings)
    assert apart(backwards.flip(0), together) <= 1
    assert apart(generator.generate(eeg, SEEDS + 1, batch_size=5, **settings), together) > 1


def test_picture_follows_the_eeg(generator, eeg):
    same = eeg[:1].expand(5, -1, -1)
    one, other = (generator.encode(x)[0] for x in (eeg, same))
    assert not torch.allclose(one[1], other[1], atol=1e-4)
    alike = generator.generate(same, SEEDS[:1].expand(5), 4)
    assert apart(alike[:1], alike[4:]) <= 1


def test_several_seeds_a_trial_are_the_trial_repeated(generator, eeg):
    seeds = torch.arange(15).view(5, 3)
    several = generator.generate(eeg, seeds, 4)
    repeated = generator.generate(eeg.repeat_interleave(3, 0), seeds.flatten(), 4)
    assert several.shape == (5, 3, 32, 32, 3)
    assert apart(several.flatten(0, 1), repeated) <= 1


def test_embedding_is_the_clip_head_and_needs_no_batch(generator, eeg):
    embedding = generator.embed(eeg)
    assert embedding.shape == (5, 12) and embedding.dtype == torch.float32
    assert_close(generator.embed(eeg[3:4])[0], embedding[3], atol=1e-5, rtol=1e-5)


def test_guidance_mixes_with_the_zero_condition(generator, eeg, monkeypatch):
    plain = generator.generate(eeg, SEEDS, 4)
    assert apart(generator.generate(eeg, SEEDS, 4, guidance=3.0), plain) > 1
    unconditional = generator.generate(eeg, SEEDS, 4, guidance=0.0)
    assert apart(generator.generate(eeg.flip(0), SEEDS, 4, guidance=0.0), unconditional) == 0
    monkeypatch.setattr(generator, "guidable", False)
    with pytest.raises(UserError, match="cond_drop"):
        generator.generate(eeg, SEEDS, 4, guidance=3.0)


def test_pixels_are_truncated_not_rounded():
    image = torch.tensor([-2.0, -1.0, 0.0, 0.9999, 1.0, 2.0]).view(1, 1, 2, 3).expand(1, 3, 2, 3)
    assert to_uint8(image)[0, :, :, 0].flatten().tolist() == [0, 0, 127, 254, 255, 255]


def test_wrong_requests_are_refused(generator, eeg):
    broken = eeg.clone()
    broken[3, 2, 1] = torch.nan
    cases = [
        ({"eeg": broken}, "trial 3"),
        ({"eeg": eeg[:, :4]}, r"\(5, 4, 64\)"),
        ({"eeg": eeg[:, :, :60]}, r"\(5, 8, 60\)"),
        ({"seeds": SEEDS[:3]}, "3 seeds for 5 trials"),
        ({"sampler": "euler"}, "plms, ddim, dpm_solver"),
        ({"steps": 300}, "250"),
    ]
    for changed, said in cases:
        with pytest.raises(UserError, match=said):
            generator.generate(**({"eeg": eeg, "seeds": SEEDS, "steps": 4} | changed))


def test_checkpoints_that_do_not_fit_are_refused(world, tmp_path):
    for checkpoint, said in [
        ("pretrains/eeg_pretrain/tiny.pth", "stage B checkpoint"),
        ("last.pth", "stage B checkpoint"),
        ("absent.pth", "no such file"),
    ]:
        with pytest.raises(UserError, match=said):
            load(world, checkpoint)
    good = world / "pretrains/generation/tiny.pth"
    cut = tmp_path / "cut.pth"
    cut.write_bytes(good.read_bytes()[:-2000])
    with pytest.raises(UserError, match="truncated"):
        load_generator(cut, world / "pretrains", "cpu", EEGEncoder)
    content = checkpoints.load(good, (weights.FORMAT,), "checkpoint")
    content["config"] = content["config"] | {"encoder": content["config"]["encoder"] | {"embed_dim": 32}}
    checkpoints.save(tmp_path / "resized.pth", content)
    with pytest.raises(UserError, match="another shape"):
        load_generator(tmp_path / "resized.pth", world / "pretrains", "cpu", EEGEncoder)


def test_another_base_is_refused(world, tmp_path):
    models = shutil.copytree(world / "pretrains/models", tmp_path / "models")
    file = models / "v1-5-pruned.safetensors"
    state = load_file(file)
    state["first_stage_model.quant_conv.bias"] += 1
    save_file(state, file)
    with pytest.raises(UserError, match="sha256"):
        load_generator(world / "pretrains/generation/tiny.pth", tmp_path, "cpu", EEGEncoder)
    with pytest.raises(UserError, match="no Stable Diffusion weights"):
        load_generator(world / "pretrains/generation/tiny.pth", tmp_path / "models", "cpu", EEGEncoder)


def test_a_notebook_needs_the_checkpoint_alone(world, generator, eeg, tmp_path):
    other = shutil.copytree(world / "pretrains/models", world / "pretrains/another/models")
    state = load_file(other / "v1-5-pruned.safetensors")
    save_file({name: value + 1 for name, value in state.items()}, other / "v1-5-pruned.safetensors")
    found = generate.load_generator(world / "pretrains/generation/tiny.pth", device="cpu")
    assert torch.equal(found.embed(eeg), generator.embed(eeg))
    assert apart(found.generate(eeg, SEEDS, steps=4), generator.generate(eeg, SEEDS, steps=4)) == 0
    alone = shutil.copy(world / "pretrains/generation/tiny.pth", tmp_path / "tiny.pth")
    with pytest.raises(UserError, match="set pretrain_gm_path"), pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        generate.load_generator(alone, device="cpu")


def test_grid_shows_truth_then_samples(tmp_path):
    truth, samples = torch.ones(2, 3, 8, 8), torch.zeros(2, 3, 8, 8, 3, dtype=torch.uint8)
    save_grid(tmp_path / "grid.png", truth, samples, "truth")
    image = Image.open(tmp_path / "grid.png")
    assert image.size == (35, 30)
    assert image.getpixel((4, 20)) == (255, 255, 255) and image.getpixel((20, 20)) == (0, 0, 0)
