# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Double-single arithmetic, for runtimes without double precision such as OpenVINO.

A number is represented by the unevaluated sum of two single-precision floats. The algorithms are Knuth's and Dekker's
(T. J. Dekker, A floating-point technique for extending the available precision, Numerische Mathematik 18, 1971).
"""

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Pair", "add", "divide", "multiply", "to_pair"]

SPLITTER = 2.0**12 + 1
"""Factor of Dekker's algorithm that splits the 24 binary digits of a float into two halves."""


class Pair(NamedTuple):
    """A number with about 48 binary digits: the sum of two floats.

    Attributes:
        high: The number, rounded to single precision.
        low: The rounding error of ``high``.
    """

    high: Tensor
    low: Tensor


def to_pair(value: Tensor | float) -> Pair:
    """Convert a single-precision number."""
    high = torch.as_tensor(value)
    return Pair(high, torch.zeros_like(high))


def add(x: Pair, y: Pair) -> Pair:
    """Compute ``x + y``."""
    total = x.high + y.high
    y_part = total - x.high
    error = (x.high - (total - y_part)) + (y.high - y_part)
    return _renormalise(total, error + (x.low + y.low))


def multiply(x: Pair, y: Pair) -> Pair:
    """Compute ``x * y``."""
    product, error = _product(x.high, y.high)
    return _renormalise(product, error + (x.high * y.low + x.low * y.high))


def divide(x: Pair, y: Pair) -> Pair:
    """Compute ``x / y``."""
    quotient = x.high / y.high
    product, error = _product(quotient, y.high)
    remainder = ((x.high - product) - error) + (x.low - quotient * y.low)
    return _renormalise(quotient, remainder / y.high)


def _product(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rounded product of two floats and its rounding error."""
    x_high, x_low = _split(x)
    y_high, y_low = _split(y)
    product = x * y
    error = (((x_high * y_high - product) + x_high * y_low) + x_low * y_high) + x_low * y_low
    return product, error


def _split(x: Tensor) -> tuple[Tensor, Tensor]:
    """Split a float into two floats with half as many binary digits."""
    scaled = SPLITTER * x
    high = scaled - (scaled - x)
    return high, x - high


def _renormalise(high: Tensor, low: Tensor) -> Pair:
    """Make a pair whose first part is the sum, rounded to single precision."""
    total = high + low
    return Pair(total, low - (total - high))
