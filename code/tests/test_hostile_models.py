"""Model files that are damaged or hostile: each is one sentence that names the file, before anything large is made."""

import json
import pickle
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from test_scorers import K, write_classifier
from tiny_diffusion import ENCODER, foreign_class, write_clip, write_published_a, write_stage_a, write_stage_b

from commands import convert_checkpoint
from dc_ldm import weights
from dc_ldm.generator import load_generator
from dc_ldm.published import read_stage_a
from runtime.checkpoints import check_state, load_strictly
from runtime.errors import UserError
from sc_mbm.mae_for_eeg import EEGEncoder, encoder_state
from vision.cache import cached
from vision.classifier import load_classifier
from vision.clip import load_clip

STAGE_B = "pretrains/generation/tiny.pth"
HUGE, NAN = 2**40, float("nan")


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    write_stage_b(root)
    write_stage_a(root / "a.pth")
    write_clip(root / "clip")
    write_classifier(root / "classifier")
    return root


@pytest.fixture
def world(original, tmp_path):
    return shutil.copytree(original, tmp_path / "world")


def refused(call: Callable[[], object], *words: str) -> None:
    with pytest.raises(UserError) as error:
        call()
    said = str(error.value)
    assert all(word in said for word in words), said
    assert "\n" not in said


def change(path: Path, how: Callable[[dict], object]) -> None:
    """Change the dict in a torch file; `how` alters it."""
    content = torch.load(path, weights_only=True)
    how(content)
    torch.save(content, path)


def put(**values: object) -> Callable[[dict], None]:
    """Sets entries; `config__depth` is that of the dict in it."""

    def how(content: dict) -> None:
        for name, value in values.items():
            *parts, last = name.split("__")
            place = content
            for part in parts:
                place = place[part]
            place[last] = value

    return how


def without(name: str) -> Callable[[dict], object]:
    return lambda content: content.pop(name)


def each_tensor(make: Callable[[torch.Tensor], object]) -> Callable[[dict], None]:
    return lambda content: content.update(model={name: make(value) for name, value in content["model"].items()})


WEIGHTS = {
    "texts": (each_tensor(lambda value: "x"), "expected a dense tensor of real numbers"),
    "whole numbers": (each_tensor(torch.Tensor.long), "of other numbers"),
    "complex": (each_tensor(lambda value: value.to(torch.complex64)), "complex64, expected a dense tensor"),
    "sparse": (each_tensor(torch.Tensor.to_sparse), "sparse"),
    "NaN": (each_tensor(lambda value: value * NAN), "hold NaN or infinite numbers"),
    "infinite": (each_tensor(lambda value: value + float("inf")), "hold NaN or infinite numbers"),
    "a list": (put(model=[1]), "model is [1]"),
    "no names": (put(model={1: torch.zeros(1)}), "expected a dense tensor of real numbers under a name"),
    "none": (put(model={}), "lacks"),
    "none left": (without("model"), "lacks model"),
}
ENCODERS = {
    f"{name} {value}": (name, value)
    for name, value in [
        ("depth", 10**9), ("embed_dim", HUGE), ("num_heads", 0), ("num_heads", 3), ("patch_size", 0), ("depth", "a"),
        ("n_times", -1), ("n_times", 63), ("mlp_ratio", NAN), ("mlp_ratio", 1e30), ("n_chans", True), ("depth", 199),
        ("embed_dim", 2**20), ("n_times", 2**20),
    ]
}  # fmt: skip
INPUTS = {
    "no input": (without("input"), "lacks input"),
    "scale text": (put(input__scale="x"), "scale"),
    "scale 0": (put(input__scale=0.0), "scale"),
    "scale NaN": (put(input__scale=NAN), "scale"),
    "channels a number": (put(input__ch_names=3), "input.ch_names is 3"),
    "channels of numbers": (put(input__ch_names=[1]), "input.ch_names"),
    "rate negative": (put(input__sfreq=-5.0), "input.sfreq"),
    "window text": (put(input__window="ab"), "input.window"),
    "run a list": (put(run=[1]), "run is [1]"),
    "positions a text": (put(run={"positions": "x", "split": {"eeg_sha256": "a"}}), "positions"),
    "positions negative": (put(run={"positions": {"train": [-1]}, "split": {"eeg_sha256": "a"}}), "positions"),
    "split without its file": (put(run={"positions": {}, "split": {}}), "eeg_sha256"),
}
ONLY_B = {
    "no config": (without("config"), "lacks config; found 'base'"),
    "config a list": (put(config=[1]), "config is [1]"),
    "size huge": (put(config__img_size=2**20), "config.img_size"),
    "size odd": (put(config__img_size=33), "config.img_size"),
    "UNet without heads": (put(config__unet__num_heads=0), "config.unet.num_heads is 0"),
    "levels": (put(config__vae__ch_mult=[1] * 10**5), "config.vae.ch_mult"),
    "drop": (put(config__cond_drop="x"), "config.cond_drop"),
    "other head": (put(config__conditioner__clip_head="x"), "clip_head"),
    "condition": (put(config__conditioner__context_dim=17), "no_context is (77, 16), expected (77, 17)"),
    "no condition": (without("no_context"), "lacks no_context"),
    "condition text": (put(no_context="x"), "no_context is 'x'"),
    "condition of whole numbers": (put(no_context=torch.zeros(77, 16).long()), "of other numbers"),
    "condition NaN": (put(no_context=torch.full((77, 16), NAN)), "no_context"),
    "no base": (without("base"), "lacks base"),
    "base text": (put(base="x"), "base is 'x'"),
    "base elsewhere": (put(base__name="../../etc/passwd"), "base.name"),
    "hash a number": (put(base__sha256=5), "base.sha256 is 5"),
}


