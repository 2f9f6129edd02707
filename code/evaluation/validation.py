"""Stage B's looks at the validation trials: a grid of pictures, and whether pictures show the class that was seen.

Shapes: N validation trials, S pictures a trial, H x W pixels, K classes of the picture classifier.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from data.stimuli import image_path
from dataset import Trials
from evaluation.n_way import n_way_accuracy
from evaluation.seam import System
from runtime import draws
from runtime.errors import UserError
from runtime.pictures import image_tensor, load_image, save_grid
from runtime.sampling import Sampling
from vision.classifier import PictureClassifier, load_classifier

GRID_TRIALS = 5  # validation trials in a grid, as in the published short validation
N_WAY = 50


@dataclass
class Judge:
    """Looks at pictures, for select=n_way."""

    classifier: PictureClassifier

    @property
    def n_way(self) -> int:
        """How many classes are compared."""
        return min(N_WAY, len(self.classifier.classes))

    def classes(self, trials: Trials) -> Tensor:
        """(N,) the classifier's number of each trial's class. Raises UserError where it does not know one."""
        number = self.classifier.index_of(trials.wnids)[trials.label]
        if (number < 0).any():
            unknown = sorted({trials.wnids[i] for i in trials.label[number < 0]})
            raise UserError(f"select=n_way: {self.classifier.name} does not know {', '.join(unknown[:5])}")
        return number

    def score(self, pictures: Tensor, trials: Trials) -> float:
        """Exact n-way top-1 of the class that was seen, mean over trials and samples, of (N, S, H, W, 3) uint8."""
        logits, _ = self.classifier(pictures.flatten(0, 1))  # (N * S, K)
        number = self.classes(trials).repeat_interleave(pictures.shape[1])
        return float(n_way_accuracy(logits, number, self.n_way).mean())


def load_judge(classifier: str | Path, device: torch.device) -> Judge:
    """The judge that select=n_way needs. Raises UserError if its classifier is not there."""
    network, absent = load_classifier(str(classifier), str(device))
    if network is None:
        raise UserError(f"select=n_way needs a picture classifier, but {absent}; get it, or use select=clip_retrieval")
    return Judge(network)


@dataclass
class Validation:
    """Pictures from the EEG of the validation trials."""

    trials: Trials
    imagenet: Path  # folder of the pictures that were seen
    img_size: int  # pixels
    samples: int  # S
    sampling: Sampling
    seed: int
    judge: Judge | None = None

    def look(self, system: System, path: Path) -> dict[str, float]:
        """Write a grid of a few trials: the picture that was seen, then pictures from the EEG.

        Returns:
            `val_n_way_top1`, the score of the judge, who sees the pictures of all trials, where there is one.
        """
        val, judge = self.trials, self.judge
        few = torch.linspace(0, len(val) - 1, min(GRID_TRIALS, len(val))).long()
        drawn = torch.arange(len(val)) if judge else few
        seeds = draws.randint(0, 2**62, (len(drawn), self.samples), self.seed, "validation pictures")
        pictures = system.generate(val.eeg[drawn], seeds, self.sampling)

        truth = [image_tensor(load_image(image_path(self.imagenet, val.names[i])), self.img_size) for i in few]
        kind = "SIMULATED EEG, " if val.info["simulated"] else ""
        grid = pictures[few] if judge else pictures
        save_grid(path, torch.stack(truth), grid, f"{kind}validation: truth | from EEG")
        return {"val_n_way_top1": judge.score(pictures, val)} if judge else {}

    def cost(self, times: int, steps: int, step_trials: int) -> str:
        """What a judge costs beside `steps` training steps of `step_trials` each, in passes of the UNet by a picture.

        times: how often validation looks.
        """
        pictures, passes = len(self.trials) * self.samples, self.sampling.calls
        return (
            f"select=n_way: {pictures} pictures x {passes} = {pictures * passes} UNet forwards at each validation, "
            f"{times * pictures * passes} in all {times}, beside {steps} training steps of {step_trials} trials"
        )
