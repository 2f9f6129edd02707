"""What a picture evokes: a code of its thing, its colour and its pose, and the response a brain gives to that code.

Shapes: N pictures, D entries of a code, K sources, E electrodes, W samples of a response.
"""

from collections.abc import Sequence

import numpy as np

from miniature import head
from miniature.renderer import COLOURS, NAMES, THINGS, Scene
from runtime import draws

CODE_SIZE = len(THINGS) + len(COLOURS) + 7
N_SOURCES = 16
RESPONSE_SECONDS = 0.5
OCCIPITAL = (0.0, -1.0, 0.35)  # direction of visual cortex (x right, y front, z up)


def picture_codes(classes: Sequence[int], seeds: Sequence[int], instance: float) -> np.ndarray:
    """Codes (N, 27) of pictures of the miniature world: which thing (10), which colour (10), pose and background (7).

    A class is the sum of two parts that it shares with others, so what is learnt of one red thing holds for the next.
    `instance` scales the part that is the picture's own (size, place, angle, background), against 1 for the others.
    """
    words = np.array([NAMES[c].split() for c in classes])  # (N, 2): colour and thing
    shared = [words[:, column, None] == np.array(names) for column, names in ((1, THINGS), (0, list(COLOURS)))]
    return np.concatenate([*shared, instance * _pose(classes, seeds)], axis=1)


def _pose(classes: Sequence[int], seeds: Sequence[int]) -> np.ndarray:
    """(N, 7): size, place, angle and background of each picture, standardised, mean square of a row about 1."""
    scenes = [Scene(c, s) for c, s in zip(classes, seeds, strict=True)]
    raw = np.array([[s.size, s.x, s.y, s.angle, *s.ground] for s in scenes])
    spread = raw.std(axis=0)
    return (raw - raw.mean(axis=0)) / np.where(spread > 0, spread, 1) / np.sqrt(raw.shape[1])


class VisualCortex:
    """One subject's sources of the evoked response, seen by `electrodes` (E, 3).

    Sources, tuning and latencies are those of all subjects (functions of `seed`), moved a little for each.
    """

    def __init__(self, electrodes: np.ndarray, seed: int, subject: int) -> None:
        positions, moments = head.random_dipoles(N_SOURCES, seed, "evoked sources", centre=OCCIPITAL)
        own = draws.randn((N_SOURCES, 6), seed, "evoked sources", subject).double().numpy()
        fields = head.topographies(electrodes, positions + 0.04 * own[:, :3], moments + 0.15 * own[:, 3:])
        self.topography = fields.astype(np.float32)  # (E, K)
        uniform = draws.rand((N_SOURCES, 3), seed, "evoked timing").double().numpy()
        shift = draws.randn((N_SOURCES,), seed, "evoked timing", subject).double().numpy()
        self.latency = 0.08 + 0.27 * uniform[:, 0] + 0.008 * shift  # s
        self.frequency = 6 + 5 * uniform[:, 1]  # Hz
        self.width = 0.4 / self.frequency  # s: one cycle and a half
        self.always = 0.5 + uniform[:, 2]  # amplitude of the response that every picture evokes
        self.tuning = draws.randn((CODE_SIZE, N_SOURCES, 2), seed, "tuning").double().numpy()
        self.tuning += 0.4 * draws.randn(self.tuning.shape, seed, "tuning", subject).double().numpy()

    def respond(self, codes: np.ndarray, rate: float) -> np.ndarray:
        """What each source does after each picture, (N, K, W) float32; `topography` (E, K) carries it to the scalp.

        A source's waveform is a Gaussian-windowed cosine; the code moves its amplitude by its own tuning (about 1)
        and its latency by at most 12 ms.
        """
        amplitude = self.always + codes @ self.tuning[..., 0]  # (N, K)
        latency = self.latency + 0.012 * np.tanh(codes @ self.tuning[..., 1])
        time = np.arange(int(RESPONSE_SECONDS * rate)) / rate - latency[..., None]
        wave = np.exp(-0.5 * (time / self.width[:, None]) ** 2) * np.cos(2 * np.pi * self.frequency[:, None] * time)
        return (amplitude[..., None] * wave).astype(np.float32)
