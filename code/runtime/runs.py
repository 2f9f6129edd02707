"""Run folders: opened, resumed, refused or moved aside, finished, and handed on to the next stage (DESIGN 4)."""

import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from runtime import atomic, checkpoints, digests, lock, ranks, wandb_log
from runtime.errors import UserError
from runtime.findings import Findings
from runtime.memory import MemoryPlan
from runtime.paths import nearest_folder, under_root
from runtime.plain import check_extent, checked, read_json, read_yaml
from runtime.sources import RECORD, Files, Sources


@dataclass(frozen=True)
class Run:
    """A run's folder, whether it had finished when opened, and what it reads."""

    folder: Path
    finished: bool
    sources: Sources | None = None

    @property
    def checkpoint(self) -> Path:
        """What the run hands on."""
        return self.folder / "checkpoint.pth"

    @property
    def last(self) -> Path:
        """What the run resumes from."""
        return self.folder / "last.pth"

    def finish(self, **facts: object) -> None:
        """Mark the run as finished, with plain facts such as seconds and hashes, and let others at its folder."""
        atomic.write_text(self.folder / "finished.json", json.dumps(facts, indent=1))
        lock.release(self.folder)


LATER = {"compile": False}  # settings younger than runs that may go on, and what those did


def run_config(cfg: Any, *without: str) -> dict:
    """The settings that make a run what it is: the dataclass `cfg` without how, where and `without`."""
    drop = ("overwrite", "dry_run", "wandb", "device", "root_path", "cache", *without)
    return {name: value for name, value in asdict(cfg).items() if name not in drop}


def begun(folder: Path, config: dict) -> bool:
    """Whether `folder` holds work of a run of exactly this `config` (plain values); writes nothing.

    Raises:
        UserError: the folder holds a run of another config, or files of no run at all.
    """
    if (before := saved_config(folder)) is None:
        return False
    if not _in(folder, "config.yaml", RECORD, "wandb"):  # never begun: its data were missing, say
        if before.keys() | LATER.keys() != config.keys() | LATER.keys():
            raise UserError(f"{folder}: holds a config.yaml that is no run's: choose another name=, or move it away")
        return False
    before = {k: v for k, v in LATER.items() if k in config} | before
    differ = sorted(k for k in before.keys() | config.keys() if before.get(k) != config.get(k))
    if differ:
        shown = "; ".join(f"{k}: {before.get(k)!r:.200} there, {config.get(k)!r:.200} asked" for k in differ[:4])
        raise UserError(
            f"{folder}: holds a run with another configuration ({shown}): "
            "choose another name=, or overwrite=true to move it aside"
        )
    return True


def saved_config(folder: Path) -> dict[str, Any] | None:
    """The settings of the run whose folder it is; None: it is not there, or holds nothing but what killed writers left.

    Raises:
        UserError: it is no folder, or no run's: it holds files and no config.yaml that reads as settings.
    """
    if nearest_folder(folder) != folder or not _in(folder):
        return None
    saved, remedy = folder / "config.yaml", "choose another name=, or move the folder away"
    if not saved.exists():
        raise UserError(f"{folder}: is not empty and holds no config.yaml, so it is no run's: {remedy}")
    content = checked(dict[str, Any], read_yaml(saved, "run's settings", remedy), f"{saved}", remedy)
    check_extent(content, saved.stat().st_size, str(saved))
    return content


def _in(folder: Path, *without: str) -> list[Path]:
    """What is in a run's folder but for its lock and what killed writers left."""
    left = (lock.NAME, *without)
    return [p for p in folder.iterdir() if p.name not in left and not (p.name[0] == "." and p.suffix == ".part")]


def _finished(folder: Path) -> bool:
    """Whether a run's folder holds the record of its end. Raises UserError where that is damaged."""
    record, remedy = folder / "finished.json", "move it aside, and the same command goes on"
    if record.exists():
        checked(dict[str, Any], read_json(record, "record of a finished run", remedy), f"{record}", remedy)
    return record.exists()


