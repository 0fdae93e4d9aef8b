# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""The paper's metrics (arXiv 2305.17382, tables 1 and 2) with anomalib's classes, for values of any range.

torchmetrics applies a sigmoid to each batch that holds a value outside [0, 1], and leaves other batches as they are, so
that the order between batches is lost. Raw few-shot scores and maps exceed 1, therefore it is switched off here for
anomalib's AUROC and AUPR. anomalib's F1Max and its thresholds do without it already.
"""

from typing import Any

from anomalib.metrics import AUPR, AUPRO, AUROC, Evaluator, F1Max

__all__ = ["paper_evaluator", "ranking_metrics"]

RAW: dict[str, Any] = {"normalization": None}
"""Argument of torchmetrics' binary curves that switches the sigmoid off."""


def ranking_metrics(**kwargs: Any) -> list[Any]:  # noqa: ANN401
    """Make the three metrics that depend on the order of values alone.

    Args:
        **kwargs: anomalib's arguments, for instance ``fields`` and ``prefix``.

    Returns:
        AUROC, F1-max, and AP (which anomalib calls AUPR).
    """
    return [AUROC(**kwargs, **RAW), F1Max(**kwargs), AUPR(**kwargs, **RAW)]


def paper_evaluator() -> Evaluator:
    """Make an evaluator that computes AUROC, F1-max and AP of images and pixels, and PRO.

    AUROC has the places that it has in anomalib's default evaluator: else Lightning refuses to run both with one
    Engine.
    """
    image: dict[str, Any] = {"fields": ["pred_score", "gt_label"], "prefix": "image_"}
    pixel: dict[str, Any] = {"fields": ["anomaly_map", "gt_mask"], "prefix": "pixel_", "strict": False}
    image_auroc, image_f1, image_ap = ranking_metrics(**image)
    pixel_auroc, pixel_f1, pixel_ap = ranking_metrics(**pixel)
    order = [image_auroc, image_f1, pixel_auroc, pixel_f1, image_ap, pixel_ap, AUPRO(**pixel)]
    return Evaluator(test_metrics=order)
