"""The cache of a trials file: what it holds, when it is made again, and that nothing in the file is executed."""

import json
import os
import random
import zipfile

import numpy as np
import pytest
import torch

import data.trials_file as trial_cache
from data.trials_file import cached_windows, open_trial_file
from runtime import atomic, checkpoints, digests
from runtime.errors import UserError
from runtime.file_kinds import UNKNOWN, file_kind

FORMATS = pytest.mark.parametrize("zipped", [False, True], ids=["legacy", "zip"])


def trials(n=6, seed=0):
    """Lengths differ; the first three are a double, a transposed view and a slice of a shared storage."""
    draw = torch.Generator().manual_seed(seed)
    eeg = [torch.randn(3, 20 + i, generator=draw) for i in range(n)]
    eeg[0], eeg[1], eeg[2] = eeg[0].double(), torch.randn(21, 3, generator=draw).T, eeg[3][:, 4:20]
    return [{"eeg": e, "image": i % 2, "label": i % 2, "subject": 4} for i, e in enumerate(eeg)]


def write(path, dataset, zipped, **extra):
    content = {"dataset": dataset, "labels": ["n01", "n02"], "images": ["n01_1", "n02_2"]} | extra
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


TRIAL = trials()[0]


def assert_holds(file, dataset):
    assert len(file.start) == len(dataset)
    for i, trial in enumerate(dataset):
        assert np.array_equal(file.eeg(i), trial["eeg"].float().numpy())
        assert file.about["trials"]["label"][i] == trial["label"]


@FORMATS
def test_both_formats_give_what_torch_gives(tmp_path, zipped, capsys):
    path = write(tmp_path / "eeg.pth", trials(), zipped)
    assert_holds(open_trial_file(path), torch.load(path, weights_only=True)["dataset"])
    assert "6 trials converted once into" in capsys.readouterr().out
    assert sorted(p.name for p in (tmp_path / "cache").iterdir()) == ["eeg.trials.json", "eeg.trials.npy"]


@FORMATS
def test_a_second_opening_neither_hashes_nor_converts(tmp_path, zipped, capsys, monkeypatch):
    path = write(tmp_path / "eeg.pth", trials(), zipped)
    first = open_trial_file(path)
    hashed = []
    digest_of = digests.sha256
    monkeypatch.setattr(digests, "sha256", lambda p: hashed.append(p) or digest_of(p))
    capsys.readouterr()
    again = open_trial_file(path)
    assert_holds(again, trials())
    assert again.about == first.about and not hashed and not capsys.readouterr().out
    os.utime(path, (1, 1))  # copied, say: hashed, found to be the same, remembered
    assert open_trial_file(path).about["seen"]["mtime_ns"] == 10**9
    open_trial_file(path)
    assert len(hashed) == 1 and not capsys.readouterr().out


def test_another_file_behind_the_name_is_converted_again(tmp_path, capsys):
    path = write(tmp_path / "eeg.pth", trials(), True)
    open_trial_file(path)
    write(path, trials(seed=1), True)
    os.utime(path, (1, 1))
    capsys.readouterr()
    assert_holds(open_trial_file(path), trials(seed=1))
    assert "converted" in capsys.readouterr().out


@pytest.mark.parametrize("moment", ["samples", "index"])
def test_an_interrupted_conversion_leaves_nothing_that_could_be_taken_for_a_cache(tmp_path, monkeypatch, moment):
    path = write(tmp_path / "eeg.pth", trials(), True)
    old = open_trial_file(path).about
    first, kept = path.read_bytes(), path.stat()
    write(path, trials(seed=1), True)
    with monkeypatch.context() as patch:

        def interrupt(*_):
            raise KeyboardInterrupt

        target = (trial_cache, "_samples_of") if moment == "samples" else (atomic, "write_text")
        patch.setattr(*target, interrupt)
        with pytest.raises(KeyboardInterrupt):
            open_trial_file(path)
    assert not list((tmp_path / "cache").glob(".*"))
    path.write_bytes(first)  # the earlier file again, to the nanosecond: samples of the other must not serve it
    os.utime(path, ns=(kept.st_mtime_ns, kept.st_mtime_ns))
    file = open_trial_file(path)
    assert_holds(file, trials())
    assert file.about == old


