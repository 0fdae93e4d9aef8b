# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Post-processing: normalises raw scores and maps to [0, 1] with the threshold at 0.5, and computes thresholds."""

import copy
from types import SimpleNamespace
from typing import Any, Protocol, cast, runtime_checkable

import torch
from anomalib.metrics import F1AdaptiveThreshold
from anomalib.post_processing import PostProcessor
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torchmetrics.utilities.data import dim_zero_cat

__all__ = ["AprilGanPostProcessor", "Calibratable", "MidwayThreshold", "snapshot"]

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


class MidwayThreshold(F1AdaptiveThreshold):
    """anomalib's F1-adaptive threshold, moved to the middle between it and the next lower score (or 0).

    anomalib's threshold equals the score of the least anomalous image that should be labelled anomalous. Since only
    scores above the threshold are labelled so, rounding errors would decide about that image. Without anomalous images
    the threshold is the largest score, as in anomalib.
    """

    def compute(self) -> Tensor:  # type: ignore[override]  # as anomalib's
        """Return the threshold, a scalar."""
        threshold: Tensor = super().compute()
        if not self._has_anomalous_samples():
            return threshold
        scores = dim_zero_cat(self.preds)
        lower = torch.cat([scores[scores < threshold], torch.zeros_like(scores[:1])])  # scores are not negative
        return (threshold + lower.max()) / 2


class AprilGanPostProcessor(PostProcessor):
    """anomalib's post-processor with four changes.

    1. It keeps the order of scores. anomalib clips values that lie more than half the range from the threshold, which
       makes the most anomalous pixels and images equal and thereby changes metrics. Here a piecewise linear function
       maps the smallest possible value, the threshold, and the largest value of the validation set to 0, 0.5 and 0.95.
       Larger values approach 1.
    2. It computes the image threshold at the end of the validation, because few-shot scores are final only then
       (min-max scaling of the map maximum over the whole set).
    3. The image threshold lies between two scores, see :class:`MidwayThreshold`.
    4. It works without validation data. Scores and maps are then normalised by their smallest and largest possible
       values, with the threshold at a probability of 0.5.

    Args:
        enable_normalization: Normalise scores and maps to [0, 1]. ``None``: value of the checkpoint, otherwise true.
        enable_thresholding: Compute labels and masks. ``None``: value of the checkpoint, otherwise true.
        enable_threshold_matching: As in anomalib. It has no effect, since both thresholds are always defined.
        image_sensitivity: Sensitivity of the image label in [0, 1]; 0.5 keeps the threshold. ``None``: value of the
            checkpoint, otherwise 0.5.
        pixel_sensitivity: Sensitivity of the mask in [0, 1]; the same applies.

    Raises:
        ValueError: If a sensitivity is not in [0, 1].
    """

    def __init__(
        self,
        enable_normalization: bool | None = None,
        enable_thresholding: bool | None = None,
        enable_threshold_matching: bool | None = None,
        image_sensitivity: float | None = None,
        pixel_sensitivity: float | None = None,
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
        given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
        super().__init__(**given)
        self._given = frozenset(given)
        self.register_buffer("margin", torch.tensor(0.0))
        self.margin: Tensor
        self._image_threshold_metric = MidwayThreshold(fields=["pred_score", "gt_label"], strict=False)
        self.reset_calibration()

    @property
    def is_calibrated(self) -> bool:
        """Whether thresholds and ranges were computed on a validation set."""
        return bool(self.margin > 0)

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
        super()._load_from_state_dict(state_dict, prefix, *args)

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
        was_calibrated = self._image_min_max_metric.update_called
        super().on_validation_epoch_end(trainer, pl_module)
        if was_calibrated:
            self.image_min.fill_(pl_module.smallest_score if isinstance(pl_module, Calibratable) else 0)
            self.pixel_min.fill_(0)
            self.margin.fill_(MARGIN)

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
