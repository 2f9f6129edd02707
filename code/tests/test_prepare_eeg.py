"""Recordings become windows and trials: the same whatever the format, honestly split, refused in one sentence."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from commands import prepare_eeg
from data import epochs, recordings
from dataset import EEGWindows, open_trials
from runtime.errors import UserError

SFREQ, NAMES = 128, ["Fp1", "Oz", "EOG1"]
MUSE = Path(__file__).parents[2] / "../shared/data/neurotechx-muse"
EEGLAB = Path(__file__).parents[2] / "../shared/data/eeglab"


def signal(seconds=20, seed=0):
    """(3, T) microvolts: noise of 10, 20 and 40."""
    draw = np.random.default_rng(seed)
    return draw.standard_normal((3, seconds * SFREQ)) * [[10], [20], [40]]


def write_csv(path, data, marks=(), names=NAMES, sfreq=SFREQ):
    """`marks`: (sample, number) pairs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    column = np.zeros(data.shape[1])
    for sample, number in marks:
        column[sample] = number
    table = np.column_stack([100 + np.arange(data.shape[1]) / sfreq, data.T, column])
    text = "\n".join(
        [",".join(["timestamps", *names, "Marker0"]), *(",".join(f"{v:.4f}" for v in row) for row in table)]
    )
    (gzip.open if path.suffix == ".gz" else open)(path, "wb").write(text.encode())
    return path


def markers(raw):
    """(sample, name) of all that is marked in a recording."""
    mne = pytest.importorskip("mne")
    events, ids = mne.events_from_annotations(raw, regexp=None, verbose="ERROR")
    names = {number: name for name, number in ids.items()}
    return [(sample - raw.first_samp, names[number]) for sample, _, number in events.tolist()]


def prepare(monkeypatch, capsys, **settings):
    """Run the command; what it printed."""
    monkeypatch.setattr("sys.argv", ["prepare_eeg.py", *(f"{k}={v}" for k, v in settings.items())])
    prepare_eeg.main()
    return capsys.readouterr().out


def write_mne(path, data):
    """The recording in the format of the suffix, 'square' marked at 2 s and 5.5 s."""
    mne = pytest.importorskip("mne")
    if path.suffix == ".edf":
        pytest.importorskip("edfio")
    if path.suffix == ".vhdr":
        pytest.importorskip("pybv")
    kinds = ["eeg", "eeg", "eog" if path.suffix == ".fif" else "eeg"]
    raw = mne.io.RawArray(data * 1e-6, mne.create_info(NAMES, SFREQ, kinds), verbose="ERROR")
    raw.set_annotations(mne.Annotations([2.0, 5.5], [0.0, 0.0], ["square", "square"]))
    if path.suffix == ".fif":
        raw.save(path, verbose="ERROR")
    elif path.suffix == ".bdf":
        edfio = pytest.importorskip("edfio")
        signals = [
            edfio.BdfSignal(row, SFREQ, label=n, physical_dimension="uV") for row, n in zip(data, NAMES, strict=True)
        ]
        notes = [edfio.EdfAnnotation(t, None, "square") for t in (2.0, 5.5)]
        edfio.Bdf(signals, annotations=notes).write(path)
    else:
        mne.export.export_raw(path, raw, verbose="ERROR")
    return path


@pytest.mark.parametrize("suffix", [".edf", ".bdf", ".fif", ".vhdr"])
def test_every_format_gives_the_same_microvolts_and_markers(tmp_path, suffix):
    data = signal()
    path = write_mne(tmp_path / f"sub-07_raw{suffix}", data)
    assert recordings.find_recordings(tmp_path) == [path]
    got = recordings.read_recording(path, tmp_path)
    assert got.raw.ch_names == ["Fp1", "Oz"] and list(got.dropped) == ["EOG1"]
    assert got.raw.info["sfreq"] == SFREQ and got.subject == 7 and got.name == "sub-07_raw"
    assert np.abs(got.raw.get_data(units="uV") - data[:2]).max() < 0.1, "16 bit formats round"
    assert [sample for sample, _ in markers(got.raw)] == [2 * SFREQ, 5.5 * SFREQ]
    assert {name.rpartition("/")[2] for _, name in markers(got.raw)} == {"square"}


