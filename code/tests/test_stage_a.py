"""Stage A: the real command on small recordings; learning, resuming, accumulation, refusals."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from two_processes import assert_gradients_agree, keep_gradients, launch

import stageA1_eeg_pretrain as stage_a
from config import PretrainConfig, from_cli
from data import windows as eeg_windows
from dataset import EEGWindows
from runtime import checkpoints
from runtime.draws import steps_per_epoch
from runtime.errors import UserError
from sc_mbm.linear_reference import linear_share
from sc_mbm.trainer import MaskedPretraining

SMALL = [
    "preset=miniature", "eeg_path=eeg", "n_chans=6", "n_times=64", "embed_dim=16", "depth=1", "num_heads=2",
    "decoder_embed_dim=16", "decoder_depth=1", "decoder_num_heads=2", "num_epoch=3", "batch_size=5", "validate_every=2",
]  # fmt: skip


def slow_waves(n_chans: int, n_times: int, seed: int) -> np.ndarray:
    """Smooth noise of unit variance: white noise through a moving average."""
    noise = np.random.default_rng(seed).standard_normal((n_chans, n_times + 15))
    return np.stack([np.convolve(row, np.ones(16) / 4, "valid") for row in noise]).astype("float32")


@pytest.fixture
def root(tmp_path):
    (tmp_path / "eeg").mkdir()
    for i, (n_chans, n_times) in enumerate([(4, 300), (6, 64 * 7), (8, 200), (6, 40), (6, 500), (6, 130)]):
        np.save(tmp_path / "eeg" / f"{i}.npy", slow_waves(n_chans, n_times, i))
    return tmp_path


def run(root: Path, monkeypatch, *words: str) -> dict:
    monkeypatch.setattr(sys, "argv", ["stage_a", f"root_path={root}", *SMALL, *words])
    stage_a.main()
    name = next((w.split("=")[1] for w in words if w.startswith("name=")), "miniature")
    return checkpoints.load(root / f"pretrains/eeg_pretrain/{name}.pth", ("eeg-mae-1",), "stage A checkpoint")


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_a_stopped_run_ends_with_the_same_weights(root, monkeypatch, precision):
    straight = run(root, monkeypatch, "name=straight", f"precision={precision}")
    whole = EEGWindows.__getitem__

    def stop_at(step, number):
        def get(self, batch):
            if batch.step == step:
                os.kill(os.getpid(), number)
            return whole(self, batch)

        return get

    # 17 items in batches of 5 make 4 steps an epoch: both stops are in the middle of one
    for step, number in ((2, signal.SIGTERM), (6, signal.SIGINT)):
        monkeypatch.setattr(EEGWindows, "__getitem__", stop_at(step, number))
        with pytest.raises(SystemExit) as stopped:
            run(root, monkeypatch, "name=stopped", f"precision={precision}")
        assert stopped.value.code == 128 + number
        assert torch.load(root / "results/eeg_pretrain/stopped/last.pth", weights_only=True)["step"] == step + 1
    monkeypatch.setattr(EEGWindows, "__getitem__", whole)
    resumed = run(root, monkeypatch, "name=stopped", f"precision={precision}")
    assert equal(straight["model"], resumed["model"])
    tables = [(root / f"results/eeg_pretrain/{n}/metrics.csv").read_text() for n in ("straight", "stopped")]
    assert tables[0] == tables[1]


def test_a_run_that_goes_on_with_a_resident_corpus_ends_with_the_same_weights(root, monkeypatch, capsys):
    straight = run(root, monkeypatch, "name=straight", "device=cpu")
    assert "MB of training EEG in float32: batches are read from the memory-mapped files" in capsys.readouterr().out
    whole, read = EEGWindows.__getitem__, []

    def get(self, batch):
        read.append(batch.step)
        if batch.step == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return whole(self, batch)

    monkeypatch.setattr(EEGWindows, "__getitem__", get)
    with pytest.raises(SystemExit):
        run(root, monkeypatch, "name=other", "device=cpu")
    monkeypatch.setattr(eeg_windows, "is_resident", lambda *_: True)
    resumed = run(root, monkeypatch, "name=other", "device=cpu")
    assert "held on cpu, batches are cut there" in capsys.readouterr().out
    assert read == list(range(6)) and equal(straight["model"], resumed["model"])


def test_accumulated_batches_train_like_one_large_batch(root, monkeypatch):
    large = run(root, monkeypatch, "name=large", "batch_size=6", "precision=32", "num_epoch=1")
    small = run(root, monkeypatch, "name=small", "batch_size=2", "accum_iter=3", "precision=32", "num_epoch=1")
    for key, value in large["model"].items():
        if key.endswith("qkv.bias"):
            continue  # a bias of all keys has no gradient but rounding, which Adam enlarges
        torch.testing.assert_close(small["model"][key], value, atol=5e-5, rtol=0)  # they move by 5e-3


def test_it_learns_beyond_the_mean(tmp_path, monkeypatch):
    (tmp_path / "eeg").mkdir()
    for i in range(8):
        np.save(tmp_path / "eeg" / f"{i}.npy", slow_waves(6, 64 * 40, i))
    content = run(
        tmp_path, monkeypatch, "embed_dim=32", "decoder_embed_dim=32", "num_epoch=25", "batch_size=32",
        "mask_ratio=0.5", "validate_every=25", "lr=0.004",
    )  # fmt: skip
    figures = content["run"]["figures"]
    assert figures["way_to_linear"] > 0.3, figures
    assert 0 < figures["linear_share"] < 0.7


def test_a_finished_run_says_so_and_another_configuration_is_refused(root, monkeypatch, capsys):
    run(root, monkeypatch, "num_epoch=1")
    assert "does not say (excludes_test)" in capsys.readouterr().out
    run(root, monkeypatch, "num_epoch=1")
    assert "is finished" in capsys.readouterr().out
    with pytest.raises(UserError, match="another configuration .*lr"):
        run(root, monkeypatch, "num_epoch=1", "lr=0.5")


def test_a_loss_that_is_not_finite_stops_with_the_step(root, monkeypatch):
    whole = EEGWindows.__getitem__
    monkeypatch.setattr(EEGWindows, "__getitem__", lambda self, b: whole(self, b) * (torch.inf if b.step == 3 else 1))
    with pytest.raises(UserError, match="at step 3"):
        run(root, monkeypatch)


def test_the_learning_rate_is_the_published_one():
    cfg = from_cli(PretrainConfig, [*SMALL, "lr=2.5e-4", "num_epoch=500", "warmup_epochs=40"])
    module = MaskedPretraining.of(cfg, 100)
    expected = {0.01: 6.25e-8, 1: 6.25e-6, 20: 1.25e-4, 40: 2.5e-4, 100: 2.3965141e-4, 270: 1.25e-4, 499: 2.9151601e-9}
    for epoch, lr in expected.items():
        assert module.lr_at(round(epoch * 100)) == pytest.approx(lr, rel=1e-7)


def test_linear_reference_of_an_autoregressive_process_is_the_closed_form():
    # for x_t = a x_(t-1) + noise, hidden gaps of four between visible fours have a known conditional variance
    a, n = 0.9, 256
    rng = np.random.default_rng(0)
    x = np.zeros((600, n + 200))
    for t in range(1, n + 200):
        x[:, t] = a * x[:, t - 1] + rng.standard_normal(600) * np.sqrt(1 - a * a)
    windows = torch.tensor(x[:, None, 200:], dtype=torch.float32)
    mask = torch.tensor([[0, 1] * 31 + [0, 0]])
    ar = a ** np.abs(np.subtract.outer(np.arange(6), np.arange(6)))  # one gap with its two neighbours
    inner, outer = [1, 2, 3, 4], [0, 5]
    left = ar[np.ix_(inner, inner)] - ar[np.ix_(inner, outer)] @ np.linalg.solve(
        ar[np.ix_(outer, outer)], ar[np.ix_(outer, inner)]
    )
    expected = np.trace(left) / 4
    assert linear_share(windows[:500], windows[500:], mask) == pytest.approx(expected, rel=0.05)


def test_missing_data_is_named_by_the_command(tmp_path):
    script = Path(stage_a.__file__)
    command = [sys.executable, str(script), f"root_path={tmp_path}", "--mask_ratio", "0.75", "--num_epoch", "800"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and "eeg_train" in done.stderr and done.stderr.count("\n") == 1


def test_a_dry_run_lists_how_each_input_opens_and_makes_nothing(root, monkeypatch, capsys):
    def dry_run(*words: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as end:
            run(root, monkeypatch, "dry_run=true", "device=cpu", *words)
        return end.value.code, capsys.readouterr().out

    status, text = dry_run()
    assert status == 0 and text.endswith("stage A can start\n") and "WRONG" not in text, text
    for subject in ("settings", "device", "plan", "memory", "recordings", "run folder"):
        assert f"  ok     {subject}: " in text
    assert not (root / "results").exists() and not (root / "pretrains").exists()
    (root / "results").write_text("")  # no folder
    status, text = dry_run("eeg_path=absent", "patch_size=60")
    assert status == 1 and "absent: no such folder" in text and "whole number of tokens" in text, text
    assert "results: cannot be written" in text and "stage A cannot start" in text


@pytest.mark.parametrize(
    ("manifest", "labels"),
    [
        (None, ("time (samples)", "units of the file", "")),
        ({"sfreq": 250.0, "unit": "microvolts"}, ("time (ms)", "microvolts", "")),
        (
            {
                "recordings": [{"file": f"{i}.npy", "sfreq": 100.0 + i} for i in range(6)],
                "standardised": True,
                "simulated": True,
            },
            ("time (ms)", "standardised units", "SIMULATED EEG"),
        ),
    ],
)
def test_the_picture_of_a_reconstruction_has_units_and_says_what_is_simulated(root, monkeypatch, manifest, labels):
    drawn, whole = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *given, **how: drawn.append(self) or whole(self, *given, **how))
    if manifest:
        (root / "eeg" / "manifest.json").write_text(json.dumps(manifest))
    run(root, monkeypatch, "num_epoch=1", "device=cpu")
    first, last = drawn[0].axes[0], drawn[0].axes[-1]
    assert (last.get_xlabel(), first.get_ylabel(), drawn[0].get_suptitle()) == labels
    if manifest:
        held_out = EEGWindows(root / "eeg", 6, 64).held_out[0]
        sfreq = manifest.get("sfreq") or 100.0 + int(held_out.path.stem)
        assert first.lines[0].get_xdata()[1] == pytest.approx(1000 / sfreq, rel=1e-4)


def test_steps_an_epoch_follow_from_windows_and_batch(root):
    windows = EEGWindows(root / "eeg", 6, 64, 1.0, 2022, 0.1)
    assert steps_per_epoch(len(windows), 5) == -(-len(windows) // 5)


def test_two_processes_train_like_one_and_stop_together(root, monkeypatch):
    # 22 windows in batches of 7: the last batch of an epoch is a single window, so one process has nothing to add
    settings = [f"root_path={root}", *SMALL, "batch_size=7", "precision=32", "device=cpu", "lr=0.001"]
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", keep_gradients(root / "gradients.pth"))
        single = run(root, patch, "name=one", *settings[-4:])

    def two(fault: str = "") -> tuple[list[int], list[str]]:
        return launch("stageA1_eeg_pretrain", [*settings, "name=two"], root / "logs", fault)

    folder = root / "results/eeg_pretrain/two"
    for fault, status, message in (("term 1", 143, "stopped by SIGTERM after step 2 of 12"), ("nan 3", 2, "at step 3")):
        codes, said = two(fault)
        assert codes == [status, status] and message in said[0] and not said[1], said
        assert said[0].count("error: ") == (status == 2)
        assert checkpoints.load(folder / "last.pth", ("resume-1",), "resume point")["step"] == 2
    assert_gradients_agree(root / "gradients.pth", root / "logs" / "gradients.pth")
    codes, said = two("error 4")
    assert codes == [2, 2] and "error: a recording broke" in said[0] and not said[1], said
    codes, said = two()
    assert codes == [0, 0] and "after step 2" in said[0] and not said[1], said
    both = checkpoints.load(root / "pretrains/eeg_pretrain/two.pth", ("eeg-mae-1",), "stage A checkpoint")
    for key, value in single["model"].items():
        if not key.endswith("qkv.bias"):  # of keys, it has no gradient but rounding, which Adam enlarges
            torch.testing.assert_close(both["model"][key], value, atol=1e-6, rtol=0)
    names = {path.name for path in folder.iterdir()}
    assert names == {path.name for path in (root / "results/eeg_pretrain/one").iterdir()}
    losses = [np.genfromtxt(folder.with_name(n) / "metrics.csv", delimiter=",", names=True) for n in ("one", "two")]
    for column in losses[0].dtype.names:
        assert losses[1][column] == pytest.approx(losses[0][column], abs=1e-4), column
    codes, said = two()
    assert codes == [0, 0] and "is finished" in said[0] and not said[1], said
