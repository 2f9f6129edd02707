"""Every format that checkpoints are turned into holds the very same numbers, and other tools load it."""

import hashlib
import json
import sys
from collections import Counter
from pathlib import Path

import pytest
import tiny_diffusion as tiny
import torch
from safetensors.torch import load_file

from commands import convert_checkpoint
from commands.convert_checkpoint import MIXERS
from dc_ldm import weights
from dc_ldm.generator import load_generator
from dc_ldm.published import read_stage_a, read_stage_b
from runtime import digests, file_kinds
from runtime.errors import UserError
from runtime.file_kinds import file_kind
from sc_mbm.mae_for_eeg import EEGEncoder


@pytest.fixture(autouse=True)
def wide_autoencoder(monkeypatch):
    """Diffusers knows only one number of normalisation groups, so the toy autoencoder is 32 wide here."""
    monkeypatch.setitem(tiny.VAE, "ch", 32)


def convert(monkeypatch, checkpoint: Path, to: str, out: Path, **more: object) -> Path:
    words = {"checkpoint": checkpoint, "to": to, "out": out} | more
    monkeypatch.setattr(sys, "argv", ["convert_checkpoint.py", *(f"{k}={v}" for k, v in words.items())])
    convert_checkpoint.main()
    return out


def same(one: dict, two: dict) -> bool:
    return one.keys() == two.keys() and all(
        same(one[k], two[k]) if isinstance(one[k], dict)
        else torch.equal(one[k], two[k]) if isinstance(one[k], torch.Tensor)
        else one[k] == two[k]
        for k in one
    )  # fmt: skip


def contents(state: dict) -> Counter:
    """What tensors hold, whatever they are called."""
    return Counter(hashlib.sha256(value.contiguous().numpy()).hexdigest() for value in state.values())


def test_stage_b_to_safetensors_and_back(tmp_path, monkeypatch):
    path = tiny.write_stage_b(tmp_path)
    tensors = convert(monkeypatch, path, "safetensors", tmp_path / "b.safetensors")
    assert file_kind(tensors) == file_kinds.TENSORS_B
    back = convert(monkeypatch, tensors, "ours", tmp_path / "back.pth")
    assert same(read_stage_b(path, tmp_path), read_stage_b(back, tmp_path))
    tensors.with_suffix(".json").unlink()
    with pytest.raises(UserError, match="b.json: missing"):
        convert(monkeypatch, tensors, "ours", tmp_path / "again.pth")


def test_stage_a_ours_and_published_to_safetensors_and_back(tmp_path, monkeypatch):
    for name, path in (
        ("own", tiny.write_stage_a(tmp_path / "a.pth")),
        ("pub", tiny.write_published_a(tmp_path / "p")),
    ):
        ours = convert(monkeypatch, path, "ours", tmp_path / f"{name}-ours.pth")
        assert file_kind(ours) == file_kinds.OURS_A
        assert same(read_stage_a(path), read_stage_a(ours))
        tensors = convert(monkeypatch, path, "safetensors", tmp_path / f"{name}.safetensors")
        back = convert(monkeypatch, tensors, "ours", tmp_path / f"{name}-back.pth")
        assert same(read_stage_a(path), read_stage_a(back))


def test_published_generation_checkpoint_to_ours_needs_the_base_it_was_trained_on(tmp_path, monkeypatch):
    base = tiny.write_base(tmp_path / "pretrains")
    half = {name: value.half().float() for name, value in tiny.base_state().items()}
    state = tiny.published_state() | half
    name = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_v.weight"
    state[name] = state[name] + 1  # what stage B trains may differ from the base
    path = tiny.write_published_b(tmp_path / "published.pth", state)
    ours = convert(monkeypatch, path, "ours", tmp_path / "pretrains/generation/p.pth", pretrain_gm_path=base)
    assert file_kind(ours) == file_kinds.OURS_B
    one, two = (load_generator(file, base, "cpu", EEGEncoder) for file in (path, ours))
    for part in ("conditioner", "unet", "vae"):
        assert same(getattr(one, part).state_dict(), getattr(two, part).state_dict())
    assert torch.equal(two.unet.state_dict()[name.removeprefix("model.diffusion_model.")], state[name])
    state["first_stage_model.quant_conv.bias"] += 1
    tiny.write_published_b(path, state)
    with pytest.raises(UserError, match=r"1 frozen tensors differ .*quant_conv.bias"):
        convert(monkeypatch, path, "ours", tmp_path / "other.pth", pretrain_gm_path=base)


