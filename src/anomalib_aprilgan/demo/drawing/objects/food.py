# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Food and medicine."""

import numpy as np

from anomalib_aprilgan.demo.drawing.canvas import box, disc, line
from anomalib_aprilgan.demo.drawing.sheet import Sheet


def tablet(s: Sheet) -> None:
    tone = s.tone(saturation=(0, 0.5), value=(0.75, 0.97))
    s.paint(disc(s.x, s.y, s.between(0.5, 0.68)), tone, 0.2, shadow=True)
    s.paint(box(s.x, s.y, 0.4, 0.035, 0.02), tone * np.float32(0.8), -0.03)


def cookie(s: Sheet) -> None:
    tone = s.tone((0.05, 0.12), (0.4, 0.7), (0.5, 0.85))
    s.paint(disc(s.x, s.y, 0.64) + np.float32(0.02) * np.cos(24 * np.arctan2(s.y, s.x)), tone, 0.2, shadow=True)
    chips = s.number(5, 9)
    for chip_ in range(chips):
        radius, angle = 0.42 * np.sqrt((chip_ + 0.5) / chips), 2.4 * chip_
        s.paint(disc(s.x - radius * np.cos(angle), s.y - radius * np.sin(angle), 0.08), tone * np.float32(0.4), 0.05)


def hazelnut(s: Sheet) -> None:
    tone = s.tone((0.04, 0.1), (0.4, 0.8), (0.4, 0.75))
    body = np.hypot(s.x / 0.58, s.y / 0.66) - 1 + 0.08 * np.clip(-s.y, 0, 1)
    s.paint(np.asarray(body * 0.6, np.float32), tone, 0.35, shadow=True)
    cap = np.maximum(body * 0.6, s.y + s.between(0.2, 0.35) + 0.03 * np.cos(9 * s.x))
    s.paint(np.asarray(cap, np.float32), tone * np.float32(1.3))


def egg(s: Sheet) -> None:
    body = np.hypot(s.x / (0.5 - 0.12 * s.y), s.y / 0.66) - 1
    s.paint(np.asarray(body * 0.5, np.float32), s.tone((0.05, 0.12), (0, 0.4), (0.75, 0.97)), 0.35, shadow=True)


def capsule(s: Sheet) -> None:
    first, second = s.tone(value=(0.5, 0.95)), s.tone(value=(0.5, 0.95))
    body = line(s.x, s.y, (-0.42, 0), (0.42, 0), s.between(0.24, 0.32))
    s.paint(body, first, 0.25, shadow=True)
    s.paint(np.maximum(body, s.x), second, 0.25)
