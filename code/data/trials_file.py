"""A torch file of EEG trials (spec 1.1), converted once into plain arrays beside it; nothing in it is executed.

`<folder>/cache/<stem>.trials.npy` holds every trial's samples end to end, float32; `<stem>.trials.json` says where
each begins and what it is, and which file (size, time of change, sha256) it was made from. A file of the same size
and time of change is taken for the same one; otherwise its sha256 decides, which costs seconds.
`<stem>.windows-<key>.npy` holds what a stage cuts out of the trials of a split, ready for the model.

Torch's own loader reads a file of the legacy format whole, 3 GB; here either format is read trial by trial.
Shapes: C electrodes, L samples of one trial.
"""

import glob
import hashlib
import json
import math
import pickle
import resource
import time
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.stimuli import image_path
from runtime import checkpoints
from runtime.errors import UserError

FORMAT = "eeg-trials-2"
LEGACY_START = (0x1950A86A20F9469CFC6C, 1001)  # what torch wrote before its files became zip archives
DTYPES = {"FloatStorage": "<f4", "DoubleStorage": "<f8", "HalfStorage": "<f2"}
KEYS = ("dataset", "labels", "images")
OPTIONAL = ("onset", "recording")


@dataclass(frozen=True)
class TrialFile:
    """An opened file of trials: every fact of every trial; samples are read when asked for."""

    samples: Path
    offset: int  # bytes before the first sample
    start: np.ndarray  # (N,) int64, of each trial's first sample
    about: (
        dict  # "labels", "images", "sha256", "trials": one list each of shape, label, image, subject, digest, OPTIONAL
    )

    def eeg(self, trial: int) -> np.ndarray:
        """(C, L) float32 of one trial, mapped from the disk, so that no more than is in use counts as memory."""
        offset = self.offset + 4 * int(self.start[trial])
        return np.memmap(self.samples, "<f4", "c", offset, tuple(self.about["trials"]["shape"][trial]))


