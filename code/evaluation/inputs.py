"""Stage C's inputs: files, trials, the system under test, and the frozen networks that look at its pictures.

Shapes: N trials.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from config import FinetuneConfig, GenerateConfig
from data.signals import read_manifest
from data.splits import describe_splits, read_splits
from data.stimuli import image_path, leave_out_missing
from data.trials_file import open_trial_file
from dataset import Trials, open_trials
from evaluation.seam import System
from runtime import atomic, digests, ranks
from runtime.devices import about_device, pick_device, pick_dtype
from runtime.errors import UserError
from runtime.findings import Findings
from runtime.paths import all_there, cache_of, file_or_name, under_root
from runtime.plain import read_json
from runtime.runs import run_config
from runtime.sampling import Sampling
from runtime.system import About, EEGInput
from vision.classifier import PictureClassifier, load_classifier
from vision.clip import OPEN_CLIP, FrozenCLIP, OpenCLIP, load_clip
from vision.clip_files import clip_files, look_at_clip

READ = (".json", ".txt", ".safetensors")  # of a model's folder, which may hold other formats besides


@dataclass(frozen=True)
class Paths:
    """Where the inputs lie."""

    model: Path
    eeg: Path
    splits: Path
    imagenet: Path | None  # None where the file says that the images shown are unknown
    stable_diffusion: Path
    cache: Path
    clip: Path | str  # a folder, or a name known elsewhere
    classifier: Path | str
    eeg_cache: Path | None = None  # beside the EEG


@dataclass
class Inputs:
    """What stage C opens before it samples."""

    cfg: GenerateConfig
    paths: Paths
    device: torch.device
    generator: System
    trials: dict[str, Trials]  # "test" is scored, "train" serves baselines and the order of classes
    opened_at: str
    clip: FrozenCLIP | OpenCLIP
    classifier: PictureClassifier | None
    notes: list[str]

    @property
    def test(self) -> Trials:
        """The trials that are scored."""
        return self.trials["test"]

    @property
    def image_known(self) -> bool:
        """Whether it is known which image each trial showed."""
        return self.paths.imagenet is not None

    def pictures(self, split: str) -> list[Path]:
        """(N,) file of the image that each trial of a split showed; empty where that is unknown."""
        names = self.trials[split].names if self.image_known else ()
        return [image_path(self.paths.imagenet, name) for name in names]


def paths_of(cfg: GenerateConfig) -> Paths:
    """Where the settings say that the inputs lie."""
    eeg = under_root(cfg.root_path, cfg.eeg_signals_path)
    known = read_manifest(eeg.with_suffix(".json")).get("image_known", True)
    return Paths(
        model=under_root(cfg.root_path, cfg.model_path or f"pretrains/generation/{cfg.name}.pth"),
        eeg=eeg,
        splits=under_root(cfg.root_path, cfg.splits_path),
        imagenet=under_root(cfg.root_path, cfg.imagenet_path) if known else None,
        stable_diffusion=under_root(cfg.root_path, cfg.pretrain_gm_path),
        cache=under_root(cfg.root_path, cfg.cache or "datasets/cache"),
        clip=file_or_name(cfg.root_path, cfg.clip),
        classifier=file_or_name(cfg.root_path, cfg.classifier),
        eeg_cache=cache_of(cfg),
    )


def find_paths(cfg: GenerateConfig) -> Paths:
    """`paths_of`, all of which are there. Raises UserError that names everything missing, in one sentence."""
    paths = paths_of(cfg)
    wanted = {
        "model_path": ("stage B checkpoint", paths.model),
        "eeg_signals_path": ("EEG of the trials", paths.eeg),
        "splits_path": ("splits", paths.splits),
        "imagenet_path": ("folder of the images shown", paths.imagenet),
        "pretrain_gm_path": ("folder of Stable Diffusion", paths.stable_diffusion),
    }
    all_there({name: (subject, path) for name, (subject, path) in wanted.items() if path is not None})
    return paths


def identity(cfg: GenerateConfig) -> dict:
    """The settings that make a run what it is, with what precision=auto means here; the batch does not count."""
    half = pick_dtype(cfg.precision, cfg.device) == torch.bfloat16
    return run_config(cfg, "batch_size") | {"precision": "bf16" if half else "32"}


def input_hashes(paths: Paths) -> dict[str, str]:
    """sha256 of the checkpoint, the splits and the EEG: other files behind the same names make another run."""
    return {
        "model_sha256": digests.sha256(paths.model),
        "splits_sha256": digests.sha256(paths.splits),
        "eeg_sha256": open_trial_file(paths.eeg, paths.eeg_cache).about["sha256"],
    }


def files_read(
    cfg: FinetuneConfig | GenerateConfig, parts: Sequence[str], judged: bool, more: dict[str, Path]
) -> Iterator[dict[str, Path]]:
    """What stages B and C read, by what messages call it, and `more`; the pictures last, those of these splits' trials.

    judged: whether the picture classifier is read.
    """
    eeg, splits = (under_root(cfg.root_path, path) for path in (cfg.eeg_signals_path, cfg.splits_path))
    models = under_root(cfg.root_path, cfg.pretrain_gm_path) / "models"
    files = {"EEG": eeg, "splits": splits, "config15.yaml": models / "config15.yaml"} | more
    files |= {f"manifest {path.stem}.json": path.with_suffix(".json") for path in (eeg, splits)}
    for suffix in (".ckpt", ".safetensors"):  # the latter is preferred
        if (models / f"v1-5-pruned{suffix}").is_file():
            files["Stable Diffusion"] = models / f"v1-5-pruned{suffix}"
    for name, value in [("CLIP", cfg.clip), ("classifier", cfg.classifier)][: 1 + judged]:
        files |= {f"{name} {path.name}": path for path in files_of_model(file_or_name(cfg.root_path, value))}
    yield files
    if eeg.is_file() and splits.is_file() and read_manifest(eeg.with_suffix(".json")).get("image_known", True):
        about, root = open_trial_file(eeg, cache_of(cfg)).about, under_root(cfg.root_path, cfg.imagenet_path)
        rows, _ = read_splits(splits, about["trials"]["subject"], cfg.subject, str(eeg))
        images = sorted({about["trials"]["image"][i] for part in parts for i in rows[part]})
        yield {f"picture {name}": image_path(root, name) for name in (about["images"][i] for i in images)}


def evaluation_files(cfg: GenerateConfig) -> Iterator[dict[str, Path]]:
    """What stage C reads besides the checkpoint, by what messages call it."""
    return files_read(cfg, ("train", "test"), True, {})


def clip_hashes(cfg: FinetuneConfig | GenerateConfig) -> dict[str, str]:
    """sha256 of CLIP's files, by what messages call them, once it is loaded: a hub's may have been fetched just now."""
    return {f"CLIP {path.name}": digests.sha256(path) for path in files_of_model(file_or_name(cfg.root_path, cfg.clip))}


def files_of_model(where: Path | str) -> list[Path]:
    """What a CLIP or a classifier is read from: a folder, a file, or what is at hand of a name."""
    if where == "vit_h_14":
        return sorted((Path(torch.hub.get_dir()) / "checkpoints").glob("vit_h_14_swag-*.pth"))
    if isinstance(where, Path):
        return [where] if where.is_file() else sorted(path for path in where.glob("*") if path.suffix in READ)
    try:
        return [Path(file) for file in where.split(":")[2:]] if where.startswith(OPEN_CLIP) else clip_files(where)
    except ValueError:  # no name that the hub could know, as the loader will say
        return []


def open_inputs(cfg: GenerateConfig, paths: Paths, load_generator: Callable[..., System], findings: Findings) -> Inputs:
    """Open everything that stage C reads; here, and only here, the test split is opened.

    load_generator: `generate.load_generator`, passed in because evaluation knows no system.

    Raises:
        UserError: as the loaders; EEG unlike the training's; trials that the system was trained on. With
            `findings.keep_going` these are findings, and a field is None where that input did not open.
    """
    device = findings.open("device", lambda: pick_device(cfg.device), about_device) or torch.device("cpu")
    if findings.keep_going:  # nothing is downloaded
        clip = None
        look_at_clip(paths.clip, findings)
    else:
        clip = load_clip(paths.clip, device)
    judge = findings.open(
        "classifier", lambda: load_classifier(str(paths.classifier), str(device)),
        lambda pair: pair[1] or pair[0].name, files_of_model(paths.classifier),
    )  # fmt: skip
    classifier, absent = judge or (None, "")

    def load() -> System:
        where = paths.model, paths.stable_diffusion
        system = load_generator(*where, str(device), cfg.precision, clip, cfg.compile)
        system.check(Sampling.of(cfg))
        return system

    subject, generator = "stage B checkpoint", None
    if cfg.model_path or not findings.comes_later(subject, paths.model):
        generator = findings.open(subject, load, lambda system: system.about().name, [paths.model])
    trials, unsure = findings.open(
        "trials", lambda: ranks.lead_first(lambda: read_trials(cfg, paths, generator)),
        lambda pair: "; ".join([describe_splits(pair[0]["test"].info["split"]), *pair[1]]), [paths.eeg, paths.splits],
    ) or ({}, [])  # fmt: skip
    kept, notes = findings.open(
        "pictures", lambda: readable_trials(cfg, paths, trials),
        lambda pair: "; ".join([f"of {len(part)} test trials" for part in pair[0].values()] + pair[1]),
    ) or ({}, [])  # fmt: skip
    notes += unsure + ([absent] if absent else [])
    if not findings.keep_going:
        counted = f"{len(kept['test'])} test trials of {paths.eeg}"
        print(describe_splits(trials["test"].info["split"]), *notes, counted, sep="\n")
    opened_at = datetime.now(UTC).isoformat(timespec="seconds")
    return Inputs(cfg, paths, device, generator, trials | kept, opened_at, clip, classifier, notes)


def read_trials(cfg: GenerateConfig, paths: Paths, generator: System | None) -> tuple[dict[str, Trials], list[str]]:
    """Test and training trials, scaled as the system's training was, and notes on what its training may know of them.

    Without a system (it did not open) they are cut as for the published one. Raises UserError.
    """
    wanted = generator.input if generator else EEGInput(n_chans=128, n_times=512)
    shape = wanted.n_chans, wanted.n_times, wanted.scale
    trials = open_trials(paths.eeg, paths.splits, cfg.subject, ("train", "test"), *shape, paths.eeg_cache)
    for key in ("sfreq", "window", "ch_names"):
        there, trained = trials["test"].info[key], getattr(wanted, key)
        if None not in (there, trained) and there != trained:
            raise UserError(f"{paths.eeg}: {key} is {there}, but {paths.model} was trained on {trained}")
    return trials, refuse_trained(trials["test"], generator.about(), paths) if generator else []


def readable_trials(
    cfg: GenerateConfig, paths: Paths, trials: dict[str, Trials]
) -> tuple[dict[str, Trials], list[str]]:
    """The test trials whose image can be read, the first `max_items` of them, and notes. Raises UserError."""
    kept, notes = {name: trials[name] for name in trials if name == "test"}, []
    if paths.imagenet:
        kept, notes = leave_out_missing(kept, paths.imagenet, cfg.allow_missing)
    else:
        notes = ["which image was shown is unknown, so only class scores are computed"]
    if cfg.max_items and kept:
        kept["test"] = kept["test"].select(range(min(cfg.max_items, len(kept["test"]))))
        notes.append(f"max_items={cfg.max_items}: only the first {len(kept['test'])} test trials are scored")
    return kept, notes


def untold(about: About, test: Trials) -> str:
    """Why none can tell whether a system was trained on these trials; empty where one can."""
    trained = about.training
    if not {"positions", "split"} <= trained.keys():
        return "does not say on which trials it was trained"
    other = trained["split"]["eeg_sha256"] != test.info["split"]["eeg_sha256"]
    return "was trained on another file; whether it holds these trials is unknown" if other else ""


def refuse_trained(test: Trials, about: About, paths: Paths, kind: str = "test") -> list[str]:
    """Raises UserError where the system was trained or selected on trials now to be tested; notes on what is unknown.

    Stage A's recordings are continuous, so only their manifest can say that no test trial is among them.
    """
    trained, notes = about.training, []
    if trained.get("stage_a_sha256"):
        unsaid = "its manifest.json (excludes_test) does not say that it saw none"
        notes = [f"stage A and the test trials: {trained.get('stage_a_excludes_test') or unsaid}"]
    if why := untold(about, test):
        return [*notes, f"{paths.model} {why}"]
    both = {i for part in trained["positions"].values() for i in part} & set(test.position.tolist())
    if both:
        raise UserError(
            f"{paths.model}: was trained or selected on {len(both)} of the {len(test)} {kind} trials of "
            f"{paths.splits}; use the splits that it was trained with"
        )
    return notes


def same_trials(folder: Path, test: Trials) -> dict:
    """What the folder's record of its trials says, or should. Raises UserError where its pictures are of other trials,
    files or the manifest changed since, or its record cannot be read."""
    record, hint = folder / "begun.json", "take another name=, or overwrite=true"
    now = {"names": test.names, "eeg_sha256": hashlib.sha256(test.eeg.numpy().tobytes()).hexdigest()}
    if record.exists() and read_json(record, "record of the trials that its folder is of", hint) != now:
        raise UserError(f"{folder}: was begun with other trials; {hint}")
    return now


def begin(folder: Path, test: Trials) -> None:
    """Write down which trials the pictures in the folder are of. Raises UserError as `same_trials`."""
    atomic.write_text(folder / "begun.json", json.dumps(same_trials(folder, test)))
