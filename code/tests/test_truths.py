"""Worlds whose truth is known, from raw simulated EEG to the page, and their verdicts.

`pytest -m full -s code/tests/test_truths.py` runs simulate_eeg, stage B and stage C on each and prints the table (four
minutes of one core each). Their strengths were set with seeds 1 to 4; SEEDS were drawn on afterwards, once. The trials'
scores of that run are in truths.npz, on which `make test` tests how they are read; to renew it, copy what the full
test writes beside its runs.
"""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from dataset import open_trials
from design import design_from
from eval_folder import read_folder
from eval_metrics import instance_parts, item_scores
from eval_report import clock
from power import paired_power, power_of, within_class_power
from verdict import EEG_CONTROLS, ItemScores, score_table, verdict, within_class_p

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
        ("simulate_eeg.py", f"out={data}", "corpus_minutes=0", f"seed={SEEDS[name]}", *TRUTHS[name][0].split()),
        ("eeg_ldm.py", *given, "pretrain_mbm_path=none"),
        ("gen_eval_eeg.py", *given, "num_samples=1"),
    ):
        subprocess.run(
            [sys.executable, CODE / script, f"root_path={root}", *arguments],
            check=True, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    folder = root / "results" / "eval" / name
    assert "SIMULATED EEG" in (folder / "index.html").read_text()
    paths = [root / data / file for file in ("eeg_5_95_std.pth", "block_splits_by_image_single.pth")]
    return stored_scores(folder, *paths) | {"seconds": time.time() - started}


def stored_scores(folder: Path, signals: Path, splits: Path) -> dict[str, np.ndarray]:
    """All that the verdict is read from, of an evaluation folder."""
    truth, outcomes, _, _ = read_folder(folder)
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
        self.arrays = arrays
        rows = arrays["instances"]
        classes = [rows[rows[:, 0] == k, 1:] for k in np.unique(rows[:, 0])]
        self.parts = [(own[:, 1:][:, ~np.isnan(own[0, 1:])], own[:, 0].astype(int)) for own in classes]
        when = np.arange(len(arrays["order"]), dtype=float)
        self.design = design_from(arrays["order"], when, arrays["recording"])

    def differences(self) -> np.ndarray:
        """(3, n) of the real run's scores over each control's and the class prior's."""
        return self.arrays["real"] - np.stack([self.arrays[name] for name in (*EEG_CONTROLS, "prior")])

    def read(self, rows: np.ndarray | slice = slice(None), parts: list | None = None) -> dict:
        """The verdict by some of the trials (default: all) and some classes' retrieval, with its power."""
        parts = self.parts if parts is None else parts
        prior = self.arrays["prior"][rows]
        items = {
            run: {
                SCORE: ItemScores(self.arrays[run][None, rows].astype(np.float64), prior, 0.02, np.arange(len(prior)))
            }
            for run in ("real", *EEG_CONTROLS)
        }
        real = items.pop("real")
        scores, controls = score_table(real, items, "image")
        p = within_class_p(parts)
        found = verdict(SCORE, scores, controls, self.design, p)
        worst = max(controls[name][SCORE]["p_real_above"] for name in controls)
        value = scores[SCORE]["value"], np.concatenate([matrix[range(len(own)), own] for matrix, own in parts]).mean()
        return found | {"power": power_of(SCORE, real, items, parts), "p": (worst, p), "value": value}


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
    """A line a truth: how it was read, by what, and with which power."""
    heads = ("truth", "seed", "n", SCORE, "p", "power", "within class", "p", "power", "class", "instance", "seconds")
    lines = ["".join(f"{head:>14}" for head in heads)]
    for name, world in found.items():
        read, (n, power) = world.read(), (len(world.arrays["real"]), powers(found, name))
        cells = [name, SEEDS[name], n]
        for value, p, share in zip(read["value"], read["p"], power, strict=True):
            cells += [f"{value:.3f}", f"{p:.2g}", f"{share:.3f}"]
        cells += [read["class"].replace("explained_", ""), read["instance"], f"{seconds[name]:.0f}"]
        lines.append("".join(f"{cell:>14}" for cell in cells))
    return "\n".join(lines)


def powers(found: dict[str, World], name: str) -> tuple[float, float]:
    """Of the tests of class and instance at this truth's n: to see its own effect, or where it has none, that of the
    truth which has it (of "signal" the class, of "both" the instance)."""
    world, (_, about_class, about_instance) = found[name], TRUTHS[name]
    clear = world if about_class != ("nothing",) else found["signal"]
    single = world if about_instance == ("supported",) else found["both"]
    n = len(world.arrays["real"])
    return paired_power(clear.differences(), n), within_class_power(single.parts, len(world.parts))


@pytest.mark.full
def test_every_truth_is_read_as_what_it_is_from_raw_simulation_to_page(worlds):
    for name, (_, about_class, about_instance) in TRUTHS.items():
        read = worlds[name].read()
        assert read["class"] in about_class and read["instance"] in about_instance, (name, read)
        assert min(powers(worlds, name)) >= 0.9, name
