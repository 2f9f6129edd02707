"""The study of sampling steps: on a tiny world from command to page, and what it concludes from made-up scores."""

import csv
import json
import sys

import numpy as np
import pytest
import torch
from test_stage_c import arguments, write_world

from commands import study_steps
from dataset import Trials
from evaluation.inputs import Paths
from runtime import checkpoints
from runtime.errors import UserError
from runtime.system import About


def run(monkeypatch, world, **changed):
    """Run the script in this process; returns its folder."""
    monkeypatch.setattr(sys, "argv", ["study_steps.py", *arguments(world, **({"max_items": 3} | changed))])
    study_steps.main()
    return world / "results" / "studies" / changed.get("name", "tiny")


def test_the_study_runs_on_validation_trials_and_goes_on_where_it_stopped(monkeypatch, tmp_path):
    world = write_world(tmp_path)
    folder = run(monkeypatch, world, steps="2,5")
    found = json.loads((folder / "study.json").read_text())
    assert found["split"] == "val" and found["n"] == 3 and found["simulated"] and found["precision"] == "32"
    settings = [(row["sampler"], row["steps"]) for row in found["rows"]]
    assert settings == [
        ("plms", 2),
        ("plms", 5),
        ("plms", 250),
        *((s, n) for s in ("ddim", "dpm_solver") for n in (2, 5)),
    ]
    assert [row["forwards"] for row in found["rows"]] == [3, 6, 251, 2, 5, 2, 5]
    reference = found["rows"][2]["n_way"]
    assert reference["change"] == 0 and reference["change_ci95"] == [0, 0]
    rows = list(csv.DictReader((folder / "study.csv").open()))
    assert [float(row["n_way_value"]) for row in rows] == [row["n_way"]["value"] for row in found["rows"]]
    page = (folder / "index.html").read_text()
    assert (
        "SIMULATED" in page
        and "does not say on which trials it was trained" in page
        and found["conclusion"].split(":")[0] in page
        and page.count("<figure") == 6
    )
    kept = folder / "plms-250" / "test0-1.png"
    stamp = kept.stat().st_mtime_ns
    (folder / "ddim-2" / "test1-1.png").unlink()
    before = (folder / "study.csv").read_text()
    run(monkeypatch, world, steps="2,5")
    assert kept.stat().st_mtime_ns == stamp and (folder / "study.csv").read_text() == before
    with pytest.raises(UserError, match="another configuration"):
        run(monkeypatch, world, steps="2,5", split="test")
    manifest = world / "datasets" / "eeg_5_95_std.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"window": [0, 400]}))
    with pytest.raises(UserError, match="begun with other trials"):
        run(monkeypatch, world, steps="2,5")
    path = world / "datasets" / "block_splits_by_image_single.pth"
    split = checkpoints.read_plain(path, "splits")["splits"][0]
    checkpoints.save(path, {"splits": [split | {"train": split["train"][1:]}]})
    with pytest.raises(UserError, match="another configuration .splits_sha256"):
        run(monkeypatch, world, steps="2,5")


def test_trials_that_the_model_learned_from_are_refused():
    paths = Paths("model.pth", "eeg.pth", "splits.pth", None, "", "", "", "")
    two, info = torch.zeros(2, dtype=torch.int64), {"split": {"eeg_sha256": "a"}}
    place = torch.tensor([3, 4])
    trials = Trials(torch.zeros(2, 1, 4), two, two, two, place, None, None, ["n1_1"] * 2, ["n1"], info)

    def unseen(split, **positions):
        training = {"split": {"eeg_sha256": "a"}, "positions": positions}
        return study_steps.unseen(trials, split, About("model.pth", 64, training=training), paths)

    assert unseen("val", train=[1, 2], val=[3, 4]) == []  # they chose the epoch, as validation trials do
    with pytest.raises(UserError, match="1 of the 2 validation trials"):
        unseen("val", train=[1, 3], val=[9])
    with pytest.raises(UserError, match="2 of the 2 test trials"):
        unseen("test", train=[1, 2], val=[3, 4])
    assert "does not say" in study_steps.unseen(trials, "val", About("model.pth", 64), paths)[0]


def test_scores_are_named_by_the_classes_that_were_compared():
    rows = study_steps.study({("plms", 250): {"n_way": np.ones(4), "class_accuracy": np.ones(4)}}, 7, 3)
    content = {"rows": rows, "simulated": True, "split": "val", "n": 4, "ways": 7, "kinds": 3, "notes": []}
    page = study_steps.page(content | {"conclusion": study_steps.conclusion(rows)})
    assert page.count("7-way top-1") >= 2 and "50-way" not in page


def test_what_is_worse_is_told_from_what_is_not():
    truth = np.random.default_rng(0).random(200)
    found = {("plms", 250): truth, ("plms", 5): truth - 0.3, ("plms", 10): truth + 0.0, ("ddim", 5): truth + 0.1}
    found |= {("ddim", 10): truth - 0.2, ("ddim", 20): truth[::-1], ("dpm_solver", 5): truth - 0.2}
    rows = study_steps.study({k: {"n_way": v, "class_accuracy": v} for k, v in found.items()}, 50, 40)
    told = study_steps.conclusion(rows)
    assert "PLMS from 10 steps" in told and "DDIM from 20 steps" in told  # a worse setting above voids those below
    assert "DPM-Solver" not in told
    worse = next(row for row in rows if (row["sampler"], row["steps"]) == ("plms", 5))["n_way"]
    assert worse["change"] == pytest.approx(-0.3) and worse["p_lower"] < 0.01
    assert (rows[0]["n_way"]["chance"], rows[0]["class_accuracy"]["chance"]) == (1 / 50, 1 / 40)


@pytest.mark.parametrize(("steps", "said"), [("5,x", "expected numbers"), ("30", "25 and 40"), ("0", "steps")])
def test_impossible_steps_are_refused_before_any_work(steps, said):
    with pytest.raises(UserError, match=said):
        study_steps.asked(steps)
