"""Every figure of README and docs has a receipt, and a receipt's command says whether its figures still hold."""

import subprocess
import sys
from pathlib import Path

import pytest

from commands.receipts import blocks, check, figures, quick, read_book, within
from runtime.errors import UserError

ROOT = Path(__file__).parents[2]
RECEIPT = """
- id: {id}
  figures:
    share: 0.48 [0.40, 0.55]
    time: 12 s
  tolerance: 20 %
  command: |
    {command}
  reads:
    share: results/out/scores.json:scores.top1
    time: 'stdout:done in (\\S+) s'
  seed: 1
  commit: 7898eef
  machine: *here
  date: 2026-11-21
  seconds: {seconds}
"""
WRITES = (
    'mkdir -p results/out; echo \'{{"scores": {{"top1": {top1}}}}}\' > results/out/scores.json; echo done in {time} s'
)


def receipt(id: str = "demo", top1: float = 0.48, time: str = "12", seconds: float = 1, command: str = "") -> str:
    return RECEIPT.format(id=id, command=command or WRITES.format(top1=top1, time=time), seconds=seconds)


def house(root: Path, *receipts: str, page: str = "It scores 0.48 [0.40, 0.55] in 12 s. <!--r:demo-->\n") -> Path:
    """A project with one page and these receipts."""
    (root / "docs").mkdir(parents=True)
    (root / "README.md").write_text(page)
    head = "machines:\n  here: &here this one\nquotes:\n- id: paper\n  figures: {top1: 45.8 %}\n  source: the paper\n"
    (root / "docs/receipts.yaml").write_text(head + "receipts:" + "".join(receipts or [receipt()]))
    (root / "README.md").write_text(page + "\nThey say 45.8 %. <!--r:paper-->\n")
    return root


def run(root: Path, *words: str) -> tuple[int, str]:
    """Exit status and all that the command says."""
    script = ROOT / "code/run.py"
    done = subprocess.run(
        [sys.executable, script, "receipts", f"root_path={root}", *words], capture_output=True, text=True
    )
    return done.returncode, done.stdout + done.stderr


def problems(root: Path) -> list[str]:
    return check(root, read_book(root / "docs/receipts.yaml"))[0]


def test_every_figure_of_this_project_has_a_receipt():
    found, count = check(ROOT, read_book(ROOT / "docs/receipts.yaml"))
    assert not found, "\n".join(found)
    assert count > 500


@pytest.mark.parametrize(
    "text, found",
    [
        ("scores 0.48, chance .02, p = 7e-7", ["0.48", ".02", "7e-7"]),
        ("12 s, 3 GB, 85 %, 5 times, 844 passed", ["12", "3", "85", "5", "844"]),
        ("1,150 trials of 40 classes, wrong in 0 of 180", ["1,150", "0"]),
        ("-0.002 [-0.010, 0.004], +0.38", ["-0.002", "-0.010", "0.004", "+0.38"]),
        ("128 electrodes, 5-95 Hz, 2026-11-21, 24 x 1024, seed 2022", []),
        ("`mask_ratio=0.75`, [1812.07697](https://arxiv.org/abs/1812.07697)", ["1812.07697"]),
        ("[a link](page.md#v1.5) and https://x.org/1.5 <!-- 0.5 -->", []),
        ("Python\n3.11 takes 3.12", ["3.12"]),
    ],
)
def test_what_a_figure_is(text, found):
    assert [figure for _, figure in figures(blocks(text)[0], ["Python 3.11"])] == found


def test_fences_tables_and_paragraphs_are_blocks_and_marks_below_them_count():
    page = """One 0.1. <!--r:a-->

| x | 0.2 |
|---|---|
<!--r:b, c-->

```
python code/x.py lr=0.3   # 4 s
```
<!--r:d-->

```text
all 0.5
```
`<!--r:no-->` is how a mark looks.
"""
    found = [(part.line, part.marks, [f for _, f in figures(part, [])]) for part in blocks(page)]
    assert found == [(1, ["a"], ["0.1"]), (3, ["b", "c"], ["0.2"]), (7, ["d"], ["4"]), (12, [], ["0.5"]), (15, [], [])]


def test_a_figure_without_a_receipt_is_named_with_its_line(tmp_path):
    assert problems(house(tmp_path / "good")) == []
    page = "One line.\n\nIt scores 0.48 [0.40, 0.55]\nin 12 s and 0.49. <!--r:demo-->\n"
    assert problems(house(tmp_path / "other", page=page)) == ["README.md:4: 0.49 has no receipt"]
    status, said = run(tmp_path / "other")
    assert status == 1 and "README.md:4: 0.49" in said and "1 without or wrong" in said
    assert run(tmp_path / "good")[0] == 0


def test_marks_and_receipts_must_meet(tmp_path):
    page = "It scores 0.48 [0.40, 0.55] in 12 s. <!--r:dem-->\n"
    found = "\n".join(problems(house(tmp_path / "a", page=page)))
    assert "README.md:1: no receipt is called dem; did you mean demo?" in found
    assert "demo: time 12 s stands on no page" in found
    stale = problems(house(tmp_path / "b", page="It scores 0.48 [0.40, 0.55]. <!--r:demo-->\n"))
    assert stale == ["docs/receipts.yaml: demo: time 12 s stands on no page beside its mark"]


