"""Stage B: the loss, its draws, what trains, selection, the caches, exact resume, and the script on a tiny world."""

import csv
import json
import os
import signal
import sys
from types import SimpleNamespace

import pytest
import torch
from test_scorers import write_classifier
from tiny_diffusion import SIZE, UNET, stage_b_arguments, write_base, write_clip, write_trials
from torch.testing import assert_close
from two_processes import assert_gradients_agree, keep_gradients, launch

import eeg_ldm
import training_inputs
import vision.classifier as scorers
from dc_ldm import weights
from dc_ldm.ldm_for_eeg import EEGLatentDiffusion, LatentBatch, LatentTrials, add_noise, reciprocal_rank
from dc_ldm.models.samplers import sd_alphas_cumprod
from dc_ldm.models.unet import UNet
from dc_ldm.modules.conditioner import EEGConditioner
from runtime import checkpoints, digests
from runtime.draws import Batch, StepBatches
from runtime.errors import UserError
from runtime.loop import Schedule, fit
from runtime.pictures import image_tensor, load_image
from runtime.runs import open_run
from sc_mbm.mae_for_eeg import EEGEncoder
from vision import cache as image_cache
from vision.clip import FrozenCLIP


def some_trials(n: int = 24, n_crops: int = 2, std: float = 0.1, **settings) -> LatentTrials:
    """Random trials of 4 pictures; every view of every picture has another constant mean."""
    torch.manual_seed(0)
    means = torch.arange(4.0 * (1 + n_crops)).view(4, 1 + n_crops, 1, 1, 1, 1).expand(-1, -1, 1, 4, 4, 4)
    moments = torch.cat([means, torch.full_like(means, std)], dim=2)
    return LatentTrials(torch.randn(n, 8, 64), torch.arange(n) % 4, moments, torch.randn(4, 12), **settings)


def whole(n: int, step: int = 0) -> Batch:
    return Batch(step, torch.arange(n), 0, n, 1.0)


def test_draws_do_not_depend_on_how_a_batch_is_shared():
    trials = some_trials(cond_drop=0.3)
    both = trials[whole(24, 7)]
    first = trials[Batch(7, torch.arange(10), 0, 24, 1.0)]
    second = trials[Batch(7, torch.arange(10, 24), 10, 24, 1.0)]
    for one, two, all_ in zip(first, second, both, strict=True):
        assert torch.equal(torch.cat([one, two]), all_)
    assert not torch.equal(trials[whole(24, 8)].noise, both.noise)


def test_latents_are_scaled_posterior_samples_of_plain_picture_or_crop():
    exact = some_trials(4000, std=0.0)[whole(4000)].latent
    view = (exact / 0.18215).mean((1, 2, 3)).round().long() % 3
    assert_close(exact.std((1, 2, 3)), torch.zeros(4000))
    assert_close((view == 0).float().mean(), torch.tensor(0.5), atol=0.03, rtol=0)
    assert_close((view == 1).float().mean(), torch.tensor(0.25), atol=0.03, rtol=0)
    spread = some_trials(4000, std=2.0)[whole(4000)].latent - exact
    assert_close(spread.std(), torch.tensor(2 * 0.18215), atol=0.002, rtol=0)


def test_without_crops_the_picture_is_plain_and_draws_cover_their_range():
    data = some_trials(4000, n_crops=0, std=0.0, cond_drop=0.25)[whole(4000)]
    assert_close(data.latent.mean((1, 2, 3)), 0.18215 * (torch.arange(4000) % 4).float())
    assert_close(data.keep.mean(), torch.tensor(0.75), atol=0.03, rtol=0)
    assert data.t.min() < 5 and data.t.max() > 994 and abs(data.t.float().mean() - 499.5) < 15