@pytest.mark.parametrize("case", WEIGHTS | INPUTS | {"config": (without("config"), "lacks config")})
def test_a_stage_a_file_is_checked_before_its_network_is_built(world, case):
    how, words = (WEIGHTS | INPUTS).get(case, (without("config"), "lacks config"))
    change(world / "a.pth", how)

    def load() -> None:
        content = read_stage_a(world / "a.pth")
        load_strictly(EEGEncoder(**ENCODER), encoder_state(content["model"]), f"{world}/a.pth")

    refused(load, f"{world}/a.pth", words)


@pytest.mark.parametrize("case", WEIGHTS | INPUTS | ONLY_B | ENCODERS)
def test_a_stage_b_file_is_checked_before_its_networks_are_built(world, case):
    if case in ENCODERS:
        how, words = put(**{f"config__encoder__{ENCODERS[case][0]}": ENCODERS[case][1]}), ""
    else:
        how, words = (WEIGHTS | INPUTS | ONLY_B)[case]
    change(world / STAGE_B, how)
    refused(
        lambda: load_generator(world / STAGE_B, world / "pretrains", "cpu", EEGEncoder), str(world / STAGE_B), words
    )


def test_sizes_are_compared_with_the_tensors_before_any_memory_is_taken(original):
    state = read_stage_a(original / "a.pth")["model"]
    with torch.device("meta"):
        own = EEGEncoder(**ENCODER | {"embed_dim": 2**14, "depth": 100}).state_dict()
    refused(lambda: check_state(own, state, "file"), "file lacks", "of another shape")


@pytest.mark.parametrize("config", [{"num_heads": 0}, {"num_heads": "x"}, {"decoder_num_heads": 3.5}, [1], 7])
def test_the_configuration_in_a_published_file_is_checked(world, config):
    write_published_a(world / "p.pth")
    with foreign_class("config", "Config_MBM_EEG") as kind:
        content = torch.load(world / "p.pth", weights_only=False)
        if isinstance(config, dict):
            given, content["config"] = config, kind()
            vars(content["config"]).update(given)
        else:
            content["config"] = config
        torch.save(content, world / "p.pth")
    refused(lambda: read_stage_a(world / "p.pth"), "p.pth: config")


@pytest.mark.parametrize("kept", ["pos_embed", "patch_embed.proj.weight", "blocks.0.mlp.fc1.bias"])
def test_a_published_file_without_what_tells_its_sizes_is_refused(world, kept):
    write_published_a(world / "p.pth", **{})
    with foreign_class("config", "Config_MBM_EEG"):
        content = torch.load(world / "p.pth", weights_only=False)
        del content["model"][kept]
        torch.save(content, world / "p.pth")
    refused(lambda: read_stage_a(world / "p.pth"), "p.pth: lacks tensors of a stage A checkpoint")


def edited(**values: object) -> Callable[[dict], None]:
    return lambda params: put(**values)(params)


