"""The `run` part of an evaluation's metrics.json, read and checked: it may come from anywhere."""

from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Len
from typing_extensions import TypedDict

from evaluation.columns import broken
from runtime.errors import UserError
from runtime.plain import checked, read_json, short

DEEPEST = 20  # levels of values in metrics.json
DESIGNS = ("random", "block", "leaking", "unknown")  # what the verdict may call the order of classes


class Run(TypedDict, total=False):
    """What scores and pages read of metrics.json's `run`."""

    name: str
    n_way: Annotated[int, Ge(1)]
    top_k: Annotated[int, Ge(1)]
    simulated: bool | None
    image_known: bool | None
    design: Annotated[list[str], Len(2, 2)] | None
    split: TypedDict("Split", {"shared": dict[str, dict]}, total=False) | None
    control: TypedDict("Control", {"about": str}, total=False) | None
    config: dict
    notes: list[str]
    commit: str | None


def read_record(folder: str | Path) -> dict:
    """The content of metrics.json, whatever its types. Raises UserError as `read_json`, or nested too deep to write."""
    path = Path(folder) / "metrics.json"
    content = read_json(path, "record of scores")
    if _deeper(content, DEEPEST):
        raise broken(path, f"holds values in more than {DEEPEST} others")
    return content


def _deeper(value: Any, levels: int) -> bool:
    """Whether a value of JSON holds others in others at more levels than so many."""
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels < 0 or any(_deeper(part, levels - 1) for part in inside)


def read_run(folder: str | Path) -> dict:
    """The `run` part of metrics.json, empty where there is no such file. Raises UserError where it is not there."""
    path = Path(folder) / "metrics.json"
    if not path.exists():
        return {}
    hint = "move this file away to score the folder without it, or run the evaluation again"
    run = checked(TypedDict("Record", {"run": Run}), read_record(folder), str(path), hint)["run"]
    if (design := run.get("design")) and design[0] not in DESIGNS:
        raise UserError(f"{path}: run.design is {short(design[0])}, expected one of {', '.join(DESIGNS)}; {hint}")
    return run
