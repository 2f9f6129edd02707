"""Names and numbers of metrics.json as the pages say them: every function here is a filter of their templates.

Where plots draw a number is a share of an axis, so text keeps its size on a phone.
"""

import json
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path


@lru_cache(maxsize=1)
def words() -> dict[str, dict[str, str]]:
    """All names and sentences of the pages: `rows`, `scores`, `verdict`, `class`, `design`, `instance`, `about`."""
    return json.loads((Path(__file__).parent / "page.json").read_text())


def score_name(score: str) -> str:
    """What the pages call a score."""
    if "_way_top" in score:
        n, _, k = score.partition("_way_top")
        return f"{n}-way top-{k}, classifier"
    return words()["scores"].get(score, score.replace("_", " "))


def row_name(name: str) -> str:
    """What the pages call a control or baseline."""
    return words()["rows"].get(name, name.replace("_", " "))


def signals(run: dict) -> str:
    """What the pages call the EEG of a run."""
    return "simulated EEG" if run.get("simulated") else "EEG"


def band(run: dict) -> str:
    """The band of a run's EEG in words, such as "5 to 95 Hz"."""
    ends = run.get("band")
    ends = ends.split("_") if isinstance(ends, str) and "_" in ends else ends
    return f"{' to '.join(map(str, ends))} Hz" if isinstance(ends, list) else str(ends or "not recorded")


def uncontrolled(metrics: dict) -> str:
    """What every title says where no control with EEG was run."""
    controlled = set(metrics["controls"]) - {"class_prior", "nearest_training_picture"}
    return "" if controlled else ", WITHOUT CONTROLS (controls=none)"


def percent(value: float) -> str:
    """A share as text."""
    return f"{100 * value:.1f}\u00a0%"


def interval(ci95: list[float]) -> str:
    """The interval of a share as text, in percent."""
    low, high = ci95
    return f"{100 * low:.1f} to {100 * high:.1f}"


def points(value: float) -> str:
    """A difference of shares as text, in percentage points."""
    return f"{100 * value:+.1f}".replace("-", "−")


def amount(entry: dict, value: float | None) -> str:
    """A value of an entry of metrics.json as text: a share in percent, what has no chance level as a plain number."""
    if value is None:
        return ""
    return f"{value:.3g}" if entry["chance"] is None else percent(value)


def spread(entry: dict, key: str = "ci95") -> str:
    """An interval of an entry of metrics.json as text; empty where it has none. A single item tells of no spread."""
    if not entry.get(key):
        return ""
    if entry["n"] == 1:
        return "n = 1"
    low, high = entry[key]
    return f"{low:.3g} to {high:.3g}" if entry["chance"] is None else interval(entry[key])


def counted(entry: dict) -> str:
    """How many were scored, and what intervals resample."""
    if entry["unit"] == "recording":
        return f"{entry['n']} trials in {entry['recordings']} recordings"
    return f"{entry['n']} {entry['unit']}s"


def seconds(value: float) -> str:
    """A time as text, without its unit."""
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def axis_end(entries: Iterable[dict]) -> float:
    """Where an axis of shares ends that holds all intervals and chance levels."""
    highest = min(max(max(entry["ci95"][1], entry["chance"]) for entry in entries), 1.0)
    return next(end for end in (0.04, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0) if end >= highest)


def across(value: float, end: float) -> str:
    """Where a horizontal axis from 0 to `end` holds a share."""
    return f"{100 * min(value, end) / end:.2f}%"


def up(value: float, end: float) -> str:
    """Where a vertical axis from 0 to `end` holds a share, from the top, which is left free for n."""
    return f"{100 - 88 * min(value, end) / end:.2f}%"
