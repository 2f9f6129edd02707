"""A stage on two processes that talk over gloo, started as torchrun starts them, with a fault injected if asked.

The processes are forked from a server that has imported everything once, which takes a tenth of torchrun's time.
"""

import importlib
import multiprocessing
import os
import signal
import socket
import sys
import time
from pathlib import Path

import torch

from runtime import checkpoints, ranks
from runtime.errors import UserError

STAGES = {"stageA1_eeg_pretrain": ("dataset", "EEGWindows"), "eeg_ldm": ("dc_ldm.ldm_for_eeg", "LatentTrials")}


def launch(script: str, words: list[str], logs: Path, fault: str = "") -> tuple[list[int], list[str]]:
    """Run `script` with `words` on two processes; returns their exit statuses and all that each wrote to the terminal.

    Args:
        fault: "nan 3", "term 3" or "error 3": what happens to the second process alone in step 3.
    """
    logs.mkdir(exist_ok=True, parents=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, *STAGES, "gen_eval_eeg", "pytorch_lightning"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    both = [context.Process(target=_process, args=(rank, port, script, words, logs, fault)) for rank in (0, 1)]
    for process in both:
        process.start()
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and any(process.is_alive() for process in both):
        time.sleep(0.1)
        if any(process.exitcode for process in both):
            deadline = min(deadline, time.monotonic() + 30)  # one has failed: the other should soon end too
    codes = [process.exitcode for process in both]
    for process in both:
        process.kill()
    assert None not in codes, f"{codes}: {_said(logs)}"
    return codes, _said(logs)


def _said(logs: Path) -> list[str]:
    return [(logs / f"{rank}.log").read_text() for rank in (0, 1)]


def _process(rank: int, port: int, script: str, words: list[str], logs: Path, fault: str) -> None:
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test",
    }  # fmt: skip
    sys.stdout.flush()
    with open(logs / f"{rank}.log", "w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    torch.set_num_threads(1)
    if rank:
        whole = checkpoints.replace_atomically

        def pictures_only(path: Path, write) -> None:
            assert path.suffix == ".png" and script == "gen_eval_eeg", f"the second process writes {path}"
            whole(path, write)

        checkpoints.replace_atomically = pictures_only
        if fault:
            _inject(script, *fault.split())
    sys.argv = [script, *words]
    ranks.cli(importlib.import_module(script).main)


def _inject(script: str, kind: str, step: str) -> None:
    module, name = STAGES[script]
    items = getattr(importlib.import_module(module), name)
    whole = items.__getitem__

    def get(self, batch):
        data = whole(self, batch)
        if batch.step == int(step):
            if kind == "term":
                os.kill(os.getpid(), signal.SIGTERM)
            if kind == "error":
                raise UserError("a recording broke")
            if kind == "nan":
                return data * torch.nan if isinstance(data, torch.Tensor) else data._replace(eeg=data.eeg * torch.nan)
        return data

    items.__getitem__ = get
