"""The page and the CSV of a table of models: scores beside the paper's, and which differences are more than noise."""

import os
from html import escape
from pathlib import Path
from string import Template

import torch

from commands.ablation.results import ALPHA, CONTROLS, Difference, Result, deciding_score, differences, scores_csv
from commands.ablation.table import Table
from evaluation.page import tables
from evaluation.page.tables import figure, interval, percent, score_name, words
from runtime.checkpoints import write_text
from sc_mbm.mae_for_eeg import EEGEncoder
from training_inputs import ENCODER_SIZES

Found = dict[str, Difference | str]
MINIATURE = (
    "The EEG is simulated and the networks are small: these numbers concern the miniature world alone. They neither "
    "confirm nor contradict the paper’s."
)
ENOUGH_SEEDS = 3  # that an order of settings takes at least
FEW_SEEDS = (
    "Not every model shares {enough} seeds or more with “{reference}”: the fewest are {fewest}. Here another training "
    "can differ by more than all intervals: the same settings and seed on another number of threads have. So "
    "“resolved” is said of these networks; to order the settings, train with seeds=1,2,3 or more."
)
NOISE = (
    "An order of rows is noise where their difference is not resolved. It is resolved if, over the same {n} trials, "
    "the mean difference in the first score has p below {alpha:g} (signs flipped, two-sided, multiplied by {compared}, "
    "the number of comparisons){agree}."
)
SCORES = (
    "Intervals are 95 %, over trials, of the mean over seeds. Differences are percentage points over the same trials. "
    "Controls are of the first score and share its pictures’ seeds. An empty cell is unknown or was not run."
)


def write_results(folder: Path, table: Table, results: dict[str, Result]) -> Path:
    """Write index.html and scores.csv; returns the page's path."""
    score = deciding_score(results)
    found = differences(results, table.reference, score)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "scores.csv", scores_csv(results, found, score))
    runs = [m["run"] for r in results.values() for m in r.metrics.values()]
    banner = (
        f'<p class="simulated">{words()["banner"]["simulated"]}</p>' if any(r.get("simulated") for r in runs) else ""
    )
    body = _verdict(table, results, found, score)
    body += '<h2 id="scores">Scores</h2>' + _figures(table, results, score) + _scores(table, results, found, score)
    body += '<h2 id="paper">What is compared</h2>' + "".join(f"<p>{escape(text)}</p>" for text in table.about)
    body += f'<h2 id="record">How it was made</h2>{_record(folder, results)}{_commands(table, results)}'
    links = {"verdict": "Verdict", "scores": "Scores", "paper": "What is compared", "record": "How it was made"}
    here = Path(tables.__file__)
    page = Template(here.with_name("page.html").read_text()).substitute(
        style=here.with_name("page.css").read_text(),
        banner=banner,
        title=escape(table.title),
        ways="".join(f'<a href="#{to}">{name}</a>' for to, name in links.items()),
        body=body,
    )
    write_text(folder / "index.html", page)
    return folder / "index.html"


def _verdict(table: Table, results: dict[str, Result], found: Found, score: str) -> str:
    """The first thing on the page: how many differences are more than noise, and of which world they speak."""
    metrics = [m for r in results.values() for m in r.metrics.values()]
    compared = {name: d for name, d in found.items() if isinstance(d, Difference)}
    resolved = sum(d.resolved for d in compared.values())
    fewest = min((d.seeds for d in compared.values()), default=0)
    body = [MINIATURE] if any(m["run"].get("simulated") for m in metrics) else []
    body += [words()["design"][design] for design in dict.fromkeys(m["verdict"]["design"] for m in metrics)]
    if compared:
        n = (results[table.reference].entry(score) or {})["n"]
        agree = " and all seeds agree on its sign" if fewest > 1 else ""
        if fewest == 1 < max(d.seeds for d in compared.values()):
            agree = " and, where both rows have more than one seed, all agree on its sign"
        body.append(NOISE.format(n=n, alpha=ALPHA, compared=len(found), agree=agree))
    few = bool(compared) and fewest < ENOUGH_SEEDS
    body += [FEW_SEEDS.format(enough=ENOUGH_SEEDS, reference=escape(table.reference), fewest=fewest)] if few else []
    told = {name: str(d) for name, d in found.items()}
    told |= {name: "; ".join(filter(None, (told.get(name), r.problem()))) for name, r in results.items() if r.problem()}
    rows = "".join(f"<li><strong>{escape(name)}</strong>: {escape(said)}</li>" for name, said in told.items())
    title = f"{resolved} of {len(compared)} models differ from “{table.reference}” by more than noise"
    if few:
        times = "One training of a model does" if fewest == 1 else "Two trainings of a model do"
        title += f" of the trials. {times} not order the settings."
    elif not compared:
        title = f"No model was compared with “{table.reference}”"
        title += "." if results[table.reference].entry(score) else ", which has no score."
    else:
        title += "."
    return (
        f'<section class="verdict nothing" aria-labelledby="verdict"><p class="label">{len(metrics)} runs scored</p>'
        f'<h2 id="verdict">{escape(title)}</h2>{"".join(f"<p>{text}</p>" for text in body)}'
        f"<details open><summary>Each model minus “{escape(table.reference)}”, in percentage points</summary>"
        f"<ul>{rows}</ul></details></section>"
    )


