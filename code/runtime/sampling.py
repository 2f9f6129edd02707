"""How pictures are asked for: the same few settings for every system behind the seam (evaluation/seam.py)."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Sampling:
    """Sampler, steps, guidance and pictures at once; the defaults are the paper's run."""

    sampler: str = "plms"
    steps: int = 250
    guidance: float = 1.0  # classifier-free guidance scale; 1: none
    batch: int = 0  # pictures sampled at once; 0: as many as memory takes

    @classmethod
    def of(cls, cfg: Any, batch: int = 0) -> "Sampling":
        """A stage's settings `sampler`, `ddim_steps` and `guidance`."""
        return cls(cfg.sampler, cfg.ddim_steps, cfg.guidance, batch)

    @property
    def calls(self) -> int:
        """Forward passes of the denoiser for one picture: PLMS starts with one more, guidance doubles all."""
        return (self.steps + (self.sampler == "plms")) * (1 if self.guidance == 1 else 2)


PAPER = Sampling()  # the default where a caller names none
