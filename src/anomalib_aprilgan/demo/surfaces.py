# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Kinds of surfaces.

Each function draws one picture. ``look`` decides what all pictures of a category share (colours, scale) and is in the
same state for each of them; ``rng`` decides what differs from picture to picture.
"""

from collections.abc import Callable

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from anomalib_aprilgan.demo.canvas import (
    Array,
    cells,
    colour,
    coordinates,
    coverage,
    fractal,
    noise,
    over,
    relief,
    rotated,
    sawtooth,
    tinted,
)

__all__ = ["SURFACES", "Surface", "frame", "is_even", "tone_of"]

Surface = Callable[[Generator, Generator, int], Array]


def frame(look: Generator, rng: Generator, n: int, jitter: float = 0.05) -> tuple[Array, Array]:
    """Coordinates turned by the category's angle and a little more, and shifted at random."""
    x, y = coordinates(n)
    angle = look.choice([0.0, 0.5 * np.pi, look.uniform(0, np.pi)]) + rng.normal(0, jitter)
    return rotated(x, y, angle, (rng.uniform(-1, 1), rng.uniform(-1, 1)))


def _palette(look: Generator, hue: tuple[float, float], contrast: float = 0.35) -> tuple[Array, Array]:
    """A dark and a light colour; half of all categories are not in their natural hue."""
    hue = hue if look.random() < 0.5 else (0.0, 1.0)
    light = colour(look, hue, (0.05, 0.7), (0.55, 0.95))
    return light * np.float32(1 - look.uniform(0.6, 1.4) * contrast), light


def tone_of(column: Array, row: Array) -> Array:
    """A number in [0, 1] that looks random and belongs to a place in a grid."""
    return np.sin(column * 12.9898 + row * 78.233) * 43758.5453 % 1


def is_even(u: Array, v: Array) -> NDArray[np.bool_]:
    """Where a chessboard is white."""
    return (np.floor(u) + np.floor(v)) % 2 == 0


def leather(look: Generator, rng: Generator, n: int) -> Array:
    dark, light = _palette(look, (0.02, 0.1), 0.3)
    across, disorder = look.uniform(9, 18), look.uniform(0.7, 1)
    x, y = frame(look, rng, n)
    nearest, second, _ = cells(rng, x, y, across, disorder)
    height = np.clip((second - nearest) * 2, 0, 1)
    return relief(tinted(0.4 + 0.4 * height + 0.2 * fractal(rng, n, 3), dark, light), height, 0.02)


def wood(look: Generator, rng: Generator, n: int) -> Array:
    dark, light = _palette(look, (0.05, 0.12), 0.4)
    rings, bend = look.uniform(4, 10), look.uniform(0.1, 0.35)
    x, y = frame(look, rng, n, 0.03)
    grain = np.sin(np.float32(np.pi * rings) * (y + np.float32(bend) * noise(rng, n, 1.5)) + 2 * np.sin(x + y))
    fibre = (
        noise(rng, n, 3, 60)
        if np.abs(np.gradient(y)[1]).mean() < np.abs(np.gradient(y)[0]).mean()
        else noise(rng, n, 60, 3)
    )
    return tinted(0.5 + 0.3 * grain + 0.15 * fibre, dark, light)


def fabric(look: Generator, rng: Generator, n: int) -> Array:
    dark, light = _palette(look, (0.0, 1.0), 0.4)
    threads = look.uniform(9, 16)
    x, y = frame(look, rng, n)
    u, v = x * threads, y * threads
    weave = np.where(is_even(u, v), 1 - 2 * sawtooth(v + 0.5), 1 - 2 * sawtooth(u + 0.5))
    return tinted(weave * 0.8 + 0.12 * fractal(rng, n, 8), dark, light)


def carpet(look: Generator, rng: Generator, n: int) -> Array:
    dark, light = _palette(look, (0.0, 1.0), 0.5)
    grain = look.uniform(30, 55)
    field = 0.7 * noise(rng, n, grain) + 0.4 * noise(rng, n, grain / 3)
    return tinted(0.5 + 0.4 * field, dark, light)


