"""The page as a reader and as a browser get it: whole, escaped, without a network, honest at first sight."""

import base64
import csv
import io
import json
import shutil
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pytest
from made_up_eval import make_folder
from PIL import Image
from safetensors.numpy import load_file, save_file

from evaluation.page.page import write_page
from evaluation.page.tables import table
from evaluation.scores import write_metrics
from runtime.errors import UserError

VOID = {"meta", "img", "line", "circle", "br", "input"}
SHOWN = 3 + 2  # truth, two pictures, two controls
ATTRIBUTES = set(
    "lang charset name content http-equiv class href aria-label aria-labelledby aria-hidden id x1 x2 y1 y2 cx cy r x y "
    "dy text-anchor open scope tabindex role data-label src width height loading alt type checked style".split()
)
FIRST = 3 * 4 * 3  # at the top: four best, median and worst trials, without their controls


class Page(HTMLParser):
    """Tags with their attributes, the text, and whether every tag was closed in order."""

    def __init__(self, path):
        super().__init__()
        self.open, self.tags, self.words, self.html = [], [], [], path.read_text()
        self.feed(self.html)
        assert self.open == []
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("eval"))


@pytest.fixture(scope="module")
def page(folder):
    return Page(write_page(folder))


def test_pictures_are_embedded_described_and_linked(page, folder):
    images = page.all("img")
    assert len(images) == 48 * SHOWN + FIRST and all(image["alt"] for image in images)
    for image in images:
        content = base64.b64decode(image["src"].partition("base64,")[2])
        with Image.open(io.BytesIO(content)) as picture:
            assert picture.size == (int(image["width"]), int(image["height"])) and max(picture.size) <= 192
    links = [a["href"] for a in page.all("a")]
    assert sum(link.startswith("samples/") for link in links) == 48 * 3 + FIRST
    places = {attrs["id"] for _, attrs in page.tags if "id" in attrs}
    for link in links:
        assert link[1:] in places if link.startswith("#") else (folder / link).is_file()


