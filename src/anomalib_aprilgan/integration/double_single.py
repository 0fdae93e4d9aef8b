# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Arithmetic to twice single precision, for runtimes that have no double precision, as OpenVINO.

A number is kept as an unevaluated sum of two floats. The algorithms are Knuth's and Dekker's (T. J. Dekker, A
floating-point technique for extending the available precision, Numerische Mathematik 18, 1971).
"""

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Pair", "add", "divide", "exactly", "multiply"]

SPLITTER = 2.0**12 + 1
"""What halves the 24 digits of a float."""


class Pair(NamedTuple):
    """A number with some 48 binary digits.

    Attributes:
        high: The number, rounded to single precision.
        low: What was rounded away.
    """

    high: Tensor
    low: Tensor


def exactly(value: Tensor | float) -> Pair:
    """Make a pair of a number that single precision holds."""
    high = torch.as_tensor(value)
    return Pair(high, torch.zeros_like(high))


def add(x: Pair, y: Pair) -> Pair:
    """Compute ``x + y``."""
    total = x.high + y.high
    of_y = total - x.high
    lost = (x.high - (total - of_y)) + (y.high - of_y)
    return _renormalise(total, lost + (x.low + y.low))


def multiply(x: Pair, y: Pair) -> Pair:
    """Compute ``x * y``."""
    product, lost = _product(x.high, y.high)
    return _renormalise(product, lost + (x.high * y.low + x.low * y.high))


def divide(x: Pair, y: Pair) -> Pair:
    """Compute ``x / y``."""
    quotient = x.high / y.high
    product, lost = _product(quotient, y.high)
    remainder = ((x.high - product) - lost) + (x.low - quotient * y.low)
    return _renormalise(quotient, remainder / y.high)


def _product(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rounded product of two floats, and what was rounded away."""
    x_high, x_low = _halves(x)
    y_high, y_low = _halves(y)
    product = x * y
    lost = (((x_high * y_high - product) + x_high * y_low) + x_low * y_high) + x_low * y_low
    return product, lost


def _halves(x: Tensor) -> tuple[Tensor, Tensor]:
    scaled = SPLITTER * x
    high = scaled - (scaled - x)
    return high, x - high


def _renormalise(high: Tensor, low: Tensor) -> Pair:
    total = high + low
    return Pair(total, low - (total - high))
