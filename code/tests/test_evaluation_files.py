"""An evaluation folder that is damaged, foreign or hostile: each file is right, or one sentence; many rows end soon."""

import csv
import json
import shutil
from collections import Counter
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from made_up_eval import CLEAN, make_arrays, make_folder
from safetensors.numpy import load_file, save_file

import evaluation.features as features_module
import evaluation.folder as folder_module
import evaluation.scores as scores_module
from evaluation import statistics
from evaluation.inputs import begin, same_trials
from evaluation.page import page as page_module
from evaluation.page.page import Thumbnail, write_page
from evaluation.page.tables import read_metrics, table
from evaluation.plain_files import read_run
from evaluation.scores import item_scores, left_out, write_metrics
from runtime.errors import UserError

N = 12
SAME = CLEAN["same_eeg"]["test"] | {"trials": 8}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("eval") / "whole", n=N)


@pytest.fixture
def copy(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "copy")


@pytest.fixture
def drawn_fast(monkeypatch):
    monkeypatch.setattr(page_module, "_thumbnail", lambda path: Thumbnail("data:image/png;base64,", 1, 1))
    monkeypatch.setattr(page_module, "_contact", lambda *_: None)


def edit(folder, **columns):
    """Set cells of trials.csv: a text sets all rows, a pair (row, text) one."""
    with open(folder / "trials.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for name, value in columns.items():
        for i, row in enumerate(rows):
            if isinstance(value, str) or value[0] == i:
                row[name] = value if isinstance(value, str) else value[1]
    with open(folder / "trials.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        ({"label": "x"}, "label of trial 0 is 'x', expected a whole number"),
        ({"label": (3, "1" + "0" * 30)}, "label of trial 3 is"),
        ({"label": (3, "-5")}, "label of trial 3 is '-5'"),
        ({"label": (3, "")}, "label is unknown of some trials alone"),
        ({"label": (3, "1")}, "label and class_index disagree"),
        ({"class_index": (3, "1")}, "label and class_index disagree"),
        ({"class_index": (3, "1.0")}, "class_index of trial 3 is '1.0'"),
        ({"class_index": (3, "٣")}, "class_index of trial 3"),
        ({"class_index": (3, "0_3")}, "class_index of trial 3"),
        ({"trial": "0"}, "expected trials 0, 1 ..., found"),
        ({"trial": "x"}, "trial of trial 0"),
        ({"position": (3, "2")}, "a position twice"),
        ({"onset": (3, "nan")}, "onset of trial 3 is 'nan', expected a number"),
        ({"onset": (3, "noon")}, "onset of trial 3"),
        ({"onset": (3, "1e999")}, "onset of trial 3"),
        ({"image": (3, "")}, "a trial has no image"),
        ({"class_name": (3, "x" * 5000)}, "class_name of trial 3 is .*, expected at most 1000 characters"),
        ({"seen_2": (3, "a\0")}, "zero byte"),
    ],
)
def test_a_cell_that_cannot_be_is_named(copy, cells, words):
    edit(copy, **cells)
    with pytest.raises(UserError, match=f"trials.csv: .*{words}.*run the evaluation again"):
        write_metrics(copy, {})


def test_a_class_beyond_the_classifiers_is_named(copy):
    with open(copy / "trials.csv", newline="") as file:
        last = [row["class_index"] == "5" for row in csv.DictReader(file)]
    for i in np.flatnonzero(last):
        edit(copy, class_index=(i, "99"))
    with pytest.raises(UserError, match="trials.csv: holds class_index 99, but real.logits has 10 classes"):
        write_metrics(copy, {})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: b"\xff\xfe" + text, "cannot be read as CSV in UTF-8"),
        (lambda text: text.replace(b",tape", b"", 1), "line 2 has 11 fields, the header 12"),
        (lambda text: text.replace(b"onset", b"label", 1), "two columns of one name"),
        (lambda text: text.replace(b"tape", b'"tape', 1), "cannot be read as CSV"),
        (lambda text: text.splitlines()[0] + b"\r\n", r"expected trials 0, 1 ..., found \[\]"),
    ],
)
def test_rows_that_are_no_table_are_named(copy, change, words):
    (copy / "trials.csv").write_bytes(change((copy / "trials.csv").read_bytes()))
    with pytest.raises(UserError, match=f"trials.csv: .*{words}"):
        write_metrics(copy, {})


