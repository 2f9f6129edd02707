"""A run's folder has one process at work in it; what a dead one left is taken over."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from runtime import lock
from runtime.errors import UserError
from runtime.runs import open_run


def child(work) -> tuple[int, int]:
    """A fork that runs `work(say)` and waits to be ended; its process id and the end of its pipe, which `say` fills."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            work(lambda text: os.write(theirs, text.encode()))
            signal.pause()
        finally:
            os._exit(0)
    os.close(theirs)
    return pid, ours


def end(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def hold_and_say(folder: Path):
    def work(say) -> None:
        try:
            lock.hold(folder)
            say("holds")
        except UserError as error:
            say(str(error))

    return work


def test_a_second_process_is_told_who_is_at_work_and_takes_over_when_that_one_is_killed(tmp_path):
    pid, said = child(hold_and_say(tmp_path / "run"))
    assert os.read(said, 99) == b"holds"
    for refused in (lock.check, lock.hold, lambda folder: open_run(folder, {"lr": 1.0}, overwrite=True)):
        with pytest.raises(UserError, match=f"run: process {pid} on .* is at work here since"):
            refused(tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == [lock.NAME]  # nothing else was written or moved
    end(pid)
    lock.check(tmp_path / "run")
    lock.hold(tmp_path / "run")
    record = json.loads((tmp_path / "run" / lock.NAME).read_text())
    assert record["process"] == os.getpid()
    lock.release(tmp_path / "run")
    assert not list((tmp_path / "run").iterdir())


@pytest.mark.parametrize("left", [None, {"machine": lock.MACHINE}])
def test_of_many_at_one_instant_one_wins(tmp_path, left):
    if left is not None:  # by a dead process
        (tmp_path / lock.NAME).write_text(json.dumps(left))
    start = time.time() + 0.3

    def work(say) -> None:
        time.sleep(max(0, start - time.time()))
        hold_and_say(tmp_path)(say)

    all_ = [child(work) for _ in range(8)]
    answers = [os.read(said, 999) for _, said in all_]
    for pid, _ in all_:
        end(pid)
    assert answers.count(b"holds") == 1
    assert sum(b"is at work here" in answer for answer in answers) == 7


def test_a_fork_holds_nothing(tmp_path):
    lock.hold(tmp_path)
    pid, said = child(hold_and_say(tmp_path))
    assert b"is at work here" in os.read(said, 999)
    end(pid)
    lock.release(tmp_path)


ELSEWHERE = json.dumps({"machine": "another", "host": "b", "process": 7, "since": "noon"})


@pytest.mark.parametrize("content", [ELSEWHERE, "", "{", "[1]", "null", "\x00\x01", '{"machine": ' + "[" * 5000])
def test_another_machines_lock_and_a_damaged_one_count_by_their_age(tmp_path, content):
    path = tmp_path / lock.NAME
    path.write_text(content)
    with pytest.raises(UserError, match=f"is at work here .*delete {path}; without a sign of life it counts 10"):
        lock.hold(tmp_path)
    os.utime(path, (time.time() - lock.GONE - 1,) * 2)
    lock.check(tmp_path)
    lock.hold(tmp_path)
    lock.release(tmp_path)
    assert not list(tmp_path.iterdir())


def test_it_shows_a_sign_of_life_until_it_is_released(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.01)
    lock.hold(tmp_path)
    path = tmp_path / lock.NAME
    os.utime(path, (1, 1))
    for _ in range(500):
        if path.stat().st_mtime > 1:
            break
        time.sleep(0.01)
    assert path.stat().st_mtime > 1
    lock.release(tmp_path)


def test_it_goes_with_the_process_that_ends_by_itself(tmp_path):
    script = "import sys; from pathlib import Path; from runtime import lock; lock.hold(Path(sys.argv[1])); sys.exit(3)"
    done = subprocess.run([sys.executable, "-c", script, tmp_path / "x"], cwd=Path(__file__).parents[1])
    assert done.returncode == 3 and not list((tmp_path / "x").iterdir())


def test_what_is_in_its_place_and_no_lock_is_named(tmp_path):
    (tmp_path / lock.NAME).symlink_to("nowhere")
    with pytest.raises(UserError, match="is no lock of ours"):
        lock.hold(tmp_path)
    (tmp_path / lock.NAME).unlink()
    os.mkfifo(tmp_path / lock.NAME)
    with pytest.raises(UserError, match="is no lock of ours"):
        lock.hold(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file/run: cannot be written"):
        lock.hold(tmp_path / "file" / "run")


def test_disks_without_links_or_flock_are_served(tmp_path, monkeypatch):
    def fails(*args) -> None:
        raise PermissionError(1, "not here")

    monkeypatch.setattr(os, "link", fails)
    pid, said = child(hold_and_say(tmp_path / "a"))
    assert os.read(said, 99) == b"holds"
    with pytest.raises(UserError, match="is at work here"):
        lock.hold(tmp_path / "a")
    end(pid)
    monkeypatch.setattr(lock.fcntl, "flock", fails)
    with pytest.raises(UserError, match="is at work here"):  # by its age alone
        lock.hold(tmp_path / "a")
    lock.hold(tmp_path / "b")
    lock.release(tmp_path / "b")
    assert not list((tmp_path / "b").iterdir())
