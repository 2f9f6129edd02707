"""The seam: what a system must have to be scored here. It obeys by having the methods; nothing is inherited.

Raw EEG goes in; whatever a system computes from it first, it computes inside. So every control works for every system,
and all are scored by one path. `generate.py` opens a system by its checkpoint's `format`.

Shapes: N trials, S pictures a trial, C electrodes, T time points, D width of the embedding, H x W pixels.
"""

from typing import Protocol

from torch import Tensor

from runtime.sampling import Sampling
from runtime.system import About, Drawing, EEGInput, Shown


class System(Protocol):
    """Pictures and embeddings from EEG, whatever makes them."""

    @property
    def input(self) -> EEGInput:
        """The EEG that it was trained on and takes."""

    def check(self, sampling: Sampling) -> None:
        """Refuse, before any work, what it cannot draw: UserError."""

    def embed(self, eeg: Tensor) -> Tensor:
        """EEG (N, C, T) -> (N, D) float32, which retrieval compares with CLIP's embedding of the picture."""

    def generate(self, eeg: Tensor, seeds: Tensor, sampling: Sampling) -> Tensor:
        """Pictures (N, H, W, 3) uint8 of eeg (N, C, T) and seeds (N,); (N, S, H, W, 3) of seeds (N, S).

        A picture depends on its EEG and its seed alone.
        """

    def ceilings(self, trials: Shown, sampling: Sampling) -> dict[str, Drawing]:
        """What only the system can draw: the empty condition, the class by its name, the round trip; or {}."""

    def fitting_batch(self, sampling: Sampling) -> int:
        """How many pictures to sample at once, at least one."""

    def about(self) -> About:
        """Name, hashes, trials and people that it was trained on, licences of its parts."""
