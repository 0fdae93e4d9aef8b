# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Painting of objects on a plain background."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.random import Generator

from anomalib_aprilgan.demo.drawing.canvas import (
    Array,
    colour,
    coordinates,
    coverage,
    fractal,
    noise,
    over,
    relief,
    rotated,
)

__all__ = ["Painter", "Scene", "Sheet", "draw_object"]


class Sheet:
    """A background, on which a painter paints one object.

    Args:
        look: Random generator of everything that all pictures of a category share: background, pose, colours, sizes.
        rng: Random generator of everything that differs between them.
        n: Height and width in pixels.

    Attributes:
        look: As given.
        x: Coordinates of the object, which reaches about 0.7 from their origin.
        y: Coordinates of the object.
        picture: The picture so far, shape ``(n, n, 3)``.
        bare: The background alone, shape ``(n, n, 3)``.
        silhouette: Coverage by the object, shape ``(n, n)``.
    """

    def __init__(self, look: Generator, rng: Generator, n: int) -> None:
        ground = colour(look, saturation=(0, 0.5), value=look.choice([(0.05, 0.35), (0.65, 0.98)]))
        grain, turn, loose = look.uniform(0.01, 0.07), look.choice([0, 0.25, look.uniform()]), look.uniform(0, 0.12)
        scale, place = look.uniform(0.85, 1.2), look.uniform(-0.05, 0.05, 2)
        self.bare = np.asarray(
            ground * (1 + grain * (fractal(rng, n, 4) + noise(rng, n, n * 0.4)))[..., None], np.float32
        )
        centre = place + rng.normal(0, 0.03, 2)
        angle = 2 * np.pi * turn + rng.normal(0, loose)
        self.x, self.y = rotated(*coordinates(n), angle, (centre[0], centre[1]), scale * rng.uniform(0.97, 1.03))
        self.picture = self.bare
        self.silhouette: Array = np.zeros((n, n), np.float32)
        self.look, self._rng, self._ground = look, rng, ground
        self._grain = look.uniform(0, 0.05)

    def paint(self, distance: Array, tone: Array, bevel: float = 0.0, shadow: bool = False) -> None:
        """Paint a shape.

        Args:
            distance: Signed distance to the outline.
            tone: Colour.
            bevel: Width of the rounded rim; negative for a hollow.
            shadow: Whether the shape casts a shadow.
        """
        n = distance.shape[0]
        if shadow:
            dark = np.clip(0.5 - np.roll(distance, (n // 40, n // 40), (0, 1)) / 0.12, 0, 1)
            self.picture = self.picture * np.asarray(1 - 0.35 * dark, np.float32)[..., None]
        covered = coverage(distance)
        body = np.asarray(tone * (1 + self._grain * fractal(self._rng, n, 6))[..., None], np.float32)
        if bevel:
            height = np.sqrt(1 - (1 - np.clip(-distance / abs(bevel), 0, 1)) ** 2) * bevel
            body = relief(body, np.asarray(height, np.float32), 0.5)
        self.picture = over(self.picture, body, covered)
        self.silhouette = np.maximum(self.silhouette, covered)

    def cut(self, distance: Array) -> None:
        """Cut a shape out of the object, so that the background is seen."""
        covered = coverage(distance)
        self.picture = over(self.picture, self.bare * np.float32(0.8), covered)
        self.silhouette = self.silhouette * (1 - covered)

    def tone(
        self,
        hue: tuple[float, float] = (0.0, 1.0),
        saturation: tuple[float, float] = (0.1, 0.8),
        value: tuple[float, float] = (0.3, 0.9),
    ) -> Array:
        """Choose a colour that differs from the background; the same in all pictures of a category."""
        for _ in range(20):
            tone = colour(self.look, hue, saturation, value)
            if np.abs(tone - self._ground).max() > 0.25:
                break
        return tone

    def metal(self) -> Array:
        """Choose the colour of a metal."""
        return self.tone((0.08, 0.15), (0, 0.15) if self.look.random() < 0.6 else (0.4, 0.7), (0.45, 0.9))

    def between(self, low: float, high: float) -> float:
        """Choose a number between two limits; the same in all pictures of a category."""
        return float(self.look.uniform(low, high))

    def number(self, low: int, high: int) -> int:
        """Choose an integer, both limits included; the same in all pictures of a category."""
        return int(self.look.integers(low, high + 1))


Painter = Callable[[Sheet], None]


class Scene(NamedTuple):
    """A picture of an object or a surface, before the camera.

    Attributes:
        picture: The picture, shape ``(n, n, 3)``.
        bare: What is seen where a part is missing, shape ``(n, n, 3)``.
        silhouette: Coverage by the object or surface, shape ``(n, n)``.
    """

    picture: Array
    bare: Array
    silhouette: Array


def draw_object(painter: Painter, look: Generator, rng: Generator, n: int) -> Scene:
    """Paint an object on a new sheet.

    Args:
        painter: Function that paints the object.
        look: Random generator of everything that all pictures of a category share.
        rng: Random generator of everything that differs between them.
        n: Height and width in pixels.

    Returns:
        The scene.
    """
    sheet = Sheet(look, rng, n)
    painter(sheet)
    return Scene(sheet.picture, sheet.bare, sheet.silhouette)
