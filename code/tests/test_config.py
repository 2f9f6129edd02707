"""The command line: names, types, presets."""

from dataclasses import fields
from typing import get_args

import pytest

from config import FinetuneConfig, GenerateConfig, PretrainConfig, from_cli, help_text, presets_of
from dc_ldm.generator import SAMPLERS
from dc_ldm.modules.conditioner import CLIP_HEADS
from runtime.devices import pick_device
from runtime.errors import UserError
from sc_mbm.trainer import check


def test_defaults_are_the_papers_run():
    cfg = from_cli(PretrainConfig, [])
    assert (cfg.name, cfg.mask_ratio, cfg.num_epoch, cfg.mlp_ratio, cfg.n_times) == ("paper", 0.75, 500, 4.0, 512)
    cfg = from_cli(FinetuneConfig, [])
    assert (cfg.num_epoch, cfg.clip_head, cfg.lr, cfg.batch_size) == (300, "condition", 5.3e-5, 25)
    cfg = from_cli(GenerateConfig, [])
    assert (cfg.sampler, cfg.ddim_steps, cfg.num_samples, cfg.guidance) == ("plms", 250, 5, 1.0)


def test_the_published_commands_are_understood(capsys):
    cfg = from_cli(PretrainConfig, "--mask_ratio 0.75 --num_epoch 800 --batch_size 2 --roi VC --local-rank=0".split())
    assert (cfg.mask_ratio, cfg.num_epoch, cfg.batch_size) == (0.75, 800, 2)
    assert capsys.readouterr().out.count("has no effect") == 2
    cfg = from_cli(FinetuneConfig, "--dataset EEG --num_epoch 300 --batch_size 4 --pretrain_mbm_path a.pth".split())
    assert (cfg.pretrain_mbm_path, cfg.batch_size) == ("a.pth", 4)
    cfg = from_cli(GenerateConfig, "--root x --dataset EEG --model_path m.pth --config_patch c.yaml".split())
    assert (cfg.root_path, cfg.model_path) == ("x", "m.pth")


def test_the_rank_that_the_old_launcher_passes_is_accepted_by_every_stage(capsys):
    for cls in (PretrainConfig, FinetuneConfig, GenerateConfig):
        assert from_cli(cls, ["--local-rank=1", "seed=3"]).seed == 3
    assert capsys.readouterr().out.count("local_rank has no effect") == 3


def test_presets_combine_left_to_right_and_the_command_line_wins():
    cfg = from_cli(PretrainConfig, ["preset=published,miniature", "embed_dim=32"])
    assert (cfg.name, cfg.mask_ratio, cfg.embed_dim) == ("published-miniature", 0.1, 32)
    assert cfg.mlp_ratio == from_cli(PretrainConfig, ["preset=miniature"]).mlp_ratio


@pytest.mark.parametrize(("text", "value"), [("false", False), ("False", False), ("0", False), ("true", True)])
def test_booleans_mean_what_they_say(text, value):
    assert from_cli(FinetuneConfig, ["--use_time_cond", text]).use_time_cond is value


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["mask_ration=0.5"], "did you mean mask_ratio"),
        (["lr=fast"], "lr=fast: expected a value of type float"),
        (["batch_size=1.5"], "expected a value of type int"),
        (["wandb=maybe"], "expected a value of type bool"),
        (["seed=???"], "expected a value of type int"),
        (["seed=${depth}"], r"seed=.{depth}: expected a value of type int"),
        (["lr=${oc.env:HOME}"], r"lr=.{oc.env:HOME}: expected a value of type float"),
        (["device=${device}", "lr=${lr}"], r"lr=.{lr}: expected a value of type float"),
        (["wandb=2"], "wandb=2: expected a value of type bool"),
        (["seed=1_0"], "seed=1_0: expected a value of type int"),
        (["seed= 5"], "seed= 5: expected a value of type int"),
        (["seed=" + "9" * 30], "seed=9.*: expected a value of type int within 64 bits"),
        (["seed=" + "9" * 5000], "seed='9.*: expected a value of type int"),
        (["eeg_path=a\0b"], r"eeg_path='a.x00b': expected text"),
        (["root_path=\udcff"], r"root_path='.udcff': expected text in UTF-8"),
        (["cache=a\nb"], r"cache='a.nb': expected text"),
        (["preset=,,"], "preset='': no such preset"),
        (["precision=16"], "precision=16: expected auto or 32 or bf16 .see --help.$"),
        (["preset=huge"], "no such preset"),
        (["--lr"], "a value is missing"),
        (["lr"], "expected name=value"),
    ],
)
def test_mistakes_are_named(words, message):
    with pytest.raises(UserError, match=message):
        from_cli(PretrainConfig, words)