def open_run(folder: Path, config: dict, overwrite: bool = False, sources: Sources | None = None) -> Run:
    """Open or make a run folder of exactly this `config`, saved as config.yaml, and these `sources`, and hold its lock.

    Raises:
        UserError: as `begun` and `Sources.compare`; another process is at work in it; with `overwrite` it is a link or
            no run's.
    """
    # first without the lock: nothing is written into what is refused
    there = saved_config(folder) is not None if overwrite else begun(folder, config)
    if there and not overwrite:
        if sources:
            sources.compare()
        if _finished(folder):
            return Run(folder, finished=True)
    lock.hold(folder)
    if overwrite and there:
        _move_aside(folder)
    if not begun(folder, config):
        atomic.write_text(folder / "config.yaml", yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
    elif sources and not there:  # another process was quicker
        sources.compare()
    return Run(folder, _finished(folder))


def _move_aside(folder: Path) -> None:
    """Rename a run's folder, whose lock is held, and hold that of a new one in its place."""
    if folder.is_symlink():
        raise UserError(f"{folder}: is a link, which overwrite=true does not move: move it, or choose another name=")
    aside = folder.with_name(f"{folder.name}.{time.strftime('%Y%m%d-%H%M%S')}")
    while aside.exists():  # moved aside twice within a second
        aside = aside.with_name(f"{aside.name}a")
    folder.rename(aside)
    print(f"moved the earlier run to {aside}")
    lock.release(aside)
    lock.hold(folder)


def open_for_all(cfg: Any, folder: Path, config: dict, files: Files) -> Run:
    """`open_run` by the first of all processes, which must have the same settings `cfg` and see the same folder.

    files: of `cfg`, what the run reads, as `Sources` takes it.

    Raises:
        UserError: as `open_run`, or the processes differ.
    """
    ranks.agree(asdict(cfg) | config)  # the latter holds what precision=auto means here, and hashes of files
    remember_hashes(cfg, ranks.lead())
    sources = Sources(folder, partial(files, cfg))
    finished = ranks.from_lead(lambda: open_run(folder, config, cfg.overwrite, sources).finished)
    ranks.agree({f"whether {folder} is there": folder.is_dir()})
    return Run(folder, finished, sources)


def remember_hashes(cfg: Any, writes: bool) -> None:
    """From now on, know large files by the hashes.json in the cache; writes: add to it what is new."""
    digests.remember_in(under_root(cfg.root_path, cfg.cache or "datasets/cache") / "hashes.json", writes)


def check_hand_on(target: Path, run: Run) -> None:
    """Refuse, before any work, a hand-on place that belongs to another run.

    Raises:
        UserError: `target` exists and was not written by this run folder, or its folder cannot be made.
    """
    nearest_folder(target.parent)
    there = [path for path in (target, target.with_suffix(".json")) if path.exists()]
    if there and (owner := _owner(target)) != run.folder.resolve() and (target in there or not owner):
        raise UserError(
            f"{there[0]}: comes from {owner or 'elsewhere'}, not from {run.folder}: "
            "move it away or choose another name="
        )


def hand_on(run: Run, target: Path) -> str:
    """Place the run's checkpoint at `target`, with its origin and sha256 beside it; returns the sha256."""
    check_hand_on(target, run)
    digest = digests.sha256(run.checkpoint)
    origin = os.path.relpath(run.folder.resolve(), target.parent.resolve())  # so that the tree may be moved
    # the record first: a run killed between the two is then still known as the file's owner
    atomic.write_text(target.with_suffix(".json"), json.dumps({"origin": origin, "sha256": digest}))
    with open(run.checkpoint, "rb") as source:
        atomic.replace_atomically(target, lambda file: shutil.copyfileobj(source, file))
    return digest


@dataclass(frozen=True)
class Trained:
    """What a training stage hands on."""

    content: dict  # of its checkpoint
    facts: dict  # for finished.json
    summary: str  # the line that it ends with


def train_stage(
    cfg: Any,
    letter: str,
    kind: str,
    check: Callable[[Any], None],
    open_inputs: Callable[..., Any],
    files: Files,
    train: Callable[[Any, Run, Any], Trained | None],
) -> None:
    """A training stage from its settings to the checkpoint it hands on; once, however many processes there are.

    With `cfg.dry_run` it opens its inputs, lists how each opens, and ends with exit status 0 or 1.

    Args:
        cfg: the stage's dataclass.
        kind: folder below results/ and pretrains/.
        check: refuses settings that make no sense.
        open_inputs: opens all that the stage reads, one finding each; its `plan` is the MemoryPlan. Takes what to do
            before anything large is read.
        files: all that the stage reads, by what messages call it, as `Sources` takes it.
        train: (cfg, run, inputs) -> what it hands on; None on other processes than the first.

    Raises:
        UserError: as `open_run`, `check_hand_on` and the three functions.
    """
    started, findings = time.time(), Findings(keep_going=cfg.dry_run)
    findings.open("settings", lambda: check(cfg), lambda _: "understood")
    if cfg.dry_run:
        plan = open_inputs(cfg, findings).plan
        findings.open("run folder", lambda: look_at_folder(cfg, kind, run_config(cfg), plan, files), str)
        sys.exit(findings.report(letter))
    target = under_root(cfg.root_path, f"pretrains/{kind}/{cfg.name}.pth")
    run = open_for_all(cfg, under_root(cfg.root_path, f"results/{kind}/{cfg.name}"), run_config(cfg), files)
    if run.finished:
        print(f"{run.folder} is finished; its checkpoint is {target}")
        return
    with ranks.together():
        check_hand_on(target, run)
        if cfg.wandb and ranks.lead():
            wandb_log.start(run.folder)
    if trained := train(cfg, run, open_inputs(cfg, findings, run.sources.note)):
        checkpoints.save(run.checkpoint, trained.content)
        seconds = round(time.time() - started, 1)
        run.finish(seconds=seconds, sha256=hand_on(run, target), **trained.facts)
        print(f"{trained.summary}\nstage {letter} done in {seconds:.0f} s -> {target}")
        wandb_log.call("teardown")


def look_at_folder(cfg: Any, kind: str, config: dict | None, plan: MemoryPlan | None, files: Files) -> str:
    """Whether a run may begin or go on in results/<kind>/<name>, in words; writes nothing.

    config: as `open_run`'s; None: not known yet, so that only the disk is looked at. plan: of training, if it trains.
    files: as `open_for_all`'s.

    Raises:
        UserError: as `begun`, `Sources.compare` and `check_hand_on`, or the disk cannot be written or is too small for
            the checkpoints.
    """
    folder = under_root(cfg.root_path, f"results/{kind}/{cfg.name}")
    there, run = saved_config(folder) is not None, Run(folder, _finished(folder))
    goes_on = config is not None and not cfg.overwrite and begun(folder, config)
    if goes_on:
        remember_hashes(cfg, writes=False)
        Sources(folder, partial(files, cfg)).compare()
    check_hand_on(under_root(cfg.root_path, f"pretrains/{kind}/{cfg.name}.pth"), run)
    above = nearest_folder(folder)
    try:
        tempfile.TemporaryFile(dir=above).close()
    except OSError as error:
        raise UserError(f"{above}: cannot be written ({error}); give another root_path=") from error
    free = shutil.disk_usage(above).free / 1e9
    # weights and moments, twice while replaced, and the copy that is handed on
    needed = 8 * plan.memory.get("gradients", 0) / 1e9 if plan else 0.0
    if free < needed:
        raise UserError(f"{above}: {free:.1f} GB are free, the checkpoints take {needed:.1f} GB; make room")
    lock.check(folder)
    state = "finished, nothing is left to do" if run.finished else "begun, goes on" if goes_on else "free"
    if cfg.overwrite and there:
        state = "an earlier run is there, which will be moved aside"
    return f"{folder}: {state}; {free:.0f} GB of disk{f' for checkpoints of {needed:.1f} GB' if needed else ''}"


def _owner(target: Path) -> Path | None:
    """The run folder that a hand-on came from. Raises UserError where its record is damaged."""
    record = target.with_suffix(".json")
    if not record.exists():
        return None
    try:
        known = checked(dict[str, str], read_json(record, "hand-on record"), str(record))
        if "origin" in known:
            return (target.parent / known["origin"]).resolve()
        if "run" not in known:
            return None
        # earlier records name the folder as its command saw it: a relative one's results/<kind>/<name> is in the root
        run = Path(known["run"])
        return (run if run.is_absolute() else target.absolute().parents[2].joinpath(*run.parts[-3:])).resolve()
    except (UserError, ValueError) as error:  # the latter of a NUL in a path
        problem = f"{record.name} beside it does not tell whose it is ({error})"
        raise UserError(f"{target}: {problem}; move both away, or choose another name=") from error
