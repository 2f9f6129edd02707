"""The generator: a picture depends on its EEG and seed alone; guidance, embeddings, and files that do not fit."""

import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_diffusion import write_stage_a, write_stage_b
from torch.testing import assert_close

import dc_ldm.generator
import generate
from dc_ldm import weights
from dc_ldm.generator import EEGImageGenerator, load_generator
from dc_ldm.models.samplers import ddim
from runtime import checkpoints, devices, draws
from runtime.errors import UserError
from runtime.pictures import save_grid, to_uint8
from runtime.sampling import Sampling
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


def load(root, checkpoint="pretrains/generation/tiny.pth", **options) -> EEGImageGenerator:
    return load_generator(root / checkpoint, root / "pretrains", "cpu", EEGEncoder, **options)


@pytest.fixture(scope="module")
def eeg() -> torch.Tensor:
    return torch.randn(5, 8, 64, generator=torch.Generator().manual_seed(5))


def ask(sampler: str = "plms", steps: int = 4, guidance: float = 1.0, batch: int = 0) -> Sampling:
    return Sampling(sampler, steps, guidance, batch)


def apart(one: torch.Tensor, two: torch.Tensor) -> int:
    """Largest difference of two uint8 pictures."""
    return int((one.int() - two.int()).abs().max())


@pytest.mark.parametrize("sampler", ["plms", "ddim", "dpm_solver"])
def test_picture_depends_on_eeg_and_seed_not_on_its_batch(generator, eeg, sampler):
    settings = {"steps": 4, "sampler": sampler}
    together = generator.generate(eeg, SEEDS, ask(batch=5, **settings))
    assert together.shape == (5, 32, 32, 3) and together.dtype == torch.uint8
    assert apart(generator.generate(eeg, SEEDS, ask(batch=2, **settings)), together) <= 1
    backwards = generator.generate(eeg.flip(0), SEEDS.flip(0), ask(batch=3, **settings))
    assert apart(backwards.flip(0), together) <= 1
    assert apart(generator.generate(eeg, SEEDS + 1, ask(batch=5, **settings)), together) > 1


def test_picture_follows_the_eeg(generator, eeg):
    same = eeg[:1].expand(5, -1, -1)
    one, other = (generator.encode(x)[0] for x in (eeg, same))
    assert not torch.allclose(one[1], other[1], atol=1e-4)
    alike = generator.generate(same, SEEDS[:1].expand(5), ask())
    assert apart(alike[:1], alike[4:]) <= 1


def test_several_seeds_a_trial_are_the_trial_repeated(generator, eeg):
    seeds = torch.arange(15).view(5, 3)
    several = generator.generate(eeg, seeds, ask())
    repeated = generator.generate(eeg.repeat_interleave(3, 0), seeds.flatten(), ask())
    assert several.shape == (5, 3, 32, 32, 3)
    assert apart(several.flatten(0, 1), repeated) <= 1


def test_embedding_is_the_clip_head_and_needs_no_batch(generator, eeg):
    embedding = generator.embed(eeg)
    assert embedding.shape == (5, 12) and embedding.dtype == torch.float32
    assert_close(generator.embed(eeg[3:4])[0], embedding[3], atol=1e-5, rtol=1e-5)


def test_guidance_mixes_with_the_zero_condition(generator, eeg, monkeypatch):
    plain = generator.generate(eeg, SEEDS, ask())
    assert apart(generator.generate(eeg, SEEDS, ask(guidance=3.0)), plain) > 1
    unconditional = generator.generate(eeg, SEEDS, ask(guidance=0.0))
    assert apart(generator.generate(eeg.flip(0), SEEDS, ask(guidance=0.0)), unconditional) == 0
    monkeypatch.setattr(generator, "guidable", False)
    with pytest.raises(UserError, match="cond_drop"):
        generator.generate(eeg, SEEDS, ask(guidance=3.0))


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_what_is_constant_is_computed_once_and_changes_nothing(generator, eeg, guidance):
    """Against the plain way: two passes a step, each with the context itself."""
    context, calls = generator.encode(eeg)[0], {"attn1": 0, "attn2": 0}

    def plain(x, t):
        cond = generator.unet(x, t, context)
        uncond = generator.unet(x, t, generator.no_context.expand_as(context))
        return uncond + guidance * (cond - uncond)

    start = torch.stack([draws.randn(generator.latent_shape, seed, "starting latent") for seed in SEEDS.tolist()])
    with torch.inference_mode():
        latent = ddim(plain, start, generator.alphas_cumprod, 5)
        wanted = to_uint8(generator.vae.decode(latent / generator.scale_factor))
    first = generator.unet.middle_block[1].transformer_blocks[0]
    hooks = []
    for name in calls:

        def count(*_, name=name):
            calls[name] += 1

        hooks.append(getattr(first, name).to_k.register_forward_hook(count))
    found = generator.generate(eeg, SEEDS, ask("ddim", 5, guidance, 5))
    for hook in hooks:
        hook.remove()
    assert apart(found, wanted) <= 1
    assert calls == {"attn1": 5, "attn2": 1}


