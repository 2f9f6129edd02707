"""Caches and resume points on a full disk, after a kill, built by two processes at once, or of inputs that changed."""

import errno
import multiprocessing
import os
import re
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from test_stage_a import SMALL, slow_waves
from test_trial_cache import assert_holds, trials, write
from tiny_diffusion import SIZE, write_base, write_clip, write_trials

import data.trials_file as trial_cache
import stageA1_eeg_pretrain as stage_a
from data.trials_file import open_trial_file
from dc_ldm import weights
from runtime import checkpoints, ranks, runs
from runtime.errors import UserError
from runtime.pictures import load_image
from vision import cache as image_cache
from vision.clip import FrozenCLIP


@contextmanager
def largest_file(n_bytes: int) -> Iterator[None]:
    """No file can grow beyond this: what a full disk is to a program, whichever call writes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def apart(*works: Callable[[], None]) -> list[int]:
    """Exit statuses of processes that do this at once, 0 where it ended well."""
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=work) for work in works]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    return [process.exitcode for process in processes]


def before_each(patch: pytest.MonkeyPatch, place: object, name: str, do: Callable[[int], object]) -> None:
    """Call do(number of the call) before each call of `place.name`."""
    whole, calls = getattr(place, name), iter(range(10**6))
    patch.setattr(place, name, lambda *given, **more: (do(next(calls)), whole(*given, **more))[1])


def kill_at(wanted: int) -> Callable[[int], object]:
    return lambda call: call == wanted and os.kill(os.getpid(), signal.SIGKILL)


def picture_cache(folder: Path, value: float = 1.0) -> torch.Tensor:
    return image_cache.cached(folder, "latents", [], ["depends"], lambda: torch.full((20_000,), value))


@pytest.mark.parametrize("moment", ["trial 3", "rename", "index"])
def test_a_conversion_killed_anywhere_is_made_again(tmp_path, monkeypatch, moment):
    path = write(tmp_path / "eeg.pth", trials(), True)
    with monkeypatch.context() as patch:
        place = {
            "trial 3": (trial_cache, "_samples_of", kill_at(3)),
            "rename": (os, "replace", kill_at(0)),
            "index": (os, "replace", kill_at(1)),
        }[moment]
        before_each(patch, *place)
        assert apart(lambda: open_trial_file(path)) == [-signal.SIGKILL]
    left = list((tmp_path / "cache").glob(".*.part"))
    assert len(left) == 1
    for part in left:
        os.utime(part, (1, 1))  # an hour later
    assert_holds(open_trial_file(path), trials())
    assert moment == "index" or not list((tmp_path / "cache").glob(".*"))


def test_a_picture_cache_killed_while_written_is_made_again_and_what_it_left_removed(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        before_each(patch, os, "fsync", kill_at(0))
        assert apart(lambda: picture_cache(tmp_path)) == [-signal.SIGKILL]
    (part,) = tmp_path.iterdir()
    assert part.stat().st_size > 80_000
    assert torch.equal(picture_cache(tmp_path), torch.ones(20_000)) and part.exists()  # perhaps of one at work
    next(tmp_path.glob("latents-*")).unlink()
    os.utime(part, (1, 1))
    picture_cache(tmp_path)
    assert [p.suffix for p in tmp_path.iterdir()] == [".safetensors"]


def test_two_that_build_the_same_caches_at_once_both_get_them_whole(tmp_path, monkeypatch):
    path, barrier = write(tmp_path / "eeg.pth", trials(), False), multiprocessing.get_context("fork").Barrier(2)

    def build() -> None:
        assert_holds(open_trial_file(path), trials())
        assert torch.equal(picture_cache(tmp_path / "cache"), torch.ones(20_000))

    def build_in_a_container() -> None:
        os.getpid = lambda: 7  # the same, as often as not, of two containers on one disk
        build()

    with monkeypatch.context() as patch:
        before_each(patch, os, "fsync", lambda call: barrier.wait(30))  # all is written, nothing renamed
        assert apart(build_in_a_container, build_in_a_container) == [0, 0]
    build()
    assert sorted(p.suffix for p in (tmp_path / "cache").iterdir()) == [".json", ".npy", ".safetensors"]


def test_a_file_that_changes_under_its_conversion_is_refused_not_mixed(tmp_path, monkeypatch):
    path = write(tmp_path / "eeg.pth", trials(), True)
    later = write(tmp_path / "later.pth", trials(seed=1), True)
    with monkeypatch.context() as patch:
        before_each(patch, trial_cache, "_samples_of", lambda call: call == 3 and os.replace(later, path))
        with pytest.raises(UserError, match="eeg.pth: changed while it was read; give the same command again"):
            open_trial_file(path)
    assert_holds(open_trial_file(path), trials(seed=1))


def test_latents_follow_everything_they_depend_on(tmp_path):
    vae = weights.load_base(write_base(tmp_path)).vae
    paths = sorted((write_trials(tmp_path) / "imageNet_images").rglob("*.JPEG"))[:2]
    given = {"vae": vae, "paths": paths, "size": SIZE, "n_crops": 1, "crop_ratio": 0.2, "seed": 1}

    def found(**changed) -> torch.Tensor:
        return image_cache.latent_moments(tmp_path / "c", **given | changed)

    first = found()
    changes = [{"n_crops": 2}, {"size": 64}, {"crop_ratio": 0.4}, {"seed": 2}, {"paths": paths[::-1]}]
    for number, change in enumerate(changes, 2):
        other = found(**change)
        assert other.shape != first.shape or not torch.equal(other, first), change
        assert len(list((tmp_path / "c").iterdir())) == number, change
    load_image(paths[0]).rotate(180).save(paths[0])  # another picture, and soon another network, of the same name
    turned = found()
    assert not torch.equal(turned[0], first[0]) and torch.equal(turned[1], first[1])
    next(vae.parameters()).data += 1
    assert not torch.equal(found(), turned)


def test_embeddings_follow_the_network_its_preprocessing_and_the_pictures(tmp_path):
    clip = FrozenCLIP(write_clip(tmp_path / "clip"))
    paths = sorted((write_trials(tmp_path) / "imageNet_images").rglob("*.JPEG"))[:2]

    def found() -> torch.Tensor:
        return image_cache.clip_embeddings(tmp_path / "c", clip, paths)

    def change_network() -> None:
        clip.model.visual_projection.weight.data[0] += 1

    def change_preprocessing() -> None:
        clip.processor.image_mean = [0.1, 0.2, 0.3]

    seen = [found()]
    for change in (change_network, change_preprocessing, lambda: load_image(paths[0]).rotate(180).save(paths[0])):
        change()
        seen.append(found())
        assert not torch.equal(seen[-1], seen[-2]) and torch.equal(found(), seen[-1])
    assert len(list((tmp_path / "c").iterdir())) == len(seen)


@pytest.mark.parametrize("n_bytes", [10, 900])
def test_a_cache_on_a_full_disk_is_one_sentence_and_whole_when_there_is_room(tmp_path, n_bytes):
    path = write(tmp_path / "eeg.pth", trials(), False)
    for name, make in {"eeg.trials": lambda: open_trial_file(path), "latents": lambda: picture_cache(tmp_path)}.items():
        with largest_file(n_bytes), pytest.raises(UserError, match=f"{name}.* File too large.*: make room"):
            make()
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and p != path]
    assert_holds(open_trial_file(path), trials())
    assert torch.equal(picture_cache(tmp_path), torch.ones(20_000))


def test_a_cache_in_a_folder_that_is_read_only_is_one_sentence(tmp_path, monkeypatch):
    path = write(tmp_path / "eeg.pth", trials(), False)

    def refuse(self, *given, **more):  # not by its mode: root may write anyway
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "mkdir", refuse)
    for make in (lambda: open_trial_file(path), lambda: picture_cache(tmp_path / "c")):
        with pytest.raises(UserError, match="Read-only file system.*, or the folder writable"):
            make()


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Runs stage A on two recordings; returns the exit status and what it wrote to stderr."""
    (tmp_path / "eeg").mkdir()
    for i in range(2):
        np.save(tmp_path / "eeg" / f"{i}.npy", slow_waves(6, 500, i))
    words = [*SMALL, f"root_path={tmp_path}", "device=cpu", "precision=32", "num_epoch=2", "validate_every=1"]
    monkeypatch.setattr(sys, "argv", ["stageA1_eeg_pretrain.py", *words])

    def run() -> tuple[int, str]:
        capsys.readouterr()
        try:
            ranks.cli(stage_a.main)
            return 0, ""
        except SystemExit as end:
            return end.code, capsys.readouterr().err

    return run


