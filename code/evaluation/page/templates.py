"""Pages from the templates beside this file.

Whatever these are given is escaped, and control characters in it are written out; a name they lack is an error.
"""

from functools import lru_cache
from inspect import getmembers, isfunction
from pathlib import Path
from typing import Any

from evaluation.page import text
from evaluation.statistics import ALPHA
from runtime.plain import visible


@lru_cache(maxsize=1)
def _environment() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # only a command that writes a page waits for it

    loader, rules = FileSystemLoader(Path(__file__).parent), {"trim_blocks": True, "lstrip_blocks": True}
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, finalize=visible, **rules)
    environment.globals |= {"words": text.words(), "alpha": ALPHA}
    environment.filters |= dict(getmembers(text, isfunction))
    return environment


def render(template: str, **values: Any) -> str:
    """A page from the template of that name."""
    return _environment().get_template(template).render(values)


def macro(name: str, *values: Any) -> str:
    """A part of a page from macros.html, which templates take as it is."""
    return getattr(_environment().get_template("macros.html").module, name)(*values)
