# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Applies a setup to a model: encodes the class, loads the adapters, reads and encodes the reference images."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anomalib_aprilgan.integration.references import files_in_source, read_references
from anomalib_aprilgan.integration.setup import Arguments, Data, overlap, resolve, with_adapter
from anomalib_aprilgan.method.setup import References, Setup
from anomalib_aprilgan.torch_model import AprilGanModel

__all__ = ["apply", "ensure_adapters", "prepare", "read_images", "warn_of_overlap", "with_options"]

logger = logging.getLogger(__name__)


def prepare(
    model: AprilGanModel, arguments: Arguments, data: Data | None, seed: int, pre_processor: nn.Module | None
) -> bool:
    """Set a model up for what its arguments, its record and the datamodule say.

    Args:
        model: The model.
        arguments: What the user asked for.
        data: Describes the datamodule of the run, if there is one.
        seed: Seed of the draw of reference images.
        pre_processor: Turns reference images into the model's input.

    Returns:
        Whether anything changed that scores depend on. Then the calibration no longer holds.

    Raises:
        ValueError: If there are too few reference images or one cannot be read, or if adapters do not fit.
        RuntimeError: If reference images are asked for and there is nothing to draw them from, or if published adapters
            cannot be downloaded.
    """
    if model.method.projection == "clip":
        arguments = replace(arguments, adapter=None)
    current = model.state.record
    wanted = resolve(arguments, current, data, seed, model.backbone, files_in_source)
    if wanted == current and data is None:
        return False
    _warn_of_other_category(arguments, current, data)
    has_changed = apply(model, wanted, lambda files: read_images(files, pre_processor))
    if model.method.projection == "adapters" and not (wanted.adapter or model.trained_on):
        logger.warning("The adapters are untrained. Pass `adapter` or a checkpoint, or train them first.")
    if data is not None:
        warn_of_overlap(model.trained_on, data)
    return has_changed


def apply(model: AprilGanModel, wanted: Setup, read: Callable[[Sequence[str]], Tensor]) -> bool:
    """Change what differs between the setup of a model and the wanted one. Everything is computed before it is changed.

    Args:
        model: The model.
        wanted: The wanted setup.
        read: Reads image files and pre-processes them, shape ``(K, 3, image_size, image_size)``.

    Returns:
        Whether anything changed that scores depend on.
    """
    current = model.state.record
    text_features, tokens = None, None
    if wanted.class_name != current.class_name and wanted.class_name is not None:
        logger.info("Class name: %s", wanted.class_name)
        text_features = model.encode_class(wanted.class_name)
    files = wanted.references.files
    if files != current.references.files or (model.is_few_shot and wanted.references == References()):
        logger.info("Reference images: %s", ", ".join(files) or "none")
        tokens = model.encode_references(read(files)) if files else []
    has_other_adapters = _load_adapters(model, wanted)
    with model.state.locked():
        wanted = replace(wanted, trained_on=model.trained_on)
        model.state.replace(wanted, text_features, tokens)
    return has_other_adapters or text_features is not None or tokens is not None


def _load_adapters(model: AprilGanModel, wanted: Setup) -> bool:
    """Load the wanted adapters if they are not in use; return whether the weights are other ones than before."""
    current = model.state.record
    is_in_use = wanted.adapter == current.adapter and current.adapter_origin != "checkpoint"
    if wanted.adapter is None or is_in_use or wanted.adapter_origin == current.adapter_origin == "checkpoint":
        return False
    before = [weight.clone() for weight in model.adapters.state_dict().values()]
    model.load_adapters(wanted.adapter)
    logger.info("Adapters: %r, trained on %s", wanted.adapter, ", ".join(model.trained_on) or "unknown data")
    after = model.adapters.state_dict().values()
    return not all(torch.equal(old, new) for old, new in zip(before, after, strict=True))


def ensure_adapters(model: AprilGanModel, arguments: Arguments) -> bool:
    """Load the adapters that a model should have, as far as that is known without a datamodule.

    Args:
        model: The model.
        arguments: What the user asked for.

    Returns:
        Whether the weights are other ones than before.
    """
    if model.method.projection == "clip":
        return False
    wanted = with_adapter(arguments, model.state.record, None, model.backbone)
    has_changed = _load_adapters(model, wanted)
    model.state.replace(replace(wanted, trained_on=model.trained_on))
    return has_changed


def with_options(record: Setup, post_processor: Mapping[str, Any]) -> Setup:
    """Return a record with the options of the post-processor filled in."""
    return replace(record, post_processor=dict(post_processor))


def read_images(files: Sequence[str], pre_processor: nn.Module | None) -> Tensor:
    """Read reference images as the tested images are read.

    Args:
        files: Paths of the images.
        pre_processor: anomalib's component; ``None`` if images are not pre-processed.

    Returns:
        Images of shape ``(K, 3, image_size, image_size)``.
    """
    transform: Any = getattr(pre_processor, "transform", None) or nn.Identity()
    return read_references(map(Path, files), transform)


def warn_of_overlap(trained_on: Sequence[str], data: Data) -> None:
    """Warn if adapters were trained on the data that they are tested on."""
    shared = overlap(trained_on, data)
    if shared:
        logger.warning(
            "The adapters were trained on %s and are tested on %s: the results say nothing about unseen data. Pass "
            "other adapters, or test other data.",
            ", ".join(shared),
            data,
        )


def _warn_of_other_category(arguments: Arguments, current: Setup, data: Data | None) -> None:
    """Say that a class stays, if the datamodule has another category."""
    stays = arguments.class_name is None and current.class_origin in {"checkpoint", "call"}
    if stays and data is not None and data.category and data.category != current.class_name:
        logger.warning(
            "The model was set up for class %r and stays with it, although the datamodule's category is %r. Pass "
            "class_name=%r to change it.",
            current.class_name,
            data.category,
            data.category,
        )