def test_losses_are_the_published_ones():
    data = some_trials(cond_drop=0.5)[whole(24)]
    abar = sd_alphas_cumprod()
    context = torch.ones(24, 77, 16)
    seen = {}

    def unet(x, t, c):
        seen["context"], seen["x"] = c, x
        return data.noise + 0.5

    nothing = torch.full((77, 16), 7.0)
    module = SimpleNamespace(
        conditioner=lambda eeg: (context, -3 * data.clip), unet=unet, alphas_cumprod=abar, no_context=nothing
    )
    loss_noise, loss_clip = EEGLatentDiffusion.losses(module, data)
    assert_close(loss_noise, torch.tensor(0.25))
    assert_close(loss_clip, torch.tensor(2.0))
    assert torch.equal(seen["context"], torch.where(data.keep.bool(), context, nothing))
    assert_close(seen["x"][5], abar[data.t[5]].sqrt() * data.latent[5] + (1 - abar[data.t[5]]).sqrt() * data.noise[5])
    assert_close(add_noise(data.latent, data.noise, torch.ones(24)), data.latent)


def tiny_module(**settings) -> EEGLatentDiffusion:
    torch.manual_seed(0)
    encoder = EEGEncoder(8, 64, 4, 16, 1, 2, 1.0)
    return EEGLatentDiffusion(
        EEGConditioner(encoder, context_dim=16, clip_dim=12, clip_head="condition"),
        UNet(**UNET).requires_grad_(False),
        sd_alphas_cumprod(),
        torch.zeros(77, 16),
        **{"lr": 0.01, **settings},
    )


def train(folder, items, module=None, **changed) -> EEGLatentDiffusion:
    module = module or tiny_module()
    if changed.get("precision") == "bf16":  # as eeg_ldm.py does
        module.halve_frozen()
    schedule = Schedule(**{"batch_size": 5, "num_epoch": 2, "seed": 1, "clip_grad": 0.5, "device": "cpu"} | changed)
    fit(module, items, open_run(folder, {}), schedule, lambda epoch: {"epoch_seen": epoch})
    return module


@pytest.mark.parametrize("finetune", ["E+A", "E", "A"])
def test_exactly_the_named_part_trains(tmp_path, finetune):
    module = tiny_module(finetune=finetune)
    # Zero-initialised layers of an untrained UNet would pass no gradient on.
    for value in module.unet.parameters():
        if not value.any():
            value.data.normal_(std=0.1)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    train(tmp_path, some_trials(), module)
    changed = {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}
    constants = ("pos_embed", "cls_token", "mask_token")
    always = ("conditioner.channel_mapper.", "conditioner.dim_mapper.", "conditioner.mapping.")
    always += ("unet.time_embed_condtion.",)
    expected = {name for name in before if name.startswith(always)}
    if "E" in finetune:
        expected |= {name for name in before if name.startswith("conditioner.mae.") and not name.endswith(constants)}
    if "A" in finetune:
        expected |= {name for name in before if ".attn2." in name or ".norm2." in name and "transformer" in name}
    # A bias on keys shifts all scores of a query alike: softmax ignores it, so its gradient is rounding only.
    assert changed == expected
    assert all((p.grad is not None) == (name in expected) for name, p in module.named_parameters())
    trained = {id(p) for group in module.configure_optimizers().param_groups for p in group["params"]}
    assert trained == {id(p) for name, p in module.named_parameters() if name in expected}
    resume = checkpoints.load(tmp_path / "last.pth", ("resume-1",), "resume point")
    assert len(resume["optimizer"]["state"]) == len(expected)
    assert set(resume["module"]) == set(tiny_module().training_state())  # one format, whatever trains


class Interrupted(LatentTrials):
    """Trials that ask the process to stop when a certain step is drawn."""

    def __getitem__(self, batch: Batch) -> LatentBatch:
        if batch.step == 7:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().__getitem__(batch)


