# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Undamaged scenes made of photographs: surfaces, and drawn objects and patterns with the texture of photographs."""

from typing import NamedTuple

import numpy as np
from numpy.random import Generator, default_rng

from anomalib_aprilgan.demo.drawing.canvas import Array, coordinates, fractal, noise, over, rotated
from anomalib_aprilgan.demo.drawing.scenes import AUXILIARY_KINDS, draw_scene
from anomalib_aprilgan.demo.drawing.sheet import Scene
from anomalib_aprilgan.pretraining.materials import Materials

__all__ = ["UNNAMED", "Undamaged", "undamaged"]

UNNAMED = "thing"
"""Name of scenes that captions do not name."""

MATERIAL_FRACTION = 0.5
"""Fraction of the scenes that show a photograph as it is; the others show a drawn scene with its texture."""


class Undamaged(NamedTuple):
    """A scene, and the name of what it shows."""

    scene: Scene
    name: str


def undamaged(materials: Materials, rng: Generator, n: int) -> Undamaged:
    """Compose a scene.

    Args:
        materials: The photographs.
        rng: Random generator.
        n: Height and width in pixels.

    Returns:
        The scene with its light. Half of the scenes are crops of photographs; the others are drawn scenes, whose object
        and background have the texture of photographs.
    """
    texture, name = materials.crop(rng, n)
    if rng.random() < MATERIAL_FRACTION:
        below = np.asarray(texture.mean((0, 1)) * rng.choice([0.4, 1.5]) * np.ones((n, n, 1)), np.float32)
        scene = Scene(texture, below, np.ones((n, n), np.float32))
    else:
        scene, name = _textured(texture, materials, rng, n), UNNAMED
    light = _light(rng, n)[..., None]
    return Undamaged(Scene(scene.picture * light, scene.bare * light, scene.silhouette), name)


def _textured(texture: Array, materials: Materials, rng: Generator, n: int) -> Scene:
    """A drawn scene whose object has the given texture, on a plain or a photographed background."""
    drawn = draw_scene(str(rng.choice(AUXILIARY_KINDS)), default_rng(rng.integers(1 << 40)), rng, n)
    colours = drawn.picture
    if rng.random() < 0.4:  # noqa: PLR2004  # the photograph's colours with the drawing's light and shade
        shade = colours.mean(-1, keepdims=True)
        picture = texture * (shade / max(float(shade.mean()), 0.05)) ** np.float32(rng.uniform(0.3, 1))
    else:  # the drawing's colours with the photograph's grain
        grain = texture.mean(-1, keepdims=True)
        strength = np.float32(rng.uniform(0.2, 1.2))
        picture = colours * np.clip((grain + 0.1) / (float(grain.mean()) + 0.1), 0.1, 3) ** strength
    bare = drawn.bare
    if rng.random() < 0.6:  # noqa: PLR2004
        ground, _ = materials.crop(rng, n)
        bare = np.asarray(ground * rng.uniform(0.2, 1.3), np.float32)
    covered = drawn.silhouette
    return Scene(over(bare, np.clip(picture, 0, 1).astype(np.float32), covered), bare, covered)


def _light(rng: Generator, n: int) -> Array:
    """Light on the scene, shape ``(n, n)``: a slope, soft blotches, gloss in bands, and a curved surface."""
    x, y = rotated(*coordinates(n), rng.uniform(0, 2 * np.pi))
    light = rng.uniform(0, 0.4) * x
    if rng.random() < 0.4:  # noqa: PLR2004
        light = light + rng.uniform(0, 0.5) * fractal(rng, n, rng.uniform(1.5, 5), 2)
    if rng.random() < 0.3:  # noqa: PLR2004
        bend = y + rng.uniform(0, 0.3) * x**2 + rng.uniform(0, 0.1) * noise(rng, n, 2)
        wave = np.cos(np.pi * (rng.uniform(0.7, 7) * bend + rng.uniform(0, 2)))
        light = light + rng.uniform(0.1, 1.1) * np.tanh(rng.uniform(0.5, 3) * wave + rng.uniform(-1, 1))
    if rng.random() < 0.2:  # noqa: PLR2004
        light = light - rng.uniform(0.2, 1.5) * np.clip(np.abs(x + rng.uniform(-0.3, 0.3)), 0, 1) ** 2
    return np.asarray(np.exp(np.clip(light - light.mean(), -1.8, 1.0)), np.float32)
