"""Draws, checkpoints and run folders."""

import argparse
import errno
import json
import shutil
from pathlib import Path

import pytest
import torch

from runtime import checkpoints, digests
from runtime.draws import StepBatches, randn, steps_per_epoch
from runtime.errors import UserError, cli
from runtime.runs import check_hand_on, hand_on, open_run


def test_draws_depend_on_every_argument_and_nothing_else():
    first = randn((3,), 1, "noise", 5)
    torch.manual_seed(99)
    assert torch.equal(first, randn((3,), 1, "noise", 5))
    for other in ((2, "noise", 5), (1, "crop", 5), (1, "noise", 6)):
        assert not torch.equal(first, randn((3,), *other))


@pytest.mark.parametrize(("accumulate", "world"), [(1, 1), (3, 1), (1, 2), (2, 2)])
def test_shares_of_a_step_make_up_the_global_batch(accumulate, world):
    whole = list(StepBatches(23, 4 * accumulate, 7, 0, 9))
    shares = [b for r in range(world) for b in StepBatches(23, 4, 7, 0, 9, accumulate=accumulate, rank=r, world=world)]
    for one in whole:
        mine = sorted((b for b in shares if b.step == one.step), key=lambda b: b.start)
        assert torch.equal(torch.cat([b.index for b in mine]), one.index)
        assert torch.equal(torch.cat([b.mine(torch.arange(b.total)) for b in mine]), torch.arange(one.total))
        # the weighted mean over shares is the plain mean over the batch
        means = sum(b.weight * b.index.double().mean() for b in mine) / (accumulate * world)
        assert means == pytest.approx(one.index.double().mean())


def test_a_batch_with_fewer_items_than_shares_counts_each_item_once():
    whole = list(StepBatches(9, 8, 7, 0, 4))
    for rank in range(3):
        shares = list(StepBatches(9, 4, 7, 0, 4, accumulate=2, rank=rank, world=3))
        assert [share.step for share in shares] == [0, 0, 1, 1, 2, 2, 3, 3]  # no process runs ahead
        assert all(len(share.index) for share in shares)
    for one in whole:
        parts = [b for r in range(3) for b in StepBatches(9, 4, 7, one.step, one.step + 1, 2, r, 3)]
        mean = sum(part.weight * part.index.double().mean() for part in parts) / len(parts)
        assert mean == pytest.approx(one.index.double().mean())


def test_each_epoch_visits_each_item_once_and_starting_late_changes_nothing():
    batches = list(StepBatches(10, 3, 0, 0, 8))
    for epoch in (batches[:4], batches[4:]):
        assert sorted(torch.cat([b.index for b in epoch]).tolist()) == list(range(10))
    late = list(StepBatches(10, 3, 0, 5, 8))
    assert all(torch.equal(a.index, b.index) and a.step == b.step for a, b in zip(batches[5:], late, strict=True))


def test_a_step_of_more_batches_than_an_epoch_is_refused():
    assert [steps_per_epoch(23, 5), steps_per_epoch(23, 5, 2), steps_per_epoch(23, 5, 5)] == [5, 3, 1]
    with pytest.raises(UserError, match="6: an epoch holds 5 batches"):
        steps_per_epoch(23, 5, 6)


def test_unreadable_checkpoints_are_named(tmp_path):
    good = tmp_path / "good.pth"
    checkpoints.save(good, {"format": "x-1", "t": torch.arange(1000)})
    assert torch.equal(checkpoints.load(good, ("x-1",), "thing")["t"], torch.arange(1000))
    (tmp_path / "cut.pth").write_bytes(good.read_bytes()[:700])
    (tmp_path / "page.pth").write_text("<html>sign in</html>")
    torch.save({"format": "x-1", "o": argparse.Namespace()}, tmp_path / "objects.pth")
    expected = {
        "cut.pth": "truncated", "page.pth": "cannot be read", "objects.pth": "never loaded", "none.pth": "no such file",
    }  # fmt: skip
    for name, words in expected.items():
        with pytest.raises(UserError, match=words):
            checkpoints.load(tmp_path / name, ("x-1",), "thing")
    with pytest.raises(UserError, match="expected a other thing"):
        checkpoints.load(good, ("y-1",), "other thing")


