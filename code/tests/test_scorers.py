"""Picture classifiers: what is loaded is what scores, strictly, and nothing stands in for missing weights."""

import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

import vision.classifier as scorers
from runtime.errors import UserError

ARCHITECTURE, SIZE, K = "test_resnet", 32, 5


def write_classifier(folder, seed=0):
    """A random timm classifier of five classes in our folder format, half precision; returns (folder, model)."""
    torch.manual_seed(seed)
    model = timm.create_model(ARCHITECTURE, num_classes=K).eval()
    folder.mkdir(parents=True, exist_ok=True)
    half = {name: v.half() if v.is_floating_point() else v for name, v in model.state_dict().items()}
    save_file(half, folder / "model.safetensors")
    config = {
        "architecture": ARCHITECTURE, "num_classes": K, "img_size": SIZE, "mean": [0.5, 0.4, 0.3],
        "std": [0.2, 0.25, 0.3], "classes": [f"n0000000{k}" for k in range(K)], "names": list("abcde"),
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    model.load_state_dict({name: v.float() for name, v in half.items()})
    return folder, model


def some_pictures(n=7, size=SIZE):
    return torch.randint(0, 256, (n, size, size, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def test_folder_gives_the_models_own_logits_and_its_heads_input(tmp_path):
    folder, model = write_classifier(tmp_path / "c")
    classifier, absent = scorers.load_classifier(folder)
    pictures = some_pictures()
    logits, features = classifier(pictures, batch_size=3)
    x = (pictures.movedim(-1, 1).float() / 255 - torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)) / torch.tensor(
        [0.2, 0.25, 0.3]
    ).view(3, 1, 1)
    with torch.inference_mode():
        torch.testing.assert_close(logits, model(x), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(model.get_classifier()(features), logits, atol=1e-5, rtol=1e-5)
    assert absent == "" and logits.dtype == features.dtype == torch.float32 and logits.shape == (7, K)


def test_other_sizes_are_resized_as_pil_does(tmp_path):
    classifier, _ = scorers.load_classifier(write_classifier(tmp_path / "c")[0])
    large = some_pictures(1, 80)
    pil = Image.fromarray(large[0].numpy()).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    expected = classifier.pixels(torch.from_numpy(np.array(pil))[None])
    assert (classifier.pixels(large) - expected).abs().max() < 0.02


def test_wordnet_ids_are_found(tmp_path):
    classifier, _ = scorers.load_classifier(write_classifier(tmp_path / "c")[0])
    assert classifier.index_of(["n00000003", "n00000000", "n7"]).tolist() == [3, 0, -1]


def test_missing_and_foreign_files_are_one_sentence(tmp_path):
    with pytest.raises(UserError, match="no such classifier"):
        scorers.load_classifier(tmp_path / "nothing")
    folder, _ = write_classifier(tmp_path / "c")
    config = json.loads((folder / "config.json").read_text())
    more = {"num_classes": K + 1, "classes": [*config["classes"], "n9"], "names": [*config["names"], "f"]}
    (folder / "config.json").write_text(json.dumps(config | more))
    with pytest.raises(UserError, match="as test_resnet, the classifier has 2 of another shape"):
        scorers.load_classifier(folder)
    (folder / "config.json").write_text(json.dumps({"architecture": ARCHITECTURE}))
    with pytest.raises(UserError, match="config.json: lacks num_classes; found 'architecture'"):
        scorers.load_classifier(folder)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(UserError, match="model.safetensors"):
        scorers.load_classifier(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="no such file"):
        scorers.load_classifier(folder)


def test_published_classifier_without_weights_is_named_and_not_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    classifier, absent = scorers.load_classifier("vit_h_14")
    assert classifier is None
    assert "vit_h_14_swag-80465313.pth" in absent and "left out" in absent


def test_vit_h_14_is_read_strictly_and_cut_before_its_head(tmp_path):
    from torchvision.models import VisionTransformer

    torch.manual_seed(0)
    sizes = {
        "image_size": 28, "patch_size": 14, "num_layers": 1, "num_heads": 2, "hidden_dim": 8, "mlp_dim": 16,
        "num_classes": 1000,
    }  # fmt: skip
    model = VisionTransformer(**sizes).eval()
    torch.nn.init.normal_(model.heads.head.weight)
    torch.save(model.state_dict(), tmp_path / "vit.pth")
    classifier = scorers.load_vit_h_14(tmp_path / "vit.pth", model=VisionTransformer(**sizes))
    pictures = some_pictures(3, 28)
    logits, features = classifier(pictures)
    with torch.inference_mode():
        torch.testing.assert_close(logits, model(classifier.pixels(pictures)), atol=1e-5, rtol=1e-5)
    assert features.shape == (3, 8)
    assert len(classifier.classes) == len(classifier.names) == 1000
    assert classifier.classes[0] == "n01440764" and classifier.names[0] == "tench"
    with pytest.raises(UserError, match="as ViT-H/14, the classifier lacks 12 tensors"):
        scorers.load_vit_h_14(tmp_path / "vit.pth", model=VisionTransformer(**sizes | {"num_layers": 2}))


def test_described_pictures_do_not_depend_on_batches(tmp_path):
    classifier, _ = scorers.load_classifier(write_classifier(tmp_path / "c")[0])
    pictures = some_pictures(5)
    paths = [tmp_path / f"{i}.png" for i in range(5)]
    for path, picture in zip(paths, pictures, strict=True):
        Image.fromarray(picture.numpy()).save(path)
    seen = scorers.describe(paths, classifier, lambda images: torch.ones(len(images), 2), batch_size=2)
    torch.testing.assert_close(seen["logits"], classifier(pictures)[0], atol=1e-5, rtol=1e-5)
    assert seen["clip"].shape == (5, 2)
    assert set(scorers.describe(paths, None, None)) == set()