UNET, VAE = "unet_config__params__", "first_stage_config__params__ddconfig__"
YAMLS = {
    "heads": edited(**{UNET + "num_heads": 0}),
    "heads that do not divide": edited(**{UNET + "num_heads": 3}),
    "width text": edited(**{VAE + "ch": "x"}),
    "width huge": edited(**{UNET + "model_channels": HUGE}),
    "width of no group": edited(**{VAE + "ch": 33}),
    "levels": edited(**{UNET + "channel_mult": [1] * 10**4}),
    "no level": edited(**{UNET + "channel_mult": []}),
    "other levels": edited(**{UNET + "channel_mult": [2**20] * 8}),
    "blocks": edited(**{UNET + "num_res_blocks": -1}),
    "attention": edited(**{UNET + "attention_resolutions": "x"}),
    "betas": edited(linear_start=-1.0),
    "scale": edited(scale_factor=NAN),
    "environment": edited(scale_factor="${oc.env:HOME}"),
    "interpolation": edited(scale_factor="${linear_start}"),
}
TEXTS = {
    "code": "!!python/object/apply:os.system ['touch x']",
    "a circle": "a: &a [*a]",
    "copies": "a: &a [x]\n" + "".join(f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in pairwise("abcdefgh")),
    "merged": "a: &a {k: 1}\n"
    + "".join(f"{b}: &{b} {{<<: [{','.join([f'*{a}'] * 9)}]}}\n" for a, b in pairwise("abcdefghi")),
    "deep": "[" * 100_000,
    "not YAML": "a: [",
    "binary": "\0\1",
    "nothing": "",
    "bool of nothing": "!!bool x",
    "date": "a: 2001-99-99",
    "digits": "a: " + "9" * 5000,
}


@pytest.mark.parametrize("case", YAMLS)
def test_sizes_in_config15_yaml_have_bounds(world, case):
    path = world / "pretrains/models/config15.yaml"
    content = yaml.safe_load(path.read_text())
    YAMLS[case](content["model"]["params"])
    path.write_text(yaml.safe_dump(content))
    refused(lambda: weights.load_base(world / "pretrains"), str(world / "pretrains/models"))


@pytest.mark.parametrize("case", TEXTS)
def test_config15_yaml_is_plain(world, case):
    (world / "pretrains/models/config15.yaml").write_text(TEXTS[case])
    refused(lambda: weights.read_sizes(world / "pretrains/models/config15.yaml"), "config15.yaml")


@pytest.mark.parametrize("state", [["model.diffusion_model.x", "first_stage_model.y"], "texts", "numbers"])
def test_a_ckpt_of_no_tensors_is_refused(world, state):
    file = world / "pretrains/models/v1-5-pruned.safetensors"
    names = load_file(file)
    file.unlink()
    if isinstance(state, str):
        state = dict.fromkeys(names, {"texts": "x", "numbers": 1}[state])
    torch.save({"state_dict": state}, file.with_suffix(".ckpt"))
    refused(lambda: weights.load_base(world / "pretrains"), "v1-5-pruned.ckpt")


CLASSIFIERS = {
    "hub": {"architecture": "hf-hub:evil/model"},
    "folder": {"architecture": "local-dir:/tmp"},
    "number": {"architecture": 5},
    "unknown": {"architecture": "no_such_network"},
    "tag": {"architecture": "resnet18.evil_tag"},
    "weights elsewhere": {"model_args": {"checkpoint_path": "/etc/passwd"}},
    "weights of the hub": {"model_args": {"pretrained": True}},
    "argument": {"model_args": {"no_such_argument": 1}},
    "arguments nested": {"model_args": {"pretrained_cfg": {"file": "/etc/passwd"}}},
    "arguments a list": {"model_args": [1]},
    "channels": {"model_args": {"in_chans": 10**9}},
    "side 0": {"img_size": 0},
    "side text": {"img_size": "x"},
    "side huge": {"img_size": 10**6},
    "mean text": {"mean": "abc"},
    "mean of two": {"mean": [0, 0]},
    "mean NaN": {"mean": [NAN] * 3},
    "std 0": {"std": [0, 1, 1]},
    "few classes": {"classes": ["n00000000"]},
    "classes twice": {"classes": ["n00000000"] * K},
    "classes numbers": {"classes": list(range(K))},
    "classes lists": {"classes": [[1]] * K},
    "few names": {"names": ["a"]},
    "no names": {"names": None},
    "names numbers": {"names": list(range(K))},
    "half a character": {"names": ["\ud800"] * K},
    "count": {"num_classes": 10**12},
    "count text": {"num_classes": "5"},
}


