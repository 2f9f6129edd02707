"""What page and terminal say of scores: which belong together, plots of the deciding score, the terminal's table."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

import numpy as np
from annotated_types import Ge, Le, Len
from typing_extensions import TypedDict

from evaluation.page.text import band, counted, percent, row_name, score_name, seconds, signals, uncontrolled, words
from evaluation.plain_files import Run, read_record, recordings
from evaluation.statistics import entry
from runtime.errors import UserError
from runtime.plain import checked, visible

__all__ = ["read_metrics", "score_name", "scores", "table", "words"]

CEILINGS = ("true_class_name", "vae_round_trip")  # which EEG is not expected to exceed
BOUNDS = ("other_class_name", *CEILINGS)  # what Stable Diffusion can and cannot draw, whatever the EEG
RETRIEVAL = ("nearest_training_picture",)  # knows the trial's EEG, but draws nothing
BASELINES = {"lda": "lda on EEG", "lda_power": "lda on EEG power"}
BASIC = {"class_prior": "class prior", "gaussian_eeg": "Gaussian", "other_trials_eeg": "other EEG"}
Number = Annotated[float, Ge(-1e12), Le(1e12)]
Ends = Annotated[list[Number], Len(2, 2)]
Word = {name: Literal[tuple(words()[name])] for name in ("class", "instance", "design")}


class Entry(TypedDict):
    """A score in metrics.json, as far as pages read it."""

    value: Number
    ci95: Ends | None
    chance: Number | None
    n: Annotated[int, Ge(1)]
    unit: str
    first_sample: NotRequired[Number | None]
    p_real_above: NotRequired[Number]
    ci95_by_class: NotRequired[Ends]
    note: NotRequired[str]


class Metrics(TypedDict):
    """metrics.json, as far as pages read it."""

    scores: dict[str, Entry]
    controls: dict[str, dict[str, Entry]]
    baselines: dict[str, dict[str, Entry]]
    subjects: NotRequired[dict[str, dict[str, Entry]]]
    verdict: TypedDict("Verdict", {**Word, "score": str | None, "reasons": list[str]})
    left_out: NotRequired[list[str]]
    run: Run


@dataclass
class Plot:
    """A figure of a page: entries of metrics.json by label; an empty one makes its label a heading."""

    title: str
    about: str
    rows: dict[str, dict]
    kind: str = ""  # look of a dot plot: a verdict's class, "bars" or "even"
    edges: Sequence[float] = ()  # of bins in seconds: the rows are then columns between them


def read_metrics(folder: str | Path) -> dict:
    """The metrics.json of a folder, checked. Raises UserError where it is missing, damaged or of another version."""
    path = Path(folder) / "metrics.json"
    hint = f"if another version of this code wrote it, score the folder again: python code/eval_metrics.py {folder}"
    metrics = checked(Metrics, read_record(folder), str(path), hint)
    for name, found in metrics["scores"].items():
        best = {key: value for key, value in found.items() if key.startswith("best_of")}
        checked(dict[str, Number | None], best, f"{path}: {name}", hint)
    score, tables = metrics["verdict"]["score"], [metrics["scores"], *metrics.get("subjects", {}).values()]
    tables += [*metrics["controls"].values(), *metrics["baselines"].values()]
    plotted = [table[name] for table in tables for name in (score, "class_accuracy") if name in table]
    if score not in (None, *metrics["scores"]) or any(None in (one["chance"], one["ci95"]) for one in plotted):
        raise UserError(f"{path}: verdict.score names no score with a chance level and intervals; {hint}")
    return metrics


def _ordered(names: Iterable[str]) -> list[str]:
    return sorted(names, key=[*words()["rows"], *names].index)


def _plot(metrics: dict, score: str) -> Plot:
    """One score: the run, then controls, baselines, ceilings and floor that have it."""
    real, run, kind = metrics["scores"][score], metrics["run"], metrics["verdict"]["class"]
    eeg = signals(run)
    rows = {eeg[0].upper() + eeg[1:]: real}
    groups = {"controls": {}, "retrieval": {}, "baselines": metrics["baselines"], "bounds": {}}
    for name, found in metrics["controls"].items():
        groups["bounds" if name in BOUNDS else "retrieval" if name in RETRIEVAL else "controls"][name] = found
    for group, others in groups.items():
        scored = {name: others[name][score] for name in _ordered(others) if score in others[name]}
        rows |= {words()["groups"][group]: {}} if scored else {}
        for name, one in scored.items():
            note = f" ({one['note']})" if "note" in one else ""
            tested = {k: v for k, v in one.items() if k != "p_real_above"} if group == "bounds" else one
            rows[row_name(name) + note] = tested
    facts = {"counted": counted(real), "chance": percent(real["chance"]), "band": band(run), "eeg": eeg}
    warning = f" {words()['about']['time']}" if kind == "explained_by_time" else ""
    about = words()["about"]["plot"].format(**facts) + warning
    return Plot(score_name(score) + uncontrolled(metrics), about, rows, kind)


def _part(real: dict, trials: dict, values: np.ndarray, chosen: np.ndarray) -> dict:
    """Entry of the `chosen` (N,) among the trials of a score, resampled as the whole score `real` was."""
    whole = real["unit"] == "recording"
    units = recordings(trials)[chosen] if whole else None
    return entry(values[chosen], real["chance"], "trial" if whole else real["unit"], units=units)


def _by_distance(metrics: dict, trials: dict, values: np.ndarray) -> Plot:
    """The deciding score by distance in time to the training trials, in bins of about as many trials each."""
    score, about = metrics["verdict"]["score"], words()["about"]
    title, real = f"{score_name(score)}, by distance in time", metrics["scores"][score]
    gap = trials.get("gap", np.full(len(values), np.nan))
    known = np.isfinite(gap) & np.isfinite(values)
    if not known.any():
        return Plot(title, about["no_distance"], {})
    edges = np.unique(np.quantile(gap[known], np.linspace(0, 1, 7)).round(1))
    if len(edges) < 3:
        return Plot(title, about["one_distance"].format(gap[known].min(), gap[known].max()), {})
    part = np.where(known, np.clip(np.searchsorted(edges, gap, "right") - 1, 0, len(edges) - 2), -1)
    full = [k for k in range(len(edges) - 1) if (part == k).any()]
    ends = [edges[0], *(edges[k + 1] for k in full)]
    rows = {
        f"{seconds(low)} to {seconds(high)} s": _part(real, trials, values, part == k)
        for k, (low, high) in zip(full, pairwise(ends), strict=True)
    }
    return Plot(title, about["distance"].format(band=band(metrics["run"])), rows, edges=ends)


def _by_class(metrics: dict, trials: dict, values: np.ndarray) -> Plot:
    """The deciding score of each class, best first."""
    score, kinds = metrics["verdict"]["score"], np.array(trials["class_name"])
    parts = {kind: (kinds == kind) & np.isfinite(values) for kind in np.unique(kinds).tolist()}
    rows = {
        f"{kind} ({part.sum()})": _part(metrics["scores"][score], trials, values, part)
        for kind, part in parts.items()
        if part.any()
    }
    best_first = dict(sorted(rows.items(), key=lambda row: -row[1]["value"]))
    return Plot(f"{score_name(score)}, by class", words()["about"]["class"], best_first, "bars")


def _by_subject(score: str, subjects: dict) -> Plot:
    """The deciding score of each subject."""
    rows = {f"{name} ({found[score]['n']})": found[score] for name, found in subjects.items() if score in found}
    return Plot(f"{score_name(score)}, by subject", words()["about"]["subject"], rows, "even")


def scores(metrics: dict, trials: dict, values: np.ndarray) -> dict[str, Any]:
    """What results.html says of scores beside metrics.json: plots, what else is known, and which table says what.

    trials: columns of trials.csv; values: (N,) the deciding score of each, or none.
    """
    score, order = metrics["verdict"]["score"], _ordered(metrics["controls"])
    shown = [name for name in dict.fromkeys((score, "class_accuracy")) if name in metrics["scores"]]
    keys = sorted({key for found in metrics["scores"].values() for key in found})
    subjects = {f"Subject {name}": found for name, found in metrics.get("subjects", {}).items()}
    several = len(subjects) > 1
    return {
        "basic": [name for name in order if name in BASIC],
        "further": [name for name in order if name not in (*BASIC, *BOUNDS)],
        "bounds": [name for name in order if name in BOUNDS],
        "known": [n for n in _ordered(metrics["controls"] | metrics["baselines"]) if n in words()["meaning"]],
        "best": [key for key in keys if key.startswith("best_of")],
        "over_classes": "ci95_by_class" in keys,
        "plots": [_plot(metrics, name) for name in shown],
        "by_distance": _by_distance(metrics, trials, values) if len(values) else None,
        "by_class": _by_class(metrics, trials, values) if len(values) else None,
        "by_subject": _by_subject(score, subjects) if several and score else None,
        "subjects": subjects if several else {},
        "notes": dict.fromkeys((*metrics.get("left_out", ()), *metrics["run"].get("notes", ()))),
    }


def table(metrics: dict) -> str:
    """The scores for a terminal: value, interval, chance; first sample and basic controls; then all other rows."""
    run, verdict, controls = metrics["run"], metrics["verdict"], metrics["controls"]
    basic = [name for name in BASIC if name in controls]
    heads = ["95 % interval", "chance", "sample 1", *(BASIC[name] for name in basic)]
    title = [f"scores of {run.get('name') or 'pictures'}, EEG band {band(run)}{uncontrolled(metrics)}"]
    lines = [*title, f"{'score':38}{'':>8}{heads[0]:>17}" + "".join(f"{h:>12}" for h in heads[1:])]
    for score, found in metrics["scores"].items():
        others = [found.get("first_sample"), *(controls[n].get(score, {}).get("value") for n in basic)]
        lines.append(_line(score, found) + "".join(_number(v) for v in others))
        if found.get("lower_better"):
            lines[-1] += "  lower is better"
    score = verdict["score"]
    lines += [_line(f"{score}: {n}", c[score]) for n, c in controls.items() if n not in basic and score in c]
    for name, scores in metrics["baselines"].items():
        for score, found in scores.items():
            lines.append(_line(f"{score}: {BASELINES.get(name, name)}", found) + f"  {found.get('note', '')}".rstrip())
    found = ", ".join(f"{key} {verdict[key].replace('_', ' ')}" for key in ("class", "instance", "design"))
    lines.append(f"verdict{' (SIMULATED EEG)' if run.get('simulated') else ''}: {found}")
    lines += [f"  {reason}" for reason in (*verdict["reasons"], *metrics.get("left_out", ()))]
    return "\n".join(visible(line).replace("\n", " ") for line in lines)


def _number(value: float | None) -> str:
    return f"{'-' if value is None else f'{value:.3f}':>12}"


def _line(name: str, entry: dict) -> str:
    spread = f"[{entry['ci95'][0]:.3f}, {entry['ci95'][1]:.3f}]" if entry["ci95"] else ""
    spread = "n = 1" if entry["n"] == 1 else spread
    return f"{name:38}{entry['value']:8.3f}{spread:>17}{_number(entry['chance'])}"
