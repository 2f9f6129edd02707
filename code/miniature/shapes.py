"""Outlines of the ten things the miniature world shows.

Coordinates: x to the right, y down, the thing fits the square [-1, 1] x [-1, 1]. A shape is a list of (role, points),
drawn in order; points are n pairs. Roles: `body` the named colour, `shade` and `tint` darker and lighter variants
of it, and the fixed colours `wood`, `cream`, `dark` and `gold`.
"""

import numpy as np
from numpy import ndarray


def _ellipse(x: float, y: float, rx: float, ry: float, start: float = 0.0, stop: float = 360.0) -> ndarray:
    """Points of an ellipse, or of its arc from `start` to `stop` degrees (clockwise, 0 is to the right)."""
    angle = np.radians(np.linspace(start, stop, 40))
    return np.stack([x + rx * np.cos(angle), y + ry * np.sin(angle)], axis=1)


def _star() -> ndarray:
    angle = np.radians(np.arange(10) * 36 - 90)
    radius = np.where(np.arange(10) % 2 == 0, 1.0, 0.45)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def _heart() -> ndarray:
    t = np.linspace(0, 2 * np.pi, 80)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([np.sin(t) ** 3, -(y + 2.5) / 15], axis=1)


SHAPES = {
    "star": [("body", _star())],
    "heart": [("body", _heart())],
    "house": [
        ("body", [(-0.7, -0.15), (0.7, -0.15), (0.7, 0.9), (-0.7, 0.9)]),
        ("shade", [(-0.95, -0.1), (0.0, -0.95), (0.95, -0.1)]),
        ("wood", [(-0.5, 0.3), (-0.12, 0.3), (-0.12, 0.9), (-0.5, 0.9)]),
        ("cream", [(0.12, 0.12), (0.52, 0.12), (0.52, 0.5), (0.12, 0.5)]),
    ],
    "fish": [
        ("shade", [(0.4, 0.0), (1.0, -0.6), (0.85, 0.0), (1.0, 0.6)]),
        ("shade", [(-0.25, -0.4), (0.1, -0.8), (0.3, -0.3)]),
        ("body", _ellipse(-0.2, 0.0, 0.8, 0.5)),
        ("cream", _ellipse(-0.62, -0.12, 0.15, 0.15)),
        ("dark", _ellipse(-0.64, -0.12, 0.08, 0.08)),
    ],
    "tree": [
        ("wood", [(-0.16, 0.5), (0.16, 0.5), (0.16, 1.0), (-0.16, 1.0)]),
        ("body", [(-0.95, 0.62), (0.0, -0.05), (0.95, 0.62)]),
        ("body", [(-0.75, 0.2), (0.0, -0.5), (0.75, 0.2)]),
        ("body", [(-0.52, -0.25), (0.0, -1.0), (0.52, -0.25)]),
    ],
    "cup": [
        ("shade", np.concatenate([_ellipse(0.45, 0.1, 0.52, 0.5, -90, 90), _ellipse(0.45, 0.1, 0.28, 0.27, 90, -90)])),
        ("body", [(-0.8, -0.6), (0.5, -0.6), (0.4, 0.85), (-0.7, 0.85)]),
        ("tint", _ellipse(-0.15, -0.6, 0.65, 0.2)),
        ("wood", _ellipse(-0.15, -0.58, 0.5, 0.13)),
    ],
    "boat": [
        ("wood", [(-0.04, -1.0), (0.06, -1.0), (0.06, 0.45), (-0.04, 0.45)]),
        ("body", [(0.1, -0.95), (0.9, 0.3), (0.1, 0.3)]),
        ("tint", [(-0.08, -0.7), (-0.08, 0.3), (-0.75, 0.3)]),
        ("shade", [(-1.0, 0.42), (1.0, 0.42), (0.65, 0.9), (-0.65, 0.9)]),
    ],
    "flower": [
        *(("body", _ellipse(0.6 * np.cos(a), 0.6 * np.sin(a), 0.38, 0.38)) for a in np.radians(np.arange(6) * 60)),
        ("gold", _ellipse(0.0, 0.0, 0.34, 0.34)),
    ],
    "mushroom": [
        ("cream", [(-0.25, 0.0), (0.25, 0.0), (0.36, 0.95), (-0.36, 0.95)]),
        ("body", _ellipse(0.0, 0.15, 1.0, 1.05, 180, 360)),
        ("tint", _ellipse(-0.45, -0.25, 0.2, 0.18)),
        ("tint", _ellipse(0.1, -0.55, 0.19, 0.17)),
        ("tint", _ellipse(0.5, -0.12, 0.18, 0.15)),
    ],
    "moon": [
        ("body", np.concatenate([_ellipse(0.1, 0.0, 0.95, 0.95, 60, 300), _ellipse(0.42, 0.0, 0.71, 0.83, 284, 76)]))
    ],
}
