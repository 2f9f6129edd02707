"""The doctor: the good case exits 0, a fault is named with its file and a remedy, the plan counts what is there."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from test_stage_c import arguments, write_world
from tiny_diffusion import MAE, stage_b_arguments

import runtime.memory as memory_plan
import training_inputs
from commands import check_setup
from config import FinetuneConfig, PretrainConfig, from_cli
from dc_ldm.weights import load_base, published_sizes, trained_unet_tensors
from runtime import checkpoints, digests
from runtime.errors import cli
from sc_mbm.trainer import plan_pretraining
from vision.clip_files import VIT_L_14

LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7703807346\n"
HTML = "<!DOCTYPE html><html><title>Google Drive - Virus scan warning</title></html>"
SIZES = [f"{name}={value}" for name, value in MAE.items()]


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    root = write_world(tmp_path_factory.mktemp("world"))
    random = np.random.default_rng(0)
    (root / "datasets" / "eeg_train").mkdir()
    for i in range(6):
        np.save(root / "datasets" / "eeg_train" / f"{i}.npy", random.standard_normal((8, 300), dtype=np.float32))
    return root


@pytest.fixture
def world(original, tmp_path):
    return shutil.copytree(original, tmp_path / "world")


def settings(stage: str, world: Path) -> list[str]:
    if stage == "a":
        return [f"root_path={world}", "name=mine", "batch_size=4", "num_epoch=3", "device=cpu", *SIZES]
    own = {"name": "mine", "pretrain_mbm_path": MAE_FILE}
    return stage_b_arguments(world, **own) if stage == "b" else arguments(world)


def ask(monkeypatch, capsys, stage: str, world: Path, *words: str) -> tuple[int, str]:
    """Exit status and what was printed."""
    monkeypatch.setattr(sys, "argv", ["check_setup.py", f"stage={stage}", *settings(stage, world), *words])
    with pytest.raises(SystemExit) as ended:
        cli(check_setup.main)
    return ended.value.code, capsys.readouterr().out


@pytest.mark.parametrize("stage", ["a", "b", "c"])
def test_a_stage_whose_files_are_in_place_can_start(monkeypatch, capsys, world, stage):
    status, text = ask(monkeypatch, capsys, stage, world)
    assert status == 0 and "WRONG" not in text and f"Stage {stage.upper()} can start" in text, text
    assert "memory: about" in text and "torch sees" in text
    assert not (world / "results").exists()


def move(old: str, new: str):
    def fault(world: Path) -> None:
        (world / new).parent.mkdir(parents=True, exist_ok=True)
        shutil.move(world / old, world / new)

    return fault


def write(path: str, content: str | bytes):
    def fault(world: Path) -> None:
        (world / path).parent.mkdir(parents=True, exist_ok=True)
        (world / path).write_bytes(content.encode() if isinstance(content, str) else content)

    return fault


def cut(path: str):
    return lambda world: (world / path).write_bytes((world / path).read_bytes()[:-2000])


def copy(old: str, new: str):
    return lambda world: shutil.copy(world / old, world / new)


def remove(path: str):
    return lambda world: shutil.rmtree(world / path)


def foreign_splits(world: Path) -> None:
    split = {"train": [0, 1], "val": [2], "test": [11_964]}
    checkpoints.save(world / "datasets" / "block_splits_by_image_single.pth", {"splits": [split]})


def nested_images(world: Path) -> None:
    move("datasets/imageNet_images", "unpacked")(world)
    move("unpacked", "datasets/imageNet_images/imageNet_images")(world)


def other_config(world: Path) -> None:
    for file, text in (("config.yaml", "lr: 3.0"), ("metrics.csv", "epoch")):
        write(f"results/eeg_pretrain/mine/{file}", text)(world)


def empty_recordings(world: Path) -> None:
    shutil.move(world / "datasets" / "eeg_train", world / "datasets" / "mne_data")
    (world / "datasets" / "eeg_train").mkdir()


BASE = "pretrains/models/v1-5-pruned.safetensors"
EEG, SPLITS = "datasets/eeg_5_95_std.pth", "datasets/block_splits_by_image_single.pth"
IMAGES, MAE_FILE, MODEL = "datasets/imageNet_images", "pretrains/eeg_pretrain/tiny.pth", "pretrains/generation/tiny.pth"
FAULTS = {
    "recordings in the published folder, the new one empty": ("a", empty_recordings, ["eeg_train", "mne_data", "get:"]),
    "no recordings": ("a", remove("datasets/eeg_train"), ["eeg_train: no such folder", "run.py prepare_eeg"]),
    "a page as a recording": ("a", write("datasets/eeg_train/0.npy", HTML), ["0.npy", "not a readable .npy"]),
    "a run of another config": ("a", other_config, ["another configuration", "overwrite=true"]),
    "no EEG": ("b", move(EEG, "elsewhere.pth"), [f"{EEG}: no such file", "perceivelab/eeg_visual_classification"]),
    "EEG in another folder": ("b", move(EEG, "data/eeg_5_95_std.pth"), ["data/eeg_5_95_std.pth (EEG trials file) may"]),
    "LFS pointer as EEG": ("b", write(EEG, LFS), [EEG, "Git LFS pointer"]),
    "page as EEG": ("b", write(EEG, HTML), [EEG, "HTML page"]),
    "splits of another file": ("b", foreign_splits, [SPLITS, "index 11964", "24 trials"]),
    "empty splits": ("b", write(SPLITS, ""), [SPLITS, "empty file"]),
    "EEG in the place of splits": ("b", copy(EEG, SPLITS), [SPLITS, "lacks splits; found 'dataset'"]),
    "weights not in models/": ("b", move(BASE, "pretrains/v1-5-pruned.safetensors"), ["models: no Stable Diffusion",
        "pretrains/v1-5-pruned.safetensors (Stable Diffusion 1.x) may be it", "stable-diffusion-v1-5/stable-diff"]),
    "config.yaml": ("b", move("pretrains/models/config15.yaml", "pretrains/models/config.yaml"),
        ["config15.yaml is missing", "models/config.yaml"]),
    "page as weights": ("b", write(BASE, HTML), [BASE, "HTML page"]),
    "pointer as weights": ("b", write(BASE, LFS), [BASE, "Git LFS pointer"]),
    "truncated weights": ("b", cut(BASE), [BASE, "truncated"]),
    "empty weights": ("b", write(BASE, ""), [BASE, "empty file"]),
    "stage A's file misspelt": ("b", move(MAE_FILE, "pretrains/eeg_pretain/checkpoint-eeg-500.pth"),
        ["tiny.pth: no such file", "eeg_pretain/checkpoint-eeg-500.pth", "stageA1_eeg_pretrain.py makes it"]),
    "stage B's file as stage A's": ("b", copy(MODEL, MAE_FILE), [MAE_FILE, "expected a stage A checkpoint"]),
    "images one level deeper": ("b", nested_images, ["imageNet_images/imageNet_images: set imagenet_path="]),
    "images beside": ("b", move(IMAGES, "datasets/imagenet"), ["imageNet_images: no such folder", "datasets/imagenet"]),
    "a class missing": ("b", remove(f"{IMAGES}/n00000001"), ["1 of 2 class folders are missing: n00000001"]),
    "no CLIP file": ("b", remove("pretrains/clip"), ["pretrains/clip: 0 of config.json", "hf download openai/clip"]),
    "truncated CLIP": ("b", cut("pretrains/clip/model.safetensors"), ["clip/model.safetensors: is truncated"]),
    "results is a file": ("b", write("results", ""), ["results: cannot be written"]),
    "stage A's file as model": ("c", copy(MAE_FILE, MODEL), [MODEL, "stage A checkpoint (ours)"]),
    "no model": ("c", remove("pretrains/generation"), ["tiny.pth", "eeg_ldm.py makes it"]),
    "no classifier weights": ("c", write("classifier/model.safetensors", ""), ["model.safetensors", "truncated"]),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named_with_its_remedy(monkeypatch, capsys, world, name):
    stage, fault, words = FAULTS[name]
    fault(world)
    status, text = ask(monkeypatch, capsys, stage, world)
    assert status == 1 and "WRONG" in text and "cannot start" in text
    for word in words:
        assert word in text, text


def test_missing_pictures_are_counted_against_what_may_be_missing(monkeypatch, capsys, world):
    picture = world / IMAGES / "n00000000" / "n00000000_0.JPEG"
    picture.write_bytes(picture.read_bytes()[:300])
    status, text = ask(monkeypatch, capsys, "b", world)
    assert status == 1 and f"{picture}: missing or corrupt, 1 of 8 pictures" in text and "allow_missing=1" in text
    status, text = ask(monkeypatch, capsys, "b", world, "allow_missing=1")
    assert status == 0 and "their trials left out: n00000000_0" in text


@pytest.mark.parametrize("whole", [True, False])
def test_the_picture_known_to_be_corrupt_is_told(monkeypatch, capsys, world, whole):
    content = (world / IMAGES / "n00000000" / "n00000000_0.JPEG").read_bytes()
    write(f"{IMAGES}/n03452741/n03452741_17620.JPEG", content if whole else content[:300])(world)
    status, text = ask(monkeypatch, capsys, "b", world)
    assert status == 0
    assert f"n03452741_17620.JPEG, corrupt in the copy handed around, is {'whole' if whole else 'so'} here" in text


def test_json_is_one_object_with_sizes_and_hashes(monkeypatch, capsys, world):
    status, text = ask(monkeypatch, capsys, "b", world, "--json", "--eval_avg", "True")
    told = json.loads(text)
    files = {Path(f["path"]).name: f for finding in told["stages"]["b"]["findings"] for f in finding["files"]}
    assert status == 0 and told["ready"] is True and told["stages"]["b"]["ready"] is True
    assert files["v1-5-pruned.safetensors"] == {
        "path": str(world / BASE),
        "bytes": (world / BASE).stat().st_size,
        "sha256": digests.sha256(world / BASE),
        "kind": "Stable Diffusion 1.x",
    }
    (world / BASE).write_text(LFS)
    status, text = ask(monkeypatch, capsys, "b", world, "--json")
    assert status == 1 and json.loads(text)["ready"] is False


def test_large_files_are_hashed_on_demand(monkeypatch, capsys, world):
    monkeypatch.setattr(check_setup, "LARGE", 100_000)
    assert f"{BASE}: 2,279,582 bytes, not hashed (hash=true does)" in ask(monkeypatch, capsys, "b", world)[1]
    assert "not hashed" not in ask(monkeypatch, capsys, "b", world, "--hash")[1]


def test_what_an_earlier_stage_makes_may_be_missing_where_all_are_asked_for(monkeypatch, capsys, world):
    words = [
        "stage=all",
        f"root_path={world}",
        "name=new",
        "clip=pretrains/clip",
        "classifier=classifier",
        "img_size=32",
    ]
    monkeypatch.setattr(sys, "argv", ["check_setup.py", *words, *SIZES, "ddim_steps=4", "batch_size=2", "device=cpu"])
    with pytest.raises(SystemExit) as ended:
        check_setup.main()
    text = capsys.readouterr().out
    assert ended.value.code == 0 and text.count("  later  ") == 2 and text.count("can start") == 3, text


@pytest.mark.parametrize("words", [["stage=d"], ["mask_ration=0.5"], ["stage=a", "clip=x"], ["lr"], ["plan=maybe"]])
def test_wrong_arguments_end_with_status_two(monkeypatch, capsys, words):
    monkeypatch.setattr(sys, "argv", ["check_setup.py", *words])
    with pytest.raises(SystemExit) as ended:
        cli(check_setup.main)
    told = capsys.readouterr()
    assert ended.value.code == 2 and told.out == "" and told.err.startswith("error: ")


@pytest.mark.parametrize("stage", ["a", "b", "c"])
def test_the_plan_tells_parameters_memory_and_time(monkeypatch, capsys, world, stage):
    monkeypatch.setattr(check_setup, "PROBE_STEPS", 3)
    status, text = ask(monkeypatch, capsys, stage, world, "--plan", "--json")
    plan = json.loads(text)["stages"][stage]["plan"]
    assert status == 0 and plan["time"]["hours"] > 0
    n = plan["parameters"]
    trained = sum(count for name, count in n.items() if name.endswith("trained"))
    assert stage == "b" or plan["memory"]["weights"] == 4 * sum(n.values())
    if stage == "b":
        # frozen layers that multiply are held in 16 bits, their norms, and all that trains, in 32
        assert 2 * sum(n.values()) < plan["memory"]["weights"] < 4 * trained + 2.2 * (sum(n.values()) - trained)
        unet = load_base(world / "pretrains").unet
        assert n["unet, trained"] == sum(p.numel() for p in trained_unet_tensors(unet).values())
        assert n["unet, trained"] + n["unet, frozen"] == sum(p.numel() for p in unet.parameters())
        assert plan["memory"]["AdamW state"] == 2 * plan["memory"]["gradients"] == 8 * trained
    if stage == "c":
        assert trained == 0 and plan["time"]["pictures"] == 8 * (2 + 2)


def test_the_plan_of_the_papers_run_needs_no_files():
    cfg = from_cli(PretrainConfig, ["preset=published", "device=cpu", "precision=32"])
    assert plan_pretraining(cfg).parameters == {"mae, trained": 165_181_952, "mae, frozen": 198_144}  # spec 4.1
    cfg = from_cli(FinetuneConfig, ["preset=published", "batch_size=1", "device=cpu", "precision=32"])
    n = training_inputs.plan_run(cfg, training_inputs.untrained_sizes(cfg), published_sizes(), VIT_L_14)
    n = n.parameters
    assert n["unet, trained"] == 43_962_560 + 24_960 + 987_323 and n["vae, frozen"] == 83_653_863  # spec 5.4, 1.6
    assert n["unet, trained"] + n["unet, frozen"] == 860_508_287
    constant = 129 * 1024 + 2 * 1024  # position table, class and mask token
    assert n["conditioner, trained"] == 153_489_998 - constant and n["conditioner, frozen"] == constant


def test_activations_are_what_a_backward_pass_keeps():
    with torch.device("meta"):
        layers = torch.nn.Sequential(torch.nn.Linear(10, 20), torch.nn.Tanh(), torch.nn.Linear(20, 5))
        x = torch.empty(7, 10)
        kept = memory_plan.activations(lambda: layers(x).sum(), layers)
        q = torch.empty(1, 2, 64, 8, requires_grad=True)
        attention = memory_plan.activations(
            lambda: torch.nn.functional.scaled_dot_product_attention(q, q, q).sum(), torch.nn.Identity()
        )
    assert kept == 4 * (7 * 10 + 7 * 20)  # the first layer's input, and the second's, which is tanh's output as well
    assert attention < 4 * 2 * 64 * 64  # no matrix of scores


def test_clip_is_looked_for_without_downloading(monkeypatch, capsys, world):
    status, text = ask(monkeypatch, capsys, "b", world, "clip=no/such/folder")
    assert status == 1 and "WRONG  CLIP: no/such/folder: 0 of config.json" in text
    status, text = ask(monkeypatch, capsys, "b", world, "clip=open_clip:ViT-B-32/openai")
    assert status == 0 and "note   CLIP: open_clip:ViT-B-32/openai" in text


def test_a_run_that_will_not_fit_in_memory_is_told_the_batch_that_would(monkeypatch, capsys, world):
    plan = json.loads(ask(monkeypatch, capsys, "a", world, "--json")[1])["stages"]["a"]["plan"]["memory"]
    fixed, each = sum(plan.values()) - plan["activations (estimate)"], plan["activations (estimate)"] / 4
    there = {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": int(fixed + 2.5 * each)}
    monkeypatch.setattr(check_setup.os, "sysconf", there.__getitem__)
    status, text = ask(monkeypatch, capsys, "a", world)
    assert status == 0 and "will not fit" in text and "batch_size=2 accum_iter=2 would" in text
    text = ask(monkeypatch, capsys, "a", world, f"memory={(fixed + 1.5 * each) / 1e9}")[1]
    assert "batch_size=1 accum_iter=4 would" in text


def test_the_batch_that_stage_c_would_take_is_planned_for_the_memory_given(monkeypatch, capsys, world):
    def plan(*words):
        status, text = ask(monkeypatch, capsys, "c", world, "--json", *words)
        stage = json.loads(text)["stages"]["c"]
        said = [finding["about"] for finding in stage["findings"] if finding["what"] == "memory"]
        return stage["plan"]["batch_size"], stage["plan"]["memory"], said

    weights, each = plan("batch_size=5")[1].values()
    each /= 5
    n, _, said = plan("batch_size=0")
    assert n > 16 and not said
    n, parts, said = plan("batch_size=0", f"memory={(weights + 4.5 * each) / 1e9}")
    assert 1 < n <= 4 and sum(parts.values()) <= weights + 4.5 * each and not said
    n, _, (said,) = plan("batch_size=0", f"memory={0.5 * weights / 1e9}")
    assert n == 1 and "more memory is needed" in said
    n, _, (said,) = plan("batch_size=5", f"memory={(weights + 3.5 * each) / 1e9}")
    assert n == 5 and "batch_size=3 would" in said


def test_the_second_base_of_all_controls_is_planned(monkeypatch, capsys, world):
    def planned(*words):
        return json.loads(ask(monkeypatch, capsys, "c", world, "--json", *words)[1])["stages"]["c"]["plan"]["memory"]

    more = [
        planned("controls=all", f"precision={p}")["weights"] - planned(f"precision={p}")["weights"]
        for p in (32, "bf16")
    ]
    other_clip = "clip=open_clip:ViT-B-32/openai"
    assert planned("controls=all", other_clip) == planned(other_clip), "another CLIP cannot name a class"
    base = load_base(world / "pretrains", use_time_cond=False)
    own = sum(p.numel() for part in (base.unet, base.vae) for p in part.parameters())
    assert more == [4 * own, 2 * own]


def test_the_time_is_not_guessed_where_files_are_missing(monkeypatch, capsys, world):
    (world / EEG).unlink()
    status, text = ask(monkeypatch, capsys, "b", world, "--plan")
    assert status == 1 and "unet, trained" in text and "AdamW state" in text and "time: told from real steps" in text


def test_the_miniature_world_is_made_here(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["check_setup.py", "stage=c", "preset=miniature", f"root_path={tmp_path}"])
    with pytest.raises(SystemExit):
        cli(check_setup.main)
    text = capsys.readouterr().out
    assert text.count("code/run.py simulate_eeg makes it") == 2 and "git checkout -- pretrains/miniature" in text, text
