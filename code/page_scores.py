"""What page and terminal say of scores: the verdict in words, figures, the table of all scores."""

import json
from collections.abc import Callable
from functools import lru_cache
from html import escape
from math import nan
from pathlib import Path

import numpy as np

from verdict import ALPHA, entry

CEILINGS = ("true_class_name", "vae_round_trip")  # which EEG is not expected to exceed
BASIC = {"class_prior": "class prior", "gaussian_eeg": "Gaussian", "other_trials_eeg": "other EEG"}


@lru_cache(maxsize=1)
def words() -> dict[str, dict[str, str]]:
    """All names and sentences of the page: `rows`, `scores`, `verdict`, `class`, `design`, `instance`."""
    return json.loads((Path(__file__).parent / "results_page.json").read_text())


def percent(value: float) -> str:
    """A share as text."""
    return f"{100 * value:.1f} %"


def interval(ci95: list[float]) -> str:
    """The interval of a share as text, in percent."""
    low, high = ci95
    return f"{100 * low:.1f} to {100 * high:.1f}"


def _plain(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _cells(found: dict) -> tuple[Callable[[float | None], str], str]:
    """How the numbers of a score read, and its interval: in percent, or as they are where lower is better."""
    if not found.get("lower_better"):
        return percent, interval(found["ci95"])
    return _plain, " to ".join(map(_plain, found["ci95"] or ()))


def score_name(score: str) -> str:
    """What the page calls a score of metrics.json."""
    if "_way_top" in score:
        n, k = score.split("_way_top")
        return f"{n}-way top-{k}, classifier"
    return words()["scores"].get(score, score.replace("_", " "))


def _eeg(metrics: dict) -> str:
    return "simulated EEG" if metrics["run"].get("simulated") else "EEG"


def _title(metrics: dict) -> str:
    return _eeg(metrics).replace("sim", "Sim")


def verdict_html(metrics: dict) -> str:
    """The first thing on the page: what may be concluded, in a sentence, and why."""
    verdict = metrics["verdict"]
    kind, eeg = verdict["class"], _eeg(metrics)
    body = [words()["design"][verdict["design"]]]
    if metrics["run"].get("image_known", True):
        body.append(words()["instance"][verdict["instance"]].format(eeg=eeg))
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in verdict["reasons"])
    paragraphs = "".join(f"<p>{text}</p>" for text in body)
    return (
        f'<section class="verdict {kind}" aria-labelledby="verdict"><p class="label">{words()["verdict"][kind]}</p>'
        f'<h2 id="verdict">{words()["class"][kind].format(eeg=eeg)}</h2>{paragraphs}'
        f"<details><summary>The tests behind this</summary><ul>{reasons}</ul></details></section>"
    )


def _plot_row(label: str, entry: dict, top: float, kind: str = "") -> str:
    """One line of a plot; positions are shares of the width, so that text keeps its size on a phone."""
    values = (entry["value"], *entry["ci95"], entry["chance"])
    x, low, high, chance = (f"{100 * min(v, top) / top:.2f}%" for v in values)
    return (
        f'<li class="{kind}"><span>{escape(label)}</span><svg aria-hidden="true">'
        '<line class="rail" x1="0" x2="100%" y1="50%" y2="50%"/>'
        f'<line class="chance" x1="{chance}" x2="{chance}" y1="0" y2="100%"/>'
        f'<line class="bar" x1="0" x2="{x}" y1="50%" y2="50%"/>'
        f'<line class="interval" x1="{low}" x2="{high}" y1="50%" y2="50%"/>'
        f'<circle class="dot" cx="{x}" cy="50%" r="6"/></svg>'
        f'<span class="number">{percent(entry["value"])} <small>{interval(entry["ci95"])}</small></span></li>'
    )


