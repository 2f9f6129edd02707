"""How fast we are: every row is a ratio against a named peer, measured side by side in this process.

python code/benchmark.py                                     # miniature size, all rows
python code/benchmark.py size=half rows=unet_forward,sampling
python code/benchmark.py size=full precision=32 json=full.json

Both sides hold weights of the same size, get the same input and precision, and take turns; the ratio is of medians.
"""

import ctypes
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmark_rows import ROWS
from benchmark_sizes import SIZES, Machine, Row
from config import from_cli, setting
from runtime import checkpoints
from runtime.errors import UserError, cli
from runtime.loop import pick_device


@dataclass
class BenchmarkConfig:
    """Ratios of speed and memory against named peers."""

    size: str = setting("miniature", f"of the networks: {', '.join(SIZES)}")
    rows: str = setting("all", f"which, by comma: {', '.join(ROWS)}")
    precision: str = setting("bf16", "bf16 or 32; the published recipe is shown in 32 as well")
    repeats: int = setting(5, "timed calls of each side, after one that warms up; at least 5 for a figure to quote")
    device: str = setting("auto", "auto, cpu, cuda or cuda:N")
    json: str = setting("", "file for the figures; empty: none")


class Side(NamedTuple):
    """What one way of doing the work takes, each for one unit of work."""

    seconds: float
    memory: float  # bytes above what was there before the call, at the most
    flops: float


def main() -> None:
    cfg = from_cli(BenchmarkConfig)
    names = list(ROWS) if cfg.rows == "all" else cfg.rows.split(",")
    if unknown := [name for name in names if name not in ROWS]:
        raise UserError(f"rows={cfg.rows}: there is no row {unknown[0]}; there are {', '.join(ROWS)}")
    if cfg.size not in SIZES or cfg.precision not in ("bf16", "32"):
        raise UserError(f"size={cfg.size} precision={cfg.precision}: use size={'|'.join(SIZES)}, precision=bf16|32")
    machine = Machine(pick_device(cfg.device), torch.bfloat16 if cfg.precision == "bf16" else torch.float32)
    peak = matmul_peak(machine)
    print(f"{about_machine(machine)}; matrix products reach {peak / 1e12:.2f} TFLOP/s in {cfg.precision}")
    print(f"{'row':14} {'peer':28} {'ours':>10} {'peer':>10} {'ratio':>7}  {'memory':>15} {'TFLOP':>15} {'of peak':>7}")
    figures = {}
    for name in names:
        row = ROWS[name](SIZES[cfg.size], machine)
        sides = measure(row, cfg.repeats, machine.device)
        figures[name] = {who: side._asdict() for who, side in sides.items()} | {"unit": row.unit}
        for line in lines(name, sides, peak):
            print(line, flush=True)
    if cfg.json:
        content = {"config": asdict(cfg), "machine": about_machine(machine), "matmul_flops": peak, "rows": figures}
        checkpoints.write_text(cfg.json, json.dumps(content, indent=1) + "\n")


def about_machine(machine: Machine) -> str:
    """Processor or GPU, threads, torch, date."""
    if machine.device.type == "cuda":
        name = torch.cuda.get_device_name(machine.device)
    else:
        name = f"{platform.processor() or platform.machine()} CPU, {torch.get_num_threads()} threads"
    return f"{name}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}"


def matmul_peak(machine: Machine, n: int = 2048) -> float:
    """Floating-point operations a second of one large matrix product."""
    a = torch.randn(n, n).to(*machine)
    return 2 * n**3 / statistics.median(timed(lambda: a @ a, machine.device)[0] for _ in range(5))


def measure(row: Row, repeats: int, device: torch.device) -> dict[str, Side]:
    """Time all sides in turns; the first call of each, which is not timed, counts its operations."""
    calls = {"ours": row.ours, **row.peers}
    flops, found = {}, {who: [] for who in calls}
    for who, call in calls.items():
        with FlopCounterMode(display=False) as counter:
            call()
        flops[who] = counter.get_total_flops()
    for _ in range(repeats):
        for who, call in calls.items():
            found[who].append(timed(call, device))
    units = row.per or dict.fromkeys(calls, 1)
    return {
        who: Side(
            statistics.median(seconds for seconds, _ in results) / units[who],
            max(memory for _, memory in results),
            flops[who] / units[who],
        )
        for who, results in found.items()
    }


def timed(call: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """Seconds of one call, and bytes by which memory rose in it."""
    before = start_memory(device)
    started = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - started
    return seconds, peak_memory(device) - before


def start_memory(device: torch.device) -> float:
    """Bytes in use now; the record of the peak starts anew."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    ctypes.CDLL(None).malloc_trim(0)  # what the allocator keeps for later would hide the rise
    Path("/proc/self/clear_refs").write_text("5")
    return _resident("VmRSS")


def peak_memory(device: torch.device) -> float:
    """The most bytes in use since `start_memory`."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _resident("VmHWM")


def _resident(field: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return 1024.0 * int(line.split()[1])


def lines(name: str, sides: dict[str, Side], peak: float) -> list[str]:
    """A line for each peer: times in seconds a unit, ratio, memory in GB, operations, share of the machine's peak."""
    ours = sides["ours"]
    return [
        f"{name:14} {who:28} {ours.seconds:10.4g} {side.seconds:10.4g} {side.seconds / ours.seconds:6.2f}x  "
        f"{ours.memory / 1e9:6.2f} / {side.memory / 1e9:6.2f} {ours.flops / 1e12:6.3g} / {side.flops / 1e12:6.3g} "
        f"{ours.flops / ours.seconds / peak:7.0%}"
        for who, side in sides.items()
        if who != "ours"
    ]


if __name__ == "__main__":
    cli(main)
