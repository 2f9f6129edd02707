"""What stage C says about its trials: trials.csv and the record of a run.

Shapes: N trials, S pictures a trial, K classes of the classifier.
"""

import hashlib
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

from data.near_trials import among
from dataset import Trials
from evaluation.baselines import Baselines, clock
from evaluation.block_design import design_from
from evaluation.inputs import Inputs, identity, untold
from evaluation.plain_files import write_columns
from evaluation.sampling import Sampled
from evaluation.scores import write_metrics
from runtime import atomic
from runtime.checkpoints import loaded
from runtime.runs import run_config
from vision.cache import fingerprint


def true_ranks(logits: Tensor, class_index: Tensor) -> Tensor:
    """Rank of the true class in each picture's logits, 1 is best, ties count as above: (N, S, K), (N,) -> (N, S)."""
    own = logits.gather(2, class_index.view(-1, 1, 1).expand(-1, logits.shape[1], 1))
    return (logits >= own).sum(2)


def trial_columns(inputs: Inputs, sampled: Sampled, gap: Sequence[float]) -> dict[str, Sequence]:
    """Columns (N,) of trials.csv: TRIAL_COLUMNS; each picture's seed and rank of the true class, samples separated by
    spaces; and `seen_1` to `seen_S`, what the classifier names each picture. Those that need what is absent are empty.

    gap: (N,) seconds to the nearest training trial of the recording, NaN where there is none.
    """
    trials, classifier, logits = inputs.test, inputs.classifier, sampled.arrays.get("real.logits")
    wnid = [trials.wnids[label] for label in trials.label.tolist()]
    own = torch.full(trials.label.shape, -1) if classifier is None else classifier.index_of(wnid)
    empty, timed = [""] * len(trials), trials.onset is not None
    ranks, seen = empty, [empty] * sampled.seeds.shape[1]
    if logits is not None:
        ranks = _joined(true_ranks(logits, own)) if (own >= 0).all() else empty
        seen = [[classifier.names[k] for k in sample] for sample in logits.argmax(2).T.tolist()]
    numbers = {name: getattr(trials, name).tolist() for name in ("position", "subject", "label")}
    columns = {"trial": range(len(trials))} | numbers | {
        "wnid": wnid,
        "class_name": [name if k < 0 else classifier.names[k] for k, name in zip(own.tolist(), wnid, strict=True)],
        "class_index": own.tolist(),
        "image": trials.names,
        "onset": trials.onset.tolist() if timed else empty,
        "recording": trials.recording or empty,
        "seeds": _joined(sampled.seeds),
        "ranks": ranks,
        "gap": [f"{value:.6g}" if timed and not isnan(value) else "" for value in gap],
    }  # fmt: skip
    return columns | {f"seen_{k + 1}": names for k, names in enumerate(seen)}


def _joined(values: Tensor) -> list[str]:
    """Each row of (N, S) integers, separated by spaces."""
    return [" ".join(map(str, row)) for row in values.tolist()]


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
    found = test.info["split"]["same_eeg"]
    same_eeg = {"val": {k: v for k, v in found["val"].items() if k != "pairs"}}
    same_eeg["test"] = among(found["test"], test.position.tolist())  # of those that are scored
    split = {"scored": "test", "trials": len(test), "opened": opened, "opened_at": opened_at, "same_eeg": same_eeg}
    # of trials whose labels were shuffled, and which say so, the order that was shown is known to whoever shuffled them
    control = test.info.get("control") or {}
    design = (control.get("about") and control.get("design")) or design_from(label.numpy()[order], onset, tape[order])
    facts = {"commit": commit(), "split": test.info["split"] | split, "design": list(design)}
    return {k: test.info.get(k) for k in known} | facts


def agreement(inputs: Inputs, sampled: Sampled) -> float | None:
    """Share of the truths in which the classifier sees the data set's class; the published score trusts it instead."""
    if "truth.logits" not in sampled.arrays:
        return None
    true_class = inputs.classifier.index_of(inputs.test.wnids)[inputs.test.label]
    return float((sampled.arrays["truth.logits"].argmax(1) == true_class).double().mean())


def about_run(inputs: Inputs, sampled: Sampled, hashes: dict) -> dict:
    """The `run` part of metrics.json, but for the seconds; hashes: of the files that make the run what it is."""
    cfg, classifier = inputs.cfg, inputs.classifier
    facts = {
        "name": cfg.name,
        "n": len(inputs.test),
        "samples": cfg.num_samples,
        "config": identity(cfg),
        "seeds": {"run": cfg.seed, "pictures": "trials.csv"},
        "hashes": hashes_of(inputs) | hashes,
        "controls": {"asked": cfg.controls, "cost": sampled.cost, "seconds": sampled.seconds},
        "classifier": classifier and classifier.name,
        "classifier_agrees": agreement(inputs, sampled),
        "notes": inputs.notes + sampled.notes,
        "tensors": {**inputs.generator.about().tensors, "clip": loaded(inputs.clip.model)}
        | ({"classifier": loaded(classifier.features, classifier.head)} if classifier else {}),
        "licences": dict(inputs.generator.about().licences),
    }
    told = about_trials(inputs.trials, inputs.opened_at)
    if why := untold(inputs.generator.about(), inputs.test):
        told["split"]["untold"] = f"{inputs.generator.about().name} {why}"
    return told | machine(inputs.device) | facts


def score(folder: Path, inputs: Inputs, sampled: Sampled, baselines: Baselines, hashes: dict, started: float) -> dict:
    """The third call of stage C: trials.csv and arrays.safetensors, then all scores; returns metrics.json."""
    write_columns(folder / "trials.csv", trial_columns(inputs, sampled, baselines.gap))
    arrays = {name: values.contiguous() for name, values in (sampled.arrays | baselines.arrays).items()}
    atomic.write_bytes(folder / "arrays.safetensors", save(arrays))
    run = about_run(inputs, sampled, hashes) | {"seconds": round(time.time() - started, 1)}
    return write_metrics(folder, run, run["device"], root=inputs.cfg.root_path)