def test_a_damaged_cache_is_made_again(tmp_path):
    path = write(tmp_path / "eeg.pth", trials(), False)
    samples, index = (tmp_path / f"cache/eeg.trials.{suffix}" for suffix in ("npy", "json"))
    open_trial_file(path)
    whole = samples.read_bytes()
    for spoil in (
        lambda: samples.write_bytes(whole[:-50]),
        samples.unlink,
        lambda: samples.write_bytes(b""),
        lambda: index.write_text("{"),
        lambda: index.write_text("[]"),
        lambda: index.write_text(json.dumps({"format": "other"})),
    ):
        spoil()
        assert_holds(open_trial_file(path), trials())


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path, monkeypatch):
    path = write(tmp_path / "eeg.pth", trials(), False)

    def full(_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(atomic.os, "fsync", full)
        with pytest.raises(UserError, match=r"eeg.trials.npy: could not be written .*No space left"):
            open_trial_file(path)
    assert not list((tmp_path / "cache").iterdir())
    assert_holds(open_trial_file(path), trials())


def test_what_a_killed_conversion_left_is_removed(tmp_path):
    path = write(tmp_path / "eeg.pth", trials(), False)
    old, running = (tmp_path / f"cache/.eeg.trials.npy.{pid}.part" for pid in (1, 2))
    old.parent.mkdir()
    old.touch()
    running.touch()
    os.utime(old, (1, 1))
    open_trial_file(path)
    assert not old.exists() and running.exists()


class Harmful:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


@FORMATS
def test_nothing_in_the_file_is_executed(tmp_path, zipped):
    mark = tmp_path / "executed"
    for place in ({"subject": Harmful(str(mark))}, {"eeg": Harmful(str(mark))}, {"note": Harmful(str(mark))}):
        path = write(tmp_path / "eeg.pth", [trials()[0] | place], zipped)
        with pytest.raises(UserError, match=r"eeg.pth: holds io.open, .* never loaded"):
            open_trial_file(path)
    assert not mark.exists()


@FORMATS
def test_a_file_cut_anywhere_is_refused(tmp_path, zipped):
    content = write(tmp_path / "whole.pth", trials(), zipped).read_bytes()
    path = tmp_path / "eeg.pth"
    for n in (0, 10, 100, len(content) // 2, len(content) - 30):
        path.write_bytes(content[:n])
        with pytest.raises(UserError, match=r"eeg.pth: .*(truncated|not a torch file)"):
            open_trial_file(path)
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(UserError, match="another kind.*; expected a file of EEG trials"):
        open_trial_file(path)


@FORMATS
def test_a_damaged_file_is_refused_or_read_but_never_a_traceback(tmp_path, zipped):
    content = write(tmp_path / "whole.pth", trials(), zipped).read_bytes()
    draw, path, refused = random.Random(0), tmp_path / "eeg.pth", 0
    for _ in range(120):
        spoilt = bytearray(content)
        spoilt[draw.randrange(min(len(content), 1500))] = draw.randrange(256)
        path.write_bytes(spoilt)
        try:
            open_trial_file(path)
        except UserError as error:
            refused += 1
            assert str(path) in str(error)
    assert refused > 40


def number(n):
    """A small number as torch's pickles write it."""
    return b"J" + n.to_bytes(4, "little", signed=True) if n < 0 else b"K" + bytes([n])


def rewrite(path, old, new):
    """Replace bytes in the pickle of a file of either format."""
    content = path.read_bytes()
    if not zipfile.is_zipfile(path):
        assert old in content
        path.write_bytes(content.replace(old, new))
        return
    with zipfile.ZipFile(path) as whole, zipfile.ZipFile(path.with_suffix(".new"), "w") as changed:
        for name in whole.namelist():
            part = whole.read(name)
            assert old in part or not name.endswith("data.pkl")
            changed.writestr(name, part.replace(old, new) if name.endswith("data.pkl") else part)
    path.with_suffix(".new").replace(path)


@FORMATS
@pytest.mark.parametrize("first, shape, stride", [(0, (3, 6), (5, 1)), (-1, (3, 5), (5, 1)), (0, (3, 5), (-5, 1))])
def test_a_tensor_outside_its_storage_is_not_read(tmp_path, zipped, first, shape, stride):
    """Of 15 numbers a file says that they begin elsewhere, are more, or lie the other way."""
    path = write(tmp_path / "eeg.pth", [TRIAL | {"eeg": torch.randn(3, 5)}], zipped)
    for true, said in (((0, 3, 5), (first, *shape)), ((5, 1), stride)):
        rewrite(path, *(b"".join(map(number, numbers)) + b"\x86" for numbers in (true, said)))
    with pytest.raises(UserError, match="eeg.pth: is truncated or not a torch file"):
        open_trial_file(path)


@FORMATS
@pytest.mark.parametrize("module", [b"numpy._core.multiarray", b"numpy.core.multiarray"])
def test_numbers_of_numpy_are_plain_numbers(tmp_path, zipped, module):
    """Labels, onsets and names as numpy's scalars, which pickle calls differently in numpy 1 and 2."""
    facts = {"label": np.int64(1), "image": np.uint8(1), "subject": np.dtype(">i4").type(4), "onset": np.float64(0.25)}
    path = write(tmp_path / "eeg.pth", [TRIAL | facts | {"recording": np.str_("zwölf")}], zipped)
    rewrite(path, np._core.multiarray.scalar.__module__.encode(), module)
    columns = {key: open_trial_file(path).about["trials"][key][0] for key in (*facts, "recording")}
    assert columns == {"label": 1, "image": 1, "subject": 4, "onset": 0.25, "recording": "zwölf"}
    assert [type(value) for value in columns.values()] == [int, int, int, float, str]


@pytest.mark.parametrize(
    "eeg, words",
    [
        (torch.zeros(3, 5, dtype=torch.int64), "of torch.int64; expected floating point numbers"),
        (torch.zeros(3, 5).to_sparse(), "holds torch._utils._rebuild_sparse_tensor, which is neither a tensor"),
        (torch.zeros(3, 5, device="meta"), "holds torch._utils.*, which is neither a tensor"),
    ],
)
def test_eeg_without_readable_numbers_is_named(tmp_path, eeg, words):
    with pytest.raises(UserError, match=f"eeg.pth: .*{words}"):
        open_trial_file(write(tmp_path / "eeg.pth", [TRIAL | {"eeg": eeg}], True))


@pytest.mark.parametrize(
    "content, words",
    [
        ([1], "holds a list"),
        ({"dataset": []}, r"dataset is \[\], .*at least 1 item"),
        ({"dataset": {}}, r"dataset is \{\}, expected a valid list"),
        ({"dataset": [1]}, "trial 0: the whole is 1, expected a valid dict"),
        ({"dataset": [TRIAL | {"label": "x"}]}, "trial 0: label is 'x', expected a valid integer"),
        ({"dataset": [TRIAL | {"onset": "x"}]}, "trial 0: onset is 'x', expected a valid number"),
        ({"dataset": [TRIAL | {"label": torch.tensor(1)}]}, r"trial 0: label is tensor\(1\), expected a valid integer"),
        ({"labels": [torch.tensor(1)]}, r"labels.0 is tensor\(1\), expected a valid string"),
        ({"images": [7]}, "images.0 is 7, expected a valid string"),
    ],
)
def test_other_content_is_named(tmp_path, content, words):
    if isinstance(content, dict):
        content = {"dataset": [TRIAL], "labels": ["n01"], "images": ["n01_1"]} | content
    torch.save(content, tmp_path / "eeg.pth")
    with pytest.raises(UserError, match=words):
        open_trial_file(tmp_path / "eeg.pth")


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    path = write(tmp_path / "eeg.pth", trials(), False)
    (tmp_path / "cache").write_text("a file in the cache's place")
    with pytest.raises(UserError, match="eeg.trials.npy: could not be written"):
        open_trial_file(path)


def test_a_file_that_would_unpack_to_any_size_is_refused(tmp_path):
    path = write(tmp_path / "eeg.pth", trials(), True)
    packed = tmp_path / "packed.pth"
    with zipfile.ZipFile(path) as whole, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as small:
        for name in whole.namelist():
            small.writestr(name, whole.read(name))
    for read in (open_trial_file, lambda file: checkpoints.read_plain(file, "thing")):
        with pytest.raises(UserError, match="compressed"):
            read(packed)
    assert file_kind(packed) == UNKNOWN
    one = trials()[5]
    write(path, [dict(one) for _ in range(2000)], True)  # each a tensor of its own in the list, but one in the file
    with pytest.raises(UserError, match="many trials are copies of one"):
        open_trial_file(path)
    assert not (tmp_path / "cache").exists()


def windows(file, facts, made, value=1.0):
    """Two windows (3, 4) cut out of a file; `made` notes each that is really made."""

    def row(i):
        made.append(i)
        return file.eeg(i)[:, :4] * value

    return cached_windows(file, facts, (2, 3, 4), lambda: map(row, (0, 1)))


def test_windows_are_made_once_for_each_thing_they_depend_on(tmp_path):
    path, made = write(tmp_path / "eeg.pth", trials(), True), []
    file = open_trial_file(path)
    first = windows(file, ["a"], made)
    assert np.array_equal(first, np.stack([file.eeg(i)[:, :4] for i in (0, 1)])) and first.dtype == np.float32
    again = windows(file, ["a"], made, value=7)  # taken as they are: the facts say nothing of another value
    assert np.array_equal(again, first) and made == [0, 1]
    again[:] = 0  # written to, the array changes, not the file
    assert np.array_equal(windows(file, ["a"], made), first) and made == [0, 1]
    assert np.array_equal(windows(file, ["b"], made, value=7), 7 * first) and made == [0, 1] * 2
    write(path, trials(seed=1), True)
    os.utime(path, ns=(0, 0))
    other = windows(open_trial_file(path), ["a"], made)
    assert not np.array_equal(other, first) and made == [0, 1] * 3
    left = [p.name for p in (tmp_path / "cache").glob("eeg.windows-*.npy")]
    assert len(left) == 1, "windows of the earlier file are still there"


@pytest.mark.parametrize(
    "damage", [lambda p: p.write_bytes(b""), lambda p: p.write_bytes(p.read_bytes()[:-5]), os.remove]
)
def test_damaged_windows_are_made_again(tmp_path, damage):
    file, made = open_trial_file(write(tmp_path / "eeg.pth", trials(), True)), []
    first = windows(file, [], made).copy()
    damage(next((tmp_path / "cache").glob("eeg.windows-*.npy")))
    assert np.array_equal(windows(file, [], made), first) and made == [0, 1] * 2


def test_windows_that_cannot_be_cut_leave_no_file(tmp_path):
    file = open_trial_file(write(tmp_path / "eeg.pth", trials(), True))

    def row(i):
        raise UserError("trial 1 is flat")

    with pytest.raises(UserError, match="flat"):
        cached_windows(file, [], (1, 3, 4), lambda: map(row, [0]))
    assert not list((tmp_path / "cache").glob("*windows*"))


def test_windows_that_cannot_be_kept_are_made_in_memory_and_a_line_says_so(tmp_path, monkeypatch, capsys):
    file, made = open_trial_file(write(tmp_path / "eeg.pth", trials(), True)), []
    kept = windows(file, ["a"], made).copy()

    def full(path, write):
        raise UserError("no room") from OSError(28, "No space left on device")

    monkeypatch.setattr(atomic, "replace_atomically", full)
    capsys.readouterr()
    assert np.array_equal(windows(file, ["b"], made), kept)
    assert "could not be kept" in capsys.readouterr().out
