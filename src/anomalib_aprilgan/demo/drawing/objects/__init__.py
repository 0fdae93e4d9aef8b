# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Kinds of objects.

Each function paints one object on a sheet, in the object's coordinates. Colours and sizes come from the sheet's
``look``, so all pictures of a category share them.
"""

from anomalib_aprilgan.demo.drawing.objects.electrical import battery, cable, chip, circuit_board, light_bulb, plug
from anomalib_aprilgan.demo.drawing.objects.food import capsule, cookie, egg, hazelnut, tablet
from anomalib_aprilgan.demo.drawing.objects.hardware import bearing, gear, hex_nut, key, padlock, screw, washer
from anomalib_aprilgan.demo.drawing.objects.household import (
    bottle,
    button,
    candle,
    clothes_peg,
    coin,
    die,
    domino,
    plate,
    ruler,
    spoon,
    target,
)
from anomalib_aprilgan.demo.drawing.sheet import Painter

__all__ = ["OBJECTS"]

OBJECTS: dict[str, Painter] = {
    kind.__name__: kind
    for kind in (
        washer, hex_nut, screw, tablet, bottle, coin, battery, chip, cookie, plate, die, cable, hazelnut, egg, key,
        domino, light_bulb, ruler, bearing, plug, spoon, candle, clothes_peg, target, circuit_board,
        gear, button, capsule, padlock,
    )
}  # fmt: skip
"""Objects by name."""
