# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Textiles and leather."""

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
from anomalib_aprilgan.demo.drawing.surfaces.texture import frame, is_even, palette


def leather(look: Generator, rng: Generator, n: int) -> Array:
    dark, light = palette(look, (0.02, 0.1), 0.3)
    across, disorder = look.uniform(9, 18), look.uniform(0.7, 1)
    x, y = frame(look, rng, n)
    nearest, second, _ = cells(rng, x, y, across, disorder)
    height = np.clip((second - nearest) * 2, 0, 1)
    return relief(tinted(0.4 + 0.4 * height + 0.2 * fractal(rng, n, 3), dark, light), height, 0.02)


def fabric(look: Generator, rng: Generator, n: int) -> Array:
    dark, light = palette(look, (0.0, 1.0), 0.4)
    threads = look.uniform(9, 16)
    x, y = frame(look, rng, n)
    u, v = x * threads, y * threads
    weave = np.where(is_even(u, v), 1 - 2 * sawtooth(v + 0.5), 1 - 2 * sawtooth(u + 0.5))
    return tinted(weave * 0.8 + 0.12 * fractal(rng, n, 8), dark, light)


def carpet(look: Generator, rng: Generator, n: int) -> Array:
    dark, light = palette(look, (0.0, 1.0), 0.5)
    grain = look.uniform(30, 55)
    field = 0.7 * noise(rng, n, grain) + 0.4 * noise(rng, n, grain / 3)
    return tinted(0.5 + 0.4 * field, dark, light)


def plaid(look: Generator, rng: Generator, n: int) -> Array:
    ground, first, second = colour(look), colour(look), colour(look)
    across, wide, fine = look.uniform(1.5, 3), look.uniform(0.15, 0.3), look.uniform(0.03, 0.08)
    x, y = frame(look, rng, n, 0.03)
    picture = np.broadcast_to(ground, (n, n, 3))
    for u in (x * across, y * across):
        picture = over(picture, first, 0.5 * coverage((sawtooth(u) - wide) / across))
        picture = over(picture, second, 0.7 * coverage((sawtooth(u + 0.5) - fine) / across))
    return np.asarray(picture * (1 + 0.06 * noise(rng, n, n * 0.4))[..., None], np.float32)


def denim(look: Generator, rng: Generator, n: int) -> Array:
    dark, light = palette(look, (0.57, 0.66), 0.45)
    threads = look.uniform(12, 18)
    x, y = frame(look, rng, n, 0.03)
    twill = 0.5 + 0.5 * np.sin(2 * np.pi * threads * (x + 0.6 * y))
    return tinted(0.6 * twill + 0.25 * noise(rng, n, 8, 50) + 0.2, dark, light)


def knitwear(look: Generator, rng: Generator, n: int) -> Array:
    dark, light = palette(look, (0.0, 1.0), 0.5)
    across = look.uniform(6, 10)
    x, y = frame(look, rng, n, 0.03)
    u = x * across
    stitch = (y * across * 0.9 + 0.9 * sawtooth(u)) % 1
    profile = np.sin(np.pi * stitch) * (0.45 + 1.1 * np.minimum(sawtooth(u), 0.5 - sawtooth(u)) * 2)
    return tinted(profile + 0.08 * noise(rng, n, 40), dark, light)


def camouflage(look: Generator, rng: Generator, n: int) -> Array:
    tones, across = [colour(look, (0.1, 0.4), (0.2, 0.6), (0.15, 0.8)) for _ in range(3)], look.uniform(2.5, 5)
    picture = np.broadcast_to(tones[0], (n, n, 3))
    for tone in tones[1:]:
        picture = over(picture, tone, np.clip(0.5 + 8 * (fractal(rng, n, across, 3) - 0.25), 0, 1))
    return np.asarray(picture * (1 + 0.05 * noise(rng, n, 40))[..., None], np.float32)


def corduroy(look: Generator, rng: Generator, n: int) -> Array:
    dark, light = palette(look, (0.05, 0.15), 0.6)
    cords = look.uniform(5, 9)
    x, y = frame(look, rng, n, 0.03)
    cord = np.sqrt(1 - (2 * sawtooth(x * cords)) ** 2 * 0.98)
    return tinted(cord * (0.8 + 0.15 * noise(rng, n, 45)) + 0.04 * np.sin(60 * y), dark, light)
