"""The rows of `benchmark.py` on reading trials: ours against the published loader, on a file of the published layout.

The published loader (bbaaii/DreamDiffusion, 8e14797, `dataset.py`) unpickles the whole file once for each split, and
cuts and interpolates every trial with scipy each time that it is asked for.
"""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from commands.bench.recipe import interpolated
from commands.bench.sizes import Machine, Row, Size
from dataset import open_trials
from runtime import draws

BATCH, SUBJECTS = 25, 6
TRIALS = {"miniature": 600, "half": 3000, "full": 11964}  # the published file has 11,964


def data_start(size: Size, machine: Machine) -> Row:
    """From a file opened before to the first batch of training trials, the other split open as well."""
    folder, path, splits = _trials_file(size)

    def mine() -> Tensor:
        assert folder  # the files live as long as this call may be made
        return open_trials(path, splits, 4)["train"].eeg[:BATCH].clone()

    def published() -> Tensor:
        loaded = [_load(path, splits, part) for part in ("train", "val")]
        return torch.stack([_item(trial) for trial in loaded[0][:BATCH]])

    mine()  # converts the file, once
    return Row(mine, {"published loader": published})


def data_batches(size: Size, machine: Machine) -> Row:
    """The EEG of 20 batches of 25 trials; the published loader also decodes a picture a trial, which is left out."""
    folder, path, splits = _trials_file(size)
    eeg, theirs = open_trials(path, splits, 4)["train"].eeg, _load(path, splits, "train")
    batches = [draws.permutation(len(eeg), 0, "batch", i)[:BATCH] for i in range(20)]
    folder.cleanup()

    def call(read: Callable[[Tensor], Tensor]) -> None:
        for rows in batches:
            read(rows)

    published = partial(call, lambda rows: torch.stack([_item(theirs[i]) for i in rows.tolist()]))
    return Row(partial(call, lambda rows: eeg[rows]), {"published loader": published}, dict.fromkeys(
        ("ours", "published loader"), len(batches)), "batch",
    )  # fmt: skip


def _trials_file(size: Size) -> tuple[tempfile.TemporaryDirectory, Path, Path]:
    """Noise in the published layout and torch's old format, as the published file is, and splits of subject 4."""
    n = TRIALS[size.name]
    folder, random = tempfile.TemporaryDirectory(), torch.Generator().manual_seed(0)
    path, splits = Path(folder.name) / "eeg.pth", Path(folder.name) / "block_splits_by_image_single.pth"
    trials = [
        {"eeg": torch.randn(128, 500, generator=random), "image": i, "label": i % 40, "subject": 1 + i % SUBJECTS}
        for i in range(n)
    ]
    labels, images = [f"n{i:08}" for i in range(40)], [f"n{i % 40:08}_{i}" for i in range(n)]
    content = {"dataset": trials, "labels": labels, "images": images}
    torch.save(content, path, _use_new_zipfile_serialization=False)
    own = list(range(n // SUBJECTS))
    parts = {"train": own[:-20], "val": own[-20:-10], "test": own[-10:]}
    torch.save({"splits": [parts]}, splits)
    return folder, path, splits


def _load(path: Path, splits: Path, part: str) -> list[dict]:
    """As the published loader: the whole file, for one split of subject 4."""
    trials = torch.load(path, weights_only=True)["dataset"]
    own = [trial for trial in trials if trial["subject"] == 4]
    return [own[i] for i in torch.load(splits, weights_only=True)["splits"][0][part]]


def _item(trial: dict) -> Tensor:
    """(128, 512) float32: 20 to 460 ms."""
    return torch.from_numpy(interpolated(trial["eeg"].float()[:, 20:460].numpy(), 512)).float()
