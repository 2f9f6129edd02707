"""Scores against brute force, closed forms and other libraries; intervals and tests against their definition."""

import json
import shutil
from math import comb

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from made_up_eval import CLEAN, make_arrays, make_folder, pictures, random
from PIL import Image
from safetensors.numpy import load_file, save_file

import eval_metrics
from evaluation.folder import Outcome, Truth
from evaluation.n_way import n_way_accuracy
from evaluation.page.page import write_page
from evaluation.scores import item_scores, left_out, write_metrics
from evaluation.similarity import cosine, pearson, pixel_mse, ssim, wrapping_mse
from evaluation.statistics import ALPHA, bootstrap_interval, entry, sign_flip_p, within_class, within_class_p
from runtime.errors import UserError
from vision.networks import NETWORKS

# N-way accuracy


def test_n_way_is_the_mean_of_the_published_draws():
    """Spec 6.3 and 8.10: draw the distractors, compare, repeat; also with ties, which the draws break by a coin."""
    g = random()
    scores, true = np.round(g.normal(size=(4, 30)), 1), np.array([3, 7, 0, 29])
    for n_way, top_k in ((2, 1), (10, 1), (10, 3), (30, 2)):
        hits, draws = np.zeros(4), 20_000
        for i, c in enumerate(true):
            others = g.permuted(np.tile(np.delete(np.arange(30), c), (draws, 1)), axis=1)[:, : n_way - 1]
            coin = g.random((draws, n_way))
            drawn = scores[i, others]
            above = (drawn > scores[i, c]) | ((drawn == scores[i, c]) & (coin[:, 1:] > coin[:, :1]))
            hits[i] = (above.sum(1) < top_k).mean()
        exact = n_way_accuracy(scores, true, n_way, top_k)
        assert np.allclose(exact, hits, atol=5 * 0.5 / np.sqrt(draws))


def test_n_way_values_stated_in_the_spec():
    """r classes of 1000 above the true one, 50-way: 1.0, 0.951, 0.777, 0.492, 0.076, 0.005."""
    scores = np.arange(1000.0)[None]
    for r, expected in ((0, 1.0), (1, 0.951), (5, 0.777), (14, 0.492), (50, 0.076), (100, 0.005)):
        (value,) = n_way_accuracy(scores, np.array([999 - r]), 50)
        assert value == pytest.approx(expected, abs=6e-4)
        assert value == pytest.approx(comb(999 - r, 49) / comb(999, 49), rel=1e-12)


def test_n_way_over_all_classes_is_plain_top_k():
    scores, true = random().normal(size=(50, 12)).astype(np.float32), random(1).integers(0, 12, 50)
    order = (-scores).argsort(1)
    for k in (1, 3, 5):
        assert np.array_equal(n_way_accuracy(scores, true, 12, k), (order[:, :k] == true[:, None]).any(1))


SCORES = arrays(np.float64, (3, 7), elements=st.integers(-3, 3).map(float))


@settings(max_examples=60, deadline=None)
@given(SCORES, st.integers(2, 7), st.integers(1, 6))
def test_n_way_moves_the_right_way(scores, n_way, top_k):
    true, top_k = np.array([0, 3, 6]), min(top_k, n_way)
    value = n_way_accuracy(scores, true, n_way, top_k)
    assert ((value >= 0) & (value <= 1)).all()
    if top_k < n_way:
        assert (n_way_accuracy(scores, true, n_way, top_k + 1) >= value - 1e-12).all()
    if n_way < 7:
        assert (n_way_accuracy(scores, true, n_way + 1, top_k) <= value + 1e-12).all()
    raised = scores.copy()
    raised[np.arange(3), true] += 1
    assert (n_way_accuracy(raised, true, n_way, top_k) >= value - 1e-12).all()
    # Someone's class is the true one: over all classes the mean is chance, ties or not
    every = [n_way_accuracy(scores, np.full(3, c), n_way, top_k) for c in range(7)]
    assert np.allclose(np.mean(every, 0), top_k / n_way)


def test_n_way_keeps_the_kind_of_its_input_and_float64():
    scores = torch.randn(5, 9, generator=torch.Generator().manual_seed(0))
    value = n_way_accuracy(scores, torch.arange(5), 4)
    assert value.dtype == torch.float64 and value.shape == (5,)
    assert np.array_equal(n_way_accuracy(scores.numpy(), np.arange(5), 4), value.numpy())


