# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""The seven metrics of the paper (arXiv 2305.17382, tables 1 and 2) by anomalib's classes, for values of any range.

torchmetrics applies a sigmoid to each batch that contains a value outside [0, 1], and not to other batches, which
changes the order of values between batches. Raw few-shot scores and maps exceed 1. The sigmoid is therefore disabled
for anomalib's AUROC and AUPR; anomalib's F1Max and thresholds do not use it.
"""

from collections.abc import Iterable
from typing import Any

import torch
from anomalib.metrics import AUPR, AUPRO, AUROC, Evaluator, F1Max
from torch import Tensor

__all__ = ["accept_no_images", "paper_evaluator", "ranking_metrics", "sort_values"]

Values = tuple[Tensor, Tensor]
"""Values and their targets, of equal length."""

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


def sort_values(metrics: Iterable[object]) -> None:
    """Sort the values that ranking metrics have collected, once for all metrics that have collected the same ones.

    Each metric sorts its values itself, which takes a fifth of the time if they are in order already. The order in
    which a metric has its values does not change its result.

    Args:
        metrics: Metrics, before they are computed. Others than AUROC, F1-max and AP are left alone.
    """
    known: list[tuple[Values, Values]] = []
    for metric in metrics:
        state: Any = metric.precision_recall_curve if isinstance(metric, F1Max) else metric
        if not isinstance(metric, AUROC | F1Max | AUPR) or not getattr(state, "preds", None):
            continue  # with an argument `thresholds`, a metric collects no values
        given = torch.cat(state.preds), torch.cat(state.target)
        same = next((after for before, after in known if all(map(_equal, before, given))), None)
        if same is None:
            order = given[0].argsort(descending=True)
            same = given[0][order], given[1][order]
            known.append((given, same))
        state.preds, state.target = [same[0]], [same[1]]


def _equal(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal, on one device: anomalib's evaluator moves only some metrics to the CPU."""
    return one.device == other.device and torch.equal(one, other)


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
