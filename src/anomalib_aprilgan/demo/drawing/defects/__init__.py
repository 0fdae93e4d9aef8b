# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Kinds of defects.

Each function takes a scene and returns the picture with the defect, and the defect's coverage of each pixel.
"""

import cv2
import numpy as np
from numpy.random import Generator

from anomalib_aprilgan.demo.drawing.defects.contamination import discolouration, fibre, spots, stain, wrong_texture
from anomalib_aprilgan.demo.drawing.defects.damage import crack, crease, dent, hole, missing_part, scratch
from anomalib_aprilgan.demo.drawing.defects.placement import Defect, Drawn
from anomalib_aprilgan.demo.drawing.sheet import Scene

__all__ = ["DEFECTS", "HELD_OUT_DEFECTS", "add_defect"]

DEFECTS: dict[str, Defect] = {
    kind.__name__: kind
    for kind in (
        scratch, stain, spots, dent, missing_part, wrong_texture, fibre, crease, discolouration,
        crack, hole,
    )
}  # fmt: skip
"""Defects by name."""

HELD_OUT_DEFECTS = ("crack", "hole")
"""Defects that are kept out of pre-training and of the training of adapters."""


def add_defect(name: str, scene: Scene, rng: Generator) -> Drawn:
    """Add a visible defect to a scene.

    Visibility is the mean change within the mask, divided by 0.12 + 1.2 times the texture's local mean deviation, and
    reduced in proportion if the mask covers less than 0.6 % of the picture. The defect is drawn until its visibility
    exceeds 1, at most six times, and the most visible one is returned.

    Args:
        name: Name from :data:`DEFECTS`.
        scene: Picture without defect.
        rng: Random generator of position and shape.

    Returns:
        The picture with the defect, and its mask (0 or 1), shape ``(n, n)``.

    Raises:
        ValueError: If the picture is too small for a defect to be seen.
    """
    n = len(scene.silhouette)
    grey = scene.picture.mean(-1)
    local = cv2.GaussianBlur(np.abs(grey - cv2.GaussianBlur(grey, (0, 0), n / 20)), (0, 0), n / 20)
    best: Drawn | None = None
    clearest = 0.0
    for attempt in range(60):
        if (attempt >= 6 and best is not None) or clearest > 1:
            break
        picture, covered = DEFECTS[name](scene, rng)
        change = np.abs(np.clip(picture, 0, 1) - np.clip(scene.picture, 0, 1)).max(-1)
        threshold = 0.5 if attempt < 6 else 0.1  # in a very small picture, a thin line covers no pixel by half
        mask = (covered > threshold).astype(np.float32)
        area = float(mask.sum())
        if not area:
            continue
        visible = float((change * mask).sum() / area) / (0.12 + 1.2 * float((local * mask).sum() / area))
        visible *= min(1.0, area / (0.006 * n * n))
        if best is None or visible > clearest:
            best, clearest = (picture, mask), visible
    if best is None:
        msg = f"Expected argument `n` to be a size at which a {name} can be seen, but got {n}. Use 64 or more."
        raise ValueError(msg)
    return best