def figure(title: str, about: str, rows: dict[str, dict], kind: str) -> str:
    """Dot plot of scores by their label, the first of them the run's; chance is a dashed line, the axis in percent."""
    highest = min(max(max(entry["ci95"][1], entry["chance"]) for entry in rows.values()), 1.0)
    top = next(t for t in (0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0) if t >= highest)
    ticks = "".join(
        f'<text x="{share}%" y="1em" text-anchor="{anchor}">{share * top:g} %</text>'
        for share, anchor in ((0, "start"), (50, "middle"), (100, "end"))
    )
    lines = "".join(_plot_row(label, entry, top, "" if n else "real") for n, (label, entry) in enumerate(rows.items()))
    return (
        f'<figure class="plot {kind}"><figcaption><strong>{escape(title)}</strong><br>{escape(about)}</figcaption>'
        f'<ul>{lines}<li class="axis" aria-hidden="true"><span>share of hits</span><svg>{ticks}</svg></li></ul>'
        "</figure>"
    )


def _plot(metrics: dict, score: str) -> str:
    """One score: the run, the controls and baselines that have it."""
    real, kind = metrics["scores"][score], metrics["verdict"]["class"]
    others = metrics["controls"] | metrics["baselines"]
    rows = {_title(metrics): real}
    for name in sorted(others, key=[*words()["rows"], *others].index):
        if score in others[name]:
            note = others[name][score].get("note")
            rows[words()["rows"].get(name, name) + (f" ({note})" if note else "")] = others[name][score]
    about = (
        f"Share of hits, mean over {real['n']} {real['unit']}s with 95 % interval; the dashed line is chance, "
        f"{percent(real['chance'])}."
    )
    warning = " Time can explain this score." if kind == "explained_by_time" else ""
    return figure(score_name(score), about + warning, rows, kind)


def _groups(metrics: dict, trials: list[dict], values: np.ndarray) -> str:
    """The deciding score by class and, where onsets are known, by distance in time to the training trials."""
    score = metrics["verdict"]["score"]
    real = metrics["scores"][score]

    def rows(group: np.ndarray, labels: list[str]) -> dict[str, dict]:
        parts = [values[group == n] for n in range(len(labels))]
        named = {f"{label} ({len(part)})": part for label, part in zip(labels, parts, strict=True) if len(part)}
        return {label: entry(part, real["chance"], real["unit"]) for label, part in named.items()}

    kinds, kind = np.unique([row["class_name"] for row in trials], return_inverse=True)
    classes = dict(sorted(rows(kind, kinds.tolist()).items(), key=lambda row: -row[1]["value"]))
    bars = figure(f"{score_name(score)}, by class", words()["about"]["class"], classes, "bars")
    page = f"<details><summary>Each class by itself, {len(kinds)} classes</summary>{bars}</details>"
    gap = np.array([float(row.get("gap") or "nan") for row in trials])
    edges = np.unique(np.nanquantile(gap, np.linspace(0, 1, 7))) if np.isfinite(gap).any() else gap[:0]
    if len(edges) > 2:
        part = np.where(np.isfinite(gap), np.clip(np.searchsorted(edges, gap, "right"), 1, len(edges) - 1) - 1, -1)
        spans = [f"{low:.3g} to {high:.3g} s" for low, high in zip(edges[:-1], edges[1:], strict=True)]
        about = words()["about"]["distance"]
        page = figure(f"{score_name(score)}, by distance in time", about, rows(part, spans), "even") + page
    return page


def _uncontrolled(metrics: dict) -> str:
    return "" if set(metrics["controls"]) - {"class_prior"} else ", WITHOUT CONTROLS (controls=none)"


