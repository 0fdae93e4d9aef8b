# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""The CLIP that comes with this package, for machines without network and for tests that need a model with quality.

``weights/README.md`` is its model card: what it was trained on, how, and how good it is.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

__all__ = [
    "ADAPTERS",
    "BACKBONE",
    "CONFIG",
    "IMAGE_SIZE",
    "LAYERS",
    "REFERENCE_LAYERS",
    "TAG",
    "WEIGHTS",
    "Settings",
    "suited_settings",
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


class Settings(NamedTuple):
    """What belongs to a backbone.

    Attributes:
        pretrained: Its weights.
        image_size: Height and width of the images in pixels.
        layers: Its stages with adapters.
        reference_layers: Its stages kept in memory banks; ``None`` for the same.
    """

    pretrained: str | Path | None
    image_size: int
    layers: Sequence[int]
    reference_layers: Sequence[int] | None


DEFAULTS = Settings("openai", 518, (6, 12, 18, 24), None)
"""Defaults of the models' arguments, which suit ViT-L-14-336."""


def suited_settings(
    backbone: str,
    pretrained: str | Path | None,
    image_size: int,
    layers: Sequence[int],
    reference_layers: Sequence[int] | None,
) -> Settings:
    """Let the embedded CLIP's own settings stand in for defaults, none of which would work with it.

    Args:
        backbone: Name of the architecture.
        pretrained: The model's argument.
        image_size: The model's argument.
        layers: The model's argument.
        reference_layers: The model's argument.

    Returns:
        The arguments; for ``"ViT-demo"``, those that were left at their defaults are replaced.
    """
    if backbone != BACKBONE:
        return Settings(pretrained, image_size, layers, reference_layers)
    return Settings(
        TAG if pretrained == DEFAULTS.pretrained else pretrained,
        IMAGE_SIZE if image_size == DEFAULTS.image_size else image_size,
        LAYERS if layers in (DEFAULTS.layers, list(DEFAULTS.layers)) else layers,
        REFERENCE_LAYERS if reference_layers is None else reference_layers,
    )
