# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Check that scores are numbers: NaN is not above any threshold, so the image would be labelled normal."""

from collections.abc import Sequence

import torch
from anomalib.data import InferenceBatch
from torch import Tensor

__all__ = ["mark_unusable_images", "refuse_non_finite_scores"]


def refuse_non_finite_scores(prediction: InferenceBatch, files: Sequence[str] | None = None) -> None:
    """Raise an error if scores or maps are not finite.

    Args:
        prediction: Raw scores of shape ``(N,)`` and maps of shape ``(N, H, W)``.
        files: Paths of the images, if known.

    Raises:
        RuntimeError: If there are any; the message names the images.
    """
    score, anomaly_map = prediction.pred_score, prediction.anomaly_map
    if not isinstance(score, Tensor) or not isinstance(anomaly_map, Tensor):
        return
    finite = torch.isfinite(score) & torch.isfinite(anomaly_map.amax(dim=(-2, -1)))
    if finite.all():
        return
    numbers = (~finite).nonzero().flatten().tolist()
    names = [str(files[number]) if files else f"image {number} of the batch" for number in numbers]
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""  # noqa: PLR2004
    msg = (
        f"Expected a finite score and map for each image, but got NaN or infinity for {', '.join(names[:4])}{more}. "
        "Check the pixels of these images and of the reference images for NaN and infinity. If all images fail, check "
        "CLIP's weights and the adapters, or compute with single precision."
    )
    raise RuntimeError(msg)


def mark_unusable_images(prediction: InferenceBatch, are_usable: Tensor) -> InferenceBatch:
    """Replace the results of unusable images in an exported graph, which cannot raise an error.

    Args:
        prediction: Post-processed prediction.
        are_usable: Whether each image can be used, shape ``(N,)``.

    Returns:
        The prediction. Scores and maps of unusable images, and those that are not finite, are NaN. Their labels and
        masks are true, so that no such image is taken as normal.
    """
    score, anomaly_map = prediction.pred_score, prediction.anomaly_map
    if not isinstance(score, Tensor) or not isinstance(anomaly_map, Tensor):
        return prediction
    are_usable = are_usable & score.isfinite() & anomaly_map.amax(dim=(-2, -1)).isfinite()
    are_usable_pixels = are_usable[:, None, None]
    label, mask = prediction.pred_label, prediction.pred_mask
    return InferenceBatch(
        pred_score=torch.where(are_usable, score, torch.nan),
        anomaly_map=torch.where(are_usable_pixels, anomaly_map, torch.nan),
        pred_label=label | ~are_usable if isinstance(label, Tensor) else label,
        pred_mask=mask | ~are_usable_pixels if isinstance(mask, Tensor) else mask,
    )
