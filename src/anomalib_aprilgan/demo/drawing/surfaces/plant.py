# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Wood, cork, paper and wicker."""

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
    sawtooth,
    tinted,
)
from anomalib_aprilgan.demo.drawing.surfaces.texture import frame, is_even, palette


def wood(look: Generator, rng: Generator, n: int) -> Array:
    dark, light = palette(look, (0.05, 0.12), 0.4)
    rings, bend = look.uniform(4, 10), look.uniform(0.1, 0.35)
    x, y = frame(look, rng, n, 0.03)
    grain = np.sin(np.float32(np.pi * rings) * (y + np.float32(bend) * noise(rng, n, 1.5)) + 2 * np.sin(x + y))
    fibre = (
        noise(rng, n, 3, 60)
        if np.abs(np.gradient(y)[1]).mean() < np.abs(np.gradient(y)[0]).mean()
        else noise(rng, n, 60, 3)
    )
    return tinted(0.5 + 0.3 * grain + 0.15 * fibre, dark, light)


def paper(look: Generator, rng: Generator, n: int) -> Array:
    tone, rough = colour(look, saturation=(0, 0.35), value=(0.75, 0.98)), look.uniform(0.02, 0.06)
    field = rough * (noise(rng, n, n * 0.4) + noise(rng, n, 12) + 0.8 * noise(rng, n, 2))
    return np.asarray(tone * (1 + field)[..., None], np.float32)


def cork(look: Generator, rng: Generator, n: int) -> Array:
    dark, light = palette(look, (0.06, 0.11), 0.35)
    across = look.uniform(12, 20)
    x, y = frame(look, rng, n)
    _, _, number = cells(rng, x, y, across)
    flecks = (noise(rng, n, across * 1.5) > look.uniform(0.9, 1.1)).astype(np.float32)
    return over(tinted(0.3 + 0.5 * number + 0.2 * noise(rng, n, 30), dark, light), dark * np.float32(0.5), 0.8 * flecks)


def parquet(look: Generator, rng: Generator, n: int) -> Array:
    dark, light = palette(look, (0.05, 0.12), 0.4)
    across = look.uniform(1.5, 3)
    x, y = frame(look, rng, n, 0.02)
    u, v = x * across, y * across
    swap = is_even(u, v)
    along, over_ = np.where(swap, u, v), np.where(swap, v, u)
    plank = np.floor(over_ * 4) + 17 * np.floor(along)
    tone = np.sin(plank * 12.9898 + swap) * 43758.5453 % 1
    gap = np.minimum(sawtooth(over_ * 4) / 4, sawtooth(along)) - 0.012
    picture = tinted(0.35 + 0.4 * tone + 0.15 * np.sin(40 * over_ + 3 * noise(rng, n, 3)), dark, light)
    return over(picture, dark * np.float32(0.4), coverage(gap / across))


def wallpaper(look: Generator, rng: Generator, n: int) -> Array:
    ground, print_, across = colour(look, value=(0.6, 0.95)), colour(look), look.uniform(2, 4)
    petals, size = look.integers(3, 8), look.uniform(0.25, 0.38)
    x, y = frame(look, rng, n, 0.02)
    v = y * across
    u = x * across + 0.5 * (np.round(v) % 2)
    du, dv = u - np.round(u), v - np.round(v)
    flower = np.hypot(du, dv) - size * (0.65 + 0.35 * np.cos(petals * np.arctan2(dv, du)))
    picture = over(np.broadcast_to(ground, (n, n, 3)), print_, coverage(flower / across))
    return np.asarray(picture * (1 + 0.04 * fractal(rng, n, 6))[..., None], np.float32)


def wickerwork(look: Generator, rng: Generator, n: int) -> Array:
    dark, light = palette(look, (0.07, 0.13), 0.5)
    across = look.uniform(4, 7)
    x, y = frame(look, rng, n, 0.03)
    u, v = x * across, y * across
    swap = is_even(u, v)
    along, over_ = np.where(swap, u % 1, v % 1), np.where(swap, v % 1, u % 1)
    strand = np.sin(np.pi * along) * (0.5 + 0.5 * np.sin(np.pi * ((over_ * 3) % 1)))
    return tinted(strand + 0.1 * noise(rng, n, 20), dark, light)