def test_v1_layout_holds_all_parts_and_comes_back(tmp_path, monkeypatch):
    path = tiny.write_stage_b(tmp_path)
    generator = load_generator(path, tmp_path / "pretrains", "cpu", EEGEncoder)
    ckpt = convert(monkeypatch, path, "v1", tmp_path / "b.ckpt")
    assert file_kind(ckpt) == file_kinds.V1
    state = torch.load(ckpt, weights_only=True)["state_dict"]
    for part, prefix in (
        ("conditioner", "cond_stage_model."),
        ("unet", "model.diffusion_model."),
        ("vae", "first_stage_model."),
    ):
        assert same(getattr(generator, part).state_dict(), weights.part(state, prefix))
    back = convert(monkeypatch, ckpt, "ours", tmp_path / "back.pth")
    assert same(read_stage_b(path, tmp_path), read_stage_b(back, tmp_path))


@pytest.mark.parametrize("published", [False, True])
def test_diffusers_folder_loads_and_answers_alike(tmp_path, monkeypatch, published):
    diffusers = pytest.importorskip("diffusers")
    path, base = tiny.write_stage_b(tmp_path), tmp_path / "pretrains"
    if published:
        path = tiny.write_published_b(tmp_path / "published.pth")
    ours = load_generator(path, base, "cpu", EEGEncoder)
    out = convert(monkeypatch, path, "diffusers", tmp_path / "folder", pretrain_gm_path=base)
    assert file_kind(out) == file_kinds.DIFFUSERS
    unet, told = diffusers.UNet2DConditionModel.from_pretrained(out / "unet", output_loading_info=True)
    vae, also = diffusers.AutoencoderKL.from_pretrained(out / "vae", output_loading_info=True)
    assert not any([*told.values(), *also.values()])

    # every tensor is there, the same to the bit; the attention's 1x1 convolutions as matrices
    own = {k: v for k, v in ours.unet.state_dict().items() if not k.startswith(MIXERS)}
    assert contents(own) == contents(load_file(out / "unet/diffusion_pytorch_model.safetensors"))
    assert contents(ours.vae.state_dict()) == contents(load_file(out / "vae/diffusion_pytorch_model.safetensors"))

    # with the two convolutions beside the conditioner, it answers what ours answers
    beside = load_file(out / "eeg_conditioner" / "model.safetensors")
    x, t, context = torch.randn(2, 4, 4, 4), torch.tensor([3, 777]), torch.randn(2, 77, 16)
    mix = torch.nn.Sequential(torch.nn.Conv1d(77, 38, 1), torch.nn.Conv1d(38, 1, 1))
    mix.load_state_dict(weights.part(beside, "time_embed_condtion."))
    with torch.no_grad():
        theirs = unet(x, t, context, class_labels=mix(context).squeeze(1)).sample
        torch.testing.assert_close(theirs, ours.unet(x, t, context), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(vae.decode(x).sample, ours.vae.decode(x), atol=1e-4, rtol=1e-4)
    conditioner = {k: v for k, v in beside.items() if k != "no_context" and not k.startswith(MIXERS)}
    assert same(conditioner, ours.conditioner.state_dict())
    assert json.loads((out / "eeg_conditioner/config.json").read_text())["encoder"] == tiny.ENCODER


def test_what_cannot_be_expressed_is_refused(tmp_path, monkeypatch):
    path = tiny.write_stage_b(tmp_path)
    with pytest.raises(UserError, match="holds no Stable Diffusion"):
        convert(monkeypatch, tiny.write_stage_a(tmp_path / "a.pth"), "v1", tmp_path / "a.ckpt")
    with pytest.raises(UserError, match="to=onnx: expected ours or safetensors or v1 or diffusers"):
        convert(monkeypatch, path, "onnx", tmp_path / "b.onnx")
    with pytest.raises(UserError, match="exists"):
        convert(monkeypatch, path, "ours", path)
    with pytest.raises(UserError, match="expected a stage B checkpoint, found this: Stable Diffusion 1.x"):
        convert(monkeypatch, tmp_path / "pretrains/models/v1-5-pruned.safetensors", "ours", tmp_path / "c.pth")
    with monkeypatch.context() as absent, pytest.raises(UserError, match="pip install diffusers"):
        absent.setitem(sys.modules, "diffusers.loaders", None)
        convert(absent, path, "diffusers", tmp_path / "folder")
    monkeypatch.setitem(tiny.VAE, "ch", 8)
    narrow = tiny.write_stage_b(tmp_path / "narrow")
    with pytest.raises(UserError, match="groups of 4 channels"):
        convert(monkeypatch, narrow, "diffusers", tmp_path / "folder")
    assert not (tmp_path / "folder").exists() and not digests.sha256(path) == ""
