# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""From raw scores to what anomalib shows: normalised to [0, 1], with the threshold at one half."""

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
"""What is left at the upper end of [0, 1] for scores beyond those of the validation set."""

THRESHOLD = 0.5
"""Of probabilities, and of maps made of them, as long as no validation data tell a better one."""


@runtime_checkable
class Calibratable(Protocol):
    """A module whose image scores are final only when all validation images have been seen."""

    def calibrate(self) -> tuple[Tensor, Tensor | None] | None:
        """Return the final scores and labels of this process's validation images; ``None`` if they were final."""

    @property
    def smallest_score(self) -> float:
        """The smallest raw image score that there can be; that of maps is 0."""


class MidwayThreshold(F1AdaptiveThreshold):
    """anomalib's F1-adaptive threshold, moved midway to the next lower score, or to 0.

    anomalib's is itself a score, that of the least anomalous image which should be called anomalous; as only scores
    above the threshold are, that image would be called normal, or not, by the last digit. Without anomalous images
    anomalib takes the largest score, and so does this.
    """

    def compute(self) -> Tensor:  # type: ignore[override]  # as anomalib's
        """Return the threshold."""
        threshold: Tensor = super().compute()
        if not self._has_anomalous_samples():
            return threshold
        scores = dim_zero_cat(self.preds)
        lower = torch.cat([scores[scores < threshold], torch.zeros_like(scores[:1])])  # no score is below 0
        return (threshold + lower.max()) / 2


class AprilGanPostProcessor(PostProcessor):
    """anomalib's post-processor, with four changes.

    It keeps the order of scores: anomalib's clips whatever lies more than half the range from the threshold, which ties
    the most anomalous pixels and images and so changes every metric. Here two straight lines join the smallest value
    that there can be, the threshold, and the validation set's largest value at 0, 0.5 and 0.95; what lies beyond
    approaches 1.

    It waits with the image threshold until few-shot scores are final, which they are when the whole validation set has
    been seen (min-max scaling of the map maximum).

    Its image threshold lies between two scores (:class:`MidwayThreshold`).

    And it is defined without validation data: then scores and maps are normalised by the values that they can have at
    all, with the threshold at a probability of one half.

    Args:
        enable_normalization: Normalise scores and maps to [0, 1]. ``None``: as in the checkpoint, else yes.
        enable_thresholding: Compute labels and masks. ``None``: as in the checkpoint, else yes.
        enable_threshold_matching: As anomalib's. It has no effect, since both thresholds are always defined.
        image_sensitivity: Sensitivity of the image label in [0, 1]; 0.5 is the threshold itself. ``None``: as in the
            checkpoint, else 0.5.
        pixel_sensitivity: Sensitivity of the mask in [0, 1], likewise.

    Raises:
        ValueError: If a sensitivity is out of its range.
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
        """Whether thresholds and ranges are those of a validation set."""
        return bool(self.margin > 0)

    def reset_calibration(self, largest_map_value: float = 1.0) -> None:
        """Forget validation statistics.

        Args:
            largest_map_value: The largest value that a raw anomaly map can have.
        """
        for bound, value in (("image_min", 0), ("image_max", 1), ("pixel_min", 0), ("pixel_max", largest_map_value)):
            getattr(self, bound).fill_(value)
        for threshold in (self._image_threshold, self._pixel_threshold):
            threshold.fill_(THRESHOLD)
        self.margin.fill_(0)  # nothing lies beyond these bounds

    def load_checkpoint_config(self, config: dict[str, Any]) -> None:
        """Restore the options that were not passed as arguments."""
        super().load_checkpoint_config({name: value for name, value in config.items() if name not in self._given})

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:  # noqa: ANN401
        """Also take the thresholds of anomalib's own post-processor, which has no margin and may be uncalibrated."""
        largest = state_dict.get(f"{prefix}image_max")
        if f"{prefix}margin" not in state_dict and isinstance(largest, Tensor):
            state_dict[f"{prefix}margin"] = torch.where(largest.isnan(), 0.0, MARGIN)
        for name in ("image_min", "image_max", "pixel_min", "pixel_max", "_image_threshold", "_pixel_threshold"):
            value = state_dict.get(prefix + name)
            if isinstance(value, Tensor) and value.isnan():
                state_dict[prefix + name] = getattr(self, name).clone()
        super()._load_from_state_dict(state_dict, prefix, *args)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the final image scores in place of the preliminary ones, then compute thresholds and ranges."""
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
        """Join minimum, threshold and maximum by straight lines; beyond the maximum, approach 1.

        Args:
            preds: Raw scores or maps of any shape, or ``None``.
            norm_min: Value that becomes 0; there is none below it.
            norm_max: Value that becomes 1 less the margin.
            threshold: Value that becomes 0.5; NaN: halfway.

        Returns:
            Values in [0, 1] in the same order, of the same shape.
        """
        if preds is None:
            return None
        threshold = torch.where(threshold.isnan(), (norm_max + norm_min) / 2, threshold)
        below, above = threshold - norm_min, norm_max - threshold
        # Each measured from its own end: so even values of 1e-10 beside 1e-12 stay apart.
        low = torch.where(below > 0, 0.5 * (preds - norm_min) / below.where(below > 0, 1), 0.5 * (preds >= threshold))
        scale = above.where(above > 0, 1)
        at_end = torch.where(above > 0, 1 - self.margin, 0.5)
        to_end = torch.where(above > 0, norm_max, threshold) - preds
        within = at_end - (at_end - 0.5) * to_end / scale
        beyond = 1 - (1 - at_end) / (1 - to_end.clamp(max=0) / scale)
        high = torch.where(to_end >= 0, within, beyond)
        return torch.where(preds > threshold, high, low).clamp(0, 1)


def snapshot(module: nn.Module | None) -> nn.Module | None:
    """Copy a module together with its buffers, which others may replace in the meantime; all else is shared."""
    if module is None:
        return None
    copied = copy.copy(module)
    copied._buffers = {name: None if value is None else value.clone() for name, value in module._buffers.items()}  # noqa: SLF001
    return copied
