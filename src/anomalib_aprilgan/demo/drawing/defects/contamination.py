# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Contamination: foreign matter on the surface, or a changed colour."""

import numpy as np
from numpy.random import Generator

from anomalib_aprilgan.demo.drawing.canvas import blob, coverage, over
from anomalib_aprilgan.demo.drawing.defects.placement import Drawn, contrasting, curve, frame
from anomalib_aprilgan.demo.drawing.sheet import Scene
from anomalib_aprilgan.demo.drawing.surfaces import SURFACES

FOREIGN_TEXTURES = (
    "leather",
    "wood",
    "fabric",
    "carpet",
    "granite",
    "brushed_metal",
    "paper",
    "asphalt",
    "cork",
    "denim",
    "concrete",
)
"""Surfaces that a wrong texture is taken from."""


def stain(scene: Scene, rng: Generator) -> Drawn:
    """A soft blot that tints the material."""
    x, y = frame(scene, rng)
    covered = coverage(blob(rng, x, y, rng.uniform(0.16, 0.36)), rng.uniform(0.03, 0.1)) * scene.silhouette
    tint = contrasting(scene, rng, (0.0, 0.6))
    soaked = 0.35 * scene.picture + 0.65 * scene.picture * tint
    return over(scene.picture, soaked.astype(np.float32), covered), covered


def spots(scene: Scene, rng: Generator) -> Drawn:
    """Two to six small specks close together."""
    x, y = frame(scene, rng)
    tone = contrasting(scene, rng)
    specks = [
        blob(rng, x - rng.normal(0, 0.16), y - rng.normal(0, 0.16), rng.uniform(0.04, 0.09), 0.2)
        for _ in range(rng.integers(2, 7))
    ]
    covered = coverage(np.minimum.reduce(specks)) * scene.silhouette
    return over(scene.picture, tone, covered * np.float32(0.9)), covered


def fibre(scene: Scene, rng: Generator) -> Drawn:
    """A curled thread with a shadow."""
    x, y = frame(scene, rng)
    turns = np.cumsum(rng.normal(rng.normal(0, 0.15), 0.3, 14))
    steps = np.stack([np.cos(turns), np.sin(turns)], axis=-1) * rng.uniform(0.05, 0.09)
    points = np.cumsum(steps, axis=0)
    points -= points.mean(0)
    distance = curve(x, y, points, rng.uniform(0.018, 0.035))
    covered = coverage(distance)
    shadow = np.clip(0.5 - distance / 0.08, 0, 1) * 0.3
    dimmed = scene.picture * np.asarray(1 - shadow, np.float32)[..., None]
    return over(dimmed, contrasting(scene, rng), covered), covered


def discolouration(scene: Scene, rng: Generator) -> Drawn:
    """A region of another colour with the same texture."""
    x, y = frame(scene, rng)
    covered = coverage(blob(rng, x, y, rng.uniform(0.2, 0.4), 0.3), rng.uniform(0.02, 0.08)) * scene.silhouette
    grey = scene.picture.mean(-1, keepdims=True)
    tone = contrasting(scene, rng, (0.3, 1.0))
    changed = np.clip(tone * (0.5 + grey / max(2 * float(grey.mean()), 0.1)), 0, 1)
    return over(scene.picture, changed.astype(np.float32), covered * np.float32(0.85)), covered


def wrong_texture(scene: Scene, rng: Generator) -> Drawn:
    """A patch of another material."""
    n = len(scene.silhouette)
    x, y = frame(scene, rng)
    foreign = SURFACES[rng.choice(FOREIGN_TEXTURES)](rng, rng, n)
    covered = coverage(blob(rng, x, y, rng.uniform(0.18, 0.36), rng.uniform(0.05, 0.4))) * scene.silhouette
    return over(scene.picture, foreign, covered), covered
