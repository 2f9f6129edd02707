"""Pages in a real browser: none scrolls sideways, at a desk or on a phone; and what the photographs are worth."""

import sys

import numpy as np
import pytest
from made_up_eval import make_folder
from photograph import SCHEMES, TALLEST, WIDTHS, browse, find_browser, measure, photograph
from PIL import Image

from commands import study_steps
from commands.ablation.page import write_results
from commands.ablation.results import Result
from commands.ablation.table import chain, read_table
from evaluation.page.page import write_page
from evaluation.page.tables import read_metrics

needs_browser = pytest.mark.skipif(find_browser() is None, reason="no Chromium on PATH")
BROWSER = """#!{python}
import pathlib, sys, urllib.parse
words = dict(word.partition("=")[::2] for word in sys.argv[1:])
page = pathlib.Path(urllib.parse.unquote(sys.argv[-1].removeprefix("file://")))
if "--dump-dom" in words:
    assert "Security-Policy" not in (page.parent / "copy.html").read_text()
    assert 'width="390"' in page.read_text() or 'width="1280"' in page.read_text()
    print('<html data-measured="412 43000"></html>')
else:
    pathlib.Path(words["--screenshot"]).write_text(words["--window-size"] + words["--blink-settings"][-1])
"""


@pytest.fixture
def page(tmp_path):
    """A page in a folder with a space in its name."""
    (tmp_path / "my run").mkdir()
    policy = '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'">'
    (tmp_path / "my run" / "index.html").write_text(f"<html><head>{policy}</head><body></body></html>")
    return tmp_path / "my run" / "index.html"


def program(folder, text):
    """A program that stands in for the browser."""
    path = folder / "browser"
    path.write_text(text.replace("{python}", sys.executable))
    path.chmod(0o755)
    return str(path)


def study(folder):
    """A page of the study of sampling steps, of made-up scores."""
    g = np.random.default_rng(0)
    found = {(s, n): g.random(60) for s in study_steps.NAMES for n in (5, 250)}
    rows = study_steps.study({k: {"n_way": v, "class_accuracy": v} for k, v in found.items()}, 50, 40)
    content = {"rows": rows, "simulated": True, "split": "val", "n": 60, "ways": 50, "kinds": 40, "notes": ["A note."]}
    path = folder / "study.html"
    path.write_text(study_steps.page(content | {"conclusion": study_steps.conclusion(rows)}))
    return path


def ablation(folder):
    """A page of our own table of models, two of which have made-up scores."""
    table, results = read_table("ablations", "miniature"), {}
    for name, row in table.rows.items():
        results[name] = Result(row)
        results[name].jobs = chain(["preset=miniature"], "made-up", row, "1", {}, {})
        if len(results) < 3:
            evaluation = make_folder(folder / name, hit=1 / len(results), n=12)
            results[name].metrics["1"], results[name].folders["1"] = read_metrics(evaluation), evaluation
    return write_results(folder / "table", table, results)


def results(folder):
    return write_page(make_folder(folder / "eval", n=12))


@needs_browser
@pytest.mark.parametrize("page_of", [results, study, ablation])
def test_pages_fit_a_desk_and_a_phone_light_and_dark(tmp_path, page_of):
    path = page_of(tmp_path)
    sizes = photograph(find_browser(), path, tmp_path / "there")
    assert sizes == {width: width for width in WIDTHS}  # nothing is wider than its window
    brightness = {}
    for width in WIDTHS:
        for scheme in SCHEMES:
            with Image.open(tmp_path / "there" / f"{path.stem}-{width}-{scheme}.png") as photo:
                assert photo.width == width and photo.height > 800
                brightness[width, scheme] = np.asarray(photo.convert("L")).mean()
        assert brightness[width, "light"] > 170 > 90 > brightness[width, "dark"]


@needs_browser
def test_a_page_that_scrolls_sideways_is_noticed(page):
    page.write_text('<html><head></head><body style="margin: 0"><p style="width: 412px">wide</p></body></html>')
    assert measure(find_browser(), page, 390)[0] == 412 and measure(find_browser(), page, 1280)[0] == 1280


def test_two_widths_light_and_dark_as_high_as_the_page_may_be(page, tmp_path):
    assert photograph(program(tmp_path, BROWSER), page, tmp_path / "there") == {1280: 412, 390: 412}
    photos = {path.stem: path.read_text() for path in (tmp_path / "there").iterdir()}
    looks = [(width, scheme) for width in WIDTHS for scheme in SCHEMES]
    assert photos == {f"index-{width}-{scheme}": f"{width},{TALLEST}{SCHEMES[scheme]}" for width, scheme in looks}


def test_a_browser_that_fails_or_measures_nothing_says_so(page, tmp_path, monkeypatch):
    with pytest.raises(RuntimeError, match="could not open .*cannot open display"):
        browse(program(tmp_path, "#!/bin/sh\necho cannot open display >&2\nexit 1\n"), page, 390, 900)
    with pytest.raises(RuntimeError, match="did not measure it"):
        measure(program(tmp_path, "#!/bin/sh\n"), page, 390)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_browser() is None
