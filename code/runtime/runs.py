"""Run folders: opened, resumed, refused or moved aside, finished, and handed on to the next stage (DESIGN 4)."""

import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from runtime import checkpoints, ranks
from runtime.errors import UserError


@dataclass(frozen=True)
class Run:
    """A run's folder and whether it had finished when opened."""

    folder: Path
    finished: bool

    @property
    def checkpoint(self) -> Path:
        """What the run hands on."""
        return self.folder / "checkpoint.pth"

    @property
    def last(self) -> Path:
        """What the run resumes from."""
        return self.folder / "last.pth"

    def finish(self, **facts: object) -> None:
        """Mark the run as finished, with plain facts such as seconds and hashes."""
        checkpoints.write_text(self.folder / "finished.json", json.dumps(facts, indent=1))


LATER = {"compile": False}  # settings younger than runs that may go on, and what those did


def run_config(cfg: Any, *without: str) -> dict:
    """The settings that make a run what it is: the dataclass `cfg` without how, where and `without`."""
    drop = ("overwrite", "dry_run", "wandb", "device", "root_path", *without)
    return {name: value for name, value in asdict(cfg).items() if name not in drop}


def begun(folder: Path, config: dict) -> bool:
    """Whether `folder` holds work of a run of exactly this `config` (plain values); writes nothing.

    Raises:
        UserError: the folder holds a run of another config, or files of no run at all.
    """
    saved = folder / "config.yaml"
    if not folder.exists() or all(path == saved for path in folder.iterdir()):
        return False  # new, or never begun: its data were missing, say
    if not saved.exists():
        raise UserError(f"{folder}: is not empty and holds no config.yaml: choose another name=, or overwrite=true")
    before = {k: v for k, v in LATER.items() if k in config} | OmegaConf.to_container(OmegaConf.load(saved))
    differ = sorted(k for k in before.keys() | config.keys() if before.get(k) != config.get(k))
    if differ:
        shown = "; ".join(f"{k}: {before.get(k)!r} there, {config.get(k)!r} asked" for k in differ[:4])
        raise UserError(
            f"{folder}: holds a run with another configuration ({shown}): "
            "choose another name=, or overwrite=true to move it aside"
        )
    return True


def open_run(folder: Path, config: dict, overwrite: bool = False) -> Run:
    """Open or make a run folder that belongs to exactly this `config`, saved as config.yaml. Raises as `begun`."""
    if overwrite and folder.exists():
        aside = folder.with_name(f"{folder.name}.{time.strftime('%Y%m%d-%H%M%S')}")
        while aside.exists():  # moved aside twice within a second
            aside = aside.with_name(f"{aside.name}a")
        folder.rename(aside)
        print(f"moved the earlier run to {aside}")
    if not begun(folder, config):
        checkpoints.write_text(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(config)))
    return Run(folder, (folder / "finished.json").exists())


def open_for_all(cfg: Any, folder: Path, config: dict) -> Run:
    """`open_run` by the first of all processes, which must have the same settings `cfg` and see the same folder.

    Raises:
        UserError: as `open_run`, or the processes differ.
    """
    ranks.agree(asdict(cfg) | config)  # the latter holds what precision=auto means here, and hashes of files
    run = ranks.from_lead(lambda: open_run(folder, config, cfg.overwrite))
    ranks.agree({f"whether {run.folder} is there": run.folder.is_dir()})
    return run


def check_hand_on(target: Path, run: Run) -> None:
    """Refuse, before any work, a hand-on place that belongs to another run.

    Raises:
        UserError: `target` exists and was not written by this run folder.
    """
    if target.exists() and (owner := _owner(target)) != run.folder.resolve():
        raise UserError(
            f"{target}: comes from {owner or 'elsewhere'}, not from {run.folder}: move it away or choose another name="
        )


def hand_on(run: Run, target: Path) -> str:
    """Place the run's checkpoint at `target`, with its origin and sha256 beside it; returns the sha256."""
    check_hand_on(target, run)
    digest = checkpoints.sha256(run.checkpoint)
    origin = os.path.relpath(run.folder.resolve(), target.parent.resolve())  # so that the tree may be moved
    # the record first: a run killed between the two is then still known as the file's owner
    checkpoints.write_text(target.with_suffix(".json"), json.dumps({"origin": origin, "sha256": digest}))
    with open(run.checkpoint, "rb") as source:
        checkpoints.replace_atomically(target, lambda file: shutil.copyfileobj(source, file))
    return digest


def train_stage(cfg: Any, letter: str, kind: str, train: Callable[[Any, Run], Any]) -> None:
    """A training stage from its settings to the checkpoint it hands on; once, however many processes there are.

    Args:
        cfg: the stage's dataclass.
        kind: folder below results/ and pretrains/.
        train: (cfg, run) -> content of the checkpoint, facts for finished.json, the line that sums up; None on other
            processes than the first.

    Raises:
        UserError: as `open_run`, `check_hand_on` and `train`.
    """
    started = time.time()
    root = Path(cfg.root_path).expanduser()
    target = root / "pretrains" / kind / f"{cfg.name}.pth"
    run = open_for_all(cfg, root / "results" / kind / cfg.name, run_config(cfg))
    if run.finished:
        print(f"{run.folder} is finished; its checkpoint is {target}")
        return
    with ranks.together():
        check_hand_on(target, run)
    trained = train(cfg, run)
    if trained:
        content, facts, summary = trained
        checkpoints.save(run.checkpoint, content)
        run.finish(seconds=round(time.time() - started, 1), sha256=hand_on(run, target), **facts)
        print(f"{summary}\nstage {letter} done in {time.time() - started:.0f} s -> {target}")


def _owner(target: Path) -> Path | None:
    """The run folder that a hand-on came from."""
    record = target.with_suffix(".json")
    known = json.loads(record.read_text()) if record.exists() else {}
    if "origin" in known:
        return (target.parent / known["origin"]).resolve()
    if "run" not in known:
        return None
    # earlier records name the folder as its command saw it: of a relative one, results/<kind>/<name> lies in the root
    run = Path(known["run"])
    return (run if run.is_absolute() else target.absolute().parents[2].joinpath(*run.parts[-3:])).resolve()