def test_large_pictures_are_made_small(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    Image.effect_noise((512, 256), 90).convert("RGB").save(copy / "samples/test0-1.png")
    image = next(i for i in Page(write_page(copy)).all("img") if i["alt"].startswith("Trial 0, picture 1"))
    assert (image["width"], image["height"]) == ("192", "96") and len(image["src"]) < 40_000


def test_nothing_is_fetched(page):
    addresses = [v for _, attrs in page.tags for k, v in attrs.items() if k in ("src", "href", "action", "srcset")]
    assert not [a for a in addresses if ":" in a and not a.startswith("data:image/")]
    assert "url(" not in page.html and "@import" not in page.html
    assert not page.all("script") and not page.all("link")
    assert "default-src 'none'" in page.all("meta")[2]["content"]


def test_a_keyboard_and_a_screen_reader_find_their_way(page):
    assert page.all("html")[0]["lang"] == "en" and page.all("title") and page.all("main") and page.all("caption")
    assert page.all("a")[0]["href"] == "#main"
    levels = [int(tag[1]) for tag, _ in page.tags if tag in ("h1", "h2", "h3", "h4")]
    assert levels.count(1) == 1 and all(b - a <= 1 for a, b in pairwise(levels))
    assert all(cell.get("scope") for cell in page.all("th"))
    heads = {head.partition("<")[0] for head in page.html.split('<th scope="col">')[1:]}
    assert {cell["data-label"] for cell in page.all("td") if "data-label" in cell} <= heads - {"Score"}  # on a phone
    assert {i["type"] for i in page.all("input")} == {"radio"}  # sorted by arrow keys, without a script


def test_scores_stand_beside_chance_controls_and_baseline(page, folder):
    metrics = json.loads((folder / "metrics.json").read_text())
    for words in ("Chance", "Gaussian noise as EEG", "EEG of other trials", "Class prior", "Linear baseline (LDA)"):
        assert words in page.text
    for scores in (metrics["scores"], *metrics["controls"].values()):
        for entry in scores.values():
            assert f"{100 * entry['value']:.1f}\u00a0%" in page.html


def test_simulated_eeg_is_said_first_and_written_into_the_sheet(page, folder, tmp_path):
    assert page.text.index("SIMULATED EEG") < page.text.index("Pictures from EEG", 40)
    assert "The simulated EEG tells which class of picture was seen." in page.text
    assert page.text.count("would put the first picture from simulated EEG as far above") == 2
    real = make_folder(tmp_path / "real", simulated=False)
    assert "SIMULATED" not in Page(write_page(real)).text
    sheets = [Image.open(place / "contact.png").crop((0, 0, 400, 40)).tobytes() for place in (folder, real)]
    assert sheets[0] != sheets[1]


def test_a_block_design_never_looks_like_a_success(tmp_path):
    page = Page(write_page(make_folder(tmp_path / "block", hit=1.0, block=True)))
    assert page.text.index("This score can be explained by time") < page.text.index("10-way top-1")
    assert "tells which class of picture was seen" not in page.text
    assert not [attrs for _, attrs in page.tags if "supported" in attrs.get("class", "").split()]
    assert "names the class" in page.text
    assert page.text.count("Time can explain this score.") == 3  # at the first pictures and at two plots


EVIL = """</li><script>alert("x")</script> 'a' "b" &amp; {{ 7 * 7 }} {% raw %}
second line"""


def test_text_from_files_is_escaped(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    with open(copy / "trials.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    with open(copy / "trials.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows({k: EVIL if v == "kind 3" else v for k, v in row.items()} for row in rows)
    metrics = json.loads((copy / "metrics.json").read_text())
    entry = metrics["scores"]["10_way_top1"]
    metrics["run"] |= {"name": EVIL, EVIL: [EVIL, {EVIL: None}], "config": {"a": EVIL}, "split": {"opened_at": EVIL}}
    metrics["run"] |= {"band": EVIL, "commit": EVIL, "notes": [EVIL]}
    metrics["verdict"]["reasons"].append(EVIL)
    metrics["scores"][EVIL] = entry | {"unit": EVIL}
    metrics["controls"][EVIL] = {"10_way_top1": entry | {"note": EVIL}}
    metrics["baselines"][EVIL] = {"10_way_top1": entry}
    metrics["subjects"] = {EVIL: {"10_way_top1": entry}, "5": {}}
    metrics["verdict"]["score"] = "class_accuracy"
    metrics["subjects"]["5"] = metrics["subjects"][EVIL] = {"class_accuracy": entry}
    metrics["left_out"] = [EVIL]
    (copy / "metrics.json").write_text(json.dumps(metrics))
    page = Page(write_page(copy))
    assert not page.all("script") and "49" not in page.all("h1") and page.text.count(" ".join(EVIL.split())) >= 20
    assert [image for image in page.all("img") if EVIL in image["alt"]]
    assert {k for _, attrs in page.tags for k in attrs} <= ATTRIBUTES  # a quote opens none


def test_pictures_beyond_the_limit_go_to_linked_pages(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "pictures-99.html").write_text("left by a larger run")
    limit = 150_000
    first = Page(write_page(copy, limit))
    files = sorted(copy.glob("*.html"))
    assert len(files) > 2 and "pictures-99.html" not in [file.name for file in files]
    assert all(file.stat().st_size <= limit for file in files)
    pages = [Page(file) for file in files]
    shown = [image["alt"] for page in pages for image in page.all("img")]
    assert len(shown) == 48 * SHOWN + FIRST and len(set(shown)) == 48 * SHOWN
    for page in pages:
        assert {file.name for file in files} <= {a["href"] for a in page.all("a")}
        assert "SIMULATED EEG" in page.text
    assert "How it was made" in first.text
    places = {
        f"{file.name}#{li['id']}"
        for file, page in zip(files, pages, strict=True)
        for li in page.all("li")
        if "id" in li
    }
    links = [a["href"] for a in first.all("a") if "#trial-" in a["href"]]
    assert len(links) == 12 and {f"index.html{a}" if a[0] == "#" else a for a in links} <= places and len(places) == 48


def test_unknown_images_show_only_what_was_made(tmp_path):
    folder = make_folder(tmp_path / "blind")
    for i in range(48):
        (folder / f"samples/test{i}-0.png").unlink()
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["run"]["image_known"] = False
    (folder / "metrics.json").write_text(json.dumps(metrics))
    page = Page(write_page(folder))
    assert len(page.all("img")) == 48 * (SHOWN - 1) + 3 * 4 * 2 and "Among pictures of one class" not in page.text
    assert (
        "class shown: kind 2, trial" in page.text[: page.text.index("Test split opened")]
    )  # the class is known all the same


def damage(metrics: dict, *keys: str) -> None:
    *way, last = keys
    for key in way:
        metrics = metrics[key]
    del metrics[last]


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (["controls"], "lacks controls"),
        (["verdict", "design"], "lacks verdict.design"),
        (["verdict", "score"], "lacks verdict.score"),
        (["scores", "class_accuracy", "unit"], "lacks scores.class_accuracy.unit"),
        (["baselines", "lda", "class_accuracy", "ci95"], "lacks baselines.lda.class_accuracy.ci95"),
    ],
)
def test_scores_of_another_version_are_told(folder, tmp_path, keys, said):
    copy = shutil.copytree(folder, tmp_path / "copy")
    metrics = json.loads((copy / "metrics.json").read_text())
    damage(metrics, *keys)
    (copy / "metrics.json").write_text(json.dumps(metrics))
    with pytest.raises(UserError, match=f"{said}; found .* if another version of this code wrote it"):
        write_page(copy)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "cannot be read as a record of scores"),
        ('{"scores": ', "cannot be read as a record of scores"),
        ("[1, 2]", "the whole is"),
        ('{"scores": 1, "controls": 2, "baselines": 3, "verdict": 4, "run": 5}', "scores is 1"),
        (f'{{"run": {"[" * 30}{"]" * 30}}}', "holds values in more than 20 others"),
    ],
)
def test_a_damaged_record_is_told(folder, tmp_path, text, words):
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "metrics.json").write_text(text)
    with pytest.raises(UserError, match=f"metrics.json: {words}"):
        write_page(copy)


