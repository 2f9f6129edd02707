"""Worlds whose truth is known, from raw simulated EEG to the page, and their verdicts.

`pytest -m full -s code/tests/test_truths.py` runs simulate_eeg, stage B and stage C on each and prints the table (four
minutes of one core each). Their strengths were set with seeds 1 to 4; SEEDS were drawn on afterwards, once. The trials'
scores of that run are in truths.npz, on which `make test` tests how they are read; to renew it, copy what the full
test writes beside its runs.
"""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from made_up_eval import CLEAN

from dataset import open_trials
from evaluation.baselines import clock
from evaluation.block_design import design_from
from evaluation.folder import read_folder
from evaluation.scores import instance_parts, item_scores
from evaluation.statistics import EEG_CONTROLS, ItemScores, score_table, within_class_p
from evaluation.verdict import verdict

CODE = Path(__file__).parents[1]
SCORE = "50_way_top1"
STORED = Path(__file__).with_name("truths.npz")
# what is simulated, what the class's verdict must be, what the instance's (both are true of weak single pictures)
TRUTHS = {
    "signal": ("design=random", ("supported",), ("supported", "nothing")),
    "drift": ("design=block signal=0", ("explained_by_time",), ("nothing",)),
    "noise": ("signal=0 drift=0", ("nothing",), ("nothing",)),
    "both": ("design=block signal=2 instance=1.5", ("explained_by_time",), ("supported",)),
}
SEEDS = dict(zip(TRUTHS, (101, 102, 103, 104), strict=True))


