# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Functions that all kinds of surfaces use: coordinates, colours, patterns on a grid."""

from collections.abc import Callable

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from anomalib_aprilgan.demo.drawing.canvas import Array, colour, coordinates, rotated

__all__ = ["Surface", "frame", "is_even", "palette", "tone_of"]

Surface = Callable[[Generator, Generator, int], Array]


def frame(look: Generator, rng: Generator, n: int, jitter: float = 0.05) -> tuple[Array, Array]:
    """Coordinates that are rotated by the category's angle, with jitter (radians), and shifted at random."""
    x, y = coordinates(n)
    angle = look.choice([0.0, 0.5 * np.pi, look.uniform(0, np.pi)]) + rng.normal(0, jitter)
    return rotated(x, y, angle, (rng.uniform(-1, 1), rng.uniform(-1, 1)))


def palette(look: Generator, hue: tuple[float, float], contrast: float = 0.35) -> tuple[Array, Array]:
    """Choose a dark and a light colour. Half of the categories get any hue instead of the natural one."""
    hue = hue if look.random() < 0.5 else (0.0, 1.0)
    light = colour(look, hue, (0.05, 0.7), (0.55, 0.95))
    return light * np.float32(1 - look.uniform(0.6, 1.4) * contrast), light


def tone_of(column: Array, row: Array) -> Array:
    """Pseudo-random number in [0, 1] for each cell of a grid."""
    return np.sin(column * 12.9898 + row * 78.233) * 43758.5453 % 1


def is_even(u: Array, v: Array) -> NDArray[np.bool_]:
    """Whether a point is in an even square of a chessboard."""
    return (np.floor(u) + np.floor(v)) % 2 == 0
