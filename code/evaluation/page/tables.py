"""What page and terminal say of scores: the verdict in words, figures, the table of all scores."""

import json
from functools import lru_cache
from html import escape
from pathlib import Path

import numpy as np

from evaluation.folder import recordings
from evaluation.page.figures import amount, columns, counted, figure, interval, percent, spread
from evaluation.statistics import ALPHA, entry

__all__ = ["figure", "interval", "percent", "score_name", "scores_html", "table", "verdict_html", "words"]

CEILINGS = ("true_class_name", "vae_round_trip")  # which EEG is not expected to exceed
BOUNDS = ("other_class_name", *CEILINGS)  # what Stable Diffusion can and cannot draw, whatever the EEG
BASELINES = {"lda": "lda on EEG", "lda_power": "lda on EEG power"}
BASIC = {"class_prior": "class prior", "gaussian_eeg": "Gaussian", "other_trials_eeg": "other EEG"}


@lru_cache(maxsize=1)
def words() -> dict[str, dict[str, str]]:
    """All names and sentences of the page: `rows`, `scores`, `verdict`, `class`, `design`, `instance`."""
    return json.loads((Path(__file__).parent / "page.json").read_text())


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


def band(run: dict) -> str:
    """The band of a run's EEG in words, such as "5 to 95 Hz"."""
    found = run.get("band")
    found = found.split("_") if isinstance(found, str) and "_" in found else found
    return f"{' to '.join(map(str, found))} Hz" if isinstance(found, list) else str(found or "not recorded")


def uncontrolled(metrics: dict) -> str:
    """What every title says where no control with EEG was run."""
    return "" if set(metrics["controls"]) - {"class_prior"} else ", WITHOUT CONTROLS (controls=none)"


def _row_name(name: str) -> str:
    return words()["rows"].get(name, name.replace("_", " "))


def _ordered(names: dict) -> list[str]:
    return sorted(names, key=[*words()["rows"], *names].index)


def _plot(metrics: dict, score: str) -> str:
    """One score: the run, then controls, baselines, ceilings and floor that have it."""
    real, controls, baselines = metrics["scores"][score], metrics["controls"], metrics["baselines"]
    rows: dict[str, dict] = {_title(metrics): real}
    groups = {
        "Controls: they know nothing of the trial": {n: c for n, c in controls.items() if n not in BOUNDS},
        "Baselines, without any picture": baselines,
        "Ceilings and floor: pictures made without EEG, from what was shown": {
            n: c for n, c in controls.items() if n in BOUNDS
        },
    }
    for heading, others in groups.items():
        found = {name: others[name][score] for name in _ordered(others) if score in others[name]}
        rows |= {heading: {}} if found else {}
        for name, one in found.items():
            note = f" ({one['note']})" if "note" in one else ""
            tested = one if name not in BOUNDS else {k: v for k, v in one.items() if k != "p_real_above"}
            rows[_row_name(name) + note] = tested
    about = words()["about"]["plot"].format(
        counted=counted(real), chance=percent(real["chance"]), band=band(metrics["run"]), eeg=_eeg(metrics)
    )
    warning = " Time can explain this score." if metrics["verdict"]["class"] == "explained_by_time" else ""
    return figure(score_name(score) + uncontrolled(metrics), about + warning, rows, metrics["verdict"]["class"])


def _part(real: dict, trials: list[dict], values: np.ndarray, chosen: np.ndarray) -> dict:
    """Entry of the `chosen` (N,) among the trials of a score, resampled as the whole score `real` was."""
    whole = real["unit"] == "recording"
    units = recordings(trials)[chosen] if whole else None
    return entry(values[chosen], real["chance"], "trial" if whole else real["unit"], units=units)


