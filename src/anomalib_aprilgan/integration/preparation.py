# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Applies a setup to a model: encodes the class, loads the adapters, reads and encodes the reference images."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from anomalib.data import AnomalibDataModule
from anomalib.post_processing import PostProcessor
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn

from anomalib_aprilgan.integration import runs
from anomalib_aprilgan.integration.calibration import score_normal_images
from anomalib_aprilgan.integration.image_files import describe_problems, find_problems
from anomalib_aprilgan.integration.post_processing import AprilGanPostProcessor
from anomalib_aprilgan.integration.references import draw, files_in_source, read_references
from anomalib_aprilgan.integration.setup import Arguments, Data, overlap, resolve, with_adapter
from anomalib_aprilgan.integration.thresholds import images_needed
from anomalib_aprilgan.method.setup import References, Setup
from anomalib_aprilgan.torch_model import AprilGanModel

__all__ = [
    "Preparable",
    "add_references",
    "apply",
    "ensure_adapters",
    "prepare",
    "reset_calibration",
    "warn_of_overlap",
]

logger = logging.getLogger(__name__)


class Preparable(Protocol):
    """The parts of ``AprilGan`` that are used here."""

    model: AprilGanModel
    pre_processor: nn.Module | None
    post_processor: nn.Module | None
    on_bad_image: str

    @property
    def arguments(self) -> Arguments:
        """What the user asked for."""

    @property
    def smallest_score(self) -> float:
        """Smallest possible raw image score."""


def prepare(module: Preparable, datamodule: AnomalibDataModule | None = None, *, only_missing: bool = False) -> None:
    """Set a model up for what its arguments, its record and the datamodule say, where that changes anything.

    If anything changes that scores depend on, the calibration is reset. A few-shot model that is not calibrated gets
    its thresholds from normal images, unless a validation is about to set them. Other threads wait meanwhile.

    Args:
        module: The model.
        datamodule: A datamodule. ``None``: that of the present run, if there is one.
        only_missing: Do not use the datamodule if class and reference images are set up.

    Raises:
        ValueError: If there are too few reference images or one cannot be read, or if adapters do not fit.
        RuntimeError: If reference images are asked for and there is nothing to draw them from, or if published adapters
            cannot be downloaded.
    """
    trainer, model = runs.running_trainer(module), module.model
    datamodule = datamodule or runs.datamodule_of(trainer)
    with model.state.locked():
        arguments, current = module.arguments, model.state.record
        if model.method.projection == "clip":
            arguments = replace(arguments, adapter=None)
        if only_missing and current.class_name is not None and (model.is_few_shot or not arguments.k_shot):
            datamodule = None
        data = runs.describe(datamodule)
        list_images = _list_usable_images if module.on_bad_image == "skip" else _list_images
        wanted = resolve(arguments, current, data, runs.seed_of(trainer), model.backbone, list_images)
        if wanted != current or data is not None:
            _warn_of_other_category(arguments, current, data)
            if apply(model, wanted, lambda files: _read(files, module.pre_processor)):
                reset_calibration(module)
            if model.method.projection == "adapters" and not (wanted.adapter or model.trained_on):
                logger.warning("The adapters are untrained. Pass `adapter` or a checkpoint, or train them first.")
            warn_of_overlap(model.trained_on, data)
        validates = trainer is not None and trainer.state.fn in {TrainerFn.FITTING, TrainerFn.VALIDATING}
        if not validates and wanted.references.origin in {"argument", "datamodule"}:  # other files may be gone
            source = arguments.few_shot_source
            from_data = data.list_normal_images if data is not None else list
            _calibrate_on_normal_images(module, from_data if source is None else lambda: list_images(source))


def _calibrate_on_normal_images(module: Preparable, list_images: Callable[[], Sequence[str]] = list) -> None:
    """Set the thresholds of a few-shot model from normal images alone, if nothing has set them yet.

    Only as many images are scored as the share of false alarms needs. The references themselves are scored if there are
    not enough others.

    Args:
        module: The model.
        list_images: Lists further normal images.
    """
    model, post_processor, references = module.model, module.post_processor, module.model.state.record.references
    if not isinstance(post_processor, AprilGanPostProcessor) or post_processor.is_calibrated:
        return
    if not post_processor.enable_thresholding or not model.is_few_shot:
        return
    needed = images_needed(post_processor.false_alarm_rate)
    others = [file for file in dict.fromkeys(list_images()) if file not in references.files]
    held_out = draw(others, min(needed, len(others)), references.seed or 0)
    left_out = references.files if len(held_out) < needed and model.k_shot > 1 else ()
    if not held_out and not left_out:
        return
    logger.info("Setting the threshold with %d normal images.", len(held_out) + len(left_out))
    normal = score_normal_images(model, held_out, left_out, lambda files: _read(files, module.pre_processor))
    post_processor.calibrate_on_normal_images(*normal, module.smallest_score)
    calibration = post_processor.calibration
    logger.info("%s", calibration)
    if calibration is not None and calibration.warning:
        logger.warning(calibration.warning)


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
    text_features, tokens, files = None, None, wanted.references.files
    if wanted.class_name != current.class_name and wanted.class_name is not None:
        logger.info("Class name: %s", wanted.class_name)
        text_features = model.encode_class(wanted.class_name)
    if files != current.references.files or (model.is_few_shot and wanted.references == References()):
        logger.info("Reference images: %s", ", ".join(files) or "none")
        tokens = model.encode_references(read(files)) if files else []
    has_other_adapters = _load_adapters(model, wanted)
    model.state.replace(replace(wanted, trained_on=model.trained_on), text_features, tokens)
    return has_other_adapters or text_features is not None or tokens is not None


