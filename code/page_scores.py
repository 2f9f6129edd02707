"""What page and terminal say of scores: the verdict in words, figures, the table of all scores."""

from html import escape
from math import nan

import numpy as np

from verdict import ALPHA, entry

LABEL = {"supported": "Supported", "explained_by_time": "Explained by time", "nothing": "No evidence"}
CLASS = {
    "supported": "The {eeg} tells which class of picture was seen.",
    "explained_by_time": "This score can be explained by time. It is no evidence that the {eeg} tells what was seen.",
    "nothing": "No evidence that the {eeg} tells which class of picture was seen.",
}
DESIGN = {
    "random": "Classes were shown in random order, so slow change of the recording cannot name them.",
    "block": "The pictures of a class were shown together in time, so whatever changes slowly in the recording (alpha, "
    "electrode contact, muscle) names the class. A high score is then expected without any trace of the picture.",
    "unknown": "The order in which classes were shown is not known. If they came in blocks, slow change of the "
    "recording names the class without any trace of the picture.",
}
INSTANCE = {
    "supported": "Among pictures of one class, the {eeg} finds the one that was seen more often than chance. The order "
    "of classes in time cannot explain that.",
    "nothing": "Among pictures of one class, nothing shows that the {eeg} tells which one was seen.",
}
SCORES = {
    "class_accuracy": "Class among those shown",
    "two_way_mse": "Two-way, pixel error",
    "two_way_mse_wrapping_uint8": "Two-way, pixel error as published (wraps at 256)",
    "two_way_pearson": "Two-way, pixel correlation",
    "two_way_ssim": "Two-way, SSIM",
    "two_way_features": "Two-way, classifier features",
    "two_way_clip": "Two-way, CLIP",
    "picture_retrieval_top1": "Picture finds the image, top 1",
    "picture_retrieval_top5": "Picture finds the image, top 5",
    "picture_retrieval_within_class_top1": "Picture finds it within its class, top 1",
    "picture_retrieval_within_class_two_way": "Picture finds it within its class, two-way",
    "retrieval_top1": "EEG finds the image, top 1",
    "retrieval_top5": "EEG finds the image, top 5",
    "retrieval_within_class_top1": "EEG finds it within its class, top 1",
    "retrieval_within_class_two_way": "EEG finds it within its class, two-way",
}
ROWS = {
    "gaussian_eeg": "Gaussian noise as EEG",
    "other_trials_eeg": "EEG of other trials",
    "phase_randomised_eeg": "EEG with random phases",
    "same_class_eeg": "EEG of the same class",
    "other_class_eeg": "EEG of another class",
    "zero_condition": "No EEG",
    "grey": "Plain grey",
    "mean_image": "Mean training image",
    "class_prior": "Class prior",
    "other_class_name": "Floor: another class by name",
    "true_class_name": "Ceiling: true class by name",
    "vae_round_trip": "Ceiling: truth through the VAE",
    "lda": "Linear baseline (LDA)",
    "time_only": "Time alone",
}
CEILINGS = ("true_class_name", "vae_round_trip")  # which EEG is not expected to exceed
BASIC = {"class_prior": "class prior", "gaussian_eeg": "Gaussian", "other_trials_eeg": "other EEG"}


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _interval(ci95: list[float]) -> str:
    low, high = ci95
    return f"{100 * low:.1f} to {100 * high:.1f}"


def _name(score: str) -> str:
    if "_way_top" in score:
        n, k = score.split("_way_top")
        return f"{n}-way top-{k}, classifier"
    return SCORES.get(score, score.replace("_", " "))


def _eeg(metrics: dict) -> str:
    return "simulated EEG" if metrics["run"].get("simulated") else "EEG"


def _title(metrics: dict) -> str:
    return _eeg(metrics).replace("sim", "Sim")


