# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""From similarities to maps and scores (arXiv 2305.17382, sections 3.1 to 3.3).

Shapes: ``N`` images, ``P = h * w`` patches in row-major order, ``D`` dimensions of CLIP's joint space, ``H x W``
pixels. In text features of shape ``(..., 2, D)`` row 0 is the normal and row 1 the abnormal state.
"""

from math import isqrt
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate, normalize

__all__ = [
    "TEMPERATURE",
    "RawPrediction",
    "abnormal_probability",
    "average_states",
    "image_score",
    "stage_probabilities",
    "upsample",
]

TEMPERATURE = 100.0
"""CLIP's logit scale, as the authors fix it."""


class RawPrediction(NamedTuple):
    """Zero-shot image scores and anomaly maps, before both are combined into the few-shot image score.

    Attributes:
        probability: Zero-shot image scores, shape ``(N,)`` in [0, 1].
        anomaly_map: Anomaly maps, shape ``(N, image_size, image_size)``.
    """

    probability: Tensor
    anomaly_map: Tensor

    @property
    def map_max(self) -> Tensor:
        """Each map's maximum, shape ``(N,)``."""
        return self.anomaly_map.amax(dim=(-2, -1))


def average_states(embeddings: Tensor) -> Tensor:
    """Average a state's sentence embeddings into one text feature (section 3.1).

    Args:
        embeddings: Sentence embeddings of shape ``(S, D)``, of any length.

    Returns:
        Tensor of shape ``(D,)`` and length 1.
    """
    return normalize(normalize(embeddings, dim=-1).mean(dim=0), dim=-1)


def upsample(grid: Tensor, size: int) -> Tensor:
    """Upsample patch grids to images, bilinear with aligned corners, as the authors do.

    Args:
        grid: Tensor of shape ``(N, C, P)`` on a square grid of patches.
        size: Height and width of the images in pixels.

    Returns:
        Tensor of shape ``(N, C, size, size)``.
    """
    batch, channels, patches = grid.shape
    side = isqrt(patches)
    grid = grid.reshape(batch, channels, side, side)
    return interpolate(grid, size=(size, size), mode="bilinear", align_corners=True)


def stage_probabilities(tokens: Tensor, text_features: Tensor, size: int) -> Tensor:
    """Turn one stage's adapted tokens into maps of both states' probabilities (section 3.2).

    The logits are upsampled first, the softmax is taken afterwards.

    Args:
        tokens: Adapted patch tokens of length 1, shape ``(N, P, D)``.
        text_features: Shape ``(2, D)``, or ``(N, 2, D)`` where each image has its own class.
        size: Height and width of the maps in pixels.

    Returns:
        Tensor of shape ``(N, 2, size, size)`` in [0, 1]; channel 1 is the stage's anomaly map.
    """
    logits = TEMPERATURE * tokens @ text_features.mT  # (N, P, 2)
    return upsample(logits.mT, size).softmax(dim=1)


def abnormal_probability(embedding: Tensor, text_features: Tensor) -> Tensor:
    """Compare CLIP's own image embedding with the two states (section 3.1). No adapter takes part.

    Args:
        embedding: Image embeddings of any length, shape ``(N, D)``.
        text_features: Shape ``(2, D)``, or ``(N, 2, D)`` where each image has its own class.

    Returns:
        The zero-shot image score: tensor of shape ``(N,)`` in [0, 1].
    """
    logits = TEMPERATURE * normalize(embedding, dim=-1)[:, None] @ text_features.mT  # (N, 1, 2)
    return logits[:, 0].softmax(dim=-1)[:, 1]


def image_score(probability: Tensor, map_max: Tensor, map_range: Tensor) -> Tensor:
    """Combine the zero-shot image score with the anomaly map's maximum (section 3.3).

    Args:
        probability: Zero-shot image scores, shape ``(N,)``.
        map_max: Maxima of the few-shot anomaly maps, shape ``(N,)``.
        map_range: Minimum and maximum that ``map_max`` is min-max scaled by, shape ``(2,)``.

    Returns:
        Tensor of shape ``(N,)``; in [0, 1] where ``map_max`` lies in ``map_range``. If the range is empty, as with a
        single image, the scaled maximum is 0.
    """
    minimum, maximum = map_range
    extent = torch.where(maximum > minimum, maximum - minimum, torch.ones_like(maximum))
    return 0.5 * (probability + (map_max - minimum) / extent)