@pytest.mark.parametrize(
    ("scores", "true", "n_way", "top_k", "words"),
    [
        (torch.zeros(2, 5, dtype=torch.float16), [0, 1], 2, 1, "half precision"),
        (torch.zeros(2, 5, dtype=torch.bfloat16), [0, 1], 2, 1, "half precision"),
        (np.array([[0.0, 1.0], [np.nan, 1.0]]), [0, 1], 2, 1, "NaN, first in row 1"),
        (np.zeros((2, 5)), [0, 1], 6, 1, "5 classes"),
        (np.zeros((2, 5)), [0, 1], 3, 4, "top_k=4"),
        (np.zeros((2, 5)), [0, 5], 3, 1, "0..4"),
        (np.zeros((2, 5)), [0, -1], 3, 1, "0..4"),
        (np.zeros((2, 5)), [0.0, 1.0], 3, 1, "integers"),
        (np.zeros((2, 5)), [0], 3, 1, "expected scores"),
    ],
)
def test_n_way_refuses_what_it_cannot_score(scores, true, n_way, top_k, words):
    with pytest.raises(UserError, match=words):
        n_way_accuracy(scores, np.array(true), n_way, top_k)


# Two-way identification and its similarities


def test_similarities_against_one_pair_at_a_time():
    skimage = pytest.importorskip("skimage.metrics")
    a, b = pictures(4), pictures(5, seed=7)
    b[0] = np.clip(a[1].astype(int) + 9, 0, 255)
    a[3], b[4] = 90, 210  # flat pictures: the luminance term alone
    mse, correlation, structure = pixel_mse(a, b), pearson(a[:3], b[:4]), ssim(a, b)
    for i in range(4):
        for j in range(5):
            x, y = a[i].astype(float), b[j].astype(float)
            assert mse[i, j] == pytest.approx(((x - y) ** 2).mean(), rel=1e-12)
            if i < 3 and j < 4:
                assert correlation[i, j] == pytest.approx(np.corrcoef(x.ravel(), y.ravel())[0, 1], abs=1e-12)
            options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
            oracle = skimage.structural_similarity(a[i], b[j], channel_axis=-1, **options)
            assert structure[i, j] == pytest.approx(oracle, abs=1e-5)


def test_pixel_error_does_not_wrap_as_the_published_one_did():
    black, bright = np.full((1, 8, 8, 3), 10, np.uint8), np.full((1, 8, 8, 3), 200, np.uint8)
    assert pixel_mse(black, bright)[0, 0] == 190**2
    assert wrapping_mse(black, bright)[0, 0] == 4  # 190 squared, modulo 256


def test_the_wrapping_error_is_the_published_one():
    a, b = pictures(3), pictures(4, seed=7)
    expected = [[np.square(x - y).mean() for y in b] for x in a]  # numpy's uint8 wraps, as theirs did
    assert np.allclose(wrapping_mse(a, b), expected)


def test_flat_pictures_correlate_zero_and_sizes_must_agree():
    flat, other = np.full((1, 16, 16, 3), 7, np.uint8), pictures(2, 16)
    assert (pearson(flat, other) == 0).all()
    with pytest.raises(UserError, match="different sizes"):
        pixel_mse(pictures(1, 16), pictures(1, 24))
    with pytest.raises(UserError, match="one size"):
        ssim(pictures(1, 16), pictures(1, 24))


def test_two_way_against_loops_with_ties_and_repeated_images():
    """A network's stored likeness is scored as every other: strict wins, half for ties, an image once."""
    names = np.array(list("abcabcdef"))
    alike = random().integers(0, 4, (9, 2, 6)).astype(float)
    truth = Truth(np.zeros(9, int), np.full(9, -1), names)
    found = item_scores(Outcome(alike={"net": alike}), truth)["two_way_net"]
    for i in range(9):
        own = "abcdef".index(names[i])
        for s in range(2):
            others = np.delete(alike[i, s], own)
            wins = (alike[i, s, own] > others) + 0.5 * (alike[i, s, own] == others)
            assert found.samples[s, i] == pytest.approx(wins.mean())


# Intervals and tests


def test_bootstrap_interval_covers_the_mean_about_as_often_as_it_says():
    covered = 0
    for seed in range(300):
        low, high = bootstrap_interval(random(seed).exponential(1.0, 60), n_boot=600, seed=seed)
        covered += low <= 1.0 <= high
    assert 0.88 <= covered / 300 <= 0.975


