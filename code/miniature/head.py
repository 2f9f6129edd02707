"""A spherical head: where electrodes sit, and what they see of a current dipole.

Shapes: E electrodes, S dipoles. Lengths are in head radii (the scalp is the unit sphere; x right, y front, z up),
dipole moments in arbitrary units.
"""

import numpy as np

from runtime import draws

# inner and outer skull radius over head radius (Ary, Klein and Fender, IEEE Trans. Biomed. Eng. 28, 1981); skull over
# soft tissue conductivity as measured since (1/15 to 1/50; the 1/80 of 1981 blurs too much)
SKULL = (0.87, 0.92)
SKULL_CONDUCTIVITY = 1 / 25


def electrode_positions(n: int) -> np.ndarray:
    """`n` electrodes (E, 3) spread evenly on the scalp from the vertex to 115 degrees from it.

    A golden-angle spiral: equal area an electrode, no two near each other, defined for every n.
    """
    index = np.arange(n)
    z = 1 - (index + 0.5) / n * (1 - np.cos(np.radians(115.0)))
    angle = index * np.pi * (3 - np.sqrt(5))
    ring = np.sqrt(1 - z**2)
    return np.stack([ring * np.cos(angle), ring * np.sin(angle), z], axis=1)


def lead_field(
    electrodes: np.ndarray, positions: np.ndarray, moments: np.ndarray, skull_conductivity: float = SKULL_CONDUCTIVITY
) -> np.ndarray:
    """Scalp potentials (E, S) of dipoles in a sphere of three shells (brain, skull, scalp).

    The Legendre series of Ary, Klein and Fender (1981), equations 2 and 2a, without the factor 1/(4 pi sigma R^2).
    With `skull_conductivity` 1 the head is one uniform sphere.

    Args:
        electrodes: (E, 3) on the unit sphere.
        positions: (S, 3), inside the inner skull and not at the centre.
        moments: (S, 3).
    """
    depth = np.linalg.norm(positions, axis=1)
    outward = positions / depth[:, None]
    radial = (moments * outward).sum(1)
    tangential = moments - radial[:, None] * outward
    cosine = electrodes @ outward.T
    # m_t cos(beta) P_n^1(cos) = P_n'(cos) (tangential moment . electrode), as P_n^1 = sin P_n' and the part of the
    # electrode's direction across the dipole's axis has length sin
    along = electrodes @ tangential.T
    xi, (inner, outer) = skull_conductivity, SKULL
    before, legendre = np.ones_like(cosine), cosine
    slope_before, slope, potential = np.zeros_like(cosine), np.ones_like(cosine), np.zeros_like(cosine)
    for n in range(1, 81):  # 80 Legendre terms suffice for eccentricities up to 0.87
        odd = 2 * n + 1
        shells = ((n + 1) * xi + n) * (n * xi / (n + 1) + 1)
        shells += (1 - xi) * ((n + 1) * xi + n) * (inner**odd - outer**odd)
        shells -= n * (1 - xi) ** 2 * (inner / outer) ** odd
        weight = xi * odd**3 / (shells * (n + 1) * n) * depth ** (n - 1)
        potential += weight * (n * radial * legendre + along * slope)
        following = (odd * cosine * legendre - n * before) / (n + 1)
        slope_before, slope = slope, slope_before + odd * legendre
        before, legendre = legendre, following
    return potential


def topographies(electrodes: np.ndarray, positions: np.ndarray, moments: np.ndarray) -> np.ndarray:
    """`lead_field` (E, S) against the mean of all electrodes, every column of unit root mean square."""
    field = lead_field(electrodes, positions, moments)
    field = field - field.mean(axis=0, keepdims=True)
    return field / np.sqrt((field**2).mean(axis=0))


def random_dipoles(
    n: int, seed: int, purpose: str, *index: int, centre: tuple[float, float, float] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Positions (S, 3) 0.55 to 0.8 from the centre and unit moments (S, 3), half radial on average.

    Args:
        centre: a direction round which they gather; without it they lie all over the upper head.
    """
    drawn = draws.randn((n, 7), seed, purpose, *index).double().numpy()
    direction = drawn[:, :3] * [1, 1, 0.8] + [0, 0, 0.4] if centre is None else np.array(centre) + 0.4 * drawn[:, :3]
    outward = direction / np.linalg.norm(direction, axis=1, keepdims=True)
    depth = np.clip(0.7 + 0.08 * drawn[:, 6:], 0.55, 0.8)
    moments = outward * np.sign(drawn[:, 3:4]) + 0.7 * drawn[:, 3:6]
    return outward * depth, moments / np.linalg.norm(moments, axis=1, keepdims=True)
