"""Baselines on the same trials, printed beside every score: shrinkage LDA on EEG features, and time alone.

Shapes: N trials, C electrodes, T time points, K classes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

from dataset import Trials
from evaluation.block_design import tapes
from evaluation.n_way import n_way_accuracy
from runtime.errors import UserError

N_COMPONENTS = 512


def time_bins(eeg: ndarray, n_bins: int = 32) -> ndarray:
    """(N, C, T) to (N, C * bins) float64: each channel's mean over at most `n_bins` equal stretches of time.

    This is what an evoked response moves.
    """
    edges = np.linspace(0, eeg.shape[-1], min(n_bins, eeg.shape[-1]) + 1).astype(int)
    sums = np.add.reduceat(np.asarray(eeg), edges[:-1], axis=-1)
    return (sums / np.diff(edges)).reshape(len(eeg), -1).astype(np.float64)


def log_power(eeg: ndarray) -> ndarray:
    """(N, C, T) to (N, C) float64: log variance of each channel, which slow drift moves and no evoked mean shows."""
    return np.log(np.asarray(eeg).var(axis=-1, dtype=np.float64) + np.finfo(np.float32).tiny)


def lda_probabilities(
    train_eeg: ndarray, train_label: ndarray, test_eeg: ndarray, n_classes: int,
    features: Callable[[ndarray], ndarray] = time_bins,
) -> ndarray:  # fmt: skip
    """Class probabilities (N_test, K) of a shrinkage LDA fitted to the training trials alone.

    Features are reduced to at most 512 principal components of the training trials; the covariance is shrunk by
    Ledoit and Wolf's rule. A class without training trials gets 0.

    Args:
        features: (N, C, T) to (N, F).

    Raises:
        UserError: fewer than two classes among the training trials, or no more trials than classes.
    """
    from sklearn.decomposition import PCA
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    label = np.asarray(train_label)
    present = np.unique(label)
    if len(present) < 2 or len(label) <= len(present):
        raise UserError(f"linear baseline: {len(label)} training trials of {len(present)} classes are too few to fit")
    train, test = features(train_eeg), features(test_eeg)
    n_components = min(N_COMPONENTS, len(train) - 1, train.shape[1])
    if n_components < train.shape[1]:
        pca = PCA(n_components, svd_solver="randomized", random_state=0, iterated_power=3).fit(train)
        train, test = pca.transform(train), pca.transform(test)
    lda = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit(train, label)
    out = np.zeros((len(test), n_classes))
    out[:, present] = lda.predict_proba(test)
    return out


def nearest_in_time(
    train_time: ndarray, train_tape: ndarray, train_label: ndarray, time: ndarray, tape: ndarray, label: ndarray
) -> tuple[ndarray, ndarray]:
    """A decoder that sees no EEG: it names the class of the training trial nearest in time.

    It asks those training trials whose class is among the tested ones, so that chance is 1 / classes tested. Looked
    for in the trial's own recording; where none of them is of it, in all, by the time since the beginning of a
    recording. Equally near trials share the guess.

    Args:
        train_time, time: (M,) and (N,) seconds, or places in the file; train_tape, tape: their recordings.

    Returns:
        (N,) share of the guess that is right, and (N,) distance to the nearest training trial of any class, NaN
        where none is of the recording.
    """
    same, away = tape[:, None] == train_tape, np.abs(time[:, None] - train_time)
    able = np.isin(train_label, label)
    near = same & able
    asked = np.where(near | (~near.any(1, keepdims=True) & able), away, np.inf)
    nearest = asked == asked.min(1, keepdims=True)
    hits = (nearest & (train_label == label[:, None])).sum(1) / nearest.sum(1)
    gap = np.where(same, away, np.inf).min(1)
    return hits, np.where(same.any(1), gap, np.nan)


def clock(trials: Trials) -> tuple[np.ndarray, np.ndarray]:
    """(N,) seconds within the recording, or the place in the file without onsets; (N,) subject and recording."""
    time = trials.position if trials.onset is None else trials.onset
    return time.double().numpy(), tapes(trials.subject.tolist(), trials.recording or [""] * len(trials))


@dataclass
class Baselines:
    """Decoders of the same trials that draw nothing."""

    arrays: dict[str, Tensor]  # real.<name> probabilities (N, classes); baseline.<name> hits (N,)
    gap: np.ndarray  # (N,) seconds to the nearest training trial of the recording, NaN where there is none


def baselines(train: Trials, test: Trials) -> Baselines:
    """Linear and time-only decoders of the same trials.

    They learn from the training split and choose among the classes that the pictures may show. LDA on evoked means
    (`lda`) asks what the EEG holds of them; LDA on each channel's power (`lda_power`) sees no evoked response, but
    all that changes slowly: where it alone does well, time is what names the class.
    """
    kinds = test.label.unique()
    true_class, arrays = torch.searchsorted(kinds, test.label.contiguous()), {}
    for name, features in {"lda": time_bins, "lda_power": log_power}.items():
        eeg = train.eeg.numpy(), train.label.numpy(), test.eeg.numpy()
        likely = torch.from_numpy(lda_probabilities(*eeg, len(test.wnids), features))
        hits = n_way_accuracy(likely[:, kinds], true_class, len(kinds))
        arrays |= {f"real.{name}": likely, f"baseline.{name}": hits}
    hits, gap = nearest_in_time(*clock(train), train.label.numpy(), *clock(test), test.label.numpy())
    return Baselines(arrays | {"baseline.time_only": torch.from_numpy(hits)}, gap)
