"""The page of an evaluation: index.html, one file, from metrics.json, trials.csv and samples/ alone.

It says first what may be concluded, then the scores beside chance and controls, then shows every picture beside its
truth. Nothing is fetched: thumbnails are embedded and link to their PNGs; a policy in the head forbids the rest.
"""

import base64
import io
import json
from html import escape
from pathlib import Path
from string import Template
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from evaluation.folder import count_samples, place, read_item_scores, read_trials
from evaluation.page.tables import band, scores_html, uncontrolled, verdict_html, words
from runtime.checkpoints import write_bytes, write_text
from runtime.errors import UserError

LIMIT = 25_000_000  # bytes of one page; the pictures that do not fit go to further pages
THUMBNAIL = 192  # pixels


def _open(path: Path) -> Image.Image:
    try:
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except (OSError, SyntaxError) as error:
        raise UserError(f"{path}: missing or no whole picture ({error}); run the evaluation again") from error


def _thumbnail(path: Path) -> tuple[str, int, int]:
    """(data address, width, height) of a picture at most THUMBNAIL pixels a side, as PNG or JPEG: the smaller."""
    small = _open(path)
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    coded = []
    for kind, options in (("png", {"optimize": True}), ("jpeg", {"quality": 85})):
        small.save(buffer := io.BytesIO(), kind, **options)
        coded.append((len(buffer.getvalue()), kind, base64.b64encode(buffer.getvalue()).decode()))
    _, kind, code = min(coded)
    return f"data:image/{kind};base64,{code}", *small.size


class Gallery(NamedTuple):
    """What is shown of every trial."""

    folder: Path
    samples: int
    image_known: bool
    controls: list[str]
    rank: list[int]  # of every trial by the deciding score, 0 is best; empty without scores


def _picture(folder: Path, name: str, caption: str, alt: str, kind: str) -> str:
    data, width, height = _thumbnail(folder / name)
    return (
        f'<figure class="{kind}"><a href="{name}"><img src="{data}" width="{width}" height="{height}" '
        f'loading="lazy" alt="{escape(alt)}"></a><figcaption>{escape(caption)}</figcaption></figure>'
    )


def _trial(gallery: Gallery, row: dict) -> str:
    """One trial: the truth, if known, beside its pictures, what the classifier saw in each, and the controls'."""
    kind, i = escape(row["class_name"]), int(row["trial"])
    shown = [(f"samples/test{i}-0.png", "shown", f"shown: {row['class_name']}", "truth")] * gallery.image_known
    for k in range(1, gallery.samples + 1):
        seen = row[f"seen_{k}"]
        alt = f"picture {k} from EEG" + (f"; the classifier sees: {seen}" if seen else "")
        shown.append((f"samples/test{i}-{k}.png", seen, alt, "same" * (seen == row["class_name"])))
    for run in gallery.controls:
        name = words()["rows"].get(run, run)
        shown.append((f"controls/{run}/test{i}-1.png", name, f"control: {name}", "control"))
    figures = "".join(_picture(gallery.folder, file, about, f"Trial {i}, {alt}", c) for file, about, alt, c in shown)
    rank = f' style="--rank: {gallery.rank[i]}"' if gallery.rank else ""
    return f'<li{rank}><h4>{kind} <span>trial {i}</span></h4><div class="strip">{figures}</div></li>'


