# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Calibration: the range of the few-shot map maxima of a validation set (arXiv 2305.17382, section 3.3)."""

from collections.abc import Callable

import torch
from torch import Tensor

from anomalib_aprilgan.method.scoring import RawPrediction, image_score
from anomalib_aprilgan.torch_model import AprilGanModel

__all__ = ["MapRange"]


class MapRange:
    """Collects raw predictions during validation, and calibrates a model with them at the end.

    Few-shot image scores are final only after that, since the map's maximum is min-max scaled over the whole set.
    """

    def __init__(self) -> None:
        self._collected: list[tuple[Tensor, Tensor, Tensor | None]] = []

    def clear(self) -> None:
        """Delete all predictions."""
        self._collected = []

    def add(self, raw: RawPrediction, labels: Tensor | None) -> None:
        """Add the predictions of a batch.

        Args:
            raw: The predictions.
            labels: Labels of shape ``(N,)``, if known.
        """
        self._collected.append((raw.probability, raw.map_max, labels))

    def calibrate(
        self, model: AprilGanModel, all_gather: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor | None] | None:
        """Calibrate a model with the collected predictions, and delete them.

        Args:
            model: The model.
            all_gather: Function that gathers a tensor from all processes.

        Returns:
            Final image scores and labels of the images of this process, shape ``(N,)`` each; ``None`` if there are no
            predictions.
        """
        if not self._collected:
            return None
        probability = torch.cat([probability for probability, _, _ in self._collected])
        map_max = torch.cat([map_max for _, map_max, _ in self._collected])
        labels = [label for _, _, label in self._collected if label is not None]
        self.clear()
        bounds = all_gather(torch.stack([map_max.min(), map_max.max()])).reshape(-1, 2)
        model.calibrate(bounds[:, 0].min(), bounds[:, 1].max())
        return image_score(probability, map_max, model.map_range), torch.cat(labels) if labels else None
