"""The table of models: what runs, what is shared, resumed, reported; what the page and the CSV say of differences."""

import csv
import os
import signal
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import commands.ablation.table as ablation_table
from commands import run_ablations
from commands.ablation.page import render_page
from commands.ablation.results import Difference, difference
from commands.ablation.table import STAGES, Table, chain, read_table
from runtime import checkpoints
from runtime.errors import UserError

TABLE = """
title: Made-up models
reference: full
about: [Some of this is <unknown>.]
prepare: {miniature: [python code/run.py simulate_eeg]}
presets:
  miniature:
    every: {validate_every: 3}
    large: {embed_dim: 32}
    gone: {eeg_signals_path: datasets/gone.pth}
rows:
  full: {about: all, paper: 45.8, use: [large], settings: {mask_ratio: 0.75}}
  no-clip: {about: no CLIP loss, use: [large], settings: {mask_ratio: 0.75, clip_weight: 0.0}}
  like-full: {about: as full, use: [large], settings: {mask_ratio: 0.75, finetune: A}}
  untrained: {about: no pretraining, paper: 32.3, pretrained: false, use: [large]}
"""
EEG, SPLITS = "datasets/miniature/eeg_5_95_std.pth", "datasets/miniature/block_splits_by_image_single.pth"
# Stands for all three stages, without their seconds of imports: a run folder as the real ones leave it, which they
# know again, and scores by what stage B was told
FAKE = """
import csv, hashlib, json, os, sys, time
from pathlib import Path
sys.path.insert(0, {code!r})
from config import FinetuneConfig, GenerateConfig, PretrainConfig, from_cli
from runtime.errors import UserError, cli

DATA = {{"eeg": {eeg!r}, "splits": {splits!r}}}

def main():
    cfg, root = from_cli({kind}), Path({root!r})
    folder, b = (root / "results" / kind / cfg.name for kind in ({folder!r}, "generation"))
    config = {{k: v for k, v in vars(cfg).items() if k not in ("overwrite", "root_path")}}
    if {stage!r} == "C":
        config["model_sha256"] = json.loads((b / "finished.json").read_text())["sha256"]
        config |= {{f"{{k}}_sha256": hashlib.sha256((root / v).read_bytes()).hexdigest() for k, v in DATA.items()}}
    if (folder / "config.yaml").exists():
        there = json.loads((folder / "config.yaml").read_text())
        if differ := [k for k in config if there[k] != config[k]]:
            raise UserError(f"{{folder}}: holds a run with another configuration ({{', '.join(differ)}})")
        if (folder / "finished.json").exists():
            print(folder, "is finished")
            return
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(json.dumps(config))
    with open(root / "calls.txt", "a") as calls:
        calls.write({stage!r} + " " + cfg.name + "\\n")
    with open(root / "gpus.txt", "a") as gpus:
        gpus.write(os.environ.get("CUDA_VISIBLE_DEVICES", "none") + "\\n")
    if (root / "slow").exists():
        time.sleep(60)
    if (root / ("fail " + cfg.name)).exists():
        raise UserError("the disk is full")
    if {stage!r} == "C":
        write(folder, json.loads((b / "config.yaml").read_text()))
    (folder / "finished.json").write_text(json.dumps({{"seconds": 12.3, "sha256": cfg.name}}))

def write(folder, b, n=40):
    hits = [float(i % 10 < (8 if b['clip_weight'] else 1)) for i in range(n)]
    hits[0] = hits[0] if b['finetune'] == "E+A" else 1 - hits[0]
    entry = {{"value": sum(hits) / n, "ci95": [0, 1], "chance": 0.02, "n": n, "unit": "image"}}
    scores = {{"50_way_top1": entry, "class_accuracy": entry | {{"chance": 0.25}}}}
    controls = {{"gaussian_eeg": {{"50_way_top1": entry | {{"value": 0.03}}}}}}
    baselines = {{"lda": {{"class_accuracy": entry | {{"value": 0.9}}}}}}
    about = {{"simulated": True, "band": [5, 95], "commit": "abc1234"}}
    content = {{"scores": scores, "controls": controls, "baselines": baselines, "run": about}}
    verdict = {{"class": "supported", "instance": "nothing", "design": "random", "score": "50_way_top1", "reasons": []}}
    content["verdict"] = verdict
    (folder / "metrics.json").write_text(json.dumps(content))
    columns = "trial position subject label wnid class_name class_index image onset recording seen_1".split()
    trials = [columns] + [[i, i, 4, 0, "n0", "kind", 0, i, "", "", ""] for i in range(n)]
    scores = [["trial", "50_way_top1", "class_accuracy"]] + [[i, hit, hit] for i, hit in enumerate(hits)]
    for name, rows in (("trials.csv", trials), ("scores.csv", scores)):
        with open(folder / name, "w", newline="") as file:
            csv.writer(file).writerows(rows)

cli(main)
"""


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A root whose data are there, a table beside it, and stages that take no time."""
    for stage, (kind, script, folder) in list(STAGES.items()):
        fake = tmp_path / f"fake_{stage}.py"
        about = {"kind": kind.__name__, "stage": stage, "folder": folder, "root": str(tmp_path)}
        about |= {"eeg": EEG, "splits": SPLITS, "code": str(script.parent)}
        fake.write_text(FAKE.format(**about))
        monkeypatch.setitem(ablation_table.STAGES, stage, (kind, fake, folder))
    for path in ("datasets/miniature/imageNet_images", "pretrains/miniature"):
        (tmp_path / path).mkdir(parents=True)
    write_eeg(tmp_path, 0.0)
    checkpoints.save(tmp_path / SPLITS, {"splits": []})
    (tmp_path / "table.yaml").write_text(TABLE)
    return tmp_path


def write_eeg(root, value):
    trial = {"eeg": torch.full((1, 2), value), "label": 0, "image": 0, "subject": 4}
    checkpoints.save(root / EEG, {"dataset": [trial], "labels": ["n1"], "images": ["n1_1"]})


def run(monkeypatch, root, *words):
    table = f"table={root / 'table.yaml'}"
    monkeypatch.setattr(sys, "argv", ["run", table, "preset=miniature", "name=t", f"root_path={root}", *words])
    run_ablations.main()


def calls(root) -> list[str]:
    """What the stages were called with, and forget it."""
    said = (root / "calls.txt").read_text().splitlines() if (root / "calls.txt").exists() else []
    (root / "calls.txt").write_text("")
    return said


def rows_of(root) -> dict[str, dict]:
    with open(root / "results/ablations/t/scores.csv", newline="") as file:
        return {row["row"]: row for row in csv.DictReader(file)}


def test_rows_share_stage_a_and_page_and_csv_tell_noise_from_difference(root, monkeypatch, capsys):
    run(monkeypatch, root, "workers=2")
    said = calls(root)
    assert said.count("A t-stage-a-large-mask_ratio0.75-seed2022") == 1 and len(said) == 1 + 4 + 4
    assert (
        "pretrain_mbm_path=pretrains/eeg_pretrain/t-stage-a-large-mask_ratio0.75-seed2022.pth"
        in capsys.readouterr().out
    )
    rows = rows_of(root)
    assert rows["full"]["50_way_top1"] == "0.8" and rows["full"]["paper_50_way_top1"] == "0.458"
    assert rows["no-clip"]["paper_50_way_top1"] == "" and rows["untrained"]["problem"] == ""
    assert float(rows["no-clip"]["difference"]) == pytest.approx(-0.7) and rows["no-clip"]["resolved"] == "True"
    assert float(rows["no-clip"]["p"]) == pytest.approx(3 * 2 / 10001, rel=0.01)  # three comparisons, two sides
    assert rows["like-full"]["resolved"] == rows["untrained"]["resolved"] == "False"
    expected = {"gaussian_eeg": "0.03", "other_trials_eeg": "", "lda_class_accuracy": "0.9", "band": "5 to 95 Hz"}
    expected |= {"commit": "abc1234", "design": "random", "50_way_top1_n": "40", "50_way_top1_each": "0.800"}
    assert rows["full"].items() >= expected.items()
    text = page(root)
    assert (
        "1 of 3 models differ from “full” by more than noise" in text
        and "One training of a model does not order the settings" in text
        and "the fewest are 1" in text
        and "on its sign" not in text  # of one seed, which agrees with itself
    )
    assert "miniature world alone" in text and "45.8 %" in text and "&lt;unknown&gt;" in text
    assert "http" not in text.replace("http-equiv", "")  # nothing is fetched


def test_finished_runs_say_so_and_other_seeds_are_added(root, monkeypatch, capsys):
    run(monkeypatch, root, "only=full")
    assert len(calls(root)) == 3 and rows_of(root)["no-clip"]["problem"] == "not run"
    run(monkeypatch, root, "only=full,no-clip", "seeds=2022,7")
    said = calls(root)
    assert len(said) == 3 + 4 and not [line for line in said if line.endswith("full-seed2022")]
    assert rows_of(root)["no-clip"]["seeds"] == "2022 7" and rows_of(root)["no-clip"]["problem"] == ""
    assert rows_of(root)["no-clip"]["difference_seeds"] == "2" and "all seeds agree on its sign" in page(root)
    assert "Two trainings of a model do not order" in page(root) and "the fewest are 2" in page(root)
    run(monkeypatch, root, "only=full,no-clip", "seeds=2022,7")
    assert calls(root) == [] and capsys.readouterr().out.count("seed7 is finished") == 5
    log = (root / "results/ablations/t/logs/t-full-seed7-B.log").read_text()
    assert log.count("is finished") == 1  # what the run itself said, first, is kept
    with pytest.raises(UserError, match="row full, seed 7: .*another configuration .controls"):
        run(monkeypatch, root, "only=full", "seeds=7", "controls=all")


def test_other_data_behind_the_same_names_are_noticed(root, monkeypatch):
    run(monkeypatch, root, "only=full")
    write_eeg(root, 1.0)
    with pytest.raises(UserError, match="row full, seed 2022: .*another configuration .eeg_sha256"):
        run(monkeypatch, root, "only=full")
    assert "eeg_sha256" in rows_of(root)["full"]["problem"] and rows_of(root)["full"]["class_accuracy"] == ""
    write_eeg(root, 0.0)
    run(monkeypatch, root, "only=full")
    checkpoints.save(root / SPLITS, {"splits": [{}]})
    with pytest.raises(UserError, match="another configuration .splits_sha256"):
        run(monkeypatch, root, "only=full")


def test_a_failing_row_is_reported_and_the_others_go_on(root, monkeypatch):
    (root / "fail t-no-clip-seed2022").touch()
    with pytest.raises(UserError, match="^row no-clip, seed 2022: the disk is full$"):
        run(monkeypatch, root)
    rows = rows_of(root)
    assert rows["no-clip"]["problem"] == "the disk is full" and rows["no-clip"]["50_way_top1"] == ""
    assert rows["untrained"]["50_way_top1"] == "0.8" and "the disk is full" in page(root)
    (root / "fail t-no-clip-seed2022").unlink()
    calls(root)
    run(monkeypatch, root)
    assert calls(root) == ["B t-no-clip-seed2022", "C t-no-clip-seed2022"]


def page(root) -> str:
    return " ".join((root / "results/ablations/t/index.html").read_text().split())


def test_a_failing_pretraining_fails_its_rows_alone(root, monkeypatch):
    (root / "fail t-stage-a-large-mask_ratio0.75-seed2022").touch()
    with pytest.raises(UserError, match="row full, .*disk is full; row no-clip, .*disk is full; row like-full"):
        run(monkeypatch, root)
    assert len(calls(root)) == 3 and rows_of(root)["untrained"]["50_way_top1"] == "0.8"


def test_a_row_whose_data_are_missing_says_so_and_runs_nothing(root, monkeypatch):
    (root / "table.yaml").write_text(
        TABLE.replace(
            "untrained: {about: no pretraining, paper: 32.3, pretrained: false, use: [large]",
            "band: {about: another band, use: [gone]",
        )
    )
    with pytest.raises(UserError, match=r"row band, seed 2022: missing: EEG of the trials .*gone.pth"):
        run(monkeypatch, root)
    assert not [line for line in calls(root) if "gone" in line or "band" in line]
    assert "gone.pth" in rows_of(root)["band"]["problem"] and "python code/run.py simulate_eeg" in page(root)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["only=ful"], "there is no row ful; the rows are full, no-clip"),
        (["seeds=one"], "expected numbers"),
        (["workers=0"], "workers=0: expected at least 1"),
        (["controls=some"], "controls=some: expected none or basic or all"),
        (["preset=paper"], "table.yaml is for miniature"),
        (["table=absent"], "absent.yaml: no such file; expected a table of ablations"),
    ],
)
def test_bad_settings_are_refused_before_anything_runs(root, monkeypatch, words, said):
    with pytest.raises(UserError, match=said):
        run(monkeypatch, root, *words)
    assert calls(root) == []


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("clip_weight: 0.0", "clip_wait: 0.0", "no stage has a setting clip_wait"),
        ("clip_weight: 0.0", "clip_weight: much", "clip_weight=much"),
        ("finetune: A", "finetune: A}, more: {", "Key 'more' not in 'Row'"),
        ("reference: full", "reference: fool", "reference fool is none of its rows"),
        ("use: [large], settings", "use: [huge], settings", "uses huge"),
        ("title: Made-up models", "titel: Made-up models", "Key 'titel' not in 'Table'"),
        ("title: Made-up models", "", "missing mandatory value: title"),
        (TABLE, "- a list", "is no table"),
        (TABLE, "title: [", "cannot be read as a table of ablations"),
    ],
)
def test_a_wrong_table_is_refused(root, monkeypatch, old, new, said):
    (root / "table.yaml").write_text(TABLE.replace(old, new))
    with pytest.raises(UserError, match=said):
        run(monkeypatch, root)


def test_each_worker_takes_a_gpu_of_its_own(root, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)  # the stages here look for none
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    run(monkeypatch, root, "workers=2", "only=untrained,full")
    assert set((root / "gpus.txt").read_text().split()) == {"4", "7"}


def test_a_stop_ends_the_running_stage_and_begins_no_other(root, monkeypatch, capsys):
    (root / "slow").touch()

    def stop():
        said = root / "calls.txt"
        while not (said.exists() and said.read_text()):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop).start()
    with pytest.raises(SystemExit, match="143"):
        run(monkeypatch, root)
    assert len(calls(root)) == 1 and "the same command resumes" in capsys.readouterr().out
    assert rows_of(root)["full"]["problem"] == "stopped"
    (root / "slow").unlink()
    run(monkeypatch, root)
    assert len(calls(root)) == 9


@pytest.mark.parametrize(
    ("seeds", "title", "told"),
    [
        ([3, 5], "2 of 2 models differ from “full” by more than noise.", "and all seeds agree on its sign"),
        ([3, 2], "noise of the trials. Two trainings of a model do not order the settings.", "and all seeds agree on"),
        ([3, 1], "noise of the trials. One training of a model does not", "where both rows have more than one seed"),
        ([1, 1], "noise of the trials. One training of a model does not", "the fewest are 1"),
        ([], "No model was compared with “full”, which has no score.", "full</strong>: the disk is full"),
    ],
)
def test_the_title_counts_the_seeds_that_compared_models_share(seeds, title, told):
    found = {f"row{i}": Difference(0.3, (0.2, 0.4), 0.01, True, n) for i, n in enumerate(seeds)}
    metrics = {"1": {"run": {}, "verdict": {"design": "random"}}} if seeds else {}
    full = SimpleNamespace(metrics=metrics, jobs=[], problem=lambda: "" if seeds else "the disk is full")
    table = Table("Made-up models", "full", {})
    entries = {"50_way_top1": {"full": {"n": 40} if seeds else None}}
    said = " ".join(render_page(table, {"full": full}, found, entries=entries, plots=[], recipes={}).split())
    assert title in said and told in said
    assert ("not order" in said) == (seeds not in ([3, 5], [])) and (min(seeds, default=3) < 3) == ("fewest" in said)
    assert seeds != [1, 1] or "on its sign" not in said  # one seed agrees with itself


def test_a_difference_is_resolved_by_many_trials_and_by_seeds_that_agree():
    random = np.random.default_rng(0)
    base = (random.random((2, 400)) < 0.5).astype(float)
    better = np.maximum(base, random.random((2, 400)) < 0.3)
    found = difference(better, base, 10)
    assert found.resolved and found.ci95[0] < found.value < found.ci95[1] and "resolved" in str(found)
    assert difference(base, better).value == -found.value
    noise = [difference(*(random.random((2, 1, 100)) < 0.5).astype(float)).resolved for _ in range(100)]
    assert sum(noise) <= 12  # 5 expected
    torn = np.stack([better[0], base[1] - 0.05])
    assert difference(torn, base).p < 0.05 and not difference(torn, base).resolved
    assert str(difference(base[:, :9], base[:, :9])) == "+0.0 (+0.0 to +0.0), p = 1, not resolved"


@pytest.mark.parametrize(("table", "pretrainings"), [("ablations", 5), ("bands", 4)])
@pytest.mark.parametrize("preset", ["miniature", "paper"])
def test_our_tables_give_command_lines_that_the_stages_take(table, pretrainings, preset):
    content, stage_a = read_table(table, preset), {}
    jobs = [chain([f"preset={preset}"], "t", row, "1", {"controls": "basic"}, stage_a) for row in content.rows.values()]
    assert len(stage_a) == (1 if (table, preset) == ("bands", "paper") else pretrainings)
    assert len({run[-1].name for run in jobs}) == len(jobs)
    for run_, row in zip(jobs, content.rows.values(), strict=True):
        assert (len(run_) == 3) == row.pretrained
    if table == "ablations":
        small = content.rows["untrained-small"]
        cfg = jobs[list(content.rows).index(small.name)][0].cfg
        assert cfg.pretrain_mbm_path == "none" and cfg.encoder_depth < jobs[0][0].cfg.depth
