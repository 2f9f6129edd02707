"""Trials of two splits that hold the same EEG: equal to the last bit, alike, or overlapping in time.

FIGURES

Shapes: N trials, C electrodes, L samples of one trial, S and K as SKETCH.
"""

from collections.abc import Sequence

import numpy as np

from data.trials_file import TrialFile, cached_windows

SKETCH = 8, 48  # channels or mixtures of them, frequencies
FEWEST = 80  # of both together: one channel of 0.7 s, whatever its trial, is like others by chance
ALIKE = 0.8
LEAKING = 0.001  # share of the test trials above which the design is called leaking
APART = 3  # from so many frequencies apart, those of a Hann window are independent


def recordings_of(trials: dict[str, list]) -> list[tuple[int, str]]:
    """Each trial's subject and recording: a recording's name alone may be used for two subjects."""
    return [(subject, str(name)) for subject, name in zip(trials["subject"], trials["recording"], strict=True)]


def sketch(eeg: np.ndarray, n_times: int) -> np.ndarray:
    """(C, L) to (S, K) complex64: spectra of channels, or of mixtures of them, as if it had n_times samples."""
    found, (n_chans, length) = np.zeros(SKETCH, np.complex64), eeg.shape
    if length < 2 or min(n_chans, SKETCH[0]) * min(n_times // 2, SKETCH[1]) < FEWEST:
        return found
    with np.errstate(all="ignore"):  # what is not finite is named where a split is opened
        steps = np.diff(eeg.astype(np.float32), axis=1)
        steps -= steps.mean(0) if n_chans > 2 else 0
        steps = np.nan_to_num(steps / steps.std(1, keepdims=True), posinf=0, neginf=0)
    if n_chans > SKETCH[0]:
        signs = np.random.default_rng(n_chans).choice([-1, 1], (SKETCH[0], n_chans))
        steps = signs.astype(np.float32) @ steps
    spectra = np.fft.rfft(steps * np.hanning(length + 1)[1:-1].astype(np.float32), n_times)[:, 1 : SKETCH[1] + 1]
    found[: len(spectra), : spectra.shape[1]] = spectra
    return found


def _unit(values: np.ndarray) -> np.ndarray:
    """(N, S, K), each trial at unit length, or zero."""
    length = np.sqrt((np.abs(values) ** 2).sum((1, 2), keepdims=True))
    return values / np.maximum(length, np.float32(1e-20))


class SameEEG:
    """Finds trials of a file that hold EEG of other trials.

    Args:
        info: what the stages read of the file's manifest: `window` in samples, `sfreq` in Hz.
    """

    def __init__(self, file: TrialFile, info: dict) -> None:
        (begin, end), self.trials = info["window"], file.about["trials"]
        lengths = [len(range(length)[begin:end]) for _, length in self.trials["shape"]]
        self.n_times = max(lengths)
        self.seconds = (self.n_times - 1) / info["sfreq"]  # onsets nearer than that overlap by a sample at least
        made = cached_windows(
            file, ["same EEG", begin, end], (len(lengths), 2 * SKETCH[0] * SKETCH[1]),
            lambda: (sketch(file.eeg(i)[:, begin:end], self.n_times).view("<f4").ravel() for i in range(len(lengths))),
        )  # fmt: skip
        spectra = np.ascontiguousarray(made).view(np.complex64).reshape(-1, *SKETCH)
        whitened = _unit(spectra / np.maximum(np.abs(spectra), np.float32(1e-20)) ** np.float32(0.75))
        self.vectors = _unit(whitened - whitened.mean(0))

    def between(self, first: Sequence[int], second: Sequence[int]) -> dict:
        """How many of the trials `second` hold EEG of one of `first`: plain values, of each way and together.

        "overlapping" is None where an onset is unknown; "examples" says of two trials what they repeat.
        """
        digest, overlapping = self.trials["digest"], self.overlapping(first, second)
        known = {digest[i]: i for i in first}
        same = {j: known[digest[j]] for j in second if digest[j] in known}
        near = zip(second, *self.nearest(first, second), strict=True)
        alike = {j: first[place] for j, place, likeness in near if likeness >= ALIKE}
        pairs = alike | (overlapping or {}) | same
        counts = {"trials": len(second), "identical": len(same), "alike": len(alike), "repeated": len(pairs)}
        counts["overlapping"] = None if overlapping is None else len(overlapping)
        return counts | {"examples": [f"trial {j} that of trial {pairs[j]}" for j in sorted(pairs)[:2]]}

    def overlapping(self, first: Sequence[int], second: Sequence[int]) -> dict[int, int] | None:
        """Trials of `second` that begin within a window of one of `first` in their recording, and which that is."""
        onset, tape, ours, found = self.trials["onset"], recordings_of(self.trials), set(first), {}
        if None in onset:
            return None
        order = sorted([*first, *second], key=lambda i: (tape[i], onset[i]))
        for run in (order, order[::-1]):
            last = None
            for i in run:
                last = i if i in ours else last
                if last in ours and tape[last] == tape[i] and abs(onset[i] - onset[last]) < self.seconds:
                    found[i] = last
        return {j: found[j] for j in second if j in found}

    def nearest(self, first: Sequence[int], second: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """For each trial of `second`, the nearest of `first`, as its place there, and their likeness, 0 to 1."""
        if not first or not second:
            return np.zeros(len(second), int), np.zeros(len(second))
        ours, theirs = self.vectors[first], self.vectors[second]
        # a shift turns all of these by one angle
        turns = [_unit(v[..., APART:] * v[..., :-APART].conj()).reshape(len(v), -1) for v in (ours, theirs)]
        blocks = [np.abs(turns[1][k : k + 256] @ turns[0].conj().T).argmax(1) for k in range(0, len(second), 256)]
        nearest = np.concatenate(blocks)
        cross = theirs * ours[nearest].conj()
        lags = np.arange(-(self.n_times // 32), self.n_times // 32 + 1)[:, None] / self.n_times
        shifts = np.exp(2j * np.pi * lags * np.arange(1, SKETCH[1] + 1))
        likeness = np.abs((cross.sum(1) @ shifts.T).real).max(1) / np.maximum(np.abs(cross).sum((1, 2)), 1e-20)
        return nearest, likeness


def is_leaking(found: dict) -> bool:
    """Whether so many trials hold EEG of others that nothing may be claimed of them; found: as of `between`."""
    return found["repeated"] > LEAKING * found["trials"]


def about_same_eeg(found: dict, part: str, others: str) -> str:
    """What `between` found, in one sentence, and what to do about it."""
    in_time = "unknown" if found["overlapping"] is None else found["overlapping"]
    ways = f"equal {found['identical']}, correlated by {ALIKE} or more {found['alike']}, overlapping in time {in_time}"
    said = f"{found['repeated']} of {found['trials']} {part} trials hold EEG of a {others} trial ({ways})"
    if not found["repeated"]:
        return f"{said}."
    share = f"{found['repeated'] / found['trials']:.1%}, above {LEAKING:.1%} of the test trials the design is leaking"
    advice = "leave out what is there twice, or keep each recording in one split (make_splits by=recording)"
    return f"{said}: {share}; {', '.join(found['examples'])}{'; ' * bool(found['examples'])}{advice}, and train again."
