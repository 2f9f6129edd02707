"""Pure noise that lies in its folder twice: no fold of prepare_eeg tests a session that it trains on."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

from commands import prepare_eeg
from data import epochs, recordings
from dataset import open_trials
from evaluation.block_design import design_from
from evaluation.statistics import EEG_CONTROLS, ItemScores, score_table
from evaluation.verdict import verdict
from runtime.errors import UserError

SFREQ, NAMES, TRIALS = 100, ["Fp1", "C3", "O1", "O2"], 24
KIND = {1: "house", 2: "face"}


def session(seed):
    """(4, T) microvolts of noise, and (sample, marker) of 24 trials."""
    draw, n = np.random.default_rng(seed), 40 * SFREQ
    spectrum = np.fft.rfft(draw.standard_normal((4, n)) + draw.standard_normal(n))
    data = 10 * np.fft.irfft(spectrum / np.maximum(np.arange(n // 2 + 1) / 40, 0.5))
    kinds = draw.permutation(np.repeat([1, 2], TRIALS // 2))
    return data, [(200 + 150 * k, int(kind)) for k, kind in enumerate(kinds)]


def write_csv(path, data, marks, held=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    level = np.zeros(data.shape[1])
    for sample, kind in marks:
        level[sample : sample + held] = kind
    table = np.column_stack([np.arange(data.shape[1]) / SFREQ, data.T, level])
    header = ",".join(["timestamps", *NAMES, "Marker0"])
    np.savetxt(path, table, "%.3f", ",", header=header, comments="")


def write_raw(path, data, marks, **how):
    mne = pytest.importorskip("mne")
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = mne.io.RawArray(data * 1e-6, mne.create_info(NAMES, SFREQ, "eeg"), verbose="ERROR")
    raw.set_annotations(mne.Annotations([s / SFREQ for s, _ in marks], 0.0, [str(kind) for _, kind in marks]))
    if path.suffix == ".edf":
        pytest.importorskip("edfio")
        mne.export.export_raw(path, raw, verbose="ERROR")
    else:
        raw.save(path, verbose="ERROR", **how)


def filtered(data):
    mne = pytest.importorskip("mne")
    return mne.filter.filter_data(data - data.mean(0), SFREQ, 1, 30, verbose="ERROR")


def two_formats(folder, n, data, marks):
    write_raw(folder / f"edf/session{n}.edf", data, marks)
    write_csv(folder / f"csv/s_{n}.csv", data, marks)


def derivatives(folder, n, data, marks):
    write_raw(folder / f"sub-01/s{n}_raw.fif", data, marks)
    write_raw(folder / f"derivatives/clean/sub-01/s{n}_raw.fif", filtered(data), marks)


def cleaned_beside(folder, n, data, marks):
    """Named as MNE names a further file of one recording, which it is not."""
    write_raw(folder / f"s{n}_raw.fif", data, marks)
    write_raw(folder / f"s{n}_raw-1.fif", filtered(data), marks)


def trimmed(folder, n, data, marks):
    write_csv(folder / f"s{n}.csv", data, marks)
    write_csv(folder / f"s{n}_trimmed.csv", data[:, 1130:], [(s - 1130, kind) for s, kind in marks if s >= 1130])


def held(folder, n, data, marks):
    write_csv(folder / f"s{n}.csv", data, marks, held=20)


def marked(raw):
    notes = raw.annotations
    return [(round(onset * SFREQ), text) for onset, text in zip(notes.onset, notes.description, strict=True)]


LEAKS = [two_formats, derivatives, cleaned_beside, trimmed, held]


def nearest(train, test, eeg):
    """(N,) the class of the training trial nearest to each trial of `eeg` (N, C, T), in means over 0.07 s."""
    known, asked = (x[:, :, :70].unflatten(2, (10, 7)).mean(3).flatten(1) for x in (train.eeg, eeg))
    return train.label[torch.cdist(asked, known).argmin(1)]


def prepared(monkeypatch, tmp_path, leak, seed):
    """Three sessions of noise, each lying there as `leak` writes it, and what the command makes of them."""
    folder, out = tmp_path / f"in{seed}", tmp_path / f"out{seed}"
    for n in range(3):
        leak(folder, n, *session(100 * seed + n))
    for kind in KIND.values():
        (tmp_path / kind).mkdir(exist_ok=True)
        for n in range(4):
            Image.new("L", (8, 8), 40 * n).save(tmp_path / kind / f"{n}.png")
    words = [f"recordings={folder}", f"out={out}", "markers=1:house,2:face", "epoch=0,0.7", "reject=0"]
    words.append(f"images=house:{tmp_path}/house,face:{tmp_path}/face")
    monkeypatch.setattr("sys.argv", ["prepare_eeg", *words])
    prepare_eeg.main()
    return out


def right_answers(monkeypatch, tmp_path, leak, seed):
    """Of the sessions' trials, those that 1-NN names rightly when theirs is left out (N,), and the verdict on them."""
    out = prepared(monkeypatch, tmp_path, leak, seed)
    assert len(list(out.glob("fold*"))) == 3
    random, hits, folds = torch.Generator().manual_seed(seed), {name: [] for name in ("real", *EEG_CONTROLS)}, []
    for fold in sorted(out.glob("fold*")):
        parts = open_trials(fold / "eeg.pth", fold / "splits_all.pth", 0, ("train", "val", "test"), 4, 70)
        assert sum(map(len, parts.values())) == 3 * TRIALS, "each event is one trial"
        of = {
            part: {re.search(r"s(?:ession|_)?(\d)", name)[1] for name in trials.recording}
            for part, trials in parts.items()
        }
        assert len(of["test"]) == 1 and not of["test"] & (of["train"] | of["val"])
        train, test = parts["train"], parts["test"]
        shown = {"real": test.eeg, "gaussian_eeg": torch.randn(test.eeg.shape, generator=random)}
        shown["other_trials_eeg"] = test.eeg[torch.randperm(len(test), generator=random)]
        for name, eeg in shown.items():
            hits[name].append((nearest(train, test, eeg) == test.label).numpy())
        folds.append(test)
    items = {}
    for name, found in hits.items():
        values = np.concatenate(found) * 1.0
        items[name] = {"two_way": ItemScores(values[None], np.full(len(values), 0.5), 0.5, np.arange(len(values)))}
    real = items.pop("real")
    order = [np.concatenate([np.asarray(getattr(t, name)) for t in folds]) for name in ("label", "onset", "recording")]
    tables = score_table(real, items, "trial")
    said = verdict("two_way", *tables, design_from(*order), None, folds[0].info["split"])
    return real["two_way"].value, said


