"""Which recordings hold one session: told by what survives export, filtering, re-referencing, cutting and resampling.

Each recording is kept as slow signals of one byte a sample (`trace`). Two are compared around their landmarks, the
moments at which a signal is largest, which a copy shares whenever it begins; where two moments are alike, the whole
of both recordings is compared at that lag. Marker times are no evidence: one stimulus list serves many people.

Shapes: C channels, T samples at RATE, N landmarks.
"""

import math
import re
import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

RATE = 64  # Hz of the signals that are compared
BANDS = ((2.0, 8.0), (8.0, 16.0))  # Hz, compared apart: a copy may be filtered to either
WINDOW = 4 * RATE  # samples that are correlated at once
ALIKE, ENOUGH = 0.8, 24.0  # correlation of windows, and in how many seconds of them, that make one session of two
EXACT = 0.999999  # a higher correlation than ALIKE needs fewer seconds; this one, and any above, 2
SHORT = 8.0  # times its length that a recording too short for ENOUGH needs: a correlation of 0.9999 in all of it
NEAR = 0.9  # correlation around two landmarks from which on their recordings are compared at that lag
CLIP = 3.0  # robust standard deviations: the blinks of two people are much alike
REFERENCED = 32  # channels kept less the median too; of more, by a rule that depends on their names alone
LANDMARKS = 20_000  # of a channel in all recordings together, the largest; a 4-minute recording has about a hundred

View = tuple[str, str, int]  # channel, kind, band
Trace = dict[View, tuple[np.ndarray, np.ndarray]]  # (T,) int8 signal; (N,) landmarks, the largest first


class Match(NamedTuple):
    """Two recordings, by their places, that hold one session."""

    first: int
    second: int
    correlation: float  # median of the windows alike
    seconds: float  # of the windows alike
    lag: float  # s, at which the second begins in the first


def trace(data: np.ndarray, sfreq: float, names: Sequence[str]) -> Trace:
    """What is kept of a recording, (C, T) at `sfreq` in any unit, to compare it.

    Kinds of signal: all channels as recorded, as a copy may hold any few of them; less the median of all, which is the
    same whatever the reference; and the median distance from that, the same whatever the channels are called. Each is
    whitened within its band, so that rhythms and mains, which are alike in all recordings, count for little.

    An hour takes 0.46 MB a signal: 31 MB of 32 channels, 75 MB of 128.
    """
    from scipy.ndimage import maximum_filter1d
    from scipy.signal.windows import tukey

    # fp1 of "EEG Fp1-REF": without what formats add to a channel's name
    plain = [re.sub(r"^eeg[ ._-]*|[ ._-]*(ref|le|avg)$", "", name.strip().lower()) for name in names]
    chosen = sorted(range(len(names)), key=lambda i: zlib.crc32(plain[i].encode()))
    n, seconds = data.shape[1], math.ceil(data.shape[1] / sfreq)  # whole seconds are whole samples at both rates
    fade, padding = tukey(n, min(0.125, 512 / n)), (0, round(seconds * sfreq) - n)  # an FFT joins the two ends
    faded = (np.pad((data[i] - data[i].mean()) * fade, padding) for i in chosen)
    rows = np.stack([_band(row, seconds, BANDS[0][0], BANDS[-1][1]) for row in faded])
    centre, labels = np.median(rows, axis=0), [plain[i] for i in chosen]
    spread = np.median(np.abs(rows - centre), axis=0)
    signals = [(label, "as recorded", row) for label, row in zip(labels, rows, strict=True)]
    if len(chosen) > 1:
        few = zip(labels[:REFERENCED], rows[:REFERENCED] - centre, strict=True)
        signals += [(label, "re-referenced", row) for label, row in few]
        signals += [("", "spread", spread - spread.mean())]
    kept: Trace = {}
    for label, kind, row in signals:
        for band, edges in enumerate(BANDS):
            signal = _band(row, seconds, *edges, white=True)
            size = np.abs(signal) / (1.4826 * np.median(np.abs(signal)) + 1e-300)
            peaks = np.flatnonzero((size > 1) & (size == maximum_filter1d(size, WINDOW + 1)))
            clipped = np.round(np.copysign(np.minimum(size, CLIP), signal) * (127 / CLIP)).astype(np.int8)
            kept[label, kind, band] = clipped, peaks[np.argsort(-size[peaks], kind="stable")]
    return kept


