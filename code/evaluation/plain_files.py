"""The plain files of an evaluation folder, trials.csv, scores.csv and metrics.json: written, read and checked.

Shapes: N trials.
"""

import csv
import io
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge, Len
from typing_extensions import TypedDict

from data.signals import Control, check_design
from evaluation.block_design import tapes
from evaluation.statistics import ItemScores
from runtime.atomic import write_text
from runtime.errors import UserError
from runtime.plain import checked, read_json, short

TRIAL_COLUMNS = (
    "trial", "position", "subject", "label", "wnid", "class_name", "class_index", "image", "onset", "recording",
)  # fmt: skip
# What a column may hold: pattern, in words, how it is read, and what an empty text is read as
INTEGER = re.compile("-1|[0-9]{1,18}|"), "a whole number, -1 or nothing where it is unknown", int, "-1"
FLOAT = re.compile(r"(-?[0-9]{1,18}(\.[0-9]{1,30})?(e(-[0-9]{1,3}|\+?[0-9]{1,2}))?)?"), "a number", float, "nan"
TEXT = re.compile(".{0,1000}", re.DOTALL), "at most 1000 characters", str, ""
KINDS = dict.fromkeys(("trial", "position", "label", "class_index"), INTEGER) | dict.fromkeys(("onset", "gap"), FLOAT)
KINDS |= dict.fromkeys(("subject", "class_name", "image", "recording"), TEXT)  # these and `seen_<k>` are read
DEEPEST = 20  # levels of values in metrics.json

Number, Count = Annotated[int, Ge(1)], Annotated[int, Ge(0)]
SAME = dict.fromkeys(("trials", "identical", "alike", "repeated"), Count) | {"overlapping": Count | None}
Same = TypedDict("Same", SAME | {"examples": list[str]})  # of near_trials.among


class Split(TypedDict, total=False):
    """What metrics.json says of the splits, as far as the verdict reads it."""

    shared: dict[str, dict[str, int | None]]
    same_eeg: dict[str, Same]
    untold: str


class Run(TypedDict, total=False):
    """The `run` of metrics.json, as far as scores and pages read it."""

    name: str
    n_way: Number
    top_k: Number
    simulated: bool | None
    image_known: bool | None
    design: Annotated[list[str], Len(2, 2)] | None
    split: Split | None
    control: Control | None
    config: dict
    notes: list[str]
    commit: str | None


class Record(TypedDict):
    run: Run


def refuse(path: Path, *problems: tuple[Any, str]) -> None:
    """Raises UserError with the first problem that is there: a file is not as stage C writes it."""
    for wrong, problem in problems:
        if wrong:
            raise UserError(f"{path}: {problem}; run the evaluation again")


def read_record(folder: str | Path) -> dict:
    """The content of metrics.json, whatever its types. Raises UserError as `read_json`, or nested too deep to write."""
    path = Path(folder) / "metrics.json"
    content = read_json(path, "record of scores", "run the evaluation again")
    refuse(path, (_deeper(content, DEEPEST), f"holds values in more than {DEEPEST} others"))
    return content


def _deeper(value: Any, levels: int) -> bool:
    """Whether a value of JSON holds others in others at more levels than so many."""
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels < 0 or any(_deeper(part, levels - 1) for part in inside)


def read_run(folder: str | Path) -> dict:
    """The `run` part of metrics.json, empty where there is no such file. Raises UserError where it is not there."""
    path = Path(folder) / "metrics.json"
    if not path.exists():
        return {}
    run = checked(Record, read_record(folder), str(path), "run the evaluation again")["run"]
    check_design(run.get("design"), f"{path}: run.design")
    found = ((run.get("split") or {}).get("same_eeg") or {}).values()
    if any(same["repeated"] > same["trials"] for same in found):
        raise UserError(f"{path}: run.split.same_eeg repeats more trials than it has; run the evaluation again")
    return run


