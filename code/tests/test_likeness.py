"""One session is known under any file: exported, filtered, re-referenced, cut, resampled; two never pass for one."""

import zlib
from pathlib import Path

import numpy as np
import pytest

from data import likeness, recordings

SFREQ, NAMES = 100, ["Fp1", "C3", "C4", "P7", "O1", "O2"]
MUSE = Path(__file__).parents[2] / "../shared/data/neurotechx-muse"


def session(seed, seconds=64):
    """(C, T) microvolts: noise that falls with the frequency, half of it common to all channels, as EEG is."""
    draw = np.random.default_rng(seed)
    white = np.fft.rfft(draw.standard_normal((6, seconds * SFREQ)) + draw.standard_normal(seconds * SFREQ))
    return 10 * np.fft.irfft(white / np.maximum(np.arange(white.shape[1]) / seconds, 0.5))


def kept(data, sfreq=SFREQ, names=NAMES):
    return likeness.trace(data, sfreq, names[: len(data)])


def filtered(data, low, high, sfreq=SFREQ):
    mne = pytest.importorskip("mne")
    return mne.filter.filter_data(data, sfreq, low, high, verbose="ERROR")


def causal(data):
    signal = pytest.importorskip("scipy.signal")
    return signal.sosfilt(signal.butter(4, [0.5, 30], "band", fs=SFREQ, output="sos"), data)


def resampled(data):
    signal = pytest.importorskip("scipy.signal")
    return signal.resample_poly(data, 16, 25, axis=1)


def with_wild_channel(data):
    """An electrode that came off, and all channels against the average, which has a share of it."""
    wild = np.vstack([data, 500 * np.cumsum(np.random.default_rng(9).standard_normal((1, data.shape[1])), 1)])
    return wild - wild.mean(0)


COPIES = {
    "16 bits": lambda x: kept(np.round(x / np.ptp(x) * 65535)),
    "1 to 40 Hz": lambda x: kept(filtered(x, 1, 40)),
    "8 to 30 Hz": lambda x: kept(filtered(x, 8, 30)),
    "0.1 to 10 Hz": lambda x: kept(filtered(x, 0.1, 10)),
    "causal filter": lambda x: kept(causal(x)),
    "average reference, filtered": lambda x: kept(filtered(x - x.mean(0), 1, 30)),
    "reference at an electrode": lambda x: kept((x - x[0])[1:], names=NAMES[1:]),
    "average of a wild channel": lambda x: kept(with_wild_channel(x), names=[*NAMES, "T8"]),
    "some channels": lambda x: kept(x[2:4], names=NAMES[2:4]),
    "one channel": lambda x: kept(x[2:3], names=NAMES[2:3]),
    "channels spelt otherwise": lambda x: kept(x[::-1], names=[f"EEG {name.upper()}-REF" for name in NAMES[::-1]]),
    "channels called otherwise": lambda x: kept(x, names=[f"Channel {n}" for n in range(6)]),
    "polarity": lambda x: kept(-x),
    "resampled": lambda x: kept(resampled(x), 64),
    "clock a thousandth fast": lambda x: kept(x, SFREQ * 1.001),
    "noise added": lambda x: kept(x + 0.3 * np.random.default_rng(8).standard_normal(x.shape) * x.std()),
    "blinks taken out": lambda x: kept(x - np.outer(np.array([1, 0.3, 0.3, 0.1, 0, 0]), x[0] - x[4])),
}
CUTS = {"start": (1234, None), "end": (0, 3000), "both": (1701, 4150)}


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_is_its_session(how):
    data = session(1)
    others = [kept(session(2)), kept(session(3))]
    matches, group = likeness.sessions([others[0], kept(data), COPIES[how](data), others[1]])
    assert [match[:2] for match in matches] == [(1, 2)] and len(set(group.tolist())) == 3 and group[1] == group[2]
    assert matches[0].correlation > 0.8 and matches[0].seconds >= 12 and abs(matches[0].lag) < 0.1


