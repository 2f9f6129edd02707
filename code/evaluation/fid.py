"""Scores where lower is better: distances of pictures to their truths, and of whole sets (FID, KID), each with its n.

Shapes: N trials, S pictures of a trial, U distinct images among the truths, 2048 features of FID's Inception.
"""

from collections.abc import Mapping
from math import nan

import numpy as np
import torch

from evaluation.folder import Outcome, Truth
from evaluation.statistics import ItemScores

# Networks whose distance is printed too, and the likeness of a picture with itself
FULL = {"efficientnet_b1": 1.0, "swav": 1.0, "lpips": 0.0}

LEAST = {"fid": 2049, "kid": 100}  # pictures and truths, see `too_few`


def distances(alike: Mapping[str, np.ndarray], own: np.ndarray) -> dict[str, ItemScores]:
    """Minus the distance of every picture to its own truth, so that larger is better as in all other item scores.

    alike: (S, N, U) by network; own (N,) in 0..U-1.
    """
    items, scores = np.arange(len(own)), {}
    for name in (name for name in FULL if name in alike):
        less = alike[name] - FULL[name]
        scores[f"distance_{name}"] = ItemScores(less[:, items, own], less[0].mean(0)[own], nan, items)
    return scores


def turn_distances(metrics: dict) -> None:
    """Let the distances in metrics.json be positive, as the field prints them: lower is better, chance has no value."""
    for scores in (metrics["scores"], *metrics["controls"].values(), *metrics["subjects"].values()):
        for score in (scores[name] for name in scores if name.startswith("distance_")):
            for key, value in score.items():
                if key.startswith(("value", "first_sample", "best_of", "ci95")):
                    score[key] = [-end for end in reversed(value)] if isinstance(value, list) else -value
            score |= {"chance": None, "lower_better": True}


def too_few(pictures: int, truths: int) -> list[str]:
    """Why FID or KID of so many pictures are refused, a sentence each.

    FID compares covariances of 2048 features: 2048 pictures or fewer leave them singular, and its bias, which falls
    with n, is then larger than what models differ by. KID has no such bias (Binkowski et al. 2018), but a spread: below
    100 pictures it is as large as the values.
    """
    counts, fewest = f"there are {pictures} pictures and {truths} distinct truths.", min(pictures, truths)
    return [f"{k.upper()} is left out: it needs {n} of each, {counts}" for k, n in LEAST.items() if fewest < n]


def _distances(pictures: np.ndarray, truths: np.ndarray) -> dict[str, dict]:
    """FID and KID of features (n, 2048) and (m, 2048), where there are enough, as torch-fidelity computes them."""
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric

    sets = [torch.from_numpy(features).double() for features in (pictures, truths)]
    fewest, scores = min(map(len, sets)), {}
    if fewest >= LEAST["fid"]:
        value = fid_statistics_to_metric(*map(fid_features_to_statistics, sets), verbose=False)
        scores["fid"] = {"value": value["frechet_inception_distance"]}
    if fewest >= LEAST["kid"]:
        # half of the smaller set, so that subsets differ: their size moves only the spread
        size = min(1000, fewest // 2)
        value = kid_features_to_metric(*sets, kid_subsets=100, kid_subset_size=size, rng_seed=0, verbose=False)
        spread = {"std": value["kernel_inception_distance_std"], "subset": size}
        scores["kid"] = {"value": value["kernel_inception_distance_mean"]} | spread
    return scores


def set_scores(outcome: Outcome, truth: Truth) -> dict[str, dict]:
    """Entries of metrics.json for the whole of a run's pictures against all distinct truths.

    `value` is of all samples, `first_sample` of the first alone: what a control, which has no other, compares with.
    """
    if outcome.fid is None or truth.fid is None or truth.image is None:
        return {}
    truths = truth.fid[np.unique(truth.image, return_index=True)[1]]
    every = outcome.fid.reshape(-1, outcome.fid.shape[-1])
    scores, first = _distances(every, truths), _distances(outcome.fid[:, 0], truths)
    about = {"ci95": None, "chance": None, "n": len(every), "unit": "picture", "truths": len(truths)}
    about["lower_better"] = True
    return {k: s | about | {"first_sample": first.get(k, {}).get("value")} for k, s in scores.items()}
