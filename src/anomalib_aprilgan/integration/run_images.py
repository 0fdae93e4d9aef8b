# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""The image files behind the datasets of a run: their names, and checks before the first one is read."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard, cast

from anomalib import TaskType
from anomalib.data import AnomalibDataModule, AnomalibDataset, ImageBatch, PredictDataset
from anomalib.data.utils import LabelName
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from anomalib_aprilgan.integration.image_files import (
    Problem,
    Size,
    describe_problems,
    find_problems,
    find_unreadable,
    refuse_problems,
)
from anomalib_aprilgan.integration.processes import gather, part_of_this_process
from anomalib_aprilgan.integration.runs import data_sources

__all__ = ["check_files", "datasets_behind", "drop_bad_images", "image_files", "name_unreadable_files"]

logger = logging.getLogger(__name__)


def check_files(loaders: object) -> None:
    """Check the images and masks behind dataloaders of anomalib's datasets.

    The processes of a machine share the files. All of them must call this function, and all raise the error.

    Args:
        loaders: A dataloader, or several.

    Raises:
        ValueError: If files cannot be used, or if batches would hold images of several sizes; the message names files.
    """
    all_loaders, datasets = _as_list(loaders), datasets_behind(loaders)
    masks = {image: mask for dataset in datasets for image, mask in _mask_files(dataset)}
    sizes, problems = _find_problems_together([file for dataset in datasets for file in _image_files(dataset)], masks)
    refuse_problems(problems)
    for loader in all_loaders:
        if _is_collated_by_anomalib(loader):
            _refuse_mixed_sizes(loader.dataset, sizes)


def _find_problems_together(
    files: Sequence[str], masks: Mapping[str, str | None]
) -> tuple[dict[str, Size], list[Problem]]:
    """Find images that cannot be used, as :func:`find_problems` does, with all processes of the run."""
    own = part_of_this_process(list(dict.fromkeys(files)))
    found = gather(find_problems(own, {image: masks[image] for image in own if image in masks}))
    sizes = {file: size for one, _ in found for file, size in one.items()}
    return sizes, list(dict.fromkeys(problem for _, some in found for problem in some))


def drop_bad_images(trainer: Trainer) -> None:
    """Drop images that cannot be used from anomalib's datasets of a run, and name them in a warning.

    The processes of a machine share the files. All of them must call this function.

    Args:
        trainer: The trainer, before it makes the dataloaders of the run.

    Raises:
        ValueError: If no image of a dataset can be used.
    """
    warnings: list[str] = []
    for dataset in _datasets(trainer):
        files = _image_files(dataset)
        _, problems = _find_problems_together(files, dict(_mask_files(dataset)))
        bad = {problem.image for problem in problems}
        usable = [number for number, file in enumerate(files) if file not in bad]
        if not problems:
            continue
        if not usable:
            msg = f"None of the {len(files)} images can be used: {describe_problems(problems)}"
            raise ValueError(msg)
        warnings.append(f"{len(bad)} of {len(files)} images are skipped: {describe_problems(problems)}")
        if isinstance(dataset, AnomalibDataset):
            dataset.subsample(usable, inplace=True)
        elif isinstance(dataset, PredictDataset):
            dataset.image_filenames = [dataset.image_filenames[number] for number in usable]
    if trainer.is_global_zero:
        for warning in dict.fromkeys(warnings):  # validation and test split may be the same
            logger.warning(warning)


def name_unreadable_files(trainer: Trainer, error: BaseException) -> None:
    """Name the files that a run could not read: PIL's errors do not, and some damage shows only in the pixels.

    Args:
        trainer: The trainer of the run that has failed.
        error: What it failed with. Nothing is read unless it may come from PIL.

    Raises:
        ValueError: If files of the run cannot be read.
    """
    if isinstance(error, OSError | SyntaxError) and getattr(error, "errno", None) is None:
        files = [
            file
            for dataset in _datasets(trainer)
            for file in (*_image_files(dataset), *(mask for _, mask in _mask_files(dataset) if mask))
        ]
        refuse_problems(find_unreadable(files))


def _datasets(trainer: Trainer) -> list[object]:
    """List the datasets of a run, each once."""
    found: list[object] = []
    for source in data_sources(trainer):
        datamodules = [source, getattr(source, "validation", None)] if isinstance(source, AnomalibDataModule) else []
        found += [getattr(one, f"{split}_data", None) for one in datamodules for split in ("train", "val", "test")]
        found += [getattr(loader, "dataset", None) for loader in _as_list(source)]
    return list({id(dataset): dataset for dataset in found if dataset is not None}.values())


def image_files(loaders: object) -> list[str]:
    """List the image files behind dataloaders of anomalib's datasets; others are not known.

    Args:
        loaders: A dataloader, or several.
    """
    return [file for dataset in datasets_behind(loaders) for file in _image_files(dataset)]


def datasets_behind(loaders: object) -> list[object]:
    """List the datasets behind one or several dataloaders."""
    return [getattr(loader, "dataset", None) for loader in _as_list(loaders)]


def _as_list(loaders: object) -> list[object]:
    return list(loaders) if isinstance(loaders, list | tuple) else [loaders]


def _is_collated_by_anomalib(loader: object) -> TypeGuard[DataLoader[Any]]:
    """Whether anomalib makes batches of several images, and resizes them all to the largest of the batch."""
    collate = getattr(getattr(loader, "collate_fn", None), "__func__", None)
    sampler = getattr(loader, "batch_sampler", None)
    return (
        collate is cast("Any", ImageBatch.collate).__func__
        and sampler is not None
        and getattr(sampler, "batch_size", 2) != 1
    )


def _refuse_mixed_sizes(dataset: object, sizes: Mapping[str, tuple[int, int]]) -> None:
    """Refuse images of several sizes, unless the dataset has a transform, which in anomalib resizes them."""
    if getattr(dataset, "augmentations", None) or getattr(dataset, "transform", None):
        return
    examples: dict[tuple[int, int], str] = {}
    for file in _image_files(dataset):
        examples.setdefault(sizes[file], file)
    if len(examples) > 1:
        found = " and ".join(f"{file} ({width} x {height})" for (width, height), file in list(examples.items())[:2])
        msg = (
            f"Expected the images of a dataloader to have one size, but found for instance {found}. anomalib resizes "
            "the images of a batch to the largest one, so that scores would depend on the batch. Use `batch_size=1`, "
            "or let the dataset resize each image as the model does: `PredictDataset(path, transform=resize)`, or "
            "`dataset.augmentations = resize`, with `resize = model.pre_processor.resize`."
        )
        raise ValueError(msg)


def _image_files(dataset: object) -> list[str]:
    if isinstance(dataset, AnomalibDataset):
        return [str(path) for path in dataset.samples.image_path]
    return [str(path) for path in dataset.image_filenames] if isinstance(dataset, PredictDataset) else []


def _mask_files(dataset: object) -> list[tuple[str, str | None]]:
    """List the abnormal images of a dataset with masks, each with its mask file. Other masks are never read."""
    if not isinstance(dataset, AnomalibDataset) or dataset.samples.attrs.get("task") != TaskType.SEGMENTATION:
        return []
    abnormal = dataset.samples[dataset.samples.label_index == LabelName.ABNORMAL]
    return [(str(image), mask) for image, mask in zip(abnormal.image_path, abnormal.mask_path, strict=True)]
