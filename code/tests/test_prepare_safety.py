"""prepare_eeg touches nothing but its own, whenever it is killed; broken recordings and settings are one sentence."""

import gzip
import json
import os
import signal
from collections import Counter

import numpy as np
import pytest
from test_lock import child, end

from commands import prepare_eeg
from data import recordings
from data.epochs import same_channels
from runtime import lock
from runtime.errors import UserError

SFREQ = 128


def write_csv(path, seed=0, names=("TP9", "AF7"), seconds=10, scale=10.0):
    path.parent.mkdir(parents=True, exist_ok=True)
    data = scale * np.random.default_rng(seed).standard_normal((seconds * SFREQ, len(names)))
    table = np.column_stack([np.arange(len(data)) / SFREQ, data])
    np.savetxt(path, table, "%.4f", ",", header=",".join(["timestamps", *names]), comments="")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Two recordings, and the current folder."""
    monkeypatch.chdir(tmp_path)
    for n in range(2):
        write_csv(tmp_path / f"rec/r{n}.csv", n)
    return tmp_path


def prepare(monkeypatch, **settings):
    words = {"recordings": "rec", "out": "out"} | settings
    monkeypatch.setattr("sys.argv", ["prepare_eeg", *(f"{name}={value}" for name, value in words.items())])
    prepare_eeg.main()


def content(folder):
    """Every file below, and what it holds."""
    return {path.relative_to(folder): path.is_file() and path.read_bytes() for path in folder.rglob("*")}


@pytest.mark.parametrize("overwrite", ["false", "true"])
@pytest.mark.parametrize(
    "out",
    ["", " ", ".", "..", "/", "rec", "rec/new", "./rec/../rec", "link", "link/new", "rec/r0.csv", "rec/r0.csv/new"]
    + ["a\nb", "a\0b", "\udcff", "n" * 300, "mine", "damaged", "listed", "pictures/new"],
)
def test_what_is_not_its_own_is_refused_and_untouched(place, monkeypatch, out, overwrite):
    (place / "link").symlink_to(place / "rec")
    for folder, record in (("mine", None), ("damaged", "{"), ("listed", "[]"), ("pictures", None)):
        (place / folder).mkdir()
        (place / folder / "thesis.txt").write_text("mine")
        if record:
            (place / folder / "prepared.json").write_text(record)
    before = content(place)
    with pytest.raises(UserError) as refused:
        prepare(monkeypatch, out=out, overwrite=overwrite, images="house:pictures")
    assert content(place) == before and "Traceback" not in str(refused.value)


def test_leftovers_are_cleared_only_where_they_are_its_own(place, monkeypatch):
    (place / ".out.prepare_eeg/part/eeg_train").mkdir(parents=True)
    with pytest.raises(UserError, match="part: was not left by this command"):
        prepare(monkeypatch)
    (place / ".out.prepare_eeg" / lock.NAME).write_text(json.dumps({"machine": lock.MACHINE}))  # of a killed run
    mine = ["out.part", ".out.part", ".out.prepare_eeg"]
    for name in mine:
        (place / name).mkdir(exist_ok=True)
        (place / name / "thesis.txt").write_text("mine")
    prepare(monkeypatch)
    assert {path.relative_to(place).as_posix() for path in place.rglob("*") if "out." in str(path)} == {
        *mine,
        *(f"{name}/thesis.txt" for name in mine),
    }
    assert (place / "out/prepared.json").exists()
    prepare(monkeypatch, overwrite="true")
    prepare(monkeypatch, overwrite="true")
    assert len(list(place.glob("out.2*/prepared.json"))) == 2, "moved aside twice within a second"


@pytest.mark.parametrize("overwrite", ["false", "true"])
@pytest.mark.parametrize(
    ("function", "at"), [("np.save", 2), ("write_manifest", 2), ("Path.rename", 1), ("Path.rename", 2)]
)
def test_killed_at_any_instant_the_same_command_works_again(place, monkeypatch, function, at, overwrite):
    if overwrite == "true":
        prepare(monkeypatch, band="2,30")
    before = content(place)
    if not (child := os.fork()):
        owner, name = function.split(".") if "." in function else (None, function)
        owner = getattr(prepare_eeg, owner) if owner else prepare_eeg
        calls, original = [], getattr(owner, name)

        def killed(*args, **kwargs):
            calls.append(args)
            if len(calls) == at:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        setattr(owner, name, killed)
        try:
            prepare(monkeypatch, overwrite=overwrite)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    after = content(place)
    moved = [place / "out", *place.glob("out.2*")]
    for path, held in before.items():  # what was in out/ lies there whole, or aside
        if path.parts[0] == "out":
            places = [folder.relative_to(place) / path.relative_to("out") for folder in moved]
            assert any(after.get(at) == held for at in places)
        else:
            assert after[path] == held
    prepare(monkeypatch, overwrite=overwrite)
    assert (place / "out/prepared.json").exists() and not list(place.glob(".out.*"))


def test_of_two_at_once_the_second_ends_before_any_work(place, monkeypatch):
    def work(say):
        monkeypatch.setattr(prepare_eeg.np, "save", lambda *_: (say("saves"), signal.pause()))
        prepare(monkeypatch)

    pid, said = child(work)
    try:
        assert os.read(said, 99) == b"saves"
        before = content(place)
        monkeypatch.setattr(prepare_eeg.recordings, "read_recording", None)
        for overwrite in ("false", "true"):
            with pytest.raises(UserError, match=f"process {pid} on .* is at work here since .*out="):
                prepare(monkeypatch, overwrite=overwrite)
        assert content(place) == before
    finally:
        end(pid)


def test_an_empty_folder_is_filled(place, monkeypatch, capsys):
    (place / "out").mkdir()
    prepare(monkeypatch)
    assert (place / "out/prepared.json").exists() and "moved" not in capsys.readouterr().out


def test_what_another_put_there_meanwhile_stays(place, monkeypatch):
    write = prepare_eeg.write_manifest

    def overtaken(path, record):
        if path.name == "prepared.json":
            (place / "out").mkdir()
            write(place / "out/prepared.json", record)
        write(path, record)

    monkeypatch.setattr(prepare_eeg, "write_manifest", overtaken)
    with pytest.raises(UserError, match="could not be made"):
        prepare(monkeypatch)
    assert [path.name for path in (place / "out").iterdir()] == ["prepared.json"]
    assert not list(place.glob(".out.*"))


def test_a_changed_recording_is_not_already_prepared(place, monkeypatch, capsys):
    prepare(monkeypatch)
    prepare(monkeypatch)
    assert "already prepared" in capsys.readouterr().out
    status, held = (place / "rec/r0.csv").stat(), (place / "rec/r0.csv").read_text()
    (place / "rec/r0.csv").write_text(held.replace("1", "2", 1))
    os.utime(place / "rec/r0.csv", ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(UserError, match="made otherwise"):
        prepare(monkeypatch)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("epoch", "nan,nan"), ("epoch", "0,inf"), ("epoch", "0,1e-9"), ("band", "nan,40"), ("band", "1,inf")]
    + [("sfreq", "nan"), ("sfreq", "inf"), ("sfreq", "1e12"), ("sfreq", "-5"), ("clip", "0"), ("clip", "nan")]
    + [("val_share", "2"), ("val_share", "-1"), ("val_share", "nan"), ("reject", "nan"), ("reject", "-1")]
    + [("markers", ":"), ("markers", ":house"), ("markers", "1:"), ("markers", "1:house,1:face"), ("markers", "1:../x")]
    + [("markers", "1:house"), ("images", "house:h,house:f"), ("markers", "1:house,2:face,3:car")],
)  # fmt: skip
def test_senseless_settings_are_one_sentence(place, monkeypatch, setting, value):
    words = {"markers": "1:house,2:face", "images": "house:h,face:f"} | {setting: value}
    with pytest.raises(UserError, match=f"{setting}="):
        prepare(monkeypatch, **words)
    assert not list(place.glob("*out*"))


def edf(records=10, held=10, seconds="1", low=-200, high=200, one=None, begin=768, least=-32768, most=32767, bdf=False):
    """An EDF file of two channels, 64 samples a record; its header says what it is told."""
    fields = [("Fp1", 16), ("", 80), ("uV", 8), (low, 8), (high, 8), (least, 8), (most, 8), ("", 80), (64, 8), ("", 32)]
    head = [("0", 8), ("X", 80), ("X", 80), ("01.01.26", 8), ("00.00.00", 8), (begin, 8), ("", 44), (records, 8)]
    head = b"".join(str(text).encode().ljust(n) for text, n in [*head, (seconds, 8), (2, 4)])
    signals = b"".join(str(text).encode().ljust(n) * 2 for text, n in fields).replace(b"Fp1", b"Fp2", 1)
    if one is not None:  # the first channel's maximum
        signals = signals.replace(str(high).encode().ljust(8), str(one).encode().ljust(8), 1)
    data = np.random.default_rng(0).integers(-3000, 3000, round(held * 128)).astype("<i2").tobytes()
    return (b"\xffBIOSEMI" + head[8:] if bdf else head) + signals + data


@pytest.mark.parametrize("records", [10, -1])
def test_a_whole_edf_is_read(tmp_path, records):
    (tmp_path / "x.edf").write_bytes(edf(records))
    assert recordings.read_recording(tmp_path / "x.edf", tmp_path).raw.n_times == 640


@pytest.mark.parametrize(("held", "whole"), [(9.5, 9), (9, 9), (10.25, 10)])
def test_an_edf_without_its_last_record_is_read_and_named(tmp_path, capsys, held, whole):
    (tmp_path / "x.edf").write_bytes(edf(held=held))
    assert recordings.read_recording(tmp_path / "x.edf", tmp_path).raw.n_times == 64 * whole
    assert f"holds {held} data records, 10 by its header: {whole} whole" in capsys.readouterr().out


def test_a_channel_without_a_range_is_dropped(tmp_path):
    (tmp_path / "x.edf").write_bytes(edf(one=-200))
    found = recordings.read_recording(tmp_path / "x.edf", tmp_path)
    assert found.raw.ch_names == ["Fp1"] and found.dropped == {"Fp2": "no range in the header"}


@pytest.mark.parametrize(
    ("change", "words"),
    [({"held": 8.5}, "holds 8.5 data records, 10 by its header"), ({"records": 99999999}, "99999999 by its header")]
    + [({"records": -7}, "-7 by"), ({"records": 0}, "0 by"), ({"records": 7}, "holds 10 data records, 7 by")]
    + [({"seconds": "0"}, "no length"), ({"seconds": "nan"}, "no length"), ({"low": 0, "high": 0}, "no range")]
    + [({"least": 0, "most": 0}, "no range"), ({"least": 9, "most": -9}, "no range"), ({"low": "nan"}, "NaN")]
    + [({"low": "x"}, "header is not"), ({"bdf": True}, "data records"), ({"begin": -5}, "data records")],
)  # fmt: skip
def test_an_edf_that_promises_other_data_is_refused(tmp_path, change, words):
    path = tmp_path / ("x.bdf" if change.get("bdf") else "x.edf")
    path.write_bytes(edf(**change))
    with pytest.raises(UserError, match=words):
        recordings.read_recording(path, tmp_path)
    path.write_bytes(edf()[:300])
    with pytest.raises(UserError, match="header is not"):
        recordings.read_recording(path, tmp_path)


@pytest.mark.parametrize("key", ["DataFile", "MarkerFile", "datafile "])
@pytest.mark.parametrize("target", ["/etc/passwd", "../x.eeg", "a/../../x.eeg", "fifo"])
def test_brainvision_reads_nothing_outside_its_folder(tmp_path, key, target):
    (tmp_path / "in").mkdir()
    os.mkfifo(tmp_path / "in/fifo")
    path = tmp_path / "in/x.vhdr"
    path.write_text(f"Brain Vision Data Exchange Header File Version 1.0\n[Common Infos]\n{key}={target}\n")
    with pytest.raises(UserError, match="outside its folder|no plain file"):
        recordings.read_recording(path, path.parent)


def test_tables_that_are_none(tmp_path):
    def refused(words, text, name="x.csv"):
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(UserError, match=words):
            recordings.read_recording(tmp_path / name, tmp_path)

    rows = "".join(f"{n / 128},{n % 7},{n % 5}\n" for n in range(999))
    refused("two columns called a", "timestamps,a,a\n" + rows)
    refused("header without an end", "timestamps," + "a" * 1_000_000 + ",b\n" + rows)
    refused("expected a column 'timestamps' and channels", "timestamps,Marker0,Marker1\n" + rows)
    slow = "".join(f"{n / 0.128},{n % 7}\n" for n in range(999))
    refused("was sampled at 0.128 Hz; are its times milliseconds", "timestamps,a\n" + slow)
    refused("reaches 1e\\+302 V", "timestamps,a\n" + "".join(f"{n / 128},{1e308 * (-1) ** n}\n" for n in range(999)))
    refused("huge content", gzip.compress(b"timestamps,a\n" + b"0.0,0.0\n" * 3_000_000), "x.csv.gz")
    refused("header without an end", gzip.compress(bytes(30_000_000)), "y.csv.gz")


def test_what_is_no_recording_is_not_opened(tmp_path, capsys):
    write_csv(tmp_path / "good.csv")
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "folder.edf").mkdir()
    (tmp_path / "loop.set").symlink_to(tmp_path / "loop.set")
    (tmp_path / "null.fif").symlink_to("/dev/zero")
    for name in ("s1-epo.fif", "s1-eve.fif.gz", "._good.csv"):
        (tmp_path / name).write_text("x")
    assert [path.name for path in recordings.find_recordings(tmp_path)] == ["good.csv"]
    assert "not read: 3 files" in capsys.readouterr().out
    for name in ("line\nbreak.csv", "\udcff\udcfe.csv", "n" * 240 + ".csv"):
        os.link(tmp_path / "good.csv", tmp_path / name)
        with pytest.raises(UserError, match="too long to name a file, or cannot be printed"):
            recordings.find_recordings(tmp_path)
        (tmp_path / name).unlink()


def test_markers_that_are_not_there_are_answered_by_those_that_are():
    with pytest.raises(UserError, match=r"the markers in them are: Stimulus/S  1 \(60\), 9 \(2\)$"):
        same_channels([], [], Counter({"9": 2, "Stimulus/S  1": 60}))
