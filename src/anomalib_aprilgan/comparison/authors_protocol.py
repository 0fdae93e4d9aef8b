# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""The paper's metrics as the authors compute them, to compare runs with published figures.

Their protocol differs from anomalib's in three points. Scores and maps are used before post-processing. Masks are
resized bilinearly and cut at 0.5. PRO is not the exact area below the curve (:class:`AuthorsPRO`).
"""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from anomalib.data import Batch
from anomalib.data.utils import read_mask
from anomalib.metrics import AnomalibMetric
from anomalib.utils.cv import connected_components_cpu
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor
from torchmetrics import Metric

from anomalib_aprilgan.integration.metrics import ranking_metrics, sort_values
from anomalib_aprilgan.integration.pre_processing import EightBitResize

__all__ = ["AuthorsPRO", "AuthorsProtocol", "authors_masks"]

STEPS = 200
FALSE_POSITIVE_LIMIT = 0.3


class _AuthorsPRO(Metric):
    """The computation of :class:`AuthorsPRO`, on tensors."""

    higher_is_better = True
    full_state_update = False
    maps: list[Tensor]
    masks: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:  # noqa: ANN401  # torchmetrics' arguments
        super().__init__(**kwargs)
        self.add_state("maps", default=[], dist_reduce_fx="cat")
        self.add_state("masks", default=[], dist_reduce_fx="cat")

    def update(self, maps: Tensor, masks: Tensor) -> None:
        """Add a batch.

        Args:
            maps: Anomaly maps of any range, shape ``(N, H, W)`` or ``(N, 1, H, W)``.
            masks: Ground truth, 0 or 1, of the same shape.
        """
        self.maps.append(maps.reshape(-1, *maps.shape[-2:]))
        self.masks.append(masks.reshape(-1, *masks.shape[-2:]))

    def compute(self) -> Tensor:
        """Return PRO in [0, 1]; NaN if there are no anomalous regions, or no normal pixels."""
        extremes = [torch.stack(maps.aminmax()) for maps, _ in self._batches()]
        smallest, largest = (float(getattr(torch.stack(extremes), end)()) for end in ("min", "max"))
        thresholds = smallest + (largest - smallest) / STEPS * torch.arange(STEPS, dtype=torch.float64)
        outside, regions = torch.zeros(STEPS + 1), [torch.empty(0, STEPS + 1)]
        for maps, masks in self._batches():
            above = _pixels_above(maps, masks, thresholds)
            outside = outside + above[0]
            regions.append(above[1:])
        found = torch.cat(regions)
        if not len(found) or not outside[0]:
            return torch.tensor(torch.nan)
        overlap = (found[:, 1:] / found[:, :1]).mean(dim=0)
        false_positive_rate = outside[1:] / outside[0]
        kept = false_positive_rate < FALSE_POSITIVE_LIMIT
        rate, overlap = false_positive_rate[kept].flip(0), overlap[kept].flip(0)
        extent = rate[-1] - rate[0]
        # The authors' code divides by 0 if all kept thresholds have the same false-positive rate.
        return torch.trapezoid(overlap, (rate - rate[0]) / extent) if extent > 0 else overlap.max()

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Return the batches, or one batch if they were gathered from several processes; on the CPU."""
        maps, masks = (state if isinstance(state, list) else [state] for state in (self.maps, self.masks))
        return ((one.cpu(), other.cpu()) for one, other in zip(maps, masks, strict=True))


def _pixels_above(maps: Tensor, masks: Tensor, thresholds: Tensor) -> Tensor:
    """Count pixels outside all regions (row 0) and in each region: all pixels, then the pixels above each threshold."""
    regions = connected_components_cpu(masks[:, None].float())[:, 0].long()
    level = torch.bucketize(maps.double(), thresholds)  # number of thresholds below the pixel's value
    rows, columns = int(regions.max()) + 1, len(thresholds) + 1
    histogram = torch.bincount((regions * columns + level).flatten(), minlength=rows * columns).reshape(rows, columns)
    return histogram.flip(1).cumsum(1).flip(1).double()


class AuthorsPRO(AnomalibMetric, _AuthorsPRO):  # type: ignore[misc]  # as anomalib's own metrics
    """PRO as the authors compute it, for anomalib's evaluator.

    There are 200 thresholds at equal steps from the smallest to the largest map value of the whole set. At each
    threshold, the overlap is the fraction of a connected region (8 neighbours) above it, averaged over all regions.
    Thresholds with a false-positive rate below 0.3 are kept; their rates are rescaled by their own minimum and maximum
    to [0, 1], and the overlap is integrated over them. For maps that saturate, the result is far from the exact area
    that anomalib's AUPRO computes.

    The result depends on the values of the maps, not only on their order, so raw maps must be passed.

    Args:
        fields: Names of the batch's maps and masks.
        prefix: Prefix of the metric's name.
        strict: Raise an error if a batch has no masks.
    """


def authors_masks(batch: Batch[Any], size: int) -> Tensor | None:
    """Read the masks of a batch from their files and resize them as the authors do: bilinearly, cut at 0.5.

    Args:
        batch: A batch with labels and paths of masks.
        size: Height and width of the maps in pixels.

    Returns:
        Masks of shape ``(N, size, size)``, 0 or 1. ``None`` if the batch has no masks. If the masks are not stored in
        one file per anomalous image, the masks of the batch, which the model's own transform has resized.
    """
    if batch.gt_mask is None:
        return None
    of_batch = batch.gt_mask.as_subclass(Tensor)
    labels = cast("Tensor", batch.gt_label).tolist()
    paths = [Path(str(path)) if label else None for path, label in zip(batch.mask_path or labels, labels, strict=True)]
    if not all(path is None or path.is_file() for path in paths):
        return of_batch
    resize, empty = EightBitResize(size), torch.zeros(size, size, dtype=of_batch.dtype)
    masks = [empty if path is None else resize(read_mask(path, as_tensor=True)) for path in paths]
    return torch.stack([mask.as_subclass(Tensor).to(of_batch) for mask in masks])


class AuthorsProtocol(Callback):
    """Computes the paper's seven metrics by the authors' protocol, in the same pass as anomalib's metrics.

    A callback of the engine gets each batch before the model's own callbacks, so before post-processing.
    """

    def __init__(self) -> None:
        image: dict[str, Any] = {"fields": ["pred_score", "gt_label"], "prefix": "authors_image_", "strict": False}
        pixel: dict[str, Any] = {"fields": ["anomaly_map", "gt_mask"], "prefix": "authors_pixel_", "strict": False}
        self._metrics = [*ranking_metrics(**image), *ranking_metrics(**pixel), AuthorsPRO(**pixel)]
        for metric in self._metrics:
            metric.compute_on_cpu = True

    @property
    def values(self) -> dict[str, float]:
        """Metrics by name; metrics without values are left out."""
        sort_values(self._metrics)
        computed = {metric.name.replace("AuthorsPRO", "PRO"): metric.compute() for metric in self._metrics}
        return {name: float(value) for name, value in computed.items() if value is not None}

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reset the metrics."""
        del trainer, pl_module
        for metric in self._metrics:
            metric.reset()

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: STEP_OUTPUT,
        batch: Batch[Any],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add the raw scores and maps of a batch."""
        del trainer, pl_module, outputs, batch_idx, dataloader_idx
        maps = batch.anomaly_map
        raw = SimpleNamespace(
            pred_score=batch.pred_score,
            gt_label=batch.gt_label,
            anomaly_map=maps,
            gt_mask=None if maps is None else authors_masks(batch, maps.shape[-1]),
        )
        for metric in self._metrics:
            metric.update(cast("Any", raw))