def test_records_before_and_after_the_power_of_tests_was_kept_both_open(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    metrics = json.loads((copy / "metrics.json").read_text())
    texts = []
    for power in (None, {"class": 1.0, "instance": None, "n": {"class": 48}, "alpha": 0.001, "from": "items"}):
        metrics["verdict"].pop("power", None)
        metrics["verdict"] |= {"power": power} if power else {}
        (copy / "metrics.json").write_text(json.dumps(metrics))
        texts.append(Page(write_page(copy)).text)
    assert texts[0] == texts[1]


@pytest.mark.parametrize("name", ["scores.csv", "trials.csv"])
def test_files_of_different_evaluations_are_refused(folder, tmp_path, name):
    copy = shutil.copytree(folder, tmp_path / "copy")
    lines = (copy / name).read_text().splitlines()
    keep = lines[:-1] if name == "scores.csv" else [line.rpartition(",")[0] for line in lines]
    (copy / name).write_text("\n".join(keep) + "\n")
    with pytest.raises(UserError, match="not of one evaluation"):
        write_page(copy)


@pytest.mark.parametrize("name", ["metrics.json", "trials.csv", "samples/test2-1.png"])
def test_a_missing_file_is_named(folder, tmp_path, name):
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / name).unlink()
    with pytest.raises(UserError, match=name.rpartition("/")[2]):
        write_page(copy)