def test_a_mark_at_the_beginning_and_more_columns_change_nothing(copy):
    plain = write_metrics(copy, {})
    edit(copy, class_name="<script>alert(1)</script>", comment="mine")
    (copy / "trials.csv").write_bytes(b"\xef\xbb\xbf" + (copy / "trials.csv").read_bytes() + b"\r\n")
    assert write_metrics(copy, {}) == plain


WRONG_ARRAYS = {
    "integers": (
        "real.logits",
        lambda a: a.astype(np.int32),
        "real.logits is of torch.int32, expected float32 or float64",
    ),
    "more classes": ("gaussian_eeg.logits", lambda a: a[..., :3], "logits has not the width of logits of .*logits, "),
    "fewer samples": ("real.features", lambda a: a[:, :1], "has not the pictures a trial of real of real"),
    "3-D": ("real.embedding", lambda a: a[:, None], "'real.embedding' of shape .*, which this version does not know"),
    "0-D": ("real.embedding", lambda a: a.sum(), "'real.embedding' of shape "),
    "empty": ("real.logits", lambda a: a[..., :0], "real.logits is empty or not finite"),
    "other images": ("real.alike_x", lambda _: np.zeros((N, 2, 99), np.float32), "with .99. images, .* names 12"),
    "a truth's embedding": ("truth.embedding", lambda _: np.zeros((N, 8), np.float32), "'truth.embedding' of shape"),
    "a truth's likeness": ("truth.alike_x", lambda _: np.zeros((N, N), np.float32), "'truth.alike_x' of shape"),
    "no field": ("real", lambda _: np.zeros(N), "'real' of shape"),
    "markup": ("<b>.logits", lambda _: np.zeros((N, 1, 10)), "'<b>.logits' of shape"),
    "other folder": ("../../x.logits", lambda _: np.zeros((N, 1, 10)), "'../../x.logits' of shape"),
    "no share": ("baseline.lda", lambda a: a * 5, "baseline.lda holds what is no share of 0 to 1"),
    "truth alone": ("real.logits", None, "holds logits of the pictures or of the truths alone"),
    "picture alone": ("truth.features", None, "holds features of the pictures or of the truths alone"),
}


@pytest.mark.parametrize("name", WRONG_ARRAYS)
def test_an_array_that_is_not_of_this_run_is_named(copy, name):
    key, change, words = WRONG_ARRAYS[name]
    arrays = load_file(copy / "arrays.safetensors")
    before = arrays.pop(key, None)
    arrays |= {} if change is None else {key: np.ascontiguousarray(change(before)).reshape(np.shape(change(before)))}
    save_file(arrays, copy / "arrays.safetensors")
    with pytest.raises(UserError, match=f"arrays.safetensors: .*{words}"):
        write_metrics(copy, {})


def test_arrays_and_pictures_must_be_of_as_many_trials_and_samples(copy):
    arrays = load_file(copy / "arrays.safetensors")
    save_file({k: v for k, v in arrays.items() if not k.startswith("truth")}, copy / "arrays.safetensors")
    with pytest.raises(UserError, match="holds no array of the truths, but .*test0-0.png is there"):
        write_metrics(copy, {})
    save_file(arrays, copy / "arrays.safetensors")
    for i in range(N):
        shutil.copy(copy / "samples/test0-1.png", copy / f"samples/test{i}-3.png")
    with pytest.raises(UserError, match="samples: holds 3 pictures a trial, arrays.safetensors tells of .2."):
        write_metrics(copy, {})


