# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""What a demonstration finds, for the table and the page."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from anomalib_aprilgan.demo.drawing.canvas import Array

__all__ = ["METRICS", "Example", "Findings", "Prediction"]

METRICS = ("image_AUROC", "pixel_AUROC")
"""Metrics in the table, by anomalib's names."""


@dataclass(frozen=True)
class Prediction:
    """What a model says of an image.

    Attributes:
        score: Image score in [0, 1]; above 0.5 it is called anomalous.
        label: Whether it is called anomalous.
        anomaly_map: Shape (H, W) in [0, 1]; above 0.5 a pixel is called anomalous.
    """

    score: float
    label: bool
    anomaly_map: Array


@dataclass(frozen=True)
class Example:
    """A test image and what was said of it.

    Attributes:
        path: Its file.
        mask: Its mask's file; ``None`` for a normal image.
        predictions: By number of reference images: 0 and ``k_shot``.
    """

    path: Path
    mask: Path | None
    predictions: dict[int, Prediction]


@dataclass
class Findings:
    """What a demonstration found.

    Attributes:
        seed: Its seed.
        k_shot: Number of reference images, where there are any.
        epochs: How often the adapters saw each image.
        trained_on: Number of categories and of images that the adapters were trained on.
        metrics: By category and number of reference images, the metrics' values in [0, 1].
        references: By category, the reference images' files.
        examples: A handful of test images: of each category the first of one defect, and good ones.
        seconds: How long it took.
    """

    seed: int
    k_shot: int
    epochs: int
    trained_on: tuple[int, int] = (0, 0)
    metrics: dict[tuple[str, int], dict[str, float]] = field(default_factory=dict)
    references: dict[str, tuple[str, ...]] = field(default_factory=dict)
    examples: list[Example] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def rows(self) -> list[tuple[str, list[float]]]:
        """The table: by category, and last of all their mean, the metrics zero-shot and then few-shot."""
        rows = [
            (category, [self.metrics[category, shots][name] for shots in (0, self.k_shot) for name in METRICS])
            for category in self.references
        ]
        return [*rows, ("mean", np.mean([values for _, values in rows], axis=0).tolist())]

    @property
    def columns(self) -> list[str]:
        """Names of the rows' values."""
        shots = ("zero-shot", f"{self.k_shot}-shot")
        return [f"{name}\n{metric.replace('_', ' ')}" for name in shots for metric in METRICS]
