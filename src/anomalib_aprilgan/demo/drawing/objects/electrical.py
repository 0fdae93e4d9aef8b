# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Electrical parts."""

import numpy as np

from anomalib_aprilgan.demo.drawing.canvas import box, disc, line
from anomalib_aprilgan.demo.drawing.sheet import Sheet


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


def cable(s: Sheet) -> None:
    s.paint(disc(s.x, s.y, 0.68), s.tone(), 0.08, shadow=True)
    s.paint(disc(s.x, s.y, 0.56), s.tone(saturation=(0, 0.2), value=(0.7, 0.95)))
    cores, copper = s.number(3, 5), s.tone((0.04, 0.09), (0.5, 0.8), (0.6, 0.85))
    for core in range(cores):
        angle = 2 * np.pi * core / cores
        x, y = s.x - 0.32 * np.cos(angle), s.y - 0.32 * np.sin(angle)
        s.paint(disc(x, y, 0.19), s.tone(), 0.06)
        s.paint(disc(x, y, 0.1), copper, 0.05)


def light_bulb(s: Sheet) -> None:
    metal = s.metal()
    s.paint(disc(s.x, s.y + 0.2, 0.44), s.tone((0.1, 0.18), (0, 0.6), (0.8, 0.98)), 0.3, shadow=True)
    s.paint(box(s.x, s.y - 0.28, 0.2, 0.16, 0.03), s.tone((0.1, 0.18), (0, 0.6), (0.8, 0.98)), 0.1)
    base = box(s.x, s.y - 0.52, 0.19, 0.16, 0.04) + np.float32(0.015) * np.sin(40 * s.y)
    s.paint(np.asarray(base, np.float32), metal, 0.08)


def plug(s: Sheet) -> None:
    metal = s.metal()
    for side in (-0.2, 0.2):
        s.paint(box(s.x - side, s.y + 0.45, 0.06, 0.28, 0.04), metal, 0.05, shadow=True)
    s.paint(box(s.x, s.y - 0.1, 0.42, 0.34, 0.15), s.tone(), 0.15, shadow=True)
    s.paint(box(s.x, s.y - 0.55, 0.12, 0.2, 0.05), s.tone(value=(0.1, 0.5)), 0.08)


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
