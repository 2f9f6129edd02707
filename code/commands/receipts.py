"""Where every figure of README and docs comes from: those without a receipt, or some measured again.

python code/run.py receipts                     # figures that docs/receipts.yaml does not cover; none: exit status 0
python code/run.py receipts run=bands           # runs the receipt's command and says which figures fall outside
python code/run.py receipts run=quick           # the same for all that take under ten minutes together

A figure is a number in README.md or docs/*.md with a decimal point, an exponent, a comma between thousands, or a unit
or "of 20" behind it. Links, `inline code`, the list of modules and the `names` of the receipts file ("Python 3.11")
hold no figures; of a fenced block only the comments count, or all of it where the fence says `text`. <!--r:ID--> in
the same paragraph, or right under the table or fence, names the receipt, or the quotation, among whose `figures` each
number must be.

A command runs in results/receipts/<ID>, where code/ and pretrains/miniature are links: nothing of yours is touched.
$ROOT is the checkout, for what must run there.
"""

import difflib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import reduce
from operator import attrgetter, getitem
from pathlib import Path
from typing import NamedTuple

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from config import from_cli, setting
from runtime.errors import UserError

FILE = "docs/receipts.yaml"
QUICK = 600  # seconds
STDOUT = "stdout.txt"  # what a command prints, in its folder
NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+|(?=\.\d))(?:\.\d+)?(?:e-?\d+)?(?!\w)")
UNIT = re.compile(
    r"\s?(?:%|(?:s|ms|min|minutes?|seconds?|core-seconds|hours?|GB|MB|dB|TFLOP|times|tests|passed|deselected)\b)| of \d"
)
INTERVAL = re.compile(r"\[\s*([-+.\de]+),\s*([-+.\de]+)\s*\]")
BLOCK = re.compile(  # a fenced block, a table, or a paragraph
    r"^```(?P<kind>.*)\n(?P<fence>(?:.*\n)*?)```|(?:^\|.*\n)+|(?:^(?!```|\|).*\S.*(?:\n|\Z))+", re.MULTILINE
)
CODE = re.compile(r"`[^`]*`")
GENERATED = re.compile(r"<!-- modules.*?<!-- end of modules -->", re.DOTALL)  # by code_tour
MARK = re.compile(r"<!--r:([\w, .-]+)-->")
NO_FIGURES = re.compile(r"\]\([^)]*\)|<!--.*?-->|https?://\S+", re.DOTALL)


@dataclass
class ReceiptsConfig:
    """Figures without a receipt, or some figures measured again."""

    root_path: str = setting(".", "folder that holds README.md, docs/ and code/")
    run: str = setting("", "a receipt to measure again, or quick; empty: list figures without a receipt")


@dataclass
class Quote:
    """Figures that others measured."""

    id: str
    figures: dict[str, str]  # name -> as the page has it
    source: str


@dataclass
class Receipt:
    """Figures of one command. An interval behind a figure is its tolerance; `tolerance` is for those without."""

    id: str
    figures: dict[str, str]  # name -> as the page has it, the figure first, its interval behind it
    tolerance: str  # 0.02, or 20 %
    command: str  # lines for bash
    seed: str
    commit: str
    machine: str
    date: str
    reads: dict[str, str] = field(default_factory=dict)  # name -> where to read it, see `Measured.read`; of % a share
    needs: list[str] = field(default_factory=list)  # files that the command reads beside code/, pretrains/miniature
    seconds: float = 0.0  # that the command takes; 0: not known


class Book(NamedTuple):
    """The file of receipts; its `machines` are said once there, for receipts to point at."""

    receipts: dict[str, Receipt]
    quotes: dict[str, Quote]
    names: list[str]  # numbers that belong to a name or a setting


class Block(NamedTuple):
    """A paragraph, table or fenced block of a page, with the receipts that its marks name."""

    line: int
    text: str
    marks: list[str]


class Measured(NamedTuple):
    """What a command left behind: its folder, which also holds what it printed, and what it took."""

    folder: Path
    seconds: float
    peak_gb: float

    def read(self, where: str) -> float:
        """`seconds`, `peak_gb`, `file.json:key.key`, or `file:regex` or `stdout:regex` whose first group it is."""
        if where in ("seconds", "peak_gb"):
            return getattr(self, where)
        name, _, key = where.partition(":")
        path = self.folder / (STDOUT if name == "stdout" else name)
        if not path.is_file():
            raise UserError(f"{path}: the command did not write this file, from which {key} should be read")
        try:
            if path.suffix == ".json":
                return float(reduce(getitem, key.split("."), json.loads(path.read_text())))
            return number_of(re.search(key, path.read_text(), re.MULTILINE)[1])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{name} in {self.folder}: it holds no {key} (any more)") from error


