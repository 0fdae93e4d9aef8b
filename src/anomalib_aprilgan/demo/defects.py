# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Kinds of defects.

Each function takes a scene and returns the picture with the defect in it, and how far each pixel belongs to the defect.
"""

from collections.abc import Callable

import cv2
import numpy as np
from numpy.random import Generator

from anomalib_aprilgan.demo.canvas import (
    Array,
    blob,
    colour,
    coordinates,
    coverage,
    line,
    noise,
    over,
    relief,
    rotated,
)
from anomalib_aprilgan.demo.objects import Scene
from anomalib_aprilgan.demo.surfaces import SURFACES

__all__ = ["DEFECTS", "HELD_OUT_DEFECTS", "Defect", "add_defect"]

Drawn = tuple[Array, Array]
Defect = Callable[[Scene, Generator], Drawn]


def _place(scene: Scene, rng: Generator, at_rim: bool = False) -> tuple[float, float]:
    """A random point of the object, or one on its rim."""
    n = len(scene.silhouette)
    solid = scene.silhouette > 0.9
    if at_rim and not solid.all():
        solid &= cv2.erode(solid.astype(np.uint8), np.ones((3, 3), np.uint8), iterations=max(n // 32, 1)) == 0
    rows, columns = np.nonzero(solid)
    chosen = rng.integers(len(rows))
    x, y = (float((position[chosen] + 0.5) / n * 2 - 1) for position in (columns, rows))
    return (x, y) if at_rim else (float(np.clip(x, -0.85, 0.85)), float(np.clip(y, -0.85, 0.85)))


def _frame(scene: Scene, rng: Generator, at_rim: bool = False) -> tuple[Array, Array]:
    """Coordinates around a random point of the object, turned at random."""
    return rotated(*coordinates(len(scene.silhouette)), rng.uniform(0, 2 * np.pi), _place(scene, rng, at_rim))


def _contrasting(scene: Scene, rng: Generator, value: tuple[float, float] = (0.0, 1.0)) -> Array:
    """A colour unlike the object's."""
    inside = scene.picture[scene.silhouette > 0.9].mean(0)
    for _ in range(30):
        tone = colour(rng, saturation=(0, 0.9), value=value)
        if np.abs(tone - inside).max() > 0.3:
            break
    return tone


def _curve(x: Array, y: Array, points: Array, radius: Array | float) -> Array:
    """Distance to a line through points, whose radius may change along it."""
    radii = np.broadcast_to(radius, len(points))
    pieces = [
        line(x, y, tuple(start), tuple(end), r) for start, end, r in zip(points[:-1], points[1:], radii, strict=False)
    ]
    return np.minimum.reduce(pieces)


def scratch(scene: Scene, rng: Generator) -> Drawn:
    """One to three thin, gently bent lines, brighter or darker than what they cross."""
    x, y = _frame(scene, rng)
    bright = rng.random() < 0.6
    distance = np.full_like(x, 9)
    bend, length, radius = rng.uniform(-0.3, 0.3), rng.uniform(0.2, 0.5), rng.uniform(0.015, 0.035)
    along = np.linspace(-1, 1, 9)
    for number in range(rng.integers(1, 4)):
        points = np.stack([along * length, bend * along**2 + 0.1 * number], axis=-1)
        distance = np.minimum(distance, _curve(x, y, points, radius * (1.1 - along**2)))
    covered = coverage(distance) * scene.silhouette
    paint = np.clip(scene.picture * 0.4 + (0.6 if bright else -0.1), 0, 1)
    return over(scene.picture, paint.astype(np.float32), covered), covered


def stain(scene: Scene, rng: Generator) -> Drawn:
    """A soft blot that tints what lies below."""
    x, y = _frame(scene, rng)
    covered = coverage(blob(rng, x, y, rng.uniform(0.16, 0.36)), rng.uniform(0.03, 0.1)) * scene.silhouette
    tint = _contrasting(scene, rng, (0.0, 0.6))
    soaked = 0.35 * scene.picture + 0.65 * scene.picture * tint
    return over(scene.picture, soaked.astype(np.float32), covered), covered


def spots(scene: Scene, rng: Generator) -> Drawn:
    """A handful of small specks that lie close together."""
    x, y = _frame(scene, rng)
    tone = _contrasting(scene, rng)
    specks = [
        blob(rng, x - rng.normal(0, 0.16), y - rng.normal(0, 0.16), rng.uniform(0.04, 0.09), 0.2)
        for _ in range(rng.integers(2, 7))
    ]
    covered = coverage(np.minimum.reduce(specks)) * scene.silhouette
    return over(scene.picture, tone, covered * np.float32(0.9)), covered


def dent(scene: Scene, rng: Generator) -> Drawn:
    """A hollow: light on one side, dark on the other, and the texture is drawn in."""
    n = len(scene.silhouette)
    x, y = _frame(scene, rng)
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
    """A piece has broken off, and what lies below is seen."""
    x, y = _frame(scene, rng, at_rim=True)
    shape = blob(rng, x, y, rng.uniform(0.22, 0.4), 0.3)
    covered = coverage(shape) * scene.silhouette
    below = scene.bare * np.float32(0.9)
    return over(scene.picture, below, covered), covered


def wrong_texture(scene: Scene, rng: Generator) -> Drawn:
    """A patch of another material."""
    n = len(scene.silhouette)
    x, y = _frame(scene, rng)
    foreign = SURFACES[rng.choice(PATCHES)](rng, rng, n)
    covered = coverage(blob(rng, x, y, rng.uniform(0.18, 0.36), rng.uniform(0.05, 0.4))) * scene.silhouette
    return over(scene.picture, foreign, covered), covered


