"""One process at a time in a folder: a lock file that names it, with a sign of life.

Whether a holder on this machine lives, the kernel knows (flock), however it ended and whoever has its number now; one
on another machine holds as long as it touches the file. Not covered: two machines that take over a dead one's lock in
the same instant on a disk whose flock they do not share; a process that goes on after its machine slept for GONE. On a
disk without flock a killed process holds for GONE, on this machine too.
"""

import atexit
import contextlib
import fcntl
import json
import os
import platform
import secrets
import threading
import time
from pathlib import Path
from typing import TextIO

from runtime.errors import UserError
from runtime.plain import short

NAME = ".lock"
BEAT, GONE = 30, 600  # seconds between signs of life; a lock without one for so long counts for nothing
_BOOT = Path("/proc/sys/kernel/random/boot_id")  # tells machines of one name apart; containers share it, and flock
MACHINE = _BOOT.read_text().strip() if _BOOT.is_file() else platform.node()
_held: dict[tuple[int, ...], tuple[TextIO, threading.Event]] = {}  # by `_key`


def hold(folder: Path) -> None:
    """Hold a folder, made if it is missing, until `release` or the end of this process; again: nothing happens.

    Raises:
        UserError: another process holds it, or nothing can be written there.
    """
    record = {"machine": MACHINE, "host": platform.node(), "process": os.getpid(), "since": time.ctime()}
    part = folder / f"{NAME}.{secrets.token_hex(4)}.part"  # whole before it gets its name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if (key := _key(folder)) in _held and (folder / NAME).exists():
            return
        with contextlib.ExitStack() as failed:
            file = failed.enter_context(open(part, "x"))
            failed.callback(part.unlink, missing_ok=True)
            file.write(json.dumps(record))
            file.flush()
            with contextlib.suppress(OSError):  # a disk without flock
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _place(part, folder / NAME)
            part.unlink(missing_ok=True)
            failed.pop_all()  # the file stays open: by it the kernel knows the lock
    except OSError as error:
        advice = "make room, or choose another root_path= or out="
        raise UserError(f"{folder}: cannot be written ({error}); {advice}") from error
    _held[key] = file, threading.Event()
    threading.Thread(target=_beat, args=_held[key], daemon=True).start()
    atexit.register(release, folder.absolute())


def release(folder: Path) -> None:
    """Let others hold the folder; nothing happens where this process does not."""
    with contextlib.suppress(OSError):  # the folder is gone
        if held := _held.pop(_key(folder), None):
            file, released = held
            released.set()
            with file:
                if os.path.samestat(os.stat(folder / NAME), os.fstat(file.fileno())):
                    os.unlink(folder / NAME)


def check(folder: Path) -> None:
    """Raise UserError where another process holds the folder; takes nothing."""
    path = folder / NAME
    if path.is_file() and _key(folder) not in _held:
        with contextlib.suppress(FileNotFoundError), open(path) as file:
            _refuse_held(path, file, time.time())


def _key(folder: Path) -> tuple[int, ...]:
    """A folder by whatever name, for this process: a fork of it holds nothing."""
    return os.getpid(), os.stat(folder).st_dev, os.stat(folder).st_ino


def _beat(file: TextIO, released: threading.Event) -> None:
    while not released.wait(BEAT):
        with contextlib.suppress(OSError, ValueError):  # the disk is away for a while; closed this moment
            os.utime(file.fileno())


def _place(part: Path, path: Path) -> None:
    """Make `part` the lock `path` unless another process holds that; of several at one instant, one can."""
    for _ in range(100):  # others may release and take it meanwhile
        try:
            os.link(part, path)
            return
        except FileExistsError:
            pass
        except OSError:
            if not path.exists():  # a disk without links, where flock alone tells two at one instant apart
                os.replace(part, path)
                return
        if path.is_file():
            with contextlib.suppress(FileNotFoundError), open(path, "r+") as there:
                _refuse_held(path, there, part.stat().st_mtime)  # the disk's clock is one for all machines
                if os.path.samestat(os.stat(path), os.fstat(there.fileno())):  # nobody else took it over first
                    os.replace(part, path)
                    return
    raise UserError(f"{path}: is no lock of ours; move it away")


def _refuse_held(path: Path, file: TextIO, now: float) -> None:
    """Raise UserError where the process that wrote the lock `file` may be alive; else hold on to that file."""
    silent, record = abs(now - os.fstat(file.fileno()).st_mtime), {}
    with contextlib.suppress(ValueError, RecursionError):  # a damaged one counts by its age
        content = json.loads(file.read(10_000))
        record = content if isinstance(content, dict) else {}
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        silent = GONE if record.get("machine") == MACHINE else silent
    except BlockingIOError:
        silent = 0.0
    except OSError:
        pass  # a disk without flock
    if silent < GONE:
        process, host, since = (short(record.get(key, "?")) for key in ("process", "host", "since"))
        raise UserError(
            f"{path.parent}: process {process} on {host} is at work here since {since}; wait for it or choose another "
            f"name= or out= (if it surely ended, delete {path}; without a sign of life it counts {GONE // 60} minutes)"
        )