def main() -> None:
    cfg = from_cli(ReceiptsConfig)
    root = Path(cfg.root_path).expanduser()
    book = read_book(root / FILE)
    if not cfg.run:
        problems, count = check(root, book)
        print(*problems, f"{count} figures, {len(book.receipts)} receipts; {len(problems)} without or wrong", sep="\n")
        sys.exit(1 if problems else 0)
    chosen = quick(book, root) if cfg.run == "quick" else [one(book, cfg.run)]
    outside = []
    for command in sorted({receipt.command for receipt in chosen}):  # which some receipts share
        outside += compare([receipt for receipt in chosen if receipt.command == command], root)
    print(f"{len(outside)} outside" + f": {', '.join(outside)}" * bool(outside))
    sys.exit(1 if outside else 0)


def read_book(path: Path) -> Book:
    """Receipts and quotations by id, and names. Raises UserError, which names the entry that is wrong."""
    try:
        content = OmegaConf.to_container(OmegaConf.load(path))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; it holds where each figure comes from") from error
    except YAMLError as error:
        line = error.problem_mark.line + 1
        ids = re.findall(r"^- id: *(\S+)", "\n".join(path.read_text().splitlines()[:line]), re.MULTILINE)
        raise UserError(f"{path}: line {line}, entry {ids[-1] if ids else 'none'}: {error.problem}") from error
    book = Book({}, {}, content.get("names") or [])
    for kind, cls in (("receipts", Receipt), ("quotes", Quote)):
        for raw in content.get(kind) or []:
            entry = read_entry(cls, raw, f"{path}: {kind}: {dict(raw).get('id', 'one without id')}")
            if entry.id in book.receipts | book.quotes:
                raise UserError(f"{path}: {entry.id} is there twice; give each entry an id of its own")
            getattr(book, kind)[entry.id] = entry
    return book


def read_entry(cls: type[Receipt | Quote], raw: dict, where: str) -> Receipt | Quote:
    """Raises UserError for fields that are missing, unknown or of another type."""
    try:
        entry = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(cls), raw))
    except OmegaConfBaseException as error:
        raise UserError(f"{where}: {str(error).splitlines()[0]} ({error.full_key})") from error
    if nameless := getattr(entry, "reads", {}).keys() - entry.figures.keys():
        raise UserError(f"{where}: reads {min(nameless)}, which is none of its figures")
    return entry


def check(root: Path, book: Book) -> tuple[list[str], int]:
    """What is wrong, a line each, and how many figures the pages have."""
    problems, count, carried, entries = [], 0, defaultdict(set), book.receipts | book.quotes
    for page in (root / "README.md", *sorted((root / "docs").glob("*.md"))):
        where = page.relative_to(root)
        for block in blocks(page.read_text()):
            covered = set()
            for mark in block.marks:
                carried[mark] |= numbers(block.text)
                if mark in entries:
                    covered |= numbers(*entries[mark].figures.values())
                else:
                    problems.append(f"{where}:{block.line}: {unknown(mark, entries)}")
            for line, figure in figures(block, book.names):
                count += 1
                if number_of(figure) not in covered:
                    problems.append(f"{where}:{line}: {figure} has no receipt")
    for id, entry in entries.items():
        for name, text in entry.figures.items():
            if not numbers(text) <= carried[id]:
                problems.append(f"{FILE}: {id}: {name} {text} stands on no page beside its mark")
    return problems, count


def blocks(page: str) -> list[Block]:
    """The paragraphs, tables and fenced blocks of a page; marks alone belong to what is above them."""
    parts, page = [], GENERATED.sub(blank, page)
    for match in BLOCK.finditer(page):
        marks = [mark.strip() for group in MARK.findall(CODE.sub("", match[0])) for mark in group.split(",")]
        if marks and parts and not MARK.sub("", match[0]).strip():
            parts[-1].marks.extend(marks)
            continue
        text = match[0] if match["fence"] is None else "\n" + match["fence"]
        if match["kind"] not in (None, "text"):
            text = "\n".join(line.partition("#")[2] for line in text.split("\n"))
        parts.append(Block(page.count("\n", 0, match.start()) + 1, text, marks))
    return parts


def figures(block: Block, names: list[str]) -> Iterator[tuple[int, str]]:
    """Line and text of each figure in a block."""
    text = NO_FIGURES.sub(blank, CODE.sub(blank, block.text))
    for name in names:
        text = re.sub(r"\s+".join(map(re.escape, name.split())), blank, text)
    for match in NUMBER.finditer(text):
        if any(sign in match[0] for sign in ".,e") or UNIT.match(text, match.end()):
            yield block.line + text.count("\n", 0, match.start()), match[0]


