"""Data that can be told to be wrong: units, times, channels, misspelt manifests, odd arrays, and caches elsewhere."""

import json
import os
import resource

import numpy as np
import pytest
import torch
from test_trial_cache import assert_holds, trials, write

import data.trials_file as trial_cache
from data.signals import mapped, read_manifest
from data.trials_file import open_trial_file
from dataset import EEGWindows, open_trials
from runtime import atomic
from runtime.draws import Batch
from runtime.errors import UserError


def six(**of_trial_2):
    """Six trials of one unit, in time, one of them changed."""
    made = [trial | {"onset": 2.0 * i, "recording": "a"} for i, trial in enumerate(trials())]
    made[2] |= of_trial_2
    return made


EEG = trials()[2]["eeg"]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"eeg": EEG * 1e-6}, "trial 2 has spread .*another unit"),
        ({"eeg": EEG * 1000}, "trial 2 has spread .*another unit"),
        ({"eeg": EEG + 5000}, "trial 2 has spread .*constant"),
        ({"eeg": EEG.index_fill(1, torch.tensor([3]), 1e8)[:, :16]}, "trial 2 has spread"),
        ({"eeg": EEG[:2]}, "trial 2 has 2 channels and trial 0 3"),
        ({"onset": -1.0}, "trial 2: onset is -1.0, expected greater than or equal to 0"),
        ({"onset": float("nan")}, "trial 2: onset is nan"),
        ({"subject": True}, "trial 2: subject is True, expected a valid integer"),
        ({"label": True}, "trial 2: label is True"),
        ({"image": False}, "trial 2: image is False"),
        ({"recording": ["a"]}, "trial 2: recording is"),
    ],
)
def test_a_trial_that_is_unlike_the_others_is_named(tmp_path, changed, words):
    with pytest.raises(UserError, match=f"eeg.pth: {words}"):
        open_trial_file(write(tmp_path / "eeg.pth", six(**changed), True))


def test_a_value_that_is_no_eeg_is_named_in_a_file_without_checksums(tmp_path):
    path = write(tmp_path / "eeg.pth", trials(), False)
    content = bytearray(path.read_bytes())
    place = content.index(trials()[5]["eeg"].numpy().tobytes()) + 4 * 7
    content[place + 3] = 0x70  # an exponent's bits
    path.write_bytes(content)
    with pytest.raises(UserError, match="trial 5 has spread"):
        open_trial_file(path)


def test_times_that_cannot_be_seconds(tmp_path, capsys):
    made = [trial | {"onset": 2000.0 * i, "recording": "a"} for i, trial in enumerate(trials())]
    with pytest.raises(UserError, match="onsets lie 2000 apart .*in ms"):
        open_trial_file(write(tmp_path / "eeg.pth", made, True))
    open_trial_file(write(tmp_path / "eeg.pth", six(onset=1.0), True))
    assert "onsets decrease within a recording, at 1 trials" in capsys.readouterr().out
    mixed = [trial | {"onset": (0.0, 500.0)[i % 2] + i, "recording": "a"} for i, trial in enumerate(trials())]
    open_trial_file(write(tmp_path / "eeg.pth", mixed, True))  # seconds, in no order


@pytest.mark.parametrize("labels", [[["a"], ["b"]], [None, None], [True, False]])
def test_labels_that_are_no_names(tmp_path, labels):
    with pytest.raises(UserError, match=r"eeg.pth: labels.0 is .*, expected a valid"):
        open_trial_file(write(tmp_path / "eeg.pth", trials(), True, labels=labels))


def test_a_damaged_trial_of_the_cache_is_made_again_when_it_is_read(tmp_path, capsys, monkeypatch):
    path = write(tmp_path / "eeg.pth", trials(), True)
    file = open_trial_file(path)
    whole = file.samples.read_bytes()
    file.samples.write_bytes(whole[:-9] + b"\x00" + whole[-8:])  # where no opening looks, of a file that is large
    capsys.readouterr()
    assert_holds(file, trials())
    assert "is damaged at trial 5: it is made again" in capsys.readouterr().out and file.samples.read_bytes() == whole
    index = file.samples.with_suffix(".json")
    for spoil in (
        lambda about: about.pop("trials"),
        lambda about: about["trials"].update(label=[1] * 6),
        lambda about: about.update(labels=["x", "y"]),
    ):
        about = json.loads(index.read_text())
        spoil(about)
        index.write_text(json.dumps(about))
        assert open_trial_file(path).about == file.about
        assert "is damaged or of an earlier version: it is made again" in capsys.readouterr().out
    np.save(file.samples, np.array([{}], dtype=object), allow_pickle=True)
    assert_holds(open_trial_file(path), trials())


