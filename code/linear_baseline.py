"""Shrinkage LDA on time-binned EEG: what a linear reader gets from the same trials, printed beside every score.

Shapes: N trials, C electrodes, T time points, K classes.
"""

import numpy as np
from numpy import ndarray
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from runtime.errors import UserError


def binned(eeg: ndarray, n_bins: int) -> ndarray:
    """(N, C, T) to (N, C * n_bins) float64: each channel's mean over `n_bins` equal stretches of time."""
    edges = np.linspace(0, eeg.shape[-1], n_bins + 1).astype(int)
    sums = np.add.reduceat(np.asarray(eeg), edges[:-1], axis=-1)
    return (sums / np.diff(edges)).reshape(len(eeg), -1).astype(np.float64)


def lda_probabilities(
    train_eeg: ndarray,
    train_label: ndarray,
    test_eeg: ndarray,
    n_classes: int,
    n_bins: int = 32,
    n_components: int = 512,
) -> ndarray:
    """Class probabilities (N_test, K) of a shrinkage LDA fitted to the training trials alone.

    Features are channel means in `n_bins` time bins, reduced to at most `n_components` principal components of the
    training trials; the covariance is shrunk by Ledoit and Wolf's rule. A class without training trials gets 0.

    Raises:
        UserError: fewer than two classes among the training trials, or fewer than two trials of some class on average.
    """
    label = np.asarray(train_label)
    present = np.unique(label)
    if len(present) < 2 or len(label) <= len(present):
        raise UserError(f"linear baseline: {len(label)} training trials of {len(present)} classes are too few to fit")
    train, test = binned(train_eeg, n_bins), binned(test_eeg, n_bins)
    n_components = min(n_components, len(train) - 1, train.shape[1])
    pca = PCA(n_components, svd_solver="randomized", random_state=0, iterated_power=3).fit(train)
    lda = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit(pca.transform(train), label)
    out = np.zeros((len(test), n_classes))
    out[:, present] = lda.predict_proba(pca.transform(test))
    return out
