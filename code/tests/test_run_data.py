"""A run is its settings and its data: what was exchanged between stop and resume, or while it trained, is named."""

import errno
import json
import os
import shutil
import sys
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from test_stage_a import SMALL, slow_waves
from test_stage_c import arguments, write_world
from tiny_diffusion import stage_b_arguments

import eeg_ldm
import gen_eval_eeg
import stageA1_eeg_pretrain as stage_a
from data import stimuli
from dataset import EEGWindows
from dc_ldm.ldm_for_eeg import LatentTrials
from runtime import atomic, checkpoints, digests
from runtime.errors import UserError

FOLDERS = {"A": "results/eeg_pretrain/a", "B": "results/generation/b", "C": "results/eval/c"}
HANDED_ON = {"A": "pretrains/eeg_pretrain/a.pth", "B": "pretrains/generation/b.pth"}


def run(letter: str, root: Path, *more: str) -> None:
    words = {
        "A": [f"root_path={root}", *SMALL, "device=cpu", "name=a", "num_epoch=2", "validate_every=1"],
        "B": stage_b_arguments(root, name="b", num_samples=1, pretrain_mbm_path="pretrains/eeg_pretrain/tiny.pth"),
        "C": arguments(root, name="c", model_path="pretrains/generation/tiny.pth", num_samples=1, controls="none"),
    }
    script = {"A": stage_a, "B": eeg_ldm, "C": gen_eval_eeg}[letter]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["stage", *words[letter], *more])
        script.main()


class Stop(Exception):
    pass


def stopped(letter: str, root: Path) -> None:
    """A run that ends, as by a crash, in its second epoch; stage C's after its first pictures."""

    def crash(*_, **__):
        raise Stop

    whole = {items: items.__getitem__ for items in (EEGWindows, LatentTrials)}

    def get(self, batch):
        return whole[type(self)](self, batch) if batch.step < (5 if letter == "A" else 2) else crash()

    with pytest.MonkeyPatch.context() as patch:
        for items in whole:
            patch.setattr(items, "__getitem__", get)
        patch.setattr(gen_eval_eeg, "score", crash)
        with pytest.raises(Stop):
            run(letter, root)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """All that the stages read, and their runs: stopped by a crash, and in `whole` not stopped."""
    root = write_world(tmp_path_factory.mktemp("world"))
    (root / "eeg").mkdir()
    for i in range(6):
        np.save(root / "eeg" / f"{i}.npy", slow_waves(6, 300, i))
    whole = shutil.copytree(root, root.with_name("whole"))
    for letter in "ABC":
        run(letter, whole)
        stopped(letter, root)
    return root


@pytest.fixture
def copy(world, tmp_path):
    return shutil.copytree(world, tmp_path / "root")


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")  # held to the process's end
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def equal(one: Path, other: Path) -> bool:
    a, b = (torch.load(path, weights_only=True)["model"] for path in (one, other))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def resave(path: Path, change) -> None:
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)


def scaled(path: Path) -> None:
    save_file({name: value * 1.5 for name, value in load_file(path).items()}, path)


