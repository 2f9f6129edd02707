"""Run folders that are not what they should be: another's, damaged, hostile, left by a killed process."""

import errno
import json
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from config import FinetuneConfig, GenerateConfig, PretrainConfig, from_cli
from runtime import atomic, checkpoints, lock
from runtime.errors import UserError, cli, in_words
from runtime.memory import advise
from runtime.paths import file_or_name, under_root
from runtime.plain import read_yaml
from runtime.ranks import LoneError
from runtime.runs import begun, check_hand_on, hand_on, look_at_folder, open_run, run_config

CONFIG = {"lr": 1.0, "name": "${oc.env:HOME}"}
BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(f"{b}: &{b} [*{a},*{a},*{a},*{a},*{a}]\n" for a, b in ("ab", "bc", "cd"))
DAMAGED = {
    "python tag": "!!python/object/apply:os.system ['exit 1']", "python new": "a: !!python/object/new:os.system [x]",
    "broken": "a: [1\n", "list": "- 1\n", "binary": "\x00\x01", "bomb": BOMB, "recursion": "a: &a [*a]\n", "text": "lr",
    "empty": "", "tag of a value": "lr: !!timestamp x", "no number": "lr: !!bool x", "long": "lr: 1" + ":2" * 900_000,
    "too large": "a: b\n" * 500_000, "number": f"lr: {'9' * 300}", "deep": "lr: " + "[" * 5000 + "]" * 5000,
    "digits": "lr: " + "9" * 9000, "date": "lr: 2026-99-99", "no UTF-8": "lr: \udcff", "two": "a: 1\n---\na: 2\n",
    "keys": "1: 2",
}  # fmt: skip


def begin(folder: Path, config: dict = CONFIG) -> Path:
    """A run with some work in its folder, by a process that ended."""
    open_run(folder, config)
    (folder / "last.pth").write_text("work")
    lock.release(folder)
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("kind", DAMAGED)
@pytest.mark.parametrize("overwrite", [False, True])
def test_settings_that_do_not_read_as_ours_are_named_and_nothing_is_moved(tmp_path, kind, overwrite):
    folder = begin(tmp_path / "run")
    (folder / "config.yaml").write_bytes(DAMAGED[kind].encode(errors="surrogateescape"))
    started = time.process_time()
    with pytest.raises(UserError, match=r"run/config.yaml: .*") as refused:
        open_run(folder, CONFIG, overwrite)
    assert time.process_time() - started < 2 and len(str(refused.value)) < 600
    assert names(folder) == ["config.yaml", "last.pth"] and names(tmp_path) == ["run"]


