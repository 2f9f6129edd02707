"""A table of models to train and score, from YAML to the command lines of the three stages."""

import json
import os
import shlex
from concurrent.futures import Future
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from config import FinetuneConfig, GenerateConfig, PretrainConfig, from_cli
from runtime.errors import UserError
from runtime.paths import under_root
from runtime.plain import read_yaml

HERE = Path(__file__).parent
CODE = HERE.parents[1]
STAGES = {
    "A": (PretrainConfig, CODE / "stageA1_eeg_pretrain.py", "eeg_pretrain"),
    "B": (FinetuneConfig, CODE / "eeg_ldm.py", "generation"),
    "C": (GenerateConfig, CODE / "gen_eval_eeg.py", "eval"),
}
NAMES = {stage: {f.name for f in fields(kind)} for stage, (kind, _, _) in STAGES.items()}  # of the settings


@dataclass
class Row:
    """A model of the table."""

    about: str = MISSING
    paper: float | None = None  # the paper's 50-way top-1, percent
    use: list[str] = field(default_factory=list)  # groups of settings
    pretrained: bool = True
    settings: dict[str, Any] = field(default_factory=dict)  # its own
    name: str = ""  # these two are filled in by `read_table`
    shared: dict[str, Any] = field(default_factory=dict)  # settings of its groups


@dataclass
class Table:
    """What a YAML file in the format of code/commands/ablation/ablations.yaml holds."""

    title: str = MISSING
    reference: str = MISSING  # name of the row that all are compared with
    rows: dict[str, Row] = MISSING
    presets: dict[str, dict[str, dict[str, Any]]] = MISSING  # groups of settings, by preset
    about: list[str] = field(default_factory=list)
    prepare: dict[str, list[str]] = field(default_factory=dict)  # commands that make the data, by preset
    preset: str = ""  # which one is asked for


@dataclass
class Job:
    """A run of one stage. `needs` must finish before it; `future` answers what went wrong, "" if nothing."""

    stage: str
    name: str
    words: list[str]
    cfg: Any
    needs: "Job | None" = None
    future: Future = field(default_factory=Future)

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return under_root(self.cfg.root_path, f"results/{STAGES[self.stage][2]}/{self.name}")

    @property
    def command(self) -> str:
        """What a user would type to run it alone."""
        return shlex.join(["python", os.path.relpath(STAGES[self.stage][1]), *self.words])

    def facts(self) -> dict:
        """What the run wrote down when it finished; nothing before."""
        record = self.folder / "finished.json"
        return json.loads(record.read_text()) if record.is_file() else {}


def read_table(table: str, preset: str) -> Table:
    """The YAML file `table`, or that of this name beside this file, for a preset. Raises UserError."""
    path = Path(table) if table.endswith((".yaml", ".yml")) else HERE / f"{table}.yaml"
    try:
        content: Table = OmegaConf.to_object(
            OmegaConf.merge(OmegaConf.structured(Table), read_yaml(path, "table of ablations"))
        )
    except (TypeError, OmegaConfBaseException) as error:
        why = " ".join(str(error).split())
        raise UserError(f"table={table}: is no table ({why}); see {HERE / 'ablations.yaml'}") from error
    if content.reference not in content.rows:
        raise UserError(f"{path}: the reference {content.reference} is none of its rows: {', '.join(content.rows)}")
    if preset not in content.presets:
        raise UserError(f"preset={preset}: {path.name} is for {' and '.join(content.presets)}")
    groups = {"every": {}} | content.presets[preset]
    for name, row in content.rows.items():
        if absent := [group for group in row.use if group not in groups]:
            raise UserError(f"{path}: row {name} uses {absent[0]}, which the preset {preset} does not have")
        row.name = name
        for group in ("every", *row.use):
            row.shared |= groups[group]
        if wrong := (row.settings | row.shared).keys() - set().union(*NAMES.values()):
            raise UserError(f"{path}: row {name}: no stage has a setting {min(wrong)}")
    content.preset = preset
    return content


def chain(given: list[str], name: str, row: Row, seed: str, scoring: dict, stage_a: dict[tuple, Job]) -> list[Job]:
    """The runs that a row takes, in order: stage A unless it is not pretrained, stage B, stage C.

    Args:
        given: words of every command line.
        name: first word of the runs' names.
        scoring: settings of stage C.
        stage_a: runs of stage A by seed and settings; rows with the same share one. Added to.

    Raises:
        UserError: a setting's value is refused.
    """

    def job(stage: str, run: str, settings: dict, needs: Job | None = None) -> Job:
        known = [f"{k}={v}" for k, v in settings.items() if k in NAMES[stage]]
        words = [*given, f"name={run}", f"seed={seed}", *known]
        return Job(stage, run, words, from_cli(STAGES[stage][0], words), needs)

    settings, jobs = row.shared | row.settings, []
    source = {f"encoder_{k}": v for k, v in settings.items()} | {"pretrain_mbm_path": "none"}
    if row.pretrained:
        key = (seed, *sorted((k, str(v)) for k, v in settings.items() if k in NAMES["A"]))
        sizes = "-".join([*row.use, *(f"{k}{v}" for k, v in row.settings.items() if k in NAMES["A"])])
        jobs = [stage_a.setdefault(key, job("A", f"{name}-stage-a-{sizes}-seed{seed}", settings))]
        source = {"pretrain_mbm_path": f"pretrains/eeg_pretrain/{jobs[0].name}.pth"}
    second = job("B", f"{name}-{row.name}-seed{seed}", settings | source, *jobs)
    return [*jobs, second, job("C", second.name, settings | scoring, second)]
