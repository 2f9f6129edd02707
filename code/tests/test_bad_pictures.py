"""Pictures that are not as they should be: each gives a sentence or the right scores."""

import json
import shutil

import numpy as np
import pytest
from made_up_eval import make_arrays, make_folder
from PIL import Image
from test_scorers import write_classifier

import eval_metrics
import evaluation.features as looking
from evaluation.scores import item_scores, write_metrics
from runtime.errors import UserError
from runtime.pictures import read_pictures


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    whole = make_folder(tmp_path_factory.mktemp("eval") / "whole", n=12)
    return whole / "samples"


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: shutil.copy(f / "test3-1.png", f / "test3-3.png"), "test3-3.png: .* same number of pictures"),
        (lambda f: (f / "test0-2.png").unlink(), "test1-2.png: .* more than 1 of one"),
        (lambda f: Image.new("I;16", (16, 16)).save(f / "test3-1.png"), "test3-1.png: holds I;16 pixels"),
        (lambda f: Image.new("LA", (16, 16), (9, 254)).save(f / "test3-0.png"), "test3-0.png: has transparent parts"),
        (
            lambda f: (f / "test2-0.png").write_bytes((f / "test2-0.png").read_bytes()[:300]),
            "test2-0.png: cannot be read as a whole",
        ),
    ],
)
def test_pictures_that_cannot_be_scored_are_named(bare, tmp_path, damage, words):
    copy = shutil.copytree(bare, tmp_path / "copy")
    damage(copy)
    with pytest.raises(UserError, match=words):
        write_metrics(copy, {})


def test_opaque_alpha_and_grey_are_converted_and_said_so(bare, tmp_path):
    copy = shutil.copytree(bare, tmp_path / "copy")
    plain = write_metrics(copy, {})
    with Image.open(copy / "test2-1.png") as picture:
        picture.convert("RGBA").save(copy / "test2-1.png")
    found = write_metrics(copy, {})
    assert found["scores"] == plain["scores"]
    said = [note for note in found["left_out"] if "not RGB" in note]
    assert len(said) == 1 and "1 of 24 pictures" in said[0] and "test2-1.png, RGBA" in said[0]


def test_truths_that_are_equal_tie_and_one_image_alone_is_refused(bare, tmp_path):
    outcome, truth = make_arrays()
    pixels = truth.pixels.copy()
    pixels[7] = pixels[3]  # two names, one picture
    scores = item_scores(outcome, truth._replace(pixels=pixels))["two_way_pearson"]
    assert scores.samples[0, 3] == pytest.approx(1 - 0.5 / 23)
    copy = shutil.copytree(bare, tmp_path / "copy")
    for i in range(1, 12):
        shutil.copy(copy / "test0-0.png", copy / f"test{i}-0.png")
    with pytest.raises(UserError, match="nothing can be scored.*all trials show one image"):
        write_metrics(copy, {})


def test_a_bare_folder_is_looked_at_by_classifier_and_clip(bare, tmp_path, monkeypatch, capsys):
    from vision.classifier import load_classifier

    copy = shutil.copytree(bare, tmp_path / "copy")
    folder, _ = write_classifier(tmp_path / "classifier")
    monkeypatch.setattr(looking, "load_clip", lambda name, device: FlatCLIP())
    monkeypatch.setattr("sys.argv", ["", str(copy), f"classifier={folder}", "clip=flat", "n_way=3", "device=cpu"])
    eval_metrics.main()
    metrics = json.loads((copy / "metrics.json").read_text())
    assert {"3_way_top1", "two_way_clip", "two_way_features", "picture_retrieval_top1"} <= set(metrics["scores"])
    # the truth's class is what the classifier sees in it
    judge, _ = load_classifier(folder)
    shown, made = (judge(read_pictures([copy / f"test{i}-{k}.png" for i in range(12)]))[0].numpy() for k in (0, 1))
    exact = eval_metrics.n_way_accuracy(made, shown.argmax(1), 3).mean()
    assert metrics["scores"]["3_way_top1"]["first_sample"] == pytest.approx(exact, abs=1e-9)
    assert metrics["run"]["classifier"] == "classifier (test_resnet)" and "verdict" in capsys.readouterr().out
    assert not (copy / "arrays.safetensors").exists()


def test_a_whole_folder_keeps_its_own_classifier(bare):
    with pytest.raises(UserError, match="stage C's own classifier"):
        looking.look(bare.parent, "vit_h_14", "", "", ".", "cpu")
    with pytest.raises(UserError, match="networks=some"):
        looking.look(bare.parent, "", "", "some", ".", "cpu")


class FlatCLIP:
    """The mean colour as an embedding."""

    def embed_images(self, images):
        import torch

        return torch.tensor(np.stack([np.asarray(image, np.float32).mean((0, 1)) for image in images]))
