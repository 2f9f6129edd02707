"""The CSV files of an evaluation folder, trials.csv and scores.csv: written, read and checked.

Shapes: N trials.
"""

import csv
import io
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from evaluation.statistics import ItemScores
from runtime.checkpoints import write_text
from runtime.errors import UserError
from runtime.plain import short

TRIAL_COLUMNS = (
    "trial", "position", "subject", "label", "wnid", "class_name", "class_index", "image", "onset", "recording",
)  # fmt: skip


class Kind(NamedTuple):
    """What a column may hold."""

    pattern: re.Pattern
    wanted: str
    number: type | None = None
    unknown: str = ""  # what an empty text stands for


INTEGER = Kind(re.compile("-1|[0-9]{1,18}|"), "a whole number, -1 or nothing where it is unknown", int, "-1")
FLOAT = Kind(re.compile(r"(-?[0-9]{1,18}(\.[0-9]{1,30})?(e(-[0-9]{1,3}|\+?[0-9]{1,2}))?)?"), "a number", float, "nan")
TEXT = Kind(re.compile(".{0,1000}", re.DOTALL), "at most 1000 characters")
KINDS = dict.fromkeys(("trial", "position", "label", "class_index"), INTEGER) | dict.fromkeys(("onset", "gap"), FLOAT)
KINDS |= dict.fromkeys(("subject", "class_name", "image", "recording"), TEXT)  # these and `seen_<k>` are read


def broken(path: Path, problem: str) -> UserError:
    """What to raise where a file is not as stage C writes it."""
    return UserError(f"{path}: {problem}; run the evaluation again")


def _columns(path: Path) -> dict[str, list[str]]:
    """Texts (N,) of a CSV file by its header. Raises UserError: no UTF-8, ragged, or a column is there twice."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
        rows = csv.reader(io.StringIO(text, newline=""), strict=True)
        head = next(rows, [])
        columns: dict[str, list[str]] = {name: [] for name in head}
        if "\0" in text or len(columns) < len(head):
            raise broken(path, "holds a zero byte, or two columns of one name")
        for row in rows:
            if row and len(row) != len(head):
                raise broken(path, f"line {rows.line_num} has {len(row)} fields, the header {len(head)}")
            for column, value in zip(columns.values(), row, strict=False):  # an empty line has none
                column.append(value)
    except (UnicodeDecodeError, csv.Error) as error:
        raise broken(path, f"cannot be read as CSV in UTF-8 ({error})") from error
    return columns


def _checked(path: Path, name: str, texts: list[str], kind: Kind) -> np.ndarray | list[str]:
    """(N,) of a column: an array of numbers, or the texts. Raises UserError where one is not of the kind."""
    for i, text in enumerate(texts):
        if not kind.pattern.fullmatch(text):
            raise broken(path, f"{name} of trial {i} is {short(text)}, expected {kind.wanted}")
    return np.array([kind.number(text or kind.unknown) for text in texts]) if kind.number else texts


def read_trials(folder: str | Path) -> dict[str, Any]:
    """The columns (N,) of trials.csv that scores and pages read: arrays of numbers, lists of texts.

    Raises UserError: missing, no CSV, without a column or a trial, in another order, or a value is not as it must be.
    """
    path = Path(folder) / "trials.csv"
    if not path.is_file():
        raise UserError(f"{path}: not found; expected a folder written by gen_eval_eeg.py")
    columns = _columns(path)
    if lacking := [name for name in (*TRIAL_COLUMNS, "seen_1") if name not in columns]:
        raise broken(path, f"lacks the column {lacking[0]}")
    kinds = KINDS | {name: TEXT for name in columns if name.startswith("seen_")}
    trials = {name: _checked(path, name, columns[name], kinds[name]) for name in kinds.keys() & columns.keys()}
    number, label = trials["trial"], trials["label"]
    if not len(number) or (number != np.arange(len(number))).any():
        raise broken(path, f"expected trials 0, 1, 2 ..., one a row, found {short(number[:50].tolist())}")
    if len(np.unique(trials["position"])) < len(number):
        raise broken(path, "holds a position twice, so one trial would count twice")
    if (label < 0).any() and (label >= 0).any():
        raise broken(path, f"label of trial {(label < 0).argmax()} is unknown, those of others are not")
    for part in zip(*set(zip(label.tolist(), trials["class_index"].tolist(), strict=True)), strict=True):
        if len(known := [kind for kind in part if kind >= 0]) > len(set(known)):
            raise broken(path, "label and class_index tell of different classes")
    return trials


def recordings(trials: Mapping[str, Any]) -> np.ndarray | None:
    """(N,) number of the subject and recording of each trial; None where those of a trial are unknown."""
    names = list(zip(trials["subject"], trials["recording"], strict=True))
    return np.unique([f"{a} {b}" for a, b in names], return_inverse=True)[1] if all(map(all, names)) else None


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