def granite(look: Generator, rng: Generator, n: int) -> Array:
    dark, light = _palette(look, (0.0, 0.1), 0.5)
    third, across = colour(look, value=(0.1, 0.4)), look.uniform(18, 32)
    x, y = frame(look, rng, n)
    number = cells(rng, x, y, across)[2]
    picture = tinted(number, dark, light, light)
    return over(picture, third, (number * 7 % 1 < 0.18).astype(np.float32))


def bricks(look: Generator, rng: Generator, n: int) -> Array:
    dark, light = _palette(look, (0.0, 0.08), 0.3)
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
    dark, light = _palette(look, (0.0, 1.0), 0.6)
    ribs, power = look.uniform(5, 11), look.uniform(0.5, 1.5)
    _, y = frame(look, rng, n, 0.04)
    profile = (0.5 + 0.5 * np.cos(2 * np.pi * ribs * y)) ** power
    return tinted(profile + 0.08 * fractal(rng, n, 8), dark, light)


def paper(look: Generator, rng: Generator, n: int) -> Array:
    tone, rough = colour(look, saturation=(0, 0.35), value=(0.75, 0.98)), look.uniform(0.02, 0.06)
    field = rough * (noise(rng, n, n * 0.4) + noise(rng, n, 12) + 0.8 * noise(rng, n, 2))
    return np.asarray(tone * (1 + field)[..., None], np.float32)


def asphalt(look: Generator, rng: Generator, n: int) -> Array:
    dark, light = _palette(look, (0.55, 0.65), 0.7)
    across = look.uniform(22, 36)
    x, y = frame(look, rng, n)
    nearest, _, number = cells(rng, x, y, across)
    return relief(
        tinted(0.2 + 0.5 * number * number + 0.15 * fractal(rng, n, 3), dark * 0.8, light * 0.8), -nearest, 0.015
    )


def roof_tiles(look: Generator, rng: Generator, n: int) -> Array:
    dark, light = _palette(look, (0.0, 0.08), 0.4)
    across = look.uniform(3.5, 6.5)
    x, y = frame(look, rng, n, 0.03)
    v = y * across
    row = np.floor(v)
    u = x * across + 0.5 * (row % 2)
    bow = (v - row) + 1.4 * sawtooth(u) ** 2
    tone = tone_of(np.floor(u + 0.5), row)
    return tinted(0.25 * tone + 0.7 * np.clip(1 - (bow % 1), 0, 1) + 0.06 * fractal(rng, n, 8), dark, light)


def plaid(look: Generator, rng: Generator, n: int) -> Array:
    ground, first, second = colour(look), colour(look), colour(look)
    across, wide, fine = look.uniform(1.5, 3), look.uniform(0.15, 0.3), look.uniform(0.03, 0.08)
    x, y = frame(look, rng, n, 0.03)
    picture = np.broadcast_to(ground, (n, n, 3))
    for u in (x * across, y * across):
        picture = over(picture, first, 0.5 * coverage((sawtooth(u) - wide) / across))
        picture = over(picture, second, 0.7 * coverage((sawtooth(u + 0.5) - fine) / across))
    return np.asarray(picture * (1 + 0.06 * noise(rng, n, n * 0.4))[..., None], np.float32)


def cork(look: Generator, rng: Generator, n: int) -> Array:
    dark, light = _palette(look, (0.06, 0.11), 0.35)
    across = look.uniform(12, 20)
    x, y = frame(look, rng, n)
    _, _, number = cells(rng, x, y, across)
    flecks = (noise(rng, n, across * 1.5) > look.uniform(0.9, 1.1)).astype(np.float32)
    return over(tinted(0.3 + 0.5 * number + 0.2 * noise(rng, n, 30), dark, light), dark * np.float32(0.5), 0.8 * flecks)


