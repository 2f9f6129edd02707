"""How many sampling steps are enough: scores by steps of three samplers, same trials and seeds.

python code/run.py study_steps preset=miniature           # on validation trials of pretrains/generation/miniature.pth
python code/run.py study_steps preset=miniature steps=10,20 max_items=40

Writes results/studies/<name>/{study.json,study.csv,index.html}; its pictures stay, so that a stopped study goes on.

Shapes: N trials; one picture a trial.
"""

import csv
import io
import json
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from config import GenerateConfig, from_cli, setting
from data.stimuli import image_path, leave_out_missing
from dataset import Trials, open_trials
from dc_ldm.generator import SAMPLERS, check_sampler
from evaluation.inputs import Paths, begin, find_paths, identity, input_hashes, refuse_trained
from evaluation.n_way import n_way_accuracy
from evaluation.page.tables import Plot, score_name
from evaluation.page.templates import render
from evaluation.sampling import draw, picture_seeds
from evaluation.seam import System
from evaluation.statistics import bootstrap_interval, entry, sign_flip_p
from generate import load_generator
from runtime import atomic
from runtime.devices import pick_device
from runtime.errors import UserError
from runtime.paths import under_root
from runtime.pictures import image_tensor, load_image, to_uint8
from runtime.runs import open_run
from runtime.sampling import Sampling
from runtime.system import About
from vision.classifier import PictureClassifier, describe, load_classifier

NAMES = {"plms": "PLMS", "ddim": "DDIM", "dpm_solver": "DPM-Solver++(2M)"}
REFERENCE = ("plms", 250)  # the published sampler


@dataclass
class StudyConfig(GenerateConfig):
    """Scores against sampling steps; settings of stage C but for its sampler, steps and number of samples."""

    steps: str = setting("5,10,20,50,100,250", "numbers of steps, by comma, each tried with every sampler")
    split: str = setting("val", "val, or test: then do not choose by it what is tested next")


def main() -> None:
    cfg = from_cli(StudyConfig)
    settings = [REFERENCE, *(pair for pair in asked(cfg.steps) if pair != REFERENCE)]
    if cfg.split not in ("val", "test"):
        raise UserError(f"split={cfg.split}: use val or test")
    paths = find_paths(cfg)
    generator = load_generator(paths.model, paths.stable_diffusion, cfg.device, cfg.precision, compile=cfg.compile)
    trials, notes = read_trials(cfg, paths, generator)
    print(*notes, sep="\n")
    classifier, absent = load_classifier(str(paths.classifier), str(pick_device(cfg.device)))
    if classifier is None:
        raise UserError(f"the study needs a picture classifier, but {absent}")
    judged = own_classes(classifier, trials, paths.imagenet, generator.about().img_size)

    folder, config = under_root(cfg.root_path, f"results/studies/{cfg.name}"), identity(cfg) | input_hashes(paths)
    open_run(folder, config, cfg.overwrite)
    begin(folder, trials)  # a manifest beside the same file may cut other windows out of it
    seeds, see = (
        picture_seeds(cfg.seed, trials.position, 1),
        partial(describe, classifier=classifier, embed_images=None),
    )
    batch_size, found = cfg.batch_size or generator.fitting_batch(Sampling.of(cfg)), {}
    ways = min(50, len(classifier.classes))
    for sampler, steps in settings:
        make = partial(generator.generate, sampling=Sampling(sampler, steps, cfg.guidance, batch_size))
        started, place = time.process_time(), folder / f"{sampler}-{steps}"
        logits = draw(place, make, trials.eeg, seeds, batch_size, see, "real")["real.logits"][:, 0]
        found[sampler, steps] = scores(logits, *judged)
        shares = ", ".join(f"{name} {values.mean():.3f}" for name, values in found[sampler, steps].items())
        print(f"{NAMES[sampler]}, {steps} steps: {shares}; {time.process_time() - started:.0f} s of CPU", flush=True)
        about = {"ways": ways, "kinds": len(judged[1]), "notes": notes}
        write_study(folder, cfg, trials, about, study(found, ways, len(judged[1])))
    print(f"-> {folder / 'index.html'}")


def asked(steps: str) -> list[tuple[str, int]]:
    """Every sampler with every number of steps. Raises UserError where one cannot do them."""
    try:
        numbers = sorted({int(word) for word in steps.split(",")})
    except ValueError as error:
        raise UserError(f"steps={steps}: expected numbers by comma, such as 5,10,20") from error
    pairs = [(sampler, n) for n in numbers for sampler in SAMPLERS]
    for pair in pairs:
        check_sampler(*pair)
    return pairs


def read_trials(cfg: StudyConfig, paths: Paths, generator: System) -> tuple[Trials, list[str]]:
    """Trials of the split, scaled as the model's training was, and notes on what none can tell of them.

    Raises UserError, also where the model was trained on them, or selected on those of the test split.
    """
    wanted = generator.input
    shape = wanted.n_chans, wanted.n_times, wanted.scale
    trials = open_trials(paths.eeg, paths.splits, cfg.subject, (cfg.split,), *shape, paths.eeg_cache)
    if not trials[cfg.split].info["image_known"]:
        raise UserError(f"{paths.eeg}: says of no trial which image was shown; the study needs it")
    notes = unseen(trials[cfg.split], cfg.split, generator.about(), paths)
    kept, left_out = leave_out_missing(trials, paths.imagenet, cfg.allow_missing)
    mine = kept[cfg.split]
    return mine.select(range(min(cfg.max_items or len(mine), len(mine)))), [*left_out, *notes]