@pytest.mark.parametrize(
    "change, said",
    [
        (("  command: |", "  comand: |"), "other: Key 'comand' not in 'Receipt'"),
        (("  tolerance: 20 %\n", ""), "missing mandatory value: tolerance"),
        (("  seconds: 2", "  seconds: soon"), "other: Value 'soon'"),
        (("    share: results/", "    shares: results/"), "other: reads shares"),
        (("- id: other", "- id: demo"), "demo is there twice"),
        (("  date: 2026-11-21\n  seconds: 2", "  date: [\n  seconds: 2"), "entry other"),
    ],
)
def test_a_wrong_entry_is_named_in_one_sentence(tmp_path, change, said):
    root = house(tmp_path / "house", receipt(), receipt("other", seconds=2))
    path = root / "docs/receipts.yaml"
    before, _, after = path.read_text().partition("- id: other")
    path.write_text(before + ("- id: other" + after).replace(*change))
    with pytest.raises(UserError) as error:
        read_book(path)
    assert said in str(error.value)


def test_a_missing_file_of_receipts_is_said(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_book(tmp_path / "receipts.yaml")


@pytest.mark.parametrize(
    "value, text, tolerance, inside",
    [
        (0.54, "0.48 [0.40, 0.55]", "0", True),
        (0.56, "0.48 [0.40, 0.55]", "0.5", False),
        (14.0, "12 s", "20 %", True),
        (15.0, "12 s", "20 %", False),
        (0.4804, "0.480", "0", True),
        (0.4806, "0.480", "0", False),
        (-0.02, "-0.018 [-0.036, -0.003]", "0", True),
        (844, "844 passed", "0", True),
        (1150, "1,150", "0", True),
    ],
)
def test_within(value, text, tolerance, inside):
    assert within(value, text, tolerance) is inside


def test_running_a_receipt_says_what_is_within_and_what_outside(tmp_path):
    status, said = run(house(tmp_path / "good"), "run=demo")
    assert status == 0 and said.count("within") == 2 and "0 outside" in said and "on this one" in said
    root = house(tmp_path / "slow", receipt(top1=0.41, time="30"))
    (root / "results/out").mkdir(parents=True)  # of an earlier run: the command has a folder of its own
    status, said = run(root, "run=demo")
    assert status == 1 and "OUTSIDE  time: 30, the page has 12 s" in said and "1 outside: demo: time" in said
    assert not list((root / "results/out").iterdir())
    assert (root / "results/receipts/demo/results/out/scores.json").is_file()


def test_a_figure_in_percent_is_read_as_a_share(tmp_path):
    entry = receipt(top1=0.41).replace("0.48 [0.40, 0.55]", "40 %")
    status, said = run(house(tmp_path / "house", entry, page="It scores 40 % in 12 s. <!--r:demo-->\n"), "run=demo")
    assert status == 0 and "within   share: 41, the page has 40 %" in said


@pytest.mark.parametrize(
    "id, command, said",
    [
        ("demmo", "", "no receipt is called demmo; did you mean demo?"),
        ("paper", "", "quoted from the paper"),
        ("demo", "echo done in 12 s", "scores.json: the command did not write this file"),
        ("demo", "mkdir -p results/out; echo '{}' > results/out/scores.json", "it holds no scores.top1"),
        ("demo", WRITES.format(top1=0.5, time=1).replace("done", "ended"), "it holds no done in"),
        ("demo", "echo so far; exit 3", "ended with status 3"),
    ],
)
def test_what_cannot_be_run_is_said_in_one_sentence(tmp_path, id, command, said):
    status, words = run(house(tmp_path / "house", receipt(command=command)), f"run={id}")
    assert status == 2 and said in words and "Traceback" not in words


def test_quick_takes_the_shortest_that_fit_and_runs_a_shared_command_once(tmp_path):
    once = "echo x >> ../../../runs; " + WRITES.format(top1=0.5, time="12")
    shared = [receipt("a", command=once, seconds=10), receipt("b", command=once, seconds=10)]
    others = [receipt("long", seconds=580), receipt("short", top1=0.5, seconds=400), receipt("untimed", seconds=0)]
    lacking = receipt("lacking", seconds=1).rstrip() + "\n  needs: [datasets/away]\n"
    page = "It scores 0.48 [0.40, 0.55] in 12 s. <!--r:a, b, long, short, untimed, lacking-->\n"
    root = house(tmp_path / "house", *shared, *others, lacking, page=page)
    book = read_book(root / "docs/receipts.yaml")
    assert [entry.id for entry in quick(book, root)] == ["a", "b", "short"]
    status, said = run(root, "run=quick")
    assert status == 0 and "3 of 6 receipts, about 410 s" in said
    assert (root / "runs").read_text() == "x\n"
    assert run(root, "run=lacking")[1].strip().endswith("needs datasets/away, which is not there")
