"""A stage killed at a random instant, saves included, then given the same command again; and what it left, to compare.

The processes are forked from the server of two_processes.py, which has imported everything once.
"""

import hashlib
import json
import multiprocessing
import os
import random
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import two_processes
from torch.distributed import TCPStore

LONGEST = 240  # s that one command may take


@dataclass(frozen=True)
class Moment:
    """When a process ends: after `seconds`, or around the `write`th file that it puts in place."""

    seconds: float | None = None
    write: int = 0
    place: str = ""  # "before" or "after" the rename, or "within": only `share` of the bytes are on the disk
    share: float = 0.0

    def __str__(self) -> str:
        return f"after {self.seconds:.2f} s" if self.seconds is not None else f"{self.place} write {self.write}"


def moment(draw: random.Random, seconds: float, writes: int) -> Moment:
    """One at random in a run that takes `seconds` and writes so many files; half of them are saves."""
    if draw.random() < 0.5:
        return Moment(seconds=draw.uniform(0.0, seconds))
    return Moment(write=draw.randrange(writes), place=draw.choice(["before", "after", "within"]), share=draw.random())


def run(script: str, words: list[str], logs: Path, ends: Moment | None = None, world: int = 1) -> tuple[list[int], str]:
    """Run a stage on `world` processes, all of which are killed at `ends`: their exit statuses and what they said."""
    logs.mkdir(exist_ok=True, parents=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, *two_processes.STAGES, "gen_eval_eeg", "lightning_fabric"])
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    arguments = (world, store.port, script, words, logs, ends)
    processes = [context.Process(target=_process, args=(rank, *arguments)) for rank in range(world)]
    for process in processes:
        process.start()
    started, last = time.monotonic(), LONGEST if ends is None or ends.seconds is None else ends.seconds
    while time.monotonic() < started + last and any(process.is_alive() for process in processes):
        time.sleep(0.005)
        if ends and any(process.exitcode for process in processes):
            break  # one has killed itself: the machine is gone
    for process in processes:
        process.kill()
        process.join()
    return [process.exitcode for process in processes], "\n".join(p.read_text() for p in sorted(logs.glob("*.log")))


def _process(rank: int, world: int, port: int, script: str, words: list[str], logs: Path, ends: Moment | None) -> None:
    places = [0]
    whole, flush = os.replace, os.fsync

    def end(when: str) -> bool:
        return ends is not None and ends.place == when and ends.write == places[0]

    def replace(source, target, **more) -> None:
        if end("before"):
            os.kill(os.getpid(), signal.SIGKILL)
        whole(source, target, **more)
        if end("after"):
            os.kill(os.getpid(), signal.SIGKILL)
        places[0] += 1
        with open(logs / f"writes-{rank}", "a") as count:
            count.write(f"{target}\n")

    def fsync(descriptor: int) -> None:
        flush(descriptor)
        if end("within"):
            os.ftruncate(descriptor, int(os.fstat(descriptor).st_size * ends.share))
            os.kill(os.getpid(), signal.SIGKILL)

    if not rank:
        os.replace, os.fsync = replace, fsync
    if world > 1:
        two_processes._process(rank, world, port, script, words, logs, "")
    else:
        two_processes.alone(script, words, logs)


def outcome(folder: Path, handed_on: Path | None) -> dict[str, str]:
    """What a finished run left, each part as text, without times: two runs of one command are equal in all of it."""
    parts = {str(p.relative_to(folder)): _digest(p.read_bytes()) for p in sorted(folder.rglob("*.png"))}
    for name in ("metrics.csv", "arrays.safetensors", "trials.csv", "scores.csv"):
        if (folder / name).exists():
            parts[name] = _digest((folder / name).read_bytes())
    if handed_on:
        record = json.loads(handed_on.with_suffix(".json").read_text())
        finished = json.loads((folder / "finished.json").read_text())
        assert record["sha256"] == finished["sha256"] == _digest(handed_on.read_bytes())
        parts["handed on"] = plain(torch.load(handed_on, weights_only=True))
    else:
        metrics = json.loads((folder / "metrics.json").read_text())
        parts["metrics.json"] = json.dumps(without_times(metrics))
    return parts


def without_times(value):
    """A JSON value without what differs between two runs of one command."""
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if k not in ("seconds", "opened_at", "config_sha256")}
    return [without_times(v) for v in value] if isinstance(value, list) else value


def plain(value) -> str:
    """A checkpoint's content as text, tensors as digests of their bytes."""
    if isinstance(value, torch.Tensor):
        return f"{value.dtype} {tuple(value.shape)} {_digest(value.contiguous().numpy().tobytes())}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {plain(v)}" for k, v in value.items()) + "}"
    return "[" + ", ".join(map(plain, value)) + "]" if isinstance(value, list | tuple) else repr(value)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
