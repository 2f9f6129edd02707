"""Who may import whom (HOUSE.md 2), what a start loads, sizes, and names that must not shadow others."""

import ast
import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

CODE = Path(__file__).parents[1]
STAGES = {"stageA1_eeg_pretrain", "eeg_ldm", "eeg_clip", "gen_eval_eeg"}
LEAVES = ("sc_mbm", "dc_ldm", "clip_align", "data", "vision", "miniature")  # rooms that know `runtime` alone
MAY_IMPORT = {"runtime": set(), "config": {"runtime"}} | dict.fromkeys(LEAVES, {"runtime"})
MAY_IMPORT["evaluation"] = {"dataset", "data", "vision", "config", "runtime"}
STARTS = ("run", "gen_eval_eeg", "eval_metrics")  # what a user waits for before the first word
HEAVY = {
    "pytorch_lightning", "lightning_fabric", "transformers", "timm", "torchvision", "torchmetrics", "sklearn", "scipy",
    "matplotlib", "mne", "diffusers", "wandb",
}  # fmt: skip
# One process, which loads torch once: a fork of it imports the modules of a name and tells what is loaded then
IMPORTER = """
import importlib, json, os, sys
def load(names, modules):
    if not os.fork():
        try:
            for module in modules:
                importlib.import_module(module)
            print(json.dumps([names, sorted(sys.modules)]), flush=True)
        finally:
            os._exit(0)
    os.wait()
wanted = json.loads(sys.argv[1])
for name in ("config", "run"):
    load(name, wanted.pop(name))
import torch
for name, modules in wanted.items():
    load(name, modules)
"""


def files(name: str = "") -> list[Path]:
    """The modules of a room, or the file of that name; by default all of ours but the tests."""
    found = (CODE / name).rglob("*.py") if (CODE / name).is_dir() else [CODE / f"{name}.py"]
    return [path for path in found if "tests" not in path.parts and path.name != "conftest.py"]


def module(path: Path) -> str:
    parts = path.relative_to(CODE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> set[str]:
    """First words of all modules that a file imports, wherever in the file."""
    words = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            words |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            words.add(node.module.split(".")[0])
    return words


ROOMS = [name for name in MAY_IMPORT if (CODE / name).exists() or (CODE / f"{name}.py").exists()]
OURS = {module(path).split(".")[0] for path in files()}


@pytest.fixture(scope="module")
def loaded() -> dict[str, set[str]]:
    """First words of all that is loaded once every module of a room, or a script, has been imported."""
    wanted = {name: [module(path) for path in files(name)] for name in (*ROOMS, *STARTS)}
    command = [sys.executable, "-c", IMPORTER, json.dumps(wanted)]
    done = subprocess.run(command, cwd=CODE, capture_output=True, text=True)
    answers = dict(map(json.loads, done.stdout.splitlines()))
    assert answers.keys() == wanted.keys(), done.stderr
    return {name: {word.split(".")[0] for word in modules} for name, modules in answers.items()}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_loads_only_what_it_may(loaded, room):
    others = OURS - {room} - MAY_IMPORT[room]
    assert sorted(loaded[room] & others) == []
    for path in files(room):  # inside its functions too
        assert sorted(imports(path) & others) == [], path


def test_commands_are_called_by_their_front_door_alone_and_stages_by_nobody():
    for path in files():
        room = path.relative_to(CODE).parts[0]
        assert "commands" not in imports(path) or room == "commands", path
        assert not imports(path) & STAGES, path


@pytest.mark.parametrize("name", ["runtime", *STARTS])
def test_nothing_heavy_is_loaded_before_it_is_needed(loaded, name):
    assert sorted(loaded[name] & HEAVY) == []


def test_scoring_a_folder_again_loads_no_network_of_ours(loaded):
    assert sorted(loaded["eval_metrics"] & {*LEAVES, "generate"} - {"data", "vision"}) == []


def test_settings_and_the_list_of_commands_need_no_torch(loaded):
    assert "torch" not in loaded["config"] | loaded["run"]


def test_code_is_no_package():
    # code/__init__.py would hide the standard library's `code`, and with it pdb and pytest
    assert not (CODE / "__init__.py").exists()


def test_no_module_is_named_like_another():
    assert sorted(OURS & (set(sys.stdlib_module_names) | set(metadata.packages_distributions()))) == []


def test_file_and_function_sizes():
    lengths = []
    for path in files():
        text = path.read_text()
        assert text.count("\n") <= 400, f"{path.name} has more than 400 lines"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lengths.append(node.end_lineno - node.lineno + 1)
                assert lengths[-1] <= 60, f"{path.name}: {node.name} has {lengths[-1]} lines"
            if isinstance(node, ast.ExceptHandler):
                assert node.type is not None, f"{path.name}:{node.lineno}: bare except"
    assert sorted(lengths)[len(lengths) // 2] <= 10, "half of all functions have at most ten lines"