@pytest.mark.parametrize("case", CLASSIFIERS)
def test_a_classifiers_description_is_checked_before_it_is_built(world, case):
    path = world / "classifier/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | CLASSIFIERS[case]))
    refused(lambda: load_classifier(str(world / "classifier")), str(world / "classifier"))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:500])


def pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps({"a": 1}))


def numbers(make: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], None]:
    return lambda path: save_file({name: make(value) for name, value in load_file(path).items()}, path)


FILES = {
    "cut": cut,
    "pickled": pickled,
    "empty": lambda path: path.write_bytes(b""),
    "NaN": numbers(lambda value: value * NAN if value.is_floating_point() else value),
    "whole numbers": numbers(lambda value: value.long()),
    "others": lambda path: save_file({"x": torch.zeros(1)}, path),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "missing": Path.unlink,
}


@pytest.mark.parametrize("case", FILES)
@pytest.mark.parametrize("folder", ["classifier", "clip"])
def test_weights_of_a_folder_are_those_that_it_describes(world, folder, case):
    FILES[case](world / folder / "model.safetensors")
    load = load_classifier if folder == "classifier" else load_clip
    refused(lambda: load(str(world / folder)), str(world / folder))


CLIPS = {
    "attention of the hub": ("config.json", {"attn_implementation": "evil/kernel"}),
    "attention of a tower": ("config.json", {"vision_config": {"_attn_implementation": "evil/kernel"}}),
    "flash attention": ("config.json", {"_attn_implementation": "flash_attention_2"}),
    "own code": ("config.json", {"auto_map": {"AutoModel": "modeling_evil.X"}}),
    "a tokenizer's code": ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.X", None]}}),
    "quantized": ("config.json", {"quantization_config": {"quant_method": "bitsandbytes"}}),
    "another pipeline": ("preprocessor_config.json", {"custom_pipeline": "evil/pipeline"}),
    "another model": ("config.json", {"model_type": "bert"}),
    "width text": ("config.json", {"projection_dim": "x"}),
    "width huge": ("config.json", {"projection_dim": 10**9}),
    "labels": ("config.json", {"num_labels": 10**9}),
    "depth": ("config.json", {"text_config": {"num_hidden_layers": 10**4, "vocab_size": 6}}),
    "depth, as said before": ("config.json", {"text_config_dict": {"num_hidden_layers": 10**4}}),
    "no vocabulary": ("config.json", {"text_config": {"vocab_size": 0}}),
    "tower missing": ("config.json", {"vision_config": None}),
    "dtype": ("config.json", {"dtype": "evil"}),
    "tokenizer a number": ("tokenizer_config.json", {"tokenizer_class": 5}),
    "tokenizer of pickles": ("tokenizer_config.json", {"tokenizer_class": "TransfoXLTokenizer"}),
    "mean text": ("preprocessor_config.json", {"image_mean": "x"}),
    "size 0": ("preprocessor_config.json", {"size": {"shortest_edge": 0}}),
    "size huge": ("preprocessor_config.json", {"size": {"shortest_edge": 10**6}}),
    "size of another": ("preprocessor_config.json", {"size": 48, "crop_size": 48}),
    "rescaled by NaN": ("preprocessor_config.json", {"rescale_factor": NAN}),
}  # fmt: skip


@pytest.mark.parametrize("case", CLIPS)
def test_a_clip_folder_is_local_and_has_bounds(world, case):
    file, values = CLIPS[case]
    path = world / "clip" / file
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    refused(lambda: load_clip(str(world / "clip")), str(world / "clip"))


@pytest.mark.parametrize("content", ["{", "[" * 10**5, "[]", "\ud800".encode("utf-8", "surrogatepass"), b"\xff\xfe"])
@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json", "tokenizer.json"])
def test_json_of_a_clip_folder_is_read_first(world, file, content):
    path = world / "clip" / file
    path.write_bytes(content if isinstance(content, bytes) else content.encode())

    def load() -> None:
        load_clip(str(world / "clip")).text_states(["a"])

    refused(load, str(world / "clip"))


def test_the_tokenizer_must_fit_its_text_tower(world):
    path = world / "clip/tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["vocab"]["red"] = 60
    path.write_text(json.dumps(content))
    refused(lambda: load_clip(str(world / "clip")).text_states(["red"]), str(world / "clip"), "does not belong")


