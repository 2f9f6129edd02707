"""Training-side controls: what is shuffled and what stays, stretches of time as classes, and the stages on both."""

import json
import sys

import numpy as np
import pytest
import torch
from test_splits import experiment
from test_stage_c import run, write_world
from tiny_diffusion import stage_b_arguments

import eeg_ldm
from commands import make_control_data
from dataset import open_trials
from runtime import checkpoints
from runtime.errors import UserError


def make(monkeypatch, root, kind, **settings) -> dict:
    """Run the command on `root`; the trials it wrote, their splits and manifest."""
    values = {"root_path": root, "kind": kind, "eeg_signals_path": "eeg.pth", "splits_path": "s_all.pth"} | settings
    monkeypatch.setattr(sys, "argv", ["make_control_data.py", *(f"{k}={v}" for k, v in values.items())])
    make_control_data.main()
    folder = root / str(values.get("out") or f"datasets/{kind}")
    content = checkpoints.read_plain(folder / "eeg.pth", "trials")
    splits = checkpoints.read_plain(folder / "splits_all.pth", "splits")["splits"][0]
    return {**content, "splits": splits, "manifest": json.loads((folder / "eeg.json").read_text())}


def write_experiment(root, **kwargs) -> list[dict]:
    """Three subjects who saw 40 pictures class by class; every fifth trial is tested, every fifth validates."""
    trials = experiment(root, **kwargs)
    parts = {"train": [], "val": [], "test": []}
    for i in range(len(trials)):
        parts[("test", "val", "train", "train", "train")[i % 5]].append(i)
    checkpoints.save(root / "s_all.pth", {"splits": [parts]})
    return trials


@pytest.mark.parametrize("subject", [0, 2])
def test_labels_are_shuffled_in_training_and_validation_alone(tmp_path, monkeypatch, capsys, subject):
    trials = write_experiment(tmp_path)
    chosen = [i for i, t in enumerate(trials) if subject in (0, t["subject"])]
    made = make(monkeypatch, tmp_path, "shuffled_labels", subject=subject)
    assert len(made["dataset"]) == len(chosen) and made["manifest"]["control"]["design"][0] == "block"
    assert "CONTROL: the labels of the training trials were shuffled" in capsys.readouterr().out
    for name, part in made["splits"].items():
        pairs = [(trials[chosen[i]], made["dataset"][i]) for i in part]
        for old, new in pairs:
            assert torch.equal(old["eeg"], new["eeg"]) and new["image"] // 10 == new["label"]
            assert all(old[key] == new[key] for key in ("subject", "onset", "recording"))
        moved = [old["image"] != new["image"] for old, new in pairs]
        assert not any(moved) if name == "test" else np.mean(moved) > 0.8
        for who in {old["subject"] for old, _ in pairs}:  # each subject's pictures of a split stay in it
            before, after = (sorted(p[k]["image"] for p in pairs if p[0]["subject"] == who) for k in (0, 1))
            assert before == after


def test_another_seed_shuffles_otherwise_and_the_same_alike(tmp_path, monkeypatch):
    write_experiment(tmp_path)
    a, b, c = (
        [t["image"] for t in make(monkeypatch, tmp_path, "shuffled_labels", subject=1, seed=s, out=o)["dataset"]]
        for s, o in ((1, "a"), (1, "b"), (2, "c"))
    )
    assert a == b != c


