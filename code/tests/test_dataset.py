"""EEG windows, trials, splits and pictures: what is read, what is drawn, and what is refused."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import data.signals as eeg_signals
from data import stimuli
from dataset import EEGWindows, open_trials
from runtime.draws import Batch
from runtime.errors import UserError
from runtime.pictures import image_tensor, load_image


def recordings(folder, *shapes, name="r{}.npy", seed=0):
    draw = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for i, shape in enumerate(shapes):
        with open(folder / name.format(i), "wb") as file:  # np.save would append .npy to .NPY
            np.save(file, draw.standard_normal(shape).astype(np.float32))
    return folder


def batch(*index, step=0, start=0, total=None):
    return Batch(step=step, index=torch.tensor(index), start=start, total=total or len(index), weight=1.0)


def test_interpolation_is_the_published_one():
    signal = (torch.arange(440, dtype=torch.float64) ** 2 / 1000).expand(2, 440)
    out = torch.from_numpy(eeg_signals.fit_length(signal.numpy(), 512))[1, [0, 1, 2, 255, 510, 511]]
    # spec 8.7
    expected = torch.tensor([0, 0.00085910, 0.00315460, 47.991928, 191.967560, 192.720993], dtype=torch.float64)
    assert torch.allclose(out, expected, atol=1e-6)
    oracle = torch.nn.functional.interpolate(signal[None], 512, mode="linear", align_corners=True)[0]
    assert np.allclose(eeg_signals.fit_length(signal.numpy(), 512), oracle, atol=1e-9)


def test_few_channels_are_repeated_by_block_and_many_are_cut():
    eeg = np.arange(30.0)[:, None].repeat(3, axis=1)
    out = eeg_signals.fit_channels(eeg, 128)[:, 0]
    assert out.tolist() == [*range(30)] * 4 + [*range(8)]
    assert eeg_signals.fit_channels(eeg, 10, first=5)[:, 0].tolist() == [*range(5, 15)]


def test_long_recordings_count_their_windows_and_short_ones_are_stretched(tmp_path):
    folder = recordings(tmp_path / "a/b", (3, 2000), (3, 100), (3, 512), (4, 3, 700), name="r{}.NPY")
    windows = EEGWindows(tmp_path, n_chans=8, held_out=0.0)
    assert len(windows) == 3 + 1 + 1 + 4
    out = windows[batch(0, 3, 4)]
    assert out.shape == (3, 8, 512) and out.dtype == torch.float32
    whole = [np.load(folder / f"r{i}.NPY") for i in (0, 1, 2)]
    crops = torch.from_numpy(whole[0]).unfold(1, 512, 1).permute(1, 0, 2)
    assert (crops == out[0, :3]).all((1, 2)).sum() == 1, "a crop of the long recording"
    assert np.allclose(out[1, :3], eeg_signals.fit_length(whole[1], 512), atol=1e-6)
    assert np.array_equal(out[2], eeg_signals.fit_channels(whole[2], 8))


def test_a_crop_depends_on_step_and_global_position_only(tmp_path):
    windows = EEGWindows(recordings(tmp_path, *[(2, 3000)] * 5), n_chans=4)
    full = windows[batch(1, 7, 9, 2, step=5)]
    second_half = windows[batch(9, 2, step=5, start=2, total=4)]
    assert torch.equal(full[2:], second_half)
    assert not torch.equal(full, windows[batch(1, 7, 9, 2, step=6)])
    again = EEGWindows(tmp_path, n_chans=4)
    assert torch.equal(full, again[batch(1, 7, 9, 2, step=5)])


def test_scale_and_surplus_channels(tmp_path):
    folder = recordings(tmp_path, *[(6, 600)] * 5)
    one, tenth = EEGWindows(folder, n_chans=4), EEGWindows(folder, n_chans=4, scale=0.1)
    items = batch(0, 1, 2, 3)
    assert torch.allclose(one[items], tenth[items] * 10, atol=1e-6)
    fixed = EEGWindows(folder, n_chans=4).held_out_windows()
    assert fixed.shape == (1, 4, 512) and torch.equal(fixed, one.held_out_windows())


def test_held_out_is_never_trained_on(tmp_path):
    """Each sample carries its own number, so a shared one would be seen."""
    for case, n_files in (("by recording", 12), ("by tail", 2)):
        folder = tmp_path / case
        folder.mkdir()
        for i in range(n_files):
            np.save(folder / f"{i:02d}.npy", (np.arange(8000.0) + 8000 * i)[None])
        windows = EEGWindows(folder, n_chans=1)
        held = set(windows.held_out_windows(1000).flatten().tolist())
        trained = set()
        for step in range(200 // len(windows) + 20):
            trained |= set(windows[batch(*range(len(windows)), step=step)].flatten().tolist())
        assert held and not held & trained, case
        assert not held & set(windows.training_windows(1000).flatten().tolist()), case
        assert len(held) == windows.held_out_windows(1000).numel(), "windows do not overlap"
    assert windows.held_out_windows(1).shape[0] == 1


def test_segments_hold_out_their_last_ones(tmp_path):
    windows = EEGWindows(recordings(tmp_path, (20, 2, 512)), n_chans=2)
    assert len(windows) == 18
    stored = torch.from_numpy(np.load(tmp_path / "r0.npy"))
    assert torch.equal(windows.held_out_windows(), stored[18:])


def test_folder_manifest_is_handed_on(tmp_path):
    recordings(tmp_path, *[(2, 600)] * 5)
    (tmp_path / "manifest.json").write_text(json.dumps({"sfreq": 256.0, "band": [1, 40]}))
    info = EEGWindows(tmp_path, n_chans=2).info
    assert info["sfreq"] == 256.0 and info["band"] == [1, 40] and info["ch_names"] is None


def spoil(array, at, value):
    array = array.copy()
    array[at] = value
    return array


GOOD = np.random.default_rng(1).standard_normal((3, 700)).astype(np.float32)


@pytest.mark.parametrize(
    "array, words",
    [
        (GOOD[0], "expected (channels, samples)"),
        (GOOD.astype(np.int16), "floating point"),
        (spoil(GOOD, (1, 5), np.nan), "channel 1 has NaN"),
        (spoil(GOOD, (2, 5), np.inf), "channel 2 has NaN or infinite"),
        (spoil(GOOD, 0, 3.0), "channel 0 is constant"),
        (spoil(np.stack([GOOD, GOOD]), (1, 2, 4), np.nan), "segment 1: channel 2"),
        (np.array([{}], dtype=object), "not a readable .npy"),
    ],
)
def test_unusable_arrays_are_named(tmp_path, array, words):
    recordings(tmp_path, *[(3, 700)] * 5)
    np.save(tmp_path / "bad.npy", array, allow_pickle=True)
    with pytest.raises(UserError) as error:
        EEGWindows(tmp_path)
    assert words in str(error.value) and "bad.npy" in str(error.value)


def test_missing_folder_and_no_file(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        EEGWindows(tmp_path / "none")
    with pytest.raises(UserError, match="no .npy file"):
        EEGWindows(tmp_path)
    (tmp_path / "cut.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(UserError, match="cut.npy"):
        EEGWindows(tmp_path)


def trial(i, subject=4, length=500, **extra):
    eeg = torch.randn(128, length, generator=torch.Generator().manual_seed(i))
    return {"eeg": eeg, "image": i % 5, "label": i % 2, "subject": subject} | extra


def published(folder, trials, train, val, test, name="block_splits_by_image_single.pth", **manifest):
    labels, images = ["n01", "n02"], [f"n0{1 + i % 2}_{i}" for i in range(5)]
    torch.save({"dataset": trials, "labels": labels, "images": images}, folder / "eeg.pth")
    torch.save({"splits": [{"train": train, "val": val, "test": test}]}, folder / name)
    if manifest:
        (folder / "eeg.json").write_text(json.dumps(manifest))
    return folder / "eeg.pth", folder / name


def mixed():
    """Two subjects, alternating; position 2k is subject 4's k-th trial."""
    return [trial(i, subject=4 - i % 2) for i in range(12)]


