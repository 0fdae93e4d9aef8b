# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Computes anomaly maps and image scores from similarities (arXiv 2305.17382, sections 3.1 to 3.3).

Shapes: ``N`` images, ``P = h * w`` patches in row-major order, ``D`` dimensions of CLIP's joint space, ``H x W``
pixels. In text features of shape ``(..., 2, D)`` row 0 is the normal and row 1 the abnormal state.
"""

from math import isqrt
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate, normalize

__all__ = [
    "LOGIT_SCALE",
    "RawPrediction",
    "abnormal_probability",
    "average_states",
    "full_precision",
    "image_score",
    "stage_logits",
    "upsample",
]

LOGIT_SCALE = 100.0
"""Factor of the cosine similarities before the softmax: CLIP's logit scale, a constant as in the authors' code."""


class RawPrediction(NamedTuple):
    """Zero-shot image scores and anomaly maps, from which the few-shot image score is computed.

    Attributes:
        probability: Zero-shot image scores, shape ``(N,)`` in [0, 1].
        anomaly_map: Anomaly maps, shape ``(N, image_size, image_size)``.
    """

    probability: Tensor
    anomaly_map: Tensor

    @property
    def map_max(self) -> Tensor:
        """Maximum of each anomaly map, shape ``(N,)``."""
        return self.anomaly_map.amax(dim=(-2, -1))


def full_precision(device: torch.device) -> torch.autocast:
    """Disable autocast: the logit scale amplifies rounding errors of similarities, which would change the maps."""
    return torch.autocast(device.type, enabled=False)


def average_states(embeddings: Tensor) -> Tensor:
    """Average the sentence embeddings of one state into its text feature (section 3.1).

    Args:
        embeddings: Sentence embeddings, not normalised, shape ``(S, D)``.

    Returns:
        L2-normalised text feature of shape ``(D,)``. Each sentence has the same weight.
    """
    return normalize(normalize(embeddings, dim=-1).mean(dim=0), dim=-1)


def upsample(grid: Tensor, size: int) -> Tensor:
    """Upsample values of patches to pixels, bilinear with aligned corners, like the authors' code.

    Args:
        grid: Values on a square grid of patches, shape ``(N, C, P)``.
        size: Height and width of the images in pixels.

    Returns:
        Tensor of shape ``(N, C, size, size)``.
    """
    batch, channels, patches = grid.shape
    side = isqrt(patches)
    grid = grid.reshape(batch, channels, side, side)
    return interpolate(grid, size=(size, size), mode="bilinear", align_corners=True)


def stage_logits(tokens: Tensor, text_features: Tensor) -> Tensor:
    """Compute the patches of one stage before the softmax: logits of the abnormal minus the normal state (section 3.2).

    The softmax of two logits is the sigmoid of their difference, and upsampling is linear. So the sigmoid of the
    upsampled difference is the probability of the abnormal state, that is, the anomaly map of the stage. The sigmoid of
    its negative is the probability of the normal state.

    Args:
        tokens: L2-normalised adapted patch tokens, shape ``(N, P, D)``.
        text_features: Text features of shape ``(2, D)``, or ``(N, 2, D)`` if each image has its own class.

    Returns:
        Tensor of shape ``(N, P)``.
    """
    normal, abnormal = text_features.unbind(dim=-2)
    return (LOGIT_SCALE * tokens @ (abnormal - normal)[..., None])[..., 0]


def abnormal_probability(embedding: Tensor, text_features: Tensor) -> Tensor:
    """Compute zero-shot image scores from CLIP's image embeddings, without adapters (section 3.1).

    Args:
        embedding: Image embeddings, not normalised, shape ``(N, D)``.
        text_features: Text features of shape ``(2, D)``, or ``(N, 2, D)`` if each image has its own class.

    Returns:
        Probabilities of the abnormal state, shape ``(N,)`` in [0, 1].
    """
    logits = LOGIT_SCALE * normalize(embedding, dim=-1)[:, None] @ text_features.mT  # (N, 1, 2)
    return logits[:, 0].softmax(dim=-1)[:, 1]


def image_score(probability: Tensor, map_max: Tensor, map_range: Tensor) -> Tensor:
    """Compute few-shot image scores: the mean of zero-shot score and scaled map maximum (section 3.3).

    Args:
        probability: Zero-shot image scores, shape ``(N,)``.
        map_max: Maxima of the few-shot anomaly maps, shape ``(N,)``.
        map_range: Minimum and maximum for the min-max scaling of ``map_max``, shape ``(2,)``.

    Returns:
        Tensor of shape ``(N,)``; in [0, 1] if ``map_max`` lies in ``map_range``. If both bounds are
        equal, as after calibration with one image, the width of the range is taken as 1.
    """
    minimum, maximum = map_range
    extent = torch.where(maximum > minimum, maximum - minimum, torch.ones_like(maximum))
    return 0.5 * (probability + (map_max - minimum) / extent)
