"""Compare with an oracle, and remember how far apart: docs/fidelity.md has the table of `pytest --fidelity`."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Agreement(NamedTuple):
    """The largest of the absolute differences seen in one part, and of the values compared, and what was allowed."""

    difference: float
    value: float
    allowed: float


MEASURED: dict[tuple[str, str], Agreement] = {}  # by part and oracle


def agrees(part: str, oracle: str, found: Tensor, wanted: Tensor, atol: float, rtol: float = 0.0) -> None:
    """Assert |found - wanted| <= atol + rtol |wanted| for tensors of one shape, and note the difference."""
    assert found.shape == wanted.shape
    found, wanted = found.detach().double(), wanted.detach().double()
    largest = wanted.abs().max().item()
    seen = Agreement((found - wanted).abs().max().item(), largest, atol + rtol * largest)
    last = MEASURED.get((part, oracle), Agreement(0.0, 0.0, 0.0))
    MEASURED[part, oracle] = Agreement(*(max(pair) for pair in zip(last, seen, strict=True)))
    torch.testing.assert_close(found, wanted, rtol=rtol, atol=atol, msg=lambda text: f"{part} against {oracle}: {text}")


def table() -> str:
    """All comparisons of this session in Markdown."""
    rows = ["| part | compared with | largest difference | largest value | allowed |", "|---|---|---|---|---|"]
    for (part, oracle), a in MEASURED.items():
        rows.append(f"| {part} | {oracle} | {a.difference:.1e} | {a.value:.2g} | {a.allowed:.0e} |")
    return "\n".join(rows)


@torch.no_grad()
def random_weights(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """A module with normal weights, drawn once (not first by its constructor); no residual branch is left at zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        module = build()
    module.to_empty(device="cpu")
    for name, p in module.named_parameters():
        p.normal_(std=0.02 if p.ndim == 1 else p[0].numel() ** -0.5, generator=generator)
        if p.ndim == 1 and name.endswith("weight"):
            p.add_(1)  # scales of normalisations
    return module