def verdict_html(metrics: dict) -> str:
    """The first thing on the page: what may be concluded, in a sentence, and why."""
    verdict = metrics["verdict"]
    kind, eeg = verdict["class"], _eeg(metrics)
    body = [DESIGN[verdict["design"]]]
    if metrics["run"].get("image_known", True):
        body.append(INSTANCE[verdict["instance"]].format(eeg=eeg))
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in verdict["reasons"])
    paragraphs = "".join(f"<p>{text}</p>" for text in body)
    return (
        f'<section class="verdict {kind}" aria-labelledby="verdict"><p class="label">{LABEL[kind]}</p>'
        f'<h2 id="verdict">{CLASS[kind].format(eeg=eeg)}</h2>{paragraphs}'
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
        f'<span class="number">{_percent(entry["value"])} <small>{_interval(entry["ci95"])}</small></span></li>'
    )


def _figure(title: str, about: str, rows: dict[str, dict], kind: str) -> str:
    """Dot plot of scores by their label, the first of them the run's; chance is a dashed line, the axis in percent."""
    highest = max(entry["ci95"][1] for entry in rows.values())
    top = next(t for t in (0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0) if t >= min(highest, 1.0))
    ticks = "".join(
        f'<text x="{share}%" y="1em" text-anchor="{anchor}">{share * top:g} %</text>'
        for share, anchor in ((0, "start"), (50, "middle"), (100, "end"))
    )
    lines = [_plot_row(label, entry, top, "" if n else "real") for n, (label, entry) in enumerate(rows.items())]
    return (
        f'<figure class="plot {kind}"><figcaption><strong>{escape(title)}</strong><br>{escape(about)}</figcaption>'
        f'<ul>{"".join(lines)}<li class="axis" aria-hidden="true"><span>share of hits</span><svg>{ticks}</svg>'
        "<span></span></li></ul></figure>"
    )


def _plot(metrics: dict, score: str) -> str:
    """One score: the run, the controls and baselines that have it."""
    real, kind = metrics["scores"][score], metrics["verdict"]["class"]
    others = metrics["controls"] | metrics["baselines"]
    rows = {_title(metrics): real}
    for name in sorted(others, key=[*ROWS, *others].index):
        if score in others[name]:
            note = others[name][score].get("note")
            rows[ROWS.get(name, name) + (f" ({note})" if note else "")] = others[name][score]
    about = (
        f"Share of hits, mean over {real['n']} {real['unit']}s with 95 % interval; the dashed line is chance, "
        f"{_percent(real['chance'])}."
    )
    warning = " Time can explain this score." if kind == "explained_by_time" else ""
    return _figure(_name(score), about + warning, rows, kind)


def _groups(metrics: dict, trials: list[dict], values: np.ndarray) -> str:
    """The deciding score by class and, where onsets are known, by distance in time to the training trials."""
    score = metrics["verdict"]["score"]
    real, kinds = metrics["scores"][score], np.array([row["class_name"] for row in trials])
    found = {name: values[kinds == name] for name in np.unique(kinds).tolist()}
    rows = {f"{name} ({len(v)})": entry(v, real["chance"], real["unit"]) for name, v in found.items()}
    best_first = dict(sorted(rows.items(), key=lambda row: -row[1]["value"]))
    about = f"Mean over the {real['unit']}s of each class, their number in brackets; the dashed line is chance."
    bars = _figure(f"{_name(score)}, by class", about, best_first, "bars")
    page = f"<details><summary>Each class by itself, {len(rows)} classes</summary>{bars}</details>"
    gap = np.array([float(row.get("gap") or "nan") for row in trials])
    edges = np.unique(np.nanquantile(gap, np.linspace(0, 1, 7))) if np.isfinite(gap).any() else gap[:0]
    if len(edges) < 3:
        return page
    bins, rows = np.clip(np.searchsorted(edges, gap, "right"), 1, len(edges) - 1), {}
    for n in np.unique(bins[np.isfinite(gap)]).tolist():
        inside = values[(bins == n) & np.isfinite(gap)]
        label = f"{edges[n - 1]:.3g} to {edges[n]:.3g} s ({len(inside)})"
        rows[label] = entry(inside, real["chance"], real["unit"])
    about = (
        f"Seconds to the nearest training trial of the recording, {real['unit']}s in brackets, 95 % interval. A score "
        "that falls with distance is what slow change of the recording makes."
    )
    return _figure(f"{_name(score)}, by distance in time", about, rows, "even") + page


