"""A training run's resume point, checked before anything in it is used: it may be damaged, or of another run."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import TypedDict

from runtime import checkpoints
from runtime.errors import UserError
from runtime.plain import checked

FORMAT = "resume-1"


# of the optimizer, only what is kept of each tensor is read: the rest follows from the settings
class Moments(TypedDict):
    state: dict[int, dict[str, Any]]


class Point(TypedDict):
    """A resume point's content."""

    step: int  # optimizer steps done
    rows: list[dict[str, int | float]]  # of metrics.csv
    losses: list[float]  # of the steps since the last row
    module: dict[str, Any]  # its training_state()
    optimizer: Moments
    state: dict[str, Any]  # what the module keeps


def read(path: Path, module: nn.Module, optimizer: torch.optim.Optimizer, last_step: int, kept: Any) -> dict:
    """A resume point that a run of `last_step` steps can have left; the arguments are as `loop.fit` has them.

    Raises:
        UserError: it cannot be read; a part is missing, of another kind or out of bounds, or not of this module.
    """
    try:
        saved = checked(Point, checkpoints.load(path, (FORMAT,), "resume point"), str(path))
        step, state, n_losses = saved["step"], saved["state"], len(saved["losses"])
        rows = [0, *(row.get("step", 0) for row in saved["rows"])]
        if rows != sorted(set(rows)) or not max(rows[-1], 1) <= step <= last_step:
            raise UserError(f"{path}: step is {step} of {last_step}, after rows of metrics at steps {rows[1:9]}")
        if n_losses != step - rows[-1] or not all(map(math.isfinite, saved["losses"])):
            raise UserError(f"{path}: holds {n_losses} losses, expected {step - rows[-1]} that are finite")
        if saved["rows"]:
            checked(kept, state, f"{path}: state")
        weights = module.training_state()
        _check_tensors(weights, saved["module"], str(path))
        if "model" in state:
            _check_tensors(
                weights, checked(dict[str, Any], state["model"], f"{path}: model"), f"{path}: the best epoch"
            )
        tensors = [tensor for group in optimizer.param_groups for tensor in group["params"]]
        own = {f"exp_avg{square} {i}": tensor for i, tensor in enumerate(tensors) for square in ("", "_sq")}
        own |= {f"step {i}": torch.tensor(float(step)) for i in range(len(tensors))}
        given = {f"{name} {i}": v for i, part in saved["optimizer"]["state"].items() for name, v in part.items()}
        _check_tensors(own, given, f"{path}: the optimizer")
        if any(given[name] != own[name] for name in given if name.startswith("step")):
            raise UserError(f"{path}: the optimizer is not at step {step}")
    except UserError as error:
        raise UserError(f"{error}; delete it and the run begins anew, or overwrite=true to move it aside") from error
    return saved


def _check_tensors(own: dict[str, Tensor], given: dict[str, Any], what: str) -> None:
    """UserError unless `given` holds, under the names of `own`, finite tensors of the same shapes and kinds."""
    for name, value in given.items():
        like = own.get(name, value)
        if not isinstance(value, Tensor) or (value.layout, value.dtype) != (torch.strided, like.dtype):
            raise UserError(f"{what}: {name} is a {getattr(value, 'dtype', type(value))}, expected a tensor of numbers")
        if not value.isfinite().all():
            raise UserError(f"{what}: {name} holds numbers that are not finite")
    checkpoints.check_state(own, given, what)