def test_a_file_changed_in_place_with_its_old_time_is_noticed(tmp_path):
    path = write(tmp_path / "eeg.pth", trials(), True)
    open_trial_file(path)
    kept = path.stat()
    write(path, trials(seed=1), True)
    assert path.stat().st_size == kept.st_size
    os.utime(path, ns=(kept.st_mtime_ns, kept.st_mtime_ns))
    assert_holds(open_trial_file(path), trials(seed=1))


def test_a_cache_can_lie_elsewhere(tmp_path, monkeypatch):
    folders = [tmp_path / name for name in ("one", "two")]
    for seed, folder in enumerate(folders):
        folder.mkdir()
        write(folder / "eeg.pth", trials(seed=seed), True)
    for _ in range(2):  # two files of one name do not push each other out
        for seed, folder in enumerate(folders):
            assert_holds(open_trial_file(folder / "eeg.pth", tmp_path / "cache"), trials(seed=seed))
        monkeypatch.setattr(trial_cache, "_convert", None)
    assert not (folders[0] / "cache").exists() and len(list((tmp_path / "cache").glob("*.npy"))) == 2


def test_the_place_of_the_cache_is_named_where_none_can_be_written(tmp_path, monkeypatch):
    path = write(tmp_path / "eeg.pth", trials(), True)

    def refuse(*_):
        raise UserError("eeg.trials.npy: could not be written") from PermissionError(13, "Permission denied")

    monkeypatch.setattr(atomic, "replace_atomically", refuse)
    with pytest.raises(UserError, match="could not be written; or name a folder .*cache="):
        open_trial_file(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"lenght_limits": [1, 2]}, "has the key 'lenght_limits'; is length_limits meant"),
        ({"Sfreq": 256}, "is sfreq meant"),
        ({"channel_names": ["a"]}, "is ch_names meant"),
        ({"sfreq": 0}, "sfreq is 0"),
        ({"sfreq": 1e9}, "sfreq is 1000000000.0"),
        ({"sfreq": True}, "sfreq is True"),
        ({"window": [5, 5]}, "window is .5, 5., expected the smaller number first"),
        ({"length_limits": [600, 450]}, "length_limits is .600, 450."),
        ({"band": [1]}, "band"),
        ({"class_names": {"n01": 3}}, "class_names.n01 is 3"),
        ({"control": {"design": "block"}}, "control.design is 'block'"),
        ({"recordings": [{"file": ["x"]}]}, "recordings.0.file is"),
        ({"image_known": 1}, "image_known is 1"),
    ],
)
def test_manifests_are_checked_when_they_are_read(tmp_path, content, words):
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"a.json: .*{words}"):
        read_manifest(tmp_path / "a.json")