def _by_distance(metrics: dict, trials: list[dict], values: np.ndarray) -> str:
    """The deciding score by distance in time to the training trials, in bins of about as many trials each."""
    score, about = metrics["verdict"]["score"], words()["about"]
    real, name = metrics["scores"][score], f"{score_name(score)}, by distance in time"
    gap = np.array([float(row.get("gap") or "nan") for row in trials])
    known = np.isfinite(gap) & np.isfinite(values)
    edges = np.unique(np.quantile(gap[known], np.linspace(0, 1, 7)).round(1)) if known.any() else gap[:0]
    if len(edges) < 3:
        why = about["one_distance"].format(gap[known].min(), gap[known].max()) if known.any() else about["no_distance"]
        return f'<figure class="plot"><figcaption><strong>{escape(name)}</strong><br>{why}</figcaption></figure>'
    part = np.where(known, np.clip(np.searchsorted(edges, gap, "right") - 1, 0, len(edges) - 2), -1)
    full = [k for k in range(len(edges) - 1) if (part == k).any()]
    entries = [_part(real, trials, values, part == k) for k in full]
    ends = [edges[0], *(edges[k + 1] for k in full)]
    return columns(name, about["distance"].format(band=band(metrics["run"])), ends, entries, about["across"])


def _by_class(metrics: dict, trials: list[dict], values: np.ndarray) -> str:
    """The deciding score of each class, best first."""
    score = metrics["verdict"]["score"]
    real = metrics["scores"][score]
    kinds, kind = np.unique([row["class_name"] for row in trials], return_inverse=True)
    rows = {}
    for k, name in enumerate(kinds):
        part = (kind == k) & np.isfinite(values)
        if part.any():
            rows[f"{name} ({part.sum()})"] = _part(real, trials, values, part)
    rows = dict(sorted(rows.items(), key=lambda row: -row[1]["value"]))
    bars = figure(f"{score_name(score)}, by class", words()["about"]["class"], rows, "bars")
    shown = " open" * (len(kinds) <= 10)
    return f"<details{shown}><summary>Each class by itself, {len(kinds)} classes</summary>{bars}</details>"


def _by_subject(metrics: dict) -> str:
    """The deciding score of each subject as a figure, all scores as a table; nothing for a single subject."""
    score, subjects = metrics["verdict"]["score"], metrics.get("subjects", {})
    if len(subjects) < 2:
        return ""
    page = ""
    if score:
        rows = {f"Subject {name} ({found[score]['n']})": found[score] for name, found in subjects.items()}
        page = figure(f"{score_name(score)}, by subject", words()["about"]["subject"], rows, "even")
    cells = {
        name: [_cell(found[name], spread(found[name])) if name in found else "" for found in subjects.values()]
        for name in metrics["scores"]
        if any(name in found for found in subjects.values())
    }
    table = _grid("Every score, by subject, with 95 % intervals.", [f"Subject {name}" for name in subjects], cells)
    return f"{page}<details><summary>All scores by subject</summary>{table}</details>"


def _real(found: dict) -> str:
    """The run's cell: its value and interval; of a score of whole sets, which is biased by their number, that of the
    first pictures, as many as a control has, and below it that of all.
    """
    if found["unit"] != "picture":
        return _cell(found, spread(found))
    first, every = found["first_sample"], f"all {found['n']}: {amount(found, found['value'])}"
    return amount(found, first) + (f"<small>{every}</small>" if first != found["value"] else "")


def _cell(found: dict, *under: str) -> str:
    return amount(found, found["value"]) + "".join(f"<small>{text}</small>" for text in under if text)


def _grid(caption: str, heads: list[str], rows: dict[str, list[str]], scores: dict | None = None) -> str:
    """A table of scores by row, which becomes a list of cards on a phone: each cell carries its head."""
    lines = ""
    for score, cells in rows.items():
        lower = "<small>lower is better</small>" if (scores or {}).get(score, {}).get("lower_better") else ""
        row = "".join(
            f'<td data-label="{escape(head)}">{cell}</td>' if cell else "<td></td>"
            for head, cell in zip(heads, cells, strict=True)
        )
        lines += f'<tr><th scope="row">{escape(score_name(score))}{lower}</th>{row}</tr>'
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in ("Score", *heads))
    return f"<table><caption>{caption}</caption><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>"


