# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Stone, brick and ceramic."""

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
from anomalib_aprilgan.demo.drawing.surfaces.texture import frame, is_even, palette, tone_of


def granite(look: Generator, rng: Generator, n: int) -> Array:
    dark, light = palette(look, (0.0, 0.1), 0.5)
    third, across = colour(look, value=(0.1, 0.4)), look.uniform(18, 32)
    x, y = frame(look, rng, n)
    number = cells(rng, x, y, across)[2]
    picture = tinted(number, dark, light, light)
    return over(picture, third, (number * 7 % 1 < 0.18).astype(np.float32))


def bricks(look: Generator, rng: Generator, n: int) -> Array:
    dark, light = palette(look, (0.0, 0.08), 0.3)
    mortar, rows = colour(look, saturation=(0, 0.15), value=(0.5, 0.95)), look.uniform(3, 6)
    x, y = frame(look, rng, n, 0.02)
    row = np.floor(y * rows)
    u, v = x * rows / 2 + 0.5 * (row % 2), y * rows
    tone = tone_of(np.floor(u), row)
    gap = np.minimum(sawtooth(u) * 2, sawtooth(v)) - 0.07
    stone = tinted(0.3 + 0.4 * tone + 0.2 * fractal(rng, n, 10), dark, light)
    return relief(over(stone, mortar, coverage(gap / rows, 0.04)), np.clip(gap * 5, 0, 1), 0.02)


def tiles(look: Generator, rng: Generator, n: int) -> Array:
    first, second = colour(look), colour(look)
    grout, across, checked = (
        colour(look, saturation=(0, 0.1), value=(0.2, 0.9)),
        look.uniform(2, 4.5),
        look.random() < 0.5,
    )
    x, y = frame(look, rng, n, 0.02)
    u, v = x * across, y * across
    odd = is_even(u, v) & checked
    picture = np.where(odd[..., None], second, first) * (1 + 0.04 * fractal(rng, n, 4))[..., None]
    return over(picture, grout, coverage((np.minimum(sawtooth(u), sawtooth(v)) - 0.05) / across))


def asphalt(look: Generator, rng: Generator, n: int) -> Array:
    dark, light = palette(look, (0.55, 0.65), 0.7)
    across = look.uniform(22, 36)
    x, y = frame(look, rng, n)
    nearest, _, number = cells(rng, x, y, across)
    return relief(
        tinted(0.2 + 0.5 * number * number + 0.15 * fractal(rng, n, 3), dark * 0.8, light * 0.8), -nearest, 0.015
    )


def roof_tiles(look: Generator, rng: Generator, n: int) -> Array:
    dark, light = palette(look, (0.0, 0.08), 0.4)
    across = look.uniform(3.5, 6.5)
    x, y = frame(look, rng, n, 0.03)
    v = y * across
    row = np.floor(v)
    u = x * across + 0.5 * (row % 2)
    bow = (v - row) + 1.4 * sawtooth(u) ** 2
    tone = tone_of(np.floor(u + 0.5), row)
    return tinted(0.25 * tone + 0.7 * np.clip(1 - (bow % 1), 0, 1) + 0.06 * fractal(rng, n, 8), dark, light)


def concrete(look: Generator, rng: Generator, n: int) -> Array:
    dark, light = palette(look, (0.08, 0.6), 0.3)
    pores = (noise(rng, n, look.uniform(18, 30)) > 1.15).astype(np.float32)
    return over(tinted(0.55 + 0.25 * fractal(rng, n, 3, 6), dark, light), dark * np.float32(0.75), 0.7 * pores)


def marble(look: Generator, rng: Generator, n: int) -> Array:
    vein, ground = (
        colour(look, saturation=(0, 0.5), value=(0.2, 0.5)),
        colour(look, saturation=(0, 0.25), value=(0.75, 0.97)),
    )
    across, sharp = look.uniform(1.5, 3), look.uniform(5, 9)
    veins = np.exp(-sharp * np.abs(fractal(rng, n, across, 5)))
    return over(np.broadcast_to(ground, (n, n, 3)) * (1 + 0.06 * fractal(rng, n, 2))[..., None], vein, 0.6 * veins)


def terrazzo(look: Generator, rng: Generator, n: int) -> Array:
    ground, tones = colour(look, saturation=(0, 0.2), value=(0.7, 0.95)), [colour(look) for _ in range(3)]
    across = look.uniform(7, 11)
    x, y = frame(look, rng, n)
    nearest, second, number = cells(rng, x, y, across, 1)
    picture = np.broadcast_to(ground, (n, n, 3)) * (1 + 0.03 * noise(rng, n, 30))[..., None]
    chips = np.stack(tones)[(number * 977 % 3).astype(int)]
    return over(picture, chips, coverage((0.3 + 0.25 * number - (second - nearest)) / across))
