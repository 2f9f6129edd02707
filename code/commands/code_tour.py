"""Write the list of modules in docs/code_tour.md again, from the first lines of their docstrings.

python code/run.py code_tour
"""

import ast
import textwrap
from dataclasses import dataclass
from pathlib import Path

from config import from_cli
from runtime.errors import UserError

CODE = Path(__file__).parents[1]
PAGE = CODE.parent / "docs/code_tour.md"
BEGIN, END = "<!-- modules, by python code/run.py code_tour -->\n", "<!-- end of modules -->\n"


@dataclass
class TourConfig:
    """Write the list of modules in docs/code_tour.md again."""


def main() -> None:
    from_cli(TourConfig)
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(before + BEGIN + modules() + END + rest.partition(END)[2])
    print(f"-> {PAGE}")


def modules(code: Path = CODE) -> str:
    """Markdown: a heading for each folder of `code`, below it each module with the first line of its docstring."""
    lines = []
    for folder in (code, *sorted(path.parent for path in code.rglob("__init__.py"))):
        name = folder.relative_to(code.parent).as_posix()
        about = first_line(folder / "__init__.py") if folder != code else "What is run, imported or opened by hand."
        lines += ["", f"### `{name}/`", "", about, ""]
        for path in sorted(folder.glob("[!_]*.py")):
            entry = f"- `{path.relative_to(code)}`: {first_line(path)}"
            lines += textwrap.wrap(entry, 118, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    return "\n".join([*lines[1:], "", ""])


def first_line(path: Path) -> str:
    """Of a module's docstring; a module without one is a fault of ours."""
    text = ast.get_docstring(ast.parse(path.read_text()))
    if not text:
        raise UserError(f"{path}: its docstring is missing; the code tour is made of their first lines")
    return text.partition("\n")[0]