def test_a_disk_that_fills_up_in_training_loses_nothing(tmp_path, monkeypatch, command):
    def full(call: int) -> None:
        if call == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    last = tmp_path / "results/eeg_pretrain/miniature/last.pth"
    with largest_file(20_000):
        refused = command()
    assert not last.exists()
    with monkeypatch.context() as patch:  # full when the second epoch ends
        before_each(patch, torch, "save", full)
        stopped = command()
    assert checkpoints.load(last, ("resume-1",), "resume point")["step"] == 3
    for (code, said), what in ((refused, "last.pth: .* File too large"), (stopped, "last.pth: .* No space")):
        error = said.splitlines()[-1]  # below the bar
        assert code == 2 and re.match(f"error: .*{what}.*: make room", error) and said.count("error: ") == 1, said
    assert command()[0] == 0 and (tmp_path / "pretrains/eeg_pretrain/miniature.pth").is_file()
    assert not list(tmp_path.rglob(".*.part"))


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_before_or_after_training_is_one_sentence_and_the_same_command_goes_on(
    tmp_path, monkeypatch, command, number, status
):
    handler = signal.getsignal(number)  # a run in the background may ignore SIGINT
    for place, name in ((stage_a, "steps_per_epoch"), (runs, "hand_on")):  # before training; before the hand-on
        with monkeypatch.context() as patch:
            before_each(patch, place, name, lambda call: os.kill(os.getpid(), number))
            code, said = command()
        assert (code, said.count("error: ")) == (status, 1) and "Traceback" not in said
        assert f"error: stopped by {number.name}; the same command goes on from there\n" in said
    before = time.time()
    assert signal.getsignal(number) == handler
    assert command()[0] == 0
    written = tmp_path / "results/eeg_pretrain/miniature/last.pth"
    assert written.stat().st_mtime < before, "nothing was left to train"


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), MemoryError()]
)
def test_memory_that_ends_outside_training_is_one_sentence(monkeypatch, command, error):
    def full(*_):
        raise error

    monkeypatch.setattr(stage_a, "training_items", full)
    code, said = command()
    assert code == 2 and said.count("\n") == 1 and said.startswith("error: not enough memory")
