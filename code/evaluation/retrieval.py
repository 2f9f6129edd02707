"""The retrieval baseline: no picture is generated, the training pictures nearest to the EEG's embedding are returned.

A generator that draws no more than its embedding knows does not exceed it. As a control it takes the embedding of the
system under test; with an embedding of its own it is a system behind the seam like any other.

Shapes: N trials, S pictures a trial, M training pictures, D width of the embedding.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from runtime.pictures import image_tensor, load_image, to_uint8
from runtime.sampling import Sampling
from runtime.system import About, Drawing, EEGInput, Shown


@dataclass
class NearestTrainingPicture:
    """Chooses, for each trial, the training pictures whose CLIP embeddings have the largest cosine with the EEG's."""

    embed: Callable[[Tensor], Tensor]  # EEG (N, C, T) -> (N, D)
    targets: Tensor  # (M, D) CLIP embeddings of the training pictures
    images: Sequence[Path]  # (M,) their files
    img_size: int
    input: EEGInput | None = None
    name: str = "nearest training picture"

    def check(self, sampling: Sampling) -> None:
        """Nothing is sampled, so nothing is refused."""

    def generate(self, eeg: Tensor, seeds: Tensor, sampling: Sampling) -> Tensor:
        """Pictures (N, H, W, 3) uint8, or (N, S, H, W, 3) of seeds (N, S): the S nearest, nearest first."""
        cosine = F.normalize(self.embed(eeg).double(), dim=1) @ F.normalize(self.targets.double(), dim=1).T
        n_samples = seeds.shape[1] if seeds.ndim == 2 else 1
        nearest = cosine.topk(min(n_samples, len(self.images)), dim=1).indices  # (N, S)
        nearest = nearest[:, torch.arange(n_samples) % nearest.shape[1]]
        chosen, row = nearest.unique(return_inverse=True)
        pictures = to_uint8(torch.stack([image_tensor(load_image(self.images[i]), self.img_size) for i in chosen]))
        return pictures[row] if seeds.ndim == 2 else pictures[row[:, 0]]

    def ceilings(self, trials: Shown, sampling: Sampling) -> dict[str, Drawing]:
        """None: it draws nothing."""
        return {}

    def fitting_batch(self, sampling: Sampling) -> int:
        """A few hundred pictures read at once take little memory."""
        return 256

    def about(self) -> About:
        """It is made of nothing but its embedding and the training pictures."""
        return About(self.name, self.img_size)
