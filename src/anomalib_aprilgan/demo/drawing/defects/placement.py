# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Functions that all kinds of defects use: position, colour and curved lines."""

from collections.abc import Callable

import cv2
import numpy as np
from numpy.random import Generator

from anomalib_aprilgan.demo.drawing.canvas import Array, colour, coordinates, line, rotated
from anomalib_aprilgan.demo.drawing.sheet import Scene

__all__ = ["Defect", "Drawn", "contrasting", "curve", "frame"]

Drawn = tuple[Array, Array]
Defect = Callable[[Scene, Generator], Drawn]


def _place(scene: Scene, rng: Generator, at_rim: bool = False) -> tuple[float, float]:
    """Choose a random point of the object, or of its rim."""
    n = len(scene.silhouette)
    solid = scene.silhouette > 0.9
    if at_rim and not solid.all():
        solid &= cv2.erode(solid.astype(np.uint8), np.ones((3, 3), np.uint8), iterations=max(n // 32, 1)) == 0
    rows, columns = np.nonzero(solid)
    chosen = rng.integers(len(rows))
    x, y = (float((position[chosen] + 0.5) / n * 2 - 1) for position in (columns, rows))
    return (x, y) if at_rim else (float(np.clip(x, -0.85, 0.85)), float(np.clip(y, -0.85, 0.85)))


def frame(scene: Scene, rng: Generator, at_rim: bool = False) -> tuple[Array, Array]:
    """Coordinates around a random point of the object, with a random rotation."""
    return rotated(*coordinates(len(scene.silhouette)), rng.uniform(0, 2 * np.pi), _place(scene, rng, at_rim))


def contrasting(scene: Scene, rng: Generator, value: tuple[float, float] = (0.0, 1.0)) -> Array:
    """Choose a colour that differs from the object's mean colour."""
    inside = scene.picture[scene.silhouette > 0.9].mean(0)
    for _ in range(30):
        tone = colour(rng, saturation=(0, 0.9), value=value)
        if np.abs(tone - inside).max() > 0.3:
            break
    return tone


def curve(x: Array, y: Array, points: Array, radius: Array | float) -> Array:
    """Signed distance to a line through points, shape (k, 2); the half width may vary along it."""
    radii = np.broadcast_to(radius, len(points))
    pieces = [
        line(x, y, tuple(start), tuple(end), r) for start, end, r in zip(points[:-1], points[1:], radii, strict=False)
    ]
    return np.minimum.reduce(pieces)
