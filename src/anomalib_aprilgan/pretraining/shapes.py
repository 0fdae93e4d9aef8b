# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Shapes of defects in photographs: each function returns the coverage of each pixel, shape ``(n, n)``, in [0, 1]."""

import cv2
import numpy as np
from numpy.random import Generator

from anomalib_aprilgan.demo.drawing.canvas import Array, blob, coverage, fractal, noise
from anomalib_aprilgan.demo.drawing.defects.placement import curve, frame
from anomalib_aprilgan.demo.drawing.sheet import Scene

__all__ = ["between", "blot", "broken_piece", "crack", "patches", "pits", "scratches", "worn_rim"]


def between(rng: Generator, low: float, high: float) -> float:
    """A random number whose logarithm is uniform."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def blot(scene: Scene, rng: Generator) -> Array:
    """A stain, a dent or a hole: an irregular patch with a sharp or soft edge."""
    x, y = frame(scene, rng)
    radius = between(rng, 0.03, 0.4)
    shape = blob(rng, x, y * between(rng, 0.5, 2), radius, rng.uniform(0.1, 0.6))
    return coverage(shape, rng.choice([0.0, rng.uniform(0.02, 0.6) * radius]))


def pits(scene: Scene, rng: Generator) -> Array:
    """One to fourteen small specks close together."""
    x, y = frame(scene, rng)
    spread, size, along = between(rng, 0.03, 0.3), between(rng, 0.012, 0.05), between(rng, 0.3, 3)
    specks = [
        blob(rng, x - rng.normal(0, spread * along), y - rng.normal(0, spread), size * between(rng, 0.6, 1.6), 0.4)
        for _ in range(int(rng.choice([1, 1, 2, 4, 8, 14])))
    ]
    return coverage(np.minimum.reduce(specks), rng.choice([0.0, 0.02]))


def scratches(scene: Scene, rng: Generator) -> Array:
    """One to seven thin, slightly bent lines."""
    x, y = frame(scene, rng)
    length, bend, radius = between(rng, 0.08, 0.9), rng.normal(0, 0.2), between(rng, 0.006, 0.03)
    along = np.linspace(-1, 1, 7)
    lines = []
    for _ in range(int(rng.choice([1, 1, 1, 2, 4, 7]))):
        turn, shift = rng.normal(0, 0.06), rng.normal(0, 0.1, 2)
        points = np.stack([along * length * rng.uniform(0.5, 1), bend * length * along**2 + turn * along], axis=-1)
        lines.append(curve(x, y, points + shift, radius * (1.15 - along**2)))
    return coverage(np.minimum.reduce(lines)) * np.float32(rng.uniform(0.6, 1))


def crack(scene: Scene, rng: Generator) -> Array:
    """A jagged line, often branching, whose width varies."""
    x, y = frame(scene, rng)
    radius, step, wander = between(rng, 0.006, 0.035), between(rng, 0.02, 0.12), rng.uniform(0.2, 0.9)
    lines = []
    start, heading = np.zeros(2), 0.0
    for fork in range(int(rng.integers(1, 4))):
        points = [start]
        for _ in range(int(rng.integers(5, 14))):
            heading = 0.7 * heading + rng.normal(0, wander)
            points.append(points[-1] + step * rng.uniform(0.4, 1.4) * np.array([np.cos(heading), np.sin(heading)]))
        path = np.stack(points)
        widths = radius * 0.7**fork * np.linspace(1.2, 0.4, len(path)) * np.exp(rng.normal(0, 0.3, len(path)))
        lines.append(curve(x, y, path, widths))
        start, heading = path[int(rng.integers(1, len(path)))], rng.normal(0, 1.5)
    rough = np.float32(0.5 * radius) * noise(rng, len(x), len(x) / 5)
    return coverage(np.minimum.reduce(lines) + rough)


def patches(scene: Scene, rng: Generator) -> Array:
    """Many patches of any size, which thin out: rust, mould or wear."""
    x, y = frame(scene, rng)
    radius = between(rng, 0.12, 0.7)
    envelope = np.exp(-((np.hypot(x, y * between(rng, 0.4, 2.5)) / radius) ** 2))
    field = fractal(rng, len(x), between(rng, 3, 20)) + np.float32(rng.uniform(0.4, 1.8)) * (2 * envelope - 1)
    softness = rng.uniform(0.1, 0.8)
    return np.asarray(np.clip(field / softness, 0, 1) * np.clip(envelope * 8 - 1, 0, 1), np.float32)


def worn_rim(scene: Scene, rng: Generator) -> Array:
    """A part of the rim of an object; scratches on a surface."""
    solid = (scene.silhouette > 0.5).astype(np.uint8)  # noqa: PLR2004
    if solid.all():
        return scratches(scene, rng)
    n = len(solid)
    depth = np.asarray(cv2.distanceTransform(solid, cv2.DIST_L2, 3), np.float32) / n * 2
    x, y = frame(scene, rng, at_rim=True)
    near = np.exp(-((np.hypot(x, y) / between(rng, 0.1, 0.5)) ** 2))
    width = between(rng, 0.02, 0.12) * near * (1 + 0.6 * noise(rng, n, between(rng, 8, 40)))
    return coverage(np.asarray(depth - width, np.float32)) * (near > 0.05)  # noqa: PLR2004


def broken_piece(scene: Scene, rng: Generator) -> Array:
    """A piece at the rim, a wedge, or a gap between two halves."""
    x, y = frame(scene, rng, at_rim=True)
    size = between(rng, 0.06, 0.5)
    jagged = np.float32(0.06 * size / 0.2) * fractal(rng, len(x), rng.uniform(6, 20), 3)
    if rng.random() < 0.5:  # noqa: PLR2004  # a wedge or a gap between two broken halves
        opening = np.abs(y) - np.clip(size * 0.5 + rng.uniform(-0.3, 0.5) * x, 0.01, 0.4)
        return coverage(np.maximum(opening, np.abs(x) - rng.uniform(0.3, 2) * size) + jagged)
    return coverage(blob(rng, x, y * between(rng, 0.5, 2), size, 0.3) + jagged)
