# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Names and settings of ViT-builtin, the small CLIP in this package, which needs no download.

``weights/README.md`` is its model card, with training data, training method and quality.
"""

from pathlib import Path

__all__ = [
    "ADAPTED",
    "ADAPTERS",
    "BACKBONE",
    "CONFIG",
    "IMAGE_SIZE",
    "LAYERS",
    "REFERENCE_LAYERS",
    "TAG",
    "WEIGHTS",
]

BACKBONE = "ViT-builtin"
"""Name of its architecture in open_clip."""

TAG = "builtin"
"""Value of ``pretrained`` for its weights, and of ``adapter`` for its adapters."""

IMAGE_SIZE = 192
"""Height and width of its images in pixels by default. On photographs that it was not trained on, with drawn defects,
image scores are worse at 96, 128 and 224 pixels."""

ADAPTED = (5, 6, 7, 8)
"""Stages that have an adapter in this package."""

LAYERS = (8,)
"""Stages with a zero-shot map by default. On photographs that it was not trained on, with drawn defects, the last stage
alone gives better maps and few-shot scores than all four."""

REFERENCE_LAYERS = (1, 2, 3, 4, 5, 6, 7, 8)
"""Stages that are kept in memory banks, selected on new images of the kinds that it was trained on."""

FOLDER = Path(__file__).with_name("weights")
CONFIG = FOLDER / f"{BACKBONE}.json"
WEIGHTS = FOLDER / f"{BACKBONE}.safetensors"
ADAPTERS = FOLDER / "adapters.safetensors"
