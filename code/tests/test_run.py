"""The front door of every command beside the stages."""

import ast
import subprocess
import sys

import pytest

import run
from runtime.errors import UserError


def call(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["run.py", *words])
    run.main()


def test_without_a_name_every_command_is_listed_with_what_it_is_for(monkeypatch, capsys):
    call(monkeypatch)
    usage, empty, *lines = capsys.readouterr().out.splitlines()
    assert usage.startswith("python code/run.py NAME") and not empty
    names = [path.stem for path in run.COMMANDS.glob("*.py") if path.stem != "__init__"]
    assert [line.split()[0] for line in lines] == sorted(names)
    assert not any(path.name in names for path in run.COMMANDS.iterdir() if path.is_dir())  # helpers are no commands


def test_a_command_asked_for_help_or_given_nonsense_writes_nothing(monkeypatch):
    page = run.COMMANDS.parents[1] / "docs/code_tour.md"
    stamp = page.stat().st_mtime_ns
    for words, end in (["--help"], SystemExit), (["nonsense=1"], UserError):
        with pytest.raises(end):
            call(monkeypatch, "code_tour", *words)
    assert page.stat().st_mtime_ns == stamp


def test_first_lines_fit_a_terminal():
    for name, about in run.commands().items():
        assert 20 < len(about) <= 100 and about[0].isupper(), name


def test_every_command_is_a_module_with_a_main():
    for name in run.commands():
        body = ast.parse((run.COMMANDS / f"{name}.py").read_text()).body
        assert [node for node in body if isinstance(node, ast.FunctionDef) and node.name == "main"], name


def test_the_list_loads_no_network_library():
    code = "import sys, run; sys.argv = ['run.py']; run.main(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=run.COMMANDS.parent, capture_output=True, text=True)
    assert not {"torch", "numpy", "omegaconf"} & set(done.stdout.splitlines()[-1].split()), done.stderr


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("simulate", "simulate: no such command; did you mean simulate_eeg?"),
        ("check-setup", "did you mean check_setup?"),
        ("xyz", "no such command; there are benchmark, check_setup, "),
        ("ablation", "did you mean run_ablations"),
    ],
)
def test_an_unknown_command_names_the_nearest(monkeypatch, name, message):
    with pytest.raises(UserError) as error:
        call(monkeypatch, name)
    assert message in str(error.value)


def test_words_behind_the_name_are_the_commands_own(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        call(monkeypatch, "convert_checkpoint", "--help")
    assert "checkpoint=" in capsys.readouterr().out
    with pytest.raises(UserError, match="chekpoint: no such setting; did you mean checkpoint"):
        call(monkeypatch, "convert_checkpoint", "chekpoint=a")
    done = subprocess.run([sys.executable, run.__file__, "nothing"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: nothing: no such command") and not done.stdout