def test_single_counts_in_the_subjects_own_trials_and_all_in_the_file(tmp_path):
    paths = published(tmp_path, mixed(), [0, 1, 2], [3], [4])
    parts = open_trials(*paths, subject=4)
    assert list(parts) == ["train", "val"] and parts["train"].position.tolist() == [0, 2, 4]
    assert parts["train"].info["split"]["index_space"] == "the list of subject 4"
    assert parts["train"].names == ["n01_0", "n01_2", "n01_4"] and parts["val"].position.tolist() == [6]
    assert open_trials(*paths, subject=3)["train"].position.tolist() == [1, 3, 5]
    paths = published(tmp_path, mixed(), [0, 1, 2], [3, 4], [5, 6], name="splits_all.pth")
    parts = open_trials(*paths, subject=4)
    assert (
        parts["train"].position.tolist() == [0, 2] and parts["train"].info["split"]["index_space"] == "the whole file"
    )
    assert open_trials(*paths, subject=0, splits=["test"])["test"].position.tolist() == [5, 6]


def test_window_and_interpolation_are_the_published_ones(tmp_path):
    trials = [trial(0), trial(1, length=455)]
    train = open_trials(*published(tmp_path, trials, [0], [1], []))["train"]
    expected = torch.nn.functional.interpolate(
        trials[0]["eeg"][None, :, 20:460].double(), 512, mode="linear", align_corners=True
    )
    assert train.eeg.shape == (1, 128, 512) and train.eeg.dtype == torch.float32
    assert torch.allclose(train.eeg.double(), expected, atol=1e-6)
    assert train.onset is None and train.recording is None and train.info["sfreq"] == 1000


