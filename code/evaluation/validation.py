"""Stage B's looks at the validation trials: a grid of pictures, and whether pictures show the class that was seen.

Shapes: N validation trials, S pictures a trial, H x W pixels, K classes of the picture classifier.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from config import FinetuneConfig
from data.stimuli import image_path
from dataset import Trials
from evaluation.n_way import n_way_accuracy
from evaluation.seam import System
from runtime import draws
from runtime.errors import UserError
from runtime.paths import file_or_name, under_root
from runtime.pictures import image_tensor, load_image, save_grid
from runtime.sampling import Sampling
from vision.classifier import PictureClassifier, load_classifier

N_SHOWN = 5  # validation trials in a grid, as in the published short validation
N_WAY = 50


@dataclass
class Judge:
    """What select=n_way looks at pictures with."""

    classifier: PictureClassifier

    @property
    def n_way(self) -> int:
        """How many classes are compared."""
        return min(N_WAY, len(self.classifier.classes))

    def classes(self, trials: Trials) -> Tensor:
        """(N,) the classifier's number of each trial's class. Raises UserError where it does not know one."""
        own = self.classifier.index_of(trials.wnids)[trials.label]
        if (own < 0).any():
            unknown = sorted({trials.wnids[i] for i in trials.label[own < 0]})
            raise UserError(f"select=n_way: {self.classifier.name} does not know {', '.join(unknown[:5])}")
        return own

    def score(self, pictures: Tensor, trials: Trials) -> float:
        """Exact n-way top-1 of the class that was seen, mean over trials and samples, of (N, S, H, W, 3) uint8."""
        logits, _ = self.classifier(pictures.flatten(0, 1))  # (N * S, K)
        own = self.classes(trials).repeat_interleave(pictures.shape[1])
        return float(n_way_accuracy(logits, own, self.n_way).mean())


def load_judge(cfg: FinetuneConfig, device: torch.device) -> Judge | None:
    """The judge that select=n_way needs; None for clip_retrieval. Raises UserError if its classifier is not there."""
    if cfg.select == "clip_retrieval":
        return None
    classifier, absent = load_classifier(str(file_or_name(cfg.root_path, cfg.classifier)), str(device))
    if classifier is None:
        raise UserError(f"select=n_way needs a picture classifier, but {absent}; get it, or use select=clip_retrieval")
    return Judge(classifier)


def cost(cfg: FinetuneConfig, n_train: int, n_val: int) -> str:
    """What select=n_way costs, in forward passes of the UNet over one picture, beside the training itself."""
    pictures, passes = (
        n_val * cfg.num_samples,
        (cfg.ddim_steps + (cfg.sampler == "plms")) * (1 if cfg.guidance == 1 else 2),
    )
    times = -(-cfg.num_epoch // cfg.validate_every)
    size = cfg.batch_size * cfg.accumulate_grad
    return (
        f"select=n_way: {pictures} pictures x {passes} = {pictures * passes} UNet forwards at each validation, "
        f"{times * pictures * passes} in all {times}, beside "
        f"{cfg.num_epoch * draws.steps_per_epoch(n_train, size)} training steps of {size} trials"
    )


def look(cfg: FinetuneConfig, generator: System, val: Trials, path: Path, judge: Judge | None) -> dict[str, float]:
    """Write a grid of a few trials: the picture that was seen, then pictures from the EEG. A judge sees all trials'.

    Returns:
        `val_n_way_top1`, the judge's score, where there is one.
    """
    shown = torch.linspace(0, len(val) - 1, min(N_SHOWN, len(val))).long()
    drawn = torch.arange(len(val)) if judge else shown
    seeds = draws.randint(0, 2**62, (len(drawn), cfg.num_samples), cfg.seed, "validation pictures")
    pictures = generator.generate(val.eeg[drawn], seeds, Sampling.of(cfg, cfg.batch_size))

    imagenet = under_root(cfg.root_path, cfg.imagenet_path)
    truth = [image_tensor(load_image(image_path(imagenet, val.names[i])), cfg.img_size) for i in shown]
    kind = "SIMULATED EEG, " if val.info["simulated"] else ""
    grid = pictures[shown] if judge else pictures
    save_grid(path, torch.stack(truth), grid, f"{kind}validation: truth | from EEG")
    return {"val_n_way_top1": judge.score(pictures, val)} if judge else {}