def open_trial_file(path: str | Path) -> TrialFile:
    """Open a file of trials by its cache, which is made first where it is missing, of another file, or damaged.

    Raises:
        UserError: missing, unreadable or incomplete file, or one that changes meanwhile; the cache cannot be written.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected a file of EEG trials (layout of eeg_5_95_std.pth)")
    samples, index = (path.parent / "cache" / f"{path.stem}.trials{suffix}" for suffix in (".npy", ".json"))
    seen = _seen(path)
    about = _read_index(samples, index)
    if about.get("seen") != seen:
        digest = checkpoints.sha256(path)
        if about.get("sha256") != digest:
            about = _convert(path, samples, index)
        if _seen(path) != seen:
            raise UserError(f"{path}: changed while it was read; give the same command again when it is whole")
        about |= {"format": FORMAT, "sha256": digest, "seen": seen}
        checkpoints.write_text(index, json.dumps(about))
    size = np.array(about["trials"]["shape"], dtype=np.int64).reshape(-1, 2).prod(1)
    return TrialFile(samples, np.load(samples, mmap_mode="r").offset, np.cumsum(size) - size, about)


def cached_windows(
    file: TrialFile, facts: list, shape: tuple[int, ...], rows: Callable[[], Iterable[np.ndarray]]
) -> np.ndarray:
    """An array (N, C, T) float32 that is made of the file's trials once, then mapped from the disk (copy on write).

    rows: makes N arrays (C, T), asked for only where no earlier run left them; facts: plain values which, with the
    file and the shape, decide what they are. Where they cannot be kept, they are made in memory, and a line says so.
    """
    key = hashlib.blake2b(json.dumps([FORMAT, file.about["sha256"], shape, facts]).encode(), digest_size=8).hexdigest()
    path = _windows_path(file.samples, key)

    def write(out) -> None:
        np.lib.format.write_array_header_1_0(out, {"descr": "<f4", "fortran_order": False, "shape": shape})
        for row in rows():
            out.write(np.ascontiguousarray(row, dtype="<f4"))

    found = _mapped_windows(path)
    if found is None or found.shape != shape:
        checkpoints.sweep(path)
        try:
            checkpoints.replace_atomically(path, write)
            found = _mapped_windows(path)
        except UserError as error:
            if not isinstance(error.__cause__, OSError):  # then it is about the EEG
                raise
            print(f"note: {path} could not be kept ({error.__cause__}): it is made again each time, in memory")
            found = None
    # another process may have removed it meanwhile, having found a new file of trials
    return np.stack([np.asarray(row, "<f4") for row in rows()]) if found is None else found


def _windows_path(samples: Path, key: str) -> Path:
    return samples.with_name(f"{samples.name.removesuffix('.trials.npy')}.windows-{key}.npy")


def _mapped_windows(path: Path) -> np.ndarray | None:
    """What an earlier run left, or None where it is missing or damaged."""
    try:
        return np.load(path, mmap_mode="c")
    except (OSError, EOFError, ValueError):
        return None


def _seen(path: Path) -> dict[str, int]:
    return {"size": path.stat().st_size, "mtime_ns": path.stat().st_mtime_ns}


def _read_index(samples: Path, index: Path) -> dict:
    """What the cache says of itself; nothing where it is missing or broken off."""
    try:
        about = json.loads(index.read_text())
        return about if about["format"] == FORMAT and np.load(samples, mmap_mode="r").ndim == 1 else {}
    except (OSError, EOFError, ValueError, KeyError, TypeError):
        return {}


def _convert(path: Path, samples: Path, index: Path) -> dict:
    """Write the samples, trial by trial; returns the file's facts."""
    started = time.time()
    content, storages = _read_skeleton(path)
    _check(path, content)
    trials = content["dataset"]
    columns = {k: [trial.get(k) for trial in trials] for k in ("label", "image", "subject", *OPTIONAL)}
    columns |= {"shape": [list(trial["eeg"].shape) for trial in trials], "digest": []}
    total = sum(n_chans * length for n_chans, length in columns["shape"])
    names = sum(len(str(name)) for name in (*content["labels"], *content["images"], *columns["recording"]))
    if max(total, names) > (limit := path.stat().st_size):
        raise UserError(
            f"{path}: asks for {total} samples and {names} letters of names, but has {limit} bytes: many trials are "
            "copies of one; write each trial once"
        )

    def write(file) -> None:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (total,)})
        for number, trial in enumerate(trials):
            try:
                eeg = trial["eeg"].read(path, storages)
            except (KeyError, ValueError, TypeError) as error:
                raise UserError(f"{path}: trial {number} cannot be read, the file is truncated ({error})") from error
            columns["digest"].append(hashlib.blake2b(eeg, digest_size=16).hexdigest())
            file.write(eeg)

    if index.is_file():  # else, interrupted here, the earlier file's index would stand beside these samples
        index.unlink(missing_ok=True)
    for earlier in samples.parent.glob(_windows_path(Path(glob.escape(samples.name)), "*").name):
        earlier.unlink(missing_ok=True)
    checkpoints.sweep(samples)
    checkpoints.replace_atomically(samples, write)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{path}: {len(trials)} trials converted once into {samples} ({4 * total / 1e9:.2f} GB) "
        f"in {time.time() - started:.1f} s; peak memory of the process so far {peak:.2f} GB"
    )
    return {"labels": content["labels"], "images": content["images"], "trials": columns}


class _Tensor(NamedTuple):
    """A tensor as the pickle describes it."""

    storage: str
    first: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def read(self, path: Path, storages: dict[str, tuple[str, int, int]]) -> np.ndarray:
        dtype, numel, offset = storages[self.storage]
        last = self.first + sum((n - 1) * step for n, step in zip(self.shape, self.stride, strict=True))
        if min(self.first, *self.shape, *self.stride) < 0 or last >= numel or math.prod(self.shape) > numel:
            raise ValueError(f"a tensor of shape {self.shape} lies outside its storage of {numel} elements")
        flat = np.memmap(path, dtype, "r", offset, (numel,))[self.first :]
        steps = [step * flat.itemsize for step in self.stride]
        return np.ascontiguousarray(np.lib.stride_tricks.as_strided(flat, self.shape, steps), dtype="<f4")


NUMBER = (int, "a whole number")
FIELDS = {
    "eeg": (_Tensor, "a tensor"), "label": NUMBER, "image": NUMBER, "subject": NUMBER,
    "onset": (int | float, "seconds"), "recording": (int | str, "a name or number"),
}  # fmt: skip


class _Skeleton(pickle._Unpickler):  # not C's: that one sets aside memory for any memo index
    """Reads lists, dicts, numbers, text, and tensors as descriptions; any other name in the pickle is refused."""

    def __init__(self, file) -> None:
        super().__init__(file, encoding="utf-8")
        self.storages: dict[str, tuple[str, int]] = {}  # key -> dtype, elements

    def find_class(self, module: str, name: str):
        if module == "torch._utils" and name in ("_rebuild_tensor", "_rebuild_tensor_v2"):
            return lambda storage, first, shape, stride, *_: _Tensor(storage, first, tuple(shape), tuple(stride))
        if module == "torch" and name in DTYPES:
            return name
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        raise UserError(f"holds {module}.{name}, which is neither float EEG nor a plain value and is never loaded")

    def persistent_load(self, pid):
        _, kind, key, _, numel = pid[:5]
        self.storages[key] = (DTYPES[kind], numel)
        return key


