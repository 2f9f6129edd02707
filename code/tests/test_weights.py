"""Stable Diffusion's file and our stage B checkpoint: read strictly, nothing executed, errors in a sentence."""

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_diffusion import UNET, base_state, write_base

from dc_ldm import weights
from dc_ldm.models.unet import UNet
from dc_ldm.modules.conditioner import EEGConditioner
from runtime.errors import UserError
from sc_mbm.mae_for_eeg import EEGEncoder


class ModelCheckpoint:
    """Takes the place of Lightning's class of this name, which v1-5-pruned.ckpt mentions as a dictionary key."""


ModelCheckpoint.__module__ = "pytorch_lightning.callbacks.model_checkpoint"


class Malice:
    """Would leave a file behind if it were unpickled."""

    def __init__(self, path: Path):
        self.path = str(path)

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


def test_base_fits_its_file_and_nothing_trains(tmp_path):
    base = weights.load_base(write_base(tmp_path))
    state = load_file(tmp_path / "models" / "v1-5-pruned.safetensors")
    name = "middle_block.1.transformer_blocks.0.attn2.to_k.weight"
    assert torch.equal(base.unet.state_dict()[name], state[weights.UNET_PREFIX + name].float())
    assert torch.equal(base.vae.quant_conv.weight, state["first_stage_model.quant_conv.weight"].float())
    assert not any(p.requires_grad for module in (base.unet, base.vae) for p in module.parameters())
    assert base.sizes.latent_shape(512) == (4, 64, 64)
    assert base.sizes.unet == UNET and base.name == "v1-5-pruned.safetensors" and len(base.sha256) == 64


@pytest.mark.parametrize("old_format", [False, True])
def test_ckpt_with_lightning_leftovers_reads_like_safetensors(tmp_path, monkeypatch, old_format):
    write_base(tmp_path)
    expected = weights.load_base(tmp_path).unet.state_dict()
    file = tmp_path / "models" / "v1-5-pruned.safetensors"
    content = {"state_dict": load_file(file), "global_step": 1}
    import pytorch_lightning.callbacks.model_checkpoint as module

    with monkeypatch.context() as patched:
        patched.setattr(module, "ModelCheckpoint", ModelCheckpoint)
        content["callbacks"] = {ModelCheckpoint: {"best_model_score": torch.tensor(0.1)}}
        new = not old_format
        torch.save(content, file.with_suffix(".ckpt"), _use_new_zipfile_serialization=new)
    file.unlink()
    found = weights.load_base(tmp_path).unet.state_dict()
    kept = [name for name in expected if not name.startswith("time_embed_condtion")]
    assert kept and all(torch.equal(found[name], expected[name]) for name in kept)


def damage_missing(state):
    del state["first_stage_model.quant_conv.bias"]


def damage_extra(state):
    state["model.diffusion_model.input_blocks.9.0.weight"] = torch.zeros(1)


def damage_shape(state):
    state["model.diffusion_model.out.2.bias"] = torch.zeros(5)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (damage_missing, "lacks 1 tensors"),
        (damage_extra, "holds 1 that"),
        (damage_shape, r"is \(5,\), expected \(4,\)"),
    ],
)
def test_base_of_another_model_is_refused(tmp_path, damage, said):
    file = write_base(tmp_path) / "models" / "v1-5-pruned.safetensors"
    state = load_file(file)
    damage(state)
    save_file(state, file)
    with pytest.raises(UserError, match=said):
        weights.load_base(tmp_path)


def test_missing_truncated_and_unsafe_bases_are_refused(tmp_path):
    with pytest.raises(UserError, match="no Stable Diffusion weights"):
        weights.load_base(tmp_path)
    file = write_base(tmp_path) / "models" / "v1-5-pruned.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(UserError, match="truncated"):
        weights.load_base(tmp_path)
    file.unlink()
    malice = {"state_dict": base_state() | {"more": Malice(tmp_path / "executed")}}
    torch.save(malice, file.with_suffix(".ckpt"))
    with pytest.raises(UserError, match="neither a tensor nor a plain value"):
        weights.load_base(tmp_path)
    file.with_suffix(".ckpt").write_bytes(pickle.dumps({"state_dict": Malice(tmp_path / "executed")}))
    with pytest.raises(UserError, match="file of an unknown kind"):
        weights.load_base(tmp_path)
    assert not (tmp_path / "executed").exists()
    torch.save({"weights": {}}, file.with_suffix(".ckpt"))
    with pytest.raises(UserError, match="file of an unknown kind"):
        weights.load_base(tmp_path)


@pytest.mark.parametrize(
    "text", ["model: {params: {linear_start: 1}}", "a: [", "just words", "model: {params: 3}", "${x}"]
)
def test_unusable_sizes_are_refused(tmp_path, text):
    (write_base(tmp_path) / "models" / "config15.yaml").write_text(text)
    with pytest.raises(UserError, match="config15.yaml"):
        weights.load_base(tmp_path)


def test_trained_part_of_full_size_unet_is_the_published_one_without_its_accidents():
    with torch.device("meta"):
        trained = weights.trained_unet_tensors(UNet())
    groups = {"attn2": (80, 43_962_560), "norm2": (32, 24_960), "time_embed_condtion": (6, 987_323)}
    for word, expected in groups.items():
        own = [value for name, value in trained.items() if word in name]
        assert (len(own), sum(value.numel() for value in own)) == expected
    assert len(trained) == 118


def test_trained_state_round_trip_is_strict():
    def pair(seed):
        torch.manual_seed(seed)
        encoder = EEGEncoder(8, 64, 4, 16, 1, 2, 1.0)
        return EEGConditioner(encoder, context_dim=16, clip_dim=12), UNet(**UNET)

    one, two = pair(1), pair(2)
    state = weights.trained_state(*one)
    weights.load_trained_state(*two, state, "file")
    assert all(torch.equal(value, weights.trained_state(*two)[name]) for name, value in state.items())
    del state["model.diffusion_model.time_embed_condtion.2.bias"]
    with pytest.raises(UserError, match="time_embed_condtion.2.bias"):
        weights.load_trained_state(*two, state, "file")
    with pytest.raises(UserError, match="conditioner lacks"):
        weights.load_trained_state(*two, base_state(), "file")