def test_odd_lengths_are_left_out_and_order_is_kept(tmp_path):
    trials = [trial(0, length=600), trial(1, length=601), trial(2, length=449), trial(3, length=450)]
    train = open_trials(*published(tmp_path, trials, [3, 2, 1, 0], [], []), splits=["train"])["train"]
    assert train.position.tolist() == [3, 0] and train.info["left_out"] == 2


def test_manifest_changes_window_limits_and_rate(tmp_path):
    trials = [trial(i, length=180, onset=0.5 * i, recording=f"r{i}") for i in range(3)]
    paths = published(tmp_path, trials, [0, 2], [1], [], sfreq=256, window=[0, 180], length_limits=[180, 180])
    train = open_trials(*paths, n_chans=130, scale=2.0)["train"]
    assert torch.allclose(train.eeg[:, 0, -1], 2 * torch.stack([trials[i]["eeg"][0, 179] for i in (0, 2)]))
    assert torch.equal(train.eeg[:, 128:], train.eeg[:, :2]), "channels repeat"
    assert train.onset.tolist() == [0, 1] and train.recording == ["r0", "r2"] and train.info["sfreq"] == 256


def without(key):
    return {k: v for k, v in trial(0).items() if k != key}


@pytest.mark.parametrize(
    "bad, words",
    [
        (without("eeg"), "trial 1: lacks eeg"),
        (without("label"), "trial 1: lacks label"),
        (trial(0) | {"label": 2}, "label 2; the file lists 2"),
        (trial(0) | {"image": -1}, "image -1"),
        (trial(0) | {"eeg": torch.zeros(500)}, r"eeg \(500,\)"),
        (
            trial(0) | {"eeg": trial(0)["eeg"].index_fill(1, torch.tensor([30]), torch.nan)},
            "trial 1: channel 0 has NaN",
        ),
        (trial(0) | {"eeg": trial(0)["eeg"].index_fill(0, torch.tensor([7]), 1.0)}, "trial 1: channel 7 is constant"),
    ],
)
def test_unusable_trials_are_named(tmp_path, bad, words):
    paths = published(tmp_path, [trial(0), bad], [0, 1], [], [])
    with pytest.raises(UserError, match=words):
        open_trials(*paths, splits=["train"])


def test_unusable_files_and_splits_are_named(tmp_path):
    eeg, splits = published(tmp_path, mixed(), [0, 1], [1, 2], [3])
    with pytest.raises(UserError, match="'train' and 'val' overlap in 1 trials, for example 1"):
        open_trials(eeg, splits)
    published(tmp_path, mixed(), [0, 6], [1], [2])
    with pytest.raises(UserError, match="'train' has index 6; the list of subject 4 has 6 trials"):
        open_trials(eeg, splits)
    with pytest.raises(UserError, match="no trial of subject 9"):
        open_trials(eeg, splits, subject=9)
    with pytest.raises(UserError, match="no such file"):
        open_trials(tmp_path / "absent.pth", splits)
    torch.save({"splits": [{"train": [0]}]}, splits)
    with pytest.raises(UserError, match="lacks val; found 'train'"):
        open_trials(eeg, splits)
    torch.save({"dataset": [trial(0)], "labels": ["n01"]}, eeg)
    with pytest.raises(UserError, match="lacks images"):
        open_trials(eeg, splits)


