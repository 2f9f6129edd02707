"""What stage C says about its trials: trials.csv and the record of a run.

Shapes: N trials, S pictures a trial, K classes of the classifier.
"""

import csv
import hashlib
import io
import json
import os
import platform
import subprocess
import time
from collections.abc import Sequence
from math import isnan
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from dataset import Trials
from evaluation.baselines import Baselines, clock
from evaluation.block_design import design_from
from evaluation.folder import TRIAL_COLUMNS
from evaluation.inputs import Inputs, identity
from evaluation.sampling import Sampled
from evaluation.scores import write_metrics
from runtime import checkpoints
from runtime.runs import run_config
from vision.cache import fingerprint
from vision.classifier import PictureClassifier


def true_ranks(logits: Tensor, class_index: Tensor) -> Tensor:
    """Rank of the true class in each picture's logits, 1 is best, ties count as above: (N, S, K), (N,) -> (N, S)."""
    own = logits.gather(2, class_index.view(-1, 1, 1).expand(-1, logits.shape[1], 1))
    return (logits >= own).sum(2)


def write_trials(
    path: Path, trials: Trials, classifier: PictureClassifier | None, seeds: Tensor, logits: Tensor | None,
    gap: Sequence[float],
) -> None:  # fmt: skip
    """Write trials.csv: TRIAL_COLUMNS; each picture's seed and rank of the true class, samples separated by spaces;
    and `seen_1` to `seen_S`, what the classifier names each picture. Columns that need what is absent stay empty.

    Args:
        seeds: (N, S) int64.
        logits: (N, S, K) of the pictures, None without a classifier.
        gap: (N,) seconds to the nearest training trial of the recording, NaN where there is none.
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
    writer.writerow([*TRIAL_COLUMNS, "seeds", "ranks", "gap", *(f"seen_{k + 1}" for k in range(n_samples))])
    for i, label in enumerate(trials.label.tolist()):
        wnid = trials.wnids[label]
        onset = "" if trials.onset is None else float(trials.onset[i])
        recording = "" if trials.recording is None else trials.recording[i]
        writer.writerow((
            i, int(trials.position[i]), int(trials.subject[i]), label, wnid, names.get(int(own[i]), wnid), int(own[i]),
            trials.names[i], onset, recording, " ".join(map(str, seeds[i].tolist())), " ".join(map(str, ranks[i])),
            "" if trials.onset is None or isnan(gap[i]) else f"{gap[i]:.6g}", *seen[i],
        ))  # fmt: skip
    checkpoints.write_text(path, text.getvalue())


def hashes_of(inputs: Inputs) -> dict[str, str | None]:
    """sha256 of the configuration and of what made and judged the pictures, of CLIP's image tower the weights alone.

    None: not there, or the system's record does not say.
    """
    config = json.dumps(run_config(inputs.cfg, "batch_size"), sort_keys=True)
    return {
        "config_sha256": hashlib.sha256(config.encode()).hexdigest(),
        **inputs.generator.about().hashes,
        "clip_sha256": fingerprint(inputs.clip.fingerprint_parts()[0]),
        "classifier_sha256": inputs.classifier and inputs.classifier.sha256,
    }


def machine(device: torch.device) -> dict[str, str]:
    """What the run computed on: the device, the same in words, and torch's version."""
    words = f"{os.cpu_count()} {platform.machine()} cores, {torch.get_num_threads()} threads"
    if device.type == "cuda":
        words = torch.cuda.get_device_name(device)
    return {"device": str(device), "machine": words, "torch": torch.__version__}


def commit() -> str | None:
    """The code's commit, "-dirty" if files were changed since; None outside a git clone."""
    words = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def about_trials(trials: dict[str, Trials], opened_at: str) -> dict:
    """What metrics.json says of the data: which split was opened when and for what, and the order of the classes in
    time, judged on training and test trials together: the more trials, the plainer a block is.
    """
    train, test = trials["train"], trials["test"]
    position, label = (torch.cat([getattr(t, key) for t in (train, test)]) for key in ("position", "label"))
    time, tape = (np.concatenate(parts) for parts in zip(clock(train), clock(test), strict=True))
    order = position.argsort().numpy()
    onset = None if test.onset is None else time[order]
    known = ("simulated", "image_known", "left_out", "band", "control")
    opened = {"test": "pictures and scores", "train": "linear baseline and order of classes"}
    split = {"scored": "test", "trials": len(test), "opened": opened, "opened_at": opened_at}
    # of trials whose labels were shuffled, the order that was shown is known to whoever shuffled them
    design = (test.info.get("control") or {}).get("design") or design_from(label.numpy()[order], onset, tape[order])
    facts = {"commit": commit(), "split": test.info["split"] | split, "design": list(design)}
    return {k: test.info.get(k) for k in known} | facts


def agreement(arrays: dict[str, Tensor], classifier: PictureClassifier | None, test: Trials) -> float | None:
    """Share of the truths in which the classifier sees the data set's class; the published score trusts it instead."""
    if "truth.logits" not in arrays:
        return None
    true_class = classifier.index_of(test.wnids)[test.label]
    return float((arrays["truth.logits"].argmax(1) == true_class).double().mean())


def write_record(folder: Path, inputs: Inputs, sampled: Sampled, baselines: Baselines) -> dict:
    """Write trials.csv and arrays.safetensors; returns the `run` part of metrics.json, without hashes of files."""
    cfg, test, classifier = inputs.cfg, inputs.test, inputs.classifier
    arrays = sampled.arrays | baselines.arrays
    logits = arrays.get("real.logits")
    write_trials(folder / "trials.csv", test, classifier, sampled.seeds, logits, baselines.gap)
    content = {name: values.contiguous() for name, values in arrays.items()}
    checkpoints.write_bytes(folder / "arrays.safetensors", save(content))
    facts = {
        "name": cfg.name,
        "n": len(test),
        "samples": cfg.num_samples,
        "config": identity(cfg),
        "seeds": {"run": cfg.seed, "pictures": "trials.csv"},
        "hashes": hashes_of(inputs),
        "controls": {"asked": cfg.controls, "cost": sampled.cost, "seconds": sampled.seconds},
        "classifier": classifier and classifier.name,
        "classifier_agrees": agreement(arrays, classifier, test),
        "notes": inputs.notes + sampled.notes,
        "licences": dict(inputs.generator.about().licences),
    }
    return about_trials(inputs.trials, inputs.opened_at) | machine(inputs.device) | facts


def score(folder: Path, inputs: Inputs, sampled: Sampled, baselines: Baselines, hashes: dict, started: float) -> dict:
    """The third call of stage C: the record of the run, then all scores; writes and returns metrics.json."""
    run = write_record(folder, inputs, sampled, baselines)
    run |= {"hashes": run["hashes"] | hashes, "seconds": round(time.time() - started, 1)}
    return write_metrics(folder, run, run["device"], root=inputs.cfg.root_path)
