"""What the photographing script asks of a browser, which a small program stands in for here."""

import sys

import pytest

from commands import photograph_page
from runtime.errors import UserError

BROWSER = """#!{python}
import pathlib, sys, urllib.parse
words = dict(word.partition("=")[::2] for word in sys.argv[1:])
page = pathlib.Path(urllib.parse.unquote(sys.argv[-1].removeprefix("file://")))
if "--dump-dom" in words:
    assert "Security-Policy" not in (page.parent / "copy.html").read_text()
    assert 'width="390"' in page.read_text() or 'width="1280"' in page.read_text()
    print('<html data-measured="{wide} 43000"></html>')
else:
    pathlib.Path(words["--screenshot"]).write_text(words["--window-size"] + words["--blink-settings"][-1])
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "my run").mkdir()
    policy = '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'">'
    (tmp_path / "my run" / "index.html").write_text(f"<html><head>{policy}</head><body></body></html>")
    return tmp_path / "my run"


def stand_in(folder, wide):
    program = folder.parent / "browser"
    program.write_text(BROWSER.replace("{python}", sys.executable).replace("{wide}", str(wide)))
    program.chmod(0o755)
    return f"browser={program}"


def run(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["photograph_page.py", *map(str, words)])
    photograph_page.main()


def test_two_widths_light_and_dark_as_high_as_the_page_may_be(monkeypatch, capsys, folder, tmp_path):
    run(monkeypatch, folder, stand_in(folder, 390), f"out={tmp_path / 'there'}")
    made = {path.stem: path.read_text() for path in (tmp_path / "there").iterdir()}
    assert made == {
        f"index-{width}-{scheme}": f"{width},30000{number}"
        for width in (1280, 390) for scheme, number in (("light", 1), ("dark", 0))
    }  # fmt: skip
    assert "the first 30000 of its 43000 px" in capsys.readouterr().out


def test_a_page_that_scrolls_sideways_is_an_error(monkeypatch, folder):
    with pytest.raises(UserError, match="wider than the window by 22 px at 390 px"):
        run(monkeypatch, folder, stand_in(folder, 412))
    assert len(list((folder / "photographs").iterdir())) == 4


def test_without_a_browser_or_a_page_one_sentence_says_so(monkeypatch, folder, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="no browser found .*chromium.*set browser="):
        run(monkeypatch, folder)
    with pytest.raises(UserError, match="no browser found .*/nothing"):
        run(monkeypatch, folder, f"browser={tmp_path / 'nothing'}")
    with pytest.raises(UserError, match="index.html: no such page"):
        run(monkeypatch, tmp_path)
    with pytest.raises(UserError, match="did you mean browser"):
        run(monkeypatch, folder, "browsr=chromium")
    broken = folder.parent / "broken"
    broken.write_text("#!/bin/sh\necho cannot open display >&2\nexit 1\n")
    broken.chmod(0o755)
    with pytest.raises(UserError, match="could not open .*cannot open display"):
        run(monkeypatch, folder, f"browser={broken}")