def denim(look: Generator, rng: Generator, n: int) -> Array:
    dark, light = _palette(look, (0.57, 0.66), 0.45)
    threads = look.uniform(12, 18)
    x, y = frame(look, rng, n, 0.03)
    twill = 0.5 + 0.5 * np.sin(2 * np.pi * threads * (x + 0.6 * y))
    return tinted(0.6 * twill + 0.25 * noise(rng, n, 8, 50) + 0.2, dark, light)


def parquet(look: Generator, rng: Generator, n: int) -> Array:
    dark, light = _palette(look, (0.05, 0.12), 0.4)
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


def concrete(look: Generator, rng: Generator, n: int) -> Array:
    dark, light = _palette(look, (0.08, 0.6), 0.3)
    pores = (noise(rng, n, look.uniform(18, 30)) > 1.15).astype(np.float32)
    return over(tinted(0.55 + 0.25 * fractal(rng, n, 3, 6), dark, light), dark * np.float32(0.75), 0.7 * pores)


def knitwear(look: Generator, rng: Generator, n: int) -> Array:
    dark, light = _palette(look, (0.0, 1.0), 0.5)
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


def marble(look: Generator, rng: Generator, n: int) -> Array:
    vein, ground = (
        colour(look, saturation=(0, 0.5), value=(0.2, 0.5)),
        colour(look, saturation=(0, 0.25), value=(0.75, 0.97)),
    )
    across, sharp = look.uniform(1.5, 3), look.uniform(5, 9)
    veins = np.exp(-sharp * np.abs(fractal(rng, n, across, 5)))
    return over(np.broadcast_to(ground, (n, n, 3)) * (1 + 0.06 * fractal(rng, n, 2))[..., None], vein, 0.6 * veins)


# ---- Held out of pre-training and of the training of adapters -------------------------------------------------------


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


def corduroy(look: Generator, rng: Generator, n: int) -> Array:
    dark, light = _palette(look, (0.05, 0.15), 0.6)
    cords = look.uniform(5, 9)
    x, y = frame(look, rng, n, 0.03)
    cord = np.sqrt(1 - (2 * sawtooth(x * cords)) ** 2 * 0.98)
    return tinted(cord * (0.8 + 0.15 * noise(rng, n, 45)) + 0.04 * np.sin(60 * y), dark, light)


def terrazzo(look: Generator, rng: Generator, n: int) -> Array:
    ground, tones = colour(look, saturation=(0, 0.2), value=(0.7, 0.95)), [colour(look) for _ in range(3)]
    across = look.uniform(7, 11)
    x, y = frame(look, rng, n)
    nearest, second, number = cells(rng, x, y, across, 1)
    picture = np.broadcast_to(ground, (n, n, 3)) * (1 + 0.03 * noise(rng, n, 30))[..., None]
    chips = np.stack(tones)[(number * 977 % 3).astype(int)]
    return over(picture, chips, coverage((0.3 + 0.25 * number - (second - nearest)) / across))


def wickerwork(look: Generator, rng: Generator, n: int) -> Array:
    dark, light = _palette(look, (0.07, 0.13), 0.5)
    across = look.uniform(4, 7)
    x, y = frame(look, rng, n, 0.03)
    u, v = x * across, y * across
    swap = is_even(u, v)
    along, over_ = np.where(swap, u % 1, v % 1), np.where(swap, v % 1, u % 1)
    strand = np.sin(np.pi * along) * (0.5 + 0.5 * np.sin(np.pi * ((over_ * 3) % 1)))
    return tinted(strand + 0.1 * noise(rng, n, 20), dark, light)


SURFACES: dict[str, Surface] = {
    kind.__name__: kind
    for kind in (
        leather, wood, fabric, carpet, granite, bricks, tiles, brushed_metal, mesh, perforated_plate, ribbed_rubber,
        paper, asphalt, roof_tiles, plaid, cork, denim, parquet, concrete, knitwear, camouflage, wallpaper,
        marble, honeycomb, corduroy, terrazzo, wickerwork,
    )
}  # fmt: skip
"""Surfaces by name."""
