# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Real surfaces: crops of the photographs that scikit-image contains. They are never trained on."""

from collections.abc import Callable
from functools import cache, partial

import cv2
import numpy as np
from numpy.random import Generator

from anomalib_aprilgan.demo.drawing.canvas import Array

__all__ = ["PHOTOGRAPHS"]


@cache
def _photograph(name: str) -> Array:
    from skimage import data  # noqa: PLC0415  # slow to import

    picture = np.asarray(getattr(data, name)(), np.float32) / 255
    height, width, *_ = picture.shape
    return np.ascontiguousarray(np.broadcast_to(picture.reshape(height, width, -1), (height, width, 3)))


def crop(name: str, look: Generator, rng: Generator, n: int) -> Array:
    """Crop a random square; its side is half the photograph's shorter side."""
    del look
    photograph = _photograph(name)
    side = min(photograph.shape[:2]) // 2
    top, left = (int(rng.integers(0, extent - side + 1)) for extent in photograph.shape[:2])
    square = photograph[top : top + side, left : left + side]
    return np.asarray(
        cv2.resize(square, (n, n), interpolation=cv2.INTER_AREA if side > n else cv2.INTER_CUBIC), np.float32
    )


PHOTOGRAPHS: dict[str, Callable[[Generator, Generator, int], Array]] = {
    name: partial(crop, name) for name in ("brick", "coffee", "coins", "grass", "gravel", "text")
}
"""Photographs by name."""