@pytest.mark.parametrize(
    ("run", "words"),
    [
        ({"n_way": "x"}, "run.n_way is 'x'"),
        ({"n_way": True}, "run.n_way is True"),
        ({"n_way": -5}, "run.n_way is -5, expected greater"),
        ({"design": "x"}, "run.design is 'x', expected a valid list"),
        ({"design": ["sorted", "x"]}, "run.design is 'sorted', expected one of random, block, unknown"),
        ({"design": ["leaking", "x"]}, "run.design is 'leaking', expected one of"),
        ({"split": {"shared": {"train/test": {"pictures": "many"}}}}, "run.split.shared.train/test.pictures is 'many'"),
        ({"split": {"same_eeg": {"test": SAME | {"repeated": 9}}}}, "run.split.same_eeg repeats more trials than"),
        ({"split": {"same_eeg": {"test": {"trials": 1}}}}, "lacks run.split.same_eeg.test."),
        ({"split": [1]}, r"run.split is \[1\]"),
        ({"split": {"shared": {"train/test": 1}}}, "run.split.shared.train/test is 1"),
        ({"control": "x"}, "run.control is 'x'"),
        ({"deep": json.loads("[" * 40 + "]" * 40)}, "holds values in more than 20 others"),
    ],
)
def test_a_record_of_a_run_with_wrong_types_is_named(tmp_path, run, words):
    (tmp_path / "metrics.json").write_text(json.dumps({"run": run}))
    with pytest.raises(UserError, match=f"metrics.json: {words}"):
        read_run(tmp_path)


def test_scores_that_are_no_numbers_are_named(copy):
    text = (copy / "scores.csv").read_text().splitlines()
    (copy / "scores.csv").write_text("\n".join([text[0], *(line.replace(",", ",x", 1) for line in text[1:])]))
    with pytest.raises(UserError, match="scores.csv: 10_way_top1 of trial 0 is 'x.*, expected a number"):
        write_page(copy)


def test_a_damaged_record_of_the_trials_is_one_sentence(tmp_path):
    test = SimpleNamespace(names=["a", "b"], eeg=torch.zeros(2, 3, 4))
    begin(tmp_path, test)
    assert same_trials(tmp_path, test)["names"] == ["a", "b"]
    for text in ("[]", '{"names": 3}'):
        (tmp_path / "begun.json").write_text(text)
        with pytest.raises(UserError, match="was begun with other trials; take another name=, or overwrite=true"):
            same_trials(tmp_path, test)
    (tmp_path / "begun.json").write_text("{")
    with pytest.raises(UserError, match="begun.json: cannot be read as .* take another name=, or overwrite=true"):
        begin(tmp_path, test)


# The page of a foreign record

HOSTILE = (
    '"><script>alert(1)</script><img src=x onerror=alert(2)><b id=x>',
    "' onmouseover='alert(1)' style='background:url(//x)' x='",
    "</style></title><meta http-equiv=refresh content='0;url=https://x.example'><base href=//x>",
    "{{ 7 * 7 }}{% raw %}<!-- --><![CDATA[</section><section class='verdict supported'>Supported",
    "javascript:alert(1)&quot;&#x22;&lt;script&gt;",
    "a\x1b[2J\x1b[31mverdict: class supported\u202eevil\u2066\r\nverdict: class supported",
)


class Shape(HTMLParser):
    """How often each element stands in a page, with the names of its attributes; and all values of attributes."""

    def __init__(self, path):
        super().__init__()
        self.elements, self.values = Counter(), []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        self.elements[tag, tuple(name for name, _ in attrs)] += 1
        self.values += attrs

    handle_startendtag = handle_starttag


