# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Kinds of objects.

Each function paints one object on a sheet, in the object's own coordinates. ``look`` decides what all pictures of a
category share and is in the same state for each of them; ``rng`` decides what differs from picture to picture.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.random import Generator

from anomalib_aprilgan.demo.canvas import (
    Array,
    box,
    colour,
    coordinates,
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
)

__all__ = ["OBJECTS", "Painter", "Sheet", "draw_object"]


class Sheet:
    """A picture in the making.

    Args:
        look: Decides the sheet below the object and the object's pose, as far as the category shares them.
        rng: Decides the rest.
        n: Height and width in pixels.

    Attributes:
        look: As given; what it decides is the same in every picture of a category.
        x: The object's own coordinates; it reaches some 0.7 around their origin.
        y: As x.
        picture: What has been painted so far.
        bare: The sheet without the object.
        silhouette: Where the object covers the sheet.
    """

    def __init__(self, look: Generator, rng: Generator, n: int) -> None:
        ground = colour(look, saturation=(0, 0.5), value=look.choice([(0.05, 0.35), (0.65, 0.98)]))
        grain, turn, loose = look.uniform(0.01, 0.07), look.choice([0, 0.25, look.uniform()]), look.uniform(0, 0.12)
        scale, place = look.uniform(0.85, 1.2), look.uniform(-0.05, 0.05, 2)
        self.bare = np.asarray(
            ground * (1 + grain * (fractal(rng, n, 4) + noise(rng, n, n * 0.4)))[..., None], np.float32
        )
        centre = place + rng.normal(0, 0.03, 2)
        angle = 2 * np.pi * turn + rng.normal(0, loose)
        self.x, self.y = rotated(*coordinates(n), angle, (centre[0], centre[1]), scale * rng.uniform(0.97, 1.03))
        self.picture = self.bare
        self.silhouette: Array = np.zeros((n, n), np.float32)
        self.look, self._rng, self._ground = look, rng, ground
        self._grain = look.uniform(0, 0.05)

    def paint(self, distance: Array, tone: Array, bevel: float = 0.0, shadow: bool = False) -> None:
        """Paint a shape.

        Args:
            distance: Signed distance to its outline.
            tone: Its colour.
            bevel: Width of its rounded rim; negative for a hollow.
            shadow: Whether it throws a shadow on what lies below.
        """
        n = distance.shape[0]
        if shadow:
            dark = np.clip(0.5 - np.roll(distance, (n // 40, n // 40), (0, 1)) / 0.12, 0, 1)
            self.picture = self.picture * np.asarray(1 - 0.35 * dark, np.float32)[..., None]
        covered = coverage(distance)
        body = np.asarray(tone * (1 + self._grain * fractal(self._rng, n, 6))[..., None], np.float32)
        if bevel:
            height = np.sqrt(1 - (1 - np.clip(-distance / abs(bevel), 0, 1)) ** 2) * bevel
            body = relief(body, np.asarray(height, np.float32), 0.5)
        self.picture = over(self.picture, body, covered)
        self.silhouette = np.maximum(self.silhouette, covered)

    def cut(self, distance: Array) -> None:
        """Cut a shape out of the object, down to the sheet."""
        covered = coverage(distance)
        self.picture = over(self.picture, self.bare * np.float32(0.8), covered)
        self.silhouette = self.silhouette * (1 - covered)

    def tone(
        self,
        hue: tuple[float, float] = (0.0, 1.0),
        saturation: tuple[float, float] = (0.1, 0.8),
        value: tuple[float, float] = (0.3, 0.9),
    ) -> Array:
        """A colour of the category that stands out from the sheet."""
        for _ in range(20):
            tone = colour(self.look, hue, saturation, value)
            if np.abs(tone - self._ground).max() > 0.25:
                break
        return tone

    def metal(self) -> Array:
        """A grey, or a metal's colour."""
        return self.tone((0.08, 0.15), (0, 0.15) if self.look.random() < 0.6 else (0.4, 0.7), (0.45, 0.9))

    def between(self, low: float, high: float) -> float:
        """A measure of the category."""
        return float(self.look.uniform(low, high))

    def number(self, low: int, high: int) -> int:
        """A number of the category, both ends included."""
        return int(self.look.integers(low, high + 1))


Painter = Callable[[Sheet], None]


class Scene(NamedTuple):
    """A finished picture of an object.

    Attributes:
        picture: Shape (n, n, 3).
        bare: The same without the object.
        silhouette: Where the object is, shape (n, n).
    """

    picture: Array
    bare: Array
    silhouette: Array


def washer(s: Sheet) -> None:
    hole = s.between(0.25, 0.42)
    s.paint(disc(s.x, s.y, 0.68), s.metal(), 0.08, shadow=True)
    s.cut(disc(s.x, s.y, hole))


def hex_nut(s: Sheet) -> None:
    tone = s.metal()
    s.paint(polygon(s.x, s.y, 0.62, 6), tone, 0.12, shadow=True)
    s.paint(np.abs(disc(s.x, s.y, 0.4)) - np.float32(0.05), tone * np.float32(0.7), 0.05)
    s.cut(disc(s.x, s.y, 0.34))


def screw(s: Sheet) -> None:
    tone, pitch = s.metal(), s.between(7, 12)
    shaft = box(s.x - 0.16, s.y, 0.54, 0.13, 0.03) + np.float32(0.03) * np.sin(np.float32(pitch * 2 * np.pi) * s.x)
    s.paint(np.asarray(shaft, np.float32), tone, 0.1, shadow=True)
    s.paint(box(s.x + 0.52, s.y, 0.16, 0.34, 0.08), tone, 0.1)
    s.paint(box(s.x + 0.64, s.y, 0.06, 0.05), tone * np.float32(0.4))


def tablet(s: Sheet) -> None:
    tone = s.tone(saturation=(0, 0.5), value=(0.75, 0.97))
    s.paint(disc(s.x, s.y, s.between(0.5, 0.68)), tone, 0.2, shadow=True)
    s.paint(box(s.x, s.y, 0.4, 0.035, 0.02), tone * np.float32(0.8), -0.03)


def bottle(s: Sheet) -> None:
    glass, cap = s.tone(), s.tone(value=(0.5, 0.9))
    s.paint(box(s.x, s.y - 0.15, 0.34, 0.55, 0.12), glass, 0.2, shadow=True)
    s.paint(box(s.x, s.y + 0.52, 0.14, 0.24, 0.03), glass, 0.1)
    s.paint(box(s.x, s.y + 0.7, 0.18, 0.1, 0.03), cap, 0.06)
    s.paint(box(s.x, s.y - 0.2, 0.34, s.between(0.18, 0.3)), s.tone(value=(0.6, 0.95)))


def coin(s: Sheet) -> None:
    tone, rays = s.metal(), s.number(3, 8)
    s.paint(disc(s.x, s.y, 0.68), tone, 0.06, shadow=True)
    s.paint(np.abs(disc(s.x, s.y, 0.56)) - np.float32(0.02), tone * np.float32(0.75), 0.02)
    star = disc(s.x, s.y, 0.3) + np.float32(0.12) * np.cos(rays * np.arctan2(s.y, s.x))
    s.paint(np.asarray(star, np.float32), tone * np.float32(1.12), 0.08)


def battery(s: Sheet) -> None:
    body, band = s.tone(), s.tone()
    s.paint(box(s.x + 0.05, s.y, 0.62, 0.26, 0.05), body, 0.18, shadow=True)
    s.paint(box(s.x + 0.45, s.y, s.between(0.12, 0.22), 0.26, 0.05), band, 0.18)
    s.paint(box(s.x - 0.62, s.y, 0.06, 0.1, 0.02), s.metal(), 0.05)


def chip(s: Sheet) -> None:
    legs, metal = s.number(4, 7), s.metal()
    for side in (-1, 1):
        for leg in range(legs):
            s.paint(box(s.x - (leg - (legs - 1) / 2) * 1.1 / legs, s.y + side * 0.45, 0.28 / legs, 0.2), metal)
    s.paint(box(s.x, s.y, 0.65, 0.38, 0.03), s.tone(saturation=(0, 0.3), value=(0.1, 0.4)), 0.06, shadow=True)
    s.paint(disc(s.x + 0.5, s.y, 0.06), s.tone(), -0.04)


def cookie(s: Sheet) -> None:
    tone = s.tone((0.05, 0.12), (0.4, 0.7), (0.5, 0.85))
    s.paint(disc(s.x, s.y, 0.64) + np.float32(0.02) * np.cos(24 * np.arctan2(s.y, s.x)), tone, 0.2, shadow=True)
    chips = s.number(5, 9)
    for chip_ in range(chips):
        radius, angle = 0.42 * np.sqrt((chip_ + 0.5) / chips), 2.4 * chip_
        s.paint(disc(s.x - radius * np.cos(angle), s.y - radius * np.sin(angle), 0.08), tone * np.float32(0.4), 0.05)


def plate(s: Sheet) -> None:
    tone, rim = s.tone(saturation=(0, 0.3), value=(0.7, 0.97)), s.tone()
    s.paint(disc(s.x, s.y, 0.72), tone, 0.1, shadow=True)
    s.paint(np.abs(disc(s.x, s.y, 0.6)) - np.float32(s.between(0.02, 0.05)), rim)
    s.paint(disc(s.x, s.y, 0.42), tone, -0.08)


def die(s: Sheet) -> None:
    s.paint(box(s.x, s.y, 0.55, 0.55, 0.12), s.tone(value=(0.6, 0.95)), 0.12, shadow=True)
    pips, ink = s.number(0, 2), s.tone(value=(0.05, 0.5))
    for px, py in [[(0, 0)], [(-1, -1), (1, 1), (0, 0)], [(-1, -1), (1, 1), (0, 0), (-1, 1), (1, -1)]][pips]:
        s.paint(disc(s.x - 0.3 * px, s.y - 0.3 * py, 0.1), ink, -0.06)


def cable(s: Sheet) -> None:
    s.paint(disc(s.x, s.y, 0.68), s.tone(), 0.08, shadow=True)
    s.paint(disc(s.x, s.y, 0.56), s.tone(saturation=(0, 0.2), value=(0.7, 0.95)))
    cores, copper = s.number(3, 5), s.tone((0.04, 0.09), (0.5, 0.8), (0.6, 0.85))
    for core in range(cores):
        angle = 2 * np.pi * core / cores
        x, y = s.x - 0.32 * np.cos(angle), s.y - 0.32 * np.sin(angle)
        s.paint(disc(x, y, 0.19), s.tone(), 0.06)
        s.paint(disc(x, y, 0.1), copper, 0.05)


def hazelnut(s: Sheet) -> None:
    tone = s.tone((0.04, 0.1), (0.4, 0.8), (0.4, 0.75))
    body = np.hypot(s.x / 0.58, s.y / 0.66) - 1 + 0.08 * np.clip(-s.y, 0, 1)
    s.paint(np.asarray(body * 0.6, np.float32), tone, 0.35, shadow=True)
    cap = np.maximum(body * 0.6, s.y + s.between(0.2, 0.35) + 0.03 * np.cos(9 * s.x))
    s.paint(np.asarray(cap, np.float32), tone * np.float32(1.3))


def egg(s: Sheet) -> None:
    body = np.hypot(s.x / (0.5 - 0.12 * s.y), s.y / 0.66) - 1
    s.paint(np.asarray(body * 0.5, np.float32), s.tone((0.05, 0.12), (0, 0.4), (0.75, 0.97)), 0.35, shadow=True)


def key(s: Sheet) -> None:
    tone, teeth = s.metal(), s.between(5, 9)
    blade = np.maximum(box(s.x - 0.2, s.y, 0.5, 0.09), s.y - 0.06 + 0.06 * np.sign(np.sin(teeth * 2 * np.pi * s.x)))
    s.paint(np.asarray(blade, np.float32), tone, 0.04, shadow=True)
    s.paint(disc(s.x + 0.42, s.y, 0.28), tone, 0.06, shadow=True)
    s.cut(disc(s.x + 0.48, s.y, 0.1))


def domino(s: Sheet) -> None:
    ink = s.tone(value=(0.05, 0.5))
    s.paint(box(s.x, s.y, 0.68, 0.36, 0.06), s.tone(value=(0.6, 0.97)), 0.08, shadow=True)
    s.paint(box(s.x, s.y, 0.015, 0.3), ink)
    for side, pips in ((-0.34, s.number(1, 5)), (0.34, s.number(1, 5))):
        for pip in range(pips):
            angle = 2 * np.pi * pip / pips
            reach = 0.0 if pips == 1 else 0.18
            s.paint(disc(s.x - side - reach * np.cos(angle), s.y - reach * np.sin(angle), 0.06), ink, -0.04)


def light_bulb(s: Sheet) -> None:
    metal = s.metal()
    s.paint(disc(s.x, s.y + 0.2, 0.44), s.tone((0.1, 0.18), (0, 0.6), (0.8, 0.98)), 0.3, shadow=True)
    s.paint(box(s.x, s.y - 0.28, 0.2, 0.16, 0.03), s.tone((0.1, 0.18), (0, 0.6), (0.8, 0.98)), 0.1)
    base = box(s.x, s.y - 0.52, 0.19, 0.16, 0.04) + np.float32(0.015) * np.sin(40 * s.y)
    s.paint(np.asarray(base, np.float32), metal, 0.08)


def ruler(s: Sheet) -> None:
    ink, marks = s.tone(value=(0.05, 0.4)), s.number(10, 16)
    s.paint(box(s.x, s.y, 0.78, 0.22, 0.02), s.tone((0.08, 0.16), value=(0.6, 0.95)), 0.04, shadow=True)
    position = (s.x + 0.74) / 1.48 * marks
    tick = np.maximum(sawtooth(position) * 1.48 / marks - 0.012, np.abs(s.y + 0.14) - 0.07)
    s.paint(np.asarray(np.maximum(tick, np.abs(s.x) - 0.75), np.float32), ink)


def bearing(s: Sheet) -> None:
    tone, balls = s.metal(), s.number(7, 10)
    s.paint(disc(s.x, s.y, 0.7), tone, 0.06, shadow=True)
    s.paint(np.abs(disc(s.x, s.y, 0.48)) - np.float32(0.13), tone * np.float32(0.35))
    for ball in range(balls):
        angle = 2 * np.pi * ball / balls
        s.paint(disc(s.x - 0.48 * np.cos(angle), s.y - 0.48 * np.sin(angle), 0.11), tone * np.float32(1.1), 0.1)
    s.cut(disc(s.x, s.y, 0.25))


def plug(s: Sheet) -> None:
    metal = s.metal()
    for side in (-0.2, 0.2):
        s.paint(box(s.x - side, s.y + 0.45, 0.06, 0.28, 0.04), metal, 0.05, shadow=True)
    s.paint(box(s.x, s.y - 0.1, 0.42, 0.34, 0.15), s.tone(), 0.15, shadow=True)
    s.paint(box(s.x, s.y - 0.55, 0.12, 0.2, 0.05), s.tone(value=(0.1, 0.5)), 0.08)


def spoon(s: Sheet) -> None:
    tone = s.metal()
    s.paint(line(s.x, s.y, (-0.1, 0), (0.72, 0), s.between(0.05, 0.08)), tone, 0.05, shadow=True)
    bowl = (np.hypot((s.x + 0.4) / 0.34, s.y / 0.24) - 1) * 0.24
    s.paint(np.asarray(bowl, np.float32), tone, 0.06, shadow=True)
    s.paint(np.asarray(bowl + 0.06, np.float32), tone * np.float32(0.85), -0.12)


def candle(s: Sheet) -> None:
    wax, stripes = s.tone(value=(0.6, 0.97)), s.number(1, 3)
    s.paint(box(s.x, s.y - 0.15, 0.3, 0.55, 0.04), wax, 0.2, shadow=True)
    for stripe in range(stripes):
        s.paint(box(s.x, s.y - 0.45 + 0.3 * stripe, 0.3, 0.05), s.tone())
    s.paint(line(s.x, s.y, (0, -0.42), (0.02, -0.56), 0.03), wax * np.float32(0.3))


def clothes_peg(s: Sheet) -> None:
    tone = s.tone()
    for side in (-1, 1):
        s.paint(line(s.x, s.y, (-0.6, side * 0.2), (0.62, side * 0.1), 0.09), tone, 0.08, shadow=True)
    s.paint(box(s.x + 0.02, s.y, 0.07, 0.3, 0.03), s.metal(), 0.04)


def target(s: Sheet) -> None:
    first, second, rings = s.tone(), s.tone(), s.number(2, 4)
    for ring in range(2 * rings, 0, -1):
        s.paint(disc(s.x, s.y, 0.7 * ring / (2 * rings)), (first, second)[ring % 2], 0.03, shadow=ring == 2 * rings)


def circuit_board(s: Sheet) -> None:
    copper = s.tone((0.08, 0.14), (0.4, 0.8), (0.6, 0.9))
    s.paint(box(s.x, s.y, 0.75, 0.6, 0.05), s.tone((0.3, 0.65), (0.5, 0.9), (0.15, 0.5)), 0.03, shadow=True)
    tracks = s.number(4, 7)
    for track in range(tracks):
        y, bend = -0.45 + 0.9 * track / (tracks - 1), s.between(-0.4, 0.4)
        s.paint(line(s.x, s.y, (-0.62, y), (bend, y), 0.022), copper)
        s.paint(line(s.x, s.y, (bend, y), (0.62, y * 0.8), 0.022), copper)
        s.paint(disc(s.x + 0.62, s.y - y, 0.05), copper, 0.04)
        s.paint(disc(s.x - 0.62, s.y - y * 0.8, 0.05), copper, 0.04)
    s.paint(
        box(s.x - s.between(-0.2, 0.2), s.y - s.between(-0.2, 0.2), 0.2, 0.16, 0.02), s.tone(value=(0.05, 0.3)), 0.04
    )


# ---- Held out of pre-training and of the training of adapters -------------------------------------------------------


def gear(s: Sheet) -> None:
    tone, teeth = s.metal(), s.number(9, 15)
    rim = disc(s.x, s.y, 0.6) - np.float32(0.07) * np.tanh(4 * np.cos(teeth * np.arctan2(s.y, s.x)))
    s.paint(np.asarray(rim, np.float32), tone, 0.06, shadow=True)
    s.paint(disc(s.x, s.y, 0.4), tone * np.float32(0.85), -0.05)
    s.cut(disc(s.x, s.y, 0.14))


def button(s: Sheet) -> None:
    tone, holes = s.tone(), 2 * s.number(1, 2)
    s.paint(disc(s.x, s.y, 0.66), tone, 0.12, shadow=True)
    s.paint(disc(s.x, s.y, 0.44), tone * np.float32(0.9), -0.06)
    for hole in range(holes):
        angle = 2 * np.pi * (hole + 0.5) / holes
        s.cut(disc(s.x - 0.18 * np.cos(angle), s.y - 0.18 * np.sin(angle), 0.08))


def capsule(s: Sheet) -> None:
    first, second = s.tone(value=(0.5, 0.95)), s.tone(value=(0.5, 0.95))
    body = line(s.x, s.y, (-0.42, 0), (0.42, 0), s.between(0.24, 0.32))
    s.paint(body, first, 0.25, shadow=True)
    s.paint(np.maximum(body, s.x), second, 0.25)


def padlock(s: Sheet) -> None:
    body, steel = s.tone((0.08, 0.15)), s.metal()
    bow = np.where(s.y < -0.25, np.abs(np.hypot(s.x, s.y + 0.25) - 0.32), np.abs(np.abs(s.x) - 0.32)) - 0.07
    s.paint(np.asarray(np.maximum(bow, s.y - 0.1), np.float32), steel, 0.06, shadow=True)
    s.paint(box(s.x, s.y - 0.25, 0.52, 0.4, 0.08), body, 0.1, shadow=True)
    s.paint(np.minimum(disc(s.x, s.y - 0.18, 0.09), box(s.x, s.y - 0.32, 0.04, 0.14)), body * np.float32(0.25))


OBJECTS: dict[str, Painter] = {
    kind.__name__: kind
    for kind in (
        washer, hex_nut, screw, tablet, bottle, coin, battery, chip, cookie, plate, die, cable, hazelnut, egg, key,
        domino, light_bulb, ruler, bearing, plug, spoon, candle, clothes_peg, target, circuit_board,
        gear, button, capsule, padlock,
    )
}  # fmt: skip
"""Objects by name."""


def draw_object(painter: Painter, look: Generator, rng: Generator, n: int) -> Scene:
    """Paint an object on a new sheet."""
    sheet = Sheet(look, rng, n)
    painter(sheet)
    return Scene(sheet.picture, sheet.bare, sheet.silhouette)
