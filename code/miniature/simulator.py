"""Simulated EEG recordings: ongoing activity and artefacts of a spherical head, with evoked responses added.

Shapes: E electrodes, S sources, T samples. Signals are float32 in microvolts until they are standardised. Everything is
simulated: whoever writes these signals to a file says so in it.
"""

import numpy as np
from scipy import fft
from threadpoolctl import threadpool_limits

from miniature import head
from miniature.evoked import VisualCortex
from runtime import draws

BANDS = {"5_95": (5.0, 95.0), "14_70": (14.0, 70.0), "55_95": (55.0, 95.0), "raw": None}  # Hz, spec 1.1
N_BACKGROUND, N_ALPHA, N_MUSCLES = 60, 6, 8
# root mean squares, in microvolts, before any filter
EVOKED, BACKGROUND, ALPHA, MUSCLE, LINE, SENSOR, BAD = 1.1, 7.0, 1.5, 2.0, 0.7, 4.0, 12.0
SLOPE = -0.65
ADDITIVE_DRIFT = 20.0  # microvolts, slow, so gone above 5 Hz
DRIFT_PERIODS = (40.0, 1200.0)  # s
KNOT_SECONDS = 0.1  # slow changes are straight lines between such points


class Subject:
    """One simulated subject under one cap.

    Args:
        signal: strength of the evoked responses; 0: none.
        drift: strength of every slow change; 0: a stationary recording.
    """

    def __init__(
        self, seed: int, subject: int, n_chans: int = 128, rate: float = 1000.0, signal: float = 1.0, drift: float = 1.0
    ) -> None:
        self.seed, self.subject, self.rate, self.signal, self.drift = seed, subject, rate, signal, drift
        self.electrodes = head.electrode_positions(n_chans)
        self.cortex = VisualCortex(self.electrodes, seed, subject)
        self.background = self._topography(*head.random_dipoles(N_BACKGROUND, seed, "background", subject))
        rear = head.random_dipoles(N_ALPHA, seed, "alpha", subject, centre=(0.0, -1.0, 0.6))
        self.alpha = self._topography(*rear)
        # muscles lie outside the skull, round the lower rim: each reaches the electrodes near it
        angle = 2 * np.pi * (np.arange(N_MUSCLES) + 0.5) / N_MUSCLES
        rim = np.stack([np.cos(angle), np.sin(angle), np.full(N_MUSCLES, -0.3)], axis=1)
        distance = np.linalg.norm(self.electrodes[:, None] - rim, axis=2)
        self.muscle = np.exp(-0.5 * (distance / 0.35) ** 2).astype(np.float32)

    def _topography(self, positions: np.ndarray, moments: np.ndarray) -> np.ndarray:
        """Lead field (E, S) whose sources, at unit strength, together have unit root mean square."""
        return (head.topographies(self.electrodes, positions, moments) / np.sqrt(len(positions))).astype(np.float32)

    @threadpool_limits.wrap(limits=1, user_api="blas")  # sums in another order would change the last digits
    def record(
        self, codes: np.ndarray, onsets: np.ndarray, seconds: float, recording: int, clock: float = 0.0
    ) -> np.ndarray:
        """A continuous recording (E, T), T a little over `seconds`, during which pictures are shown.

        Args:
            codes: (N, D) of the pictures (see picture_codes).
            onsets: (N,) samples.
            recording: number of this recording; its noise depends on it.
            clock: seconds of the session before it began; slow changes run on from one recording to the next.
        """
        block = round(KNOT_SECONDS * self.rate)
        n = block * fft.next_fast_len(-(-int(seconds * self.rate) // block), real=True)
        self._at = (recording, clock + KNOT_SECONDS * np.arange(n // block + 1))
        eeg = self.background @ (BACKGROUND * self._noise(N_BACKGROUND, n, "background", _pink))
        eeg += self.alpha @ self._swelling(ALPHA * self._noise(N_ALPHA, n, "alpha", _alpha), "alpha", 0.7)
        eeg += self.muscle @ self._swelling(MUSCLE * self._noise(N_MUSCLES, n, "muscle", _muscle), "muscle", 0.8)
        if self.signal:
            eeg += self.cortex.topography @ (self.signal * EVOKED * self._evoked(codes, onsets, n))
        self._add_electrode_noise(eeg)
        eeg = self._swelling(eeg, "gain", 0.2)
        if self.drift:
            eeg += self.drift * ADDITIVE_DRIFT * _between(self._slow(len(eeg), "additive"), n)
        return eeg

    def _evoked(self, codes: np.ndarray, onsets: np.ndarray, n: int) -> np.ndarray:
        """(K, n) activity of the visual sources; responses that overlap add up."""
        activity = np.zeros((self.cortex.topography.shape[1], n), np.float32)
        for response, start in zip(self.cortex.respond(codes, self.rate), onsets, strict=True):
            activity[:, start : start + response.shape[1]] += response[:, : n - start]
        return activity

    def _noise(self, n: int, length: int, purpose: str, shape) -> np.ndarray:
        """(n, length) Gaussian noise of unit mean square whose amplitude over frequency is `shape(Hz)`."""
        white = draws.randn((n, length), self.seed, purpose, self.subject, self._at[0], 1).numpy()
        gain = shape(np.fft.rfftfreq(length, 1 / self.rate)).astype(np.float32)
        gain /= np.sqrt((gain**2).mean())
        return fft.irfft(fft.rfft(white) * gain, n=length)

    def _slow(self, n: int, purpose: str) -> np.ndarray:
        """(n, knots) slow functions of the session's clock, unit mean square: sums of four sines of drawn periods."""
        drawn = draws.rand((n, 4, 2), self.seed, f"drift of {purpose}", self.subject).double().numpy()
        shortest, longest = DRIFT_PERIODS
        period = shortest * (longest / shortest) ** drawn[..., 0]
        phase = 2 * np.pi * (self._at[1] / period[..., None] + drawn[..., 1, None])
        return np.sin(phase).sum(axis=1) / np.sqrt(2)

    def _swelling(self, signals: np.ndarray, purpose: str, depth: float) -> np.ndarray:
        """`signals` (n, T), each with its strength changing slowly by about exp(+-depth) at drift 1."""
        if not self.drift:
            return signals
        knots = np.exp(self.drift * depth * self._slow(len(signals), purpose))
        return signals * _between(knots, signals.shape[1])

    def _add_electrode_noise(self, eeg: np.ndarray) -> None:
        """Amplifier noise, bad channels (three a recording) and mains hum, in place."""
        n_chans, n = eeg.shape
        where = (self.subject, self._at[0])
        eeg += SENSOR * draws.randn(eeg.shape, self.seed, "amplifier", *where).numpy()
        bad = draws.permutation(n_chans, self.seed, "bad channels", *where)[:3].numpy()
        eeg[bad] += BAD * self._noise(len(bad), n, "bad channels", lambda hertz: _pink(hertz) + 0.1)
        hum = draws.randn((n_chans, 2), self.seed, "mains", self.subject).numpy() + 1
        angle = 2 * np.pi * np.arange(n) * (50 / self.rate)
        waves = LINE * self._swelling(np.stack([np.cos(angle), np.sin(angle)]).astype(np.float32), "mains", 0.8)
        eeg += hum @ waves


def _pink(hertz: np.ndarray) -> np.ndarray:
    """Amplitude falling as f^SLOPE (power as f^-1.3), flat below 0.5 Hz."""
    return np.maximum(hertz, 0.5) ** SLOPE


def _alpha(hertz: np.ndarray) -> np.ndarray:
    return np.exp(-0.5 * ((hertz - 10) / 1.0) ** 2)


def _muscle(hertz: np.ndarray) -> np.ndarray:
    """Rising from 20 Hz, falling slowly beyond 100 Hz."""
    return 1 / (1 + (20 / np.maximum(hertz, 1e-6)) ** 4) / (1 + hertz / 100)


def _between(knots: np.ndarray, n: int) -> np.ndarray:
    """(R, B + 1) values to (R, n) float32 by straight lines, B dividing n."""
    share = np.arange(n // (knots.shape[1] - 1), dtype=np.float32) / (n // (knots.shape[1] - 1))
    left, right = knots[:, :-1, None].astype(np.float32), knots[:, 1:, None].astype(np.float32)
    return (left + (right - left) * share).reshape(len(knots), n)


def bandpass(eeg: np.ndarray, band: str, rate: float) -> np.ndarray:
    """(E, T) filtered forward and backward by a fourth-order Butterworth filter of BANDS[band]; raw stays as it is."""
    if BANDS[band] is None:
        return eeg
    low, high = BANDS[band]
    hertz = np.fft.rfftfreq(eeg.shape[1], 1 / rate)
    gain = 1 / (1 + (low / np.maximum(hertz, 1e-6)) ** 8) / (1 + (hertz / high) ** 8)
    gain[0] = 0
    return fft.irfft(fft.rfft(eeg) * gain.astype(np.float32), n=eeg.shape[1])


def standardise(eeg: np.ndarray) -> np.ndarray:
    """(E, T) with mean 0 and variance 1 in each channel over the recording."""
    return (eeg - eeg.mean(axis=1, keepdims=True)) / eeg.std(axis=1, keepdims=True)