@pytest.mark.parametrize("cls", [PretrainConfig, FinetuneConfig, GenerateConfig])
def test_help_shows_every_setting_with_its_source(cls):
    text = help_text(cls)
    for name, value in vars(from_cli(cls, [])).items():
        assert f"  {name}=" in text, value
    assert text.count("[paper]") + text.count("[published code]") + text.count("[ours]") == len(vars(from_cli(cls, [])))


@pytest.mark.parametrize(
    ("word", "expected"),
    [("batch_size=0", "at least 1 and at most 1000000000"), ("lr=-1", "at least 0"), ("seed=-1", "at least 0")]
    + [("mask_ratio=1.5", "at least 0 and below 1"), ("held_out=0", "more than 0 and below 1")]
    + [("accum_iter=1000000", "at least 1 and at most 1000"), ("embed_dim=1099511627776", ".*at most 8192")]
    + [("num_epoch=9000000000000000000", "at least 1 and at most 1000000"), ("warmup_epochs=1e9", ".*at most 1000000")]
    + [("mlp_ratio=1e9", "more than 0 and at most 64"), ("local_start=-5", "at least 0")],
)
def test_values_that_make_no_sense_are_refused(word, expected):
    with pytest.raises(UserError, match=f"{word.split('=')[0]}=.*expected {expected}$"):
        from_cli(PretrainConfig, [word])


@pytest.mark.parametrize("cls", [PretrainConfig, FinetuneConfig, GenerateConfig])
@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1e400", "1e30", "1e-45", "9" * 30])
def test_no_number_is_endless_or_nothing(cls, text):
    for f in fields(cls):
        if f.type in (int, float):
            with pytest.raises(UserError, match=f"^{f.name}="):
                from_cli(cls, [f"{f.name}={text}"])


def test_text_that_looks_like_a_reference_stands_for_itself():
    words = ["${seed}", "a/${oc.env:HOME}", "${x", "???", "null", "!!python/object:x", "*a", "a: b", "${a:${b}}"]
    for word in words:
        assert from_cli(PretrainConfig, [f"eeg_path={word}", f"cache={word}"]).eeg_path == word


@pytest.mark.parametrize(
    "name",
    [
        "..",
        ".",
        "../../up",
        "/abs",
        "a/b",
        "a\\b",
        "n" * 101,
        "名" * 70,
        "a\nb",
        "a\0b",
        "-rf",
        ".hidden",
        " a",
        "x.",
        "x ",
    ]
    + [
        "<b>",
        "$(touch x)",
        "~x",
        "${oc.env:HOME}",
        "${seed}",
        "???",
        "'`;",
        "%s%n",
        "\udcff",
        "*?[a]",
        "{0}",
        "a\u202eb",
    ],
)
def test_a_name_that_is_no_plain_part_of_a_path_is_refused(name):
    for cls in (PretrainConfig, FinetuneConfig, GenerateConfig):
        with pytest.raises(UserError, match="^name=") as refused:
            from_cli(cls, [f"name={name}"])
        assert len(str(refused.value)) < 250 and "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["a b c", "жé名", "null", "हिन्दी", "lr=1e-3,v2", "2026-11-28", "_x.1+2", "n" * 100])
def test_plain_names_of_any_script_stay(name):
    assert from_cli(GenerateConfig, [f"name={name}"]).name == name


def test_settings_of_the_learning_rate_that_make_no_sense_together(capsys):
    with pytest.raises(UserError, match="min_lr=0.01: is above lr=0.001"):
        check(from_cli(PretrainConfig, ["lr=1e-3", "min_lr=1e-2"]))
    check(from_cli(PretrainConfig, ["num_epoch=2"]))
    assert "note: warmup_epochs=40 of num_epoch=2" in capsys.readouterr().out


def test_devices_are_spelt_as_the_help_says():
    for device in ("cpu:99", "cuda:x", "autocpu", "meta", "${device}", "cuda:-1", "CPU"):
        with pytest.raises(UserError, match="no such device; use auto, cpu, cuda or cuda:N"):
            pick_device(device)
    assert pick_device("cpu").type == "cpu"


@pytest.mark.parametrize("cls", [PretrainConfig, FinetuneConfig, GenerateConfig])
def test_presets_hold_settings_of_their_types(cls):
    kinds = {f.name: f.type for f in fields(cls)}
    for values in presets_of(cls).values():
        for name, value in values.items():
            assert value in get_args(kinds[name]) or type(value) is kinds[name], name


def test_help_names_the_choices():
    text = help_text(FinetuneConfig)
    assert "(plms | ddim | dpm_solver)" in text and "(E | A | E+A)" in text and "(auto | 32 | bf16)" in text


def test_choices_are_those_of_the_code_that_takes_them():
    kinds = {f.name: f.type for cls in (FinetuneConfig, GenerateConfig) for f in fields(cls)}
    assert set(get_args(kinds["sampler"])) == set(SAMPLERS)
    assert set(get_args(kinds["clip_head"])) == set(CLIP_HEADS)
