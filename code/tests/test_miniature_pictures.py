"""The miniature world's pictures, and what its committed models reach on pictures they never saw."""

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from commands.make_miniature import Maker, MiniatureConfig
from dc_ldm.weights import load_base
from miniature import check, classifier, renderer, towers
from miniature.training import Pictures, rendered

PER_CLASS = 200  # training renders of a class
WEIGHTS = Path(__file__).parents[2] / "pretrains/miniature"


@pytest.fixture(scope="module")
def unseen() -> Pictures:
    """Three unseen renders of each class."""
    return rendered(3, renderer.UNSEEN_SEEDS + 500)


@pytest.fixture(scope="module")
def judge() -> torch.nn.Module:
    return classifier.load_classifier(WEIGHTS / "classifier")


def test_classes_have_names_and_ids_of_their_own():
    assert len(set(renderer.NAMES)) == len(set(renderer.WNIDS)) == 100
    assert all(re.fullmatch(r"n9\d{7}", wnid) for wnid in renderer.WNIDS)


def test_stimuli_cover_every_thing_and_every_colour():
    assert len(set(renderer.STIMULI)) == 40
    words = np.array([renderer.NAMES[c].split() for c in renderer.STIMULI])
    for column in (0, 1):
        assert np.unique(words[:, column], return_counts=True)[1].tolist() == [4] * 10


def test_a_picture_depends_on_class_and_seed_alone():
    first, other_seed, other_class = (np.asarray(renderer.render(*a)) for a in ((7, 5), (7, 6), (8, 5)))
    assert np.array_equal(first, np.asarray(renderer.render(7, 5)))
    assert not np.array_equal(first, other_seed)
    assert not np.array_equal(first, other_class)


@pytest.mark.parametrize("size", [32, 64, 128])
def test_the_thing_is_inside_the_picture_and_stands_out(size):
    for class_id in range(0, 100, 7):
        picture = renderer.Scene(class_id, 3)
        assert renderer.render(class_id, 3, size).size == (size, size)
        assert np.linalg.norm(np.subtract(picture.colour, picture.ground)) > 0.3


def test_captions_name_the_class_and_only_what_is_asked():
    scenes = [renderer.Scene(12, seed) for seed in range(60)]
    assert {renderer.caption(s) for s in scenes} == {"a photo of a yellow heart"}
    assert {renderer.caption(s, 1) for s in scenes} == {
        f"a photo of a {size}yellow heart" for size in ("", "small ", "large ")
    }
    assert all(renderer.caption(s, 2).endswith(f"heart on a {s.tone} background") for s in scenes)


def test_stimuli_have_the_published_layout(tmp_path):
    renderer.write_stimuli(tmp_path, [3, 14], [0, 21])
    assert sorted(p.stem for p in tmp_path.rglob("*.JPEG")) == [
        "n90000003_0",
        "n90000003_21",
        "n90000014_0",
        "n90000014_21",
    ]
    with Image.open(tmp_path / "n90000014/n90000014_21.JPEG") as image:
        error = np.asarray(image, float) - np.asarray(renderer.render(14, 21), float)
    assert np.abs(error).mean() < 3


def test_no_stimulus_was_trained_on(tmp_path):
    with pytest.raises(ValueError, match="picture seeds"):
        renderer.write_stimuli(tmp_path, [0], [renderer.TRAINING_SEEDS])

    def hashes(first_seed: int, n: int) -> set[str]:
        pictures = (renderer.render(c, first_seed + i) for c in renderer.STIMULI for i in range(n))
        return {hashlib.sha256(p.tobytes()).hexdigest() for p in pictures}

    stimuli, trained = hashes(0, 50), hashes(renderer.TRAINING_SEEDS, PER_CLASS)
    assert len(stimuli) == 2000 and len(trained) == 40 * PER_CLASS
    assert not stimuli & trained


def test_committed_weights_are_small_and_say_how_they_were_made():
    files = [path for path in WEIGHTS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 16e6
    record = json.loads((WEIGHTS / "training.json").read_text())
    assert set(record["parts"]) == {"classifier", "clip", "vae", "unet"}
    assert check.shortfalls(record["figures"]) == []


def test_shortfalls_name_what_is_missed():
    reached = dict(check.FLOORS)
    assert check.shortfalls(reached) == []
    assert len(check.shortfalls(reached | {"vae_psnr_db": 20.0, "seconds_for_100_pictures": 11.0})) == 2


def test_classifier_knows_unseen_pictures(judge, unseen):
    assert check.first_ranked(judge, unseen.images(), unseen.labels) >= 0.97


def test_clip_folder_matches_pictures_with_captions(unseen):
    assert towers.zero_shot(WEIGHTS / "clip", unseen) >= 0.88
    assert towers.contexts(WEIGHTS / "clip", ["a photo of a red star", ""]).shape == (2, 77, 64)


def test_tokenizer_tells_every_caption_from_every_other():
    captions = [renderer.a_photo_of(name) for name in renderer.NAMES]
    ids = towers.tokens(WEIGHTS / "clip", [*captions, "xyz", ""])
    assert ids.shape == (102, 77)
    assert len(ids.unique(dim=0)) == 102
    lengths = (ids != ids[-1, -1]).sum(1)  # the end token is also the padding
    assert lengths[:100].max() <= 12
    assert lengths[100:].tolist() == [4, 1]  # an unknown word falls into letters


def test_committed_autoencoder_keeps_pictures_recognisable(judge, unseen):
    vae = load_base(WEIGHTS, use_time_cond=False).vae
    figures, back = check.check_vae(vae, judge, unseen)
    assert figures["vae_psnr_db"] >= 24.5
    assert figures["vae_classified"] >= 0.95
    assert back.shape == (300, 3, 64, 64)


def test_committed_diffusion_draws_what_the_caption_says(judge):
    classes = list(range(0, 100, 3))
    captions = [renderer.a_photo_of(renderer.NAMES[c]) for c in classes]
    made = Maker(MiniatureConfig(out=str(WEIGHTS)), None).sampler(captions)(captions, classes)
    assert check.first_ranked(judge, made, torch.tensor(classes)) >= 0.8