def test_bootstrap_over_units_knows_that_repeats_are_no_evidence():
    values, units = np.repeat(random().normal(size=20), 10), np.repeat(np.arange(20), 10)
    width = np.diff(bootstrap_interval(values))[0]
    assert np.diff(bootstrap_interval(values, units))[0] == pytest.approx(width * np.sqrt(10), rel=0.15)
    assert bootstrap_interval(values, units) == bootstrap_interval(values, units)


def test_intervals_and_sign_flips_are_scipys():
    from scipy.stats import bootstrap, permutation_test

    values, units = random().random(60), random(1).integers(0, 12, 60)
    sums, sizes = np.bincount(units, values), np.bincount(units)
    drawn = bootstrap(
        (sums, sizes), lambda a, b, axis: a.sum(axis) / b.sum(axis), paired=True, n_resamples=2000, batch=500,
        method="percentile", rng=np.random.default_rng(3),
    )  # fmt: skip
    assert bootstrap_interval(values, units, 2000, seed=3) == pytest.approx(drawn.confidence_interval, abs=1e-12)
    difference = random(2).normal(size=10) + 0.4  # few enough for all 1024 signs
    exact = permutation_test(
        (difference,), np.sum, permutation_type="samples", n_resamples=np.inf, alternative="greater"
    )
    assert sign_flip_p(difference) == pytest.approx(exact.pvalue, abs=0.02)


def test_within_class_p_of_pairs_is_binomial():
    """In a share of the classes both items of a pair find their own image, elsewhere neither prefers one."""

    def p_of(right: int) -> float:
        parts = [(np.eye(2) if k < right else np.full((2, 2), 0.5), np.arange(2)) for k in range(40)]
        return within_class_p(parts)

    for right in (1, 3, 6):
        assert p_of(right) == pytest.approx(0.5**right, abs=0.02)
    assert p_of(13) < ALPHA < p_of(7)


def test_sign_flip_p_is_uniform_without_effect_and_small_with_one():
    p = np.array([sign_flip_p(random(s).normal(size=40) - random(s + 999).normal(size=40), 500, s) for s in range(400)])
    assert abs(p.mean() - 0.5) < 0.05
    assert abs((p < 0.1).mean() - 0.1) < 0.05
    assert sign_flip_p(np.ones(30)) < 0.001
    assert sign_flip_p(-np.ones(30)) > 0.99
    assert sign_flip_p(np.zeros(30)) == 1.0


def test_within_class_sees_images_and_is_blind_to_classes():
    """Embeddings that name the class only give uniform p; a trace of the image gives a small one."""
    g, label = random(), np.repeat(np.arange(20), 6)
    centre = 3 * g.normal(size=(20, 16))[label]

    def p_of(trace: float, seed: int) -> float:
        g = random(seed)
        clip = centre + g.normal(size=(120, 16))
        eeg = centre + g.normal(size=(120, 16)) + trace * (clip - centre)
        parts = within_class(cosine(eeg, clip)[None], np.arange(120), label)
        return within_class_p([(matrix[0], own) for _, matrix, own in parts], 400, seed)

    null = np.array([p_of(0.0, seed) for seed in range(150)])
    assert abs(null.mean() - 0.5) < 0.08 and (null < 0.05).mean() < 0.12
    assert max(p_of(1.0, seed) for seed in range(5)) < 0.01


# All scores of a run, and of a folder


def test_item_scores_name_chance_samples_and_prior():
    outcome, truth = make_arrays()
    scores = item_scores(outcome, truth, n_way=5)
    assert list(scores) == [
        "5_way_top1", "class_accuracy", "two_way_mse", "two_way_mse_wrapping_uint8", "two_way_pearson", "two_way_ssim",
        "two_way_features",
        "retrieval_top1", "retrieval_top5", "retrieval_within_class_top1", "retrieval_within_class_two_way",
    ]  # fmt: skip
    assert scores["class_accuracy"].value.mean() > 0.95 and scores["class_accuracy"].chance == 1 / 6
    assert scores["two_way_features"].value.mean() == 1 and scores["retrieval_top1"].value.mean() > 0.9
    assert scores["two_way_pearson"].samples[0].mean() == 1  # the first sample is the truth here, the second is another
    assert scores["two_way_pearson"].value.mean() < 0.9
    assert scores["retrieval_within_class_top1"].chance == pytest.approx(1 / 4)


