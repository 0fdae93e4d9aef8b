# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""The CLIP that comes with this package, for machines without network and for tests that need a model with quality.

``weights/README.md`` is its model card: what it was trained on, how, and how good it is.
"""

from pathlib import Path

__all__ = [
    "ADAPTERS",
    "BACKBONE",
    "CONFIG",
    "IMAGE_SIZE",
    "LAYERS",
    "REFERENCE_LAYERS",
    "TAG",
    "WEIGHTS",
]

BACKBONE = "ViT-demo"
"""Its name among open_clip's architectures."""

TAG = "demo"
"""Its ``pretrained`` tag, and the name of the adapters that come with it."""

IMAGE_SIZE = 96
"""Height and width in pixels of the images that it was trained on."""

LAYERS = (5, 6, 7, 8)
"""The stages that its adapters belong to: chosen on new looks of the kinds that it was trained on."""

REFERENCE_LAYERS = (1, 2, 3, 4, 5, 6, 7, 8)
"""The stages kept in its memory banks, chosen likewise."""

FOLDER = Path(__file__).with_name("weights")
CONFIG = FOLDER / f"{BACKBONE}.json"
WEIGHTS = FOLDER / f"{BACKBONE}.safetensors"
ADAPTERS = FOLDER / "adapters.safetensors"
