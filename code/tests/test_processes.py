"""Several processes as one: whatever ends one ends all with one message, and torch's command lines start them."""

import os
import pickle
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from test_stage_a import SMALL, slow_waves
from test_stage_c import arguments, write_world
from tiny_diffusion import ENCODER, UNET
from two_processes import assert_gradients_agree, launch

import stageA1_eeg_pretrain as stage_a
from config import FinetuneConfig, GenerateConfig, PretrainConfig, from_cli
from dc_ldm.ldm_for_eeg import FINETUNE, EEGLatentDiffusion, LatentTrials
from dc_ldm.models.unet import UNet
from dc_ldm.modules.conditioner import CLIP_HEADS, EEGConditioner
from runtime import checkpoints, ranks
from runtime.devices import pick_device
from runtime.draws import StepBatches
from runtime.errors import UserError
from runtime.pictures import read_pictures
from sc_mbm.mae_for_eeg import EEGEncoder

SCRIPT = str(Path(stage_a.__file__))


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """Stage A's command line for two recordings, without its name."""
    root = tmp_path_factory.mktemp("processes")
    (root / "eeg").mkdir()
    for i in range(2):
        np.save(root / "eeg" / f"{i}.npy", slow_waves(6, 500, i))
    return [*SMALL, f"root_path={root}", "device=cpu", "precision=32", "num_epoch=1", "batch_size=2"]


@pytest.mark.parametrize(
    ("fault", "codes", "speaker", "message"),
    [
        ("crash 1", [1, 1, 1], 1, "process 1 failed: ValueError: nobody thought of this; all 3 are stopped"),
        ("memory 1", [1, 1, 1], 1, "batch_size=2 does not fit in the memory of cpu; batch_size=1 should"),
        ("kill 1", [1, -9, 1], None, "another process ended without a word"),
        ("seed=7", [2, 2, 2], 0, "processes 0 and 1 differ in seed 2022 and 7"),
        ("other machine", [2, 2, 2], 0, "processes 0 and 1 differ in precision 'torch.float32' and 'torch.bfloat16'"),
    ],
)
def test_what_ends_one_process_ends_all_with_one_message(words, tmp_path, fault, codes, speaker, message):
    name = f"name={fault.replace(' ', '').replace('=', '')}"
    found, said = launch("stageA1_eeg_pretrain", [*words, name], tmp_path / "logs", fault, world=3)
    assert found == codes, said
    spoke = [number for number, text in enumerate(said) if "error: " in text]
    assert len(spoke) == 1 and speaker in (None, spoke[0]), said
    assert said[spoke[0]].count("error: ") == 1 and message in said[spoke[0]]
    assert ("Traceback" in said[spoke[0]]) == fault.startswith("crash")


@pytest.mark.parametrize("told", ["0", "1", "0 1", "0 1 2"])
def test_a_signal_outside_training_stops_all_with_one_message(tmp_path, told):
    codes, said = launch("two_processes", told.split(), tmp_path, world=3)
    assert codes == [143, 143, 143] and not said[1] and not said[2], said
    assert said[0] == "error: stopped by SIGTERM; the same command goes on from there\n"


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize(
    ("fault", "status", "message"),
    [
        ("SIGTERM setup", 143, "stopped by SIGTERM after step 1 of"),
        ("SIGINT launch", 130, "stopped by SIGINT after step 1 of"),
        ("SIGTERM close", 0, "stage A done"),  # the last resume point is written: what is left takes seconds
    ],
)
def test_a_signal_around_training_stops_after_a_step_or_lets_it_finish(words, tmp_path, world, fault, status, message):
    words = [*words, f"name={fault.replace(' ', '')}{world}"]
    codes, said = launch("stageA1_eeg_pretrain", words, tmp_path / "logs", fault, world)
    assert codes == [status] * world and message in said[0] and "Traceback" not in said[0], said
    codes, said = launch("stageA1_eeg_pretrain", words, tmp_path / "logs", world=world)
    assert codes == [0] * world and ("after step 1" if status else "is finished") in said[0], said


def test_three_processes_whose_shares_differ_train_like_one(words, tmp_path):
    # 12 windows in batches of 7: shares of 3, 2 and 2, then of 2, 2 and 1
    made = {}
    for world in (1, 3):
        named = [*words[:-1], "batch_size=7", "lr=0.001", f"name=of{world}"]
        codes, said = launch("stageA1_eeg_pretrain", named, tmp_path / str(world), world=world)
        assert codes == [0] * world, said
        root = Path(next(word for word in words if word.startswith("root_path=")).removeprefix("root_path="))
        made[world] = checkpoints.load(root / f"pretrains/eeg_pretrain/of{world}.pth", ("eeg-mae-1",), "stage A's")
    assert_gradients_agree(tmp_path / "1" / "gradients.pth", tmp_path / "3" / "gradients.pth")
    for key, value in made[1]["model"].items():
        if not key.endswith("qkv.bias"):  # of keys, it has no gradient but rounding, which Adam enlarges
            torch.testing.assert_close(made[3]["model"][key], value, atol=1e-6, rtol=0)


