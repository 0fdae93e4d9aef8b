# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Household goods and toys."""

import numpy as np

from anomalib_aprilgan.demo.drawing.canvas import box, disc, line, sawtooth
from anomalib_aprilgan.demo.drawing.sheet import Sheet


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


def domino(s: Sheet) -> None:
    ink = s.tone(value=(0.05, 0.5))
    s.paint(box(s.x, s.y, 0.68, 0.36, 0.06), s.tone(value=(0.6, 0.97)), 0.08, shadow=True)
    s.paint(box(s.x, s.y, 0.015, 0.3), ink)
    for side, pips in ((-0.34, s.number(1, 5)), (0.34, s.number(1, 5))):
        for pip in range(pips):
            angle = 2 * np.pi * pip / pips
            reach = 0.0 if pips == 1 else 0.18
            s.paint(disc(s.x - side - reach * np.cos(angle), s.y - reach * np.sin(angle), 0.06), ink, -0.04)


def ruler(s: Sheet) -> None:
    ink, marks = s.tone(value=(0.05, 0.4)), s.number(10, 16)
    s.paint(box(s.x, s.y, 0.78, 0.22, 0.02), s.tone((0.08, 0.16), value=(0.6, 0.95)), 0.04, shadow=True)
    position = (s.x + 0.74) / 1.48 * marks
    tick = np.maximum(sawtooth(position) * 1.48 / marks - 0.012, np.abs(s.y + 0.14) - 0.07)
    s.paint(np.asarray(np.maximum(tick, np.abs(s.x) - 0.75), np.float32), ink)


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


def button(s: Sheet) -> None:
    tone, holes = s.tone(), 2 * s.number(1, 2)
    s.paint(disc(s.x, s.y, 0.66), tone, 0.12, shadow=True)
    s.paint(disc(s.x, s.y, 0.44), tone * np.float32(0.9), -0.06)
    for hole in range(holes):
        angle = 2 * np.pi * (hole + 0.5) / holes
        s.cut(disc(s.x - 0.18 * np.cos(angle), s.y - 0.18 * np.sin(angle), 0.08))
