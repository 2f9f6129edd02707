"""A simulated experiment: which picture is shown when, the trials cut from the recordings, and their splits.

The layout of what it returns is that of the published files (spec 1.1, 1.2).
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from miniature.evoked import picture_codes
from miniature.renderer import STIMULI, WNIDS
from miniature.simulator import Subject, bandpass, standardise
from runtime import draws

RATE = 1000.0  # Hz
N_RECORDINGS = 8
IMAGES_A_RUN = 40  # then the screen is black, as after each 50 of the published experiment
PAUSE, BETWEEN_RECORDINGS = 4.0, 60.0  # s of black within a recording; s between recordings
EDGE = 1000  # samples before the first and after the last picture, where filters settle
LONG_TRIALS = 0.001  # share of trials that last until the screen went on again, as in the published file


class Presentation(NamedTuple):
    """One recording's pictures in the order shown; times in samples."""

    image: np.ndarray  # (n,) index into the experiment's images
    onset: np.ndarray  # (n,)
    length: np.ndarray  # (n,) until the next picture or the end of this one
    seconds: float


def presentations(n_images: int, design: str, seed: int) -> list[Presentation]:
    """The same for every subject, so that one split by image serves all.

    Args:
        n_images: images of the experiment, sorted by class.
        design: "random": all images in one random order; "block": class after class, random within.
    """
    order = draws.permutation(n_images, seed, "order of pictures").numpy()
    if design == "block":
        order = order[np.argsort(order // (n_images // len(STIMULI)), kind="stable")]
    u = draws.rand((n_images, 3), seed, "duration of pictures").double().numpy()
    # most common 498 to 500, median near 505, a fifth above 520 (spec 1.1)
    length = np.where(u[:, 0] < 0.45, 495 + 7 * u[:, 1], 502 + 29 * u[:, 1] ** 1.2).astype(int)
    length[u[:, 2] < LONG_TRIALS] += (1000 * u[u[:, 2] < LONG_TRIALS, 1]).astype(int) + 200
    shown = []
    for rows in np.array_split(np.arange(n_images), N_RECORDINGS):
        pauses = (np.arange(len(rows)) // IMAGES_A_RUN) * int(PAUSE * RATE)
        onset = EDGE + np.concatenate([[0], np.cumsum(length[rows])[:-1]]) + pauses
        shown.append(Presentation(order[rows], onset, length[rows], (onset[-1] + length[rows[-1]] + EDGE) / RATE))
    return shown


def record_trials(
    subject: Subject, codes: np.ndarray, shown: Sequence[Presentation], band: str, images_a_class: int
) -> Iterator[dict]:
    """Every trial of one subject in the order of time, as the published file's dicts with `onset` and `recording`."""
    clock = 0.0
    for recording, (image, onset, length, seconds) in enumerate(shown):
        raw = subject.record(codes[image], onset, seconds, recording, clock)
        eeg = standardise(bandpass(raw, band, RATE))
        clock += seconds + BETWEEN_RECORDINGS
        for i, start, n in zip(image.tolist(), onset.tolist(), length.tolist(), strict=True):
            yield {
                "eeg": torch.from_numpy(eeg[:, start : start + n].copy()),
                "image": i,
                "label": i // images_a_class,
                "subject": subject.subject,
                "onset": start / RATE,
                "recording": recording,
            }


def simulate_experiment(
    subjects: Sequence[int], images_a_class: int, design: str = "random", signal: float = 1.0, drift: float = 1.0,
    instance: float = 0.3, band: str = "5_95", seed: int = 0,
) -> dict:  # fmt: skip
    """The content of a trials file: `dataset`, `labels` and `images` (spec 1.1).

    Pictures have the renderer's seeds 0 to images_a_class - 1, in each of the 40 stimulus classes.
    """
    classes, pictures = np.repeat(STIMULI, images_a_class), np.tile(np.arange(images_a_class), len(STIMULI))
    codes = picture_codes(classes.tolist(), pictures.tolist(), instance)
    shown = presentations(len(classes), design, seed)
    trials = []
    for number in subjects:
        subject = Subject(seed, number, signal=signal, drift=drift)
        trials += record_trials(subject, codes, shown, band, images_a_class)
    images = [f"{WNIDS[c]}_{p}" for c, p in zip(classes.tolist(), pictures.tolist(), strict=True)]
    return {"dataset": trials, "labels": [WNIDS[c] for c in STIMULI], "images": images}


def split_by_image(images: Sequence[int], images_a_class: int, seed: int) -> dict[str, list[int]]:
    """Positions 0.. of the trials that showed these images, split 80/10/10 by image within each class (spec 1.2)."""
    n_test = max(1, images_a_class // 10)
    rank = np.concatenate([draws.permutation(images_a_class, seed, "split", k) for k in range(len(STIMULI))])
    tenth = rank[np.asarray(images)] // n_test
    part = {"train": tenth >= 2, "val": tenth == 0, "test": tenth == 1}
    return {name: np.flatnonzero(rows).tolist() for name, rows in part.items()}


def unlabelled_recording(seed: int, subject: int, n_chans: int, rate: float, seconds: float, band: str) -> np.ndarray:
    """(n_chans, T): someone else, another cap, pictures of all stimulus classes at half a second each; standardised."""
    onset = np.arange(int(rate), int((seconds - 1) * rate), int(0.505 * rate))
    drawn = draws.randint(0, len(STIMULI), (len(onset),), seed, "unlabelled pictures", subject).tolist()
    codes = picture_codes([STIMULI[k] for k in drawn], list(range(len(onset))), 0.3)
    raw = Subject(seed, subject, n_chans, rate).record(codes, onset, seconds, recording=0)
    return standardise(bandpass(raw, band, rate))