@pytest.mark.parametrize(
    "name", ["open_clip:ViT-B-32:/dev/null", "open_clip:ViT-B-32:/etc", "/etc", "a b", "/etc/passwd"]
)
def test_what_is_no_folder_of_clip_is_not_opened(name):
    refused(lambda: load_clip(name), name.rpartition(":")[2])


@pytest.mark.parametrize("where", ["/etc/passwd", "/etc", "/dev/zero", "hf-hub:evil/x"])
def test_what_is_no_classifier_is_not_opened(where):
    refused(lambda: load_classifier(where), where)


CACHES = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:50]),
    "another entry": lambda path: save_file({"x": torch.zeros(1)}, path),
    "another shape": lambda path: save_file({"latents": torch.zeros(2, 2)}, path),
    "no digest": lambda path: save_file(load_file(path), path),
    "one bit": lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\1"),
    "a pickle": pickled,
    "empty": lambda path: path.write_bytes(b""),
}


@pytest.mark.parametrize("case", CACHES)
def test_a_damaged_cache_of_pictures_is_made_again_and_said_so(tmp_path, capsys, case):
    def ask() -> torch.Tensor:
        return cached(tmp_path, "latents", [], ["depends"], lambda: torch.arange(6.0).view(2, 3))

    whole = ask()
    (file,) = tmp_path.iterdir()
    CACHES[case](file)
    capsys.readouterr()
    assert torch.equal(ask(), whole) and "computing it again" in capsys.readouterr().out
    assert torch.equal(ask(), whole) and not capsys.readouterr().out


def test_what_was_loaded_is_said_with_its_count(original, capsys):
    load_generator(original / STAGE_B, original / "pretrains", "cpu", EEGEncoder)
    load_clip(str(original / "clip"))
    load_classifier(str(original / "classifier"))
    said = [line for line in capsys.readouterr().out.splitlines() if line.endswith("tensors loaded")]
    assert len(said) == 6
    assert f"{original}/pretrains/generation/tiny.pth: the EEG conditioner: 29 of 29 tensors loaded" in said


CONVERTED = {
    "facts a list": ({"eeg_ldm": [1]}, "eeg_ldm is [1]"),
    "facts empty": ({"eeg_ldm": {}}, "lacks format"),
    "no facts": ({}, "lacks eeg_ldm"),
}


@pytest.mark.parametrize("case", CONVERTED)
def test_a_v1_file_of_somebody_else_is_refused(tmp_path, monkeypatch, case):
    more, words = CONVERTED[case]
    state = {"cond_stage_model.mae.x": torch.zeros(1), "first_stage_model.y": torch.zeros(1)}
    torch.save({"state_dict": state} | more, tmp_path / "x.ckpt")
    refused(lambda: convert(monkeypatch, tmp_path / "x.ckpt", "ours", tmp_path / "out"), "x.ckpt", words)


@pytest.mark.parametrize("text", ["{", "[1]", "{}", '{"format": "eeg-mae-1"}', '{"format": ["eeg-ldm-1"]}', "\0"])
def test_the_description_of_tensors_is_checked(tmp_path, monkeypatch, text):
    save_file({"mask_token": torch.zeros(1), "decoder_blocks.0.x": torch.zeros(1)}, tmp_path / "x.safetensors")
    (tmp_path / "x.json").write_text(text)
    refused(lambda: convert(monkeypatch, tmp_path / "x.safetensors", "ours", tmp_path / "out"), str(tmp_path / "x."))


def test_what_json_cannot_hold_leaves_no_half_conversion(world, monkeypatch):
    change(world / STAGE_B, put(run={"x": torch.zeros(2)}))
    out = world / "out.safetensors"
    refused(lambda: convert(monkeypatch, world / STAGE_B, "safetensors", out), "holds what JSON cannot")
    assert not out.exists() and not out.with_suffix(".json").exists()
    refused(lambda: convert(monkeypatch, world / STAGE_B, "ours", "a\0b"), "out=")


def convert(monkeypatch, checkpoint: Path, to: str, out: object) -> None:
    monkeypatch.setattr("sys.argv", ["convert_checkpoint", f"checkpoint={checkpoint}", f"to={to}", f"out={out}"])
    convert_checkpoint.main()