def test_class_prior_is_every_picture_against_every_truth():
    outcome, truth = make_arrays(hit=0.5)
    prior = item_scores(outcome, truth, n_way=4)["4_way_top1"].prior
    first, true = outcome.logits[:, 0], truth.logits.argmax(1)
    pairs = [[n_way_accuracy(first[i : i + 1], true[j : j + 1], 4)[0] for i in range(24)] for j in range(24)]
    assert np.allclose(prior, np.mean(pairs, 1))


def test_unknown_images_leave_class_scores_alone():
    outcome, truth = make_arrays()
    blind = Truth(truth.label, truth.class_index)
    assert list(item_scores(Outcome(outcome.logits), blind)) == ["10_way_top1", "class_accuracy"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("eval"))


def test_metrics_json_has_the_schema_and_repeats_to_the_digit(folder, monkeypatch, capsys):
    text = (folder / "metrics.json").read_text()
    metrics = json.loads(text)
    assert list(metrics) == ["scores", "controls", "baselines", "verdict", "subjects", "left_out", "run"]
    assert set(metrics["controls"]) == {"gaussian_eeg", "other_trials_eeg", "class_prior"}
    for table in (metrics["scores"], *metrics["controls"].values(), *metrics["baselines"].values()):
        for score in table.values():
            assert {"value", "ci95", "chance", "n", "unit"} <= set(score) and score["unit"] == "image"
            assert score["ci95"][0] <= score["value"] <= score["ci95"][1]
    assert metrics["verdict"]["class"] == "supported" and metrics["verdict"]["design"] == "random"
    assert metrics["verdict"]["instance"] == "supported"
    monkeypatch.setattr("sys.argv", ["eval_metrics.py", str(folder)])
    eval_metrics.main()
    assert (folder / "metrics.json").read_text() == text
    assert "10_way_top1" in capsys.readouterr().out


def test_a_leaking_run_is_not_supported_without_its_record(folder, tmp_path, monkeypatch):
    copy, same = shutil.copytree(folder, tmp_path / "copy"), CLEAN["same_eeg"]["test"]
    leaking = CLEAN | {"same_eeg": {"test": same | {"trials": 48, "identical": 40, "repeated": 40}}}
    found = write_metrics(copy, {"split": leaking})["verdict"]
    assert (found["class"], found["instance"], found["design"]) == ("nothing", "nothing", "leaking")
    (copy / "metrics.json").unlink()
    monkeypatch.setattr("sys.argv", ["eval_metrics.py", str(copy)])
    eval_metrics.main()
    found = json.loads((copy / "metrics.json").read_text())["verdict"]
    assert (found["class"], found["instance"], found["design"]) == ("explained_by_time", "nothing", "unknown")


def test_repeated_images_make_trials_the_unit(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    text = (copy / "trials.csv").read_text()
    (copy / "trials.csv").write_text(text.replace(",n6,", ",n0,"))
    metrics = write_metrics(copy, {})
    assert metrics["scores"]["10_way_top1"]["unit"] == "trial"


@pytest.mark.parametrize(("tapes", "unit"), [(["a", "b", "c", "d", "e"], "recording"), (["a", "b", "c", "d"], "trial"),
                                             (["", "b", "c", "d", "e", "f"], "trial")])  # fmt: skip
def test_repeated_images_of_several_recordings_make_these_the_unit(folder, tmp_path, tapes, unit):
    copy = shutil.copytree(folder, tmp_path / "copy")
    head, *rows = (copy / "trials.csv").read_text().replace(",n6,", ",n0,").splitlines()
    rows = [row.replace(",tape,", f",{tapes[i % len(tapes)]},") for i, row in enumerate(rows)]
    (copy / "trials.csv").write_text("\n".join([head, *rows]) + "\n")
    metrics = write_metrics(copy, {})
    tables = (metrics["scores"], *(metrics[k][n] for k in ("controls", "baselines", "subjects") for n in metrics[k]))
    found = [entry for table in tables for entry in table.values()]
    assert {(e["unit"], e.get("recordings")) for e in found} == {(unit, 5 if unit == "recording" else None)}
    assert ("48 trials in 5 recordings" in write_page(copy).read_text()) == (unit == "recording")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: (f / "trials.csv").unlink(), "trials.csv: not found"),
        (lambda f: (f / "trials.csv").write_text("trial,label\n0,0\n"), "lacks the column position"),
        (lambda f: (f / "samples/test3-1.png").unlink(), "test3-1.png: picture of trial 3 is missing"),
        (lambda f: (f / "samples/test3-1.png").write_bytes(b"\x89PNG"), "test3-1.png: cannot be read"),
        (lambda f: Image.new("RGB", (9, 9)).save(f / "samples/test3-1.png"), "test3-1.png: .* pixels"),
        (lambda f: change(f, "real.logits", lambda a: a[:-1]), "real.logits is of shape .47, .* has 48 rows"),
        (lambda f: change(f, "real.logits", lambda a: a.astype(np.float16)), "is of torch.float16"),
        (lambda f: change(f, "real.logits", lambda a: a * np.nan), "not finite"),
        (lambda f: change(f, "real.logits", lambda a: a[:, 0]), "'real.logits' of shape .48, 10., which"),
        (lambda f: change(f, "real.votes", lambda _: np.ones(48)), "'real.votes' of shape .* does not know"),
        (lambda f: change(f, "truth.embedding", lambda _: np.ones((48, 8))), "'truth.embedding' .* this version does"),
    ],
)
def test_damaged_folders_are_named_in_a_sentence(folder, tmp_path, damage, words):
    copy = shutil.copytree(folder, tmp_path / "copy")
    damage(copy)
    with pytest.raises(UserError, match=words):
        write_metrics(copy, {})


