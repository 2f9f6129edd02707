"""Stages killed at random instants, saves included: nothing is lost, and the same command ends as if nothing was."""

import random
import shutil
import time
from pathlib import Path
from typing import NamedTuple

import kills
import numpy as np
import pytest
import test_stage_a
import test_stage_c
from tiny_diffusion import stage_b_arguments

SEED = 20261128


class Stage(NamedTuple):
    """A command on the tiny world, and where it works."""

    script: str
    words: list[str]
    folder: Path
    handed_on: Path | None


def stage(letter: str, root: Path) -> Stage:
    if letter == "A":
        words = [f"root_path={root}", *test_stage_a.SMALL, "device=cpu", "name=a", "validate_every=1"]
        kind, script, name = "eeg_pretrain", "stageA1_eeg_pretrain", "a"
    elif letter == "B":
        words = stage_b_arguments(root, name="b", num_epoch=3, pretrain_mbm_path="pretrains/eeg_pretrain/tiny.pth")
        kind, script, name = "generation", "eeg_ldm", "b"
    else:
        words = test_stage_c.arguments(root, name="c", model_path="pretrains/generation/tiny.pth")
        kind, script, name = "eval", "gen_eval_eeg", "c"
    handed_on = None if letter == "C" else root / f"pretrains/{kind}/{name}.pth"
    return Stage(script, words, root / f"results/{kind}/{name}", handed_on)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Everything that the three stages read; the folder is copied for each kill."""
    root = test_stage_c.write_world(tmp_path_factory.mktemp("world"))
    (root / "eeg").mkdir()
    for i, (n_chans, n_times) in enumerate([(4, 300), (6, 448), (8, 200), (6, 40), (6, 500), (6, 130)]):
        np.save(root / "eeg" / f"{i}.npy", test_stage_a.slow_waves(n_chans, n_times, i))
    return root


def kill_and_finish(world: Path, tmp_path: Path, letter: str, n_kills: int, n_processes: int = 1) -> None:
    """Kill one command `n_kills` times, in one to three blows before it may finish; compare with one left in peace."""
    draw, log = random.Random(f"{SEED} {letter} {n_processes}"), tmp_path / "logs"

    def copied() -> Stage:
        shutil.rmtree(tmp_path / "root", ignore_errors=True)
        return stage(letter, shutil.copytree(world, tmp_path / "root"))

    script, words, folder, handed_on = copied()
    started = time.monotonic()
    codes, said = kills.run(script, words, log, world=n_processes)
    assert not any(codes), said
    seconds, wanted = time.monotonic() - started, kills.outcome(folder, handed_on)
    writes = len((log / "writes-0").read_text().splitlines())
    blows, in_vain = 0, 0
    while blows < n_kills:
        copied()
        moments = [kills.moment(draw, seconds, writes) for _ in range(draw.choice([1, 1, 2, 3]))]
        for ends in moments:
            codes, said = kills.run(script, words, log, ends, n_processes)
            assert -9 in codes or not any(codes), f"{ends}: {codes} {said}"  # its twin may end by itself
            blows, in_vain = blows + (-9 in codes), in_vain + (-9 not in codes)
        told = " and ".join(map(str, moments))
        codes, said = kills.run(script, words, log, world=n_processes)
        assert not any(codes), f"killed {told}: {said}"
        assert kills.outcome(folder, handed_on) == wanted, f"killed {told}: another outcome"
    print(f"stage {letter}, {n_processes} process(es): {blows} kills, {in_vain} came too late; every outcome exact")


@pytest.mark.parametrize("letter", ["A", "B", "C"])
def test_a_killed_stage_ends_as_if_nothing_was(world, tmp_path, letter):
    kill_and_finish(world, tmp_path, letter, 1)


@pytest.mark.full
@pytest.mark.parametrize(("letter", "n_kills", "n_processes"), [
    ("A", 32, 1), ("B", 32, 1), ("C", 20, 1), ("A", 8, 2), ("B", 8, 2),
])  # fmt: skip
def test_a_hundred_kills_lose_nothing(world, tmp_path, letter, n_kills, n_processes):
    kill_and_finish(world, tmp_path, letter, n_kills, n_processes)