def unseen(trials: Trials, split: str, about: About, paths: Paths) -> list[str]:
    """As `refuse_trained`; but that the model was selected on validation trials is what they are for."""
    if split == "test":
        return refuse_trained(trials, about, paths)
    training = about.training
    if "positions" in training:
        training = {"split": training["split"], "positions": {"train": training["positions"]["train"]}}
    return refuse_trained(trials, replace(about, training=training), paths, "validation")


def own_classes(
    classifier: PictureClassifier, trials: Trials, imagenet: Path, size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Class that the classifier sees in each trial's truth (N,); classes shown (K,); each trial's place in those (N,).

    Raises UserError where the classifier does not know a class.
    """
    label = classifier.index_of(trials.wnids)[trials.label]
    if (label < 0).any():
        raise UserError(f"{classifier.name} does not know all classes of the trials")
    truth = [to_uint8(image_tensor(load_image(image_path(imagenet, name)), size)[None]) for name in trials.names]
    kinds, own = label.unique(return_inverse=True)
    return classifier(torch.cat(truth))[0].argmax(1), kinds, own


def scores(logits: Tensor, seen: Tensor, kinds: Tensor, own: Tensor) -> dict[str, np.ndarray]:
    """Both class scores of every trial (N,), as stage C computes them, from logits (N, classes)."""
    return {
        "n_way": n_way_accuracy(logits, seen, min(50, logits.shape[1])).numpy(),
        "class_accuracy": n_way_accuracy(logits[:, kinds], own, len(kinds)).numpy(),
    }


def study(found: dict[tuple[str, int], dict[str, np.ndarray]], ways: int, kinds: int) -> list[dict]:
    """One row a setting: both scores with intervals, and their difference from the reference over the same trials."""
    rows = []
    for (sampler, steps), scored in found.items():
        row = {"sampler": sampler, "steps": steps, "forwards": steps + (sampler == "plms")}
        for name, chance in (("n_way", 1 / ways), ("class_accuracy", 1 / kinds)):
            change = scored[name] - found[REFERENCE][name]
            row[name] = entry(scored[name], chance, "trial")
            row[name] |= {"change": float(change.mean()), "change_ci95": list(bootstrap_interval(change))}
            row[name]["p_lower"] = float(sign_flip_p(-change)) if change.any() else 1.0
        rows.append(row)
    return sorted(rows, key=lambda row: (list(NAMES).index(row["sampler"]), row["steps"]))


def conclusion(rows: list[dict]) -> str:
    """Which settings are no worse than the reference as far as these trials can tell, and by how much they may be."""
    reference = next(row for row in rows if (row["sampler"], row["steps"]) == REFERENCE)
    told = []
    for sampler, name in NAMES.items():
        mine = [row for row in rows if row["sampler"] == sampler]
        worse = [row["steps"] for row in mine if row["n_way"]["change_ci95"][1] < 0]
        enough = [row for row in mine if row["steps"] > max(worse, default=0)]
        if enough:
            low = 100 * enough[0]["n_way"]["change_ci95"][0]
            told.append(
                f"{name} from {enough[0]['steps']} steps on (at {enough[0]['steps']}, a loss of more than "
                f"{max(0.0, -low):.1f} points lies outside the 95 % interval)"
            )
    beside = "; ".join(told)
    return (
        f"No worse than PLMS with 250 steps ({100 * reference['n_way']['value']:.1f} %), in that the interval of the "
        f"paired difference over the same {reference['n_way']['n']} trials does not lie below zero: {beside}."
    )


def write_study(folder: Path, cfg: StudyConfig, trials: Trials, about: dict, rows: list[dict]) -> None:
    """study.json, study.csv and index.html. `about`: classes that each score compares, and notes."""
    simulated, n = trials.info["simulated"], len(trials)
    about |= {"split": cfg.split, "n": n, "simulated": simulated, "guidance": cfg.guidance, "seed": cfg.seed}
    content = about | {"precision": identity(cfg)["precision"], "conclusion": conclusion(rows), "rows": rows}
    atomic.write_text(folder / "study.json", json.dumps(content, indent=1) + "\n")
    text = io.StringIO()
    columns = ["value", "ci95", "chance", "change", "change_ci95", "p_lower"]
    table = csv.writer(text)
    table.writerow(
        ["sampler", "steps", "forwards", *(f"{name}_{c}" for name in ("n_way", "class_accuracy") for c in columns)]
    )
    for row in rows:
        values = [row[name][c] for name in ("n_way", "class_accuracy") for c in columns]
        shown = [" ".join(map(str, v)) if isinstance(v, list) else v for v in values]
        table.writerow([row["sampler"], row["steps"], row["forwards"], *shown])
    atomic.write_text(folder / "study.csv", text.getvalue())
    atomic.write_text(folder / "index.html", page(content))


def page(content: dict) -> str:
    """The study as a page of the results' look."""
    titles = {"n_way": score_name(f"{content['ways']}_way_top1")}
    titles["class_accuracy"] = f"Accuracy among the {content['kinds']} classes shown"
    plots = []
    for score, title in titles.items():
        for sampler in dict.fromkeys(row["sampler"] for row in content["rows"]):
            rows = {f"{row['steps']} steps": row[score] for row in content["rows"] if row["sampler"] == sampler}
            plots.append(Plot(f"{NAMES[sampler]}: {title}", "", rows, "even"))
    told, _, points = content["conclusion"].rstrip(".").partition(": ")
    shown = {"verdict": told, "points": points.split("; "), "plots": plots, "titles": titles, "names": NAMES}
    return render("study.html", **content, **shown)
