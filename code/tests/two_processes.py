"""A stage on several processes that talk over gloo, started as torchrun starts them, with a fault injected if asked.

The processes are forked from a server that has imported everything once, which takes a tenth of torchrun's time.
"""

import importlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch.distributed import TCPStore

from dc_ldm.generator import EEGImageGenerator
from runtime import atomic, loop, ranks
from runtime.errors import UserError

STAGES = {"stageA1_eeg_pretrain": ("dataset", "EEGWindows"), "eeg_ldm": ("dc_ldm.ldm_for_eeg", "LatentTrials")}
AROUND = {"launch": Fabric, "setup": Fabric, "close": loop.tqdm}  # what is called before the first step, after the last


def launch(script: str, words: list[str], logs: Path, fault: str = "", world: int = 2) -> tuple[list[int], list[str]]:
    """Run `script` with `words` on `world` processes; returns their exit statuses and what each wrote to the terminal.

    The second process also does what `keep_gradients` says, into logs/gradients.pth.

    Args:
        fault: what happens to the second process alone (or to the only one): "nan 3", "term 3", "error 3" (one that is
            foreseen), "crash 3" (one that is not), "kill 3" or "memory 3" (none is left in the backward pass) in step
            3, a signal as in "SIGTERM setup" at a point of AROUND, "memory sampling" (in stage C), "other machine"
            (which takes precision=auto for bf16), or a word more on its command line.
    """
    logs.mkdir(exist_ok=True, parents=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, *STAGES, "gen_eval_eeg", "lightning_fabric"])
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # torchrun's own process has it, too
    port = store.port
    all_ = [context.Process(target=_process, args=(n, world, port, script, words, logs, fault)) for n in range(world)]
    for process in all_:
        process.start()
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and any(process.is_alive() for process in all_):
        time.sleep(0.1)
        if any(process.exitcode for process in all_):
            deadline = min(deadline, time.monotonic() + 30)  # one has failed: the other should soon end too
    codes = [process.exitcode for process in all_]
    for process in all_:
        process.kill()
    assert None not in codes, f"{codes}: {_said(logs, world)}"
    return codes, _said(logs, world)


def keep_gradients(path: Path) -> Callable:
    """A step of AdamW that writes to `path` the gradients that its first call used, in order of its tensors."""
    whole = torch.optim.AdamW.step

    def step(self, *args, **kwargs):
        answer = whole(self, *args, **kwargs)
        if not path.exists():
            torch.save([p.grad for group in self.param_groups for p in group["params"]], path)
        return answer

    return step


def assert_gradients_agree(ours: Path, theirs: Path) -> None:
    """Both files of `keep_gradients` hold the same, each tensor to 1e-6 of the largest gradient there is."""
    one, two = torch.load(ours), torch.load(theirs)
    largest = max(float(gradient.abs().max()) for gradient in one)
    assert len(one) == len(two) and largest > 0
    for number, pair in enumerate(zip(one, two, strict=True)):
        torch.testing.assert_close(*pair, atol=1e-6 * largest, rtol=0, msg=lambda said, n=number: f"tensor {n}: {said}")


def _said(logs: Path, world: int) -> list[str]:
    return [(logs / f"{rank}.log").read_text() for rank in range(world)]


def main() -> None:
    """A script that trains nothing: its first process sends SIGTERM to those named in sys.argv while the others wait.

    They wait in a gather, and it sends the signal to itself last, as it does not go on then.
    """
    pids, told = ranks.share(os.getpid()), sorted(map(int, sys.argv[1:]), reverse=True)

    def stop() -> None:
        time.sleep(0.5)
        for number in told:
            os.kill(pids[number], signal.SIGTERM)
        time.sleep(0.5)

    ranks.from_lead(stop)
    ranks.from_lead(lambda: print("goes on"))
    ranks.share()


def write_to(path: Path) -> None:
    """Let a forked process write to a file what it would write to the terminal, and compute on one thread."""
    sys.stdout.flush()
    with open(path, "w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    torch.set_num_threads(1)


def alone(script: str, words: list[str], logs: Path) -> None:
    """A forked process that runs `script` by itself, as from a terminal."""
    write_to(logs / "0.log")
    sys.argv = [script, *words]
    ranks.cli(importlib.import_module(script).main)


def _process(rank: int, world: int, port: int, script: str, words: list[str], logs: Path, fault: str) -> None:
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world),
        "GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }  # fmt: skip
    write_to(logs / f"{rank}.log")
    if rank:
        whole = atomic.replace_atomically

        def pictures_only(path: Path, write) -> None:
            assert path.suffix == ".png" and script == "gen_eval_eeg", f"the second process writes {path}"
            whole(path, write)

        atomic.replace_atomically = pictures_only
    sys.argv = [script, *words]
    if rank == min(1, world - 1):
        torch.optim.AdamW.step = keep_gradients(logs / "gradients.pth")
        if "=" in fault:
            sys.argv.append(fault)
        elif fault:
            _inject(script, *fault.split())
    ranks.cli(importlib.import_module(script).main)


def _out_of_memory(*args, **kwargs) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


def _inject(script: str, kind: str, step: str) -> None:
    if kind.startswith("SIG"):
        owner = AROUND[step]
        whole, numbers = getattr(owner, step), [signal.Signals[kind]]

        def interrupted(*args, **more):
            while numbers:
                os.kill(os.getpid(), numbers.pop())
            return whole(*args, **more)

        setattr(owner, step, interrupted)
        return
    if step == "machine":
        loop.pick_dtype = lambda *_: torch.bfloat16
        return
    if step == "sampling":
        EEGImageGenerator._sample = _out_of_memory
        return
    module, name = STAGES[script]
    items = getattr(importlib.import_module(module), name)
    whole = items.__getitem__

    def get(self, batch):
        data = whole(self, batch)
        if batch.step == int(step):
            if kind == "term":
                os.kill(os.getpid(), signal.SIGTERM)
            if kind == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if kind == "memory":
                torch.Tensor.backward = _out_of_memory
            if kind == "crash":
                raise ValueError("nobody thought of this")
            if kind == "error":
                raise UserError("a recording broke")
            if kind == "nan":
                return data * torch.nan if isinstance(data, torch.Tensor) else data._replace(eeg=data.eeg * torch.nan)
        return data

    items.__getitem__ = get
