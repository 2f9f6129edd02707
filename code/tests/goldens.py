"""The published modules' numbers and names (shared/golden), the rule that fills weights for them, and a comparison.

Rule: over the sorted state-dict keys, the j-th tensor holds 0.05 sin(1 + i + j) at flat index i, plus 1 for
normalisation scales; position tables keep their own values. Inputs are sin(0.1 n) over the flat index n.
"""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from fidelity import agrees
from torch import Tensor, nn

ORACLE = "published modules, goldens"
FOLDER = Path(__file__).resolve().parents[2].parent / "shared" / "golden"


def read_golden(name: str) -> dict[str, Any]:
    """One of the golden files; the test is skipped where they are not at hand."""
    if not (FOLDER / name).is_file():
        pytest.skip(f"no golden file {FOLDER / name}")
    return json.loads((FOLDER / name).read_text())


@torch.no_grad()
def filled(module: nn.Module) -> nn.Module:
    """The module with its weights filled by the rule above."""
    state = module.state_dict()
    for j, name in enumerate(sorted(state)):
        if "pos_embed" in name:
            continue
        value = state[name]
        wave = 0.05 * torch.sin(1 + j + torch.arange(value.numel(), dtype=torch.float64)).reshape(value.shape)
        value.copy_(wave + 1 if value.ndim == 1 and name.endswith("weight") else wave)
    return module


def wave_input(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """sin(0.1 n) over the flat index n."""
    return torch.sin(0.1 * torch.arange(math.prod(shape), dtype=torch.float64)).reshape(shape).to(dtype)


def assert_golden(part: str, value: Tensor, golden: dict[str, Any], tolerance: float) -> None:
    """Compare shape, ends (the file rounds them to 7 digits), mean, standard deviation and mean magnitude."""
    assert list(value.shape) == golden["shape"]
    flat = value.detach().double().flatten()
    ends = torch.tensor(golden["first8"] + golden["last4"], dtype=torch.float64)
    agrees(f"{part}, ends", ORACLE, torch.cat([flat[:8], flat[-4:]]), ends, max(tolerance, 6e-8))
    found = torch.stack([flat.mean(), flat.std(), flat.abs().mean()])
    wanted = torch.tensor([golden["mean"], golden["std"], golden["abs_sum"] / flat.numel()], dtype=torch.float64)
    agrees(f"{part}, mean, spread, size", ORACLE, found, wanted, tolerance)


def assert_number(part: str, value: Tensor, golden: float, tolerance: float) -> None:
    """Compare one number, a loss."""
    agrees(part, ORACLE, value.detach().double(), torch.tensor(golden, dtype=torch.float64), tolerance)
