"""A file is told from the names in it: nothing executed, no weight read, and each wrong file called by its name."""

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny_diffusion import base_state, write_base, write_stage_a, write_trials

from runtime import file_kinds
from runtime.errors import UserError
from runtime.file_kinds import expect, file_kind

SMALL = torch.zeros(2)
TEXT = {"cond_stage_model.transformer.text_model.final_layer_norm.bias": SMALL}
EMA = {"model_ema.diffusion_modelinput_blocks00weight": SMALL}
OPEN_CLIP = {"cond_stage_model.model.ln_final.bias": SMALL}
CONDITION = {"cond_stage_model.mae.cls_token": SMALL, "cond_stage_model.dim_mapper.bias": SMALL}
MAE = {"mask_token": SMALL, "decoder_blocks.0.norm1.bias": SMALL}


class Malice:
    """Would leave a file behind if it were unpickled."""

    def __init__(self, path: Path):
        self.path = str(path)

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize(
    ("kind", "content"),
    [
        (file_kinds.OURS_B, {"format": "eeg-ldm-1", "model": CONDITION}),
        (file_kinds.PUBLISHED_B, {"model_state_dict": {**CONDITION, **base_state()}, "state": SMALL}),
        (file_kinds.PUBLISHED_A, {"model": MAE, "optimizer": {}, "epoch": 499}),
        (file_kinds.SD1, {"state_dict": {**base_state(), **TEXT, **EMA}}),
        (file_kinds.SD1, {"state_dict": base_state()}),
        (file_kinds.SD1_EMA, {"state_dict": {**base_state(), **TEXT}}),
        (file_kinds.SD1_EMA, EMA),
        (file_kinds.SD2, {"state_dict": {**base_state(), **OPEN_CLIP}}),
        ("resume point (ours)", {"format": "resume-1", "module": CONDITION}),
        ("splits file", {"splits": [{"train": [0], "val": [], "test": [1]}]}),
        (file_kinds.UNKNOWN, {"weights": SMALL}),
    ],
)
def test_torch_files_of_both_formats(tmp_path, kind, content, old):
    torch.save(content, tmp_path / "file", _use_new_zipfile_serialization=not old)
    assert file_kind(tmp_path / "file") == kind


def test_files_that_our_scripts_write(tmp_path):
    write_trials(tmp_path)
    assert file_kind(write_stage_a(tmp_path / "a.pth")) == file_kinds.OURS_A
    assert file_kind(tmp_path / "eeg_5_95_std.pth") == "EEG trials file"
    assert file_kind(tmp_path / "block_splits_by_image_single.pth") == "splits file"
    assert file_kind(write_base(tmp_path) / "models" / "v1-5-pruned.safetensors") == file_kinds.SD1


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        (file_kinds.LFS, b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4265380512\n"),
        (file_kinds.HTML, b"\n<!DOCTYPE html><html><head>Google Drive - Virus scan warning</head></html>"),
        (file_kinds.HTML, b"<html>404</html>"),
        (file_kinds.EMPTY, b""),
        ("NumPy array", b"\x93NUMPY\x01\x00"),
        (file_kinds.UNKNOWN, b"just words that are no checkpoint"),
        (file_kinds.UNKNOWN, b"{"),
    ],
)
def test_what_downloads_leave_behind(tmp_path, kind, content):
    (tmp_path / "file").write_bytes(content)
    assert file_kind(tmp_path / "file") == kind
    with pytest.raises(UserError, match=f"file: expected a checkpoint, found this: {kind}"):
        expect(tmp_path / "file", (file_kinds.SD1,), "checkpoint")


@pytest.mark.parametrize("share", [0.1, 0.6, 0.999])
def test_truncated_downloads(tmp_path, share):
    state = base_state()
    torch.save({"state_dict": state}, tmp_path / "new")
    save_file(state, tmp_path / "tensors")
    for name in ("new", "tensors"):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: int(share * len(whole))])
        assert file_kind(tmp_path / name) == file_kinds.TRUNCATED
    torch.save({"state_dict": state}, tmp_path / "old", _use_new_zipfile_serialization=False)
    (tmp_path / "old").write_bytes((tmp_path / "old").read_bytes()[:5000])
    assert file_kind(tmp_path / "old") == file_kinds.TRUNCATED


def test_folders_and_nothing(tmp_path):
    (tmp_path / "unet").mkdir()
    assert file_kind(tmp_path) == file_kinds.DIFFUSERS
    assert file_kind(tmp_path / "unet") == "folder"
    assert file_kind(tmp_path / "absent") == "missing"


@pytest.mark.parametrize("old", [False, True])
def test_nothing_is_executed_and_classes_are_named(tmp_path, old):
    torch.save({"model": Malice(tmp_path / "executed")}, tmp_path / "file", _use_new_zipfile_serialization=not old)
    assert file_kind(tmp_path / "file") == file_kinds.UNKNOWN
    assert "pathlib.Path" in file_kinds.names_in(tmp_path / "file")[1]
    (tmp_path / "raw").write_bytes(pickle.dumps(Malice(tmp_path / "executed")))
    assert file_kind(tmp_path / "raw") == file_kinds.UNKNOWN
    assert not (tmp_path / "executed").exists()