def _extremes(items: list[str], rank: list[int], count: int) -> str:
    """Best, median and worst trials by the deciding score, equally many of each."""
    order, n = np.argsort(rank), min(4, len(rank) // 3)
    lists = ""
    for name, start in {"Best": 0, "Median": (len(order) - n) // 2, "Worst": len(order) - n}.items():
        cards = "".join(items[i] for i in order[start : start + n])
        lists += f'<div><h3>{name}</h3><ul class="trials">{cards}</ul></div>'
    return f'<div class="extremes" style="--count: {count}">{lists}</div>' if n else ""


def _contact(gallery: Gallery, trials: list[dict], metrics: dict) -> None:
    """Write contact.png: a few trials evenly spaced over the split, a row each, with what it is written inside."""
    side, gap, left, font = 128, 12, 200, ImageFont.load_default(18)
    rows = [trials[i * len(trials) // min(6, len(trials))] for i in range(min(6, len(trials)))]
    columns = range(0 if gallery.image_known else 1, gallery.samples + 1)
    sheet = Image.new("RGB", (left + len(columns) * (side + gap) + gap, 80 + len(rows) * (side + gap)), "white")
    pen = ImageDraw.Draw(sheet)
    found = words()["verdict"][metrics["verdict"]["class"]].lower()
    warning = "SIMULATED EEG. " if metrics["run"].get("simulated") else ""
    pen.text((gap, gap), f"{warning}Class from EEG: {found}", "black", font)
    pen.text((left, 48), "shown" if gallery.image_known else "", "black", font)
    pen.text((left + gallery.image_known * (side + gap), 48), "made from EEG", "black", font)
    for row, trial in enumerate(rows):
        top = 76 + row * (side + gap)
        pen.text((gap, top + side // 2 - 10), trial["class_name"][:20], "black", font)
        for column, k in enumerate(columns):
            picture = _open(gallery.folder / f"samples/test{int(trial['trial'])}-{k}.png").resize((side, side))
            sheet.paste(picture, (left + column * (side + gap), top))
    sheet.save(buffer := io.BytesIO(), "PNG")
    write_bytes(gallery.folder / "contact.png", buffer.getvalue())


def _values(value: object) -> str:
    """Any plain value of the run record as text or as a nested list of definitions."""
    if isinstance(value, dict):
        return "<dl>" + "".join(f"<dt>{escape(str(k))}</dt><dd>{_values(v)}</dd>" for k, v in value.items()) + "</dl>"
    if isinstance(value, (list, tuple)):
        return ", ".join(_values(v) for v in value) or "none"
    return escape({"None": "none", "True": "yes", "False": "no"}.get(str(value), str(value)))


def _facts(run: dict) -> str:
    """What was scored, in a line above the scores: when the split was opened, band, commit."""
    split = run.get("split")
    opened = split.get("opened_at") if isinstance(split, dict) else None
    facts = {"Test split opened": opened, "band": band(run), "commit": run.get("commit")}
    return "; ".join(f"{name}: {escape(str(value or 'not recorded'))}" for name, value in facts.items())


def _record(run: dict) -> str:
    """How it was made: the split that was opened first, then everything else the run wrote down."""
    config, rest = run.get("config", {}), {k: v for k, v in run.items() if k not in ("config", "split")}
    return (
        f'<h2 id="record">How it was made</h2><h3>The split that was opened</h3>'
        f"{_values(run.get('split', 'not recorded'))}<h3>The run</h3>{_values(rest)}"
        f"<details><summary>Configuration, {len(config)} fields</summary>{_values(config)}</details>"
    )


def _pages(fixed: int, items: list[str], limit: int) -> list[list[str]]:
    """Share the trials out over pages of at most `limit` bytes, `fixed` of which are taken before the first picture."""
    pages, room = [[]], limit - fixed
    for item in items:
        size = len(item.encode())
        if size > room and pages[-1]:
            pages.append([])
            room = limit - fixed
        pages[-1].append(item)
        room -= size
    return pages


def _gallery(gallery: Gallery, items: list[str], page: int, pages: int, total: int, extremes: str = "") -> str:
    """The pictures of one page, with links to the other pages."""
    what = "The picture shown, then those made from the EEG" if gallery.image_known else "Pictures made from the EEG"
    links = "".join(
        f'<a href="{_file(p)}"{" aria-current=page" if p == page else ""}>Pictures {p + 1}</a>' for p in range(pages)
    )
    choices = "".join(
        f'<label><input type="radio" name="order" id="{key}"{" checked" if key == "file" else ""}> {about}</label>'
        for key, about in (("file", "as in the split"), ("best", "best first"), ("worst", "worst first"))
    )
    count = min(gallery.samples + gallery.image_known + len(gallery.controls), 8)
    return (
        f'<h2 id="pictures">Pictures</h2><p class="soft">{what}, captioned with the class that the classifier sees in '
        "each; bold where it is the class shown. Dashed, if any: what controls made, from the seed of the first "
        f'picture. All {total} trials. <a href="contact.png">A sheet of some of them</a>, evenly spaced.</p>'
        + (f'<nav aria-label="Pages of pictures">{links}</nav>' if pages > 1 else "")
        + f"{extremes}<h3>All trials</h3>"
        + (f'<fieldset class="order"><legend>Order of this page</legend>{choices}</fieldset>' if gallery.rank else "")
        + f'<ul class="trials{" many" if count > 4 else ""}" style="--count: {count}">{"".join(items)}</ul>'
    )


def _file(page: int) -> str:
    return "index.html" if page == 0 else f"pictures-{page + 1}.html"


def write_page(folder: str | Path, limit: int = LIMIT) -> Path:
    """Write index.html, and pictures-2.html ... where the thumbnails would make it larger than `limit` bytes.

    Args:
        folder: an evaluation folder (files in `eval_folder`) that has its metrics.json.

    Returns:
        the path of index.html.

    Raises:
        UserError: a file or picture is missing or half written.
    """
    folder, here = Path(folder), Path(__file__)
    if not (folder / "metrics.json").is_file():
        raise UserError(f"{folder / 'metrics.json'}: not found; expected a folder written by gen_eval_eeg.py")
    metrics, trials = json.loads((folder / "metrics.json").read_text()), read_trials(folder)
    run, known = metrics["run"], metrics["run"].get("image_known", True)
    values = np.array(read_item_scores(folder, metrics["verdict"]["score"]))
    rank = np.argsort(np.argsort(-np.nan_to_num(values, nan=-1), kind="stable")).tolist()
    controls = [name for name in words()["rows"] if name in metrics["controls"] and place(folder, name).is_dir()]
    gallery = Gallery(folder, count_samples(place(folder, "real")), known, controls, rank)
    _contact(gallery, trials, metrics)
    items = [_trial(gallery, row) for row in trials]
    extremes = _extremes(items, rank, min(gallery.samples + known + len(controls), 4)) if rank else ""
    title = f"Pictures from EEG: {run.get('name', folder.name)}{uncontrolled(metrics)}"
    verdict = verdict_html(metrics)
    top = f'<h2 id="scores">Scores</h2><p class="soft">{_facts(run)}.</p>{scores_html(metrics, trials, values)}'
    links = {"verdict": "Verdict", "scores": "Scores", "pictures": "Pictures", "record": "How it was made"}
    template = Template(here.with_suffix(".html").read_text())
    fixed = {
        "style": here.with_suffix(".css").read_text(),
        "banner": f'<p class="simulated">{words()["banner"]["simulated"]}</p>' if run.get("simulated") else "",
    }

    def document(page: int, pages: int, shown: list[str]) -> str:
        pictures = _gallery(gallery, shown, page, pages, len(trials), "" if page else extremes)
        if page:
            parts = {"ways": '<a href="index.html">Verdict and scores</a>', "body": verdict + pictures}
        else:
            ways = "".join(f'<a href="#{to}">{name}</a>' for to, name in links.items())
            parts = {"ways": ways, "body": verdict + top + pictures + _record(run)}
        return template.substitute(fixed, title=escape(f"{title}, pictures {page + 1}" if page else title), **parts)

    pages = _pages(len(document(0, 99, []).encode()), items, limit)
    for old in folder.glob("pictures-*.html"):
        old.unlink()
    for page, shown in enumerate(pages):
        write_text(folder / _file(page), document(page, len(pages), shown))
    return folder / "index.html"