@pytest.mark.parametrize("onset", [True, False])
def test_stretches_of_time_become_classes(tmp_path, monkeypatch, capsys, onset):
    trials = write_experiment(tmp_path, onset=onset)
    made = make(monkeypatch, tmp_path, "pseudo_categories", subject=0, out="blocks")
    said, control = capsys.readouterr().out, made["manifest"]["control"]
    assert [t["label"] for t in made["dataset"]] == [i // 10 for i in range(40)] * 3
    assert all(t["image"] // 10 == t["label"] for t in made["dataset"])
    assert all(torch.equal(a["eeg"], b["eeg"]) for a, b in zip(trials, made["dataset"], strict=True))
    assert ("order of the file, not verified" in said) != onset and control["about"] in said
    assert control["purity"] == 1.0 and "design block), so a stretch may be told by its true class too" in said
    for name, n in (("train", 8), ("val", 1), ("test", 1)):  # of the ten trials of each subject's stretches
        assert [made["dataset"][i]["label"] for i in made["splits"][name]] == np.repeat(range(4), n).tolist() * 3
    facts = open_trials(tmp_path / "blocks/eeg.pth", tmp_path / "blocks/splits_all.pth", 0, n_chans=2)["train"].info
    assert facts["split"]["shared"]["train/test"]["pictures"] == 0


def test_stretches_follow_time_not_the_file(tmp_path, monkeypatch):
    trials = write_experiment(tmp_path)
    order = np.random.default_rng(0).permutation(len(trials))
    content = checkpoints.read_plain(tmp_path / "eeg.pth", "trials")
    shuffled = [{**content["dataset"][i], "label": i % 4, "image": i % 4 * 10 + i % 10} for i in order.tolist()]
    checkpoints.save(tmp_path / "eeg.pth", content | {"dataset": shuffled})
    made = make(monkeypatch, tmp_path, "pseudo_categories", subject=3)
    dataset, about = made["dataset"], made["manifest"]["control"]
    tapes = list(dict.fromkeys(t["recording"] for t in dataset))  # as they first appear in the file
    in_time = sorted(dataset, key=lambda t: (tapes.index(t["recording"]), t["onset"]))
    assert [t["label"] for t in in_time] == np.repeat(range(4), 10).tolist()
    assert about["order"] == "in order of onset" and about["purity"] < 0.5 and about["stretches_over_recordings"] == 0


def test_recordings_follow_the_file_not_their_names_and_no_splits_are_needed(tmp_path, monkeypatch, capsys):
    """Ten recordings of four trials, named 1 to 10; four stretches of ten trials span them."""
    write_experiment(tmp_path)
    content = checkpoints.read_plain(tmp_path / "eeg.pth", "trials")
    mine = [t for t in content["dataset"] if t["subject"] == 1]
    dataset = [t | {"recording": str(i // 4 + 1), "onset": float(i % 4)} for i, t in enumerate(mine)]
    checkpoints.save(tmp_path / "eeg.pth", content | {"dataset": dataset})
    made = make(monkeypatch, tmp_path, "pseudo_categories", subject=1, splits_path="absent.pth")
    assert [t["label"] for t in made["dataset"]] == np.repeat(range(4), 10).tolist()
    assert "4 of 4 stretches span recordings, taken in the order of the file" in capsys.readouterr().out
    assert list(made["manifest"]["control"]["made_of"]) == ["eeg_sha256"]


def test_what_cannot_be_made_is_said(tmp_path, monkeypatch):
    write_experiment(tmp_path)
    with pytest.raises(UserError, match="kind=labels: expected shuffled_labels or pseudo_categories"):
        make(monkeypatch, tmp_path, "labels")
    with pytest.raises(UserError, match=r"no trial of subject 7; it holds \[1, 2, 3\]"):
        make(monkeypatch, tmp_path, "shuffled_labels", subject=7)
    make(monkeypatch, tmp_path, "shuffled_labels", subject=1)
    with pytest.raises(UserError, match="is there already; give another folder"):
        make(monkeypatch, tmp_path, "shuffled_labels", subject=1)
    content = checkpoints.read_plain(tmp_path / "eeg.pth", "trials")
    checkpoints.save(tmp_path / "eeg.pth", content | {"dataset": content["dataset"][:8]})
    checkpoints.save(tmp_path / "s_all.pth", {"splits": [{"train": [0, 1, 2], "val": [3], "test": [4]}]})
    with pytest.raises(UserError, match="two classes and three of both are needed"):
        make(monkeypatch, tmp_path, "pseudo_categories", subject=1)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("shuffled_labels", "CONTROL: the labels of the training trials were shuffled"),
        ("pseudo_categories", "CONTROL: the classes of these trials are 2 stretches of time"),
    ],
)
def test_the_stages_run_on_it_and_say_so(tmp_path, monkeypatch, capsys, kind, words):
    """The real commands at toy size; run record, page and terminal name the control."""
    world = write_world(tmp_path)
    given = {"eeg_signals_path": "datasets/eeg_5_95_std.pth", "out": f"datasets/{kind}", "subject": 4}
    make(monkeypatch, world, kind, **given, splits_path="datasets/block_splits_by_image_single.pth")
    data = {"eeg_signals_path": f"datasets/{kind}/eeg.pth", "splits_path": f"datasets/{kind}/splits_all.pth"}
    arguments = stage_b_arguments(
        world, **data, name=kind, num_epoch=1, pretrain_mbm_path="pretrains/eeg_pretrain/tiny.pth"
    )
    monkeypatch.setattr(sys, "argv", ["eeg_ldm.py", *arguments])
    capsys.readouterr()
    eeg_ldm.main()
    assert words in capsys.readouterr().out
    folder = run(monkeypatch, world, **data, name=kind, num_samples=1)
    metrics, page = json.loads((folder / "metrics.json").read_text()), (folder / "index.html").read_text()
    assert metrics["run"]["control"]["kind"] == kind and metrics["verdict"]["class"] == "nothing"
    assert words in page and words in capsys.readouterr().out and words in " ".join(metrics["verdict"]["reasons"])
    assert any("does not say that it saw none" in note for note in metrics["run"]["notes"])  # stage A
    assert metrics["verdict"]["design"] == {"shuffled_labels": "random", "pseudo_categories": "block"}[kind]