@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_stopped_in_the_middle_of_an_epoch_ends_with_the_same_bits(tmp_path, precision):
    settings = {"cond_drop": 0.2}
    straight = train(tmp_path / "straight", some_trials(**settings), precision=precision)
    stopping = some_trials(**settings)
    stopping.__class__ = Interrupted
    with pytest.raises(SystemExit):
        train(tmp_path / "stopped", stopping, precision=precision)
    stopped_at = checkpoints.load(tmp_path / "stopped" / "last.pth", ("resume-1",), "resume point")["step"]
    assert 5 < stopped_at < 10
    resumed = train(tmp_path / "stopped", some_trials(**settings), precision=precision)
    for name, value in straight.training_state().items():
        assert torch.equal(value, resumed.training_state()[name]), name


def test_gradient_of_a_step_does_not_depend_on_how_its_batch_is_cut():
    def gradients(accumulate: int) -> list[torch.Tensor]:
        module, trials = tiny_module(), some_trials(10, cond_drop=0.3)
        for batch in StepBatches(10, 12 // accumulate, 1, 0, 1, accumulate):
            (module(batch, trials[batch]) / accumulate).backward()
        assert all(p.grad is None for p in module.parameters() if not p.requires_grad)
        return [p.grad for p in module.parameters() if p.grad is not None]

    for whole_batch, cut in zip(gradients(1), gradients(3), strict=True):
        assert_close(cut, whole_batch, atol=1e-6, rtol=1e-4)


def test_reciprocal_rank_takes_ties_in_expectation():
    targets = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 2.0], [-1.0, 0.0]])
    embedding = torch.tensor([[3.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, 0.0]])
    found = reciprocal_rank(embedding, targets, torch.tensor([0, 2, 0, 1]))
    expected = [1.0, (1 + 1 / 2) / 2, 1 / 4, (1 + 1 / 2 + 1 / 3 + 1 / 4) / 4]
    assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_caches_are_read_back_and_follow_their_content(tmp_path):
    vae = weights.load_base(write_base(tmp_path)).vae
    write_trials(tmp_path)
    paths = sorted((tmp_path / "imageNet_images").rglob("*.JPEG"))[:3]

    def moments(seed=1):
        return image_cache.latent_moments(tmp_path / "cache", vae, paths, SIZE, 2, 0.2, seed)

    def files():
        return sorted((tmp_path / "cache").iterdir())

    first = moments()
    assert first.shape == (3, 3, 2, 4, 4, 4)
    with torch.no_grad():
        posterior = vae.encode(image_tensor(load_image(paths[1]), SIZE)[None])
    assert_close(first[1, 0], torch.cat([posterior.mean, posterior.std]), atol=1e-5, rtol=1e-5)
    assert not torch.equal(first[:, 1], first[:, 2])
    stamp = files()[0].stat().st_mtime_ns
    assert torch.equal(moments(), first) and files()[0].stat().st_mtime_ns == stamp
    files()[0].write_bytes(files()[0].read_bytes()[:50])
    assert torch.equal(moments(), first) and len(files()) == 1
    assert not torch.equal(moments(seed=2)[:, 1:], first[:, 1:])
    load_image(paths[0]).rotate(90).save(paths[0])
    assert not torch.equal(moments()[0], first[0]) and len(files()) == 3
    vae.quant_conv.bias.data += 1
    assert_close(moments()[1:, :, 0], first[1:, :, 0] + 1, atol=1e-4, rtol=1e-4)