def test_best_median_and_worst_have_equal_room(folder, page):
    with open(folder / "scores.csv", newline="") as file:
        score = [float(row["10_way_top1"]) for row in csv.DictReader(file)]
    start, end = page.html.index('class="extremes"'), page.html.index("All trials</h2>")
    trials = [int(part.partition("<")[0]) for part in page.html[start:end].split(">trial&nbsp;")[1:]]
    assert len(trials) == len(set(trials)) == 12
    best, median, worst = (np.mean([score[i] for i in trials[k : k + 4]]) for k in (0, 4, 8))
    ordered = np.sort(score)
    assert best == ordered[-4:].mean() and worst == ordered[:4].mean() and best >= median >= worst
    ranks = [int(li["style"].rpartition(":")[2]) for li in page.all("li") if "style" in li]
    assert sorted(ranks) == list(range(48))


def test_pictures_come_right_after_the_verdict_and_everything_else_after_the_scores(page):
    order = ["verdict", "pictures", "scores", "trials", "record"]
    heads = [attrs["id"] for tag, attrs in page.tags if tag == "h2"]
    assert heads == order and [a["href"] for a in page.all("a")][1:6] == [f"#{name}" for name in order]
    said = page.text[: page.text.index("Test split opened")]
    assert said.index("Best") < said.index("Median") < said.index("Worst") < said.index("of 48 trials by 10-way top-1")


def test_without_a_score_the_first_pictures_are_some_of_the_split(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "scores.csv").unlink()
    page = Page(write_page(copy))
    assert [page.text.index(name) for name in ("First", "Middle", "Last")] and not page.all("input")
    assert "of 48 trials; each stands below" in page.text and "by 10-way" not in page.text


def test_when_what_and_which_stand_above_the_scores(folder, page, tmp_path):
    assert "Test split opened: not recorded; band: not recorded; commit: not recorded" in page.text
    facts = {"split": {"opened_at": "2026-11-21T05:00:00"}, "band": [5, 95], "commit": "abc1234"}
    known = Page(write_page(make_folder(tmp_path / "known", **facts)))
    assert "Test split opened: 2026-11-21T05:00:00; band: 5 to 95 Hz; commit: abc1234" in known.text


def test_scores_by_class_and_by_distance_in_time(folder, page, tmp_path):
    assert "10-way top-1, classifier, by class" in page.text
    assert "by distance in time Not shown: the trials have no onsets" in page.text
    copy = shutil.copytree(folder, tmp_path / "copy")
    lines = (copy / "trials.csv").read_text().splitlines()
    rows = [lines[0] + ",gap"] + [f"{line},{i % 12}.5" for i, line in enumerate(lines[1:])]
    (copy / "trials.csv").write_text("\n".join(rows) + "\n")
    text = Page(write_page(copy)).text
    for told in ("by distance in time", "0.5 to 2.3 s (8)", "n 8", "seconds to the nearest training trial"):
        assert told in text


def test_a_table_without_controls_says_so(folder, tmp_path, page):
    assert "WITHOUT CONTROLS" not in page.text
    copy = shutil.copytree(folder, tmp_path / "copy")
    content = load_file(copy / "arrays.safetensors")
    save_file(
        {k: v for k, v in content.items() if not k.endswith("eeg.logits") and "_eeg." not in k},
        copy / "arrays.safetensors",
    )
    write_metrics(copy, {"simulated": True})
    bare = Page(write_page(copy))
    assert bare.text.index("WITHOUT CONTROLS (controls=none)") < bare.text.index("Verdict")
    assert "WITHOUT CONTROLS (controls=none)" in table(json.loads((copy / "metrics.json").read_text())).splitlines()[0]