def change(folder, key, how):
    content = load_file(folder / "arrays.safetensors")
    content[key] = np.ascontiguousarray(how(content.get(key)))
    save_file(content, folder / "arrays.safetensors")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"scores": {}}', "lacks run; found 'scores'"),
        ('{"run": ["x"]}', r"run is \['x'\], expected a valid dictionary"),
        ('[{"run": {}}]', "the whole is"),
        ("2", "the whole is 2"),
        ('{"scores": ', "cannot be read as a record of scores"),
    ],
)
def test_metrics_without_a_run_are_refused_in_a_sentence(folder, tmp_path, monkeypatch, content, words):
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "metrics.json").write_text(content)
    monkeypatch.setattr("sys.argv", ["eval_metrics.py", str(copy)])
    with pytest.raises(UserError, match=f"metrics.json: {words}"):
        eval_metrics.main()


def test_metrics_that_hold_power_are_scored_anew_without_it(folder, tmp_path, monkeypatch):
    """Earlier versions estimated the power of the verdict's tests."""
    copy, text = shutil.copytree(folder, tmp_path / "copy"), (folder / "metrics.json").read_text()
    metrics = json.loads(text)
    metrics["verdict"] |= {"power": {"class": 1.0}, "reasons": [*metrics["verdict"]["reasons"], "Power: 100 %."]}
    (copy / "metrics.json").write_text(json.dumps(metrics))
    assert "Power: 100 %." in write_page(copy).read_text()
    monkeypatch.setattr("sys.argv", ["eval_metrics.py", str(copy)])
    eval_metrics.main()
    assert (copy / "metrics.json").read_text() == text


def test_a_folder_of_bare_pictures_gets_two_way_scores_alone(folder, tmp_path, monkeypatch, capsys):
    bare = shutil.copytree(folder / "samples", tmp_path / "bare")
    monkeypatch.setattr("sys.argv", ["eval_metrics.py", str(bare)])
    eval_metrics.main()
    metrics, whole = (json.loads((place / "metrics.json").read_text()) for place in (bare, folder))
    assert set(metrics["scores"]) == {f"two_way_{n}" for n in ("mse", "mse_wrapping_uint8", "pearson", "ssim")}
    assert all(score == whole["scores"][name] for name, score in metrics["scores"].items())
    assert metrics["verdict"]["class"] == "nothing" and "no classifier" in capsys.readouterr().out
    assert metrics["verdict"]["reasons"][-1].endswith("unknown: nothing says when the pictures were shown.")
    metrics["run"] = {"classifier": "vit_h_14", "hashes": {"classifier_sha256": "0" * 64}, "n_way": 7}
    (bare / "metrics.json").write_text(json.dumps(metrics))  # of a scoring by networks that this one does not ask
    eval_metrics.main()
    assert json.loads((bare / "metrics.json").read_text())["run"] == {}
    for i in (5, 9):  # equal truths are one image
        shutil.copy(bare / "test0-0.png", bare / f"test{i}-0.png")
    assert write_metrics(bare, {})["scores"]["two_way_mse"]["unit"] == "trial"


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: (f / "test47-0.png").unlink(), "test47-1.png: there are pictures of more than the 47 trials"),
        (lambda f: (f / "test47-2.png").unlink(), "test47-2.png: picture of trial 47 is missing"),
        (lambda f: Image.new("RGBA", (16, 16)).save(f / "test3-1.png"), "test3-1.png: has transparent parts"),
        (lambda f: [Image.new("RGB", (9, 9)).save(f / f"test{i}-0.png") for i in range(48)], "save them at one size"),
        (lambda f: [p.unlink() for p in f.glob("*-[12].png")], "test0-1.png: not found"),
        (lambda f: [(f / f"test{i}-0.png").unlink() for i in range(1, 48)], "holds 1 truths"),
    ],
)
def test_damaged_bare_folders_are_named_in_a_sentence(folder, tmp_path, damage, words):
    bare = shutil.copytree(folder / "samples", tmp_path / "bare")
    damage(bare)
    with pytest.raises(UserError, match=words):
        write_metrics(bare, {})


