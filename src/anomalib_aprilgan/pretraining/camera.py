# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""A camera whose exposure, colour, sharpness, noise and compression are chosen at random."""

import cv2
import numpy as np
from numpy.random import Generator

from anomalib_aprilgan.demo.drawing.canvas import Array
from anomalib_aprilgan.demo.drawing.scenes import Pixels

__all__ = ["Camera"]


class Camera:
    """Takes several pictures with the same settings.

    Args:
        rng: Random generator of the settings, and of the noise of each picture.
    """

    def __init__(self, rng: Generator) -> None:
        self._rng = rng
        self._is_grey = rng.random() < 0.3  # noqa: PLR2004
        self._balance = np.asarray(rng.uniform(0.85, 1.15, 3), np.float32)
        self._saturation = rng.uniform(0.4, 1.4)
        self._exposure, self._contrast = rng.uniform(0.6, 1.4), rng.uniform(0.5, 1.25)
        self._gamma = np.exp(rng.uniform(-0.4, 0.4))
        self._blur = np.exp(rng.uniform(-1, 0.7)) if rng.random() < 0.5 else 0.0  # noqa: PLR2004
        self._noise = rng.uniform(0, 0.035)
        self._grain = rng.uniform(0.3, 1.0)
        self._quality = int(rng.integers(35, 96)) if rng.random() < 0.6 else 0  # noqa: PLR2004

    def take(self, picture: Array) -> Pixels:
        """Convert a picture in [0, 1], shape ``(n, n, 3)``, to 8 bits as the camera sees it."""
        n = len(picture)
        seen = np.clip(picture * self._balance * np.float32(self._exposure), 0, 1) ** np.float32(self._gamma)
        grey = seen.mean(-1, keepdims=True)
        seen = np.broadcast_to(grey, seen.shape) if self._is_grey else grey + (seen - grey) * self._saturation
        seen = 0.5 + (seen - 0.5) * self._contrast
        if self._blur:
            seen = cv2.GaussianBlur(np.ascontiguousarray(seen, np.float32), (0, 0), self._blur)
        noise = self._rng.standard_normal((n, n, 1 if self._is_grey else 3), np.float32)
        if self._grain < 0.6:  # noqa: PLR2004  # coarser noise, as after demosaicing
            noise = cv2.GaussianBlur(noise, (0, 0), 0.7).reshape(noise.shape) * np.float32(2)
        pixels = np.asarray(np.clip(seen + self._noise * noise, 0, 1) * 255 + 0.5, np.uint8)
        if not self._quality:
            return pixels
        _, stream = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, self._quality])
        return np.asarray(cv2.imdecode(stream, cv2.IMREAD_COLOR), np.uint8)
