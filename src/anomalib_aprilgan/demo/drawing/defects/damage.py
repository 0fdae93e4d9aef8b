# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Damage: the material is scratched, bent, cracked or missing."""

import cv2
import numpy as np
from numpy.random import Generator

from anomalib_aprilgan.demo.drawing.canvas import blob, colour, coverage, noise, over, relief
from anomalib_aprilgan.demo.drawing.defects.placement import Drawn, curve, frame
from anomalib_aprilgan.demo.drawing.sheet import Scene


def scratch(scene: Scene, rng: Generator) -> Drawn:
    """One to three thin, slightly bent lines, brighter or darker than the material."""
    x, y = frame(scene, rng)
    bright = rng.random() < 0.6
    distance = np.full_like(x, 9)
    bend, length, radius = rng.uniform(-0.3, 0.3), rng.uniform(0.2, 0.5), rng.uniform(0.015, 0.035)
    along = np.linspace(-1, 1, 9)
    for number in range(rng.integers(1, 4)):
        points = np.stack([along * length, bend * along**2 + 0.1 * number], axis=-1)
        distance = np.minimum(distance, curve(x, y, points, radius * (1.1 - along**2)))
    covered = coverage(distance) * scene.silhouette
    paint = np.clip(scene.picture * 0.4 + (0.6 if bright else -0.1), 0, 1)
    return over(scene.picture, paint.astype(np.float32), covered), covered


def dent(scene: Scene, rng: Generator) -> Drawn:
    """A hollow: light on one side, dark on the other, with a distorted texture."""
    n = len(scene.silhouette)
    x, y = frame(scene, rng)
    radius = rng.uniform(0.18, 0.34)
    depth = np.exp(-((np.hypot(x / rng.uniform(0.8, 1.25), y) / radius) ** 2) * 1.6).astype(np.float32)
    down, across = np.gradient(depth * np.float32(n * 0.35 * radius))
    columns, rows = np.meshgrid(np.arange(n, dtype=np.float32), np.arange(n, dtype=np.float32))
    pulled = cv2.remap(
        scene.picture, columns - across * np.float32(6), rows - down * np.float32(6), cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REFLECT,
    )  # fmt: skip
    lit = relief(np.asarray(pulled, np.float32), -depth * np.float32(radius), rng.uniform(0.7, 1.1))
    covered = np.clip((depth - 0.15) * 8, 0, 1) * scene.silhouette
    return over(scene.picture, lit, covered), covered


def missing_part(scene: Scene, rng: Generator) -> Drawn:
    """A piece has broken off."""
    x, y = frame(scene, rng, at_rim=True)
    shape = blob(rng, x, y, rng.uniform(0.22, 0.4), 0.3)
    covered = coverage(shape) * scene.silhouette
    below = scene.bare * np.float32(0.9)
    return over(scene.picture, below, covered), covered


def crease(scene: Scene, rng: Generator) -> Drawn:
    """A fold: a straight ridge, light on one side and dark on the other."""
    x, y = frame(scene, rng)
    length, width = rng.uniform(0.35, 0.7), rng.uniform(0.05, 0.1)
    fade = np.clip((length - np.abs(x)) * 6, 0, 1)
    side = (y + 0.06 * np.sin(3 * x)) / width
    light = rng.uniform(0.5, 0.8) * side * np.exp(1 - side**2) * fade
    covered = np.clip(1.8 - np.abs(side), 0, 1) * fade * scene.silhouette
    lit = np.clip(scene.picture * np.exp(light)[..., None], 0, 1)
    return over(scene.picture, lit.astype(np.float32), covered), covered


def crack(scene: Scene, rng: Generator) -> Drawn:
    """A dark, jagged, branching line."""
    x, y = frame(scene, rng)
    heading, points = 0.0, [np.zeros(2)]
    for _ in range(rng.integers(7, 12)):
        heading = 0.6 * heading + rng.normal(0, 0.7)
        points.append(points[-1] + rng.uniform(0.06, 0.13) * np.array([np.cos(heading), np.sin(heading)]))
    path = np.stack(points)
    radius = rng.uniform(0.02, 0.035)
    fork = path[len(path) // 2]
    side = rng.choice([-1, 1]) * rng.uniform(0.6, 1.2)
    reach = np.linspace(0, rng.uniform(0.15, 0.3), 4)[:, None]
    branch = fork + reach * np.array([np.cos(side), np.sin(side)]) + rng.normal(0, 0.015, (4, 2))
    shift = path.mean(0)
    distance = np.minimum(
        curve(x, y, path - shift, radius * np.linspace(1.2, 0.5, len(path))),
        curve(x, y, branch - shift, radius * 0.7),
    )
    covered = coverage(distance) * scene.silhouette
    return over(scene.picture, scene.picture * np.float32(0.15), covered), covered


def hole(scene: Scene, rng: Generator) -> Drawn:
    """A dark opening with a bright rim."""
    x, y = frame(scene, rng)
    shape = blob(rng, x, y * rng.uniform(0.7, 1.3), rng.uniform(0.11, 0.24), 0.2)
    depth = coverage(shape, 0.08)
    lit = relief(scene.picture, -depth, 0.12)
    inside = colour(rng, saturation=(0, 0.3), value=(0.0, 0.12)) * (1 + 0.1 * noise(rng, len(x), 8))[..., None]
    covered = coverage(shape) * scene.silhouette
    return over(over(scene.picture, lit, scene.silhouette), inside, covered), covered
