"""Damaged files of every format, 10,000 in `make test-full`: no traceback, and none is read as another."""

import json
import shutil
import warnings
from pathlib import Path

import fuzz
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from test_trial_cache import trials

from data.signals import read_manifest
from data.splits import read_splits
from data.trials_file import cached_windows, open_trial_file
from dataset import EEGWindows
from runtime import checkpoints
from runtime.draws import Batch
from runtime.file_kinds import file_kind

LABELS = {"labels": ["n01", "n02"], "images": ["n01_1", "n02_2"]}
FACTS = [{"onset": np.float64(i / 2), "recording": f"tape {i // 3}"} for i in range(6)]
MANIFEST = {"sfreq": 256.0, "window": [0, 20], "ch_names": ["a", "b", "c"], "control": {"design": ["block", "x"]}}
STATE = {"blocks.0.weight": torch.randn(4, 4), "blocks.0.bias": torch.zeros(4, dtype=torch.bfloat16)}
CHECKPOINTS = {
    "stage A": {"format": "eeg-mae-1", "model": STATE, "config": {"depth": 2, "ratio": 0.75}, "run": {"seed": None}},
    "stage B": {"format": "eeg-ldm-1", "model": STATE, "split": {"sizes": {"train": 3}}, "base": {"name": "b"}},
    "resume point": {"format": "resume-1", "step": 3, "optimizer": {"state": {0: {"step": torch.tensor(2.0)}}}},
}


def write_trials(folder: Path, zipped: bool = True) -> Path:
    dataset = [trial | facts for trial, facts in zip(trials(), FACTS, strict=True)]
    torch.save({"dataset": dataset} | LABELS, folder / "eeg.pth", _use_new_zipfile_serialization=zipped)
    return folder / "eeg.pth"


def read_trials(path: Path, cached: bool = False) -> dict:
    if not cached:
        shutil.rmtree(path.parent / "cache", ignore_errors=True)
    file = open_trial_file(path)
    rows = [file.eeg(i)[:, :4] for i in range(len(file.start))]
    windows = cached_windows(file, [], (len(rows), 3, 4), lambda: rows)
    eeg = [np.array(file.eeg(i)) for i in range(len(rows))]
    facts = {key: value for key, value in file.about["trials"].items() if key != "digest"}
    return {"eeg": eeg, "windows": np.array(windows)} | facts | {key: file.about[key] for key in LABELS}


def cache_loader(pattern: str) -> fuzz.Loader:
    def make(folder: Path) -> Path:
        path = write_trials(folder)
        read_trials(path)
        return next((folder / "cache").glob(pattern))

    return fuzz.Loader(make, lambda path: read_trials(path.parents[1] / "eeg.pth", cached=True), guarded=True)


def torch_loader(content: dict, read, zipped: bool = True) -> fuzz.Loader:
    def make(folder: Path) -> Path:
        torch.save(content, folder / "file.pth", _use_new_zipfile_serialization=zipped)
        return folder / "file.pth"

    return fuzz.Loader(make, read, guarded=zipped)


def written(write, name: str):
    def make(folder: Path) -> Path:
        write(folder / name)
        return folder / name

    return make


def write_npy(path: Path) -> None:
    draw = np.random.default_rng(0)
    for name in ("a.npy", "b.npy", "c.npy"):
        np.save(path.with_name(name), draw.standard_normal((3, 90)).astype(np.float32))


def read_npy(path: Path) -> torch.Tensor:
    windows = EEGWindows(path.parent, n_chans=4, n_times=32)
    return windows[Batch(step=0, index=torch.arange(len(windows)), start=0, total=len(windows), weight=1.0)]


SPLITS = {"splits": [{"train": [0, 1], "val": [2], "test": [3, 4]}]}
LOADERS = {
    "trials": fuzz.Loader(write_trials, read_trials, guarded=True),
    "trials, legacy": fuzz.Loader(lambda folder: write_trials(folder, zipped=False), read_trials, guarded=False),
    "cached samples": cache_loader("*.trials.npy"),
    "cached index": cache_loader("*.trials.json"),
    "cached windows": cache_loader("*.windows-*.npy"),
    "digest of the windows": cache_loader("*.windows-*.json"),
    "npy": fuzz.Loader(written(write_npy, "b.npy"), read_npy, guarded=False),
    "manifest": fuzz.Loader(
        written(lambda path: path.write_text(json.dumps(MANIFEST)), "eeg.json"), read_manifest, guarded=False
    ),
    "safetensors": fuzz.Loader(written(lambda path: save_file(STATE, path), "a.safetensors"), file_kind, guarded=False),
}
for zipped in (True, False):
    LOADERS[f"splits, {zipped=}"] = torch_loader(SPLITS, lambda path: read_splits(path, [4] * 6, 4, "eeg"), zipped)
    for name, content in CHECKPOINTS.items():
        formats = (content["format"],)
        LOADERS[f"{name}, {zipped=}"] = torch_loader(
            content, lambda path, formats=formats: checkpoints.load(path, formats, "checkpoint"), zipped
        )
        LOADERS[f"kind of a {name}, {zipped=}"] = torch_loader(content, file_kind, zipped=False)
fuzz.LOADERS.update(LOADERS)


def tried(name: str, folder: Path, n: int, capsys) -> None:
    with warnings.catch_warnings(action="ignore"):  # torch and numpy say more of damaged files than we do
        found = fuzz.try_out(name, folder, n)
    assert sum(found.values()) > 0.8 * n and capsys.readouterr().err == ""


@pytest.mark.parametrize("name", fuzz.LOADERS)
def test_damaged_files_are_one_sentence_or_what_they_were(name, tmp_path, capsys):
    tried(name, tmp_path, 500 // len(fuzz.LOADERS), capsys)


@pytest.mark.full
@pytest.mark.parametrize("name", fuzz.LOADERS)
def test_ten_thousand_damaged_files_are_one_sentence_or_what_they_were(name, tmp_path, capsys):
    tried(name, tmp_path, 10_000 // len(fuzz.LOADERS), capsys)


def test_a_loader_that_fails_the_promise_is_caught(tmp_path):
    fuzz.LOADERS["careless"] = fuzz.Loader(written(lambda p: p.write_bytes(b"x" * 100), "a"), Path.read_bytes, True)
    fuzz.LOADERS["crashing"] = fuzz.Loader(
        written(lambda p: p.write_text("[1, 2]"), "a"), lambda p: json.loads(p.read_bytes()), False
    )
    try:
        for name, words in (("careless", "opens as another content"), ("crashing", "json.decoder|UnicodeDecodeError")):
            with pytest.raises(AssertionError, match=words):
                fuzz.try_out(name, tmp_path / name, 50)
    finally:
        del fuzz.LOADERS["careless"], fuzz.LOADERS["crashing"]
