"""A training run's resume point, checked before anything in it is used: it may be damaged, or of another run."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import TypedDict

from runtime import checkpoints
from runtime.errors import UserError
from runtime.plain import checked

FORMAT = "resume-1"


class Point(TypedDict):
    """A resume point's content."""

    step: int  # optimizer steps done
    rows: list[dict[str, int | float]]  # of metrics.csv
    losses: list[float]  # of the steps since the last row
    module: dict[str, Any]  # its training_state()
    optimizer: dict[str, Any]
    state: dict[str, Any]  # what the module keeps


def read(
    path: Path, module: nn.Module, optimizer: torch.optim.Optimizer, last_step: int, kept: Mapping[str, Any] | None
) -> dict:
    """A resume point that a run of `last_step` steps can have left; the arguments are as `loop.fit` has them.

    Of the optimizer comes only what it keeps of each tensor: rates and decay follow from the settings.

    Raises:
        UserError: it cannot be read; a part is missing, of another kind or out of bounds, or not of this module.
    """
    try:
        saved = checked(Point, checkpoints.load(path, (FORMAT,), "resume point"), str(path))
        _check_progress(saved, last_step, str(path))
        state, weights = saved["state"], module.training_state()
        if kept and saved["rows"]:
            checked(TypedDict("Kept", kept), state, f"{path}: state")
        for part in (saved["module"], state.get("model", weights)):
            _check_tensors(weights, part, str(path))
        moments = checked(dict[int, dict[str, Any]], saved["optimizer"].get("state"), f"{path}: optimizer")
        tensors = [tensor for group in optimizer.param_groups for tensor in group["params"]]
        own = {f"exp_avg{square} {i}": tensor for i, tensor in enumerate(tensors) for square in ("", "_sq")}
        own |= {f"step {i}": torch.tensor(float(saved["step"])) for i in range(len(tensors))}
        given = {f"{name} {i}": value for i, part in moments.items() for name, value in part.items()}
        _check_tensors(own, given, f"{path}: the optimizer")
        if any(given[name] != own[name] for name in given if name.startswith("step")):
            raise UserError(f"{path}: the optimizer is not at step {saved['step']}")
    except UserError as error:
        raise UserError(f"{error}; move it aside and the run begins anew, or use overwrite=true") from error
    return saved | {"optimizer": {"state": moments}}


def _check_progress(saved: dict, last_step: int, where: str) -> None:
    step, losses, rows = saved["step"], saved["losses"], [0, *(row.get("step", 0) for row in saved["rows"])]
    numbers = [*losses, *(value for value in saved["state"].values() if isinstance(value, float))]
    if rows != sorted(set(rows)) or not max(rows[-1], 1) <= step <= last_step:
        raise UserError(f"{where}: step is {step} of {last_step}, after rows of metrics at steps {rows[1:9]}")
    if len(losses) != step - rows[-1] or not all(map(math.isfinite, numbers)):
        raise UserError(f"{where}: holds {len(losses)} losses, expected {step - rows[-1]}; all finite, as its state")


def _check_tensors(own: dict[str, Tensor], given: Any, what: str) -> None:
    """UserError unless `given` holds, under the names of `own`, finite tensors of the same shapes and kinds."""
    for name, value in checked(dict[str, Any], given, what).items():
        kind = own.get(name, value)
        if not isinstance(value, Tensor) or (value.layout, value.dtype) != (torch.strided, kind.dtype):
            raise UserError(f"{what}: {name} is a {getattr(value, 'dtype', type(value))}, expected a tensor of numbers")
        if not value.isfinite().all():
            raise UserError(f"{what}: {name} holds numbers that are not finite")
    checkpoints.check_state(own, given, what)