def _band(row: np.ndarray, seconds: int, low: float, high: float, white: bool = False) -> np.ndarray:
    """`row` between two frequencies, at RATE; `white`: less the shape of its spectrum, smoothed over 1 Hz."""
    from scipy.ndimage import uniform_filter1d

    spectrum = np.fft.rfft(row)[: seconds * RATE // 2 + 1]
    frequency = np.arange(len(spectrum)) / seconds
    if white:
        power = uniform_filter1d(np.abs(spectrum) ** 2, seconds)
        spectrum = spectrum / np.sqrt(np.maximum(power, 1e-300))
    return np.fft.irfft(np.where((frequency >= low) & (frequency < high), spectrum, 0), seconds * RATE)


def sessions(traces: Sequence[Trace]) -> tuple[list[Match], np.ndarray]:
    """Pairs that hold one session, as few as connect all recordings that do; and the number of each one's session."""
    found, group, tried = [], np.arange(len(traces)), set()
    for view in sorted({view for kept in traces for view in kept}):
        for pair in _alike_landmarks(traces, view, group):
            first, second, lag = pair
            if group[first] != group[second] and pair not in tried:
                tried.add(pair)
                if match := compare(traces, first, second, lag):
                    group[group == group[second]] = group[first]
                    found.append(match)
    return found, group


def _alike_landmarks(traces: Sequence[Trace], view: View, group: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """(first, second, lag in samples) where two recordings, not yet of one `group`, are alike around a landmark."""
    having = [(i, *kept[view]) for i, kept in enumerate(traces) if view in kept]
    share = min(1.0, LANDMARKS / max(1, sum(len(landmarks) for _, _, landmarks in having)))
    having = [(i, signal, landmarks[: int(np.ceil(share * len(landmarks)))]) for i, signal, landmarks in having]
    owner = np.concatenate([np.full(len(landmarks), i) for i, _, landmarks in having])
    place = np.concatenate([landmarks for _, _, landmarks in having])
    windows = (np.lib.stride_tricks.sliding_window_view(np.pad(x, WINDOW // 2), WINDOW)[at] for _, x, at in having)
    around = np.concatenate(list(windows)).astype(np.float32)
    around /= np.linalg.norm(around, axis=1, keepdims=True) + 1e-9
    for start in range(0, len(around), 512):
        a, b = np.nonzero(np.abs(around[start : start + 512] @ around[start:].T) > NEAR) + np.array(start)
        new = (a < b) & (group[owner[a]] != group[owner[b]])
        yield from zip(owner[a[new]].tolist(), owner[b[new]].tolist(), (place[a] - place[b])[new].tolist(), strict=True)


def compare(traces: Sequence[Trace], first: int, second: int, lag: int) -> Match | None:
    """The two recordings at one lag (samples), if they then hold one session by any kind of signal and band.

    A window's correlation is the median over the channels in common. In windows of correlation r, a second counts
    log(1 - r^2) / log(1 - ALIKE^2) times: what chance would need as many seconds of ALIKE for.
    """
    common = traces[first].keys() & traces[second].keys()
    shorter = min(len(traces[i][view][0]) for i in (first, second) for view in common) / RATE
    best, most = None, min(ENOUGH, SHORT * shorter)
    for kind in sorted({view[1:] for view in common}):
        views = sorted(view for view in common if view[1:] == kind)
        x, y = (np.stack([traces[i][view][0] for view in views]).astype(np.float32) for i in (first, second))
        x, y = x[:, max(0, lag) : max(0, y.shape[1] + lag)], y[:, max(0, -lag) : max(0, x.shape[1] - lag)]
        width = max(1, min(WINDOW, x.shape[1]))
        x, y = (z[:, : z.shape[1] // width * width].reshape(len(z), -1, width) for z in (x, y))
        r = (x * y).sum(2) / (np.linalg.norm(x, axis=2) * np.linalg.norm(y, axis=2) + 1e-9)
        r = np.abs(np.median(r, axis=0))
        r = r[r >= ALIKE]
        evidence = width / RATE * np.sum(np.log1p(-(np.minimum(r, EXACT) ** 2)) / np.log1p(-(ALIKE**2)))
        if evidence >= most:
            best, most = Match(first, second, float(np.median(r)), len(r) * width / RATE, lag / RATE), evidence
    return best
