"""The benchmark's harness, on made-up rows whose times are known: turns, medians, units, ratios, tables, memory."""

import json
import sys

import pytest
import torch

import commands.bench.data as benchmark_data
from commands import benchmark
from commands.bench.sizes import Row
from runtime.errors import UserError

CPU = torch.device("cpu")


def run(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "device=cpu", "precision=32", *words])
    benchmark.main()


def made_up_times(monkeypatch, seconds):
    """Each call takes the next of the times under its name, whatever it really takes; returns who was called when."""
    order, left = [], {who: iter(times) for who, times in seconds.items()}

    def timed(call, device):
        call()
        return next(left[order[-1]])

    def memory_rise(call, device):
        call()
        return 1e9 if order[-1] == "ours" else 2e9

    monkeypatch.setattr(benchmark, "timed", timed)
    monkeypatch.setattr(benchmark, "memory_rise", memory_rise)
    return order, {who: (lambda who=who: order.append(who)) for who in seconds}


def test_sides_take_turns_and_the_median_of_each_counts(monkeypatch):
    order, calls = made_up_times(monkeypatch, {"ours": [1, 9, 2, 3, 4], "a": [5, 6, 70, 8, 9], "b": [1] * 5})
    row = Row(calls["ours"], {"a": calls["a"], "b": calls["b"]}, {"ours": 3, "a": 2, "b": 1}, "picture")
    sides, unit = benchmark.compare(row, 5, CPU)
    assert order[:6] == ["ours", "ours", "a", "a", "b", "b"]  # operations, memory
    assert order[6:] == ["ours", "a", "b"] * 5 and unit == "picture"
    assert {who: side.seconds for who, side in sides.items()} == {"ours": 1.0, "a": 4.0, "b": 1.0}
    assert [side.memory for side in sides.values()] == [1e9, 2e9, 2e9]


def test_operations_are_counted_for_a_unit_of_work():
    a = torch.ones(8, 16)
    sides, _ = benchmark.compare(Row(lambda: a @ a.T, {"twice": lambda: (a @ a.T, a @ a.T)}), 1, CPU)
    assert sides["ours"].flops == 2 * 8 * 16 * 8 and sides["twice"].flops == 2 * sides["ours"].flops


def test_lines_hold_ratio_memory_operations_and_share_of_the_peak():
    sides = {"ours": benchmark.Side(2.0, 1e9, 3e12), "peer": benchmark.Side(5.0, 4e9, 6e12)}
    (cells,) = benchmark.cells("row", sides, "step", peak=3e12)
    assert cells == ["row", "peer", "2", "5", "step", "2.50", "1.00 / 4.00", "3 / 6", "50%"]
    assert len(cells) == len(benchmark.HEAD) == len(benchmark.WIDTH)


def test_the_command_writes_a_table_and_figures_and_names_what_does_not_fit(monkeypatch, capsys, tmp_path):
    _, calls = made_up_times(monkeypatch, {"ours": [2.0] * 5, "peer": [3.0] * 5})
    monkeypatch.setattr(benchmark, "matmul_peak", lambda machine: 1e12)

    def too_large(size, machine):
        return Row(lambda: torch.empty(1 << 50, dtype=torch.uint8), {})

    rows = {"small": lambda size, machine: Row(calls["ours"], {"peer": calls["peer"]}), "large": too_large}
    monkeypatch.setattr(benchmark, "ROWS", rows | {"slow": lambda size, machine: pytest.fail("nobody asked for it")})
    monkeypatch.setattr(benchmark, "ONLY_IF_ASKED", ("slow",))
    run(monkeypatch, f"json={tmp_path / 'b.json'}")
    printed = capsys.readouterr().out
    assert "large does not fit" in printed and "1 TFLOP/s in 32" in printed
    table = [line.replace(" ", "") for line in printed.splitlines() if line.startswith("|")]
    assert table[0].startswith("|row|peer|") and set(table[1]) == {"|", "-"}
    assert table[2].startswith("|small|peer|2|3|call|1.50|")
    figures = json.loads((tmp_path / "b.json").read_text())
    assert figures["rows"]["small"]["peer"]["seconds"] == 3.0 and list(figures["rows"]) == ["small"]
    for words, message in (
        (["rows=fast"], "there is no row fast"),
        (["size=huge"], "size=huge: expected miniature or half or full"),
    ):
        with pytest.raises(UserError, match=message):
            run(monkeypatch, *words)


def test_memory_is_bounded_by_what_is_free_and_freed_again():
    before = benchmark.resource.getrlimit(benchmark.resource.RLIMIT_DATA)
    with pytest.raises(RuntimeError, match="memory"), benchmark.within_memory(CPU):
        torch.empty(1 << 40, dtype=torch.uint8)
    assert benchmark.resource.getrlimit(benchmark.resource.RLIMIT_DATA) == before


@pytest.mark.parametrize("row", ["data_start", "data_batches", "encoder", "stage_a", "unet_forward"])
def test_rows_run_on_the_device_that_is_there(monkeypatch, capsys, row):
    monkeypatch.setitem(benchmark_data.TRIALS, "miniature", 240)
    monkeypatch.setattr(benchmark, "matmul_peak", lambda machine: 1e12)
    run(monkeypatch, f"rows={row}", "repeats=1")
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"| {row}")
