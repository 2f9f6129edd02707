"""README and docs are true: what they name is there, commands and settings exist, the code tour is the code's."""

import ast
import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest

import config
from commands.code_tour import BEGIN, END, modules
from conftest import pytest_ignore_collect
from run import commands

ROOT = Path(__file__).parents[2]
CODE = ROOT / "code"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
READMES = [*PAGES, *(ROOT / f"{name}/README.md" for name in ("datasets", "pretrains", "results"))]
STAGES = {"stageA1_eeg_pretrain": "PretrainConfig", "eeg_ldm": "FinetuneConfig", "gen_eval_eeg": "GenerateConfig"}
ON_DISK = re.compile(r"\b(?:code|docs|pretrains/miniature)/[\w./-]*\w")


def shell_lines() -> list[tuple[str, str]]:
    """(page, command) of the fenced blocks of no language, without comments, continued lines joined."""
    lines = []
    for page in READMES:
        for block in re.findall(r"^```\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
            joined = block.replace("\\\n", " ")
            lines += [(page.name, line.split("# ")[0].split("  #")[0].strip()) for line in joined.splitlines()]
    return [(page, line) for page, line in lines if line]


def settings_in(path: Path) -> set[str]:
    """Names of the settings that a module's dataclasses declare, with those of the stages' that it extends."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.AnnAssign) and isinstance(node.value, ast.Call):
            names |= {node.target.id} if getattr(node.value.func, "id", "") == "setting" else set()
        if isinstance(node, ast.ImportFrom) and node.module == "config":
            for alias in node.names:
                names |= set(getattr(getattr(config, alias.name), "__dataclass_fields__", {}))
    return names


def test_the_readme_is_short_and_no_line_is_long():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200
    long = [f"{p.name}:{n}" for p in READMES for n, line in enumerate(p.read_text().splitlines(), 1) if len(line) > 120]
    assert not long


def test_the_code_tour_lists_every_module_as_it_is():
    page = (ROOT / "docs/code_tour.md").read_text()
    listed = page.partition(BEGIN)[2].partition(END)[0]
    assert listed == modules(), "write it again: python code/run.py code_tour"


def test_the_code_tour_walks_past_names_that_are_there():
    page = (ROOT / "docs/code_tour.md").read_text().partition("## Every module")[0]
    steps = re.findall(r"`([\w/]+\.py)`: ((?:`\w+`(?:, )?)+)", page)
    assert len(steps) > 40
    for path, names in steps:
        text = (CODE / path).read_text()
        for name in re.findall(r"`(\w+)`", names):
            assert re.search(rf"^(?:def|class) {name}\b|^{name}\b.* = ", text, re.MULTILINE), f"{path}: {name}"


def test_a_module_without_a_docstring_is_named(tmp_path):
    (tmp_path / "code/room").mkdir(parents=True)
    (tmp_path / "code/room/__init__.py").write_text('"""A room."""\n')
    (tmp_path / "code/room/noun.py").write_text('"""A noun,\nin two lines."""\n')
    assert "### `code/room/`\n\nA room.\n\n- `room/noun.py`: A noun," in modules(tmp_path / "code")
    (tmp_path / "code/room/noun.py").write_text("x = 1\n")
    with pytest.raises(Exception, match="noun.py: its docstring is missing"):
        modules(tmp_path / "code")


def test_the_readme_names_every_room_and_every_page():
    readme = (ROOT / "README.md").read_text()
    rooms = {p.parent.name for p in CODE.glob("*/__init__.py")} | {"tests"}
    assert {name for name in re.findall(r"^  (\w+)/ ", readme, re.MULTILINE)} == rooms
    scripts = {p.name for p in CODE.glob("*.py")} - {"conftest.py"}
    listed = readme.partition("```text\ncode/")[2].partition("```")[0]
    assert set(re.findall(r"\b\w+\.py\b", listed)) == scripts
    assert set(re.findall(r"\(docs/(\w+\.md)\)", readme)) == {p.name for p in (ROOT / "docs").glob("*.md")}


@pytest.mark.parametrize("page", READMES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_and_paths_lead_somewhere(page):
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#\s]*(?:#[^)\s]*)?)\)", text):
        if target.startswith("http"):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), target
        headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE) if anchor else []
        slugs = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
        assert not anchor or anchor in slugs, target
    for path in ON_DISK.findall(text):
        assert (ROOT / path).exists(), path


def test_commands_and_their_settings_exist():
    known = commands()
    for page, line in shell_lines():
        if not re.match(r"(.*\s)?(python|torchrun)\s", line + " ") or "..." in line:
            continue
        words = shlex.split(re.sub(r"[\[\]<>|&;()]", " ", line))
        script = next((word for word in words if word.endswith(".py")), None)
        if script is None:
            continue
        stem, given = Path(script).stem, words[words.index(script) + 1 :]
        assert (ROOT / script).is_file(), f"{page}: {line}"
        if stem == "run":
            assert not given or given[0] in known or given[0] == "NAME", f"{page}: {line}"
            stem, given = (f"commands/{given[0]}", given[1:]) if given and given[0] in known else ("", [])
        if stem in STAGES:
            cls = getattr(config, STAGES[stem])
            names = set(cls.__dataclass_fields__) | set(config.NO_EFFECT[cls])
        else:
            names = settings_in(CODE / f"{stem}.py") if stem else set()
        if stem == "commands/check_setup":  # its own settings, and those of the stages, which it hands on
            names |= {"stage", "plan", "hash", "memory", "json"}
        pairs = [word.removeprefix("--").partition("=")[0] for word in given if "=" in word or word.startswith("--")]
        unknown = {name for name in pairs if name.isidentifier()} - names
        assert not unknown, f"{page}: {line}: {unknown}"


def test_make_targets_exist_and_the_readme_shows_what_make_demo_runs():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[1].split())
    named = {name for page in READMES for name in re.findall(r"(?:^|`)make (?:-n )?([\w-]+)", page.read_text(), re.M)}
    assert named and named <= targets
    demo = makefile.partition("\ndemo: setup\n")[2].partition("\n\n")[0]
    shown = (ROOT / "docs/demo.md").read_text()
    for line in demo.splitlines():
        assert line.strip().replace("$(BIN)/", "") in shown, line


def test_python_blocks_import_what_is_there():
    blocks = [b for p in PAGES for b in re.findall(r"^```python\n(.*?)^```", p.read_text(), re.MULTILINE | re.DOTALL)]
    assert blocks
    for node in (node for block in blocks for node in ast.walk(ast.parse(block))):
        if isinstance(node, ast.ImportFrom) and (CODE / f"{node.module.replace('.', '/')}.py").is_file():
            text = (CODE / f"{node.module.replace('.', '/')}.py").read_text()
            for name in (alias.name for alias in node.names):
                assert re.search(rf"\b(def|class|import) {name}\b|^{name} =", text, re.MULTILINE), name


def test_room_selects_the_test_files_that_import_it():
    def selected(room: str | None) -> set[str]:
        asked = SimpleNamespace(getoption=lambda name: room)
        return {path.name for path in (CODE / "tests").glob("test_*.py") if not pytest_ignore_collect(path, asked)}

    for room in (path.parent.name for path in CODE.glob("*/__init__.py")):
        assert set() < selected(room) < selected(None), room
    assert "test_splits.py" in selected("data") and "test_samplers.py" not in selected("data")
    with pytest.raises(pytest.UsageError, match="no such folder"):
        selected("attic")
