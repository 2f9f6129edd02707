"""The part of the page that reads scores: the verdict in words, dot plots, the table of all scores."""

from html import escape

from verdict import ALPHA

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
    "two_way_pearson": "Two-way, pixel correlation",
    "two_way_ssim": "Two-way, SSIM",
    "two_way_features": "Two-way, classifier features",
    "retrieval_top1": "EEG finds the image, top 1",
    "retrieval_top5": "EEG finds the image, top 5",
    "retrieval_within_class_top1": "EEG finds it within its class, top 1",
    "retrieval_within_class_two_way": "EEG finds it within its class, two-way",
}
ROWS = {
    "gaussian_eeg": "Gaussian noise as EEG",
    "other_trials_eeg": "EEG of other trials",
    "class_prior": "Class prior",
    "lda": "Linear baseline (LDA)",
}


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _interval(entry: dict) -> str:
    low, high = entry["ci95"]
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
        f'<line class="interval" x1="{low}" x2="{high}" y1="50%" y2="50%"/>'
        f'<circle class="dot" cx="{x}" cy="50%" r="6"/></svg>'
        f'<span class="number">{_percent(entry["value"])} <small>{_interval(entry)}</small></span></li>'
    )


def _plot(metrics: dict, score: str) -> str:
    """Dot plot of one score: the run, the controls and baselines that have it, and chance as a dashed line."""
    real, kind = metrics["scores"][score], metrics["verdict"]["class"]
    others = metrics["controls"] | metrics["baselines"]
    rows = {ROWS.get(name, name): table[score] for name, table in others.items() if score in table}
    highest = max(entry["ci95"][1] for entry in (real, *rows.values()))
    top = next(t for t in (0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0) if t >= min(highest, 1.0))
    ticks = "".join(
        f'<text x="{share}%" y="1em" text-anchor="{anchor}">{share * top:g} %</text>'
        for share, anchor in ((0, "start"), (50, "middle"), (100, "end"))
    )
    warning = " Time can explain this score." if kind == "explained_by_time" else ""
    return (
        f'<figure class="plot {kind}"><figcaption><strong>{escape(_name(score))}</strong><br>Share of hits, mean over '
        f"{real['n']} {real['unit']}s with 95 % interval; the dashed line is chance, {_percent(real['chance'])}."
        f"{warning}</figcaption><ul>{_plot_row(_title(metrics), real, top, 'real')}"
        + "".join(_plot_row(label, entry, top) for label, entry in rows.items())
        + f'<li class="axis" aria-hidden="true"><span></span><svg>{ticks}</svg><span></span></li></ul></figure>'
    )


def _table(metrics: dict) -> str:
    """All scores: the run and its interval, chance, every control, marked where the run does not beat it."""
    controls, eeg = metrics["controls"], _eeg(metrics)
    names = ["Score", _title(metrics), "Chance", *(ROWS.get(name, name) for name in controls), "n"]
    rows = []
    for score, real in metrics["scores"].items():
        cells = [f"{_percent(real['value'])}<small>{_interval(real)}</small>", _percent(real["chance"])]
        for table in controls.values():
            entry = table[score]
            beaten = "" if entry["p_real_above"] < ALPHA else "not beaten"
            cells.append(f"{_percent(entry['value'])}<small>{beaten}</small>")
        cells.append(f"{real['n']} {real['unit']}s")
        row = "".join(f"<td>{cell}</td>" for cell in cells)
        rows.append(f'<tr><th scope="row">{escape(_name(score))}</th>{row}</tr>')
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
    note = (
        "All scores with 95 % intervals. Controls use the first picture of each trial, with the same seeds; “not "
        f"beaten”: the first picture from {eeg} does not exceed it with p below {ALPHA}."
    )
    if metrics["verdict"]["class"] == "explained_by_time":
        note += " Time can explain every score here but those within a class."
    return (
        '<div class="scroll" role="region" aria-label="All scores" tabindex="0"><table>'
        f"<caption><span>{note}</span></caption><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def scores_html(metrics: dict) -> str:
    """Plots of the deciding score and of the one that the linear baseline has too, then the table."""
    shown = dict.fromkeys((metrics["verdict"]["score"], "class_accuracy"))
    plots = "".join(_plot(metrics, score) for score in shown if score in metrics["scores"])
    return plots + _table(metrics)