def test_half_precision_shows_little_and_leaves_embeddings_alone(world, generator, eeg):
    half = load(world, dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16 and next(half.conditioner.parameters()).dtype == torch.float32
    assert torch.equal(half.embed(eeg), generator.embed(eeg))
    one, other = (g.generate(eeg, SEEDS, ask("dpm_solver", 10, 3.0, 5)) for g in (generator, half))
    error = (one.float() - other.float()).square().mean()
    spread = one.float().var()
    assert 0 < error < 0.01 * spread
    assert torch.equal(half.generate(eeg, SEEDS, ask("dpm_solver", 10, 3.0, 5)), other)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_batch_is_what_fits_in_the_memory(generator, monkeypatch, guidance):
    found = {}
    for free in (0, 2e5, 2e6, 8e6, 1e12, float("inf")):
        monkeypatch.setattr(dc_ldm.generator, "free_memory", lambda device, free=free: free)
        n = found[free] = generator.fitting_batch(ask(guidance=guidance))
        assert n == 1 or generator.memory(n, guidance) <= 0.9 * free
        assert n == 512 or generator.memory(n + 1, guidance) > 0.9 * free
    assert found[0] == 1 and found[1e12] == found[float("inf")] == 512  # 2^13 latent pixels in latents of 4 x 4
    assert 1 < found[2e6] < found[8e6] < 512
    assert generator.memory(8, 3.0) > generator.memory(8, 1.0)
    monkeypatch.setattr(type(generator), "device", torch.device("cuda"))
    assert generator.fitting_batch(ask(guidance=guidance)) == 8192


def test_a_round_trip_is_made_in_parts_too(generator, monkeypatch):
    images = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    together, encode, seen = generator.round_trip(images), generator.vae.encode, []
    monkeypatch.setattr(dc_ldm.generator, "DECODED_AT_ONCE", 2 * 32 * 32)
    monkeypatch.setattr(generator.vae, "encode", lambda part: seen.append(len(part)) or encode(part))
    assert apart(generator.round_trip(images), together) <= 1 and seen == [2, 2, 1]


def test_free_memory_is_shared_by_the_processes_of_a_machine(monkeypatch):
    cpu = torch.device("cpu")
    alone = devices.free_memory(cpu)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert alone > 1e7 and devices.free_memory(cpu) == pytest.approx(alone / 4, rel=0.3)


@pytest.mark.parametrize(("n", "said"), [(5, "5 pictures at once .* batch_size=2 should"), (1, "another device")])
def test_a_batch_that_is_too_large_is_named_with_one_that_is_not(generator, eeg, monkeypatch, n, said):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(generator, "_sample", full)
    with pytest.raises(UserError, match=said):
        generator.generate(eeg, SEEDS, ask(batch=n))


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
        ({"sampling": ask("euler")}, "plms, ddim, dpm_solver"),
        ({"sampling": ask(steps=300)}, "250"),
    ]
    for changed, said in cases:
        with pytest.raises(UserError, match=said):
            generator.generate(**({"eeg": eeg, "seeds": SEEDS, "sampling": ask()} | changed))


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
    found = generate.load_generator(world / "pretrains/generation/tiny.pth", device="cpu", precision="32")
    assert torch.equal(found.embed(eeg), generator.embed(eeg))
    assert apart(found.generate(eeg, SEEDS, ask()), generator.generate(eeg, SEEDS, ask())) == 0
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
