# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Training loss of the adapters: focal plus dice loss, summed over the stages (arXiv 2305.17382, section 3.2)."""

from collections.abc import Iterable

import torch
from torch import Tensor

__all__ = ["adapter_loss", "dice_loss", "focal_loss"]

FOCAL_GAMMA = 2.0
FOCAL_SMOOTHING = 1e-5
DICE_SMOOTHING = 1.0


def focal_loss(probabilities: Tensor, target: Tensor) -> Tensor:
    """Compute the focal loss on the maps of both states, without class weights.

    Args:
        probabilities: Softmax maps of shape ``(N, 2, H, W)`` in [0, 1]; channel 1 is the abnormal state.
        target: Ground truth of shape ``(N, H, W)``, 1 for abnormal pixels, otherwise 0.

    Returns:
        Scalar, the mean over all pixels.
    """
    states = torch.stack([1 - target, target], dim=1).clamp(FOCAL_SMOOTHING, 1 - FOCAL_SMOOTHING)
    p_true = (states * probabilities).sum(dim=1) + FOCAL_SMOOTHING
    return -((1 - p_true) ** FOCAL_GAMMA * p_true.log()).mean()


def dice_loss(anomaly_map: Tensor, target: Tensor) -> Tensor:
    """Compute the dice loss on the map of the abnormal state: the mean over the images.

    Args:
        anomaly_map: Probabilities of shape ``(N, H, W)`` in [0, 1].
        target: Ground truth of shape ``(N, H, W)``, 1 for abnormal pixels, otherwise 0.

    Returns:
        Scalar in [0, 1].
    """
    prediction, target = anomaly_map.flatten(1), target.flatten(1)
    overlap = (prediction * target).sum(dim=1)
    union = prediction.sum(dim=1) + target.sum(dim=1)
    return (1 - (2 * overlap + DICE_SMOOTHING) / (union + DICE_SMOOTHING)).mean()


def adapter_loss(stages: Iterable[Tensor], target: Tensor) -> Tensor:
    """Compute focal plus dice loss, summed over the stages.

    Args:
        stages: Per stage, softmax maps of shape ``(N, 2, H, W)`` in [0, 1].
        target: Ground truth of shape ``(N, H, W)``, 1 for abnormal pixels, otherwise 0.

    Returns:
        Scalar.
    """
    target = target.float()
    losses = [focal_loss(maps, target) + dice_loss(maps[:, 1], target) for maps in stages]
    return torch.stack(losses).sum()