def _against(real: dict, control: str, found: dict | None) -> str:
    """A control's cell: its value, and the paired test of the run against it."""
    if found is None:
        return ""
    if control in BOUNDS or "p_real_above" not in found:
        return _cell(found)
    p = found["p_real_above"]
    return _cell(found, f"{'not beaten, ' * (p >= ALPHA)}p = {p:.2g}")


def _tables(metrics: dict) -> str:
    """All scores: the run, its intervals, chance and basic controls; then the further controls; then the bounds."""
    controls, scores = metrics["controls"], metrics["scores"]
    order = _ordered(controls)
    best = sorted({key for real in scores.values() for key in real if key.startswith("best_of")})
    over_classes = any("ci95_by_class" in real for real in scores.values())
    basic = [name for name in order if name in BASIC]
    heads = [_title(metrics), *["Interval over classes"] * over_classes, "Chance", *map(_row_name, basic)]
    heads += [*(name.replace("_", " ").capitalize() for name in best), "Scored"]
    rows = {}
    for score, real in scores.items():
        cells = [_real(real), *[spread(real, "ci95_by_class")] * over_classes]
        cells += ["none" if real["chance"] is None else percent(real["chance"])]
        cells += [_against(real, name, controls[name].get(score)) for name in basic]
        rows[score] = [*cells, *(amount(real, real.get(key)) for key in best), counted(real)]
    about = words()["about"]
    note = about["table"].format(
        without=uncontrolled(metrics), eeg=_eeg(metrics), alpha=ALPHA, band=band(metrics["run"])
    )
    note += f" {about['best']}" * bool(best)
    if metrics["verdict"]["class"] == "explained_by_time":
        note += " Time can explain every score here but those within a class."
    page = _grid(note, heads, rows, scores)
    bounds = [name for name in order if name in BOUNDS]
    for key, names in {"further": [n for n in order if n not in (*basic, *bounds)], "bounds": bounds}.items():
        if names:
            rows = {s: [_against(real, n, controls[n].get(s)) for n in names] for s, real in scores.items()}
            rows = {score: cells for score, cells in rows.items() if any(cells)}
            page += f"<h3>{about[key + '_title']}</h3>{_grid(about[key], [*map(_row_name, names)], rows, scores)}"
    return page


def _glossary(metrics: dict) -> str:
    """What each row is, for who meets it first."""
    present = _ordered(metrics["controls"] | metrics["baselines"])
    told = "".join(
        f"<dt>{escape(_row_name(n))}</dt><dd>{words()['meaning'][n]}</dd>" for n in present if n in words()["meaning"]
    )
    return f"<details><summary>What controls and baselines are</summary><dl>{told}</dl></details>" if told else ""


def scores_html(metrics: dict, trials: list[dict], values: np.ndarray) -> str:
    """Plots of the deciding score (`values` (N,) of it, maybe none) and of class accuracy, then tables.

    trials: rows of trials.csv.
    """
    shown = dict.fromkeys((metrics["verdict"]["score"], "class_accuracy"))
    page = "".join(_plot(metrics, score) for score in shown if score in metrics["scores"]) + _glossary(metrics)
    if len(values):
        page += _by_distance(metrics, trials, values) + _by_class(metrics, trials, values)
    page += f"{_by_subject(metrics)}<h3>All scores</h3>{_tables(metrics)}"
    left_out = dict.fromkeys((*metrics.get("left_out", ()), *metrics["run"].get("notes", ())))
    notes = "".join(f"<li>{escape(str(note))}</li>" for note in left_out)
    return page + (f'<h3>What is left out, and other notes</h3><ul class="soft">{notes}</ul>' if notes else "")


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
    return "\n".join([*lines, *(f"  {reason}" for reason in (*verdict["reasons"], *metrics["left_out"]))])


def _number(value: float | None) -> str:
    return f"{'-' if value is None else f'{value:.3f}':>12}"


def _line(name: str, entry: dict) -> str:
    spread = f"[{entry['ci95'][0]:.3f}, {entry['ci95'][1]:.3f}]" if entry["ci95"] else ""
    spread = "n = 1" if entry["n"] == 1 else spread
    return f"{name:38}{entry['value']:8.3f}{spread:>17}{_number(entry['chance'])}"
