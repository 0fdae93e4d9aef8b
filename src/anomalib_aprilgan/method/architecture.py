# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Which CLIP a model is built on, at which image size, and which of its stages are used."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from anomalib_aprilgan.files import embedded
from anomalib_aprilgan.method.towers import native_image_size, number_of_blocks

__all__ = ["AUTO", "DEFAULT_BACKBONE", "Architecture"]

AUTO = "auto"
"""Value of `pretrained` that asks for the backbone's own weights."""

DEFAULT_BACKBONE = "ViT-L-14-336"
PAPER_IMAGE_SIZE = 518
"""Image size of the paper with ViT-L-14-336, in pixels (section 4.1)."""

NUMBER_OF_STAGES = 4


@dataclass(frozen=True)
class Architecture:
    """A CLIP and the stages of its image tower that are used.

    Attributes:
        backbone: Name of an open_clip architecture.
        pretrained: Tag of open_clip, path of a CLIP state dict, or ``None`` for random weights.
        image_size: Height and width of the images in pixels.
        layers: Stages that have an adapter, counted from 1.
        reference_layers: Stages that are kept in memory banks.
        quick_gelu: Whether CLIP runs with QuickGELU.
    """

    backbone: str
    pretrained: str | None
    image_size: int
    layers: tuple[int, ...]
    reference_layers: tuple[int, ...]
    quick_gelu: bool

    @classmethod
    def of(
        cls,
        backbone: str = DEFAULT_BACKBONE,
        pretrained: str | Path | None = AUTO,
        image_size: int | None = None,
        layers: Sequence[int] | None = None,
        reference_layers: Sequence[int] | None = None,
        quick_gelu: bool = False,
    ) -> "Architecture":
        """Complete and check the arguments of a model.

        What is left out gets the backbone's own value: for ViT-demo the settings that it was trained with, for
        ViT-L-14-336 the paper's 518 px, for any other the image size that it was made for. The default stages are four
        evenly spaced blocks, the last of which is the last block.

        Args:
            backbone: Name of an open_clip architecture.
            pretrained: Tag of open_clip, path of a CLIP state dict, ``None`` for random weights, or ``"auto"``.
            image_size: Height and width of the images in pixels.
            layers: Stages that get an adapter.
            reference_layers: Stages that are kept in memory banks.
            quick_gelu: Whether to run CLIP with QuickGELU.

        Raises:
            ValueError: If an argument is out of its range; the message names it.
        """
        is_embedded = backbone == embedded.BACKBONE
        blocks = number_of_blocks(backbone)
        if pretrained == AUTO:
            pretrained = embedded.TAG if is_embedded else "openai"
        if image_size is None:
            own_size = PAPER_IMAGE_SIZE if backbone == DEFAULT_BACKBONE else native_image_size(backbone)
            image_size = embedded.IMAGE_SIZE if is_embedded else own_size
        if reference_layers is None and is_embedded:
            reference_layers = embedded.REFERENCE_LAYERS
        if layers is None:
            layers = embedded.LAYERS if is_embedded else _evenly_spaced(blocks)
        checked = _checked_stages("layers", layers, backbone, blocks)
        return cls(
            backbone=backbone,
            pretrained=None if pretrained is None else str(pretrained),
            image_size=image_size,
            layers=checked,
            reference_layers=(
                checked
                if reference_layers is None
                else _checked_stages("reference_layers", reference_layers, backbone, blocks)
            ),
            quick_gelu=quick_gelu,
        )


def _evenly_spaced(blocks: int) -> tuple[int, ...]:
    """Four evenly spaced stages: 6, 12, 18, 24 of 24 blocks."""
    return tuple(sorted({max(1, blocks * number // NUMBER_OF_STAGES) for number in range(1, NUMBER_OF_STAGES + 1)}))


def _checked_stages(name: str, stages: Sequence[int], backbone: str, blocks: int) -> tuple[int, ...]:
    """Check stages: blocks of the tower, each once, in rising order."""
    is_sequence = isinstance(stages, Sequence) and not isinstance(stages, str) and len(stages) > 0
    if (
        not is_sequence
        or not all(isinstance(stage, int) and stage > 0 for stage in stages)
        or list(stages) != sorted(set(stages))
    ):
        msg = (
            f"Expected argument `{name}` to hold blocks of the image tower, counted from 1, each once and in rising "
            f"order such as (6, 12, 18, 24), but got {stages!r}."
        )
        raise ValueError(msg)
    if max(stages) > blocks:
        msg = (
            f"Expected argument `{name}` to hold blocks from 1 to {blocks}, the number of blocks of {backbone}, but "
            f"got {tuple(stages)}."
        )
        raise ValueError(msg)
    return tuple(stages)
