# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Results of the demonstration, from which the printed table and the page are made."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from anomalib_aprilgan.demo.drawing.canvas import Array

__all__ = ["METRICS", "DemoResults", "Example", "Prediction"]

METRICS = ("image_AUROC", "pixel_AUROC")
"""Metrics in the table, with anomalib's names."""


@dataclass(frozen=True)
class Prediction:
    """A model's prediction for an image.

    Attributes:
        score: Image score in [0, 1].
        label: Whether the image is predicted anomalous (score above 0.5).
        anomaly_map: Pixel scores, shape (H, W), in [0, 1]; a pixel is predicted anomalous above 0.5.
    """

    score: float
    label: bool
    anomaly_map: Array


@dataclass(frozen=True)
class Example:
    """A test image with its predictions.

    Attributes:
        path: Image file.
        mask: Mask file; ``None`` for a normal image.
        predictions: Prediction by number of reference images, 0 and ``k_shot``.
    """

    path: Path
    mask: Path | None
    predictions: dict[int, Prediction]


@dataclass
class DemoResults:
    """Results of a demonstration.

    Attributes:
        seed: Random seed.
        k_shot: Number of reference images in the few-shot test.
        epochs: Epochs of the adapters' training.
        trained_on: Number of categories and number of images that the adapters were trained on.
        categories: Categories by what they show.
        metrics: Metrics in [0, 1] by category and number of reference images.
        references: Files of the reference images by category.
        examples: Some test images: of each category the first image of one defect, of some also the first normal image.
        seconds: Run time.
    """

    seed: int
    k_shot: int
    epochs: int
    trained_on: tuple[int, int] = (0, 0)
    categories: dict[str, list[str]] = field(default_factory=dict)
    metrics: dict[tuple[str, int], dict[str, float]] = field(default_factory=dict)
    references: dict[str, tuple[str, ...]] = field(default_factory=dict)
    examples: list[Example] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def tables(self) -> dict[str, list[tuple[str, list[float]]]]:
        """By what categories show: rows with name and values of each category, then of their mean."""
        tables = {}
        for name, categories in self.categories.items():
            rows = [
                (category, [self.metrics[category, shots][metric] for shots in (0, self.k_shot) for metric in METRICS])
                for category in categories
            ]
            tables[name] = [*rows, ("mean", np.mean([values for _, values in rows], axis=0).tolist())]
        return tables

    @property
    def columns(self) -> list[str]:
        """Headings of the values: zero-shot metrics, then few-shot metrics."""
        shots = ("zero-shot", f"{self.k_shot}-shot")
        return [f"{name}\n{metric.replace('_', ' ')}" for name in shots for metric in METRICS]
