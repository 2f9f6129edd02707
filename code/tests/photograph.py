"""Photographs of a page in headless Chromium: at the width of a desk and of a phone, light and dark.

python code/tests/photograph.py results/eval/miniature/index.html        # into results/eval/miniature/photographs

Nothing in a page runs: it is measured in a copy that has a script, and photographed as it is.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
QUIET = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
    --disable-component-update --disable-sync --hide-scrollbars""".split()
WIDTHS = (1280, 390)  # CSS pixels of a desk's window and of a phone
SCHEMES = {"light": 1, "dark": 0}
TALLEST = 30_000  # pixels of one photograph; a longer page is cut there
# A window of the browser is never narrower than 500 pixels, a frame in it may be; the two talk by messages alone
FRAME = """<!DOCTYPE html><iframe src="copy.html" width="{width}" height="900"></iframe>
<script>onmessage = said => { document.documentElement.dataset.measured = said.data }</script>"""
SCRIPT = """<script>addEventListener("load", () => {
  const page = document.documentElement
  parent.postMessage(page.scrollWidth + " " + page.scrollHeight, "*")
})</script>"""


def find_browser() -> str | None:
    """The program of the first of BROWSERS on PATH."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def browse(browser: str, page: Path, width: int, height: int, *words: str) -> str:
    """Open a page in a window of that size, with a profile of its own; returns what the browser prints.

    Raises RuntimeError if it fails, or takes more than two minutes.
    """
    with tempfile.TemporaryDirectory() as profile:
        command = [browser, *QUIET, f"--user-data-dir={profile}", f"--window-size={width},{height}", *words]
        try:
            done = subprocess.run(
                [*command, page.resolve().as_uri()], capture_output=True, text=True, timeout=120, check=True
            )
        except (OSError, subprocess.SubprocessError) as error:
            last = (getattr(error, "stderr", "") or str(error)).strip().splitlines()[-1:]
            raise RuntimeError(f"{browser} could not open {page}: {' '.join(last)}") from error
    return done.stdout


def measure(browser: str, page: Path, width: int) -> tuple[int, int]:
    """Width and height of a page's content where there is room for `width` CSS pixels."""
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text())
    with tempfile.TemporaryDirectory() as folder:
        frame = Path(folder) / "frame.html"
        frame.write_text(FRAME.replace("{width}", str(width)))
        (frame.parent / "copy.html").write_text(text.replace("</head>", SCRIPT + "</head>", 1))
        wait = "--virtual-time-budget=10000"  # milliseconds of the page's own clock, in which it loads
        size = re.search(r'data-measured="(\d+) (\d+)"', browse(browser, frame, 2 * width, 1000, wait, "--dump-dom"))
    if size is None:
        raise RuntimeError(f"{page}: {browser} did not measure it; is it a whole page, and is the browser Chromium?")
    return int(size[1]), int(size[2])


def photograph(browser: str, page: Path, out: Path) -> dict[int, int]:
    """Write <page>-<width>-<scheme>.png into `out`; returns the content's width at each of WIDTHS."""
    out.mkdir(parents=True, exist_ok=True)
    sizes = {width: measure(browser, page, width) for width in WIDTHS}
    for width, (_, high) in sizes.items():
        for scheme, number in SCHEMES.items():
            path = out / f"{page.stem}-{width}-{scheme}.png"
            look = (f"--blink-settings=preferredColorScheme={number}", f"--screenshot={path.resolve()}")
            browse(browser, page, width, min(high, TALLEST), *look)
    return {width: wide for width, (wide, _) in sizes.items()}


if __name__ == "__main__":
    file = Path(sys.argv[1])
    print(photograph(find_browser() or sys.exit("no Chromium on PATH"), file, file.parent / "photographs"))
