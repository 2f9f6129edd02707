"""What a generating system says of itself and of its drawings: the types that cross evaluation/seam.py.

Shapes: N trials, C electrodes, T time points, H x W pixels.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor


@dataclass(frozen=True)
class EEGInput:
    """The EEG that a system takes; None where its training did not record it."""

    n_chans: int
    n_times: int
    scale: float = 1.0  # factor on the trials
    sfreq: float | None = None  # Hz
    window: list[float] | None = None  # first and last sample of the trial that the model sees
    ch_names: list[str] | None = None


@dataclass(frozen=True)
class About:
    """Where a system comes from: what metrics.json records, and what tells test trials from trained ones."""

    name: str
    img_size: int  # pixels of a side of its pictures
    hashes: Mapping[str, str | None] = field(default_factory=dict)  # "<part>_sha256" of what it was made from
    training: Mapping[str, Any] = field(default_factory=dict)  # `run` of its checkpoint: split, positions, stage A
    licences: Mapping[str, str] = field(default_factory=dict)  # part -> licence
    tensors: Mapping[str, str] = field(default_factory=dict)  # part -> how many of its tensors were loaded


class Drawing(NamedTuple):
    """How the pictures of a control or ceiling are made."""

    given: Tensor  # (N, ...) stands in for each trial's EEG
    draw: Callable[[Tensor, Tensor], Tensor]  # (given (n, ...), seeds (n,)) -> pictures (n, H, W, 3) uint8
    sampled: bool = True  # through the system's denoiser, so that it costs as much as a picture from EEG


@dataclass(frozen=True)
class Shown:
    """What the test trials showed, as far as a ceiling may be told it."""

    label: Tensor  # (N,) int64, class of each trial
    images: Sequence[Path] = ()  # (N,) files; empty where unknown
    class_names: Sequence[str] = ()  # of every class, in words; empty where unknown
    other_label: Tensor | None = None  # (N,) int64, class of another trial
