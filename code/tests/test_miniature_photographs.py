"""Teaching the miniature models photographs by kind: which files are used, that a whole folder comes out."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from commands import make_miniature
from dc_ldm.weights import load_base
from miniature.photographs import divide, find_photographs, photographs
from runtime.errors import UserError
from vision.classifier import load_folder
from vision.clip import FrozenCLIP


@pytest.fixture
def folder(tmp_path):
    """Two kinds: dark and light photographs, four of each, 80 x 80."""
    for kind, level in (("n80000001", 60), ("n80000002", 190)):
        (tmp_path / "photos" / kind).mkdir(parents=True)
        for i in range(4):
            noise = np.random.default_rng(i).integers(-40, 40, (80, 80, 3))
            Image.fromarray((level + noise).astype(np.uint8)).save(tmp_path / "photos" / kind / f"{kind}_{i}.JPEG")
    (tmp_path / "photos/LICENSE.txt").write_text("not a picture")
    (tmp_path / "stems.txt").write_text("n80000001_0\nn80000001_2\nn80000002_1\n")
    return tmp_path


def test_only_listed_photographs_are_trained_on(folder):
    chosen, others = divide(find_photographs(folder / "photos"), folder / "stems.txt")
    assert [f.stem for files in chosen.values() for f in files] == ["n80000001_0", "n80000001_2", "n80000002_1"]
    assert sum(map(len, others.values())) == 5
    assert not {f for files in chosen.values() for f in files} & {f for files in others.values() for f in files}


def test_altered_copies_are_many_different_and_repeatable(folder):
    found = find_photographs(folder / "photos")
    first = photographs(found, ["cave", "snow"], 12, seed=1)
    again = photographs(found, ["cave", "snow"], 12, seed=1)
    assert first.pixels.shape == (24, 3, 64, 64)
    assert torch.equal(first.pixels, again.pixels)
    assert len(first.pixels.flatten(1).unique(dim=0)) == 24
    assert first.captions == [["a photo of a cave"] * 12 + ["a photo of a snow"] * 12]
    means = first.images(torch.arange(24)).mean((1, 2, 3))
    assert means[:12].max() < means[12:].min()


def test_unusable_folders_are_named(folder):
    with pytest.raises(UserError, match="at least two folders"):
        find_photographs(folder / "photos/n80000001")
    with pytest.raises(UserError, match="no such file"):
        divide(find_photographs(folder / "photos"), folder / "none.txt")
    (folder / "one.txt").write_text("n80000001_0")
    with pytest.raises(UserError, match="no photograph of n80000002"):
        divide(find_photographs(folder / "photos"), folder / "one.txt")


def test_unusable_files_and_starts_are_named(folder, monkeypatch):
    (folder / "photos/n80000001/n80000001_0.JPEG").write_bytes(b"not a picture")
    with pytest.raises(UserError, match="n80000001_0.JPEG: cannot be read"):
        photographs(find_photographs(folder / "photos"), ["cave", "snow"], 0, seed=1)
    monkeypatch.setattr("sys.argv", ["make_miniature.py", "parts=none", f"out={folder}/nothing"])
    with pytest.raises(UserError, match="nothing: holds no training.json"):
        make_miniature.main()


def test_a_whole_folder_of_models_comes_out(folder, monkeypatch):
    out = folder / "pretrains"
    where = [f"images={folder}/photos", f"stems={folder}/stems.txt", f"out={out}", f"sheets={folder}/sheets"]
    monkeypatch.setattr("sys.argv", ["make_miniature.py", *where, "names=cave,snow", "per_class=40", "steps=2"])
    torch.manual_seed(0)
    make_miniature.main()
    assert load_folder(out / "classifier").names == ["cave", "snow"]
    assert FrozenCLIP(out / "clip").text_states(["a photo of a cave"]).shape[:2] == (1, 77)
    assert load_base(out, use_time_cond=False).sizes.scale_factor > 0
    figures = json.loads((out / "training.json").read_text())["figures"]
    assert set(figures) > {"classifier_accuracy", "captions_first_ranked"}
    assert (folder / "sheets/from_captions.png").is_file()