def with_text(value, text, keep=()):
    """Every text in a value of JSON replaced, but under the keys `keep`; keys of `config` too."""
    if isinstance(value, dict):
        return {k: v if k in keep else with_text(v, text, keep) for k, v in value.items()}
    if isinstance(value, list):
        return [with_text(v, text, keep) for v in value]
    return text if isinstance(value, str) else value


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_of_a_record_becomes_markup(copy, drawn_fast, text):
    metrics = json.loads((copy / "metrics.json").read_text())
    metrics["run"] |= {"band": "x", "commit": "x", "notes": ["x", "x"], "control": {"about": "x"}, "config": {"x": "x"}}
    metrics["run"] |= {"design": ["random", "x"], "split": {"opened_at": "x", "x": ["x", {"x": "x"}]}}
    metrics["baselines"]["lda"]["class_accuracy"]["note"] = metrics["left_out"][0] = "x"
    metrics["left_out"] = metrics["left_out"][:1]
    shapes = []
    for said in ("x", text):
        foreign = with_text(metrics, said, ("class", "instance", "design", "score"))
        foreign["run"]["config"] = {said: said}
        (copy / "metrics.json").write_text(json.dumps(foreign))
        edit(copy, class_name=said, seen_1=said, seen_2=said, subject=said, recording=said)
        shapes.append(Shape(write_page(copy)))
    assert shapes[0].elements == shapes[1].elements
    for name, value in shapes[1].values:
        assert not name.startswith("on")
        assert name not in ("src", "href") or ":" not in value or value.startswith("data:image/")
        assert name != "style" or value.partition(":")[0] in ("--rank", "--count")
    html, terminal = (copy / "index.html").read_text(), table(read_metrics(copy))
    assert "default-src 'none'" in html and "base-uri 'none'; form-action 'none'" in html
    assert not set(html + terminal) & set("\x1b\u202e\u2066") and "\nverdict: class supported\n" not in terminal


@pytest.mark.parametrize("key", ["class", "instance", "design"])
@pytest.mark.parametrize("value", ["<b>supported</b>", "Supported", "", None, ["supported"], {"a": 1}, True])
def test_a_verdict_of_another_word_is_refused(copy, key, value):
    metrics = json.loads((copy / "metrics.json").read_text())
    metrics["verdict"][key] = value
    (copy / "metrics.json").write_text(json.dumps(metrics))
    with pytest.raises(UserError, match=f"metrics.json: verdict.{key} is "):
        write_page(copy)


