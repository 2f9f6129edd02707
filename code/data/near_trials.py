"""Trials of two splits that hold the same EEG: equal to the last bit, alike, or overlapping in time.

What was trained on is remembered, not read. The same EEG stands in two splits where a recording was exported twice,
under two names or from two steps of cleaning, and is then seldom equal in every bit. Likeness is the correlation of two
trials at the best shift, of phases weighted by amplitudes to the power 1/4: this whitens both trials, and must, as EEG
is slow and common to all channels, so that different trials plainly correlate by 0.9. It is read from a sketch: first
difference in time, channels' mean removed (from three on), each channel at unit variance, at most 8 channels or random
mixtures, Hann window, the lowest 48 frequencies, the mean over trials removed. Phase differences between frequencies,
which a shift leaves as they are, give each trial its nearest by one matrix product; of that pair alone likeness is
computed. Sketches of all trials of a file are made once (12,000 of 128 channels: 7 s) and kept beside it; comparing
them takes a second and opens no EEG.

Largest likeness of different trials: 0.28 and 0.32 in the demo's two designs, 0.50 in 1,150 face and house trials of
one person, 0.77 in 5,736 windows of 24 people with all blinks (Muse, 4 channels). Copies have 0.97 or more in 16 bits,
another unit, with an added constant, shifted by 4 samples, re-referenced, or of turned polarity; nine in ten have 0.91
or more after a filter of 0.5-30 Hz without phase shift (they were of 1-40 or 5-95 Hz), or with channel gains that vary
by 30 %; white noise of 3 % of their deviation leaves 1.00 with 128 channels, and 0.86 or more of four in five with 4
channels and blinks. ALIKE lies between; it need not see every copy, as a small share of them is leaking.
Not seen: shifts by more than 1/32 of the window, unless onsets tell of them; filters that turn phases much; channels
in another order or number; time reversed; much noise; sums of trials. Trials of fewer than FEWEST channels x
frequencies, so any of one channel, are compared bit by bit and by onset alone.

Shapes: N trials, C electrodes, L samples of one trial, S and K as SKETCH.
"""

from collections.abc import Sequence

import numpy as np

from data.trials_file import TrialFile, cached_windows

SKETCH = 8, 48  # channels or mixtures of them, frequencies
FEWEST = 80  # of both together: one channel of 0.7 s, whatever its trial, is like others by chance
ALIKE = 0.85
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
        info: what the stages read of the file's manifest: `window` in samples, `sfreq` in Hz (None: unknown).
    """

    def __init__(self, file: TrialFile, info: dict) -> None:
        (begin, end), self.trials = info["window"], file.about["trials"]
        lengths = [len(range(length)[begin:end]) for _, length in self.trials["shape"]]
        self.n_times = max([1, *lengths])
        rate = info["sfreq"]
        self.seconds = rate and (self.n_times - 1) / rate  # onsets nearer than that overlap by a sample at least
        made = cached_windows(
            file, ["same EEG", begin, end], (len(lengths), 2 * SKETCH[0] * SKETCH[1]),
            lambda: (sketch(file.eeg(i)[:, begin:end], self.n_times).view("<f4").ravel() for i in range(len(lengths))),
        )  # fmt: skip
        spectra = np.ascontiguousarray(made).view(np.complex64).reshape(-1, *SKETCH)
        whitened = _unit(spectra / np.maximum(np.abs(spectra), np.float32(1e-20)) ** np.float32(0.75))
        self.vectors, known = np.zeros_like(whitened), whitened.any((1, 2))
        if known.any():  # less the mean, those without a sketch would all be alike
            self.vectors[known] = _unit(whitened[known] - whitened[known].mean(0))

    def between(self, first: Sequence[int], second: Sequence[int]) -> dict:
        """How many of the trials `second` hold EEG of one of `first`, as `among`: plain values, which `pairs` names.

        "overlapping" is None where an onset or the rate is unknown.
        """
        digest, overlapping = self.trials["digest"], self.overlapping(first, second)
        known = {digest[i]: i for i in first}
        same = {j: known[digest[j]] for j in second if digest[j] in known}
        near = zip(second, *self.nearest(first, second), strict=True)
        alike = {j: first[place] for j, place, likeness in near if likeness >= ALIKE}
        ways = {"identical": same, "alike": alike, "overlapping": overlapping or {}}
        pairs = sorted((alike | ways["overlapping"] | same).items())
        told = [[j, i, [way for way, found in ways.items() if j in found]] for j, i in pairs]
        found = {"overlapping": None if overlapping is None else 0, "pairs": told}
        return found | among(found, second)

    def overlapping(self, first: Sequence[int], second: Sequence[int]) -> dict[int, int] | None:
        """Trials of `second` that begin within a window of one of `first` in their recording, and which that is."""
        onset, tape, ours, found = self.trials["onset"], recordings_of(self.trials), set(first), {}
        if None in onset or self.seconds is None:
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


def among(found: dict, trials: Sequence[int]) -> dict:
    """What `between` found of some of the trials alone: counts of each way and together, and two examples."""
    kept = set(trials)
    pairs = [pair for pair in found["pairs"] if pair[0] in kept]
    counts = {way: sum(way in ways for *_, ways in pairs) for way in ("identical", "alike", "overlapping")}
    counts |= {"overlapping": None} if found["overlapping"] is None else {}
    examples = [f"trial {j} that of trial {i}" for j, i, _ in pairs[:2]]
    return {"trials": len(trials), "repeated": len(pairs), **counts, "examples": examples}


def about_same_eeg(found: dict, part: str, others: str) -> str:
    """What `between` found, in one sentence, and what to do about it."""
    in_time = "unknown" if found["overlapping"] is None else found["overlapping"]
    ways = f"equal {found['identical']}, correlated by {ALIKE} or more {found['alike']}, overlapping in time {in_time}"
    said = f"{found['repeated']} of {found['trials']} {part} trials hold EEG of a {others} trial ({ways})"
    said = ", for example ".join([said, *filter(None, [" and ".join(found["examples"])])])
    if not found["repeated"] or part != "test":
        return f"{said}."
    share = f"{found['repeated'] / found['trials']:.1%}, and above {LEAKING:.1%} the design is leaking"
    advice = "leave out what is there twice, or keep each recording in one split (make_splits by=recording)"
    return f"{said}: {share}; {advice}, and train again."
