# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""The seven metrics of the paper (arXiv 2305.17382, tables 1 and 2) by anomalib's classes, for values of any range.

torchmetrics applies a sigmoid to each batch that contains a value outside [0, 1], and not to other batches, which
changes the order of values between batches. Raw few-shot scores and maps exceed 1. The sigmoid is therefore disabled
for anomalib's AUROC and AUPR; anomalib's F1Max and thresholds do not use it.
"""

from typing import Any

from anomalib.metrics import AUPR, AUPRO, AUROC, Evaluator, F1Max

__all__ = ["paper_evaluator", "ranking_metrics"]

RAW: dict[str, Any] = {"normalization": None}
"""Argument of torchmetrics' binary curves that disables the sigmoid."""


def ranking_metrics(**kwargs: Any) -> list[Any]:  # noqa: ANN401
    """Make the three metrics that depend only on the order of values.

    Args:
        **kwargs: Arguments of anomalib's metrics, for example ``fields`` and ``prefix``.

    Returns:
        AUROC, F1-max, and AP, which anomalib calls AUPR.
    """
    return [AUROC(**kwargs, **RAW), F1Max(**kwargs), AUPR(**kwargs, **RAW)]


def paper_evaluator() -> Evaluator:
    """Make an evaluator that computes AUROC, F1-max and AP of images and pixels, and PRO.

    AUROC has the same positions as in anomalib's default evaluator. Otherwise Lightning could not run models with
    either evaluator in one Engine.
    """
    image: dict[str, Any] = {"fields": ["pred_score", "gt_label"], "prefix": "image_"}
    pixel: dict[str, Any] = {"fields": ["anomaly_map", "gt_mask"], "prefix": "pixel_", "strict": False}
    image_auroc, image_f1, image_ap = ranking_metrics(**image)
    pixel_auroc, pixel_f1, pixel_ap = ranking_metrics(**pixel)
    order = [image_auroc, image_f1, pixel_auroc, pixel_f1, image_ap, pixel_ap, AUPRO(**pixel)]
    return Evaluator(test_metrics=order)
