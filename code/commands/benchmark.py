"""How fast we are: every row is a ratio against a named peer, measured side by side in this process.

python code/run.py benchmark                                     # miniature size, all rows
python code/run.py benchmark size=half rows=unet_forward,sampling
python code/run.py benchmark size=full precision=32 json=full.json | tee full.md
python code/run.py benchmark size=full rows=unet_compiled,stage_b_compiled device=cuda

Both sides hold the same weights, get the same input and precision, and take turns; the ratio is of medians. What is
printed is a table in Markdown.
"""

import ctypes
import json
import platform
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from commands.bench.rows import ONLY_IF_ASKED, ROWS
from commands.bench.sizes import SIZES, Machine, Row
from config import from_cli, setting
from runtime import atomic
from runtime.devices import pick_device
from runtime.errors import UserError

PRECISIONS = {"bf16": torch.bfloat16, "32": torch.float32}


@dataclass
class BenchmarkConfig:
    """Ratios of speed and memory against named peers."""

    size: Literal[tuple(SIZES)] = setting("miniature", "of the networks")
    rows: str = setting("all", f"which, by comma: {', '.join(ROWS)}")
    precision: Literal["bf16", "32"] = setting("bf16", "the published recipe is shown in 32 as well")
    repeats: int = setting(5, "timed calls of each side, after one to warm up; 5 for a figure to quote", least=1)
    device: str = setting("auto", "auto, cpu, cuda or cuda:N")
    json: str = setting("", "file for the figures; empty: none")


class Side(NamedTuple):
    """What one way of doing the work takes, each for one unit of work."""

    seconds: float
    memory: float  # bytes above what was there before the call, at the most
    flops: float


def main() -> None:
    cfg = from_cli(BenchmarkConfig)
    names = [name for name in ROWS if name not in ONLY_IF_ASKED] if cfg.rows == "all" else cfg.rows.split(",")
    if unknown := [name for name in names if name not in ROWS]:
        raise UserError(f"rows={cfg.rows}: there is no row {unknown[0]}; there are {', '.join(ROWS)}")
    machine = Machine(pick_device(cfg.device), PRECISIONS[cfg.precision])
    peaks = {p: matmul_peak(Machine(machine.device, d)) for p, d in PRECISIONS.items()}
    reached = " and ".join(f"{flops / 1e12:.3g} TFLOP/s in {p}" for p, flops in peaks.items())
    title = f"{about_machine(machine)}; size {cfg.size}, {cfg.precision}; matrix products reach {reached}."
    print(title, "", line(HEAD), line(["-" * max(3, abs(width)) for width in WIDTH]), sep="\n")
    figures = {}
    for name in names:
        try:
            with within_memory(machine.device):
                sides, unit = compare(ROWS[name](SIZES[cfg.size], machine), cfg.repeats, machine.device)
        except (MemoryError, RuntimeError) as error:
            if not any(words in str(error).lower() for words in ("memory", "bad_alloc")):
                raise
            print(f"{name} does not fit: {str(error).splitlines()[0][:200]}", flush=True)
            continue
        figures[name] = {who: side._asdict() for who, side in sides.items()} | {"unit": unit}
        print(*map(line, cells(name, sides, unit, peaks[cfg.precision])), sep="\n", flush=True)
    if cfg.json:
        content = {"config": asdict(cfg), "machine": about_machine(machine), "matmul_flops": peaks, "rows": figures}
        atomic.write_text(cfg.json, json.dumps(content, indent=1) + "\n")


@contextmanager
def within_memory(device: torch.device) -> Iterator[None]:
    """Let a row that needs more memory than is free now fail at once, instead of the system killing the benchmark."""
    old = resource.getrlimit(resource.RLIMIT_DATA)
    if device.type == "cpu":
        limit = _kilobytes("/proc/self/status", "VmData") + _kilobytes("/proc/meminfo", "MemAvailable")
        resource.setrlimit(resource.RLIMIT_DATA, (int(limit), old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, old)


def about_machine(machine: Machine) -> str:
    """Processor or GPU, threads, torch, date."""
    if machine.device.type == "cuda":
        name = torch.cuda.get_device_name(machine.device)
    else:
        name = f"{platform.processor() or platform.machine()} CPU, {torch.get_num_threads()} threads"
    return f"{name}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}"


def matmul_peak(machine: Machine, n: int = 2048) -> float:
    """Floating-point operations a second of one large matrix product, the fastest of ten."""
    a = torch.randn(n, n).to(*machine)
    return 2 * n**3 / min(timed(lambda: a @ a, machine.device) for _ in range(10))


def compare(row: Row, repeats: int, device: torch.device) -> tuple[dict[str, Side], str]:
    """Time all sides in turns, after two calls of each, for its operations and its memory. And the unit."""
    calls = {"ours": row.ours, **row.peers}
    flops, memory, seconds = {}, {}, {who: [] for who in calls}
    for who, call in calls.items():
        flops[who] = operations(call)
        memory[who] = memory_rise(call, device)
    for _ in range(repeats):
        for who, call in calls.items():
            seconds[who].append(timed(call, device))
    units = row.per or dict.fromkeys(calls, 1)
    sides = {
        who: Side(statistics.median(seconds[who]) / units[who], memory[who], flops[who] / units[who]) for who in calls
    }
    return sides, row.unit


def operations(call: Callable[[], object]) -> int:
    """Floating-point operations of one call; a compiled network's are counted as it is traced."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def timed(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call."""
    started = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def memory_rise(call: Callable[[], object], device: torch.device) -> float:
    """Bytes by which memory rises in one call, at the most; apart from timing, because it empties the allocator."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    ctypes.CDLL(None).malloc_trim(0)  # what the allocator keeps for later would hide the rise
    Path("/proc/self/clear_refs").write_text("5")  # the record of the peak starts anew
    before = _kilobytes("/proc/self/status", "VmRSS")
    call()
    return _kilobytes("/proc/self/status", "VmHWM") - before


def _kilobytes(file: str, field: str) -> float:
    """A field of one of Linux's own files, in bytes."""
    line = next(line for line in Path(file).read_text().splitlines() if line.startswith(field))
    return 1024.0 * int(line.split()[1])


HEAD = ["row", "peer", "ours, s", "peer, s", "a", "ratio", "memory, GB", "TFLOP", "of peak"]
WIDTH = (-14, -32, 9, 9, -8, 7, 15, 18, 7)


def cells(name: str, sides: dict[str, Side], unit: str, peak: float) -> list[list[str]]:
    """A row of cells for each peer: seconds a unit, ratio, memory and operations of both, our share of the peak."""
    ours = sides["ours"]
    return [
        [
            name, who, f"{ours.seconds:.4g}", f"{side.seconds:.4g}", unit, f"{side.seconds / ours.seconds:.2f}",
            f"{ours.memory / 1e9:.2f} / {side.memory / 1e9:.2f}", f"{ours.flops / 1e12:.3g} / {side.flops / 1e12:.3g}",
            f"{ours.flops / ours.seconds / peak:.0%}",
        ]
        for who, side in sides.items()
        if who != "ours"
    ]  # fmt: skip


def line(row: list[str]) -> str:
    """Cells as a row of a Markdown table, in columns of WIDTH; negative: to the left."""
    return "| " + " | ".join(f"{c:<{-w}}" if w < 0 else f"{c:>{w}}" for c, w in zip(row, WIDTH, strict=True)) + " |"