def fibre(scene: Scene, rng: Generator) -> Drawn:
    """A curled thread that lies on top and throws a shadow."""
    x, y = _frame(scene, rng)
    turns = np.cumsum(rng.normal(rng.normal(0, 0.15), 0.3, 14))
    steps = np.stack([np.cos(turns), np.sin(turns)], axis=-1) * rng.uniform(0.05, 0.09)
    points = np.cumsum(steps, axis=0)
    points -= points.mean(0)
    distance = _curve(x, y, points, rng.uniform(0.018, 0.035))
    covered = coverage(distance)
    shadow = np.clip(0.5 - distance / 0.08, 0, 1) * 0.3
    dimmed = scene.picture * np.asarray(1 - shadow, np.float32)[..., None]
    return over(dimmed, _contrasting(scene, rng), covered), covered


def crease(scene: Scene, rng: Generator) -> Drawn:
    """A fold: a straight ridge with light on one side and shade on the other."""
    x, y = _frame(scene, rng)
    length, width = rng.uniform(0.35, 0.7), rng.uniform(0.05, 0.1)
    fade = np.clip((length - np.abs(x)) * 6, 0, 1)
    side = (y + 0.06 * np.sin(3 * x)) / width
    light = rng.uniform(0.5, 0.8) * side * np.exp(1 - side**2) * fade
    covered = np.clip(1.8 - np.abs(side), 0, 1) * fade * scene.silhouette
    lit = np.clip(scene.picture * np.exp(light)[..., None], 0, 1)
    return over(scene.picture, lit.astype(np.float32), covered), covered


def discolouration(scene: Scene, rng: Generator) -> Drawn:
    """A region whose colour has changed, while the texture is still there."""
    x, y = _frame(scene, rng)
    covered = coverage(blob(rng, x, y, rng.uniform(0.2, 0.4), 0.3), rng.uniform(0.02, 0.08)) * scene.silhouette
    grey = scene.picture.mean(-1, keepdims=True)
    tone = _contrasting(scene, rng, (0.3, 1.0))
    changed = np.clip(tone * (0.5 + grey / max(2 * float(grey.mean()), 0.1)), 0, 1)
    return over(scene.picture, changed.astype(np.float32), covered * np.float32(0.85)), covered


# ---- Held out of pre-training and of the training of adapters -------------------------------------------------------


def crack(scene: Scene, rng: Generator) -> Drawn:
    """A dark, jagged, branching line."""
    x, y = _frame(scene, rng)
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
        _curve(x, y, path - shift, radius * np.linspace(1.2, 0.5, len(path))),
        _curve(x, y, branch - shift, radius * 0.7),
    )
    covered = coverage(distance) * scene.silhouette
    return over(scene.picture, scene.picture * np.float32(0.15), covered), covered


def hole(scene: Scene, rng: Generator) -> Drawn:
    """A dark opening with a lit rim."""
    x, y = _frame(scene, rng)
    shape = blob(rng, x, y * rng.uniform(0.7, 1.3), rng.uniform(0.11, 0.24), 0.2)
    depth = coverage(shape, 0.08)
    lit = relief(scene.picture, -depth, 0.12)
    inside = colour(rng, saturation=(0, 0.3), value=(0.0, 0.12)) * (1 + 0.1 * noise(rng, len(x), 8))[..., None]
    covered = coverage(shape) * scene.silhouette
    return over(over(scene.picture, lit, scene.silhouette), inside, covered), covered


DEFECTS: dict[str, Defect] = {
    kind.__name__: kind
    for kind in (
        scratch, stain, spots, dent, missing_part, wrong_texture, fibre, crease, discolouration,
        crack, hole,
    )
}  # fmt: skip
"""Defects by name."""

HELD_OUT_DEFECTS = ("crack", "hole")
"""Defects that are kept out of pre-training and of the training of adapters."""

PATCHES = (
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
"""Surfaces that a wrong texture is cut from."""


def add_defect(name: str, scene: Scene, rng: Generator) -> Drawn:
    """Put a defect into a scene so that it can be seen.

    A defect that hardly differs from what it covers, or is too small, is drawn again; the clearest of six counts. It is
    clear if the change within its mask is larger than the texture's own variation there (0.12 + 1.2 times the local
    mean deviation), over 0.6 % of the picture or more.

    Args:
        name: Name from :data:`DEFECTS`.
        scene: Picture without defect.
        rng: Decides on place and form.

    Returns:
        The picture with the defect, and its mask (0 or 1), shape ``(n, n)``.

    Raises:
        ValueError: If the picture is too small for a defect to be seen.
    """
    n = len(scene.silhouette)
    grey = scene.picture.mean(-1)
    local = cv2.GaussianBlur(np.abs(grey - cv2.GaussianBlur(grey, (0, 0), n / 20)), (0, 0), n / 20)
    best: Drawn | None = None
    clearest = 0.0
    for attempt in range(60):
        if (attempt >= 6 and best is not None) or clearest > 1:
            break
        picture, covered = DEFECTS[name](scene, rng)
        change = np.abs(np.clip(picture, 0, 1) - np.clip(scene.picture, 0, 1)).max(-1)
        threshold = 0.5 if attempt < 6 else 0.1  # in a very small picture, a thin line covers no pixel by half
        mask = (covered > threshold).astype(np.float32)
        area = float(mask.sum())
        if not area:
            continue
        visible = float((change * mask).sum() / area) / (0.12 + 1.2 * float((local * mask).sum() / area))
        visible *= min(1.0, area / (0.006 * n * n))
        if best is None or visible > clearest:
            best, clearest = (picture, mask), visible
    if best is None:
        msg = f"Expected argument `n` to be a size at which a {name} can be seen, but got {n}. Use 64 or more."
        raise ValueError(msg)
    return best
