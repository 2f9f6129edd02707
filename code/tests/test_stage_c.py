"""Stage C on a tiny world in the real formats: what it writes, what it refuses, what it repeats to the last digit."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_scorers import write_classifier
from tiny_diffusion import MAE, SIZE, stage_b_arguments
from two_processes import launch

import evaluation.sampling as samples
import gen_eval_eeg
from data.stimuli import image_path
from dataset import Trials
from dc_ldm import weights
from dc_ldm.generator import EEGImageGenerator
from dc_ldm.modules.conditioner import EEGConditioner
from evaluation.baselines import baselines
from evaluation.folder import picture_path
from evaluation.inputs import Paths, begin, refuse_trained
from runtime import checkpoints, digests
from runtime.errors import UserError, cli
from runtime.pictures import image_tensor, load_image, read_pictures
from runtime.system import About
from sc_mbm.mae_for_eeg import EEGEncoder

TEST_TRIALS = 8


def write_world(root: Path) -> Path:
    """Random models and 24 trials of noise, 8 of them to test on, in the layout that the scripts expect."""
    stage_b_arguments(root)  # writes everything but what stages B and C add
    path = root / "datasets" / "eeg_5_95_std.pth"
    content = checkpoints.read_plain(path, "trials")
    content = {**content, "dataset": [dict(trial) for trial in content["dataset"]]}
    random = torch.Generator().manual_seed(5)
    for i, trial in enumerate(content["dataset"]):
        trial |= {"eeg": torch.randn(8, 500, generator=random), "onset": 2.0 * i, "recording": 1}
    checkpoints.save(path, content)
    split = {"train": list(range(12)), "val": list(range(12, 16)), "test": list(range(16, 24))}
    checkpoints.save(root / "datasets" / "block_splits_by_image_single.pth", {"splits": [split]})
    path.with_suffix(".json").write_text(json.dumps({"simulated": True}))
    write_classifier(root / "classifier")
    base = weights.load_base(root / "pretrains")
    encoder = {k: MAE[k] for k in ("n_chans", "n_times", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio")}
    shape = {"context_dim": 16, "clip_dim": 12, "clip_head": "condition"}
    conditioner = EEGConditioner(EEGEncoder(**encoder), **shape)
    content = {
        "format": weights.FORMAT,
        "model": weights.trained_state(conditioner, base.unet),
        "config": weights.model_config(base.sizes, encoder, shape, True, SIZE, 0.0),
        "no_context": torch.zeros(77, 16),
        "base": {"name": base.name, "sha256": base.sha256},
        "input": {"scale": 1.0},
    }
    checkpoints.save(root / "pretrains" / "generation" / "tiny.pth", content)
    return root


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_world(tmp_path_factory.mktemp("world"))


def arguments(world, **changed):
    values = {
        "root_path": world, "name": "tiny", "clip": "pretrains/clip", "classifier": "classifier", "num_samples": 2,
        "ddim_steps": 3, "sampler": "dpm_solver", "batch_size": 5, "device": "cpu",
        "precision": "32",
    } | changed  # fmt: skip
    return [f"{name}={value}" for name, value in values.items()]


def run(monkeypatch, world, **changed):
    """Run the script in this process; returns its folder."""
    monkeypatch.setattr(sys, "argv", ["gen_eval_eeg.py", *arguments(world, **changed)])
    gen_eval_eeg.main()
    return world / "results" / "eval" / changed.get("name", "tiny")


@pytest.fixture(scope="module")
def evaluated(world):
    with pytest.MonkeyPatch.context() as patch:
        return run(patch, world)


def test_every_promised_file_is_there(evaluated):
    names = {p.name for p in (evaluated / "samples").iterdir()}
    assert names == {f"test{i}-{k}.png" for i in range(TEST_TRIALS) for k in range(3)}
    for control in ("gaussian_eeg", "other_trials_eeg"):
        found = {p.name for p in (evaluated / "controls" / control).iterdir()}
        assert found == {f"test{i}-1.png" for i in range(TEST_TRIALS)}
    assert "SIMULATED" in (evaluated / "index.html").read_text()
    rows = (evaluated / "trials.csv").read_text().splitlines()
    assert len(rows) == TEST_TRIALS + 1 and rows[0].startswith("trial,position,subject")
    arrays = load_file(evaluated / "arrays.safetensors")
    assert arrays["real.logits"].shape == (TEST_TRIALS, 2, 5)
    assert arrays["real.clip"].shape == (TEST_TRIALS, 2, 12)
    assert arrays["real.embedding"].shape == arrays["truth.clip"].shape == (TEST_TRIALS, 12)
    assert arrays["gaussian_eeg.logits"].shape == (TEST_TRIALS, 1, 5)
    assert arrays["real.lda"].sum(1).allclose(torch.ones(TEST_TRIALS, dtype=torch.float64))


def test_metrics_have_scores_controls_baseline_and_the_opened_split(evaluated):
    metrics = json.loads((evaluated / "metrics.json").read_text())
    assert {"5_way_top1", "class_accuracy", "two_way_mse", "retrieval_top1"} <= set(metrics["scores"])
    assert set(metrics["controls"]) == {"gaussian_eeg", "other_trials_eeg", "nearest_training_picture", "class_prior"}
    assert 0 <= metrics["baselines"]["lda"]["class_accuracy"]["value"] <= 1
    assert metrics["run"]["split"]["scored"] == "test" and "train" in metrics["run"]["split"]["opened"]
    assert metrics["run"]["split"]["shared"]["train/test"]["identical"] == 0
    assert {part: found["repeated"] for part, found in metrics["run"]["split"]["same_eeg"].items()} == {
        "val": 0,
        "test": 0,
    }
    assert 0 <= metrics["run"]["classifier_agrees"] <= 1
    assert metrics["verdict"]["class"] == "nothing"  # models and EEG are noise
    card = metrics["run"]
    for hashed in ("model", "base", "clip", "classifier", "splits", "eeg", "config"):
        assert len(card["hashes"][f"{hashed}_sha256"]) == 64, hashed
    assert (card["n"], card["samples"], card["seeds"]["run"], card["device"]) == (TEST_TRIALS, 2, 2022, "cpu")
    assert card["controls"]["asked"] == "basic" and set(card["controls"]["seconds"]) == {
        "gaussian_eeg", "other_trials_eeg", "nearest_training_picture",
    }  # fmt: skip
    assert "UNet forwards" in card["controls"]["cost"] and {"band", "commit", "machine", "seconds"} <= set(card)
    assert metrics["run"]["hashes"]["model_sha256"] == digests.sha256(
        evaluated.parents[2] / "pretrains/generation/tiny.pth"
    )


def test_truth_is_the_image_at_the_generators_size(world, evaluated):
    row = (evaluated / "trials.csv").read_text().splitlines()[1].split(",")
    truth = image_tensor(load_image(image_path(world / "datasets/imageNet_images", row[7])), SIZE)
    shown = read_pictures([evaluated / "samples" / "test0-0.png"])[0]
    assert np.abs(shown.permute(2, 0, 1).float() / 127.5 - 1 - truth).max() <= 1 / 127.5 + 1e-5


def test_powers_name_what_drifts_and_evoked_means_do_not():
    label, random = torch.arange(12).repeat_interleave(5), torch.Generator().manual_seed(1)
    eeg = torch.randn(60, 6, 400, generator=random) * (1 + 0.2 * label[:, None, None])  # louder from block to block
    kinds = [f"n{k}" for k in range(12)]
    sized = type("Sized", (SimpleNamespace,), {"__len__": lambda self: 30})
    train, test = (
        sized(
            eeg=eeg[part], label=label[part], wnids=kinds, onset=None, position=torch.arange(60)[part],
            recording=None, subject=torch.ones(30, dtype=torch.int64),
        )
        for part in (slice(0, None, 2), slice(1, None, 2))
    )  # fmt: skip
    found = baselines(train, test).arrays
    means, power = (float(found[f"baseline.{name}"].mean()) for name in ("lda", "lda_power"))
    assert means < 0.4 and power > 0.6


def test_a_finished_run_says_so_and_another_configuration_is_refused(monkeypatch, capsys, world, evaluated):
    run(monkeypatch, world)
    assert capsys.readouterr().out.strip().endswith(f"{evaluated / 'index.html'}")
    with pytest.raises(UserError, match="ddim_steps: 3 there, 4 asked"):
        run(monkeypatch, world, ddim_steps=4)


def test_a_stopped_run_keeps_its_pictures_and_scores_the_same(monkeypatch, world, evaluated):
    calls = []
    original = samples.write_picture

    def stop_after_five(path, picture):
        calls.append(path)
        if len(calls) > 5:
            raise KeyboardInterrupt
        original(path, picture)

    with monkeypatch.context() as patch:
        patch.setattr(samples, "write_picture", stop_after_five)
        with pytest.raises(KeyboardInterrupt):
            run(patch, world, name="again", model_path="pretrains/generation/tiny.pth")
    folder = world / "results" / "eval" / "again"
    kept = folder / "samples" / "test0-1.png"
    stamp = kept.stat().st_mtime_ns
    broken = folder / "samples" / "test0-2.png"
    broken.write_bytes(broken.read_bytes()[:200])  # as if copied half
    run(monkeypatch, world, name="again", model_path="pretrains/generation/tiny.pth", batch_size=3)
    assert kept.stat().st_mtime_ns == stamp
    one, two = (json.loads((f / "metrics.json").read_text()) for f in (evaluated, folder))
    assert one["scores"] == two["scores"] and one["controls"] == two["controls"]


def test_a_picture_that_cannot_be_written_stops_the_run_and_the_others_stay(monkeypatch, tmp_path):
    original = samples.write_picture

    def full_disk(path, picture):
        if path.name == "test3-1.png":
            raise UserError(f"{path}: could not be written (no space left on device)")
        original(path, picture)

    monkeypatch.setattr(samples, "write_picture", full_disk)
    eeg, seeds, made = torch.zeros(8, 1, 4), torch.arange(8).view(8, 1), []

    def generate(eeg, seeds):
        made.append(seeds.tolist())
        return seeds[:, None, None, None].expand(-1, 4, 4, 3).to(torch.uint8)

    with pytest.raises(UserError, match="test3-1.png: could not be written"):
        samples.generate_missing(tmp_path, generate, eeg, seeds, 2)
    assert made == [[0, 1], [2, 3], [4, 5]]  # the batch that was under way when the disk was full is the last
    monkeypatch.undo()
    samples.generate_missing(tmp_path, generate, eeg, seeds, 2)
    written = read_pictures([picture_path(tmp_path, i, 1) for i in range(8)])
    assert written[:, 0, 0, 0].tolist() == list(range(8))
    assert made[3][0] == 3  # what was whole is not made again


def test_pictures_that_are_too_few_are_not_lost_silently(tmp_path):
    with pytest.raises(ValueError, match="1 pictures were made where 2 were asked for"):
        samples.generate_missing(
            tmp_path, lambda eeg, seeds: torch.zeros(1, 4, 4, 3), torch.zeros(2, 1, 4), torch.zeros(2, 1), 2
        )


def test_half_precision_and_a_batch_fitted_once_the_controls_models_are_there(monkeypatch, world, evaluated):
    order, plan, fitting = [], samples.plan_controls, EEGImageGenerator.fitting_batch
    monkeypatch.setattr(samples, "plan_controls", lambda *a: order.append("plan") or plan(*a))
    monkeypatch.setattr(EEGImageGenerator, "fitting_batch", lambda *a: order.append("batch") or fitting(*a))
    model = "pretrains/generation/tiny.pth"
    folder = run(monkeypatch, world, name="half", model_path=model, batch_size=0, precision="bf16")
    assert order[:2] == ["plan", "batch"]
    metrics, exact = (json.loads((f / "metrics.json").read_text()) for f in (folder, evaluated))
    assert metrics["run"]["config"]["precision"] == "bf16" and metrics["scores"].keys() == exact["scores"].keys()
    names = [f"{part}-1.png" for part in ("samples/test0", "samples/test7", "controls/gaussian_eeg/test3")]
    half, full = (read_pictures([where / name for name in names]).float() for where in (folder, evaluated))
    assert 0 < (half - full).square().mean() < 0.01 * full.var()


def test_two_processes_share_the_pictures_and_score_once(world, evaluated):
    words = arguments(world, name="two", model_path="pretrains/generation/tiny.pth")
    codes, said = launch("gen_eval_eeg", words, world / "logs")
    assert codes == [0, 0] and "stage C done" in said[0] and not said[1], said
    folder = world / "results" / "eval" / "two"
    names = {path.relative_to(evaluated) for path in evaluated.rglob("*") if path.is_file()}
    assert names == {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    pictures = sorted(name for name in names if name.name.startswith("test"))
    one, two = (read_pictures([where / name for name in pictures]).int() for where in (evaluated, folder))
    assert (one - two).abs().max() <= 1
    scores = [json.loads((f / "metrics.json").read_text())["scores"] for f in (evaluated, folder)]
    assert scores[0].keys() == scores[1].keys()


def test_pictures_depend_on_their_own_seed_only():
    position = torch.tensor([3, 9, 4])
    seeds = samples.picture_seeds(1, position, 4)
    assert torch.equal(seeds[[2, 0]][:, :2], samples.picture_seeds(1, position[[2, 0]], 2))
    assert len(set(seeds.flatten().tolist())) == 12
    assert not (seeds == samples.picture_seeds(2, position, 4)).any()


def test_unknown_images_leave_class_scores_only(monkeypatch, world):
    manifest = world / "datasets" / "eeg_5_95_std.json"
    before = manifest.read_text()
    manifest.write_text(json.dumps({"simulated": False, "image_known": False}))
    try:
        folder = run(monkeypatch, world, name="unknown", model_path="pretrains/generation/tiny.pth", max_items=6)
    finally:
        manifest.write_text(before)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert set(metrics["scores"]) == {"5_way_top1", "class_accuracy"}
    assert metrics["scores"]["class_accuracy"]["n"] == 6
    assert not list((folder / "samples").glob("*-0.png"))
    assert "SIMULATED" not in (folder / "index.html").read_text()


def test_without_the_published_classifier_the_rest_is_scored(monkeypatch, capsys, world, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    folder = run(
        monkeypatch,
        world,
        name="bare",
        model_path="pretrains/generation/tiny.pth",
        classifier="vit_h_14",
        controls="none",
    )
    assert "vit_h_14_swag" in capsys.readouterr().out
    metrics = json.loads((folder / "metrics.json").read_text())
    assert not any("way_top1" in name or name == "class_accuracy" for name in metrics["scores"])
    assert "retrieval_top1" in metrics["scores"] and metrics["verdict"]["class"] == "nothing"


def test_the_published_command_line_names_all_missing_data_in_one_sentence(monkeypatch, capsys, tmp_path):
    words = [
        "--dataset", "EEG", "--model_path", "pretrains/models/checkpoint.pth", "--splits_path",
        "datasets/block_splits_by_image_single.pth", "--eeg_signals_path", "datasets/eeg_5_95_std.pth",
        "--config_patch", "pretrains/models/config15.yaml", "--root", str(tmp_path),
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["gen_eval_eeg.py", *words])
    with pytest.raises(SystemExit) as stop:
        cli(gen_eval_eeg.main)
    printed = capsys.readouterr()
    assert stop.value.code == 2
    assert "dataset has no effect" in printed.out and "config_patch has no effect" in printed.out
    (line,) = printed.err.strip().splitlines()
    for name in ("checkpoint.pth", "eeg_5_95_std.pth", "block_splits_by_image_single.pth", "imageNet_images"):
        assert name in line
    assert not (tmp_path / "results").exists()


def test_eeg_unlike_the_trainings_is_refused(monkeypatch, world):
    path = world / "pretrains" / "generation" / "slow.pth"
    content = checkpoints.load(world / "pretrains/generation/tiny.pth", (weights.FORMAT,), "stage B checkpoint")
    checkpoints.save(path, {**content, "input": {"scale": 1.0, "sfreq": 250.0}})
    with pytest.raises(UserError, match="sfreq is 1000.0, but .*slow.pth was trained on 250.0"):
        run(monkeypatch, world, name="slow")


def test_a_checkpoint_of_another_stage_is_refused_before_anything_is_written(monkeypatch, world):
    with pytest.raises(UserError, match="expected a stage B checkpoint"):
        run(monkeypatch, world, name="other", model_path="pretrains/eeg_pretrain/tiny.pth")
    assert not (world / "results" / "eval" / "other").exists()


def test_near_copies_of_training_trials_are_leaking_from_the_file_to_the_page(monkeypatch, capsys, world):
    """Through 16 bits, another unit, a shift by a sample and noise, as another export of the same recording is."""
    datasets = world / "datasets"
    content = checkpoints.read_plain(datasets / "eeg_5_95_std.pth", "trials")
    trials, random = [dict(trial) for trial in content["dataset"]], torch.Generator().manual_seed(9)
    for i in range(16, 20):
        copy = trials[i - 16]["eeg"].roll(1, 1) + 0.01 * torch.randn(8, 500, generator=random)
        trials[i] |= {"eeg": (copy * 3000).round() * 1e-5, "label": trials[i - 16]["label"]}
    checkpoints.save(datasets / "copies.pth", content | {"dataset": trials})
    (datasets / "copies.json").write_text(json.dumps({"simulated": True}))
    given = {"model_path": "pretrains/generation/tiny.pth", "eeg_signals_path": "datasets/copies.pth"}
    folder = run(monkeypatch, world, name="copies", num_samples=1, **given)
    metrics, printed = json.loads((folder / "metrics.json").read_text()), capsys.readouterr().out
    verdict, found = metrics["verdict"], metrics["run"]["split"]["same_eeg"]["test"]
    assert (verdict["class"], verdict["instance"], verdict["design"]) == ("nothing", "nothing", "leaking")
    assert (found["alike"], found["repeated"], found["identical"], found["trials"]) == (4, 4, 0, 8)
    said = "4 of 8 test trials hold EEG of a training or validation trial"
    page = (folder / "index.html").read_text()
    assert printed.count(said) == 2, "when trials are opened, and under the verdict"
    for words in (said, "trial 16 that of trial 0", "trial 17 that of trial 1", "so nothing is claimed"):
        assert words in page
    assert "design leaking" in printed


def test_trials_that_stage_b_knows_are_never_tested():
    one = torch.zeros(3, dtype=torch.int64)
    test = Trials(
        torch.zeros(3, 1, 4), one, one, one, torch.tensor([7, 8, 9]), None, None, ["n1_1"] * 3, ["n1"],
        {"split": {"eeg_sha256": "a"}},
    )  # fmt: skip
    paths = Paths("model.pth", "eeg.pth", "splits.pth", None, "", "", "", "")

    def refuse(training: dict) -> list[str]:
        return refuse_trained(test, About("model.pth", 64, training=training), paths)

    run = {"split": {"eeg_sha256": "a"}, "positions": {"train": [1, 2], "val": [3]}}
    assert refuse(run) == []
    assert "does not say" in refuse({})[0]
    with pytest.raises(UserError, match="trained or selected on 2 of the 3 test trials of splits.pth"):
        refuse(run | {"positions": {"train": [1, 7], "val": [9]}})
    (message,) = refuse(run | {"split": {"eeg_sha256": "b"}, "positions": {"train": [7]}})
    assert "another file" in message  # positions in another file say nothing
    for known, words in ((None, "does not say that it saw none"), ("others' recordings", "others' recordings")):
        assert words in refuse(run | {"stage_a_sha256": "a", "stage_a_excludes_test": known})[0]


def test_pictures_of_other_trials_are_not_gone_on_with(tmp_path):
    test = SimpleNamespace(names=["n1_1", "n1_2"], eeg=torch.zeros(2, 1, 4))
    begin(tmp_path, test)
    begin(tmp_path, test)
    with pytest.raises(UserError, match="begun with other trials"):
        begin(tmp_path, SimpleNamespace(names=["n1_2", "n1_1"], eeg=test.eeg))
