# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""8-bit quantization of OpenVINO models, restricted to the image tower, which takes most of the time.

The rest keeps full precision: the logit scale of 100 would amplify rounding errors of similarities, and resizing needs
exact 8-bit values. This file needs nncf, which is part of the extra ``export``.
"""

from collections.abc import Iterable
from typing import Any

import nncf
import torch
from anomalib.data import AnomalibDataModule, ImageBatch
from anomalib.deploy import CompressionType
from anomalib.metrics import F1Score
from torch import Tensor
from torch.utils.data import Dataset, Subset
from torchmetrics import Metric
from torchvision.transforms.v2 import functional as F  # noqa: N812  # torchvision's own custom
from torchvision.tv_tensors import Mask

from anomalib_aprilgan.integration.pre_processing import EightBitResize
from anomalib_aprilgan.integration.quiet import quietly

__all__ = ["compress"]

TOWER = "model.clip."
"""Prefix of the names of operations in CLIP's image tower."""

LARGEST_SET = 300
"""Largest number of images for the calibration of activation ranges; nncf's default."""

OpenVinoModel = Any
"""A model of openvino. The type annotations of openvino and nncf do not match."""


def compress(
    model: OpenVinoModel,
    compression_type: CompressionType | None,
    datamodule: AnomalibDataModule | None,
    metric: Metric | None,
    max_drop: float,
    image_size: int,
) -> OpenVinoModel:
    """Compress the image tower.

    Args:
        model: The exported model.
        compression_type: ``INT8``, ``INT8_PTQ`` or ``INT8_ACQ``.
        datamodule: Images for the last two.
        metric: Metric for the last one.
        max_drop: Largest allowed decrease of the metric, in [0, 1].
        image_size: Height and width of the model's maps in pixels.

    Returns:
        The compressed model.

    Raises:
        ValueError: If an argument is invalid, or the datamodule has no images.
    """
    if compression_type == CompressionType.INT8_PTQ and datamodule is not None:
        return quantize(model, datamodule)
    if compression_type == CompressionType.INT8_ACQ and datamodule is not None:
        return quantize_within(max_drop, model, datamodule, metric, image_size)
    return compress_weights(model)


def compress_weights(model: OpenVinoModel) -> OpenVinoModel:
    """Compress the weights to 8 bits; activations keep full precision.

    Args:
        model: The exported model.

    Returns:
        The compressed model.
    """
    with quietly():
        return nncf.compress_weights(model, ignored_scope=_outside(model))


def quantize(model: OpenVinoModel, datamodule: AnomalibDataModule) -> OpenVinoModel:
    """Quantize weights and activations to 8 bits.

    Args:
        model: The exported model.
        datamodule: Provides the images for the calibration of activation ranges: up to 300 evenly spaced validation
            images, or training images if there are none.

    Returns:
        The quantized model.

    Raises:
        ValueError: If the datamodule has no images.
    """
    with quietly():
        return nncf.quantize(model, _calibration(model, datamodule), **_quantization_arguments(model))


def quantize_within(
    max_drop: float, model: OpenVinoModel, datamodule: AnomalibDataModule, metric: Metric | None, image_size: int
) -> OpenVinoModel:
    """Quantize weights and activations to 8 bits, except for layers that would lower a metric too much.

    Args:
        max_drop: Largest allowed decrease of the metric, in [0, 1].
        model: The exported model.
        datamodule: Provides images as for :func:`quantize`, and labelled test images.
        metric: One of anomalib's metrics, for which larger is better. ``None``: F1 of the image labels.
        image_size: Height and width of the model's maps in pixels.

    Returns:
        The quantized model.

    Raises:
        ValueError: If ``max_drop`` is not in [0, 1], the metric does not fit the model's outputs, or the datamodule has
            no images.
    """
    if not 0 <= max_drop <= 1:
        msg = f"Expected argument `max_drop` to be in [0, 1], but got {max_drop!r}."
        raise ValueError(msg)
    outputs_of_model = {output.any_name for output in model.outputs}
    if metric is None and "pred_label" not in outputs_of_model:
        msg = (
            f"Expected argument `metric` to use an output of the model ({', '.join(sorted(outputs_of_model))}), but "
            "got None, which uses pred_label. Pass a metric of these outputs, or export a model with a post-processor."
        )
        raise ValueError(msg)
    measure = F1Score(fields=["pred_label", "gt_label"]) if metric is None else metric
    resize = EightBitResize(image_size)

    def validate(compiled: OpenVinoModel, items: Iterable[Any]) -> tuple[float, None]:
        measure.reset()
        for item in items:
            outputs = compiled(_input(model, item))
            predictions: dict[str, Any] = {
                name.any_name: torch.from_numpy(value.copy()) for name, value in outputs.items()
            }
            mask = None if item.gt_mask is None else resize(Mask(item.gt_mask))[None]
            label = torch.as_tensor(item.gt_label).reshape(1)
            measure.update(ImageBatch(image=item.image[None], gt_label=label, gt_mask=mask, **predictions))
        return float(measure.compute()), None

    with quietly():
        calibration = _calibration(model, datamodule)
        if not getattr(datamodule, "test_data", None):
            msg = f"Expected argument `datamodule` to have labelled test images, but {datamodule.name} has none."
            raise ValueError(msg)
        validation = nncf.Dataset(datamodule.test_data)
        return nncf.quantize_with_accuracy_control(
            model, calibration, validation, validate, max_drop=max_drop, **_quantization_arguments(model)
        )


def _quantization_arguments(model: OpenVinoModel) -> dict[str, Any]:
    """Return the arguments of nncf's quantization: transformer, image tower only, number of images."""
    return {"model_type": nncf.ModelType.TRANSFORMER, "ignored_scope": _outside(model), "subset_size": LARGEST_SET}


def _outside(model: OpenVinoModel) -> nncf.IgnoredScope:
    """Return the operations outside the image tower as nncf's ignored scope. Constants belong to no module."""
    operations = [op.get_friendly_name() for op in model.get_ops() if op.get_type_name() != "Constant"]
    return nncf.IgnoredScope(names=[name for name in operations if not name.startswith(TOWER)], validate=False)


def _calibration(model: OpenVinoModel, datamodule: AnomalibDataModule) -> Any:  # noqa: ANN401  # a dataset of nncf
    """Return the calibration images as a dataset of nncf."""
    datamodule.prepare_data()
    datamodule.setup()
    dataset: Dataset[Any] | None = getattr(datamodule, "val_data", None) or getattr(datamodule, "train_data", None)
    number = len(dataset) if dataset is not None else 0  # type: ignore[arg-type]
    if dataset is None or not number:
        msg = f"Expected argument `datamodule` to have validation or training images, but {datamodule.name} has none."
        raise ValueError(msg)
    chosen = torch.linspace(0, number - 1, min(number, LARGEST_SET)).round().int().tolist()
    return nncf.Dataset(Subset(dataset, chosen), lambda item: _input(model, item))


def _input(model: OpenVinoModel, item: Any) -> Any:  # noqa: ANN401
    """Convert an item of a dataset to a batch of one image, resized if the model has a fixed input size."""
    image: Tensor = item.image[None].as_subclass(Tensor)
    height, width = model.input(0).partial_shape[2], model.input(0).partial_shape[3]
    if height.is_static and width.is_static:
        image = F.resize(image, [height.get_length(), width.get_length()], antialias=True)
    return image.numpy()
