"""Where a configuration's files lie: below the root, or elsewhere by an absolute path or a name."""

from pathlib import Path
from typing import Any

from runtime.errors import UserError


def under_root(root_path: str, path: str) -> Path:
    """A path of the configuration: absolute as it is, else below `root_path`."""
    return Path(root_path).expanduser() / Path(path).expanduser()


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