def _figures(table: Table, results: dict[str, Result], score: str) -> str:
    """Dot plots of both class scores, the reference first."""
    drawn = ""
    for name in dict.fromkeys((score, "class_accuracy")):
        order = [table.reference, *(row for row in results if row != table.reference)]
        rows = {row: e for row in order if (e := results[row].entry(name))}
        if rows:
            first = next(iter(rows.values()))
            about = (
                f"Share of hits, mean over {first['n']} {first['unit']}s and all seeds, with 95 % interval; the dashed "
                f"line is chance, {percent(first['chance'])}."
            )
            drawn += figure(score_name(name), about, rows, "even" if table.reference not in rows else "nothing")
    return drawn


def _scores(table: Table, results: dict[str, Result], found: Found, score: str) -> str:
    shown, rows = dict.fromkeys((score, "class_accuracy")), []
    for name, r in results.items():
        d = found.get(name, "")
        entries = [r.entry(wanted) for wanted in shown]
        rows.append([
            f'{escape(name)}<br><span class="soft">{escape(r.row.about)}</span>',
            *(_lines(percent(e["value"]), interval(e["ci95"])) if e else "" for e in entries),
            "" if r.row.paper is None else f"{r.row.paper:g}&nbsp;%",
            _lines(d.points, d.interval, d.found) if isinstance(d, Difference) else escape(d),
            *(_share(r.mean(score, "controls", control)) for control in CONTROLS),
            _share(r.mean("class_accuracy", "baselines", "lda")), ", ".join(r.each(score)),
            str(next((e["n"] for e in entries if e), "")),
        ])  # fmt: skip
    head = ["Model", *(score_name(name) for name in shown), "Paper, 50-way top-1", f"Minus “{table.reference}”"]
    head += [*(words()["rows"][control] for control in CONTROLS), "LDA on the EEG, class", "Each seed", "n"]
    return _table(SCORES, head, rows)


def _record(folder: Path, results: dict[str, Result]) -> str:
    """How each row was made."""
    rows = []
    for name, r in results.items():
        *first, second, third = r.jobs
        prefix, cfg = ("", first[0].cfg) if first else ("encoder_", second.cfg)
        sizes = {k: getattr(cfg, prefix + k) for k in ENCODER_SIZES if hasattr(cfg, prefix + k)}
        with torch.device("meta"):
            count = sum(parameter.numel() for parameter in EEGEncoder(**sizes).parameters())
        link, about = escape(os.path.relpath(third.folder / "index.html", folder)), escape(name)
        layers = f"{sizes['depth']} layer{'s' * (sizes['depth'] > 1)} of {sizes['embed_dim']}"
        pretraining = ["none"]
        if first:
            pretraining = [f"mask ratio {cfg.mask_ratio:g}", escape(first[0].name.split("-stage-a-")[-1])]
        rows.append([
            f'<a href="{link}">{about}</a>' if r.metrics else about, _lines(*pretraining),
            _lines(layers, f"{count / 1e6:.2f} M parameters"), f"{second.cfg.clip_weight:g}", second.cfg.finetune,
            escape(r.band()), escape(r.fact("commit")),
            _lines(*(f"{job.stage}&nbsp;{job.facts()['seconds']:.0f}&nbsp;s" for job in r.jobs if job.facts())),
        ])  # fmt: skip
    head = ["Model", "Pretraining", "Encoder", "Weight of the CLIP loss", "Fine-tuned", "Band", "Commit", "Time"]
    return _table("Names lead to a row’s own page. Rows with the same pretraining share its run.", head, rows)


def _commands(table: Table, results: dict[str, Result]) -> str:
    """The command lines of every row's first seed, and those that make the data."""
    lines = dict.fromkeys([*table.prepare, *(job.command for r in results.values() for job in r.jobs)])
    return f"<details><summary>Commands</summary><pre>{escape(chr(10).join(lines))}</pre></details>"


def _lines(first: str = "", *others: str) -> str:
    return first + "".join(f"<small>{other}</small>" for other in others)


def _share(value: float | None) -> str:
    return "" if value is None else percent(value)


def _table(caption: str, heads: list[str], rows: list[list[str]]) -> str:
    """Of cells in HTML; the first of a row names it. On a phone each row is a card, and cells carry their head."""
    columns = "".join(f'<th scope="col">{escape(head)}</th>' for head in heads)
    lines = ""
    for name, *cells in rows:
        named = zip(heads[1:], cells, strict=True)
        line = "".join(f'<td data-label="{escape(head)}">{cell}</td>' if cell else "<td></td>" for head, cell in named)
        lines += f'<tr><th scope="row">{name}</th>{line}</tr>'
    return (
        f'<div style="overflow-x: auto" tabindex="0" role="region" aria-label="{escape(caption)}"><table><caption>'
        f"<span>{caption}</span></caption><thead><tr>{columns}</tr></thead><tbody>{lines}</tbody></table></div>"
    )
