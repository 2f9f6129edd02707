"""The seam: a system that is no diffusion model goes through stage C, its controls and its page unchanged."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from test_stage_c import run, write_world

import evaluation.seam
import generate
from data.stimuli import image_path
from dataset import open_trials
from dc_ldm.generator import EEGImageGenerator
from evaluation.retrieval import NearestTrainingPicture
from runtime import checkpoints
from runtime.errors import UserError
from runtime.pictures import read_pictures
from runtime.sampling import Sampling
from runtime.system import EEGInput

METHODS = {"input", "check", "embed", "generate", "ceilings", "fitting_batch", "about"}


@pytest.fixture
def world(tmp_path, monkeypatch):
    """The tiny world, with a checkpoint of a system that regresses CLIP's embedding on the EEG and retrieves."""
    root = write_world(tmp_path)
    checkpoints.save(root / "pretrains/generation/retrieval.pth", {"format": "retrieval-1"})

    def retrieval(checkpoint, base, device, dtype, clip, compile):
        eeg, splits = root / "datasets/eeg_5_95_std.pth", root / "datasets/block_splits_by_image_single.pth"
        train = open_trials(eeg, splits, 4, ("train",), 8, 64)["train"]
        paths = [image_path(root / "datasets/imageNet_images", name) for name in train.names]
        images = sorted(set(paths))
        targets = torch.randn(len(images), 12, generator=torch.Generator().manual_seed(0))
        wanted = targets[[images.index(path) for path in paths]]
        weights = torch.linalg.lstsq(train.eeg.flatten(1), wanted).solution  # fits the training trials exactly

        def embed(eeg):
            return eeg.flatten(1).float() @ weights

        return NearestTrainingPicture(embed, targets, images, 32, EEGInput(8, 64))

    monkeypatch.setitem(generate.SYSTEMS, "retrieval-1", generate.Loader(retrieval))
    return root


def test_every_system_has_the_methods_of_the_seam():
    names = {name for name in vars(evaluation.seam.System) if not name.startswith("_")}
    assert names == METHODS
    for system in (EEGImageGenerator, NearestTrainingPicture):
        assert METHODS <= {*dir(system), *system.__dataclass_fields__}, system


@pytest.mark.parametrize("controls", ["basic", "all"])
def test_a_system_without_diffusion_goes_through_stage_c(monkeypatch, capsys, world, controls):
    folder = run(monkeypatch, world, name="retrieval", controls=controls)
    metrics = json.loads((folder / "metrics.json").read_text())
    expected = {"gaussian_eeg", "other_trials_eeg", "nearest_training_picture", "class_prior"}
    if controls == "all":
        expected |= {"phase_randomised_eeg", "same_class_eeg", "other_class_eeg", "grey", "mean_image"}
        assert "Pictures by class name are left out" in " ".join(metrics["run"]["notes"])
    assert set(metrics["controls"]) == expected  # no ceiling: the system draws nothing
    assert metrics["verdict"]["class"] == "nothing" and metrics["run"]["hashes"]["model_sha256"]
    page = (folder / "index.html").read_text()
    assert page.count("samples/test0-1.png") >= 1 and "Retrieval baseline" in page
    arrays = load_file(folder / "arrays.safetensors")
    assert arrays["real.embedding"].shape == (8, 12)
    shown = read_pictures(sorted((folder / "samples").glob("test*-1.png")))
    stimuli = {path.name for path in (world / "datasets/imageNet_images").rglob("*.JPEG")}
    assert len(np.unique(shown.flatten(1), axis=0)) <= len(stimuli)


def test_a_retrieved_picture_is_the_nearest_and_samples_follow_in_order(world):
    system = generate.load_generator(world / "pretrains/generation/retrieval.pth", device="cpu")
    train = open_trials(
        world / "datasets/eeg_5_95_std.pth", world / "datasets/block_splits_by_image_single.pth", 4, ("train",), 8, 64
    )["train"]
    one = system.generate(train.eeg, torch.zeros(len(train), dtype=torch.int64), Sampling())
    several = system.generate(train.eeg, torch.zeros(len(train), 3, dtype=torch.int64), Sampling())
    assert one.shape == (12, 32, 32, 3) and torch.equal(several[:, 0], one) and not torch.equal(several[:, 1], one)
    # the embedding was fitted to these trials, so each finds its own picture
    own = [system.images.index(image_path(world / "datasets/imageNet_images", name)) for name in train.names]
    by_target = system.generate(train.eeg[:1], torch.zeros(1, dtype=torch.int64), Sampling())
    assert torch.equal(by_target[0], one[0]) and len({*own}) > 1
    for i, j in ((0, own[0]), (5, own[5])):
        again = NearestTrainingPicture(lambda eeg, j=j: system.targets[j][None], system.targets, system.images, 32)
        assert torch.equal(again.generate(train.eeg[i : i + 1], torch.zeros(1), Sampling())[0], one[i])