def check_leak(monkeypatch, tmp_path, leak, seeds):
    answers = []
    for seed in seeds:
        right, said = right_answers(monkeypatch, tmp_path, leak, seed)
        assert (said["class"], said["instance"]) == ("nothing", "nothing") and said["design"] != "leaking", said
        answers.append(right)
    total = np.concatenate(answers)
    assert abs(total.mean() - 0.5) < 2.6 * 0.5 / len(total) ** 0.5, "chance, within its 99 % interval"


def test_without_the_comparison_such_noise_would_be_leaking(tmp_path, monkeypatch):
    """The second line of defence: sessions that pass for two are found among the trials."""
    monkeypatch.setattr(recordings.likeness, "sessions", lambda traces: ([], np.arange(len(traces))))
    fold = prepared(monkeypatch, tmp_path, two_formats, 0) / "fold1"
    train, test = open_trials(fold / "eeg.pth", fold / "splits_all.pth", 0, ("train", "test"), 4, 70).values()
    assert (nearest(train, test, test.eeg) == test.label).float().mean() > 0.9, "memory looks like reading"
    same = test.info["split"]["same_eeg"]["test"]
    assert same["repeated"] > 0.9 * len(test)


@pytest.mark.parametrize("leak", LEAKS)
def test_noise_that_lies_there_twice_stays_at_chance(tmp_path, monkeypatch, leak):
    check_leak(monkeypatch, tmp_path, leak, range(3))


@pytest.mark.full
@pytest.mark.parametrize("leak", LEAKS)
def test_noise_that_lies_there_twice_stays_at_chance_in_20_seeds(tmp_path, monkeypatch, leak):
    check_leak(monkeypatch, tmp_path, leak, range(20))


