"""Photographs of a page of results in a real browser: at the width of a desk and of a phone, light and dark.

python code/run.py photograph_page results/eval/miniature                # into results/eval/miniature/photographs
python code/run.py photograph_page results/ablations/miniature out=/tmp/look browser=/usr/bin/chromium

Nothing in the page runs: it is measured in a copy that has a script, and photographed as it is.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from config import from_cli, setting
from runtime.errors import UserError

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
QUIET = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
    --disable-component-update --disable-sync --hide-scrollbars""".split()
WIDTHS = (1280, 390)  # CSS pixels of a desk's window and of a phone
TALLEST = 30_000  # pixels of one photograph; a longer page is cut there, and it is said
# A window of the browser is never narrower than 500 pixels, a frame in it may be; the two talk by messages alone
FRAME = """<!DOCTYPE html><iframe src="copy.html" width="{width}" height="900"></iframe>
<script>onmessage = said => { document.documentElement.dataset.measured = said.data }</script>"""
SCRIPT = """<script>addEventListener("load", () => {
  const page = document.documentElement
  parent.postMessage(page.scrollWidth + " " + page.scrollHeight, "*")
})</script>"""


@dataclass
class PhotographConfig:
    """Photographs of a page in headless Chromium."""

    folder: str = setting("", "holds index.html; its name may also stand alone")
    out: str = setting("", "folder of the photographs; default: photographs in the page's own")
    page: str = setting("index.html", "which page of the folder")
    browser: str = setting("", "Chromium's program; default: the first found on PATH")


def arguments(words: Sequence[str]) -> PhotographConfig:
    """The settings of a command line whose first word may be the folder. Raises UserError."""
    first, *rest = words or ["--help"]
    bare = "=" not in first and not first.startswith("-")
    cfg = from_cli(PhotographConfig, [f"folder={first}", *rest] if bare else list(words or ["--help"]))
    if not (Path(cfg.folder) / cfg.page).is_file():
        raise UserError(f"{Path(cfg.folder) / cfg.page}: no such page; give the folder of an evaluation or a study")
    return cfg


def find_browser(given: str) -> str:
    """The browser's program: the one given, or the first of BROWSERS on PATH. Raises UserError if there is none."""
    found = next(filter(None, map(shutil.which, [given] if given else BROWSERS)), None)
    if found is None:
        where = given or " and ".join((", ".join(BROWSERS[:-1]), BROWSERS[-1]))
        raise UserError(f"no browser found ({where}): install Chromium from your distribution, or set browser=")
    return found


def browse(browser: str, page: Path, width: int, height: int, *words: str) -> str:
    """Open a page in a window of that size, with a profile of its own; returns what the browser prints.

    Raises UserError if it fails, or takes more than two minutes.
    """
    with tempfile.TemporaryDirectory() as profile:
        command = [browser, *QUIET, f"--user-data-dir={profile}", f"--window-size={width},{height}", *words]
        try:
            done = subprocess.run(
                [*command, page.resolve().as_uri()], capture_output=True, text=True, timeout=120, check=True
            )
        except (OSError, subprocess.SubprocessError) as error:
            said = (getattr(error, "stderr", "") or str(error)).strip().splitlines()[-1:]
            raise UserError(f"{browser} could not open {page}: {' '.join(said)}") from error
    return done.stdout


def measure(browser: str, page: Path, width: int) -> tuple[int, int]:
    """Width and height of a page's content where there is room for `width` CSS pixels. Raises UserError."""
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text())
    with tempfile.TemporaryDirectory() as place:
        frame = Path(place) / "frame.html"
        frame.write_text(FRAME.replace("{width}", str(width)))
        (frame.parent / "copy.html").write_text(text.replace("</head>", SCRIPT + "</head>", 1))
        wait = "--virtual-time-budget=10000"  # milliseconds of the page's own clock, in which it loads
        found = re.search(r'data-measured="(\d+) (\d+)"', browse(browser, frame, 2 * width, 1000, wait, "--dump-dom"))
    if found is None:
        raise UserError(f"{page}: {browser} did not measure it; is it a whole page, and is the browser Chromium?")
    wide, high = map(int, found.groups())
    return wide, high


def main() -> None:
    cfg = arguments(sys.argv[1:])
    browser, page = find_browser(cfg.browser), Path(cfg.folder) / cfg.page
    out = Path(cfg.out or Path(cfg.folder) / "photographs")
    out.mkdir(parents=True, exist_ok=True)
    too_wide = []
    for width in WIDTHS:
        wide, high = measure(browser, page, width)
        if wide > width:
            too_wide.append(f"{wide - width} px at {width} px")
        for scheme, number in {"light": 1, "dark": 0}.items():
            path = out / f"{page.stem}-{width}-{scheme}.png"
            look = (f"--blink-settings=preferredColorScheme={number}", f"--screenshot={path.resolve()}")
            browse(browser, page, width, min(high, TALLEST), *look)
            cut = f", the first {TALLEST} of its {high} px" * (high > TALLEST)
            print(f"{path}: {width} px wide{cut}")
    if too_wide:
        raise UserError(f"{page}: is wider than the window by {' and '.join(too_wide)}, so it scrolls sideways")
