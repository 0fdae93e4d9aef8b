# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Metal parts and tools."""

import numpy as np

from anomalib_aprilgan.demo.drawing.canvas import box, disc, polygon
from anomalib_aprilgan.demo.drawing.sheet import Sheet


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


def key(s: Sheet) -> None:
    tone, teeth = s.metal(), s.between(5, 9)
    blade = np.maximum(box(s.x - 0.2, s.y, 0.5, 0.09), s.y - 0.06 + 0.06 * np.sign(np.sin(teeth * 2 * np.pi * s.x)))
    s.paint(np.asarray(blade, np.float32), tone, 0.04, shadow=True)
    s.paint(disc(s.x + 0.42, s.y, 0.28), tone, 0.06, shadow=True)
    s.cut(disc(s.x + 0.48, s.y, 0.1))


def bearing(s: Sheet) -> None:
    tone, balls = s.metal(), s.number(7, 10)
    s.paint(disc(s.x, s.y, 0.7), tone, 0.06, shadow=True)
    s.paint(np.abs(disc(s.x, s.y, 0.48)) - np.float32(0.13), tone * np.float32(0.35))
    for ball in range(balls):
        angle = 2 * np.pi * ball / balls
        s.paint(disc(s.x - 0.48 * np.cos(angle), s.y - 0.48 * np.sin(angle), 0.11), tone * np.float32(1.1), 0.1)
    s.cut(disc(s.x, s.y, 0.25))


def gear(s: Sheet) -> None:
    tone, teeth = s.metal(), s.number(9, 15)
    rim = disc(s.x, s.y, 0.6) - np.float32(0.07) * np.tanh(4 * np.cos(teeth * np.arctan2(s.y, s.x)))
    s.paint(np.asarray(rim, np.float32), tone, 0.06, shadow=True)
    s.paint(disc(s.x, s.y, 0.4), tone * np.float32(0.85), -0.05)
    s.cut(disc(s.x, s.y, 0.14))


def padlock(s: Sheet) -> None:
    body, steel = s.tone((0.08, 0.15)), s.metal()
    bow = np.where(s.y < -0.25, np.abs(np.hypot(s.x, s.y + 0.25) - 0.32), np.abs(np.abs(s.x) - 0.32)) - 0.07
    s.paint(np.asarray(np.maximum(bow, s.y - 0.1), np.float32), steel, 0.06, shadow=True)
    s.paint(box(s.x, s.y - 0.25, 0.52, 0.4, 0.08), body, 0.1, shadow=True)
    s.paint(np.minimum(disc(s.x, s.y - 0.18, 0.09), box(s.x, s.y - 0.32, 0.04, 0.14)), body * np.float32(0.25))
