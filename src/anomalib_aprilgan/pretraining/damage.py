# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Damage to scenes made of photographs.

A defect has a shape and a look. Most shapes go with most looks, in sizes from two pixels to half the picture and in
contrasts from faint to strong.
"""

from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from anomalib_aprilgan.demo.drawing.canvas import Array
from anomalib_aprilgan.demo.drawing.sheet import Scene
from anomalib_aprilgan.pretraining.looks import (
    brighter,
    darker,
    displaced,
    dyed,
    gone,
    hollow,
    other_material,
    painted,
    raised,
    rough,
    rusty,
    smooth,
)
from anomalib_aprilgan.pretraining.materials import Materials
from anomalib_aprilgan.pretraining.shapes import blot, broken_piece, crack, patches, pits, scratches, worn_rim

__all__ = ["DEFECT_NAMES", "Damaged", "damage"]

Shape = Callable[[Scene, Generator], Array]
Look = Callable[[Scene, Array, Materials, Generator], Array]

ATTEMPTS, LAST_ATTEMPT = 8, 200
"""Drawings of a defect until the clearest one is taken, and until the scene is given up."""

LEAST_PIXELS = 6
"""Pixels of the smallest defect."""


class Damaged(NamedTuple):
    """A damaged scene.

    Attributes:
        picture: The picture, in [0, 1], shape ``(n, n, 3)``.
        mask: Where the defect is, shape ``(n, n)``.
        defect: Name of the defect, as captions name it.
    """

    picture: Array
    mask: NDArray[np.bool_]
    defect: str


def damage(scene: Scene, materials: Materials, rng: Generator) -> Damaged:
    """Draw a defect into a scene.

    It is drawn anew until its mean change exceeds 0.06 plus 0.9 times the local deviation of the texture (more for less
    than 40 pixels). If none does in eight drawings, the clearest one is taken.

    Args:
        scene: The undamaged scene.
        materials: Photographs, for looks that show another material.
        rng: Random generator.

    Returns:
        The damaged scene.

    Raises:
        ValueError: If no defect can be seen, because the silhouette has too few pixels.
    """
    grey = scene.picture.mean(-1)
    n = len(grey)
    deviation = cv2.GaussianBlur(np.abs(grey - cv2.GaussianBlur(grey, (0, 0), n / 30)), (0, 0), n / 30)
    best, clearest = None, 0.0
    for number in range(1, LAST_ATTEMPT + 1):
        name = str(rng.choice(DEFECT_NAMES, p=PROBABILITIES))
        shape, looks, _ = DEFECTS[name]
        covered = np.asarray(shape(scene, rng) * scene.silhouette, np.float32)
        look = looks[int(rng.integers(len(looks)))]
        picture = np.clip(look(scene, covered, materials, rng), 0, 1)
        change = np.abs(picture - np.clip(scene.picture, 0, 1)).max(-1)
        mask = (covered > 0.3) & (change > 0.02)  # noqa: PLR2004
        if mask.sum() >= LEAST_PIXELS:
            visible = float(change[mask].mean()) / (0.06 + 0.9 * float(deviation[mask].mean()))
            visible *= min(1.0, float(mask.sum()) / 40)
            if visible > clearest:
                best, clearest = Damaged(picture, mask, name), visible
        if best is not None and (clearest > 1 or number >= ATTEMPTS):
            return best
    msg = "Expected argument `scene` to show something large enough to be damaged, but no defect can be seen in it."
    raise ValueError(msg)


ANY: tuple[Look, ...] = (
    darker, darker, brighter, dyed, painted, other_material, displaced, smooth, rough, raised, hollow,
)  # fmt: skip

DEFECTS: dict[str, tuple[Shape, tuple[Look, ...], float]] = {
    "stain": (blot, (darker, dyed, brighter, painted), 1.5),
    "damaged spot": (blot, ANY, 2.0),
    "dent": (blot, (raised,), 0.8),
    "hole": (blot, (hollow, gone, hollow), 0.8),
    "pit": (pits, (hollow, darker, painted, raised, brighter), 2.0),
    "scratch": (scratches, (brighter, darker, raised, painted, displaced), 1.5),
    "crack": (crack, (darker, darker, hollow, brighter), 1.8),
    "wear": (patches, ANY, 1.5),
    "rust": (patches, (rusty,), 0.7),
    "worn edge": (worn_rim, (darker, brighter, rough, gone, smooth), 0.8),
    "broken piece": (broken_piece, (gone, gone, gone, hollow), 2.0),
}
"""By name: shape, looks, and how often it is drawn."""

DEFECT_NAMES = tuple(DEFECTS)
"""Names of the defects."""

PROBABILITIES = np.array([weight for _, _, weight in DEFECTS.values()]) / sum(
    weight for _, _, weight in DEFECTS.values()
)
