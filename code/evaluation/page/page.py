"""The page of an evaluation: index.html, one file, from metrics.json, trials.csv and samples/ alone.

It says first what may be concluded, then shows a few pictures beside their truths, then the scores beside chance and
controls, then every picture. Nothing is fetched: thumbnails are embedded and link to their PNGs; a policy in the head
forbids the rest.
"""

import base64
import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from evaluation.folder import count_samples, run_folder
from evaluation.page.tables import read_metrics, scores, words
from evaluation.page.templates import macro, render
from evaluation.plain_files import read_item_scores, read_trials
from runtime.atomic import write_bytes, write_text
from runtime.errors import UserError
from runtime.pictures import load_image
from runtime.plain import visible

LIMIT = 25_000_000  # bytes of one page; the pictures that do not fit go to further pages
THUMBNAIL = 192  # pixels
MOST = 6000  # trials whose pictures are shown; of more, the best, median and worst


class Thumbnail(NamedTuple):
    """A small picture inside the page."""

    src: str  # data address
    width: int
    height: int


class Trial(NamedTuple):
    """What is shown of a trial."""

    number: int
    name: str  # of the class shown
    rank: int | None  # by the deciding score, 0 is best
    pictures: dict[int, Thumbnail]  # by sample; 0 is the truth
    seen: dict[int, str]  # by sample: class that the classifier sees
    controls: dict[str, Thumbnail]


def _thumbnail(path: Path) -> Thumbnail:
    """A picture at most THUMBNAIL pixels a side, as PNG or JPEG: the smaller."""
    small = load_image(path)
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    coded = []
    for kind, options in (("png", {"optimize": True}), ("jpeg", {"quality": 85})):
        small.save(buffer := io.BytesIO(), kind, **options)
        coded.append((len(buffer.getvalue()), kind, base64.b64encode(buffer.getvalue()).decode()))
    _, kind, code = min(coded)
    return Thumbnail(f"data:image/{kind};base64,{code}", *small.size)


def _extremes(rank: list[int], n: int, most: int) -> dict[str, list[int]]:
    """Numbers of the best, median and worst of n trials, at most so many of each, equally many; in their order where
    none has a rank."""
    order, few = np.argsort(rank).tolist() if rank else list(range(n)), min(most, n // 3)
    starts = (0, (n - few) // 2, n - few)
    heads = ("Best", "Median", "Worst") if rank else ("First", "Middle", "Last")
    return {head: order[start : start + few] for head, start in zip(heads, starts, strict=True)} if few else {}


def _contact(folder: Path, names: list[str], samples: range, metrics: dict) -> None:
    """Write contact.png: a few trials evenly spaced over the split, a row each, with what it is written inside."""
    side, gap, left, font = 128, 12, 200, ImageFont.load_default(18)
    rows = [i * len(names) // min(6, len(names)) for i in range(min(6, len(names)))]
    sheet = Image.new("RGB", (left + len(samples) * (side + gap) + gap, 80 + len(rows) * (side + gap)), "white")
    pen, known = ImageDraw.Draw(sheet), 0 in samples
    verdict = words()["verdict"][metrics["verdict"]["class"]].lower()
    warning = "SIMULATED EEG. " if metrics["run"].get("simulated") else ""
    pen.text((gap, gap), f"{warning}Class from EEG: {verdict}", "black", font)
    pen.text((left, 48), "shown" if known else "", "black", font)
    pen.text((left + known * (side + gap), 48), "made from EEG", "black", font)
    for row, trial in enumerate(rows):
        top = 76 + row * (side + gap)
        pen.text((gap, top + side // 2 - 10), visible(names[trial])[:20], "black", font)
        for column, k in enumerate(samples):
            picture = load_image(folder / f"samples/test{trial}-{k}.png").resize((side, side))
            sheet.paste(picture, (left + column * (side + gap), top))
    sheet.save(buffer := io.BytesIO(), "PNG")
    write_bytes(folder / "contact.png", buffer.getvalue())


def _share(fixed: int, items: list[str], limit: int) -> list[list[str]]:
    """The trials over pages of at most `limit` bytes, `fixed` of which are taken before the first picture."""
    pages, room = [[]], limit - fixed
    for item in items:
        size = len(item.encode())
        if size > room and pages[-1]:
            pages.append([])
            room = limit - fixed
        pages[-1].append(item)
        room -= size
    return pages


def write_page(folder: str | Path, limit: int = LIMIT) -> Path:
    """Write index.html, and pictures-2.html ... where the thumbnails would make it larger than `limit` bytes.

    Args:
        folder: an evaluation folder (files in `evaluation.folder`) that has its metrics.json.

    Returns:
        the path of index.html.

    Raises:
        UserError: a file or picture is missing, half written or of another version.
    """
    folder = Path(folder)
    metrics, trials = read_metrics(folder), read_trials(folder)
    known = metrics["run"].get("image_known", True)
    samples = range(0 if known else 1, count_samples(run_folder(folder, "real")) + 1)
    values, names = read_item_scores(folder, metrics["verdict"]["score"]), trials["class_name"]
    if len(values) not in (0, len(names)) or f"seen_{samples[-1]}" not in trials:
        raise UserError(f"{folder}: trials.csv, scores.csv and samples are not of one evaluation; run it again")
    rank = np.argsort(np.argsort(-np.nan_to_num(values, nan=-1), kind="stable")).tolist()
    controls = [name for name in words()["rows"] if name in metrics["controls"] and run_folder(folder, name).is_dir()]
    _contact(folder, names, samples, metrics)
    some = _extremes(rank, len(names), MOST // 3)
    shown = list(range(len(names))) if len(names) <= MOST else sorted(i for part in some.values() for i in part)

    def trial(i: int, samples: range, controls: list[str]) -> Trial:
        pictures = {k: _thumbnail(folder / f"samples/test{i}-{k}.png") for k in samples}
        others = {name: _thumbnail(run_folder(folder, name) / f"test{i}-1.png") for name in controls}
        seen = {k: trials[f"seen_{k}"][i] if k else "" for k in samples}
        return Trial(i, names[i], rank[i] if rank else None, pictures, seen, others)

    items = [macro("trial", trial(i, samples, controls)) for i in shown]
    few = {
        head: [trial(i, samples[:4], []) for i in part]
        for head, part in _extremes(rank, len(names), min(4, MOST // 3)).items()
    }
    gallery = {"known": known, "ranked": bool(rank), "trials": len(names), "pictures": len(samples) + len(controls)}
    gallery |= {"shown": len(shown), "heads": list(some)}
    both = {"metrics": metrics, "name": metrics["run"].get("name", folder.name), "gallery": gallery}
    both |= {"simulated": metrics["run"].get("simulated")}
    first = scores(metrics, trials, values) | {"extremes": few}

    def document(page: int, pages: list[list[str]]) -> str:
        files = ["index.html", *(f"pictures-{k}.html" for k in range(2, len(pages) + 1))]
        given = both | {"items": pages[page], "page": page, "files": files}
        if page:
            return render("pictures.html", **given)
        at = [f"{file if k else ''}#trial-" for k, file in enumerate(files) for _ in pages[k]]
        return render("results.html", **given, **first, at=dict(zip(shown, at, strict=True)))

    longest = [[], [""] * len(items), *[[]] * 97]  # as if all trials stood on another page, of which there are 99
    pages = _share(len(document(0, longest).encode()), items, limit)
    for old in folder.glob("pictures-*.html"):
        old.unlink()
    for page in range(len(pages)):
        write_text(folder / ("index.html" if page == 0 else f"pictures-{page + 1}.html"), document(page, pages))
    return folder / "index.html"
