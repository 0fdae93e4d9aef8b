# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""The CLIP of a model, its image size, and the stages of its image tower that are used; with defaults."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from anomalib_aprilgan.files import embedded
from anomalib_aprilgan.method.towers import native_image_size, number_of_blocks

__all__ = ["AUTO", "DEFAULT_BACKBONE", "Architecture"]

AUTO = "auto"
"""Value of `pretrained` that selects the default weights of the backbone."""

DEFAULT_BACKBONE = "ViT-L-14-336"
"""Backbone of the paper (section 4.1)."""
PAPER_IMAGE_SIZE = 518
"""Image size of the paper with ViT-L-14-336, in pixels (section 4.1)."""

NUMBER_OF_STAGES = 4


@dataclass(frozen=True)
class Architecture:
    """Describes a CLIP and the stages of its image tower that are used.

    Attributes:
        backbone: Name of an open_clip architecture.
        pretrained: Tag of open_clip, path of a CLIP state dict, or ``None`` for random weights.
        image_size: Height and width of the images in pixels.
        layers: Stages that have an adapter, counted from 1.
        reference_layers: Stages that are kept in memory banks.
        quick_gelu: Whether CLIP uses QuickGELU instead of GELU.
        window: Height and width of the windows that images are cut into, in pixels; 0 for whole images.
    """

    backbone: str
    pretrained: str | None
    image_size: int
    layers: tuple[int, ...]
    reference_layers: tuple[int, ...]
    quick_gelu: bool
    window: int = 0

    @property
    def tower_size(self) -> int:
        """Height and width of the image tower's input in pixels."""
        return self.window or self.image_size

    @classmethod
    def of(
        cls,
        backbone: str = DEFAULT_BACKBONE,
        pretrained: str | Path | None = AUTO,
        image_size: int | None = None,
        layers: Sequence[int] | None = None,
        reference_layers: Sequence[int] | None = None,
        quick_gelu: bool = False,
        window: int | None = None,
    ) -> "Architecture":
        """Check the arguments of a model and fill in the defaults of the backbone.

        The default image size is 518 px for ViT-L-14-336 (section 4.1), and otherwise the size that the backbone was
        made for; with windows, it is twice their size. The default stages are four evenly spaced blocks; the last one
        is the last block of the tower. For ViT-builtin's own defaults, see :mod:`anomalib_aprilgan.files.embedded`.

        Args:
            backbone: Name of an open_clip architecture.
            pretrained: Tag of open_clip, path of a CLIP state dict, ``None`` for random weights, or ``"auto"``.
            image_size: Height and width of the images in pixels.
            layers: Stages that get an adapter.
            reference_layers: Stages that are kept in memory banks.
            quick_gelu: Use QuickGELU instead of GELU.
            window: Height and width of the windows in pixels; ``None`` or 0 for whole images.

        Raises:
            ValueError: If the backbone, the window or a stage is invalid; the message names the argument.
        """
        is_embedded = backbone == embedded.BACKBONE
        blocks = number_of_blocks(backbone)
        if pretrained == AUTO:
            pretrained = embedded.TAG if is_embedded else "openai"
        window = _checked_window(window or 0, image_size)
        if image_size is None and window:
            image_size = 2 * window
        elif image_size is None:
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
            window=window,
        )


def _checked_window(window: int, image_size: int | None) -> int:
    """Return the size of the windows, after checking that they are smaller than the images."""
    if not isinstance(window, int) or window < 0:
        msg = f"Expected argument `window` to be a number of pixels, or 0 for whole images, but got {window!r}."
        raise ValueError(msg)
    if window and image_size is not None and not (isinstance(image_size, int) and image_size > window):
        msg = (
            f"Expected argument `window` to be smaller than image_size={image_size!r}, but got {window}. Raise "
            f"`image_size`, for instance to {2 * window}, or pass window=0 for whole images."
        )
        raise ValueError(msg)
    return window


def _evenly_spaced(blocks: int) -> tuple[int, ...]:
    """Return four evenly spaced stages, for example 6, 12, 18, 24 of 24 blocks."""
    return tuple(sorted({max(1, blocks * number // NUMBER_OF_STAGES) for number in range(1, NUMBER_OF_STAGES + 1)}))


def _checked_stages(name: str, stages: Sequence[int], backbone: str, blocks: int) -> tuple[int, ...]:
    """Return the stages as a tuple, after checking that they are distinct blocks of the tower in rising order."""
    is_sequence = isinstance(stages, Sequence) and not isinstance(stages, str) and len(stages) > 0
    if (
        not is_sequence
        or not all(isinstance(stage, int) and stage > 0 for stage in stages)
        or list(stages) != sorted(set(stages))
    ):
        msg = (
            f"Expected argument `{name}` to hold distinct blocks of the image tower, counted from 1 and in rising "
            f"order, such as (6, 12, 18, 24), but got {stages!r}."
        )
        raise ValueError(msg)
    if max(stages) > blocks:
        msg = (
            f"Expected argument `{name}` to hold blocks from 1 to {blocks}, since {backbone} has {blocks} blocks, but "
            f"got {tuple(stages)}."
        )
        raise ValueError(msg)
    return tuple(stages)
