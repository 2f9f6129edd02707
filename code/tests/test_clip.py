"""CLIP from transformers or open_clip behind one face; what cannot be loaded is said in a sentence."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tiny_diffusion import write_clip

from runtime.errors import UserError
from vision.clip import FrozenCLIP, OpenCLIP, load_clip


@pytest.fixture(scope="module")
def tiny_open_clip(tmp_path_factory):
    """A tiny random model that open_clip knows by name, and its weight file."""
    open_clip = pytest.importorskip("open_clip")
    folder = tmp_path_factory.mktemp("open_clip")
    tower = {"layers": 1, "width": 16}
    config = {
        "embed_dim": 12,
        "vision_cfg": {**tower, "image_size": 32, "patch_size": 8, "head_width": 8},
        "text_cfg": {**tower, "heads": 2, "context_length": 77, "vocab_size": 49408},
    }
    (folder / "tiny-for-tests.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder / "tiny-for-tests.json")
    torch.manual_seed(0)
    model = open_clip.create_model("tiny-for-tests").eval()
    save_file(model.state_dict(), folder / "weights.safetensors")
    return model, folder / "weights.safetensors"


def test_open_clip_model_from_a_weight_file(tiny_open_clip):
    model, file = tiny_open_clip
    clip = load_clip(f"open_clip:tiny-for-tests:{file}")
    assert isinstance(clip, OpenCLIP) and clip.dim == 12
    pictures = [Image.new("RGB", size, colour) for size, colour in (((40, 48), "red"), ((32, 32), "blue"))]
    found = clip.embed_images(pictures)
    with torch.no_grad():
        wanted = model.encode_image(torch.stack([clip.preprocess(picture) for picture in pictures]))
    assert torch.equal(found, wanted) and found.shape == (2, 12)
    assert torch.allclose(clip.embed_images(pictures[1:]), found[1:], atol=1e-6)
    tower, preprocessing = clip.fingerprint_parts()
    assert "Normalize" in preprocessing and not any(p.requires_grad for p in tower.parameters())
    with pytest.raises(UserError, match="text_start=false"):
        clip.text_start(77)


def test_a_weight_file_for_open_clip_is_never_unpickled(tiny_open_clip, tmp_path):
    model, _ = tiny_open_clip
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    assert load_clip(f"open_clip:tiny-for-tests:{tmp_path}/weights.pt").dim == 12
    torch.save({"state_dict": model.state_dict(), "by": Path("x")}, tmp_path / "bad.pt")
    with pytest.raises(UserError, match="bad.pt: holds pathlib.*is never loaded"):
        load_clip(f"open_clip:tiny-for-tests:{tmp_path}/bad.pt")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("open_clip:ViT-B-32", "names no weights"),
        ("open_clip:ViT-B-32/no-such-tag", "open_clip can load"),
        ("open_clip:no-such-model/openai", "open_clip can load"),
        ("open_clip:ViT-B-32:/no/such/file.safetensors", "file.safetensors: no such file"),
        ("open_clip:ViT-B-32:/no/such/file.npz", "no weight file of a kind that is read"),
        ("no/such/folder", "no such folder"),
    ],
)
def test_what_is_no_clip_is_refused_in_a_sentence(name, said):
    with pytest.raises(UserError, match=said) as error:
        load_clip(name)
    assert "\n" not in str(error.value)


def test_a_hub_that_does_not_answer_is_a_sentence(monkeypatch):
    constants = pytest.importorskip("huggingface_hub").constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="nobody/never-cached is not a CLIP model that transformers can load") as error:
        load_clip("nobody/never-cached")
    assert "\n" not in str(error.value)


def test_a_folder_is_read_by_transformers(tmp_path):
    clip = load_clip(write_clip(tmp_path))
    assert isinstance(clip, FrozenCLIP) and clip.dim == 12