def run_stages(name: str, root: Path) -> dict:
    """Simulate, train, evaluate; what the trials scored, by name, and the seconds."""
    started, data = time.time(), f"datasets/{name}"
    given = ["preset=miniature", f"name={name}", "device=cpu", f"imagenet_path={data}/imageNet_images"]
    given += [f"eeg_signals_path={data}/eeg_5_95_std.pth", f"splits_path={data}/block_splits_by_image_single.pth"]
    for script, *arguments in (
        ("run.py", "simulate_eeg", f"out={data}", "corpus_minutes=0", f"seed={SEEDS[name]}", *TRUTHS[name][0].split()),
        ("eeg_ldm.py", *given, "pretrain_mbm_path=none"),
        ("gen_eval_eeg.py", *given, "num_samples=1"),
    ):
        subprocess.run(
            [sys.executable, CODE / script, *arguments, f"root_path={root}"],
            check=True, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    folder = root / "results" / "eval" / name
    assert "SIMULATED EEG" in (folder / "index.html").read_text()
    paths = [root / data / file for file in ("eeg_5_95_std.pth", "block_splits_by_image_single.pth")]
    scores, judged = stored_scores(folder, *paths), json.loads((folder / "metrics.json").read_text())["verdict"]
    read = World(scores).read()
    assert all(read[key] == judged[key] for key in ("class", "instance", "design"))
    return scores | {"seconds": time.time() - started}


def stored_scores(folder: Path, signals: Path, splits: Path) -> dict[str, np.ndarray]:
    """All that the verdict is read from, of an evaluation folder."""
    truth, outcomes, *_ = read_folder(folder)
    items = {run: item_scores(outcome, truth)[SCORE] for run, outcome in outcomes.items()}
    kept = {run: items[run].samples[0] for run in ("real", *EEG_CONTROLS)}
    parts = instance_parts(outcomes["real"], truth)
    width = max(len(matrix.T) for matrix, _ in parts)
    kept["instances"] = np.concatenate([  # which class, own image, score with each of its images
        np.column_stack([np.full(len(own), k), own, matrix, np.full((len(own), width - len(matrix.T)), np.nan)])
        for k, (matrix, own) in enumerate(parts)
    ])  # fmt: skip
    trials = open_trials(signals, splits, splits=("train", "test"))
    time, tape = (np.concatenate(both) for both in zip(*(clock(trials[s]) for s in ("train", "test")), strict=True))
    order = np.lexsort((time, tape))
    label = np.concatenate([trials[s].label.numpy() for s in ("train", "test")])[order].astype(np.uint8)
    tapes = np.unique(tape[order], return_inverse=True)[1].astype(np.uint8)
    return kept | {"prior": items["real"].prior, "order": label, "recording": tapes}


class World:
    """One truth's trials, and how they are read."""

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        self.arrays, rows = arrays, arrays["instances"]
        classes = [rows[rows[:, 0] == k, 1:] for k in np.unique(rows[:, 0])]
        self.parts = [(own[:, 1:][:, ~np.isnan(own[0, 1:])], own[:, 0].astype(int)) for own in classes]

    def read(self, timed: bool = True, split: dict | None = None) -> dict:
        """The verdict, with the deciding p of class and instance, and their mean scores.

        timed: onsets are known; split: what the splits share.
        """
        label, tape = self.arrays["order"], self.arrays["recording"]
        design = design_from(label, np.arange(len(label), dtype=float) if timed else None, tape)
        prior, trial = self.arrays["prior"], np.arange(len(self.arrays["real"]))
        items = {
            run: {SCORE: ItemScores(self.arrays[run][None], prior, 0.02, trial)} for run in ("real", *EEG_CONTROLS)
        }
        scores, controls = score_table(items.pop("real"), items, "image")
        p = max(found[SCORE]["p_real_above"] for found in controls.values()), within_class_p(self.parts)
        single = np.concatenate([matrix[range(len(own)), own] for matrix, own in self.parts])
        values = scores[SCORE]["value"], single.mean()
        return verdict(SCORE, scores, controls, design, p[1], CLEAN | (split or {})) | {"p": p, "values": values}

    def weakened(self, nothing: "World", share: float) -> "World":
        """A share of this world's trials, and of its classes' retrieval; the others are those of a world of noise."""
        n = min(len(self.arrays["real"]), len(nothing.arrays["real"]))
        kept = np.random.default_rng(0).permutation(n) < share * n
        made = {
            key: np.where(kept, self.arrays[key][:n], nothing.arrays[key][:n])
            for key in ("real", *EEG_CONTROLS, "prior")
        }
        own, other = self.arrays["instances"], nothing.arrays["instances"]
        edge = share * len(self.parts)
        made["instances"] = np.concatenate([own[own[:, 0] < edge], other[other[:, 0] >= edge]])
        return World(self.arrays | made)


@pytest.fixture(scope="module")
def worlds(tmp_path_factory) -> dict[str, World]:
    """Every truth run anew, one at a time on each core at hand; its trials' scores and a table are left behind."""
    root = tmp_path_factory.mktemp("truths")
    (root / "pretrains").mkdir()
    (root / "pretrains" / "miniature").symlink_to(CODE.parent / "pretrains" / "miniature")
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        runs = dict(zip(TRUTHS, pool.map(lambda name: run_stages(name, root), TRUTHS), strict=True))
    seconds = {name: run.pop("seconds") for name, run in runs.items()}
    np.savez_compressed(
        root / STORED.name, **{f"{name}.{key}": array for name, run in runs.items() for key, array in run.items()}
    )
    found = {name: World(run) for name, run in runs.items()}
    print(f"\n{root / STORED.name}\n" + report(found, seconds))
    return found


def report(found: dict[str, World], seconds: dict[str, float]) -> str:
    """A line a truth: how it was read, and by what."""
    heads = ("truth", "seed", "n", SCORE, "p", "within class", "p", "class", "instance", "seconds")
    lines = ["".join(f"{head:>14}" for head in heads)]
    for name, world in found.items():
        read, cells = world.read(), [name, SEEDS[name], len(world.arrays["real"])]
        for value, p in zip(read["values"], read["p"], strict=True):
            cells += [f"{value:.3f}", f"{p:.2g}"]
        cells += [read["class"].replace("explained_", ""), read["instance"], f"{seconds[name]:.0f}"]
        lines.append("".join(f"{cell:>14}" for cell in cells))
    return "\n".join(lines)


def read_rightly(found: dict[str, World], name: str) -> None:
    """Raises AssertionError where a truth is not read as what it is."""
    _, about_class, about_instance = TRUTHS[name]
    read = found[name].read()
    assert len(found[name].arrays["real"]) > 150
    assert read["class"] in about_class and read["instance"] in about_instance, (name, read)


@pytest.mark.full
def test_every_truth_is_read_as_what_it_is_from_raw_simulation_to_page(worlds):
    for name in TRUTHS:
        read_rightly(worlds, name)


@pytest.fixture(scope="module")
def stored() -> dict[str, World]:
    with np.load(STORED) as file:
        arrays = {key: file[key] for key in file}
    return {
        name: World({key.partition(".")[2]: a for key, a in arrays.items() if key.startswith(f"{name}.")})
        for name in TRUTHS
    }


@pytest.mark.parametrize("name", TRUTHS)
def test_stored_trials_of_every_truth_are_read_as_what_they_are(stored, name):
    read_rightly(stored, name)


@pytest.mark.parametrize("name", ["signal", "drift", "both"])
def test_a_weaker_truth_may_give_nothing_but_no_wrong_supported(stored, name):
    _, about_class, about_instance = TRUTHS[name]
    found = [stored[name].weakened(stored["noise"], share).read() for share in (0, 0.05, 0.1, 0.4, 1)]
    assert {read["class"] for read in found} == {"nothing", *about_class}
    assert {read["instance"] for read in found} <= {"nothing", *about_instance}
    assert (found[0]["class"], found[0]["instance"]) == ("nothing", "nothing")
    order = [read["class"] == "nothing" for read in found]
    assert order == sorted(order, reverse=True), "once there is enough of it, more does not hide it"


@pytest.mark.parametrize("name", TRUTHS)
def test_without_onsets_no_class_is_supported(stored, name):
    read = stored[name].read(timed=False)
    assert read["class"] == stored[name].read()["class"].replace("supported", "explained_by_time")
    assert read["design"] == {"signal": "unknown", "noise": "unknown"}.get(name, "block")
    assert "not verified: no onsets" in " ".join(read["reasons"]) or "no onsets, so" in " ".join(read["reasons"])


@pytest.mark.parametrize("name", TRUTHS)
def test_no_truth_is_claimed_where_test_trials_repeat_others(stored, name):
    n = len(stored[name].arrays["real"])
    found = {
        "trials": n,
        "identical": 0,
        "alike": 1,
        "overlapping": 0,
        "repeated": 1,
        "examples": ["trial 9 that of 3"],
    }
    read = stored[name].read(split={"same_eeg": {"test": found}})
    assert (read["class"], read["instance"], read["design"]) == ("nothing", "nothing", "leaking")
    untouched = stored[name].read(split={"same_eeg": {"test": found | {"alike": 0, "repeated": 0}}})
    assert untouched == stored[name].read()
