"""`preset=paper,miniature` and `preset=published,miniature` run all three stages, with the rules that they name."""

import json
import sys

import numpy as np
import pytest
import torch
from test_scorers import write_classifier
from tiny_diffusion import write_base, write_clip, write_published_a, write_published_b, write_stage_a, write_trials

import eeg_ldm
import gen_eval_eeg
import stageA1_eeg_pretrain
from dc_ldm.published import read_stage_a, read_stage_b
from dc_ldm.weights import part
from runtime.errors import UserError

RULES = {
    "paper": {"clip_head": "condition", "mask_ratio": 0.75, "scale_a": 1.0},
    "published": {"clip_head": "tokens", "mask_ratio": 0.1, "scale_a": 0.1},
}


@pytest.fixture
def world(tmp_path):
    """Toy models and trials where preset=miniature looks for them."""
    pretrains = tmp_path / "pretrains" / "miniature"
    write_base(pretrains)
    write_clip(pretrains / "clip")
    write_classifier(pretrains / "classifier")
    data = write_trials(tmp_path / "datasets" / "miniature", sealed=False)
    (data / "eeg_train").mkdir()
    random = np.random.default_rng(0)
    for i in range(6):
        np.save(data / "eeg_train" / f"{i}.npy", random.standard_normal((8, 600)).astype(np.float32))
    return tmp_path


@pytest.fixture
def run(world, monkeypatch):
    """A function that runs a script on the world."""

    def run_script(script, rules, **more):
        words = {"preset": f"{rules},miniature", "root_path": world, "device": "cpu"} | more
        monkeypatch.setattr(sys, "argv", [script.__name__, *(f"{name}={value}" for name, value in words.items())])
        script.main()

    return run_script


@pytest.mark.parametrize("rules", RULES)
def test_the_whole_chain_by_preset(world, run, rules):
    small = {"n_chans": 8, "n_times": 64, "embed_dim": 16, "decoder_embed_dim": 16, "precision": 32}
    run(stageA1_eeg_pretrain, rules, num_epoch=1, **small)
    run(eeg_ldm, rules, num_epoch=1, ddim_steps=2, num_samples=1, precision=32)
    run(gen_eval_eeg, rules, ddim_steps=2, num_samples=1)

    name, wanted = f"{rules}-miniature", RULES[rules]
    stage_a = read_stage_a(world / "pretrains" / "eeg_pretrain" / f"{name}.pth")
    assert stage_a["run"]["config"]["mask_ratio"] == wanted["mask_ratio"]
    assert stage_a["input"]["scale"] == wanted["scale_a"]
    stage_b = read_stage_b(world / "pretrains" / "generation" / f"{name}.pth", world)
    assert stage_b["config"]["conditioner"]["clip_head"] == wanted["clip_head"]
    assert stage_b["input"]["scale"] == 1.0
    assert bool(torch.equal(stage_b["no_context"], torch.zeros(77, 16))) == (rules == "published")
    metrics = json.loads((world / "results" / "eval" / name / "metrics.json").read_text())
    assert metrics["run"]["seeds"] and metrics["scores"]["class_accuracy"]["n"] == 4
    assert (world / "results" / "eval" / name / "samples" / "test3-1.png").is_file()


@pytest.mark.parametrize(("rules", "scale"), [("paper", 0.1), ("published", 1.0)])
def test_stage_b_starts_from_the_published_stage_a_file(world, run, rules, scale):
    path = write_published_a(world / "authors.pth")
    run(eeg_ldm, rules, pretrain_mbm_path=path, num_epoch=1, ddim_steps=2, num_samples=1, precision=32, lr=0)
    content = read_stage_b(world / "pretrains" / "generation" / f"{rules}-miniature.pth", world)
    assert content["input"]["scale"] == scale
    mae, before = part(content["model"], "cond_stage_model.mae."), read_stage_a(path)["model"]
    assert torch.equal(mae["blocks.0.attn.qkv.weight"], before["blocks.0.attn.qkv.weight"])


def test_stage_c_takes_the_published_checkpoint_directly(world, run):
    path = write_published_b(world / "checkpoint.pth")
    run(gen_eval_eeg, "published", model_path=path, ddim_steps=2, num_samples=1, guidance=1, sampler="plms")
    folder = world / "results" / "eval" / "published-miniature"
    assert (folder / "samples" / "test3-1.png").is_file() and (folder / "index.html").is_file()


@pytest.mark.parametrize(
    ("script", "argument", "make", "kind"),
    [
        (eeg_ldm, "pretrain_mbm_path", write_published_b, "published generation checkpoint"),
        (gen_eval_eeg, "model_path", write_published_a, "published stage A checkpoint"),
        (gen_eval_eeg, "model_path", write_stage_a, r"stage A checkpoint \(ours\)"),
    ],
)
def test_a_wrong_file_is_called_what_it_is_and_leaves_no_run(world, run, script, argument, make, kind):
    with pytest.raises(UserError, match=f"expected a stage . checkpoint.*, found this: {kind}"):
        run(script, "paper", **{argument: make(world / "file.pth")})
    assert not list((world / "results").rglob("*.pth"))