def silent(raw):
    """A trigger channel without triggers, as long as this recording."""
    mne = pytest.importorskip("mne")
    data = np.zeros((1, raw.n_times))
    info = mne.create_info(["STI 014"], SFREQ, "stim")
    return mne.io.RawArray(data, info, first_samp=raw.first_samp, verbose="ERROR")


@pytest.mark.parametrize("dated", [False, True])
def test_triggers_are_markers_beside_what_the_file_names(tmp_path, dated):
    """A trigger channel's samples count from where the file begins, which is not where the amplifier was started."""
    mne = pytest.importorskip("mne")
    triggers = np.zeros((1, 20 * SFREQ))
    triggers[0, 700], triggers[0, 900:903] = 1, 12
    raw = mne.io.RawArray(
        np.concatenate([signal()[:2] * 1e-6, triggers]),
        mne.create_info([*NAMES[:2], "STI 014"], SFREQ, ["eeg", "eeg", "stim"]), first_samp=300, verbose="ERROR",
    )  # fmt: skip
    raw.set_meas_date(0 if dated else None)
    raw.set_annotations(mne.Annotations([2.0], [0.0], ["square"]))
    raw.save(tmp_path / "a_raw.fif", verbose="ERROR")
    got = recordings.read_recording(tmp_path / "a_raw.fif", tmp_path)
    assert got.raw.first_samp == 300 and got.dropped == {"STI 014": "stim channel"}
    assert markers(got.raw) == [(256, "square"), (700, "1"), (900, "12")]
    cut = epochs.cut_epochs(got, {"12": "face"}, (0.0, 0.1), 0, 20)
    whole = recordings.standardise(got.raw.get_data(), 20)
    assert cut.onset == [900 / SFREQ] and np.array_equal(cut.eeg[0], whole[:, 900:913])
    raw.drop_channels("STI 014").add_channels([silent(raw)], force_update_info=True)
    raw.save(tmp_path / "b_raw.fif", verbose="ERROR")
    assert markers(recordings.read_recording(tmp_path / "b_raw.fif", tmp_path).raw) == [(256, "square")]


def test_spans_marked_bad_are_rejected_and_a_moment_marked_twice_is_one_trial(tmp_path):
    mne = pytest.importorskip("mne")
    recording = recordings.read_recording(
        write_csv(tmp_path / "a.csv", signal(), [(k, 1) for k in (300, 600, 900)]), tmp_path
    )
    marks = mne.Annotations([580 / SFREQ, 900 / SFREQ], [1.0, 0.0], ["BAD_muscle", "2"])
    recording.raw.set_annotations(recording.raw.annotations + marks)
    cut = epochs.cut_epochs(recording, {"1": "house", "2": "face"}, (0.0, 0.5), 0, 20)
    assert cut.counts == {"accepted": 2, "rejected": 1, "cut off": 0, "marked twice": 1}
    assert cut.kind == ["house", "house"] and cut.onset == [300 / SFREQ, 900 / SFREQ]


def test_eeglab_sample_recording():
    if not EEGLAB.is_dir():
        pytest.skip(f"{EEGLAB} is not there: the .set reader is not tried")
    got = recordings.read_recording(EEGLAB / "eeglab_data.set", EEGLAB)
    assert got.raw.info["sfreq"] == 128 and len(got.raw.ch_names) == 30 and set(got.dropped) == {"EOG1", "EOG2"}
    assert 1 < np.median(np.abs(got.raw.get_data(units="uV"))) < 100, "microvolts"
    assert sum(name == "square" for _, name in markers(got.raw)) == 80


def test_csv_is_read_as_it_stands(tmp_path):
    data = signal()
    data[1] = 5.0
    got = recordings.read_recording(write_csv(tmp_path / "a/b.csv.gz", data, [(40, 2), (90, 1)]), tmp_path)
    assert got.name == "a_b" and got.raw.info["sfreq"] == SFREQ and markers(got.raw) == [(40, "2"), (90, "1")]
    assert got.raw.ch_names == ["Fp1"] and got.dropped == {"EOG1": "not EEG by its name", "Oz": "constant"}
    assert np.allclose(got.raw.get_data(units="uV"), data[:1], atol=1e-4)


