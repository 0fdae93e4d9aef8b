# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Drawing with numpy: coordinates, noise, shapes as signed distances, colour and light.

A picture is an array of shape ``(n, n, 3)``; a field, distance or coverage has shape ``(n, n)``. Colours and coverages
are in [0, 1]. Coordinates run from -1 to 1, x to the right and y downwards, so the unit of length is half the width.
"""

from typing import Any

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.spatial import cKDTree

__all__ = [
    "Array",
    "blob",
    "box",
    "cells",
    "colour",
    "coordinates",
    "coverage",
    "disc",
    "fractal",
    "line",
    "noise",
    "over",
    "polygon",
    "relief",
    "rotated",
    "sawtooth",
    "tinted",
]

Array = NDArray[np.floating[Any]]
Point = tuple[float, float]


def coordinates(n: int) -> tuple[Array, Array]:
    """Coordinates x and y of the pixel centres, each of shape ``(n, n)``."""
    axis = ((np.arange(n, dtype=np.float32) + 0.5) / n * 2 - 1).astype(np.float32)
    x, y = np.meshgrid(axis, axis)
    return x, y


def rotated(x: Array, y: Array, angle: float, centre: Point = (0.0, 0.0), scale: float = 1.0) -> tuple[Array, Array]:
    """Coordinates in a frame that is rotated by an angle (radians), shifted to a centre and scaled."""
    x, y = (x - centre[0]) / scale, (y - centre[1]) / scale
    cosine, sine = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return cosine * x + sine * y, cosine * y - sine * x


def noise(rng: Generator, n: int, cells_across: float, cells_down: float | None = None) -> Array:
    """Smooth noise with mean 0, standard deviation about 0.6, and the given number of bumps across and down."""
    across, down = cells_across, cells_across if cells_down is None else cells_down
    rows, columns = (max(int(np.ceil(number)) + 4, 5) for number in (down, across))
    lattice = rng.standard_normal((rows, columns), dtype=np.float32)
    scale = np.array([[across / n, 0, 1 + rng.random()], [0, down / n, 1 + rng.random()]], dtype=np.float32)
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    return np.asarray(cv2.warpAffine(lattice, scale, (n, n), flags=flags, borderMode=cv2.BORDER_REFLECT), np.float32)


def fractal(rng: Generator, n: int, cells_across: float, octaves: int = 4) -> Array:
    """Sum of noise fields of rising frequency and falling amplitude; mean 0, standard deviation about 0.6."""
    field = np.zeros((n, n), np.float32)
    for octave in range(octaves):
        if cells_across * 2**octave < n:
            field += noise(rng, n, cells_across * 2**octave) * np.float32(0.5**octave)
    return field / np.float32(1.15)


def cells(rng: Generator, x: Array, y: Array, across: float, disorder: float = 0.9) -> tuple[Array, Array, Array]:
    """Cellular (Worley) pattern of random points.

    Args:
        rng: Random generator.
        x: Coordinates.
        y: Coordinates.
        across: Number of cells across the picture.
        disorder: Displacement of the points from a hexagonal lattice, in [0, 1].

    Returns:
        Per pixel, the distance to the nearest point and to the second nearest (in cell widths), and a random number in
        [0, 1] that is the same in the whole cell.
    """
    rows, columns = int(across * 3) + 8, int(across * 2.6) + 8  # enough for rotated and shifted coordinates
    column, row = np.meshgrid(np.arange(columns) - columns // 2, np.arange(rows) - rows // 2)
    points = np.stack([column + 0.5 * (row % 2), 0.866 * row], axis=-1).reshape(-1, 2)
    points = points + disorder * rng.uniform(-0.5, 0.5, points.shape)
    pixels = np.stack([x, y], axis=-1) * across / 2
    distances, numbers = cKDTree(points).query(pixels.reshape(-1, 2), k=2)
    distances = distances.reshape(*x.shape, 2).astype(np.float32)
    of_cell = rng.random(len(points), dtype=np.float32)[numbers[:, 0]].reshape(x.shape)
    return distances[..., 0], distances[..., 1], of_cell


# ---- Shapes: distances to the outline, negative inside --------------------------------------------------------------


def disc(x: Array, y: Array, radius: float) -> Array:
    """A disc around the origin."""
    return np.hypot(x, y) - np.float32(radius)


def box(x: Array, y: Array, width: float, height: float, corner: float = 0.0) -> Array:
    """A rectangle around the origin with rounded corners; width and height are half of its extent."""
    dx, dy = np.abs(x) - np.float32(width - corner), np.abs(y) - np.float32(height - corner)
    return np.hypot(np.maximum(dx, 0), np.maximum(dy, 0)) + np.minimum(np.maximum(dx, dy), 0) - np.float32(corner)


def polygon(x: Array, y: Array, radius: float, corners: int) -> Array:
    """A regular polygon around the origin; the radius is the distance of its sides."""
    sector = 2 * np.pi / corners
    angle = np.arctan2(y, x)
    turned = angle - sector * np.round(angle / sector)
    return np.asarray(np.hypot(x, y) * np.cos(turned) - radius, np.float32)


def line(x: Array, y: Array, start: Point, end: Point, radius: float) -> Array:
    """A straight line with round ends and the given half width."""
    (ax, ay), (bx, by) = start, end
    dx, dy = bx - ax, by - ay
    along = np.clip(((x - ax) * dx + (y - ay) * dy) / max(dx * dx + dy * dy, 1e-9), 0, 1)
    return np.asarray(np.hypot(x - ax - along * dx, y - ay - along * dy) - radius, np.float32)


def blob(rng: Generator, x: Array, y: Array, radius: float, roughness: float = 0.35) -> Array:
    """An irregular patch around the origin."""
    return disc(x, y, radius) + np.float32(roughness * radius) * noise(rng, x.shape[0], 1.6 / radius)


def coverage(distance: Array, softness: float = 0.0) -> Array:
    """Fraction of each pixel that a shape covers. The edge is one pixel wide, or ``softness`` if that is wider."""
    edge = max(2 / distance.shape[0], softness)
    return np.clip(0.5 - distance / np.float32(edge), 0, 1)


# ---- Colour and light -----------------------------------------------------------------------------------------------


def colour(
    rng: Generator,
    hue: tuple[float, float] = (0.0, 1.0),
    saturation: tuple[float, float] = (0.1, 0.8),
    value: tuple[float, float] = (0.3, 0.9),
) -> Array:
    """A random colour, shape (3,), by hue (0 red, 1/3 green, 2/3 blue), saturation and value."""
    h, s, v = (rng.uniform(*limits) for limits in (hue, saturation, value))
    channels = (np.array([5, 3, 1]) + 6 * h) % 6
    return np.asarray(v * (1 - s * np.clip(np.minimum(channels, 4 - channels), 0, 1)), np.float32)


def over(picture: Array, paint: Array | float, covered: Array) -> Array:
    """Blend paint (a picture or a colour) over a picture by its coverage."""
    covered = covered[..., None]
    return np.asarray(picture * (1 - covered) + paint * covered, np.float32)


def tinted(field: Array, *colours: Array) -> Array:
    """Map a field in [0, 1] to colours, with linear interpolation."""
    stops = np.linspace(0, 1, len(colours))
    return np.stack([np.interp(field, stops, [c[i] for c in colours]) for i in range(3)], axis=-1).astype(np.float32)


def relief(picture: Array, height: Array, strength: float, direction: float = -0.75 * np.pi) -> Array:
    """Shade a picture as a relief with this height, lit from one side (radians; from the upper left by default)."""
    down, across = np.gradient(height * np.float32(height.shape[0] / 2))
    slope = across * np.float32(np.cos(direction)) + down * np.float32(np.sin(direction))
    return np.asarray(picture * np.exp(np.clip(-strength * slope, -1.2, 0.9))[..., None], np.float32)


def sawtooth(position: Array) -> Array:
    """Distance to the nearest whole number, in [0, 0.5]."""
    return np.abs(position - np.round(position))