def test_clip_sees_the_plain_picture_and_refuses_what_is_no_clip(tmp_path):
    clip = FrozenCLIP(write_clip(tmp_path / "clip"))
    pictures = [load_image(path) for path in sorted((write_trials(tmp_path) / "imageNet_images").rglob("*.JPEG"))]
    together = clip.embed_images(pictures)
    assert together.shape == (8, clip.dim) and together.dtype == torch.float32
    assert_close(clip.embed_images(pictures[3:4])[0], together[3], atol=1e-5, rtol=1e-5)
    assert clip.text_states(["red disc", "blue"]).shape[:2] == (2, 77)
    for wrong in (tmp_path / "absent", tmp_path):
        with pytest.raises(UserError):
            FrozenCLIP(wrong)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A finished run of stage B on the tiny world, whose test trials hold NaN and so must never be opened."""
    root = tmp_path_factory.mktemp("world")
    run_script(root)
    return root


def run_script(root, **changed) -> None:
    arguments = sys.argv
    sys.argv = ["eeg_ldm.py", *stage_b_arguments(root, **changed)]
    try:
        eeg_ldm.main()
    finally:
        sys.argv = arguments


def test_script_hands_on_the_selected_epoch(world, capsys):
    run = world / "results/generation/tiny"
    content = checkpoints.load(world / "pretrains/generation/tiny.pth", (weights.FORMAT,), "stage B checkpoint")
    assert content["config"]["encoder"]["embed_dim"] == 16 and content["config"]["conditioner"]["clip_dim"] == 12
    assert content["base"]["sha256"] == digests.sha256(world / "pretrains/models/v1-5-pruned.safetensors")
    assert content["input"]["scale"] == 1.0 and content["run"]["epoch"] in (1, 2)
    assert content["run"]["split"]["shared"]["train/test"]["identical"] == 0
    prefixes = {name.split(".")[0] for name in content["model"]}
    assert prefixes == {"cond_stage_model", "model"}
    assert {path.name for path in run.glob("*.png")} == {"validation-0001.png", "validation-0002.png"}
    rows = (run / "metrics.csv").read_text().splitlines()
    assert len(rows) == 3 and "val_clip_mrr" in rows[0]
    run_script(world)
    assert "is finished" in capsys.readouterr().out


def test_selection_keeps_the_best_epoch_not_the_last(tmp_path, monkeypatch):
    scores = iter([0.2, 0.9, 0.5])
    monkeypatch.setattr(eeg_ldm, "reciprocal_rank", lambda *_: torch.tensor([next(scores)]))
    run_script(tmp_path, num_epoch=3)
    content = checkpoints.load(tmp_path / "pretrains/generation/tiny.pth", (weights.FORMAT,), "checkpoint")
    last = checkpoints.load(tmp_path / "results/generation/tiny/last.pth", ("resume-1",), "resume point")
    assert content["run"]["epoch"] == 2 and content["run"]["val_clip_mrr"] == pytest.approx(0.9)
    name = "cond_stage_model.dim_mapper.weight"
    assert not torch.equal(content["model"][name], last["module"][name])


def test_pictures_that_show_the_right_class_select_the_epoch(tmp_path, monkeypatch, capsys):
    # a judge that sees the right class in a share of the pictures: 1/4, 1, 1/2 of the four validation trials
    stage_b_arguments(tmp_path)
    write_classifier(tmp_path / "classifier")
    seen = []

    def judge(self, pictures):
        own = torch.tensor([0, 1, 0, 1]).repeat_interleave(2)  # classes of the validation trials, two pictures each
        wrong = torch.arange(8) >= (2, 8, 4)[len(seen)]
        seen.append(pictures)
        return torch.nn.functional.one_hot((own + wrong) % 5, 5).float(), None

    monkeypatch.setattr(scorers.PictureClassifier, "__call__", judge)
    run_script(tmp_path, num_epoch=3, select="n_way", classifier="classifier")
    printed = capsys.readouterr().out
    assert "8 pictures x 5 = 40 UNet forwards at each validation, 120 in all 3, beside 9 training steps" in printed
    assert "selected epoch 2, validation mean 5-way top-1 of pictures 1.000" in printed
    assert [len(pictures) for pictures in seen] == [8, 8, 8] and not torch.equal(seen[0], seen[1])
    content = checkpoints.load(tmp_path / "pretrains/generation/tiny.pth", (weights.FORMAT,), "checkpoint")
    assert content["run"]["epoch"] == 2 and content["run"]["val_n_way_top1"] == 1
    rows = list(csv.DictReader((tmp_path / "results/generation/tiny/metrics.csv").open()))
    assert [float(row["val_n_way_top1"]) for row in rows] == [0.25, 1, 0.5]  # mean over samples: no best of them


def test_a_classifier_that_lacks_a_class_is_refused_before_any_work(tmp_path):
    stage_b_arguments(tmp_path)
    folder, _ = write_classifier(tmp_path / "classifier")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "classes": list("abcde")}))
    with pytest.raises(UserError, match="does not know n00000000, n00000001"):
        run_script(tmp_path, select="n_way", classifier="classifier")
    assert not list((tmp_path / "datasets/cache").glob("latents*"))


def test_stage_a_weights_arrive_and_none_means_untrained(world):
    from config import FinetuneConfig, from_cli

    def encoder(**changed):
        cfg = from_cli(FinetuneConfig, stage_b_arguments(world, **changed))
        file = training_inputs.wanted_files(cfg).get("pretrain_mbm_path")
        return training_inputs.open_stage_a(cfg, file and world / file[1])

    trained = encoder()
    saved = checkpoints.load(world / "pretrains/eeg_pretrain/tiny.pth", ("eeg-mae-1",), "stage A checkpoint")["model"]
    assert torch.equal(trained.encoder.blocks[0].attn.qkv.weight, saved["blocks.0.attn.qkv.weight"])
    assert trained.scale == 1.0
    small = {"encoder_embed_dim": 32, "encoder_depth": 2, "encoder_num_heads": 2}
    untrained = encoder(pretrain_mbm_path="none", **small)
    sizes = [untrained.sizes[name] for name in ("embed_dim", "depth", "n_chans")]
    assert (sizes, len(untrained.encoder.blocks)) == ([32, 2, 128], 2)
    assert encoder(eeg_scale=0.1).scale == 0.1


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"pretrain_mbm_path": "pretrains/generation/tiny.pth"}, "stage A checkpoint"),
        (
            {"pretrain_mbm_path": "pretrains/absent.pth"},
            r"missing: stage A checkpoint .*absent.pth \(pretrain_mbm_path=\)",
        ),
        ({"pretrain_gm_path": "datasets"}, "no Stable Diffusion weights"),
        ({"clip": "pretrains/absent/model"}, "no such folder"),
        (
            {"imagenet_path": "absent", "splits_path": "gone"},
            "missing: splits .*gone.*; folder of the images shown .*absent",
        ),
        ({"select": "test"}, "clip_retrieval or n_way"),
        ({"select": "n_way", "classifier": "absent"}, "no such classifier"),
        ({"select": "n_way"}, "needs a picture classifier"),
        ({"dataset": "GOD"}, "dataset=GOD: expected EEG"),
        ({"clip_head": "both"}, "clip_head"),
        ({"finetune": "e"}, "finetune=e: expected E or A or E.A"),
        ({"ddim_steps": 300}, "asked for 300"),
        ({"sampler": "euler"}, "sampler=euler"),
        ({"img_size": 30}, "multiples of 16"),
        ({"cond_drop": 1.5}, "cond_drop=1.5"),
        ({"device": "cuda:99"}, "cuda:99"),
        ({"subject": 2}, "subject 2"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(world, tmp_path, monkeypatch, changed, said):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(UserError, match=said) as error:
        given = {"pretrain_mbm_path": "pretrains/eeg_pretrain/tiny.pth"} | changed
        run_script(world, name=tmp_path.name, **given)
    assert "\n" not in str(error.value)


def test_a_dry_run_lists_all_that_does_not_open_and_makes_nothing(tmp_path, capsys):
    def dry_run(**changed) -> tuple[int, str]:
        with pytest.raises(SystemExit) as end:
            run_script(tmp_path, dry_run=True, **changed)
        return end.value.code, capsys.readouterr().out

    status, text = dry_run()
    assert status == 0 and text.endswith("stage B can start\n") and "WRONG" not in text, text
    subjects = ("device", "stage A checkpoint", "Stable Diffusion", "CLIP", "plan", "memory", "trials", "pictures")
    assert all(f"  ok     {subject}: " in text for subject in ("settings", *subjects, "run folder"))
    assert "16 training and 4 validation trials" in text
    assert not (tmp_path / "results").exists()
    status, text = dry_run(
        eeg_signals_path="gone.pth", pretrain_gm_path="datasets", clip="no/such/folder", pretrain_mbm_path="absent.pth",
        guidance=2.0, select="n_way", classifier="absent", device="cuda:99",
    )  # fmt: skip
    faults = (
        "settings: guidance=2.0", "device: device=cuda:99", "classifier: ", "stage A checkpoint: ", "absent.pth",
        "Stable Diffusion: ", "CLIP: no/such/folder: 0 of config.json", "trials: ", "gone.pth: no such file",
    )  # fmt: skip
    assert status == 1 and all(fault in text for fault in faults), text
    assert text.count("  WRONG  ") == 7 and "stage B cannot start" in text and not (tmp_path / "results").exists()


def test_the_condition_starts_at_the_empty_caption_read_as_clip_reads_text(tmp_path):
    empty, projection = FrozenCLIP(write_clip(tmp_path)).text_start(77)
    assert empty.shape == (77, 16) and projection.shape == (12, 16)
    conditioner = EEGConditioner(EEGEncoder(8, 64, 4, 16, 1, 2, 1.0), 77, 16, 12, "condition")
    conditioner.start_at_text(empty, projection)
    with torch.no_grad():
        context, embedding = conditioner(torch.randn(3, 8, 64))
        assert_close(context, context[:, :1].expand_as(context))  # all tokens alike, but not all trials
        assert not torch.allclose(context[0], context[1])
        assert_close(embedding, context.mean(1) @ projection.T)
        conditioner.channel_mapper[1].weight.zero_()
        assert_close(conditioner(torch.randn(1, 8, 64))[0][0, 0], empty[1:].mean(0))
    with pytest.raises(UserError, match="text_start=false"):
        EEGConditioner(EEGEncoder(8, 64, 4, 16, 1, 2, 1.0), 77, 24, 12).start_at_text(empty, projection)


def test_two_processes_train_like_one_and_stop_together(tmp_path, monkeypatch):
    settings = {"cond_drop": 0.2, "precision": "32", "lr": 1e-4, "batch_size": 5}  # 16 trials: the last batch is one
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", keep_gradients(tmp_path / "gradients.pth"))
        run_script(tmp_path, **settings)
    one = checkpoints.load(tmp_path / "results/generation/tiny/last.pth", ("resume-1",), "resume point")
    words = stage_b_arguments(tmp_path, **settings, pretrain_mbm_path="pretrains/eeg_pretrain/tiny.pth")
    words[words.index("name=tiny")] = "name=two"
    folder = tmp_path / "results/generation/two"

    codes, said = launch("eeg_ldm", words, tmp_path / "logs", "term 1")
    assert codes == [143, 143] and "stopped by SIGTERM after step 2 of 8" in said[0] and not said[1], said
    assert_gradients_agree(tmp_path / "gradients.pth", tmp_path / "logs" / "gradients.pth")
    codes, said = launch("eeg_ldm", words, tmp_path / "logs", "nan 2")
    assert codes == [2, 2] and said[0].count("error: ") == 1 and "at step 2" in said[0] and not said[1], said
    assert checkpoints.load(folder / "last.pth", ("resume-1",), "resume point")["step"] == 2
    codes, said = launch("eeg_ldm", words, tmp_path / "logs")
    assert codes == [0, 0] and "after step 2" in said[0] and not said[1], said
    two = checkpoints.load(folder / "last.pth", ("resume-1",), "resume point")
    for name, value in one["module"].items():
        # they move by 8e-4; of keys' biases and the mix of equal tokens Adam enlarges what is little but rounding
        near = 1e-5 if name.endswith(("qkv.bias", "maxpool.weight")) else 1e-6
        assert_close(two["module"][name], value, atol=near, rtol=0, msg=name)
    assert two["losses"] == one["losses"] == [] and two["rows"][1]["train_loss"] == pytest.approx(
        one["rows"][1]["train_loss"], abs=1e-4
    )
    assert {path.name for path in folder.iterdir()} == {p.name for p in folder.with_name("tiny").iterdir()}
