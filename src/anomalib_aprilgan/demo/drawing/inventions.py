# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Invented kinds: surfaces and objects whose design is random and differs from category to category.

They have no name. Training on thousands of them teaches a model that almost any regular appearance can be normal.
"""

from collections.abc import Callable

import numpy as np
from numpy.random import Generator

from anomalib_aprilgan.demo.drawing.canvas import (
    Array,
    box,
    cells,
    colour,
    coverage,
    disc,
    fractal,
    line,
    noise,
    over,
    polygon,
    relief,
    rotated,
    sawtooth,
    tinted,
)
from anomalib_aprilgan.demo.drawing.sheet import Painter, Sheet
from anomalib_aprilgan.demo.drawing.surfaces.texture import Surface, frame, is_even, tone_of

__all__ = ["INVENTED_OBJECTS", "INVENTED_SURFACES"]

Place = tuple[float, float, float]
"""Centre and angle of a part."""


# ---- Shapes ---------------------------------------------------------------------------------------------------------


def _shape(look: Generator, x: Array, y: Array, size: float) -> Array:
    """Signed distance to the outline of a random shape around the origin, of about the given radius."""
    a, b, corners = look.uniform(0.3, 0.9), look.uniform(0.05, 0.4), int(look.integers(3, 9))
    angle = np.arctan2(y, x)
    shapes: tuple[Callable[[], Array], ...] = (
        lambda: disc(x, y, size),
        lambda: (np.hypot(x, y / a) / size - 1) * (size * a),  # ellipse
        lambda: np.abs(disc(x, y, size * (1 - b / 2))) - size * b / 2,  # ring
        lambda: box(x, y, size, size * a, size * a * b),
        lambda: polygon(x, y, size * 0.85, corners),
        lambda: line(x, y, (-size * (1 - b), 0), (size * (1 - b), 0), size * b),
        lambda: np.minimum(
            box(x, y, size, size * b), box(x, y, size * a, size * b) if b < 0.2 else box(x, y, size * b, size)
        ),
        lambda: disc(x, y, size * 0.85) + size * 0.15 * np.tanh(3 * a * np.cos(2 * corners * angle)),  # toothed
        lambda: disc(x, y, size * (1 - b)) + size * b * np.cos(corners * angle),  # flower
    )
    return np.asarray(shapes[int(look.integers(len(shapes)))](), np.float32)


def _arrangement(look: Generator, reach: float) -> tuple[list[Place], float]:
    """Positions of equal parts, and the radius up to which they do not touch."""
    number, radius, turn = int(look.integers(2, 11)), reach * look.uniform(0.4, 0.8), look.uniform(0, 2 * np.pi)
    x, y = reach * look.uniform(-0.6, 0.6, 2)
    ring = [
        (radius * np.cos(angle), radius * np.sin(angle), angle)
        for angle in turn + 2 * np.pi * np.arange(number) / number
    ]
    row = [(float(place), y, 0.0) for place in np.linspace(-radius, radius, min(number, 7))]
    arrangements: tuple[tuple[list[Place], float], ...] = (
        ([(0.0, 0.0, 0.0)], reach * 0.8),
        ([(x, y, turn)], reach * 0.4),
        ([(x, y, 0.0), (-x, y, np.pi)], abs(x)),
        (ring, radius * np.sin(np.pi / number)),
        (row, radius / (len(row) - 1)),
        ([(column, place, 0.0) for column, _, _ in row for place in (-radius, 0.0, radius)], radius / (len(row) - 1)),
    )
    return arrangements[int(look.integers(len(arrangements)))]


# ---- Surfaces -------------------------------------------------------------------------------------------------------


def _field(look: Generator, rng: Generator, x: Array, y: Array) -> Array:
    """A random texture in [0, 1]."""
    n = len(x)
    across, down, sharp, a, b = look.uniform(3, 14), look.uniform(3, 14), look.uniform(0.5, 4), *look.uniform(0, 1, 2)
    turns, which = look.uniform(0, np.pi, 3), int(look.integers(3))
    row = np.floor(y * down / 2)
    u, v = x * across / 2 + a.round() * 0.5 * (row % 2), y * down / 2

    def waves() -> Array:
        directions = [np.cos(np.pi * across * (x * np.cos(turn) + y * np.sin(turn))) for turn in turns[: which + 1]]
        return 0.5 + 0.5 * np.tanh(sharp * np.mean(directions, axis=0)) / np.tanh(sharp)

    def cellular() -> Array:
        nearest, second, number = cells(rng, x, y, across * 1.5, a)
        return (number, np.clip((second - nearest) * (1 + sharp), 0, 1), np.clip(nearest * 1.4, 0, 1))[which]

    def clouds() -> Array:
        return np.clip(0.5 + 0.4 * sharp * fractal(rng, n, across, 2 + which), 0, 1)

    def grain() -> Array:
        return np.clip(0.5 + 0.25 * noise(rng, n, n * 0.4 * a + 6) + 0.2 * b * noise(rng, n, across), 0, 1)

    def streaks() -> Array:
        return np.clip(0.5 + 0.3 * (noise(rng, n, 2, n * 0.4) if a < 0.5 else noise(rng, n, n * 0.4, 2)), 0, 1)

    def stripes() -> Array:
        return (0.5 + 0.5 * np.cos(np.pi * down * (y + 0.1 * b * noise(rng, n, 2)))) ** sharp

    def checks() -> Array:
        tones = tone_of(np.floor(u), np.floor(v)) if which else is_even(u, v).astype(np.float32)
        gap = np.minimum(sawtooth(u), sawtooth(v))
        return 0.2 + 0.7 * tones * np.clip(gap * 20 * (0.3 + b), 0, 1)

    fields = (waves, cellular, clouds, grain, streaks, stripes, checks)
    return np.asarray(fields[int(look.integers(len(fields)))](), np.float32)


def pattern(look: Generator, rng: Generator, n: int) -> Array:
    """A surface with one or two textures, often with a repeated motif."""
    tones = [colour(look, value=(0.1, 0.95)) for _ in range(look.integers(2, 5))]
    tones[-1] = tones[0] * np.float32(look.uniform(0.4, 0.8)) if look.random() < 0.5 else tones[-1]
    share, lit, fine = look.choice([0.0, 0.0, look.uniform(0.1, 0.5)]), look.random() < 0.3, look.uniform(0, 0.08)
    x, y = frame(look, rng, n, 0.04)
    field = (1 - share) * _field(look, rng, x, y) + share * _field(look, rng, x, y)
    picture = tinted(field, *tones)
    for _ in range(look.integers(0, 3)):
        picture = _printed(look, picture, x, y)
    if lit:
        picture = relief(picture, field, look.uniform(0.01, 0.04))
    return np.asarray(picture * (1 + fine * noise(rng, n, n * 0.4))[..., None], np.float32)


def _printed(look: Generator, picture: Array, x: Array, y: Array) -> Array:
    """Repeat a motif on a lattice."""
    across, shift, turn = look.uniform(1.5, 7), look.choice([0.0, 0.5]), look.choice([0.0, 0.0, look.uniform(0, 1)])
    v = y * across
    row = np.round(v)
    u = x * across + shift * (row % 2)
    du, dv = rotated(u - np.round(u), v - row, 2 * np.pi * turn)
    motif = _shape(look, du, dv, look.uniform(0.15, 0.45)) / across
    return over(picture, colour(look, value=(0.1, 0.95)), coverage(motif) * np.float32(look.uniform(0.5, 1)))


# ---- Objects --------------------------------------------------------------------------------------------------------


def gadget(s: Sheet) -> None:
    """One or two bodies with smaller parts on them or holes in them."""
    look, body = s.look, np.full_like(s.x, 9)
    for _ in range(s.number(1, 2)):
        tone = s.metal() if look.random() < 0.4 else s.tone()
        x, y = rotated(s.x, s.y, look.choice([0, 0.5]) * np.pi, tuple(look.uniform(-0.2, 0.2, 2)))
        shape = _shape(look, x, y, s.between(0.4, 0.7))
        s.paint(shape, tone, look.choice([0, 1]) * s.between(0.03, 0.25), shadow=True)
        body = np.minimum(body, shape)
    for _ in range(s.number(1, 4)):
        places, most = _arrangement(look, s.between(0.3, 0.6))
        size, tone, is_cut = most * s.between(0.4, 0.85), s.tone(), look.random() < 0.25
        tone = tone if look.random() < 0.6 else tone * np.float32(s.between(0.3, 0.9))
        bevel, state = s.between(-0.08, 0.08), look.bit_generator.state
        for px, py, angle in places:
            look.bit_generator.state = state  # the parts are alike
            part = _shape(look, *rotated(s.x, s.y, angle, (px, py)), size)
            if is_cut:
                s.cut(np.maximum(part, body + np.float32(0.03)))
            else:
                s.paint(part, tone, bevel)


INVENTED_SURFACES: dict[str, Surface] = {"pattern": pattern}
"""Surfaces by name."""

INVENTED_OBJECTS: dict[str, Painter] = {"gadget": gadget}
"""Objects by name."""
