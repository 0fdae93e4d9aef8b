# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""The seven metrics of the paper (arXiv 2305.17382, tables 1 and 2) by anomalib's classes, for values of any range.

torchmetrics applies a sigmoid to each batch that contains a value outside [0, 1], and not to other batches, which
changes the order of values between batches. Raw few-shot scores and maps exceed 1. The sigmoid is therefore disabled
for anomalib's AUROC and AUPR; anomalib's F1Max and thresholds do not use it.
"""

from typing import Any

from anomalib.metrics import AUPR, AUPRO, AUROC, Evaluator, F1Max

__all__ = ["accept_no_images", "paper_evaluator", "ranking_metrics"]

RAW: dict[str, Any] = {"normalization": None}
"""Argument of torchmetrics' binary curves that disables the sigmoid."""

IMAGE: dict[str, Any] = {"fields": ["pred_score", "gt_label"]}
PIXEL: dict[str, Any] = {"fields": ["anomaly_map", "gt_mask"], "strict": False}


def ranking_metrics(**kwargs: Any) -> list[Any]:  # noqa: ANN401
    """Make the three metrics that depend only on the order of values.

    Args:
        **kwargs: Arguments of anomalib's metrics, for example ``fields`` and ``prefix``.

    Returns:
        AUROC, F1-max, and AP, which anomalib calls AUPR.
    """
    return [AUROC(**kwargs, **RAW), F1Max(**kwargs), AUPR(**kwargs, **RAW)]


def paper_evaluator(*, watches_training: bool = False) -> Evaluator:
    """Make an evaluator that computes AUROC, F1-max and AP of images and pixels, and PRO.

    AUROC has the same positions as in anomalib's default evaluator. Otherwise Lightning could not run models with
    either evaluator in one Engine.

    Args:
        watches_training: Also compute all but PRO, which is slow, in each validation, under names with ``val_``.
    """
    watched = [metric for metrics in _metrics("val_") for metric in metrics] if watches_training else []
    (image_auroc, image_f1, image_ap), (pixel_auroc, pixel_f1, pixel_ap) = _metrics()
    order = [image_auroc, image_f1, pixel_auroc, pixel_f1, image_ap, pixel_ap, AUPRO(**PIXEL, prefix="pixel_")]
    return Evaluator(val_metrics=watched, test_metrics=order)


def accept_no_images(evaluator: Evaluator | None) -> bool:
    """Whether the metrics of an evaluator accept a batch without images. Others of torchmetrics raise errors."""
    metrics = [] if evaluator is None else [*evaluator.val_metrics, *evaluator.test_metrics]
    return all(isinstance(metric, AUROC | F1Max | AUPR | AUPRO) for metric in metrics)


def _metrics(prefix: str = "") -> tuple[list[Any], list[Any]]:
    """Make the three metrics of images, and of pixels."""
    return ranking_metrics(**IMAGE, prefix=f"{prefix}image_"), ranking_metrics(**PIXEL, prefix=f"{prefix}pixel_")