def test_stage_c_on_processes_that_differ_in_work_in_memory_and_in_precision(tmp_path):
    world = write_world(tmp_path)
    model = {"model_path": "pretrains/generation/tiny.pth", "num_samples": 1, "controls": "none"}

    def pictures(processes: int, **changed) -> torch.Tensor:
        name = f"of{processes}{''.join(changed.values())}"
        words = arguments(world, name=name, max_items=2, batch_size=1, **model | changed)
        if processes > 1:
            codes, said = launch("gen_eval_eeg", words, tmp_path / "logs", "memory sampling", processes)
            assert codes == [2] * processes and not "".join(said[1:]), said
            (error,) = [line for line in said[0].splitlines() if "error: " in line]
            assert "1 pictures at once do not fit in the memory of cpu; another device or size may" in error
        codes, said = launch("gen_eval_eeg", words, tmp_path / "logs", world=processes)
        assert codes == [0] * processes and "stage C done" in said[0] and not "".join(said[1:]), said
        return read_pictures([world / f"results/eval/{name}/samples/test{i}-1.png" for i in range(2)]).int()

    # one of three has nothing to do; in batches of one size bfloat16 rounds alike, too
    assert (pictures(3, precision="bf16") - pictures(1, precision="bf16")).abs().max() <= 1


@pytest.mark.full
@pytest.mark.parametrize(
    "launcher",
    [
        ["torch.distributed.run", "--standalone", "--nproc-per-node=2"],
        ["torch.distributed.launch", "--nproc-per-node=2", "--master-port=PORT"],
        ["torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d",
         "--rdzv-endpoint=localhost:PORT", "--rdzv-id=test"],
    ],
    ids=["torchrun", "launch", "two nodes"],
)  # fmt: skip
def test_torchs_command_lines_train_like_one_process(words, tmp_path, launcher):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    root = next(word for word in words if word.startswith("root_path=")).removeprefix("root_path=")
    name = f"t{port}"
    start = [word.replace("PORT", str(port)) for word in launcher]
    command = [sys.executable, "-m", *start, SCRIPT, *words, f"name={name}"]
    if "--rdzv-id=test" not in launcher:
        command += ["--local-rank=0"]  # as the launchers of before torch 2 pass it
    agents = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(2 if "--nnodes=2" in launcher else 1)
    ]
    said = [agent.communicate(timeout=280)[0] for agent in agents]
    assert [agent.returncode for agent in agents] == [0] * len(agents), said
    assert sum(text.count("stage A done") for text in said) == 1, said
    assert checkpoints.load(f"{root}/pretrains/eeg_pretrain/{name}.pth", ("eeg-mae-1",), "stage A checkpoint")


@pytest.mark.parametrize("settings", [PretrainConfig, FinetuneConfig, GenerateConfig])
@pytest.mark.parametrize("spelling", [["--local-rank=1"], ["--local_rank", "1"]])
def test_the_old_launchers_argument_is_accepted(settings, spelling, capsys):
    from_cli(settings, spelling)
    assert "local_rank has no effect" in capsys.readouterr().out


def test_more_processes_than_gpus_are_refused(monkeypatch):
    for name, value in {"WORLD_SIZE": "8", "RANK": "1", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert pick_device("auto") == torch.device("cuda", 1) and pick_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match="4 processes on this machine, but torch sees 2 GPUs"):
        pick_device("auto")


def test_a_port_in_use_is_one_sentence(monkeypatch, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(taken.getsockname()[1])}
        for name, value in {"WORLD_SIZE": "2", "RANK": "0", **where}.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit) as stop:
            ranks.cli(lambda: None)
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2 and where["MASTER_PORT"] in line and "torchrun --standalone" in line


@pytest.mark.parametrize("lacking", ["MASTER_ADDR", "MASTER_PORT", "RANK"])
def test_a_meeting_place_that_is_not_given_is_one_sentence(monkeypatch, capsys, lacking):
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv(lacking)
    with pytest.raises(SystemExit) as stop:
        ranks.cli(lambda: None)
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2 and lacking in line and "torchrun --standalone" in line


@pytest.mark.parametrize(
    "fault", [dist.DistNetworkError("Failed to recv, got 0 bytes"), pickle.UnpicklingError("invalid load key")]
)
def test_a_broken_conversation_is_not_the_survivors_failure(monkeypatch, capsys, fault):
    def breaks(*_):
        raise fault

    def end(status):
        raise SystemExit(status)

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(ranks, "_patient", lambda: None)
    monkeypatch.setattr(dist, "all_gather_object", breaks)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(os, "_exit", end)
    with pytest.raises(dist.DistError) as caught:
        ranks.share()
    with pytest.raises(SystemExit):
        ranks._last_words(caught.value, dist.HashStore())
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "another process ended without a word" in line and "process 0 failed" not in line


@pytest.mark.parametrize("finetune", FINETUNE)
@pytest.mark.parametrize("head", CLIP_HEADS)
@pytest.mark.parametrize(("clip_weight", "use_time_cond"), [(1.0, True), (0.0, False)])
def test_every_tensor_that_trains_has_a_gradient(finetune, head, clip_weight, use_time_cond):
    # so that no process has to search for those that have none
    conditioner = EEGConditioner(EEGEncoder(**ENCODER), context_dim=16, clip_dim=12, clip_head=head)
    unet = UNet(**UNET, use_time_cond=use_time_cond)
    module = EEGLatentDiffusion(
        conditioner, unet, torch.linspace(1, 0.01, 1000), torch.zeros(77, 16), clip_weight=clip_weight,
        finetune=finetune,
    )  # fmt: skip
    items = LatentTrials(torch.randn(3, 8, 64), torch.arange(3), torch.randn(3, 1, 2, 4, 4, 4), torch.randn(3, 12))
    batch = next(iter(StepBatches(3, 3, 0, 0, 1)))
    module(batch, items[batch]).backward()
    assert not [name for name, p in module.named_parameters() if p.requires_grad and p.grad is None]
