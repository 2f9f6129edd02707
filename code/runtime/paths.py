"""Where a configuration's files lie: below the root, or elsewhere by an absolute path or a name."""

import os
import unicodedata
from pathlib import Path
from typing import Any

from runtime.errors import UserError
from runtime.plain import short

NAMES = "letters and digits, inside also spaces and . _ - + , =, at most 100 characters (200 bytes)"


def check_name(name: str) -> None:
    """Raise UserError unless a run's name is one part of a path, on any disk and in any shell: NAMES, of any script."""
    known = all(unicodedata.category(letter)[0] in "LMN" or letter in " ._-+,=" for letter in name)
    ends = (name[:1].isalnum() or name[:1] == "_") and name[-1:] not in (" ", ".")
    if not (known and ends and len(name) <= 100 and len(name.encode()) <= 200):  # moved aside it gets longer
        raise UserError(f"name={short(name)}: cannot be a folder's name everywhere; use {NAMES}")


def under_root(root_path: str, path: str) -> Path:
    """A path of the configuration: absolute as it is, else below `root_path`. Raises UserError: ~ of nobody."""
    try:
        return Path(root_path).expanduser() / Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{path} (root_path={root_path}): ~ there names no user of this machine") from error


def cache_of(cfg: Any) -> Path | None:
    """The folder that `cache=` names; None: none, so that what is made of data lies beside them."""
    return under_root(cfg.root_path, cfg.cache) if cfg.cache else None


def nearest_folder(path: Path) -> Path:
    """`path`, or the first folder above it that is there. Raises UserError where something else is there."""
    there = next(place for place in (path, *path.parents) if os.path.lexists(place))
    if not there.is_dir():
        raise UserError(f"{there}: cannot be written into: no folder; move it, or choose another name= or root_path=")
    return there


def file_or_name(root_path: str, value: str) -> Path | str:
    """A setting that is a path or a name known elsewhere (of CLIP, of a classifier): the path where there is one."""
    local = under_root(root_path, value)
    return local if local.exists() else value


def in_place(cfg: Any, wanted: dict[str, tuple[str, str]]) -> dict[str, Path]:
    """Where inputs lie, by setting; `wanted`: what each is and its value. UserError names all that is missing."""
    paths = {name: under_root(cfg.root_path, value) for name, (_, value) in wanted.items()}
    all_there({name: (subject, paths[name]) for name, (subject, _) in wanted.items()})
    return paths


def all_there(wanted: dict[str, tuple[str, Path]]) -> None:
    """Raise UserError that names all files that are missing; by setting, what each is and where it should lie."""
    missing = [f"{subject} {path} ({name}=)" for name, (subject, path) in wanted.items() if not path.exists()]
    if missing:
        raise UserError(f"missing: {'; '.join(missing)}; see datasets/README.md and pretrains/README.md")