def places(value, way=()):
    """The way to every part of a value of JSON."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    yield from ([] if not way else [way])
    for key, part in inside:
        yield from places(part, (*way, key))


def test_a_record_changed_at_random_is_a_page_or_one_sentence(copy, drawn_fast):
    content, random = (copy / "metrics.json").read_text(), np.random.default_rng(0)
    odd = [None, True, -1, 10**30, float("nan"), "", "x", [], [1], ["x", "y"], {}, {"x": 1}, [[[]]]]
    ways, refused = list(places(json.loads(content))), 0
    for way in (ways[i] for i in random.integers(0, len(ways), 120)):
        metrics = part = json.loads(content)
        for key in way[:-1]:
            part = part[key]
        part[way[-1]] = odd[random.integers(len(odd))]
        (copy / "metrics.json").write_text(json.dumps(metrics))
        try:
            write_page(copy)
            table(read_metrics(copy))
        except UserError:
            refused += 1
    assert 60 < refused < 120


def test_a_page_of_many_trials_shows_the_best_the_median_and_the_worst(copy, drawn_fast, monkeypatch):
    every = Shape(write_page(copy))
    monkeypatch.setattr(page_module, "MOST", 9)
    some = Shape(write_page(copy))
    assert [sum(n == "id" and v.startswith("trial-") for n, v in page.values) for page in (every, some)] == [N, 9]
    html = (copy / "index.html").read_text()
    assert "Best, median, worst: 9 of\n12 trials." in html and "All trials</h2>" not in html
    ids = {v for n, v in some.values if n == "id"}
    assert {v[1:] for n, v in some.values if n == "href" and v.startswith("#trial-")} <= ids


# Many rows


def test_intervals_and_tests_of_many_items_are_the_limit_of_draws(monkeypatch):
    random = np.random.default_rng(1)
    for values in (random.random(3000) < 0.004, random.random(3000), random.exponential(size=3000) ** 2):
        units = random.integers(0, 900, 3000)
        drawn = [statistics.bootstrap_interval(values), statistics.bootstrap_interval(values, units)]
        monkeypatch.setattr(statistics, "LARGE", 500)
        limit = [statistics.bootstrap_interval(values), statistics.bootstrap_interval(values, units)]
        monkeypatch.undo()
        for a, b in zip(drawn, limit, strict=True):
            assert np.allclose(a, b, atol=0.06 * (a[1] - a[0])) and a != b
    assert statistics._limit_interval(np.full(9, 0.25), np.ones(9)) == (0.25, 0.25)
    for mean in (0.0, 0.03, 0.2):
        difference = random.normal(mean, 1, 2000) * (random.random(2000) < 0.1)
        drawn = statistics.sign_flip_p(difference)
        monkeypatch.setattr(statistics, "LARGE", 100)
        assert statistics.sign_flip_p(difference) == pytest.approx(drawn, abs=0.02)
        monkeypatch.undo()


def test_how_many_are_drawn_at_once_changes_no_digit(monkeypatch):
    random = np.random.default_rng(2)
    values, units = random.random(300), random.integers(0, 40, 300)
    parts = [(random.random((12, 4)), np.arange(12) % 4), (random.random((3, 3)), np.arange(3))]

    def found():
        intervals = statistics.bootstrap_interval(values), statistics.bootstrap_interval(values, units)
        return *intervals, statistics.sign_flip_p(values - 0.48), statistics.within_class_p(parts)

    many = found()
    monkeypatch.setattr(statistics, "CELLS", 1000)
    assert found() == many


def test_pairs_beyond_the_limit_are_left_out_by_name(copy, monkeypatch):
    outcome, truth = make_arrays()
    for module in (folder_module, scores_module):
        monkeypatch.setattr(module, "PAIRS", N * N - 1)
    assert list(item_scores(outcome, truth)) == ["10_way_top1", "class_accuracy"]
    metrics = write_metrics(copy, {})
    assert not [name for name in metrics["scores"] if "two_way" in name or "retrieval" in name]
    assert f"{N} trials and {N} images make more than {N * N - 1} pairs" in metrics["left_out"][0]
    assert metrics["verdict"]["instance"] != "supported"
    with pytest.raises(UserError, match="nothing can be scored. .* make more than 143 pairs"):
        write_metrics(copy / "samples", {})
    arrays = {"real.logits": outcome.logits[:N], "truth.logits": truth.logits[:N]}
    assert list(write_metrics(copy / "samples", {}, more=arrays)["scores"]) == ["10_way_top1"]


def test_networks_look_at_more_pairs_than_the_limit_for_sets_alone(copy, monkeypatch):
    def see(pictures):
        return {name: pictures.flatten(1).float()[:, :2048].contiguous() for name in ("fid", "swav")}

    weights = SimpleNamespace(
        names=("fid", "swav"), left_out=lambda _: "left out", weights=lambda _: copy / "trials.csv", load=lambda *_: see
    )
    monkeypatch.setattr(features_module, "NETWORKS", [weights])
    for module in (folder_module, scores_module, features_module):
        monkeypatch.setattr(module, "PAIRS", N * N - 1)
    for folder, runs in ((copy, 3), (copy / "samples", 1)):
        more, _ = features_module.look(folder, "", "", "auto", copy, "cpu")
        assert (
            sorted(more)[-1] == "truth.fid" and len(more) == runs + 1 and {v.shape[-1] for v in more.values()} == {768}
        )
        monkeypatch.setattr("evaluation.fid.LEAST", {"fid": 99, "kid": 4})
        assert "kid" in write_metrics(folder, {}, more=more)["scores"]


@pytest.mark.parametrize("content", [b"", b"PK", b"\xff" * 40])
def test_a_damaged_file_of_arrays_is_named_when_networks_looked(copy, content):
    (copy / "arrays.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="arrays.safetensors: is truncated or no safetensors file .* run it again"):
        features_module.keep(copy, {})


def test_an_embedding_of_another_space_is_left_out_by_name(tmp_path):
    outcome, truth = make_arrays()
    other = outcome._replace(embedding=outcome.embedding[:, :5])
    assert not [name for name in item_scores(other, truth) if name.startswith("retrieval")]
    for run in (other, outcome._replace(embedding=None)):
        assert "no embedding of the EEG is in the space of this CLIP" in left_out(truth, run, tmp_path)[0]
