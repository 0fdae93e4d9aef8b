# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""The seven metrics of the paper (arXiv 2305.17382, tables 1 and 2), by anomalib's classes."""

from typing import Any

from anomalib.metrics import AUPR, AUPRO, AUROC, Evaluator, F1Max

__all__ = ["paper_evaluator"]


def paper_evaluator() -> Evaluator:
    """Make an evaluator that computes AUROC, F1-max and AP of images and pixels, and PRO.

    AUROC has the same positions as in anomalib's default evaluator. Otherwise Lightning could not run models with
    either evaluator in one Engine.
    """
    image: dict[str, Any] = {"fields": ["pred_score", "gt_label"], "prefix": "image_"}
    pixel: dict[str, Any] = {"fields": ["anomaly_map", "gt_mask"], "prefix": "pixel_", "strict": False}
    return Evaluator(
        test_metrics=[
            AUROC(**image),
            F1Max(**image),
            AUROC(**pixel),
            F1Max(**pixel),
            AUPR(**image),
            AUPR(**pixel),
            AUPRO(**pixel),
        ],
    )
