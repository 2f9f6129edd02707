"""What stage C says about its trials: trials.csv and the record of a run.

Shapes: N trials, S pictures a trial, K classes of the classifier.
"""

import csv
import io
from pathlib import Path

import torch
from torch import Tensor

from dataset import Trials
from eval_folder import TRIAL_COLUMNS
from runtime import checkpoints
from scorers import PictureClassifier
from verdict import design_from


def true_ranks(logits: Tensor, class_index: Tensor) -> Tensor:
    """Rank of the true class in each picture's logits, 1 is best, ties count as above: (N, S, K), (N,) -> (N, S)."""
    own = logits.gather(2, class_index.view(-1, 1, 1).expand(-1, logits.shape[1], 1))
    return (logits >= own).sum(2)


def write_trials(
    path: Path, trials: Trials, classifier: PictureClassifier | None, seeds: Tensor, logits: Tensor | None
) -> None:
    """Write trials.csv: TRIAL_COLUMNS; each picture's seed and rank of the true class, samples separated by spaces;
    and `seen_1` to `seen_S`, what the classifier names each picture. Columns that need what is absent stay empty.

    Args:
        seeds: (N, S) int64.
        logits: (N, S, K) of the pictures, None without a classifier.
    """
    n_samples = seeds.shape[1]
    index = torch.full((len(trials.wnids),), -1) if classifier is None else classifier.index_of(trials.wnids)
    names = {k: classifier.names[k] for k in index.tolist() if k >= 0}
    own = index[trials.label]
    ranked = logits is not None and bool((own >= 0).all())
    ranks = true_ranks(logits, own).tolist() if ranked else [[]] * len(trials)
    seen = [[""] * n_samples] * len(trials)
    if logits is not None:
        seen = [[classifier.names[k] for k in row] for row in logits.argmax(2).tolist()]
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow([*TRIAL_COLUMNS, "seeds", "ranks", *(f"seen_{k + 1}" for k in range(n_samples))])
    for i, label in enumerate(trials.label.tolist()):
        wnid = trials.wnids[label]
        onset = "" if trials.onset is None else float(trials.onset[i])
        recording = "" if trials.recording is None else trials.recording[i]
        writer.writerow((
            i, int(trials.position[i]), int(trials.subject[i]), label, wnid, names.get(int(own[i]), wnid), int(own[i]),
            trials.names[i], onset, recording, " ".join(map(str, seeds[i].tolist())), " ".join(map(str, ranks[i])),
            *seen[i],
        ))  # fmt: skip
    checkpoints.write_text(path, text.getvalue())


def about_trials(trials: dict[str, Trials]) -> dict:
    """What metrics.json says of the data: which split was opened for what, and the order of the classes in time.

    The order is judged on training and test trials together: the more trials, the plainer a block is.
    """
    train, test = trials["train"], trials["test"]
    order = torch.cat([train.position, test.position]).argsort()
    label, subject = (torch.cat([getattr(t, k) for t in (train, test)])[order] for k in ("label", "subject"))
    onset = None if test.onset is None else torch.cat([train.onset, test.onset])[order].numpy()
    tapes = [*train.recording, *test.recording] if test.recording else [""] * len(order)
    tape = [f"{s} {tapes[i]}" for s, i in zip(subject.tolist(), order.tolist(), strict=True)]
    known = ("simulated", "image_known", "left_out")
    return {k: test.info[k] for k in known} | {
        "split": test.info["split"]
        | {
            "scored": "test",
            "trials": len(test),
            "opened": {"test": "pictures and scores", "train": "linear baseline and order of classes"},
        },
        "design": list(design_from(label.numpy(), onset, tape)),
    }