def blank(match: re.Match) -> str:
    """As long as what was there, with its line ends."""
    return re.sub(r"[^\n]", " ", match[0])


def numbers(*texts: str) -> set[float]:
    """All numbers in texts, figures or not."""
    return {number_of(match[0]) for text in texts for match in NUMBER.finditer(text)}


def number_of(text: str) -> float:
    return float(text.replace(",", ""))


def unknown(id: str, entries: dict) -> str:
    """The words for an id that is not there; the nearest is named."""
    near = difflib.get_close_matches(id, entries, n=1)
    return f"no receipt is called {id}; " + (f"did you mean {near[0]}?" if near else f"there are {', '.join(entries)}")


def one(book: Book, id: str) -> Receipt:
    """The receipt of that id, if a program can measure its figures. Raises UserError."""
    if id in book.quotes:
        raise UserError(f"run={id}: these figures are quoted from {book.quotes[id].source}; there is nothing to run")
    if id not in book.receipts:
        raise UserError(f"run={id}: {unknown(id, book.receipts)} ({FILE} holds them)")
    if not book.receipts[id].reads:
        raise UserError(f"run={id}: no program reads its figures; by hand: {book.receipts[id].command}")
    return book.receipts[id]


def quick(book: Book, root: Path) -> list[Receipt]:
    """Receipts whose commands, the shortest first, take under ten minutes together."""
    chosen, commands = [], {}
    for receipt in sorted(book.receipts.values(), key=attrgetter("seconds", "command")):
        ready = receipt.reads and receipt.seconds and not missing(receipt, root)
        if ready and sum((commands | {receipt.command: receipt.seconds}).values()) <= QUICK:
            commands[receipt.command] = receipt.seconds
            chosen.append(receipt)
    print(f"{len(chosen)} of {len(book.receipts)} receipts, about {sum(commands.values()):.0f} s", flush=True)
    return chosen


def missing(receipt: Receipt, root: Path) -> list[str]:
    return [path for path in receipt.needs if not (root / path).exists()]


def compare(same: list[Receipt], root: Path) -> list[str]:
    """Run the command that some receipts share, print each figure; returns the names of those outside."""
    measured, outside = execute(same[0], root), []
    for receipt in same:
        print(f"{receipt.id}: measured {receipt.date}, commit {receipt.commit}, on {receipt.machine}")
        for name, where in receipt.reads.items():
            text = receipt.figures[name]
            value = measured.read(where) * (100 if "%" in text else 1)
            inside = within(value, text, receipt.tolerance)
            print(f"  {'within ' if inside else 'OUTSIDE'}  {name}: {value:.6g}, the page has {text}", flush=True)
            outside += [] if inside else [f"{receipt.id}: {name}"]
    return outside


def execute(receipt: Receipt, root: Path) -> Measured:
    """Run a receipt's command in a folder of its own. Raises UserError where something is missing or it fails."""
    if lacking := missing(receipt, root):
        raise UserError(f"{receipt.id}: its command needs {', '.join(lacking)}, which is not there")
    folder = (root / "results/receipts" / receipt.id).absolute()
    shutil.rmtree(folder, ignore_errors=True)
    written = ("datasets", "pretrains", "results", ".git")
    links = [path.name for path in root.iterdir() if path.name not in written]
    for name in (*links, "pretrains/miniature", *receipt.needs):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to((root / name).absolute())
    path = f"{Path(sys.executable).absolute().parent}{os.pathsep}{os.environ['PATH']}"
    environment = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"} | os.environ
    environment |= {"PATH": path, "ROOT": str(root.absolute())}
    print(receipt.command.strip(), flush=True)
    started, run = time.monotonic(), ["bash", "-euc", receipt.command]
    with open(folder / STDOUT, "w") as stdout:
        process = subprocess.Popen(run, cwd=folder, env=environment, stdout=stdout)
        _, status, usage = os.wait4(process.pid, 0)  # which also tells the memory
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise UserError(f"{receipt.id}: its command ended with status {process.returncode}; see {folder / STDOUT}")
    return Measured(folder, time.monotonic() - started, usage.ru_maxrss * 1024 / 1e9)


def within(value: float, text: str, tolerance: str) -> bool:
    """Whether a value lies in the interval behind the figure that `text` begins with, else within the tolerance."""
    if interval := INTERVAL.search(text):
        return float(interval[1]) <= value <= float(interval[2])
    stated, allowed = NUMBER.search(text)[0], number_of(NUMBER.search(tolerance)[0])
    rounding = 0.5 * 10.0 ** -len(stated.partition(".")[2])  # the page's figure is rounded
    size = abs(number_of(stated))
    return abs(value - number_of(stated)) <= (allowed / 100 * size if "%" in tolerance else allowed) + rounding