def test_grey_pictures_are_read_as_rgb(folder, tmp_path):
    bare = shutil.copytree(folder / "samples", tmp_path / "bare")
    Image.new("L", (16, 16), 90).save(bare / "test3-1.png")
    one = write_metrics(bare, {})["scores"]
    Image.new("RGB", (16, 16), (90, 90, 90)).save(bare / "test3-1.png")
    assert write_metrics(bare, {})["scores"] == one


def test_any_n_and_k_on_the_command_line(folder, tmp_path, monkeypatch):
    copy = shutil.copytree(folder, tmp_path / "copy")
    monkeypatch.setattr("sys.argv", ["eval_metrics.py", str(copy), "n_way=7", "top_k=3"])
    eval_metrics.main()
    score = json.loads((copy / "metrics.json").read_text())["scores"]["7_way_top3"]
    logits, truth = (load_file(copy / "arrays.safetensors")[f"{run}.logits"] for run in ("real", "truth"))
    exact = [n_way_accuracy(logits[:, s], truth.argmax(1), 7, 3).mean() for s in range(2)]
    assert score["value"] == pytest.approx(np.mean(exact)) and score["chance"] == pytest.approx(3 / 7)
    assert score["best_of_2_samples"] >= max(exact)
    for words, sentence in (
        (["n_way=11"], "10 classes"),
        (["n_ways=3"], "did you mean n_way"),
        (["top_k=x"], "of type int"),
    ):
        monkeypatch.setattr("sys.argv", ["eval_metrics.py", str(copy), *words])
        with pytest.raises(UserError, match=sentence):
            eval_metrics.main()


def test_scores_that_cannot_be_had_are_named(tmp_path):
    outcome, truth = make_arrays()
    lacks_a_class = truth._replace(class_index=np.where(truth.label == 2, -1, truth.label))
    one, *networks = left_out(lacks_a_class, outcome, tmp_path)
    assert "does not know the class of 4 trials" in one
    assert len(networks) == len(NETWORKS) and all("networks=auto" in n or "not at hand" in n for n in networks)
    same = truth._replace(class_index=np.zeros(24, int), image=np.full(24, "a"))
    notes = left_out(same, outcome, tmp_path)[: -len(NETWORKS)]
    assert [note.split(" is")[0].split(" are")[0] for note in notes] == [
        "class_accuracy", "Two-way and retrieval scores",
    ]  # fmt: skip
    assert list(item_scores(outcome, same)) == ["10_way_top1"]


def test_an_interval_over_classes_from_twenty_on():
    values = np.repeat(random().random(25) < 0.5, 8).astype(float)  # a class is hit or missed as a whole
    single = entry(values, 0.1, "image", np.repeat(np.arange(25), 8))
    assert np.diff(single["ci95_by_class"])[0] == pytest.approx(np.diff(single["ci95"])[0] * np.sqrt(8), rel=0.2)
    assert "ci95_by_class" not in entry(values, 0.1, "image", np.arange(200) % 19)


def test_each_subject_has_scores_of_its_own(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    lines = (copy / "trials.csv").read_text().splitlines()
    lines[1:21] = [line.replace(f"{i},{i},4,", f"{i},{i},5,", 1) for i, line in enumerate(lines[1:21])]
    (copy / "trials.csv").write_text("\n".join(lines) + "\n")
    subjects = write_metrics(copy, {})["subjects"]
    assert {name: found["10_way_top1"]["n"] for name, found in subjects.items()} == {"4": 28, "5": 20}
    column = [float(row.split(",")[1]) for row in (copy / "scores.csv").read_text().splitlines()[1:]]
    assert subjects["5"]["10_way_top1"]["value"] == pytest.approx(np.mean(column[:20]), abs=1e-5)
