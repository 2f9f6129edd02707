"""The page and the CSV of a table of models: scores beside the paper's, and which differences are more than noise."""

import os
from pathlib import Path
from typing import Any

import torch

from commands.ablation.results import ALPHA, CONTROLS, Difference, Result, deciding_score, differences, scores_csv
from commands.ablation.table import Table
from evaluation.page.tables import Plot, score_name, words
from evaluation.page.templates import render
from evaluation.page.text import percent
from runtime.atomic import write_text
from sc_mbm.mae_for_eeg import EEGEncoder
from training_inputs import ENCODER_SIZES

ENOUGH_SEEDS = 3  # that an order of settings takes at least


def write_results(folder: Path, table: Table, results: dict[str, Result]) -> Path:
    """Write index.html and scores.csv; returns the page's path."""
    score = deciding_score(results)
    compared = differences(results, table.reference, score)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "scores.csv", scores_csv(results, compared, score))
    scores = dict.fromkeys((score, "class_accuracy"))
    entries = {name: {row: result.entry(name) for row, result in results.items()} for name in scores}
    plots = [_plot(table.reference, name, rows) for name, rows in entries.items() if any(rows.values())]
    recipes = {name: _recipe(result, folder) for name, result in results.items()}
    page = render_page(table, results, compared, entries=entries, plots=plots, recipes=recipes)
    write_text(folder / "index.html", page)
    return folder / "index.html"


def render_page(table: Table, results: dict[str, Result], compared: dict[str, Difference | str], **more: Any) -> str:
    """ablation.html: first how many differences are more than noise, and of which world they speak.

    more: `entries` of metrics.json by score and row, `plots` of them, and `recipes`, how each row was made.
    """
    metrics = [m for result in results.values() for m in result.metrics.values()]
    outcomes = {name: [str(change)] for name, change in compared.items()}
    for name, result in results.items():
        outcomes.setdefault(name, []).extend(filter(None, [result.problem()]))
    facts = {
        "simulated": any(m["run"].get("simulated") for m in metrics),
        "designs": dict.fromkeys(m["verdict"]["design"] for m in metrics),
        "runs": len(metrics),
        "differences": [change for change in compared.values() if isinstance(change, Difference)],
        "outcomes": {name: "; ".join(parts) for name, parts in outcomes.items() if parts},
    }
    constants = {"enough": ENOUGH_SEEDS, "level": ALPHA, "controls": CONTROLS}
    return render("ablation.html", table=table, results=results, compared=compared, **facts, **constants, **more)


def _plot(reference: str, score: str, entries: dict[str, dict | None]) -> Plot:
    """Dot plot of a score that some row has, the reference first."""
    rows = {row: entry for row, entry in ({reference: None} | entries).items() if entry}
    first = next(iter(rows.values()))
    about = words()["about"]["models"].format(**first | {"chance": percent(first["chance"])})
    return Plot(score_name(score), about, rows, "nothing" if reference in rows else "even")


def _recipe(result: Result, folder: Path) -> dict:
    """How a row was made: settings of its stages, the encoder's size, times, its own page's address if any."""
    *first, second, third = result.jobs
    prefix, cfg = ("", first[0].cfg) if first else ("encoder_", second.cfg)
    sizes = {k: getattr(cfg, prefix + k) for k in ENCODER_SIZES if hasattr(cfg, prefix + k)}
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in EEGEncoder(**sizes).parameters())
    return {
        "pretraining": first[0].name.split("-stage-a-")[-1] if first else "",
        "mask_ratio": cfg.mask_ratio if first else None,
        "cfg": second.cfg,
        "sizes": sizes,
        "parameters": count,
        "times": [f"{job.stage}\u00a0{job.facts()['seconds']:.0f}\u00a0s" for job in result.jobs if job.facts()],
        "page": os.path.relpath(third.folder / "index.html", folder) if result.metrics else "",
    }