def _table(metrics: dict) -> str:
    """All scores: the run and its interval, chance, every control, marked where the run does not beat it."""
    controls, scores = metrics["controls"], metrics["scores"]
    order = sorted(controls, key=[*words()["rows"], *controls].index)
    best = sorted({key for real in scores.values() for key in real if key.startswith("best_of")})
    over_classes = any("ci95_by_class" in real for real in scores.values())
    names = ["Score", _title(metrics), *["Interval over classes"] * over_classes, "Chance"]
    names += [*(words()["rows"].get(name, name) for name in order), *(name.replace("_", " ") for name in best), "n"]
    rows = []
    for score, real in scores.items():
        number, between = _cells(real)
        cells = [f"{number(real['value'])}<small>{between}</small>"]
        if over_classes:
            cells.append(_cells(real | {"ci95": real["ci95_by_class"]})[1] if "ci95_by_class" in real else "")
        cells.append(number(real["chance"]))
        for found, name in ((controls[name].get(score), name) for name in order):
            marked = found and found.get("p_real_above", 0) >= ALPHA and name not in CEILINGS
            cells.append(f"{number(found['value'])}<small>{'not beaten' * marked}</small>" if found else "")
        cells += [number(real[key]) if key in real else "" for key in best] + [f"{real['n']} {real['unit']}s"]
        row = "".join(f"<td>{cell}</td>" for cell in cells)
        rows.append(f'<tr><th scope="row">{escape(score_name(score))}</th>{row}</tr>')
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
    note = words()["about"]["table"].format(without=_uncontrolled(metrics), eeg=_eeg(metrics), alpha=ALPHA)
    if metrics["verdict"]["class"] == "explained_by_time":
        note += " Time can explain every score here but those within a class."
    return (
        '<div class="scroll" role="region" aria-label="All scores" tabindex="0"><table>'
        f"<caption><span>{note}</span></caption><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def scores_html(metrics: dict, trials: list[dict], values: np.ndarray) -> str:
    """Plots of the deciding score (`values` (N,) of it, maybe none) and of class accuracy, then tables.

    trials: rows of trials.csv.
    """
    shown = dict.fromkeys((metrics["verdict"]["score"], "class_accuracy"))
    page = "".join(_plot(metrics, score) for score in shown if score in metrics["scores"])
    if len(values):
        page += _groups(metrics, trials, values)
    score, subjects = metrics["verdict"]["score"], metrics.get("subjects", {})
    if score and len(subjects) > 1:
        rows = {f"Subject {name} ({found[score]['n']})": found[score] for name, found in subjects.items()}
        page += figure(f"{score_name(score)}, by subject", "Number of trials in brackets.", rows, "even")
    notes = "".join(f"<li>{escape(note)}</li>" for note in metrics.get("left_out", ()))
    return page + _table(metrics) + (f'<ul class="soft">{notes}</ul>' if notes else "")


def table(metrics: dict) -> str:
    """The scores for a terminal: value, interval, chance; first sample and basic controls; then all other rows."""
    run, verdict, controls = metrics["run"], metrics["verdict"], metrics["controls"]
    basic = [name for name in BASIC if name in controls]
    heads = ["95 % interval", "chance", "sample 1", *(BASIC[name] for name in basic)]
    lines = [f"{'score':38}{'':>6}{heads[0]:>17}" + "".join(f"{h:>12}" for h in heads[1:]) + _uncontrolled(metrics)]
    for score, found in metrics["scores"].items():
        first = nan if found["first_sample"] is None else found["first_sample"]  # too few for FID, say
        others = [first, *(controls[n][score]["value"] if score in controls[n] else nan for n in basic)]
        lines.append(_line(score, found) + "".join(f"{value:12.3f}" for value in others))
    score = verdict["score"]
    lines += [_line(f"{score}: {n}", c[score]) for n, c in controls.items() if n not in basic and score in c]
    for name, scores in metrics["baselines"].items():
        for score, found in scores.items():
            lines.append(
                _line(f"{score}: {name.replace('lda', 'lda on EEG')}", found) + f"  {found.get('note', '')}".rstrip()
            )
    found = ", ".join(f"{key} {verdict[key].replace('_', ' ')}" for key in ("class", "instance", "design"))
    lines.append(f"verdict{' (SIMULATED EEG)' if run.get('simulated') else ''}: {found}")
    return "\n".join([*lines, *(f"  {reason}" for reason in (*verdict["reasons"], *metrics["left_out"]))])


def _line(name: str, entry: dict) -> str:
    between = "[{:.3f}, {:.3f}]".format(*entry["ci95"]) if entry["ci95"] else ""
    chance = "low is good" if entry["chance"] is None else f"{entry['chance']:.3f}"
    return f"{name:38}{entry['value']:6.3f}{between:>17}{chance:>12}"