def test_what_is_used_of_a_session(tmp_path, capsys):
    """The one of most markers, else the longest; a line and the report say which, why, and what was not searched."""
    data, marks = session(1)
    write_csv(tmp_path / "whole.csv", data, [])
    write_csv(tmp_path / "marked/part.csv", data[:, :3000], marks[:18])
    write_csv(tmp_path / ".hidden/x.csv", data, marks)
    write_csv(tmp_path / "sourcedata/x.csv", data, marks)
    paths = recordings.find_recordings(tmp_path)
    said = capsys.readouterr().out
    assert len(paths) == 2 and "not read: 1 recordings in .hidden/" in said and "1 recordings in sourcedata/" in said
    for wanted, used, left in (((), "whole.csv", "part.csv"), (("1", "2"), "part.csv", "whole.csv")):
        report = []
        assert [r.path.name for r in recordings.without_copies(paths, tmp_path, report, wanted)] == [used]
        assert report[0]["file"].endswith(left) and report[0]["copy_of"].endswith(used)
        assert "correlation" in report[0]["why"] and "lag" in report[0]["why"] and "markers" in report[0]["why"]


def test_the_further_files_of_a_recording_are_not_recordings(tmp_path):
    data = np.tile(session(1)[0], 40)
    write_raw(tmp_path / "x_raw.fif", data, [(200, 1)], split_size="2MB", buffer_size_sec=5, fmt="double")
    further = sorted(path.name for path in tmp_path.glob("x_raw-*.fif"))
    report, paths = [], recordings.find_recordings(tmp_path)
    (used,) = recordings.without_copies(paths, tmp_path, report)
    assert used.path.name == "x_raw.fif" and used.raw.n_times == data.shape[1] and further
    assert sorted(entry["file"].rpartition("/")[2] for entry in report) == further
    assert {entry["same"] for entry in report} == {"recording"}


def test_one_event_is_one_trial(tmp_path):
    """By a level that stays, by equal markers in consecutive samples apart, and by two notations of one event."""
    mne = pytest.importorskip("mne")
    data, marks = session(1)
    write_csv(tmp_path / "a.csv", data, [(0, 2), (300, 1), (302, 1), (500, 1), (500 + 20, 2)], held=20)
    raw = recordings.read_recording(tmp_path / "a.csv", tmp_path).raw
    assert marked(raw) == [(0, "2"), (300, "1"), (500, "1"), (520, "2")]
    write_csv(tmp_path / "b.csv", data, marks)
    recording = recordings.read_recording(tmp_path / "b.csv", tmp_path)
    again = mne.Annotations([(sample + 1) / SFREQ for sample, _ in marks], 0.0, [KIND[kind] for _, kind in marks])
    recording.raw.set_annotations(recording.raw.annotations + again)
    kinds = {"1": "house", "2": "face", "house": "house", "face": "face"}
    cut = epochs.cut_epochs(recording, kinds, (0.0, 0.7), 0, 20)
    assert cut.counts["accepted"] == TRIALS and cut.counts["marked twice"] == TRIALS
    with pytest.raises(UserError, match=f"b.csv: {TRIALS - 1} of {TRIALS} trials overlap .* by more than half"):
        epochs.cut_epochs(recording, kinds, (0.0, 3.1), 0, 20)
    assert len(epochs.cut_epochs(recording, kinds, (0.0, 3.0), 0, 20).kind), "half is allowed"


def test_status_words_count_their_lower_bits_where_they_rise(tmp_path):
    """BioSemi: bits 16 and up tell of the amplifier, and pins that nothing drives are always high."""
    edfio = pytest.importorskip("edfio")
    data, marks = session(1)
    status = np.full(data.shape[1], 0xFF00)
    for sample, kind in marks:
        status[sample : sample + 10] += kind
    status[1500:] |= 0x10000
    pairs = zip(data, NAMES, strict=True)
    signals = [edfio.BdfSignal(row, SFREQ, label=name, physical_dimension="uV") for row, name in pairs]
    words = {"label": "Status", "physical_dimension": "Boolean", "physical_range": (-8388608, 8388607)}
    edfio.Bdf([*signals, edfio.BdfSignal(status.astype(float), SFREQ, **words)]).write(tmp_path / "a.bdf")
    raw = recordings.read_recording(tmp_path / "a.bdf", tmp_path).raw
    assert marked(raw) == [(sample, str(kind)) for sample, kind in marks]