def test_a_full_disk_leaves_the_earlier_checkpoint_whole(tmp_path, monkeypatch):
    path = tmp_path / "last.pth"
    checkpoints.save(path, {"format": "x-1", "step": 1})

    def full(content, file):
        file.write(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match="No space left"):
        checkpoints.save(path, {"format": "x-1", "step": 2})
    monkeypatch.undo()
    assert checkpoints.load(path, ("x-1",), "thing")["step"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["last.pth"]


def test_a_run_folder_belongs_to_one_configuration(tmp_path):
    folder = tmp_path / "results" / "run"
    open_run(folder, {"lr": 3.0})  # never begun, so it binds nobody
    run = open_run(folder, {"lr": 1.0})
    assert not run.finished
    run.finish(seconds=1)
    assert open_run(folder, {"lr": 1.0}).finished
    with pytest.raises(UserError, match="lr: 1.0 there, 2.0 asked"):
        open_run(folder, {"lr": 2.0})
    for _ in range(3):
        assert not open_run(folder, {"lr": 2.0}, overwrite=True).finished
    assert len(list(folder.parent.iterdir())) == 4  # earlier runs were moved aside, not deleted


def test_handing_on_never_replaces_another_runs_checkpoint(tmp_path, monkeypatch):
    target = tmp_path / "pretrains" / "a.pth"
    one, two = (open_run(tmp_path / name, {}) for name in ("one", "two"))
    for run in (one, two):
        checkpoints.save(run.checkpoint, {"format": "x-1", "who": run.folder.name})
    digest = hand_on(one, target)
    assert digests.sha256(target) == digest
    hand_on(one, target)  # its own place
    monkeypatch.chdir(tmp_path)
    check_hand_on(Path("pretrains/a.pth"), open_run(Path("one"), {}))  # also by another spelling of it
    with pytest.raises(UserError, match="comes from"):
        check_hand_on(target, two)
    assert checkpoints.load(target, ("x-1",), "thing")["who"] == "one"


@pytest.mark.parametrize("named", ["results/kind/one", "../root/results/kind/one", "../../results/kind/one", "ROOT"])
def test_earlier_records_of_a_hand_on_are_understood(tmp_path, named):
    root = tmp_path / "root"
    target = root / "pretrains" / "kind" / "a.pth"
    one, two = (open_run(root / "results" / "kind" / name, {}) for name in ("one", "two"))
    checkpoints.save(one.checkpoint, {"format": "x-1"})
    hand_on(one, target)
    run = str(one.folder) if named == "ROOT" else named
    target.with_suffix(".json").write_text(json.dumps({"run": run, "sha256": "0"}))
    check_hand_on(target, one)
    with pytest.raises(UserError, match="comes from .*one, not from .*two"):
        check_hand_on(target, two)
    hand_on(one, target)
    shutil.move(root, tmp_path / "moved")  # the new record does not name the root
    check_hand_on(tmp_path / "moved/pretrains/kind/a.pth", open_run(tmp_path / "moved/results/kind/one", {}))


@pytest.mark.parametrize(
    ("raised", "status", "said"), [(UserError("a\n b"), 2, "error: a b\n"), (KeyboardInterrupt(), 130, "stopped\n")]
)
def test_a_script_ends_with_one_line(capsys, raised, status, said):
    def main():
        raise raised

    with pytest.raises(SystemExit) as end:
        cli(main)
    assert end.value.code == status and capsys.readouterr().err == said


def test_a_run_begun_before_a_setting_existed_goes_on_at_its_default(tmp_path):
    folder = tmp_path / "run"
    open_run(folder, {"lr": 1.0})
    (folder / "metrics.csv").write_text("epoch")
    open_run(folder, {"lr": 1.0, "compile": False})
    with pytest.raises(UserError, match="compile: False there, True asked"):
        open_run(folder, {"lr": 1.0, "compile": True})