def _uncontrolled(metrics: dict) -> str:
    return "" if set(metrics["controls"]) - {"class_prior"} else ", WITHOUT CONTROLS (controls=none)"


def _table(metrics: dict) -> str:
    """All scores: the run and its interval, chance, every control, marked where the run does not beat it."""
    controls, eeg = metrics["controls"], _eeg(metrics)
    order = sorted(controls, key=[*ROWS, *controls].index)
    clustered = any("ci95_by_class" in real for real in metrics["scores"].values())
    best = sorted({key for real in metrics["scores"].values() for key in real if key.startswith("best_of")})
    names = ["Score", _title(metrics), *["Interval over classes"] * clustered, "Chance"]
    names += [*(ROWS.get(name, name) for name in order), *(name.replace("_", " ") for name in best), "n"]
    rows = []
    for score, real in metrics["scores"].items():
        cells = [f"{_percent(real['value'])}<small>{_interval(real['ci95'])}</small>"]
        cells += [_interval(real["ci95_by_class"]) if "ci95_by_class" in real else ""] * clustered
        cells.append(_percent(real["chance"]))
        for name in order:
            found = controls[name].get(score)
            marked = found and found["p_real_above"] >= ALPHA and name not in CEILINGS
            cells.append(f"{_percent(found['value'])}<small>{'not beaten' * marked}</small>" if found else "")
        cells += [_percent(real[key]) if key in real else "" for key in best]
        cells.append(f"{real['n']} {real['unit']}s")
        row = "".join(f"<td>{cell}</td>" for cell in cells)
        rows.append(f'<tr><th scope="row">{escape(_name(score))}</th>{row}</tr>')
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
    note = (
        f"All scores with 95 % intervals{_uncontrolled(metrics)}. Controls use the first picture of each trial, with "
        f"the same seeds; “not beaten”: the first picture from {eeg} does not exceed it with p below {ALPHA}."
    )
    if best:
        note += " The best of several samples is no result, only a bound."
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
        page += _figure(f"{_name(score)}, by subject", "Number of trials in brackets.", rows, "even")
    notes = "".join(f"<li>{escape(note)}</li>" for note in metrics.get("left_out", ()))
    return page + _table(metrics) + (f'<ul class="soft">{notes}</ul>' if notes else "")


def table(metrics: dict) -> str:
    """The scores for a terminal: value, interval, chance; first sample and basic controls; then all other rows."""
    run, verdict, controls = metrics["run"], metrics["verdict"], metrics["controls"]
    basic = [name for name in BASIC if name in controls]
    heads = ["95 % interval", "chance", "sample 1", *(BASIC[name] for name in basic)]
    lines = [f"{'score':38}{'':>6}{heads[0]:>17}" + "".join(f"{h:>12}" for h in heads[1:]) + _uncontrolled(metrics)]
    for score, found in metrics["scores"].items():
        others = [found["first_sample"], *(controls[n][score]["value"] if score in controls[n] else nan for n in basic)]
        lines.append(_line(score, found) + "".join(f"{value:12.3f}" for value in others))
    score = verdict["score"]
    lines += [_line(f"{score}: {n}", c[score]) for n, c in controls.items() if n not in basic and score in c]
    for name, scores in metrics["baselines"].items():
        for score, found in scores.items():
            lines.append(_line(f"{score}: {name} on EEG", found) + f"  {found.get('note', '')}".rstrip())
    found = ", ".join(f"{key} {verdict[key].replace('_', ' ')}" for key in ("class", "instance", "design"))
    lines.append(f"verdict{' (SIMULATED EEG)' if run.get('simulated') else ''}: {found}")
    return "\n".join([*lines, *(f"  {reason}" for reason in (*verdict["reasons"], *metrics["left_out"]))])


def _line(name: str, entry: dict) -> str:
    low, high = entry["ci95"]
    return f"{name:38}{entry['value']:6.3f}{f'[{low:.3f}, {high:.3f}]':>17}{entry['chance']:12.3f}"
