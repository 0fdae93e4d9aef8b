# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Post-processing: normalises raw scores and maps to [0, 1] with the threshold at 0.5, and computes thresholds."""

import copy
from types import SimpleNamespace
from typing import Any, Protocol, cast, runtime_checkable

import torch
from anomalib.post_processing import PostProcessor
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torchmetrics import CatMetric

from anomalib_aprilgan.integration.thresholds import (
    FALSE_ALARM_RATE,
    Calibration,
    LabelledThreshold,
    false_alarm_threshold,
)

__all__ = ["AprilGanPostProcessor", "Calibratable", "snapshot"]

MARGIN = 0.05
"""Part of [0, 1] at its upper end that is reserved for scores above the maximum of the validation set."""

THRESHOLD = 0.5
"""Default threshold of image scores and maps without validation data, for probabilities."""


@runtime_checkable
class Calibratable(Protocol):
    """A module whose image scores are final only at the end of the validation."""

    def calibrate(self) -> tuple[Tensor, Tensor | None] | None:
        """Return final scores and labels of this process's validation images; ``None`` if scores were final before."""

    @property
    def smallest_score(self) -> float:
        """Smallest possible raw image score. The smallest possible map value is 0."""


class AprilGanPostProcessor(PostProcessor):
    """anomalib's post-processor with five changes.

    1. It keeps the order of scores. anomalib clips values that lie more than half the range from the threshold, which
       makes the most anomalous pixels and images equal and thereby changes metrics. Here a piecewise linear function
       maps the smallest possible value, the threshold, and the largest value of the validation set to 0, 0.5 and 0.95.
       Larger values approach 1.
    2. It computes the image threshold at the end of the validation, because few-shot scores are final only then
       (min-max scaling of the map maximum over the whole set).
    3. The image threshold lies between two scores, see :class:`LabelledThreshold`.
    4. Without anomalous images, thresholds are set for a share of false alarms, see :func:`false_alarm_threshold`. A
       mask is then a false alarm if any pixel of a normal image is above the threshold.
    5. It works without validation data. Scores and maps are then normalised by their smallest and largest possible
       values, with the threshold at a probability of 0.5.

    Args:
        enable_normalization: Normalise scores and maps to [0, 1]. ``None``: value of the checkpoint, otherwise true.
        enable_thresholding: Compute labels and masks. ``None``: value of the checkpoint, otherwise true.
        enable_threshold_matching: As in anomalib. It has no effect, since both thresholds are always defined.
        image_sensitivity: Sensitivity of the image label in [0, 1]; 0.5 keeps the threshold. ``None``: value of the
            checkpoint, otherwise 0.5.
        pixel_sensitivity: Sensitivity of the mask in [0, 1]; the same applies.
        false_alarm_rate: Share of normal images that may be labelled anomalous, in (0, 1), if thresholds are set
            without any anomalous image. ``None``: value of the checkpoint, otherwise 0.05.

    Raises:
        ValueError: If a sensitivity is not in [0, 1], or the share not in (0, 1).
    """

    def __init__(
        self,
        enable_normalization: bool | None = None,
        enable_thresholding: bool | None = None,
        enable_threshold_matching: bool | None = None,
        image_sensitivity: float | None = None,
        pixel_sensitivity: float | None = None,
        false_alarm_rate: float | None = None,
    ) -> None:
        options = {
            "enable_normalization": enable_normalization,
            "enable_thresholding": enable_thresholding,
            "enable_threshold_matching": enable_threshold_matching,
            "image_sensitivity": image_sensitivity,
            "pixel_sensitivity": pixel_sensitivity,
        }
        for name in ("image_sensitivity", "pixel_sensitivity"):
            value = options[name]
            if value is not None and not 0 <= value <= 1:
                msg = f"Expected argument `{name}` to be in [0, 1], but got {value!r}."
                raise ValueError(msg)
        if false_alarm_rate is not None and not 0 < false_alarm_rate < 1:
            msg = f"Expected argument `false_alarm_rate` to be in (0, 1), such as 0.05, but got {false_alarm_rate!r}."
            raise ValueError(msg)
        given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
        super().__init__(**given)
        self.false_alarm_rate = FALSE_ALARM_RATE if false_alarm_rate is None else false_alarm_rate
        self._given = frozenset(given if false_alarm_rate is None else {*given, "false_alarm_rate"})
        self.register_buffer("margin", torch.tensor(0.0))
        self.margin: Tensor
        self.register_buffer("counts", torch.zeros(4, dtype=torch.long))
        self.counts: Tensor
        self._image_threshold_metric = LabelledThreshold(fields=["pred_score", "gt_label"], strict=False)
        self._map_maxima = CatMetric()
        self.reset_calibration()

    @property
    def _checkpoint_config_keys(self) -> tuple[str, ...]:
        return (*super()._checkpoint_config_keys, "false_alarm_rate")

    @property
    def is_calibrated(self) -> bool:
        """Whether thresholds and ranges were computed from images."""
        return bool(self.margin > 0)

    @property
    def calibration(self) -> Calibration | None:
        """The images that the image threshold was computed from; ``None`` if there were none."""
        normal, anomalous, misses, false_alarms = (int(count) for count in self.counts)
        if not normal + anomalous:
            return None
        threshold = float(self._image_threshold)
        return Calibration(threshold, normal, anomalous, misses, false_alarms, self.false_alarm_rate)

    def reset_calibration(self, largest_map_value: float = 1.0) -> None:
        """Reset thresholds and ranges to their values without validation data.

        Args:
            largest_map_value: Largest possible value of a raw anomaly map.
        """
        for bound, value in (("image_min", 0), ("image_max", 1), ("pixel_min", 0), ("pixel_max", largest_map_value)):
            getattr(self, bound).fill_(value)
        for threshold in (self._image_threshold, self._pixel_threshold):
            threshold.fill_(THRESHOLD)
        self.margin.fill_(0)  # no value can be above these bounds
        self.counts.fill_(0)

    def load_checkpoint_config(self, config: dict[str, Any]) -> None:
        """Restore the options that were not passed as arguments."""
        super().load_checkpoint_config({name: value for name, value in config.items() if name not in self._given})

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:  # noqa: ANN401
        """Also load the state of anomalib's post-processor, which has no margin, and NaN before calibration."""
        largest = state_dict.get(f"{prefix}image_max")
        if f"{prefix}margin" not in state_dict and isinstance(largest, Tensor):
            state_dict[f"{prefix}margin"] = torch.where(largest.isnan(), 0.0, MARGIN)
        for name in ("image_min", "image_max", "pixel_min", "pixel_max", "_image_threshold", "_pixel_threshold"):
            value = state_dict.get(prefix + name)
            if isinstance(value, Tensor) and value.isnan():
                state_dict[prefix + name] = getattr(self, name).clone()
        state_dict.setdefault(f"{prefix}counts", torch.zeros_like(self.counts))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,  # noqa: ANN401
        *args: Any,  # noqa: ANN401
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        """Take the scores and maps of a batch."""
        super().on_validation_batch_end(trainer, pl_module, outputs, *args, **kwargs)
        if outputs.anomaly_map is not None:
            self._map_maxima.update(outputs.anomaly_map.amax(dim=(-2, -1)).flatten())

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace preliminary image scores by final ones, then compute thresholds and ranges."""
        final = pl_module.calibrate() if isinstance(pl_module, Calibratable) else None
        if final is not None:
            batch = cast("Any", SimpleNamespace(pred_score=final[0], gt_label=final[1]))
            evaluator = getattr(pl_module, "evaluator", None)
            for metric in (
                self._image_threshold_metric,
                self._image_min_max_metric,
                *(metric for metric in getattr(evaluator, "val_metrics", ()) if "pred_score" in metric.fields),
            ):
                if metric.update_called and set(metric.fields) <= {"pred_score", "gt_label"}:
                    metric.reset()
                    metric.update(batch)
        metric = cast("LabelledThreshold", self._image_threshold_metric)
        has_labels = metric.update_called
        if has_labels:
            metric.false_alarm_rate = self.false_alarm_rate
            metric.compute()
        is_normal = has_labels and not metric.labels.any()
        if is_normal:  # anomalib would take the largest value of all pixels
            self._pixel_threshold_metric.reset()
        was_calibrated = self._image_min_max_metric.update_called
        super().on_validation_epoch_end(trainer, pl_module)
        smallest = pl_module.smallest_score if isinstance(pl_module, Calibratable) else 0.0
        if was_calibrated:
            self.image_min.fill_(smallest)
            self.pixel_min.fill_(0)
            self.margin.fill_(MARGIN)
        if is_normal:
            self.calibrate_on_normal_images(metric.scores, self._map_maxima.compute(), smallest)
        elif has_labels:
            self._count(metric.scores, metric.labels)
        self._map_maxima.reset()

    def calibrate_on_normal_images(self, scores: Tensor, map_maxima: Tensor, smallest_score: float) -> None:
        """Set thresholds and ranges from normal images alone, for a share of false alarms.

        Args:
            scores: Raw image scores, shape ``(N,)``.
            map_maxima: Largest value of each raw map, shape ``(N,)``.
            smallest_score: Smallest possible raw image score.
        """
        for values, threshold, minimum, maximum, smallest in (
            (scores, self._image_threshold, self.image_min, self.image_max, smallest_score),
            (map_maxima, self._pixel_threshold, self.pixel_min, self.pixel_max, 0.0),
        ):
            threshold.copy_(false_alarm_threshold(values.to(threshold), self.false_alarm_rate))
            minimum.fill_(smallest)
            # Anomalous scores are unknown: values up to twice the threshold are told apart at the scale of normal ones.
            maximum.copy_(torch.maximum(values.max(), 2 * threshold - smallest))
        self.margin.fill_(MARGIN)
        self._count(scores, torch.zeros_like(scores))

    def _count(self, scores: Tensor, labels: Tensor) -> None:
        """Count normal images, anomalous images, misses and false alarms at the threshold and its sensitivity."""
        if self.enable_normalization:
            normalised = self._normalize(scores, self.image_min, self.image_max, self.image_threshold)
            scores = cast("Tensor", normalised)
        predicted, actual = scores > self.normalized_image_threshold.to(scores), labels.bool()
        counts = [(~actual).sum(), actual.sum(), (actual & ~predicted).sum(), (~actual & predicted).sum()]
        self.counts.copy_(torch.stack(counts))

    def _normalize(  # type: ignore[override]  # anomalib's is static
        self,
        preds: Tensor | None,
        norm_min: Tensor,
        norm_max: Tensor,
        threshold: Tensor,
    ) -> Tensor | None:
        """Normalise values by a piecewise linear function; values above the maximum approach 1.

        Args:
            preds: Raw scores or maps of any shape, or ``None``.
            norm_min: Smallest possible value, which becomes 0.
            norm_max: Value that becomes 1 minus the margin.
            threshold: Value that becomes 0.5. NaN: the middle between minimum and maximum.

        Returns:
            Values in [0, 1] of the same shape and in the same order; ``None`` if ``preds`` is.
        """
        if preds is None:
            return None
        threshold = torch.where(threshold.isnan(), (norm_max + norm_min) / 2, threshold)
        below, above = threshold - norm_min, norm_max - threshold
        # Each half is computed from its own end of the range, so that values such as 1e-10 and 1e-12 stay distinct.
        low = torch.where(below > 0, 0.5 * (preds - norm_min) / below.where(below > 0, 1), 0.5 * (preds >= threshold))
        scale = above.where(above > 0, 1)
        at_end = torch.where(above > 0, 1 - self.margin, 0.5)
        to_end = torch.where(above > 0, norm_max, threshold) - preds
        within = at_end - (at_end - 0.5) * to_end / scale
        beyond = 1 - (1 - at_end) / (1 - to_end.clamp(max=0) / scale)
        high = torch.where(to_end >= 0, within, beyond)
        return torch.where(preds > threshold, high, low).clamp(0, 1)


def snapshot(module: nn.Module | None) -> nn.Module | None:
    """Copy a module and its buffers, so that later changes of the buffers do not affect the copy; share the rest."""
    if module is None:
        return None
    copied = copy.copy(module)
    copied._buffers = {name: None if value is None else value.clone() for name, value in module._buffers.items()}  # noqa: SLF001
    return copied
