# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Metal, rubber and comb structures."""

import numpy as np
from numpy.random import Generator

from anomalib_aprilgan.demo.drawing.canvas import (
    Array,
    cells,
    colour,
    coverage,
    fractal,
    noise,
    over,
    relief,
    sawtooth,
    tinted,
)
from anomalib_aprilgan.demo.drawing.surfaces.texture import frame, palette


def brushed_metal(look: Generator, rng: Generator, n: int) -> Array:
    tone, grain = colour(look, saturation=(0, 0.25), value=(0.55, 0.85)), look.uniform(0.08, 0.2)
    streaks = noise(rng, n, 2, n * 0.45) if look.random() < 0.5 else noise(rng, n, n * 0.45, 2)
    sheen = 0.12 * noise(rng, n, 1)
    return np.asarray(tone * (1 + grain * streaks + sheen)[..., None], np.float32)


def mesh(look: Generator, rng: Generator, n: int) -> Array:
    wire, ground = colour(look, saturation=(0, 0.5), value=(0.6, 0.95)), colour(look, value=(0.05, 0.3))
    across, thick, lean = look.uniform(4, 8), look.uniform(0.1, 0.2), look.uniform(-0.4, 0.4)
    x, y = frame(look, rng, n, 0.03)
    distance = np.minimum(sawtooth((x + lean * y) * across), sawtooth(y * across))
    picture = np.broadcast_to(ground, (n, n, 3)) * (1 + 0.1 * fractal(rng, n, 4))[..., None]
    return relief(
        over(picture, wire, coverage((distance - thick) / across)), np.clip(-distance, -thick, 0) / across * 2, 0.5
    )


def perforated_plate(look: Generator, rng: Generator, n: int) -> Array:
    plate, ground = colour(look, saturation=(0, 0.3), value=(0.5, 0.9)), colour(look, value=(0.03, 0.2))
    across, radius, shift = look.uniform(5, 9), look.uniform(0.22, 0.34), 0.5 * look.integers(2)
    x, y = frame(look, rng, n, 0.03)
    v = y * across
    distance = np.hypot(sawtooth(x * across + shift * (np.round(v) % 2)), sawtooth(v)) - radius
    picture = plate * (1 + 0.05 * fractal(rng, n, 3))[..., None]
    return over(relief(picture, coverage(distance / across, 0.06), 0.03), ground, coverage(distance / across))


def ribbed_rubber(look: Generator, rng: Generator, n: int) -> Array:
    dark, light = palette(look, (0.0, 1.0), 0.6)
    ribs, power = look.uniform(5, 11), look.uniform(0.5, 1.5)
    _, y = frame(look, rng, n, 0.04)
    profile = (0.5 + 0.5 * np.cos(2 * np.pi * ribs * y)) ** power
    return tinted(profile + 0.08 * fractal(rng, n, 8), dark, light)


def honeycomb(look: Generator, rng: Generator, n: int) -> Array:
    wall, ground = (
        colour(look, (0.08, 0.16), (0.3, 0.9), (0.6, 0.95)),
        colour(look, (0.05, 0.12), (0.4, 0.9), (0.15, 0.5)),
    )
    across, thick = look.uniform(5, 9), look.uniform(0.12, 0.25)
    x, y = frame(look, rng, n, 0.04)
    nearest, second, _ = cells(rng, x, y, across, 0.06)
    rim = second - nearest - thick
    return relief(over(np.broadcast_to(wall, (n, n, 3)), ground, coverage(-rim / across)), np.clip(rim, 0, 0.4), 0.03)