def _read_skeleton(path: Path) -> tuple[dict, dict[str, tuple[str, int, int]]]:
    """The file's content without samples, and of each storage its dtype, its elements and where in the file it is."""
    try:
        content, storages = (_read_zip if zipfile.is_zipfile(path) else _read_legacy)(path)
    except UserError as error:
        raise UserError(f"{path}: {error}; expected a file of EEG trials") from error
    except Exception as error:  # a pickle that is none fails in any way
        raise UserError(f"{path}: is truncated or not a torch file ({error}); expected EEG trials") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}, expected the dict of a file of EEG trials")
    return content, storages


def _read_zip(path: Path) -> tuple:
    with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
        root = next(name for name in archive.namelist() if name.endswith("data.pkl")).removesuffix("data.pkl")
        if archive.getinfo(f"{root}data.pkl").compress_type != zipfile.ZIP_STORED:
            raise ValueError("data.pkl is compressed, which torch never does")  # and might unpack to any size
        with archive.open(f"{root}data.pkl") as pickled:
            reader = _Skeleton(pickled)
            content, storages = reader.load(), {}
        for key, (dtype, numel) in reader.storages.items():
            record = archive.getinfo(f"{root}data/{key}")
            if record.compress_type != zipfile.ZIP_STORED:
                raise ValueError("its records are compressed")
            file.seek(record.header_offset + 26)  # lengths of the record's name and extra field, then these two
            name, extra = np.frombuffer(file.read(4), "<u2").tolist()
            storages[key] = (dtype, numel, file.tell() + name + extra)
    return content, storages


def _read_legacy(path: Path) -> tuple:
    with open(path, "rb") as file:
        if tuple(_Skeleton(file).load() for _ in range(2)) != LEGACY_START:
            raise ValueError("unknown beginning")
        _Skeleton(file).load()  # the writing machine's integer sizes
        reader = _Skeleton(file)
        content, storages = reader.load(), {}
        for key in _Skeleton(file).load():
            dtype, numel = reader.storages[key]
            file.seek(8, 1)  # the count of elements, known already
            storages[key] = (dtype, numel, file.tell())
            file.seek(numel * np.dtype(dtype).itemsize, 1)
    return content, storages


def _check(path: Path, content: dict) -> None:
    for key in KEYS:
        if key not in content:
            raise UserError(f"{path}: lacks the key '{key}'; found {sorted(map(str, content))}")
    for key in KEYS:
        if not isinstance(content[key], list) or not content[key]:
            raise UserError(f"{path}: '{key}' is empty or no list")
    limits = {"label": len(content["labels"]), "image": len(content["images"])}
    last: dict[int, float] = {}  # onset of each subject's trial before
    for i, trial in enumerate(content["dataset"]):
        if not isinstance(trial, dict):
            raise UserError(f"{path}: trial {i} is no dict")
        for key, (kind, words) in FIELDS.items():
            if key not in trial and key not in OPTIONAL:
                raise UserError(f"{path}: trial {i} lacks the key '{key}'; found {sorted(map(str, trial))}")
            if key in trial and not isinstance(trial[key], kind):
                raise UserError(f"{path}: trial {i} has {key} {str(trial[key])[:60]}; expected {words}")
        for key, limit in limits.items():
            if not 0 <= trial[key] < limit:
                raise UserError(f"{path}: trial {i} has {key} {trial[key]}; the file lists {limit} {key}s, from 0")
        if len(trial["eeg"].shape) != 2:
            raise UserError(f"{path}: trial {i} has eeg {trial['eeg'].shape}; expected a tensor (channels, samples)")
        onset = trial.get("onset", 0)
        if not math.isfinite(onset):
            raise UserError(f"{path}: trial {i} has onset {onset}; expected seconds")
        if "onset" in trial and "recording" not in trial:
            if onset < last.get(trial["subject"], onset):
                raise UserError(f"{path}: trial {i}: onsets begin anew, but no trial names its 'recording'")
            last[trial["subject"]] = onset
    for name in content["images"]:
        image_path("", name)