def test_a_folder_that_is_no_runs_is_neither_used_nor_moved(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    (tmp_path / "file").write_text("x")
    (tmp_path / "to nothing").symlink_to("gone")
    (tmp_path / "loop").symlink_to("loop")
    for overwrite in (False, True):
        for name in ("file", "to nothing", "loop"):
            with pytest.raises(UserError, match=f"{name}: cannot be written into: no folder"):
                open_run(tmp_path / name, CONFIG, overwrite)
        with pytest.raises(UserError, match="file: cannot be written into: no folder"):
            open_run(tmp_path / "file" / "run", CONFIG, overwrite)
        with pytest.raises(UserError, match="mine: is not empty and holds no config.yaml, so it is no run's"):
            open_run(tmp_path / "mine", CONFIG, overwrite)
    assert names(tmp_path / "mine") == ["thesis.txt"] and len(names(tmp_path)) == 4


def test_a_run_behind_a_link_goes_on_and_is_not_moved(tmp_path):
    begin(tmp_path / "elsewhere")
    (tmp_path / "run").symlink_to("elsewhere")
    open_run(tmp_path / "run", CONFIG)
    lock.release(tmp_path / "run")
    with pytest.raises(UserError, match="run: is a link, which overwrite=true does not move"):
        open_run(tmp_path / "run", CONFIG, overwrite=True)
    assert (tmp_path / "run").is_symlink() and (tmp_path / "elsewhere" / "last.pth").exists()


def test_a_run_is_moved_aside_whole_and_the_new_one_is_locked(tmp_path):
    begin(tmp_path / "run")
    open_run(tmp_path / "run", {"lr": 2.0}, overwrite=True)
    assert names(tmp_path / "run") == [lock.NAME, "config.yaml"]
    aside = next(path for path in tmp_path.iterdir() if path.name != "run")
    assert names(aside) == ["config.yaml", "last.pth"]
    lock.release(tmp_path / "run")


def test_what_killed_writers_left_counts_for_nothing(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    for name in (".config.yaml.0a1b.part", ".lock.12.part"):
        (folder / name).write_text("half")
    (folder / lock.NAME).write_text(json.dumps({"machine": lock.MACHINE, "process": 1}))
    assert not begun(folder, CONFIG)
    open_run(folder, CONFIG)
    (folder / ".metrics.csv.0a1b.part").write_text("half")
    assert not begun(folder, CONFIG | {"lr": 2.0})  # nothing was done yet, so other settings may be asked
    (folder / "metrics.csv").write_text("epoch")
    assert begun(folder, CONFIG)
    lock.release(folder)


TEXT = st.text(st.characters(exclude_categories=["Cc", "Cs"]))  # what the command line takes


@settings(max_examples=30, deadline=None, database=None)
@given(st.dictionaries(TEXT, TEXT | st.booleans() | st.floats(-1e12, 1e12) | st.integers(-(2**63), 2**63 - 1)))
def test_settings_are_read_as_they_were_written(tmp_path_factory, config):
    folder = begin(tmp_path_factory.mktemp("a") / "run", config)
    assert begun(folder, config)


@pytest.mark.parametrize("cls", [PretrainConfig, FinetuneConfig, GenerateConfig])
def test_runs_that_earlier_code_began_go_on(tmp_path, cls):
    config = run_config(from_cli(cls, ["preset=published,miniature"])) | {"x": 1e-05, "y": "1e-5", "z": "2026-11-28"}
    config |= {"on": "yes", "none": "null", "refer": "a/${seed}", "tilde": "~", "colons": "12:30", "space": " a "}
    assert "cache" not in config and "root_path" not in config
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    (tmp_path / "last.pth").touch()
    assert begun(tmp_path, config)


def test_another_cache_is_no_other_run():
    cfg = from_cli(PretrainConfig, [])
    assert run_config(cfg) == run_config(replace(cfg, cache="/scratch", root_path="/data"))


@pytest.mark.parametrize("content", ["{", "[]", "", '"x"', "\x00", "[" * 100_000])
def test_a_damaged_record_of_the_end_is_named(tmp_path, content):
    folder = begin(tmp_path / "run")
    (folder / "finished.json").write_text(content)
    with pytest.raises(UserError, match="run/finished.json: .*move it aside, and the same command goes on"):
        open_run(folder, CONFIG)
    (folder / "finished.json").unlink()
    run = open_run(folder, CONFIG)
    assert not run.finished and lock.NAME in names(folder)
    run.finish(seconds=1)
    assert open_run(folder, CONFIG).finished and lock.NAME not in names(folder)


@pytest.mark.parametrize("content", ["{", "[]", '{"origin": 5}', '{"origin": "a\\u0000b"}', '{"run": ["x"]}', "null"])
def test_a_damaged_record_of_a_hand_on_is_named(tmp_path, content):
    target, run = tmp_path / "pretrains" / "a.pth", open_run(tmp_path / "run", CONFIG)
    checkpoints.save(run.checkpoint, {"format": "x-1"})
    hand_on(run, target)
    target.with_suffix(".json").write_text(content)
    with pytest.raises(UserError, match="pretrains/a.pth: a.json beside it .*; move both away, or choose another"):
        check_hand_on(target, run)
    lock.release(run.folder)


def test_a_place_to_hand_on_that_is_none_is_named_before_the_work(tmp_path):
    (tmp_path / "pretrains").write_text("x")
    with pytest.raises(UserError, match="pretrains: cannot be written into: no folder"):
        check_hand_on(tmp_path / "pretrains" / "eeg" / "a.pth", open_run(tmp_path / "run", CONFIG))
    lock.release(tmp_path / "run")


def test_a_look_at_the_folder_writes_nothing(tmp_path):
    cfg = from_cli(PretrainConfig, [f"root_path={tmp_path}", "name=a"])
    assert "free" in look_at_folder(cfg, "eeg_pretrain", run_config(cfg), None, lambda _: [])
    assert not names(tmp_path)
    folder = begin(tmp_path / "results" / "eeg_pretrain" / "a", run_config(cfg))
    assert "goes on" in look_at_folder(cfg, "eeg_pretrain", run_config(cfg), None, lambda _: [])
    moves = replace(cfg, overwrite=True)
    assert "will be moved aside" in look_at_folder(moves, "eeg_pretrain", run_config(cfg), None, lambda _: [])
    (folder / lock.NAME).write_text("{}")
    with pytest.raises(UserError, match="is at work here"):
        look_at_folder(cfg, "eeg_pretrain", run_config(cfg), None, lambda _: [])
    (folder / "config.yaml").unlink()
    with pytest.raises(UserError, match="holds no config.yaml"):
        look_at_folder(moves, "eeg_pretrain", run_config(cfg), None, lambda _: [])


def test_plain_yaml_is_read(tmp_path):
    (tmp_path / "a.yaml").write_text("a: {b: [1, 2.5e-3, true, null, 'x']}\n")
    assert read_yaml(tmp_path / "a.yaml", "thing") == {"a": {"b": [1, 2.5e-3, True, None, "x"]}}
    with pytest.raises(UserError, match="b.yaml: no such file; expected a thing .YAML."):
        read_yaml(tmp_path / "b.yaml", "thing")
    (tmp_path / "a.yaml").write_text("a: [1, *b]\n")
    with pytest.raises(UserError, match=r"a.yaml: cannot be read as a thing .YAML. \(line 1: an alias or a tag"):
        read_yaml(tmp_path / "a.yaml", "thing")


def test_a_home_of_nobody_is_named():
    with pytest.raises(UserError, match="~nosuchuser/x .*names no user"):
        under_root(".", "~nosuchuser/x")
    with pytest.raises(UserError, match="names no user"):
        file_or_name("~nosuchuser", "clip")


@pytest.mark.parametrize("number", [errno.EACCES, errno.ENAMETOOLONG, errno.ENOTDIR])
def test_what_the_system_refuses_of_a_file_is_one_sentence(capsys, number):
    def main() -> None:
        raise OSError(number, os.strerror(number), "some\nwhere")

    with pytest.raises(SystemExit) as end:
        cli(main)
    assert end.value.code == 2
    assert capsys.readouterr().err == f"error: some where: {os.strerror(number)}; make it usable, or name another\n"


def test_other_errors_of_the_system_stay_what_they_are(monkeypatch):
    def main() -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    with pytest.raises(BrokenPipeError):
        cli(main)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="none: No such file"), in_words():  # which `ranks` says once, for all
        Path("none").read_text()
    with pytest.raises(LoneError, match="none: No such file"), advise(2, 1, "cpu"):  # others wait in a sum of gradients
        Path("none").read_text()


def test_a_users_own_files_are_not_written_over(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text("batch: 4\n")
    with pytest.raises(UserError, match="run: holds a config.yaml that is no run's"):
        open_run(tmp_path / "run", CONFIG)
    assert names(tmp_path / "run") == ["config.yaml"]
    run, target = open_run(tmp_path / "other", CONFIG), tmp_path / "pretrains/a.pth"
    atomic.write_text(target.with_suffix(".json"), '{"about": "mine"}')
    with pytest.raises(UserError, match="pretrains/a.json: comes from elsewhere"):
        check_hand_on(target, run)
    checkpoints.save(run.checkpoint, {"format": "x-1"})
    target.with_suffix(".json").unlink()
    hand_on(run, target)
    target.unlink()  # killed before it was there: the record is ours
    check_hand_on(target, run)
    lock.release(run.folder)