def in_place(path: Path) -> None:
    """Other samples, in a file of the same size and time of change."""
    status, content = path.stat(), bytearray(path.read_bytes())
    content[-64:] = bytes(reversed(content[-64:]))
    with open(path, "r+b") as file:
        file.write(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def other_splits(root: Path) -> None:
    parts = {"train": list(range(12, 24)), "val": list(range(8, 12)), "test": list(range(8))}
    torch.save({"splits": [parts]}, root / "datasets/block_splits_by_image_single.pth")


def other_eeg(root: Path) -> None:
    resave(root / "datasets/eeg_5_95_std.pth", lambda c: [d.update(eeg=-d["eeg"]) for d in c["dataset"]])


def other_stage_a(root: Path) -> None:
    path = root / "pretrains/eeg_pretrain/tiny.pth"
    resave(path, lambda c: c.update(model={name: value + 1 for name, value in c["model"].items()}))


def other_picture(root: Path) -> None:
    path = stimuli.image_path(root / "datasets/imageNet_images", "n00000001_3")
    Image.new("RGB", (40, 48), (9, 9, 200)).save(path)


EXCHANGES = {
    "A recording": ("A", lambda root: np.save(root / "eeg/2.npy", slow_waves(6, 300, 9)), r"recording 2.npy \(changed"),
    "A in place": ("A", lambda root: in_place(root / "eeg/4.npy"), r"recording 4.npy \(changed"),
    "A more": ("A", lambda root: np.save(root / "eeg/new.npy", slow_waves(6, 300, 9)), r"recording new.npy \(new"),
    "A less": ("A", lambda root: (root / "eeg/0.npy").unlink(), r"recording 0.npy \(missing"),
    "A manifest": ("A", lambda root: (root / "eeg/manifest.json").write_text("{}"), r"manifest.json \(new"),
    "B splits": ("B", other_splits, r"splits \(changed"),
    "B EEG": ("B", other_eeg, r"EEG \(changed"),
    "B EEG in place": ("B", lambda root: in_place(root / "datasets/eeg_5_95_std.pth"), r"EEG \(changed"),
    "B manifest": (
        "B", lambda root: (root / "datasets/eeg_5_95_std.json").write_text('{"window": [30, 400]}'),
        r"manifest eeg_5_95_std.json \(changed",
    ),
    "B stage A": ("B", other_stage_a, r"stage A file \(changed"),
    "B base": ("B", lambda root: scaled(root / "pretrains/models/v1-5-pruned.safetensors"), r"Stable Diffusion \(cha"),
    "B sizes": (
        "B", lambda root: (root / "pretrains/models/config15.yaml").open("a").write("\n"), r"config15.yaml \(changed",
    ),
    "B CLIP": ("B", lambda root: scaled(root / "pretrains/clip/model.safetensors"), r"CLIP model.safetensors \(cha"),
    "B picture": ("B", other_picture, r"picture n00000001_3 \(changed"),
    "C picture": ("C", other_picture, r"picture n00000001_3 \(changed"),
    "C classifier": ("C", lambda root: scaled(root / "classifier/model.safetensors"), r"classifier model.safete"),
    "C base": ("C", lambda root: scaled(root / "pretrains/models/v1-5-pruned.safetensors"), r"Stable Diffusion \(cha"),
    "C CLIP": ("C", lambda root: scaled(root / "pretrains/clip/model.safetensors"), r"CLIP model.safetensors \(cha"),
    "C splits": ("C", other_splits, "splits_sha256"),
}  # fmt: skip


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_data_that_were_exchanged_are_named_before_any_work(copy, exchange):
    letter, change, said = EXCHANGES[exchange]
    change(copy)
    before = contents(copy / FOLDERS[letter])
    with pytest.raises(UserError, match=said) as refused:
        run(letter, copy)
    assert "\n" not in str(refused.value) and "overwrite=true" in str(refused.value)
    assert contents(copy / FOLDERS[letter]) == before


def test_a_finished_run_is_finished_with_its_data_alone_but_they_may_be_gone(world, tmp_path, capsys):
    root = shutil.copytree(world.with_name("whole"), tmp_path / "root")
    for letter, more in (("A", root / "eeg/0.npy"), ("B", root / "pretrains/eeg_pretrain/tiny.pth")):
        more.unlink()
        run(letter, root)
        assert "is finished" in capsys.readouterr().out
    scaled(root / "pretrains/models/v1-5-pruned.safetensors")
    with pytest.raises(UserError, match="Stable Diffusion"):
        run("B", root)
    run("B", root, "overwrite=true", "pretrain_mbm_path=none", "encoder_embed_dim=16", "encoder_depth=1", "num_epoch=1")


@pytest.mark.parametrize("letter", ["A", "B"])
def test_a_run_of_an_earlier_version_goes_on_and_is_told_that_its_data_are_unknown(world, copy, capsys, letter):
    (copy / FOLDERS[letter] / "inputs.json").unlink()
    run(letter, copy)
    assert "recorded no hashes of what it read then" in capsys.readouterr().out
    assert equal(copy / HANDED_ON[letter], world.with_name("whole") / HANDED_ON[letter])
    assert not (copy / FOLDERS[letter] / "inputs.json").exists()
    run(letter, copy)
    printed = capsys.readouterr().out
    assert "recorded no hashes" in printed and "is finished" in printed


@pytest.mark.parametrize("letter", ["A", "B", "C"])
def test_what_was_stopped_goes_on_with_the_same_data(world, copy, letter):
    moved = copy.rename(copy.with_name("moved"))  # with all its data
    run(letter, moved)
    if letter == "C":
        one, other = (contents(root / FOLDERS["C"] / "samples") for root in (moved, world.with_name("whole")))
        assert one == other
    else:
        assert equal(moved / HANDED_ON[letter], world.with_name("whole") / HANDED_ON[letter])
        tables = [(root / FOLDERS[letter] / "metrics.csv").read_text() for root in (moved, world.with_name("whole"))]
        assert tables[0] == tables[1]
    recorded = json.loads((moved / FOLDERS[letter] / "inputs.json").read_text())
    assert recorded == json.loads((world / FOLDERS[letter] / "inputs.json").read_text())


def test_a_checkpoint_says_what_its_training_began_with(world, tmp_path, monkeypatch):
    root = shutil.copytree(world, tmp_path / "root")
    shutil.rmtree(root / FOLDERS["B"])
    files = "datasets/eeg_5_95_std.pth", "pretrains/eeg_pretrain/tiny.pth"
    began_with = [digests.sha256(root / name) for name in files]
    whole = LatentTrials.__getitem__

    def get(self, batch):
        if batch.step == 1:
            for change in (other_eeg, other_splits, other_stage_a):
                change(root)
        return whole(self, batch)

    monkeypatch.setattr(LatentTrials, "__getitem__", get)
    run("B", root)
    content = checkpoints.load(root / HANDED_ON["B"], ("eeg-ldm-1",), "checkpoint")
    assert equal(root / HANDED_ON["B"], world.with_name("whole") / HANDED_ON["B"])
    assert content["run"]["positions"]["train"] == list(range(12))
    assert [content["run"]["split"]["eeg_sha256"], content["run"]["stage_a_sha256"]] == began_with
    with pytest.raises(UserError, match=r"EEG \(changed.*splits \(changed.*stage A file"):
        run("B", root)


@pytest.mark.parametrize("how", ["in place", "new file"])
def test_recordings_that_change_while_they_are_trained_on(world, tmp_path, monkeypatch, how):
    root = shutil.copytree(world, tmp_path / "root")
    shutil.rmtree(root / FOLDERS["A"])
    whole = EEGWindows.__getitem__

    def get(self, batch):
        if batch.step == 5:
            for path in (root / "eeg").glob("*.npy"):
                target = path if how == "in place" else path.with_name("part")
                with open(target, "wb") as file:
                    np.save(file, slow_waves(6, 300, 77))
                target.replace(path)
        return whole(self, batch)

    monkeypatch.setattr(EEGWindows, "__getitem__", get)
    if how == "new file":  # the mapped one stays as it was
        run("A", root)
        assert equal(root / HANDED_ON["A"], world.with_name("whole") / HANDED_ON["A"])
        return
    with pytest.raises(UserError, match=r"\d.npy: was changed while it is trained on"):
        run("A", root)
    assert not (root / HANDED_ON["A"]).exists()
    last = checkpoints.load(root / FOLDERS["A"] / "last.pth", ("resume-1",), "resume point")
    assert last["step"] == 4


def test_what_changes_between_its_hash_and_its_reading_is_named(world, tmp_path, monkeypatch):
    root = shutil.copytree(world, tmp_path / "root")
    shutil.rmtree(root / FOLDERS["B"])
    whole = eeg_ldm.weights.load_base

    def load(*given):
        scaled(root / "pretrains/clip/model.safetensors")
        return whole(*given)

    monkeypatch.setattr(eeg_ldm.weights, "load_base", load)
    with pytest.raises(UserError, match=r"meanwhile: CLIP model.safetensors \(changed\); give the same command"):
        run("B", root)
    assert contents(root / FOLDERS["B"]).keys() == {"config.yaml"}


def test_a_dry_run_names_exchanged_data_too(copy, capsys):
    other_splits(copy)
    with pytest.raises(SystemExit) as end:
        run("B", copy, "dry_run=true")
    printed = capsys.readouterr().out
    assert end.value.code == 1 and "WRONG  run folder: " in printed and "splits (changed)" in printed


@pytest.mark.parametrize("letter", "BC")
def test_data_that_cannot_be_written_are_read_with_a_cache_elsewhere(world, tmp_path, monkeypatch, letter):
    copy = shutil.copytree(world, tmp_path / "copy", ignore=shutil.ignore_patterns("results", "cache"))
    whole = atomic.replace_atomically

    def write(path: Path, content) -> None:
        if copy / "datasets" in Path(path).parents:
            raise UserError(f"{path}: could not be written") from OSError(errno.EROFS, "Read-only file system")
        whole(path, content)

    monkeypatch.setattr(atomic, "replace_atomically", write)
    run(letter, copy, f"cache={tmp_path / 'elsewhere'}")
    kept = [path.name for path in (tmp_path / "elsewhere").rglob("*.trials.npy")]
    assert len(kept) == 1 and not (copy / "datasets/cache").exists()


def test_a_clip_from_the_hub_may_be_fetched_again_and_is_not_asked_for_while_it_is_there(world, tmp_path, monkeypatch):
    hub, fetched = tmp_path / "hub", []
    copy = shutil.copytree(world, tmp_path / "copy", ignore=shutil.ignore_patterns("results"))

    def fetch(name, **_) -> str:
        fetched.append(name)
        return str(shutil.copytree(copy / "pretrains/clip", hub))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda name, file: str(hub / file))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gen_eval_eeg, "score", lambda *_: 1 / 0)
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                run("C", copy, "clip=some/clip")
    assert len(fetched) == 1, "asked for while it was there"
    assert "CLIP model.safetensors" in json.loads((copy / FOLDERS["C"] / "inputs.json").read_text())
    shutil.rmtree(hub)
    run("C", copy, "clip=some/clip")
    assert (copy / FOLDERS["C"] / "finished.json").exists() and len(fetched) == 2
