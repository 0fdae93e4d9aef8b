# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Pictures of surfaces and objects, without and with a defect, with a camera's light, blur and noise."""

from typing import NamedTuple

import cv2
import numpy as np
from numpy.random import Generator, default_rng
from numpy.typing import NDArray

from anomalib_aprilgan.demo.drawing.canvas import Array, coordinates
from anomalib_aprilgan.demo.drawing.defects import DEFECTS, HELD_OUT_DEFECTS, add_defect
from anomalib_aprilgan.demo.drawing.inventions import INVENTED_OBJECTS, INVENTED_SURFACES
from anomalib_aprilgan.demo.drawing.objects import OBJECTS
from anomalib_aprilgan.demo.drawing.photographs import PHOTOGRAPHS
from anomalib_aprilgan.demo.drawing.sheet import Scene, draw_object
from anomalib_aprilgan.demo.drawing.surfaces import SURFACES

__all__ = [
    "AUXILIARY_DEFECTS",
    "AUXILIARY_KINDS",
    "HELD_OUT_KINDS",
    "INVENTIONS",
    "KINDS",
    "Pair",
    "Pixels",
    "draw_scene",
    "render",
    "render_pair",
]

INVENTIONS: tuple[str, ...] = (*INVENTED_SURFACES, *INVENTED_OBJECTS)
"""Invented kinds: they have no name, and each category has another design."""

KINDS: tuple[str, ...] = (*SURFACES, *OBJECTS, *PHOTOGRAPHS, *INVENTIONS)
"""All kinds. A kind's index is part of its seed, so new kinds must be added at the end."""

HELD_OUT_KINDS = ("honeycomb", "corduroy", "terrazzo", "wickerwork", "gear", "button", "capsule", "padlock")
"""Drawn kinds that neither the embedded CLIP nor its adapters are trained on. The same holds for all photographs."""

AUXILIARY_KINDS: tuple[str, ...] = tuple(kind for kind in KINDS if kind not in (*HELD_OUT_KINDS, *PHOTOGRAPHS))
"""Kinds that are trained on."""

AUXILIARY_DEFECTS: tuple[str, ...] = tuple(defect for defect in DEFECTS if defect not in HELD_OUT_DEFECTS)
"""Defects that are trained on."""

Pixels = NDArray[np.uint8]


class Pair(NamedTuple):
    """The same picture without and with a defect.

    Attributes:
        normal: Picture without defect, 8 bits, shape ``(n, n, 3)``.
        abnormal: Picture with the defect, 8 bits, shape ``(n, n, 3)``.
        mask: 255 in the defect, 0 elsewhere, shape ``(n, n)``.
    """

    normal: Pixels
    abnormal: Pixels
    mask: Pixels


def render(kind: str, look: int, number: int, n: int) -> Pixels:
    """Draw a normal picture of a kind.

    Args:
        kind: Name from :data:`KINDS`.
        look: Seed of everything that the pictures of a category share: colours, scale, pose.
        number: Seed of everything that differs between them.
        n: Height and width in pixels.

    Returns:
        The picture in 8 bits, shape ``(n, n, 3)``.
    """
    seed = [look, KINDS.index(kind)]
    scene = draw_scene(kind, default_rng(seed), default_rng([*seed, number]), n)
    rng = default_rng([*seed, number, 0])
    return _Camera(rng, n).take(scene.picture, rng)


def render_pair(kind: str, defect: str, look: int, number: int, n: int) -> Pair:
    """Draw the same picture of a kind without and with a defect.

    Args:
        kind: Name from :data:`KINDS`.
        defect: Name from :data:`~anomalib_aprilgan.demo.drawing.defects.DEFECTS`.
        look: Seed of everything that the pictures of a category share: colours, scale, pose.
        number: Seed of everything that differs between them.
        n: Height and width in pixels.

    Returns:
        Both pictures and the mask. The pictures have the same light and independent noise.

    Raises:
        ValueError: If the picture is too small for the defect to be seen.
    """
    seed = [look, KINDS.index(kind)]
    scene = draw_scene(kind, default_rng(seed), default_rng([*seed, number]), n)
    rng = default_rng([*seed, number, list(DEFECTS).index(defect) + 1])
    damaged, mask = add_defect(defect, scene, rng)
    camera = _Camera(rng, n)
    normal, abnormal = (camera.take(picture, rng) for picture in (scene.picture, damaged))
    return Pair(normal, abnormal, np.asarray(mask * 255, np.uint8))


def draw_scene(kind: str, look: Generator, rng: Generator, n: int) -> Scene:
    """Draw a kind before the camera sees it.

    Args:
        kind: Name from :data:`KINDS`.
        look: Random generator of everything that the pictures of a category share.
        rng: Random generator of everything that differs between them.
        n: Height and width in pixels.

    Returns:
        The scene.
    """
    objects = OBJECTS | INVENTED_OBJECTS
    if kind in objects:
        return draw_object(objects[kind], look, rng, n)
    picture = (SURFACES | PHOTOGRAPHS | INVENTED_SURFACES)[kind](look, rng, n)
    undercoat = np.asarray(picture.mean((0, 1)) * rng.choice([0.5, 1.5]) * np.ones((n, n, 1)), np.float32)
    return Scene(picture, undercoat, np.ones((n, n), np.float32))


class _Camera:
    """Light, gamma, blur and noise, chosen at random for each picture."""

    def __init__(self, rng: Generator, n: int) -> None:
        x, y = coordinates(n)
        slope, side = rng.uniform(0, 0.15), rng.uniform(0, 2 * np.pi)
        falling: Array = np.asarray(slope * (x * np.cos(side) + y * np.sin(side)), np.float32)
        self._light = (rng.uniform(0.85, 1.12) * (1 + falling))[..., None] * rng.uniform(0.96, 1.04, 3)
        self._gamma = rng.uniform(0.85, 1.15)
        self._blur = rng.uniform(0, 0.005) * n
        self._noise = rng.uniform(0.002, 0.02)

    def take(self, picture: Array, rng: Generator) -> Pixels:
        """Convert a picture, in [0, 1], to 8 bits as the camera sees it."""
        seen: Array = np.clip(picture * self._light, 0, 1) ** self._gamma
        if self._blur > 0.3:  # noqa: PLR2004
            seen = np.asarray(cv2.GaussianBlur(seen, (0, 0), self._blur), np.float64)
        seen = seen + rng.normal(0, self._noise, seen.shape)
        return np.asarray(np.clip(seen, 0, 1) * 255 + 0.5, np.uint8)