def _columns(path: Path) -> dict[str, list[str]]:
    """Texts (N,) of a CSV file by its header. Raises UserError: no UTF-8, ragged, or a column is there twice."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
        rows = csv.reader(io.StringIO(text, newline=""), strict=True)
        head = next(rows, [])
        columns: dict[str, list[str]] = {name: [] for name in head}
        refuse(path, ("\0" in text or len(columns) < len(head), "holds a zero byte, or two columns of one name"))
        for row in rows:
            if not row:  # an empty line
                continue
            if len(row) != len(head):
                fields = f"line {rows.line_num} has {len(row)} fields, the header {len(head)}"
                raise UserError(f"{path}: {fields}; run the evaluation again")
            for column, value in zip(columns.values(), row, strict=True):
                column.append(value)
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as CSV in UTF-8 ({error}); run the evaluation again") from error
    return columns


def _checked(path: Path, name: str, texts: list[str], kind: tuple) -> np.ndarray | list[str]:
    """(N,) of a column: an array of numbers, or the texts. Raises UserError where one is not of the kind."""
    pattern, wanted, read, unknown = kind
    for i, text in enumerate(texts):
        if not pattern.fullmatch(text):
            raise UserError(
                f"{path}: {name} of trial {i} is {short(text)}, expected {wanted}; run the evaluation again"
            )
    return texts if read is str else np.array([read(text or unknown) for text in texts])


def read_trials(folder: str | Path) -> dict[str, Any]:
    """The columns (N,) of trials.csv that scores and pages read: arrays of numbers, lists of texts.

    Raises UserError: missing, no CSV, without a column or a trial, in another order, or a value is not as it must be.
    """
    path = Path(folder) / "trials.csv"
    if not path.is_file():
        raise UserError(f"{path}: not found; expected a folder written by gen_eval_eeg.py")
    columns = _columns(path)
    lacking = [name for name in (*TRIAL_COLUMNS, "seen_1") if name not in columns]
    refuse(path, (lacking, f"lacks the column {lacking and lacking[0]}"))
    kinds = KINDS | {name: TEXT for name in columns if name.startswith("seen_")}
    trials = {name: _checked(path, name, columns[name], kinds[name]) for name in kinds.keys() & columns.keys()}
    number, label, found = trials["trial"], trials["label"], short(trials["trial"][:50].tolist())
    classes = np.unique(np.stack([label, trials["class_index"]]), axis=1)  # (2, classes)
    refuse(
        path,
        (number.tolist() != list(range(len(number))) or not len(number), f"expected trials 0, 1 ..., found {found}"),
        (len(set(trials["position"])) < len(number), "holds a position twice, so one trial would count twice"),
        ((label < 0).any() and (label >= 0).any(), "label is unknown of some trials alone"),
        (any(len(k) > len(np.unique(k)) for k in (row[row >= 0] for row in classes)), "label and class_index disagree"),
    )
    return trials


def recordings(trials: Mapping[str, Any]) -> np.ndarray | None:
    """(N,) number of the subject and recording of each trial; None where those of a trial are unknown."""
    known = all([*trials["subject"], *trials["recording"]])
    return np.unique(tapes(trials["subject"], trials["recording"]), return_inverse=True)[1] if known else None


def write_columns(path: Path, columns: Mapping[str, Iterable]) -> None:
    """Write a CSV file of columns of equal length."""
    text = io.StringIO()
    csv.writer(text).writerows([columns, *zip(*columns.values(), strict=True)])
    write_text(path, text.getvalue())


def write_item_scores(folder: Path, n: int, items: dict[str, ItemScores]) -> None:
    """Write scores.csv: one row a trial, one column a score of the real run (mean over samples), empty where none."""
    columns = {"trial": range(n)}
    for name, score in items.items():
        # scores where lower is better are counted as minus the distance until they are written
        values = -score.value if name.startswith("distance_") else score.value
        texts = {trial: f"{value:.6g}" for trial, value in zip(score.trial.tolist(), values.tolist(), strict=True)}
        columns[name] = [texts.get(i, "") for i in range(n)]
    write_columns(folder / "scores.csv", columns)


def read_item_scores(folder: Path, score: str | None) -> np.ndarray:
    """(N,) one score of every trial from scores.csv, NaN where it has none; empty if there is no such column.

    Raises UserError: no CSV, or a value is no number.
    """
    path = folder / "scores.csv"
    columns = _columns(path) if path.is_file() else {}
    return _checked(path, score, columns[score], FLOAT) if score in columns else np.empty(0)
