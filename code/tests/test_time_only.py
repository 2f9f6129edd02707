"""Without onsets the order in the file stands in for time, and whatever is derived from it says so."""

import csv
import json

from test_stage_c import run, write_world

from runtime import checkpoints

WORDS = "order of the file, not verified"


def test_every_row_derived_from_the_order_of_the_file_says_so(tmp_path, monkeypatch, capsys):
    world = write_world(tmp_path)
    path = world / "datasets" / "eeg_5_95_std.pth"
    content = checkpoints.read_plain(path, "trials")
    trials = [{k: v for k, v in trial.items() if k != "onset"} for trial in content["dataset"]]
    checkpoints.save(path, {**content, "dataset": trials})
    folder = run(monkeypatch, world, num_samples=1)
    said, page = capsys.readouterr().out.splitlines(), (folder / "index.html").read_text()
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["run"]["split"]["order"] == metrics["baselines"]["time_only"]["class_accuracy"]["note"] == WORDS
    assert metrics["verdict"]["design"] == "unknown" and metrics["verdict"]["class"] != "supported"
    assert any("no onsets, so the order in time is unknown" in reason for reason in metrics["verdict"]["reasons"])
    rows = [line for line in said if "time alone" in line.lower() or "time_only" in line or "trial in time" in line]
    assert len(rows) >= 3 and all(WORDS in line for line in rows), rows
    assert page.count("<span>Time alone") == page.count(f"<span>Time alone ({WORDS})") > 0
    assert "seconds to the nearest training trial" not in page.lower()  # no figure over distances that none knows
    with open(folder / "trials.csv", newline="") as file:
        assert {(row["gap"], row["onset"]) for row in csv.DictReader(file)} == {("", "")}