def test_filter_resampling_and_markers_agree(tmp_path):
    """A 10 Hz wave stays, 50 Hz goes, and a marker stays at its moment."""
    t = np.arange(20 * SFREQ) / SFREQ
    data = np.stack([np.sin(2 * np.pi * 10 * t), np.sin(2 * np.pi * 50 * t), t]) * 10
    recording = recordings.read_recording(write_csv(tmp_path / "a.csv", data, [(256, 1)]), tmp_path)
    raw = recordings.clean(recording, (1, 40), 200.0, []).raw
    middle = slice(400, -400)  # the filter is 3.3 s long
    out = raw.get_data(units="uV")
    assert raw.info["sfreq"] == 200 and markers(raw) == [(400, "1")] and out.shape == (2, 4000)
    expected = np.sin(2 * np.pi * 10 * np.arange(4000) / 200) * 10
    assert np.abs(out[0] - expected)[middle].max() < 0.2
    assert np.abs(out[1][middle]).max() < 0.1
    assert recordings.clean(recording, (1, 40), 0, ["Oz", "Fp1"]).raw.ch_names == ["Oz", "Fp1"]
    assert recording.raw.ch_names == ["Fp1", "Oz"] and recording.raw.info["sfreq"] == SFREQ, "left as it was"


def test_blinks_do_not_shrink_the_eeg_between_them():
    quiet = signal(60)
    blinking = quiet.copy()
    for at in range(500, 7000, 1000):
        blinking[0, at : at + 40] += 400
    a, b = (recordings.standardise(x, 20.0) for x in (quiet, blinking))
    between = np.abs(blinking - quiet).max(0) == 0
    assert np.allclose(a[1:], b[1:]) and abs(a[0].std() - 1) < 0.05
    assert abs(b[0, between].std() / a[0, between].std() - 1) < 0.1, "a plain standard deviation would give 0.2"
    assert b.max() == 20 and b.dtype == np.float32


def test_trials_start_at_their_marker_and_wild_ones_are_rejected(tmp_path):
    data = signal(30) * 0.1
    for sample in (500, 900, 1300):
        data[0, sample] += 50
    data[1, 920:940] += 400
    marks = [(500, 1), (900, 1), (1300, 2), (30 * SFREQ - 10, 1), (1500, 7)]
    recording = recordings.read_recording(write_csv(tmp_path / "a.csv", data, marks), tmp_path)
    cut = epochs.cut_epochs(recording, {"1": "house", "2": "face"}, (0.0, 0.5), 150, 1e9)
    assert cut.kind == ["house", "face"] and cut.counts == {"accepted": 2, "rejected": 1, "cut off": 1}
    assert cut.eeg.shape == (2, 2, 64) and cut.eeg[:, 0].argmax(1).tolist() == [0, 0]
    assert np.allclose(cut.onset, [500 / SFREQ, 1300 / SFREQ])
    assert len(epochs.cut_epochs(recording, {"1": "house"}, (0.0, 0.5), 0, 20).kind) == 2
    early = epochs.cut_epochs(recording, {"1": "house"}, (-5.0, 0.5), 0, 20)
    assert early.counts == {"accepted": 1, "rejected": 0, "cut off": 2} and early.onset == [900 / SFREQ]
    none = epochs.cut_epochs(recording, {"3": "car"}, (0.0, 0.5), 0, 20)
    assert none.eeg.shape == (0, 2, 64) and set(none.counts.values()) == {0}


@pytest.fixture
def experiment(tmp_path):
    """Four marked recordings and a copy of one, and 8 photographs of each of two kinds, two an identity."""
    for i in range(4):
        marks = [(100 + 120 * k, 1 + (k + i) % 2) for k in range(20)]
        write_csv(tmp_path / f"in/subject3/r{i}.csv", signal(seed=i), marks)
    copy = (tmp_path / "in/subject3/r1.csv").read_bytes()
    (tmp_path / "in/subject3/r9.csv").write_bytes(copy)
    with gzip.open(tmp_path / "in/subject3/s1.csv.gz", "wb") as file:
        file.write(copy)
    for kind in ("houses", "faces"):
        (tmp_path / kind).mkdir()
        for n in range(16):
            Image.new("L", (60, 50), 10 * n + 5).save(tmp_path / kind / f"{kind}{n // 2}_{n % 2}.png")
    images = f"house:{tmp_path}/houses,face:{tmp_path}/faces"
    return {"recordings": tmp_path / "in", "markers": "1:house,2:face", "images": images, "epoch": "0,0.5"}