def test_manifests_may_say_more(tmp_path):
    content = {
        "description": "x",
        "cap": "own",
        "sfreq": None,
        "ch_names": None,
        "band": "5_95",
        "length_limits": [9, 9],
        "length_limit": "as published",  # beside the key that is read
        "recording": "sub-01",
        "units": "uV",
        "control": None,
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    assert read_manifest(tmp_path / "a.json") == content and read_manifest(tmp_path / "none.json") == {}
    (tmp_path / "b.json").mkdir()
    (tmp_path / "c.json").symlink_to(tmp_path / "gone")
    for name in ("b.json", "c.json"):
        with pytest.raises(UserError, match=f"{name}: (is no plain file|no such file); expected a manifest"):
            read_manifest(tmp_path / name)


def test_names_are_as_many_as_channels(tmp_path):
    path = write(tmp_path / "eeg.pth", trials(), True)
    (tmp_path / "eeg.json").write_text(json.dumps({"ch_names": ["a", "b"]}))
    with pytest.raises(UserError, match="eeg.json: ch_names has 2 names for 3 channels"):
        open_trials(path, tmp_path / "splits.pth")


def corpus(folder, n=5, shape=(3, 300), factor=1.0):
    draw = np.random.default_rng(0)
    for i in range(n):
        np.save(folder / f"r{i}.npy", (factor * draw.standard_normal(shape)).astype(np.float32))
    return folder


def windows(folder, **more):
    made = EEGWindows(folder, n_chans=3, n_times=64, **more)
    return made[Batch(step=0, index=torch.arange(len(made)), start=0, total=len(made), weight=1.0)]


def test_units_of_a_corpus(tmp_path, capsys):
    volts = corpus(tmp_path, factor=1e-5)
    with pytest.raises(UserError, match="samples are of size .*in volts.*set eeg_scale=100000"):
        windows(volts)
    assert 0.5 < windows(volts, scale=1e5).std() < 2
    capsys.readouterr()
    windows(corpus(tmp_path, factor=1e5))
    assert "note: " in (said := capsys.readouterr().out) and "eeg_scale=1e-05" in said
    np.save(tmp_path / "r2.npy", np.random.default_rng(1).standard_normal((3, 300)).astype(np.float32))
    with pytest.raises(UserError, match="r2.npy: has samples of size .*another unit"):
        windows(tmp_path)
    windows(corpus(tmp_path))
    np.save(tmp_path / "r2.npy", np.load(tmp_path / "r2.npy") + np.float32(4200))  # coupled by DC
    windows(tmp_path)


def test_arrays_that_lie_the_other_way_round(tmp_path, capsys):
    windows(corpus(tmp_path, shape=(100, 60)))
    assert "5 recordings have more channels than samples, first (100, 60)" in capsys.readouterr().out
    np.save(tmp_path / "r2.npy", np.random.default_rng(1).standard_normal((300, 3)).astype(np.float32))
    with pytest.raises(UserError, match=r"r2.npy: has shape \(300, 3\); .*transpose"):
        windows(tmp_path)


@pytest.mark.parametrize("kind", ["<f8", ">f4", "<f2", "longdouble", "fortran"])
def test_every_floating_point_layout_is_read_right(tmp_path, kind):
    expected = windows(corpus(tmp_path))
    for path in tmp_path.glob("*.npy"):
        array = np.load(path)
        np.save(path, np.asfortranarray(array) if kind == "fortran" else array.astype(kind))
    assert torch.allclose(windows(tmp_path), expected, atol=2e-3 if kind == "<f2" else 0)


def header(text: str, version: int = 1, length: int | None = None) -> bytes:
    content = text.encode() + b"\n"
    size = (len(content) if length is None else length).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + size + content + np.zeros(900, "f4").tobytes()


SHAPE = "{'descr': '<f4', 'fortran_order': False, 'shape': %s}"


@pytest.mark.parametrize(
    "content",
    [
        header(SHAPE % "(-3, 300)"), header(SHAPE % "(True, 900)"), header(SHAPE % "(3, 10**9)"),
        header(SHAPE % "(3, 1000000000000)"), header("(" * 500), header("-" * 5000), header(SHAPE % f"({'1,' * 4000})"),
        header("{}", version=2, length=2**32 - 1), header(SHAPE % "(4294967296, 4294967296)"), b"PK\x03\x04", b"",
    ],
)  # fmt: skip
def test_headers_that_lie_are_one_sentence(tmp_path, content):
    (corpus(tmp_path) / "r2.npy").write_bytes(content)
    with pytest.raises(UserError, match="r2.npy: is not a readable .npy array"):
        windows(tmp_path)


def test_what_is_no_file_is_left_out_and_named(tmp_path, capsys):
    expected = windows(corpus(tmp_path))
    (tmp_path / "x.npy").mkdir()
    os.mkfifo(tmp_path / "y.npy")
    (tmp_path / "z.npy").symlink_to(tmp_path / "z.npy")
    (tmp_path / "zero.npy").symlink_to("/dev/zero")
    capsys.readouterr()
    assert torch.equal(windows(tmp_path), expected)
    assert "note: 4 .npy are no files" in capsys.readouterr().out


def test_many_recordings_keep_few_files_open(tmp_path):
    corpus(tmp_path, n=700, shape=(2, 70))
    before, open_here = resource.getrlimit(resource.RLIMIT_NOFILE), len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_here + 600, before[1]))
    try:
        assert len(windows(tmp_path)) == 630
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        mapped.cache_clear()