def test_every_control_stands_with_its_test_and_ceilings_apart(folder, tmp_path, page):
    assert "p = 0.0001" in page.text and "What controls and baselines are" in page.text
    copy = shutil.copytree(folder, tmp_path / "copy")
    metrics = json.loads((copy / "metrics.json").read_text())
    for name in ("same_class_eeg", "true_class_name"):
        metrics["controls"][name] = {
            score: entry | {"p_real_above": 0.25} for score, entry in metrics["controls"]["gaussian_eeg"].items()
        }
    (copy / "metrics.json").write_text(json.dumps(metrics))
    text = Page(write_page(copy)).text
    assert text.index("Controls: they know nothing") < text.index("EEG of the same class p = 0.25")
    assert "not beaten, p = 0.25" in text and "Ceiling: true class by name p" not in text
    assert text.index("Ceilings and floor: pictures made without EEG") < text.index("Ceiling: true class by name")


def test_the_retrieval_baseline_stands_apart_from_controls_that_know_nothing(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    shutil.copytree(copy / "controls/gaussian_eeg", copy / "controls/nearest_training_picture")
    metrics = json.loads((copy / "metrics.json").read_text())
    scores = {name: entry | {"p_real_above": 0.5} for name, entry in metrics["controls"]["gaussian_eeg"].items()}
    metrics["controls"]["nearest_training_picture"] = scores
    (copy / "metrics.json").write_text(json.dumps(metrics))
    page = Page(write_page(copy))
    name = "Retrieval baseline: nearest training picture"
    assert (
        page.text.index("EEG of other trials p")
        < page.text.index("Retrieval: chosen by")
        < page.text.index(f"{name} p = 0.5")
    )
    assert (
        "nothing is generated" in page.text.lower()
        and "not beaten, p = 0.5" in page.text[page.text.index("Against further") :]
    )
    assert len([image for image in page.all("img") if image["alt"].endswith(f"control: {name}")]) == 48
    assert "10_way_top1: nearest_training_picture" in table(metrics)


def test_distances_and_scores_of_whole_sets_need_no_chance_and_no_interval(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    metrics = json.loads((copy / "metrics.json").read_text())
    lower = {"chance": None, "lower_better": True, "n": 48}
    metrics["scores"]["distance_lpips"] = lower | {
        "value": 0.4321, "ci95": [0.41, 0.45], "unit": "image", "first_sample": 0.44, "best_of_2_samples": 0.4,
    }  # fmt: skip
    metrics["scores"]["fid"] = lower | {"value": 88.12, "ci95": None, "unit": "picture", "first_sample": 95.2}
    metrics["controls"]["gaussian_eeg"]["fid"] = lower | {"value": 123.4, "ci95": None, "unit": "picture"}
    metrics["left_out"] = ["SwAV: left out, because no weights."]
    metrics["run"]["notes"] = ["Pictures by class name are left out."]
    (copy / "metrics.json").write_text(json.dumps(metrics))
    page = Page(write_page(copy))
    assert "0.432 0.41 to 0.45 none" in page.text and "95.2 all 48: 88.1 none 123" in page.text
    assert page.text.count("lower is better") == 2
    notes = page.text[page.text.index("What is left out") :]
    assert "SwAV: left out" in notes and "Pictures by class name" in notes
    lines = [line for line in table(metrics).splitlines() if line.startswith(("fid", "distance"))]
    assert len(lines) == 2 and all("lower is better" in line and "nan" not in line for line in lines)


def test_a_single_item_has_no_interval(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    metrics = json.loads((copy / "metrics.json").read_text())
    one = {"n": 1, "value": 0.3, "ci95": [0.3, 0.3]}
    metrics["scores"]["class_accuracy"] |= one
    (copy / "metrics.json").write_text(json.dumps(metrics))
    assert "30.0 % n = 1" in Page(write_page(copy)).text and "30.0 to 30.0" not in Page(write_page(copy)).text
    line = next(line for line in table(metrics).splitlines() if line.startswith("class_accuracy "))
    assert "n = 1" in line and "[" not in line


def test_the_band_stands_by_every_figure_and_table(tmp_path):
    folder = make_folder(tmp_path / "known", band="14_70")
    page = Page(write_page(folder))
    assert page.text.count("14 to 70 Hz") >= 4
    assert "EEG band 14 to 70 Hz" in table(json.loads((folder / "metrics.json").read_text()))
