"""Figures of the pages, HTML with inline SVG: positions are shares of the width, so text keeps its size on a phone."""

from html import escape

TICKS = (0, 25, 50, 75, 100)  # in percent of an axis


def percent(value: float) -> str:
    """A share as text."""
    return f"{100 * value:.1f}\u00a0%"


def interval(ci95: list[float]) -> str:
    """The interval of a share as text, in percent."""
    low, high = ci95
    return f"{100 * low:.1f} to {100 * high:.1f}"


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


def _seconds(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def _top(entries: list[dict]) -> float:
    """Where an axis ends that holds all intervals and chance levels."""
    highest = min(max(max(entry["ci95"][1], entry["chance"]) for entry in entries), 1.0)
    return next(top for top in (0.04, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0) if top >= highest)


def _row(label: str, entry: dict, top: float, kind: str) -> str:
    values = (entry["value"], *entry["ci95"], entry["chance"])
    x, low, high, chance = (f"{100 * min(v, top) / top:.2f}%" for v in values)
    grid = "".join(f'<line class="grid" x1="{t}%" x2="{t}%" y1="0" y2="100%"/>' for t in TICKS)
    p = f" <small>p = {entry['p_real_above']:.2g}</small>" if "p_real_above" in entry else ""
    return (
        f'<li class="{kind}"><span>{escape(label)}{p}</span><svg aria-hidden="true">{grid}'
        f'<line class="bar" x1="0" x2="{x}" y1="50%" y2="50%"/>'
        f'<line class="chance" x1="{chance}" x2="{chance}" y1="0" y2="100%"/>'
        f'<line class="interval" x1="{low}" x2="{high}" y1="50%" y2="50%"/>'
        f'<circle class="dot" cx="{x}" cy="50%" r="6"/></svg>'
        f'<span class="number">{percent(entry["value"])} <small>{spread(entry)}</small></span></li>'
    )


def figure(title: str, about: str, rows: dict[str, dict], kind: str) -> str:
    """Dot plot of shares by their label, the first of them the run's; chance is a dashed line, the axis in percent.

    rows: entries of metrics.json; an empty one makes its label a heading.
    """
    top = _top([entry for entry in rows.values() if entry])
    lines = "".join(
        _row(label, entry, top, "" if n else "real") if entry else f'<li class="group">{escape(label)}</li>'
        for n, (label, entry) in enumerate(rows.items())
    )
    ticks = "".join(
        f'<text x="{t}%" y="1em" text-anchor="{ {0: "start", 100: "end"}.get(t, "middle") }">{t * top:g}</text>'
        for t in TICKS
    )
    return (
        f'<figure class="plot {kind}"><figcaption><strong>{escape(title)}</strong><br>{escape(about)}</figcaption>'
        f'<ul>{lines}<li class="axis" aria-hidden="true"><span>share of hits, %</span><svg>{ticks}</svg></li></ul>'
        "</figure>"
    )


def columns(title: str, about: str, edges: list[float], entries: list[dict], across: str) -> str:
    """Shares in neighbouring bins: bin k lies between edges k and k + 1, all drawn equally wide, with n above it.

    across: what the edges, in seconds, measure.
    """
    top, wide = _top(entries), 100 / len(entries)

    def height(value: float) -> str:
        return f"{100 - 88 * min(value, top) / top:.2f}%"  # the rest is room for n

    ticks = {f"{t * top:g}": height(t * top / 100) for t in TICKS}
    grid = "".join(f'<line class="grid" x1="0" x2="100%" y1="{y}" y2="{y}"/>' for y in ticks.values())
    up = "".join(f'<text x="100%" y="{y}" dy="0.35em" text-anchor="end">{name}</text>' for name, y in ticks.items())
    marks, told = "", ""
    for k, (entry, low, high) in enumerate(zip(entries, edges[:-1], edges[1:], strict=True)):
        x, (bottom, upper) = f"{(k + 0.5) * wide:.2f}%", entry["ci95"]
        marks += (
            f'<text x="{x}" y="1em" text-anchor="middle">n {entry["n"]}</text>'
            f'<line class="interval" x1="{x}" x2="{x}" y1="{height(bottom)}" y2="{height(upper)}"/>'
            f'<circle class="dot" cx="{x}" cy="{height(entry["value"])}" r="6"/>'
        )
        told += f"<li>{_seconds(low)} to {_seconds(high)} s ({entry['n']}): {percent(entry['value'])}</li>"
    chance = height(entries[0]["chance"])
    last = len(entries)
    along = "".join(
        f'<text x="{k * wide:.2f}%" y="1em" text-anchor="{ {0: "start", last: "end"}.get(k, "middle") }">'
        f"{_seconds(edge)}</text>"
        for k, edge in enumerate(edges)
    )
    return (
        f'<figure class="plot columns"><figcaption><strong>{escape(title)}</strong><br>{escape(about)}</figcaption>'
        f'<ul class="away">{told}</ul><div class="frame" aria-hidden="true"><span class="unit">share of hits, %</span>'
        f'<svg class="up">{up}</svg><svg class="field">{grid}'
        f'<line class="chance" x1="0" x2="100%" y1="{chance}" y2="{chance}"/>{marks}</svg>'
        f'<svg class="along">{along}</svg><span class="across">{escape(across)}</span></div></figure>'
    )