def test_any_few_channels_of_many_are_their_session():
    draw = np.random.default_rng(4)
    many = [mixed @ session(seed) for seed in (1, 2) for mixed in [draw.standard_normal((64, 6))]]
    names = [f"E{n}" for n in range(64)]
    whole, other = (likeness.trace(data, SFREQ, names) for data in many)
    by_rule = sorted(range(64), key=lambda n: zlib.crc32(names[n].lower().encode()))  # the last are not re-referenced
    for chosen in (by_rule[-3:], [0, 1, 2]):
        few = likeness.trace(many[0][chosen], SFREQ, [names[n] for n in chosen])
        assert [match[:2] for match in likeness.sessions([other, whole, few])[0]] == [(1, 2)]


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("how", ["1 to 40 Hz", "average reference, filtered", "resampled"])
def test_a_cut_copy_is_its_session_at_its_lag(how, cut):
    data, (begin, end) = session(1), CUTS[cut]
    (match,), _ = likeness.sessions([kept(data), COPIES[how](data[:, begin:end])])
    assert match.lag == pytest.approx(begin / SFREQ, abs=0.03)
    assert match.seconds > 0.7 * (data[:, begin:end].shape[1] / SFREQ) - 4


def test_two_recordings_that_overlap_and_a_span_cut_out():
    data = session(1)
    (match,), _ = likeness.sessions([kept(data[:, :4500]), kept(data[:, 2000:])])
    assert match.lag == pytest.approx(20, abs=0.03) and 16 <= match.seconds <= 25
    assert not likeness.sessions([kept(data[:, :3200]), kept(data[:, 3200:])])[0], "one after the other is no copy"
    middle = np.delete(data, slice(3000, 3300), axis=1)
    assert len(likeness.sessions([kept(data), kept(middle)])[0]) == 1


def test_copies_of_copies_are_one_session():
    data = session(1)
    traces = [
        kept(data[:, 3000:]),
        kept(session(2)),
        kept(filtered(data, 1, 30)),
        kept(data[:, :3000] - data[0, :3000]),
    ]
    assert not likeness.sessions([traces[0], traces[3]])[0]
    _, group = likeness.sessions(traces)
    assert group[0] == group[2] == group[3] != group[1]


def test_one_task_and_one_blink_are_not_one_session():
    """Responses as large as the noise at the same moments in the same order, mains, and blinks of one shape."""
    t = np.arange(64 * SFREQ) / SFREQ
    response = np.convolve(t % 1.2 < 0.01, 15 * np.exp(-(((np.arange(60) - 17) / 5) ** 2)))[: len(t)]
    mains, blink = 40 * np.sin(2 * np.pi * 12.5 * t), 300 * np.hanning(30)
    traces = []
    for seed in range(30):
        data = session(seed) + response + mains
        for at in np.random.default_rng(seed).integers(0, 6300, 25):
            data[:3, at : at + 30] += blink
        traces.append(kept(data))
    assert not likeness.sessions(traces)[0]


def test_short_recordings():
    data = session(1)
    pieces = [kept(data[:, at : at + 400]) for at in range(0, 6400, 400)]
    assert not likeness.sessions(pieces)[0]
    matches, _ = likeness.sessions([*pieces, kept(np.round(data[:, 800:1200], 1)), kept(data[:, 1200:1350])])
    assert [match[:2] for match in matches] == [(2, 16)]
    assert len(likeness.sessions([kept(data[:, :150]), kept(2 * data[:, :150])])[0]) == 1
    empty = [kept(data[:, :length]) for length in (1, 2, 30)]
    assert not likeness.sessions([*empty, *empty[:0]])[0] and not likeness.sessions([])[0]


def test_real_recordings_of_different_sessions_are_different():
    """24 people and the six sessions of one; of each, copies are found."""
    if not MUSE.is_dir():
        pytest.skip(f"{MUSE} is not there: no real recording is tried")
    read = []
    for folder in (MUSE / "cueing", MUSE / "N170/subject1"):
        read += [recordings.read_recording(path, folder).raw for path in recordings.find_recordings(folder)]
    traces = [likeness.trace(raw.get_data(), 256, raw.ch_names) for raw in read]
    assert len(traces) == 30 and not likeness.sessions(traces)[0]
    tenths = [raw.get_data()[:, at : at + 2560] for raw in read for at in range(0, 28000, 2560)]
    assert not likeness.sessions([likeness.trace(data, 256, read[0].ch_names) for data in tenths])[0]
    for raw in (read[5], read[28]):
        data = raw.get_data()
        for copy in (filtered(data, 1, 40, 256), data - data.mean(0), np.round(data, 6), filtered(data, 8, 30, 256)):
            other = likeness.trace(copy[:, 10_001:23_000], 256, raw.ch_names)
            (match,), _ = likeness.sessions([*traces, other])
            assert match.lag == pytest.approx(10_001 / 256, abs=0.03) and match.seconds >= 24
