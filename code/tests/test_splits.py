"""What splits share is counted; splits that we make hold out whole pictures, blocks, recordings or subjects."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from commands import make_splits
from data.splits import check_splits, describe_splits, read_splits, runs_in_time
from dataset import open_trials
from runtime.errors import UserError

N_CLASSES, N_IMAGES, N_SUBJECTS = 4, 40, 3


def experiment(folder, onset=True, recording=True):
    """Each subject sees the 40 pictures class by class, in two recordings of two classes each."""
    draw, trials = torch.Generator().manual_seed(0), []
    for subject in range(1, N_SUBJECTS + 1):
        for image in range(N_IMAGES):
            trial = {
                "eeg": torch.randn(2, 30, generator=draw),
                "image": image,
                "label": image // 10,
                "subject": subject,
            }
            trial |= {"onset": float(image)} if onset else {}
            trials.append(trial | ({"recording": f"r{image // 20}"} if recording else {}))
    content = {"dataset": trials, "labels": [f"n0{i}" for i in range(N_CLASSES)]}
    torch.save(content | {"images": [f"n0{i // 10}_{i}" for i in range(N_IMAGES)]}, folder / "eeg.pth")
    (folder / "eeg.json").write_text(json.dumps({"window": [0, 30], "length_limits": [30, 30]}))
    return trials


def make(folder, monkeypatch, capsys, **settings):
    settings = {"eeg_signals_path": folder / "eeg.pth"} | settings
    monkeypatch.setattr("sys.argv", ["make_splits.py", *(f"{k}={v}" for k, v in settings.items())])
    make_splits.main()
    return capsys.readouterr().out


def columns(n, **known):
    """Facts of n trials of one subject, all different but for what is given."""
    unknown = {"onset": [None] * n, "recording": [None] * n}
    return {"subject": [1] * n, "image": [*range(n)], "digest": [*map(str, range(n))]} | unknown | known


def shared(tmp_path, trials, train, val, test):
    torch.save({"splits": [{}]}, tmp_path / "s.pth")
    parts = {"train": train, "val": val, "test": test}
    same_eeg = SimpleNamespace(trials=trials, between=lambda first, second: [first, second])
    facts = check_splits(tmp_path / "s.pth", same_eeg, parts, "the whole file")
    assert facts["same_eeg"] == {"val": [train, val], "test": [train + val, test]}
    return facts["shared"]["train/test"]


def test_what_two_splits_share_is_counted(tmp_path):
    trials = columns(8, image=[0, 1, 2, 3, 0, 1, 6, 7], digest=list("abcdbbgh"))
    found = shared(tmp_path, trials, [0, 1, 2], [3], [4, 5, 6, 7])
    assert found == {"pictures": 2, "recordings": None, "identical": 2, "neighbours": 0}
    found = shared(tmp_path, trials, [0, 2, 6], [4], [1, 3, 5, 7])
    assert found["neighbours"] == 4, "1 and 3 beside 2, 5 and 7 beside 6"


def test_neighbours_are_of_one_recording_in_order_of_onset(tmp_path):
    onset, tapes = [5.0, 0.0, 4.0, 1.0, 2.0, 3.0], ["a", "a", "a", "b", "b", "b"]
    trials = columns(6, onset=onset, recording=tapes)
    assert runs_in_time(trials) == [[1, 2, 0], [3, 4, 5]]
    assert shared(tmp_path, trials, [1], [], [0, 3])["neighbours"] == 0
    assert shared(tmp_path, trials, [1], [], [2, 3])["neighbours"] == 1
    assert shared(tmp_path, trials, [1], [], [2, 3])["recordings"] == 1
    other = trials | {"subject": [1, 1, 1, 2, 2, 2], "recording": ["a"] * 6}
    assert shared(tmp_path, other, [0, 1, 2], [], [3, 4, 5])["recordings"] == 0, "of another subject"


@pytest.mark.parametrize("by, key", [("image", "image"), ("recording", "recording"), ("subject", "subject")])
def test_groups_are_never_divided(tmp_path, monkeypatch, capsys, by, key):
    trials, tested = experiment(tmp_path), []
    whose = [(t["subject"], t["recording"]) if key == "recording" else t[key] for t in trials]
    n_folds = {"image": 10, "recording": 6, "subject": 3}[by]
    for fold in range(n_folds):
        make(tmp_path, monkeypatch, capsys, by=by, fold=fold)
        parts = torch.load(tmp_path / f"splits_by_{by}_{fold}_all.pth")["splits"][0]
        groups = {name: {whose[i] for i in part} for name, part in parts.items()}
        assert not groups["test"] & (groups["train"] | groups["val"]) and not groups["val"] & groups["train"]
        assert sorted(sum(parts.values(), [])) == [*range(len(trials))]
        about = json.loads((tmp_path / f"splits_by_{by}_{fold}_all.json").read_text())
        assert len(about["held_out"]["test"]) == len(groups["test"]) and about["settings"]["by"] == by
        tested += parts["test"]
    assert sorted(tested) == [*range(len(trials))], "each trial is tested once"


def test_pictures_are_held_out_of_every_class(tmp_path, monkeypatch, capsys):
    trials = experiment(tmp_path)
    make(tmp_path, monkeypatch, capsys, by="image")
    parts = torch.load(tmp_path / "splits_by_image_0_all.pth")["splits"][0]
    assert [len(part) for part in parts.values()] == [96, 12, 12]
    assert sorted(trials[i]["label"] for i in parts["test"]) == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    before = (tmp_path / "splits_by_image_0_all.pth").read_bytes()
    make(tmp_path, monkeypatch, capsys, by="image")
    assert (tmp_path / "splits_by_image_0_all.pth").read_bytes() == before
    make(tmp_path, monkeypatch, capsys, by="image", seed=1)
    assert (tmp_path / "splits_by_image_0_all.pth").read_bytes() != before


@pytest.mark.parametrize("onset", [True, False])
def test_blocks_are_runs_of_one_class(tmp_path, monkeypatch, capsys, onset):
    trials = experiment(tmp_path, onset=onset, recording=False)
    said = make(tmp_path, monkeypatch, capsys, by="block", folds=4, fold=1)
    parts = torch.load(tmp_path / "splits_by_block_1_all.pth")["splits"][0]
    block = [(t["subject"], t["label"]) for t in trials]
    assert not {block[i] for i in parts["test"]} & {block[i] for i in parts["train"]}
    assert len(parts["test"]) == 30 and ("not verified" in said) != onset


def test_what_was_held_out_reaches_the_run(tmp_path, monkeypatch, capsys):
    experiment(tmp_path)
    said = make(tmp_path, monkeypatch, capsys, by="subject", fold=1)
    parts = open_trials(tmp_path / "eeg.pth", tmp_path / "splits_by_subject_1_all.pth", subject=0, n_chans=2)
    facts = parts["train"].info["split"]
    assert facts["made_by"]["held_out"] == {"test": [2], "val": [3]} and len(facts["eeg_sha256"]) == 64
    assert facts["shared"]["train/test"] == {"pictures": 40, "recordings": 0, "identical": 0, "neighbours": 0}
    assert set(parts["train"].subject.tolist()) == {1} and set(parts["val"].subject.tolist()) == {3}
    nothing = {"identical": 0, "alike": 0, "repeated": 0, "overlapping": 0, "examples": [], "pairs": []}
    assert facts["same_eeg"] == {"val": {"trials": 40, **nothing}, "test": {"trials": 40, **nothing}}
    assert facts["made_by"]["same_eeg"] == facts["same_eeg"]
    assert "0 of 40 test trials hold EEG of a training or validation trial" in said
    assert describe_splits(facts) in said and "share 40 pictures and 0 recordings" in said


def test_what_cannot_be_divided_is_said(tmp_path, monkeypatch, capsys):
    experiment(tmp_path, recording=False)
    for words, settings in (
        ("expected image or block", {"by": "class"}),
        ("does not name the recording", {"by": "recording"}),
        ("there are 3 parts", {"by": "subject", "fold": 3}),
        ("there are 2 parts", {"by": "image", "folds": 2}),
        ("40 groups, and the trials of a class, are too few", {"by": "image", "folds": 100, "fold": 60}),
        ("no such file", {"eeg_signals_path": tmp_path / "none.pth"}),
    ):
        with pytest.raises(UserError, match=words):
            make(tmp_path, monkeypatch, capsys, **settings)


GOOD = {"train": [0, 1, 2], "val": [3], "test": [5]}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"train": list(torch.tensor([0, 1, 2, 5]))}, "overlap"),  # numbers of a tensor are compared as numbers
        ({"train": torch.tensor([0, 1, 5])}, "overlap"),
        ({"train": [0, 0, 1]}, "names a trial twice"),
        ({"train": [0.5]}, r"splits\[0\]: train.0 is 0.5, expected a valid integer; the layout is"),
        ({"train": [True, False]}, "train.0 is True"),
        ({"train": torch.tensor([True, False])}, "train is tensor"),
        ({"train": torch.arange(3.0)}, "train is tensor"),
        ({"train": [torch.tensor(True)]}, "train.0 is tensor"),
        ({"train": torch.tensor([[0, 1], [2, 4]])}, r"train.0 is \[0, 1\]"),
        ({"train": torch.zeros(1, dtype=torch.int64).expand(10**12)}, "train is tensor"),
        ({"train": torch.eye(3).to_sparse()}, "neither a tensor nor a plain value"),
        ({"train": ["0"]}, "train.0 is '0'"),
        ({"train": {0: 1}}, "expected a valid list"),
        ({"train": None}, "train is None"),
        ({"train": [-1]}, "has index -1; the list of subject 1 has 6 trials"),
        ({"train": [2**70]}, "holds an integer of 71 bits"),
        ([], r"splits is \[\], List should have at least 1 item"),
        ([None], "splits.0 is None"),
        ("text", "splits is 'text'"),
        ([{"train": [0]}], r"splits\[0\]: lacks val; found 'train'"),
    ],
)
def test_indices_are_whole_numbers_and_named_once(tmp_path, content, said):
    path = tmp_path / "splits.pth"
    torch.save({"splits": [GOOD | content] if isinstance(content, dict) else content}, path)
    with pytest.raises(UserError, match=said):
        read_splits(path, [1] * 6, 1, "eeg.pth")


def test_indices_may_be_tensors(tmp_path):
    path = tmp_path / "splits.pth"
    torch.save({"splits": [GOOD | {"train": torch.tensor([0, 1]), "val": (2,), "test": list(torch.tensor([4]))}]}, path)
    assert read_splits(path, [1] * 6, 1, "eeg.pth")[0] == {"train": [0, 1], "val": [2], "test": [4]}
    torch.save({"splits": [{"train": list(np.arange(2)), "val": [np.int32(2)], "test": [np.int64(4)]}]}, path)
    assert read_splits(path, [1] * 6, 1, "eeg.pth")[0] == {"train": [0, 1], "val": [2], "test": [4]}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"about": [1, 2]}', r"splits.json: about is \[1, 2\], expected a valid string"),
        ("[1]", "expected a valid dictionary"),
        ("[" * 100_000, "cannot be read"),
        ("{", "cannot be read"),
        ("", "cannot be read"),
        (None, "is no plain file"),
    ],
)
def test_what_says_how_splits_were_made_is_read_in_bounds(tmp_path, text, said):
    experiment(tmp_path)
    torch.save({"splits": [GOOD]}, tmp_path / "splits.pth")
    about = tmp_path / "splits.json"
    about.mkdir() if text is None else about.write_text(text)
    with pytest.raises(UserError, match=said):
        open_trials(tmp_path / "eeg.pth", tmp_path / "splits.pth", subject=1, n_chans=2)
