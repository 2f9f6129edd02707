"""Windows cut on the device against those read from the files: the same bits, and which of the two is taken."""

import numpy as np
import pytest
import torch

from data import windows as eeg_windows
from data.windows import ResidentWindows, corpus_size, is_resident
from dataset import EEGWindows
from runtime.draws import StepBatches

CPU = torch.device("cpu")
KINDS = {
    "long": ((3, 500), "f4"),
    "long, of double precision": ((5, 331), "f8"),
    "short": ((3, 20), "f4"),
    "one window": ((8, 64), "f4"),
    "segments": ((4, 3, 90), "f4"),
    "short segments of many channels": ((3, 11, 40), "f8"),
    "more channels": ((12, 200), "f4"),
    "half precision, other byte order": ((2, 300), ">f2"),
}


def corpus(folder, kinds, **settings):
    for i, (shape, dtype) in enumerate(kinds):
        np.save(folder / f"{i}.npy", np.random.default_rng(i).standard_normal(shape).astype(dtype))
    return EEGWindows(folder, n_chans=8, n_times=64, **settings)


@pytest.mark.parametrize("scale", [1.0, 0.1])
@pytest.mark.parametrize("kinds", [[kind] for kind in KINDS] + [list(KINDS), ["long", "segments"]], ids=" and ".join)
def test_windows_are_those_of_the_files_to_the_bit(tmp_path, kinds, scale):
    # of all kinds, whole files are held out; of the last two, the ends
    held_out = 0.1 if len(kinds) > 1 else 0.0
    windows = corpus(tmp_path, [KINDS[kind] for kind in kinds], scale=scale, held_out=held_out)
    resident = ResidentWindows(windows, CPU)
    assert len(resident) == len(windows) and resident.flat.shape == (corpus_size(windows),)
    batches = list(StepBatches(len(windows), 7, 1, 0, 30))
    assert {int(i) for batch in batches for i in batch.index} == set(range(len(windows)))
    for batch in batches:
        made, read = resident[batch], windows[batch]
        assert made.dtype == torch.float32 and made.is_contiguous() and torch.equal(made, read)


def test_shares_of_two_processes_make_up_the_batch(tmp_path):
    windows = corpus(tmp_path, KINDS.values(), held_out=0.0)
    resident = ResidentWindows(windows, CPU)
    whole = StepBatches(len(windows), 8, 1, 0, 9)
    shares = [StepBatches(len(windows), 8, 1, 0, 9, 1, rank, 2) for rank in range(2)]
    for batch, *parts in zip(whole, *shares, strict=True):
        made = torch.cat([resident[part] for part in parts if part.weight])
        assert torch.equal(made, windows[batch])


def test_the_corpus_is_read_once(tmp_path, monkeypatch):
    windows = corpus(tmp_path, KINDS.values(), held_out=0.0)
    resident = ResidentWindows(windows, CPU)
    monkeypatch.setattr(eeg_windows, "read_span", None)
    monkeypatch.setattr(EEGWindows, "_windows", None)
    before = resident.flat.clone()
    for batch in StepBatches(len(windows), 8, 1, 0, 3):
        resident[batch].zero_()
    assert torch.equal(resident.flat, before), "a batch is a copy"


def test_a_gpu_holds_what_fits_half_of_its_free_memory(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: asked.append(device) or (1000, 8000))
    gpu = torch.device("cuda", 1)
    assert is_resident(500, 500, gpu) and not is_resident(501, 10, gpu) and set(asked) == {gpu}
    assert is_resident(100, 900, gpu) and not is_resident(101, 900, gpu), "a step needs the rest"
    assert not is_resident(1, 1, CPU)