def test_folds_share_no_recording_no_photograph_and_no_identity(tmp_path, experiment, monkeypatch, capsys):
    out = tmp_path / "out"
    said = prepare(monkeypatch, capsys, out=out, **experiment)
    assert "r9.csv: left out, the same session as" in said and "s1.csv.gz: left out, the same session as" in said
    assert "4 recordings, 2 copies left out" in said and not (tmp_path / "out.part").exists()
    trained, tested = set((out / "train_stems.txt").read_text().split()), []
    for fold in range(1, 5):
        folder = out / f"fold{fold}"
        parts = open_trials(folder / "eeg.pth", folder / "splits_all.pth", 3, ["train", "val", "test"], n_chans=2)
        names = {part: set(trials.names) for part, trials in parts.items()}
        assert names["train"] <= trained and not (names["val"] | names["test"]) & trained
        assert not names["val"] & names["test"]
        assert len({*parts["test"].recording}) == 1 and not {*parts["test"].recording} & {*parts["train"].recording}
        assert [len(parts[part]) for part in parts] == [54, 6, 20]
        for trials in parts.values():
            assert all(name.startswith(trials.wnids[k]) for name, k in zip(trials.names, trials.label, strict=True))
        assert parts["train"].info["image_known"] is False and parts["train"].info["sfreq"] == SFREQ
        assert parts["train"].info["class_names"] == {"n80000001": "house", "n80000002": "face"}
        tested += parts["test"].recording[:1]
    assert len(set(tested)) == 4
    grey = {p.stem: Image.open(p).getpixel((9, 9))[0] for p in (out / "imageNet_images").rglob("*.JPEG")}
    identity = {stem: (stem.split("_")[0], round((value - 5) / 10) // 2) for stem, value in grey.items()}
    assert len(identity) == 32
    assert not {identity[s] for s in trained} & {identity[s] for s in grey.keys() - trained}
    assert "already prepared" in prepare(monkeypatch, capsys, out=out, **experiment)
    with pytest.raises(UserError, match="overwrite=true"):
        prepare(monkeypatch, capsys, out=out, band="2,30", **experiment)
    assert "moved" in prepare(monkeypatch, capsys, out=out, band="2,30", overwrite="true", **experiment)


def test_trials_are_the_signal_at_the_marker(tmp_path, experiment, monkeypatch, capsys):
    """Labels, onsets and samples in the written file belong together."""
    out = tmp_path / "out"
    prepare(monkeypatch, capsys, out=out, **experiment)
    content = torch.load(out / "fold2/eeg.pth", weights_only=True)
    folder = tmp_path / "in"
    for index in (0, 25, 79):
        trial = content["dataset"][index]
        raw = recordings.read_recording(folder / f"subject3/{trial['recording'].rpartition('_')[2]}.csv", folder)
        whole = recordings.standardise(recordings.clean(raw, (1, 40), 0, []).raw.get_data(), 20)
        sample = round(trial["onset"] * SFREQ)
        assert (sample, str(trial["label"] + 1)) in markers(raw.raw) and trial["subject"] == 3
        assert np.array_equal(trial["eeg"], whole[:, sample : sample + 64])


def test_windows_for_stage_a(tmp_path, experiment, monkeypatch, capsys):
    said = prepare(monkeypatch, capsys, recordings=experiment["recordings"], out=tmp_path / "out", sfreq=256)
    assert "4 recordings, 2 copies left out" in said
    windows = EEGWindows(tmp_path / "out/eeg_train", n_chans=8)
    assert len(windows) == 4 * (5120 // 512 - 1) and windows.info["ch_names"] == ["Fp1", "Oz"]
    assert windows.info["sfreq"] == 256 and windows.info["band"] == [1, 40]
    assert 0.5 < windows.training_windows(99).std() < 2
    report = json.loads((tmp_path / "out/prepared.json").read_text())
    assert report["recordings"][0]["dropped_channels"] == {"EOG1": "not EEG by its name"}
    assert [copy["copy_of"][-6:] for copy in report["copies_left_out"]] == ["r1.csv", "r1.csv"]


def test_what_cannot_be_prepared_is_said_in_one_sentence(tmp_path, experiment, monkeypatch, capsys):
    def refused(words, **changes):
        with pytest.raises(UserError, match=words):
            prepare(monkeypatch, capsys, **(experiment | {"out": tmp_path / "out"} | changes))
        assert not (tmp_path / "out").exists()

    refused("no such folder", recordings=tmp_path / "none")
    refused("no recording in this folder", recordings=tmp_path / "houses")
    refused("band 1 to 64 Hz does not fit 128 Hz", band="1,64")
    refused("two ascending numbers", band="40,1")
    refused("no usable channel Cz", channels="Fp1,Cz")
    refused("no folder of photographs for the kind 'face'", images=f"house:{tmp_path}/houses")
    refused("expected markers=this:that", markers="1,2")
    refused("0 recording\\(s\\) have accepted trials", reject=1)
    refused("holds 0 photographs", images=f"house:{tmp_path}/houses,face:{tmp_path}/in")
    write_csv(tmp_path / "in/late.csv", signal(), sfreq=250)
    refused("late.csv: was recorded at 250 Hz and .* at 128 Hz|at 128 Hz and .*late.csv at 250 Hz", band="1,40")


def test_unreadable_recordings_are_named(tmp_path):
    data = signal()
    data[1, 300] = np.nan
    with pytest.raises(UserError, match="nan.csv: channel Oz is NaN or infinite at sample 300"):
        recordings.read_recording(write_csv(tmp_path / "nan.csv", data), tmp_path)
    gap = write_csv(tmp_path / "gap.csv", signal())
    lines = gap.read_text().split("\n")
    gap.write_text("\n".join(lines[:1000] + lines[1300:]))
    cut = write_csv(tmp_path / "cut.csv.gz", signal())
    cut.write_bytes(cut.read_bytes()[:20000])
    with pytest.raises(UserError, match="cut.csv.gz: is not a table"):
        recordings.read_recording(cut, tmp_path)
    with pytest.raises(UserError, match="gap.csv: time stamps are up to"):
        recordings.read_recording(gap, tmp_path)
    for name in ("words.csv", "cut.edf", "cut.fif", "cut.vhdr", "cut.set"):
        (tmp_path / name).write_text("a,b\nc,d\n")
        with pytest.raises(UserError, match=name):
            recordings.read_recording(tmp_path / name, tmp_path)


def test_muse_recordings_hold_a_copy_and_tell_faces_from_houses(tmp_path, monkeypatch, capsys):
    """The figure of the data's own description: AUC 0.68, accuracy 0.62 for subject 1, a recording left out."""
    if not MUSE.is_dir():
        pytest.skip(f"{MUSE} is not there: no real recording is tried")
    linear = pytest.importorskip("sklearn.discriminant_analysis")
    copies = []
    left = list(recordings.without_copies(recordings.find_recordings(MUSE / "N170/subject3"), MUSE / "N170", copies))
    assert len(left) == 3 and "correlation 1.000 over 120 s" in copies[0]["why"]
    images = f"house:{MUSE}/stimuli/houses,face:{MUSE}/stimuli/faces"
    settings = {"recordings": MUSE / "N170/subject1", "markers": "1:house,2:face", "images": images}
    prepare(monkeypatch, capsys, out=tmp_path / "out", **settings)
    right, n = 0, 0
    for fold in range(1, 7):
        folder = tmp_path / f"out/fold{fold}"
        parts = open_trials(folder / "eeg.pth", folder / "splits_all.pth", 1, ["train", "test"], n_chans=4)
        x, y = ([getattr(parts[s], what) for s in parts] for what in ("eeg", "label"))
        x = [e[:, :, ::8].flatten(1).numpy() for e in x]
        model = linear.LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit(x[0], y[0].numpy())
        right, n = right + (model.predict(x[1]) == y[1].numpy()).sum(), n + len(x[1])
    assert 1130 < n < 1165 and 0.60 < right / n < 0.68


def test_a_channel_flat_most_of_the_time_is_named(tmp_path):
    data = np.random.default_rng(0).standard_normal((2, 2560))
    data[1, 600:] = 0.0
    recording = recordings.read_recording(write_csv(tmp_path / "one.csv", data, (), ["TP9", "AF7"]), tmp_path)
    with pytest.raises(UserError, match="one.csv: channel AF7 is flat most of the time"):
        recordings.clean(recording, (1.0, 30.0), 0.0, [])
