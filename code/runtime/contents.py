"""Kinds of what model files of any system say beside their tensors, for `plain.checked`."""

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from runtime.plain import record

Size = Annotated[int, Field(ge=1, le=1 << 20)]  # of a layer, or how many of something
Depth = Annotated[int, Field(ge=0, le=200)]  # layers in a row
Side = Annotated[int, Field(ge=1, le=4096)]  # pixels
Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, le=1e12)]
Factor = Annotated[Positive | Annotated[float, Field(lt=0, ge=-1e12)], "not 0"]
Colour = Annotated[Sequence[Finite], Field(min_length=3, max_length=3)]
Deviations = Annotated[Sequence[Positive], Field(min_length=3, max_length=3)]
Span = Annotated[Sequence[Finite], Field(min_length=2, max_length=2)]

# `input`: the EEG that a network was trained on
TrainedOn = record({"sfreq": Positive | None, "window": Span | None, "ch_names": Sequence[str] | None}, scale=Factor)
# `run`: of a training that names its trials, stage C asks whether it now tests them
_POSITIONS = dict[str, Sequence[Annotated[int, Field(ge=0)]]]
Training = record({"positions": _POSITIONS, "split": record(eeg_sha256=str)})