def test_pictures_shared_between_splits_are_counted(tmp_path):
    parts = open_trials(*published(tmp_path, [trial(i) for i in range(8)], [0, 1], [5, 6], [7]))
    shared = parts["train"].info["split"]["shared"]
    assert {pair: found["pictures"] for pair, found in shared.items()} == {
        "train/val": 2,
        "val/test": 0,
        "train/test": 0,
    }


@pytest.mark.parametrize("name", ["../n01_1", "/etc/passwd", "n01_1/../../x", "C:n01_1", "a\\b", "..", ""])
def test_image_names_stay_in_their_folder(tmp_path, name):
    with pytest.raises(UserError, match="not a plain file stem"):
        stimuli.image_path(tmp_path, name)
    eeg, splits = published(tmp_path, mixed(), [0], [1], [2])
    content = torch.load(eeg)
    content["images"][3] = name
    torch.save(content, eeg)
    with pytest.raises(UserError, match="not a plain file stem"):
        open_trials(eeg, splits)


def pictures(root, names):
    for i, name in enumerate(names):
        path = stimuli.image_path(root, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), (i * 40 % 256, 90, 20)).save(path)
    return root


def test_few_missing_pictures_are_left_out_and_more_are_refused(tmp_path):
    parts = open_trials(*published(tmp_path, mixed(), [0, 1, 2], [3], [4]))
    root = pictures(tmp_path / "images", parts["train"].names[:2] + parts["val"].names)
    with pytest.raises(UserError, match="n01_4.JPEG: missing or corrupt, 1 of 4 pictures; .*allow_missing=1"):
        stimuli.leave_out_missing(parts, root)
    kept, lines = stimuli.leave_out_missing(parts, root, allow_missing=1)
    assert kept["train"].names == ["n01_0", "n01_2"] and torch.equal(kept["train"].eeg, parts["train"].eeg[:2])
    assert "n01_4" in lines[0] and "train: 2 of 3 trials" in lines[1] and "val: 1 of 1" in lines[2]
    whole = pictures(tmp_path / "images", parts["train"].names + parts["val"].names)
    assert stimuli.leave_out_missing(parts, whole) == (parts, [])
    cut = stimuli.image_path(root, "n01_4")
    cut.write_bytes(cut.read_bytes()[:-200])
    with pytest.raises(UserError, match="n01_4.JPEG"):
        stimuli.leave_out_missing(parts, root)
    with pytest.raises(UserError, match="cannot be read as a whole picture"):
        load_image(cut)


def test_the_known_corrupt_picture_is_always_left_out(tmp_path):
    eeg, splits = published(tmp_path, mixed(), [0, 1, 2], [3], [4])
    content = torch.load(eeg)
    content["images"][0] = "n03452741_17620"
    torch.save(content, eeg)
    parts = open_trials(eeg, splits)
    root = pictures(tmp_path / "images", parts["train"].names[1:] + parts["val"].names)
    kept, lines = stimuli.leave_out_missing(parts, root)
    assert len(kept["train"]) == 2 and "n03452741_17620" in lines[0]


def test_image_tensor_is_the_published_resize():
    noise = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    out = image_tensor(image, 32)
    transforms = pytest.importorskip("torchvision.transforms.functional")
    tensor = torch.from_numpy(noise).permute(2, 0, 1).double() / 255 * 2 - 1
    assert torch.allclose(out.double(), transforms.resize(tensor, [32, 32], antialias=False), atol=1e-6)
    crop = image_tensor(image, 32, crop=(3, 4, 26))
    expected = transforms.resize(out[:, 3:29, 4:30], [32, 32], antialias=False)
    assert torch.allclose(crop, expected, atol=1e-5) and crop.shape == (3, 32, 32)