def ensure_adapters(module: Preparable) -> None:
    """Load the adapters that a model should have, as far as that is known without a datamodule."""
    model = module.model
    if model.method.projection == "clip":
        return
    with model.state.locked():
        wanted = with_adapter(module.arguments, model.state.record, None, model.backbone)
        has_changed = _load_adapters(model, wanted)
        model.state.replace(replace(wanted, trained_on=model.trained_on))
        if has_changed:
            reset_calibration(module)


def _load_adapters(model: AprilGanModel, wanted: Setup) -> bool:
    """Load the wanted adapters if they are not in use; return whether the weights are other ones than before."""
    current = model.state.record
    is_in_use = wanted.adapter == current.adapter and current.adapter_origin != "checkpoint"
    if wanted.adapter is None or is_in_use or wanted.adapter_origin == current.adapter_origin == "checkpoint":
        return False
    before = [weight.clone() for weight in model.adapters.state_dict().values()]
    model.load_adapters(wanted.adapter)
    more = f" and {len(model.trained_on) - 4} more" if len(model.trained_on) > 4 else ""  # noqa: PLR2004
    trained_on = ", ".join(model.trained_on[:4]) or "unknown data"
    logger.info("Adapters: %r, trained on %s%s", wanted.adapter, trained_on, more)
    after = model.adapters.state_dict().values()
    return not all(torch.equal(old, new) for old, new in zip(before, after, strict=True))


def add_references(module: Preparable, source: str | Path) -> None:
    """Add reference images to the memory banks of a prepared model.

    Args:
        module: The model.
        source: A folder, one image, or a text file that lists image paths.

    Raises:
        ValueError: If there are none, or they cannot be read.
    """
    files = files_in_source(source, argument="source")
    images = _read(list(map(str, files)), module.pre_processor)
    with module.model.state.locked():
        if module.model.add_references(images, files):
            reset_calibration(module)
            _calibrate_on_normal_images(module)


def reset_calibration(module: Preparable) -> None:
    """Reset thresholds and ranges, and say so if they came from a validation set."""
    post_processor = module.post_processor
    with module.model.state.locked():
        if isinstance(post_processor, PostProcessor) and _is_calibrated(post_processor):
            logger.warning("The setup has changed: thresholds and ranges are reset. Validate again to renew them.")
        if isinstance(post_processor, AprilGanPostProcessor):
            post_processor.reset_calibration(module.model.largest_map_value)
        elif isinstance(post_processor, PostProcessor):
            for buffer in post_processor.buffers(recurse=False):
                buffer.fill_(float("nan"))  # anomalib's value before a validation
        module.model.reset_calibration()


def _is_calibrated(post_processor: PostProcessor) -> bool:
    if isinstance(post_processor, AprilGanPostProcessor):
        return post_processor.is_calibrated
    return not bool(post_processor.image_threshold.isnan())


def _list_images(source: str) -> list[str]:
    return [str(file) for file in files_in_source(source)]


def _list_usable_images(source: str) -> list[str]:
    sizes, problems = find_problems(_list_images(source))
    if problems:
        logger.warning("%d images of %s are skipped: %s", len(problems), source, describe_problems(problems))
    return list(sizes)


def _read(files: Sequence[str], pre_processor: nn.Module | None) -> Tensor:
    """Read reference images as the tested images are read, shape ``(K, 3, image_size, image_size)``."""
    transform: Any = getattr(pre_processor, "transform", None) or nn.Identity()
    return read_references(map(Path, files), transform)


def warn_of_overlap(trained_on: Sequence[str], data: Data | None) -> None:
    """Warn if adapters were trained on the data that they are tested on, if anything is known of these."""
    shared = overlap(trained_on, data) if data is not None else ()
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