def test_more_samples_than_training_pictures_begin_again(tmp_path):
    paths = [tmp_path / f"n1_{k}.JPEG" for k in range(2)]
    for k, path in enumerate(paths):
        Image.new("RGB", (8, 8), (200 * k, 0, 0)).save(path, quality=100)
    system = NearestTrainingPicture(lambda eeg: torch.eye(2)[[1]], torch.eye(2), paths, 8)
    pictures = system.generate(torch.zeros(1, 1, 4), torch.zeros(1, 5, dtype=torch.int64), Sampling())
    assert [int(picture[0, 0, 0]) > 100 for picture in pictures[0]] == [True, False, True, False, True]


def test_a_checkpoint_of_no_known_system_says_what_it_is_and_which_are_known(monkeypatch, world):
    path = world / "pretrains/generation/other.pth"
    checkpoints.save(path, {"format": "necomimi-9", "model": {}})
    with pytest.raises(UserError, match="other.pth: has format 'necomimi-9'; expected .* eeg-ldm-1, retrieval-1"):
        generate.load_generator(path, device="cpu")
    checkpoints.save(path, {"model": {}})
    with pytest.raises(UserError, match="has no format field"):
        run(monkeypatch, world, name="other")
    assert not (world / "results" / "eval" / "other").exists()


def test_a_known_format_counts_more_than_names_of_tensors(monkeypatch, tmp_path):
    monkeypatch.setitem(generate.SYSTEMS, "mine-1", generate.Loader(lambda *_: "opened"))
    for names in (["vision_model.w"], ["mask_token", "decoder_blocks.0.w"], ["first_stage_model.x"]):
        checkpoints.save(tmp_path / "mine.pth", {"format": "mine-1", "model": dict.fromkeys(names, torch.zeros(1))})
        assert generate.load_generator(tmp_path / "mine.pth", device="cpu") == "opened"


@pytest.mark.parametrize(
    ("changed", "words"),
    [({"sampler": "plms", "ddim_steps": 7}, "asked for 7"), ({"pretrain_gm_path": "datasets"}, "no Stable Diffusion")],
)
def test_what_a_system_cannot_do_is_refused_before_anything_is_opened(monkeypatch, world, changed, words):
    monkeypatch.setattr("gen_eval_eeg.input_hashes", lambda *_: pytest.fail("files were hashed first"))
    with pytest.raises(UserError, match=words):
        run(monkeypatch, world, name="early", model_path="pretrains/generation/tiny.pth", **changed)
    assert not (world / "results" / "eval" / "early").exists()


def test_a_dry_run_looks_ahead_to_what_stage_c_would_refuse(monkeypatch, capsys, world):
    path = world / "datasets/block_splits_by_image_single.pth"
    split = checkpoints.read_plain(path, "splits")["splits"][0]
    checkpoints.save(path, {"splits": [split | {"train": split["train"][:1], "test": split["test"][:1]}]})
    with pytest.raises(SystemExit) as end:
        run(monkeypatch, world, name="dry", model_path="pretrains/generation/tiny.pth", dry_run="true")
    text = capsys.readouterr().out
    assert end.value.code == 1 and "WRONG  baselines: " in text and "WRONG  controls: " in text, text
    assert not (world / "results").exists()


def test_a_dry_run_lists_what_is_wrong_and_writes_nothing(monkeypatch, capsys, world):
    good = {"dry_run": "true", "model_path": "pretrains/generation/tiny.pth"}
    with pytest.raises(SystemExit) as end:
        run(monkeypatch, world, name="dry", **good)
    text = capsys.readouterr().out
    assert end.value.code == 0 and "stage C can start" in text and "stage B checkpoint: tiny.pth" in text
    (world / "classifier" / "model.safetensors").write_bytes(b"cut")
    (world / "pretrains/clip/config.json").unlink()
    with pytest.raises(SystemExit) as end:
        run(monkeypatch, world, name="dry", **good)
    text = capsys.readouterr().out
    assert end.value.code == 1 and "stage C cannot start: 2 of" in text
    assert "WRONG  classifier" in text and "WRONG  CLIP" in text and "ok     trials" in text
    for path in ("pretrains/generation/tiny.pth", "datasets/block_splits_by_image_single.pth"):
        (world / path).unlink()
    with pytest.raises(SystemExit) as end:
        run(monkeypatch, world, name="dry", **good)
    assert "cannot start: 4 of" in capsys.readouterr().out  # all at once
    assert not (world / "results").exists()


def test_a_dry_run_goes_on_where_pictures_or_trials_do_not_open(monkeypatch, capsys, world):
    data, good = world / "datasets", {"dry_run": "true", "model_path": "pretrains/generation/tiny.pth"}
    (data / "imageNet_images").rename(data / "elsewhere")
    with pytest.raises(SystemExit) as end:
        run(monkeypatch, world, name="dry", **good)
    text = capsys.readouterr().out
    assert end.value.code == 1 and "WRONG  pictures" in text and "cannot start: 1 of" in text
    (data / "eeg_5_95_std.json").write_text(json.dumps({"image_known": False}))
    (data / "block_splits_by_image_single.pth").unlink()
    with pytest.raises(SystemExit) as end:
        run(monkeypatch, world, name="dry", **good)
    text = capsys.readouterr().out
    assert end.value.code == 1 and "WRONG  trials" in text and "cannot start: 1 of" in text
