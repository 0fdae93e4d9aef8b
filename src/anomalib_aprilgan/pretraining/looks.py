# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Looks of defects in photographs: each function returns the damaged picture, shape ``(n, n, 3)``."""

import cv2
import numpy as np
from numpy.random import Generator

from anomalib_aprilgan.demo.drawing.canvas import Array, colour, fractal, noise, over, relief
from anomalib_aprilgan.demo.drawing.sheet import Scene
from anomalib_aprilgan.pretraining.materials import Materials
from anomalib_aprilgan.pretraining.shapes import between

__all__ = [
    "brighter", "darker", "displaced", "dyed", "gone", "hollow", "other_material", "painted", "raised", "rough",
    "rusty", "smooth",
]  # fmt: skip


def darker(scene: Scene, covered: Array, _: Materials, rng: Generator) -> Array:
    """Darker, with the same texture."""
    return over(scene.picture, scene.picture * np.float32(between(rng, 0.08, 0.85)), covered)


def brighter(scene: Scene, covered: Array, _: Materials, rng: Generator) -> Array:
    """Brighter, with the same texture."""
    lifted = scene.picture * np.float32(rng.uniform(1.1, 1.9)) + np.float32(rng.uniform(0, 0.3))
    return over(scene.picture, lifted, covered)


def dyed(scene: Scene, covered: Array, _: Materials, rng: Generator) -> Array:
    """The texture remains; its colour changes."""
    dye = colour(rng, saturation=(0.1, 1.0), value=(0.3, 1.2))
    tinted = scene.picture.mean(-1, keepdims=True) ** np.float32(0.7) * dye * np.float32(rng.uniform(0.7, 1.4))
    return over(scene.picture, tinted, covered * np.float32(rng.uniform(0.4, 1)))


def painted(scene: Scene, covered: Array, _: Materials, rng: Generator) -> Array:
    """Covered by another colour."""
    n = len(covered)
    paint = colour(rng, saturation=(0, 0.8), value=(0, 1))
    if rng.random() < 0.5:  # noqa: PLR2004
        paint = paint.mean() * np.ones(3, np.float32)
    body = paint * (1 + rng.uniform(0, 0.15) * noise(rng, n, between(rng, 6, n / 3)))[..., None]
    body = relief(np.asarray(body, np.float32), _blurred(covered, 1.5), rng.uniform(0, 0.08))
    return over(scene.picture, body, covered * np.float32(rng.uniform(0.6, 1)))


def other_material(scene: Scene, covered: Array, materials: Materials, rng: Generator) -> Array:
    """Replaced by the material of another photograph."""
    other, _ = materials.crop(rng, len(covered))
    if rng.random() < 0.5:  # noqa: PLR2004  # as bright as its surroundings
        other = other * np.float32(scene.picture.mean() / max(float(other.mean()), 0.05))
    return over(scene.picture, other, covered)


def displaced(scene: Scene, covered: Array, _: Materials, rng: Generator) -> Array:
    """The same material, turned, mirrored or shifted: its grain is broken."""
    moved = np.rot90(scene.picture, int(rng.integers(1, 4)))
    moved = np.roll(moved, tuple(int(shift) for shift in rng.integers(len(covered), size=2)), (0, 1))
    return over(scene.picture, np.ascontiguousarray(moved), covered)


def smooth(scene: Scene, covered: Array, _: Materials, rng: Generator) -> Array:
    """Worn or polished: the texture is gone."""
    blurred = _blurred(scene.picture, between(rng, 2, 10)) * np.float32(between(rng, 0.7, 1.4))
    return over(scene.picture, blurred, covered)


def rough(scene: Scene, covered: Array, _: Materials, rng: Generator) -> Array:
    """Grainy, and brighter or darker."""
    n = len(covered)
    grain = rng.uniform(0.15, 0.8) * noise(rng, n, between(rng, n / 12, n / 2)) + rng.uniform(-0.4, 0.3)
    return over(scene.picture, scene.picture * np.exp(grain, dtype=np.float32)[..., None], covered)


def raised(scene: Scene, covered: Array, _: Materials, rng: Generator) -> Array:
    """A dent or a bump, with light and shade and a distorted texture."""
    n = len(covered)
    height = _blurred(covered, between(rng, 1, n / 20)) * np.float32(rng.choice([-1, 1]))
    down, across = (np.asarray(slope, np.float32) for slope in np.gradient(height))
    reach = rng.uniform(0, 0.1) * n
    columns, rows = np.meshgrid(np.arange(n, dtype=np.float32), np.arange(n, dtype=np.float32))
    pulled = cv2.remap(
        scene.picture, columns - reach * across, rows - reach * down, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT
    )
    steepest = max(float(np.hypot(down, across).max()) * n / 2, 1e-6)
    lit = relief(np.asarray(pulled, np.float32), height, rng.uniform(0.5, 1.5) / steepest, rng.uniform(0, 2 * np.pi))
    swollen = _grown(covered, 1)
    return over(scene.picture, lit, np.clip(swollen * 2, 0, 1))


def hollow(scene: Scene, covered: Array, _: Materials, rng: Generator) -> Array:
    """Dark inside, with a lit rim."""
    lit = relief(scene.picture, -_blurred(covered, 1.5), rng.uniform(0.02, 0.12), rng.uniform(0, 6.3))
    return over(lit, scene.picture * np.float32(between(rng, 0.05, 0.5)), covered)


def rusty(scene: Scene, covered: Array, _: Materials, rng: Generator) -> Array:
    """Covered by rust."""
    n = len(covered)
    rust = colour(rng, (0.02, 0.12), (0.5, 0.9), (0.2, 0.7))
    body = rust * np.exp(rng.uniform(0.2, 0.6) * fractal(rng, n, between(rng, 10, 50)))[..., None]
    return over(scene.picture, np.asarray(body, np.float32), covered * np.float32(rng.uniform(0.5, 1)))


def gone(scene: Scene, covered: Array, _: Materials, rng: Generator) -> Array:
    """What lies below is seen, behind a broken edge."""
    edge = _grown(covered, int(rng.integers(1, 3)))
    broken = over(scene.picture, scene.picture * np.float32(between(rng, 0.5, 1.5)), edge)
    shaded = scene.bare * np.float32(rng.uniform(0.6, 1)) if rng.random() < 0.8 else scene.picture * np.float32(0.15)  # noqa: PLR2004
    return over(broken, shaded, covered)


def _blurred(field: Array, sigma: float) -> Array:
    return np.asarray(cv2.GaussianBlur(field, (0, 0), sigma), np.float32)


def _grown(covered: Array, pixels: int) -> Array:
    return np.asarray(cv2.dilate(covered, np.ones((3, 3), np.uint8), iterations=pixels), np.float32)
