"""What the rows of a table scored, and which differences are more than noise.

Shapes: S seeds of training, N test trials.
"""

import csv
import io
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from commands.ablation.table import Job, Row
from evaluation.page.tables import read_metrics
from evaluation.page.text import band, points
from evaluation.plain_files import read_item_scores, read_trials
from evaluation.statistics import bootstrap_interval, entry, sign_flip_p
from runtime.errors import UserError

ALPHA = 0.05  # of a difference: two-sided, and p is multiplied by the number of differences
CONTROLS = ("gaussian_eeg", "other_trials_eeg", "class_prior")
UNKNOWN = {"value": None, "ci95": (None, None), "chance": None, "n": None}


class Result:
    """What is known of a row: by seed, its evaluation or why there is none."""

    def __init__(self, row: Row):
        self.row = row
        self.jobs: list[Job] = []  # of the first seed
        self.folders: dict[str, Path] = {}
        self.metrics: dict[str, dict] = {}
        self.problems: dict[str, str] = {}

    def add(self, seed: str, jobs: list[Job], problem: str) -> None:
        """Read what a seed's stage C wrote, unless there is a `problem` or it has not finished."""
        self.jobs = self.jobs or jobs
        try:
            if problem or not jobs[-1].facts():
                raise UserError(problem or "not run")
            self.metrics[seed] = read_metrics(jobs[-1].folder)
            self.folders[seed] = jobs[-1].folder
        except UserError as error:
            self.problems[seed] = str(error)

    def problem(self) -> str:
        """What went wrong, of all seeds; "" if nothing."""
        return "; ".join(dict.fromkeys(self.problems.values()))

    def values(self, score: str, seeds: list[str]) -> np.ndarray:
        """(S, N) the score of every trial for every seed, NaN where a trial has none."""
        return np.array([read_item_scores(self.folders[seed], score) for seed in seeds])

    def entry(self, score: str) -> dict | None:
        """The score as metrics.json holds it, of the mean over seeds; None where a seed has none."""
        entries = [m["scores"].get(score) for m in self.metrics.values()]
        if not entries or not all(entries):
            return None
        values = self.values(score, list(self.metrics)).mean(0)
        return entry(values[~np.isnan(values)], entries[0]["chance"], entries[0]["unit"])

    def each(self, score: str) -> list[str]:
        """The score of every seed alone, three digits."""
        return [f"{m['scores'][score]['value']:.3f}" for m in self.metrics.values() if score in m["scores"]]

    def mean(self, score: str, part: str, name: str) -> float | None:
        """Mean over seeds of a score of the control or baseline `name`; None where it was not run."""
        entries = [m[part].get(name, {}).get(score) for m in self.metrics.values()]
        return float(np.mean([e["value"] for e in entries])) if entries and all(entries) else None

    def facts(self) -> dict[str, str]:
        """Order of the classes in time, band and commit as the runs recorded them; all of each where seeds differ."""
        each = {
            "design": [m["verdict"]["design"] for m in self.metrics.values()],
            "band": [band(m["run"]) for m in self.metrics.values()],
            "commit": [m["run"].get("commit") or "not recorded" for m in self.metrics.values()],
        }
        return {name: ", ".join(dict.fromkeys(facts)) for name, facts in each.items()}

    def trials(self, seed: str) -> list[tuple]:
        """What tells the trials of an evaluation from others."""
        columns = read_trials(self.folders[seed])
        return list(zip(columns["subject"], columns["position"].tolist(), columns["image"], strict=True))


class Difference(NamedTuple):
    """A row's score minus the reference's, over the same trials."""

    value: float
    ci95: tuple[float, float]
    p: float
    resolved: bool
    seeds: int  # of training, that both rows have

    @property
    def interval(self) -> str:
        """The interval as text, in percentage points."""
        return " to ".join(map(points, self.ci95))

    @property
    def test(self) -> str:
        """The test as text."""
        return f"p = {self.p:.2g}, {'resolved' if self.resolved else 'not resolved'}"

    def __str__(self) -> str:
        return f"{points(self.value)} ({self.interval}), {self.test}"


def difference(values: np.ndarray, reference: np.ndarray, comparisons: int = 1) -> Difference:
    """Whether a row's scores (S, N) differ from the reference's (S, N) by more than noise, trial by trial.

    The trials' differences, means over seeds, are tested by flipping their signs, two-sided; p is multiplied by the
    number of comparisons (Bonferroni). Below ALPHA, and if all seeds agree on the sign, it is called resolved.
    """
    each = values - reference
    mean = each.mean(0)
    p = min(1.0, 2 * comparisons * min(sign_flip_p(mean), sign_flip_p(-mean)))
    agree = len(set(np.sign(each.mean(1)))) == 1
    return Difference(float(mean.mean()), bootstrap_interval(mean), p, bool(p < ALPHA and agree), len(values))


def differences(results: dict[str, Result], reference: str, score: str) -> dict[str, Difference | str]:
    """Of every other row with that score, its difference from the reference's, or why it has none."""
    base, compared = results[reference], {}
    others = [r for r in results.values() if r is not base and r.entry(score)] if base.entry(score) else []
    for other in others:
        seeds = [seed for seed in base.metrics if seed in other.metrics]
        if not seeds or any(base.trials(seed) != other.trials(seed) for seed in seeds):
            compared[other.row.name] = "not compared: other trials or seeds"
            continue
        theirs, ours = other.values(score, seeds), base.values(score, seeds)
        known = ~np.isnan(theirs + ours).any(0)
        compared[other.row.name] = difference(theirs[:, known], ours[:, known], len(others))
    return compared


def deciding_score(results: dict[str, Result]) -> str:
    """The classifier's N-way top-1, if any row has it, else the class among those shown."""
    names = [name for r in results.values() for m in r.metrics.values() for name in m["scores"]]
    return next((name for name in names if "_way_top" in name), "class_accuracy")


def scores_csv(results: dict[str, Result], compared: dict[str, Difference | str], score: str) -> str:
    """A line a row: means over seeds as shares from 0 to 1, `_each` seed's with spaces between; empty if unknown."""
    lines = []
    for name, r in results.items():
        line: dict[str, Any] = {"row": name, "about": r.row.about, "seeds": " ".join(r.metrics)}
        line["paper_50_way_top1"] = None if r.row.paper is None else round(r.row.paper / 100, 6)
        for wanted in dict.fromkeys((score, "class_accuracy")):
            e = r.entry(wanted) or UNKNOWN
            line |= {wanted: e["value"], f"{wanted}_low": e["ci95"][0], f"{wanted}_high": e["ci95"][1]}
            line |= {f"{wanted}_chance": e["chance"], f"{wanted}_n": e["n"], f"{wanted}_each": " ".join(r.each(wanted))}
        line |= {control: r.mean(score, "controls", control) for control in CONTROLS}
        line["lda_class_accuracy"] = r.mean("class_accuracy", "baselines", "lda")
        d = compared.get(name)
        value, (low, high), p, resolved, seeds = d if isinstance(d, Difference) else (None, (None, None), None, d, None)
        line |= {"difference": value, "difference_low": low, "difference_high": high, "p": p, "resolved": resolved}
        lines.append(line | {"difference_seeds": seeds} | r.facts() | {"problem": r.problem()})
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]))
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()
