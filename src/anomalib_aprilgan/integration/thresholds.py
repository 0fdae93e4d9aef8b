# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Thresholds of scores, from labelled images or from normal images alone, and what they are worth."""

from dataclasses import dataclass
from math import ceil

import torch
from anomalib.metrics import F1AdaptiveThreshold
from scipy.stats import t as student_t
from torch import Tensor
from torchmetrics.utilities.data import dim_zero_cat

__all__ = ["FALSE_ALARM_RATE", "Calibration", "LabelledThreshold", "false_alarm_threshold", "images_needed"]

FALSE_ALARM_RATE = 0.05
"""Default share of normal images that may be labelled anomalous, where no anomalous image is known."""

FEW_IMAGES = 20
"""With fewer normal or anomalous images than this, their counts of errors say little about new images."""


ROUNDING = 1e-5
"""Share by which a threshold lies above the score that it belongs to. Else rounding errors decide about its image."""


def images_needed(rate: float) -> int:
    """Return how many normal images a false-alarm rate needs, if nothing is assumed about their scores.

    A new image of the same kind lies above the largest of ``n`` scores with a probability of 1 / (n + 1).

    Args:
        rate: The rate, in (0, 1).
    """
    return ceil(round(1 / rate, 9)) - 1


def false_alarm_threshold(scores: Tensor, rate: float) -> Tensor:
    """Compute a threshold that a share of new normal images lies above, from scores of normal images.

    With enough images (:func:`images_needed`) it lies just above one of the scores, and the rate holds for scores of
    any distribution (split conformal prediction). With fewer, it is the upper prediction limit of a normal
    distribution, and above the largest score. With a single image it lies just above that score.

    Args:
        scores: Scores of normal images, shape ``(N,)``.
        rate: The share, in (0, 1).

    Returns:
        The threshold, a scalar.
    """
    number = len(scores)
    rank = ceil(round((1 - rate) * (number + 1), 9))
    ordered = scores.sort().values
    ordered = ordered + ROUNDING * ordered.abs()
    if rank <= number:
        return ordered[rank - 1]
    if number == 1:
        return ordered[0]
    factor = float(student_t.ppf(1 - rate, number - 1)) * (1 + 1 / number) ** 0.5
    return torch.maximum(scores.mean() + factor * scores.std(), ordered[-1])


class LabelledThreshold(F1AdaptiveThreshold):
    """anomalib's F1-adaptive threshold, moved to the middle between it and the next lower score (or 0).

    anomalib's threshold equals the score of the least anomalous image that should be labelled anomalous. Since only
    scores above the threshold are labelled so, rounding errors would decide about that image. Without anomalous images
    it is :func:`false_alarm_threshold`.

    Attributes:
        false_alarm_rate: Share of normal images above the threshold if there are no anomalous images, in (0, 1).
        scores: Scores of all processes at the last computation, shape ``(N,)``.
        labels: Their labels, shape ``(N,)``; 1 is anomalous.
    """

    false_alarm_rate: float = FALSE_ALARM_RATE
    scores: Tensor
    labels: Tensor

    def compute(self) -> Tensor:  # type: ignore[override]  # as anomalib's
        """Return the threshold, a scalar."""
        self.scores, self.labels = dim_zero_cat(self.preds), dim_zero_cat(self.target)
        if not self._has_anomalous_samples():
            return false_alarm_threshold(self.scores, self.false_alarm_rate)
        threshold: Tensor = super().compute()
        lower = torch.cat([self.scores[self.scores < threshold], torch.zeros_like(self.scores[:1])])  # none is negative
        return (threshold + lower.max()) / 2


@dataclass(frozen=True)
class Calibration:
    """Describes the images that a threshold was computed from, and what it does to them.

    Attributes:
        threshold: Threshold of raw image scores.
        normal: Number of normal images.
        anomalous: Number of anomalous images.
        misses: Number of anomalous images that are labelled normal.
        false_alarms: Number of normal images that are labelled anomalous.
        false_alarm_rate: Share of new normal images that the threshold is meant for, if there was no anomalous image.
    """

    threshold: float
    normal: int
    anomalous: int
    misses: int
    false_alarms: int
    false_alarm_rate: float

    @property
    def summary(self) -> str:
        """Say where the threshold comes from, in a phrase."""
        if self.anomalous:
            return f"{self.normal} normal and {self.anomalous} anomalous images"
        images = f"{self.normal} normal image{'s' if self.normal > 1 else ''}"
        return f"{images} alone, for {self.false_alarm_rate:.0%} false alarms"

    def __str__(self) -> str:
        """Say where the threshold comes from and what it is worth."""
        origin = f"Threshold: {self.threshold:.4g} (raw score), from {self.summary}."
        if self.anomalous:
            misses, false_alarms = f"{self.misses} of {self.anomalous}", f"{self.false_alarms} of {self.normal}"
            return f"{origin} On these images: {misses} anomalous ones missed, {false_alarms} normal ones false alarms."
        return f"{origin} Nothing is known about misses. Validate with anomalous images, however few, to learn more."

    @property
    def warning(self) -> str | None:
        """Say why the threshold means little; ``None`` if there are enough images."""
        if self.anomalous:
            if min(self.normal, self.anomalous) >= FEW_IMAGES:
                return None
            return (
                f"The threshold comes from {self.summary}, so that its errors on new images may be far more frequent. "
                f"Validate with {FEW_IMAGES} or more images of each kind."
            )
        needed = images_needed(self.false_alarm_rate)
        if self.normal >= needed:
            return None
        if self.normal == 1:
            return f"The threshold comes from one normal image, so it means little. Use {needed} or more."
        return (
            f"The threshold comes from {self.summary}. With fewer than {needed} images, this rate assumes that scores "
            "are normally distributed."
        )
