# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""What a run of anomalib's Engine says: its datamodule, its seed, and its image files."""

import os
from collections.abc import Iterator, Mapping
from typing import Any, TypeGuard, cast

from anomalib import TaskType
from anomalib.data import AnomalibDataModule, AnomalibDataset, ImageBatch, MVTecAD, PredictDataset, Visa
from anomalib.data.utils import LabelName
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.trainer.states import TrainerFn, TrainerStatus
from torch import nn
from torch.utils.data import DataLoader
from torchmetrics import Metric

from anomalib_aprilgan.integration.image_files import check_image_files
from anomalib_aprilgan.integration.references import normal_training_files
from anomalib_aprilgan.integration.setup import Data

__all__ = [
    "DEFAULT_SEED",
    "check_files",
    "command_line_seed",
    "command_line_value",
    "datamodule_of",
    "describe",
    "image_files",
    "lacks_validation_split",
    "refuse_during_run",
    "reset_metrics",
    "running_trainer",
    "seed_of",
    "use_own_dataloader",
]

DEFAULT_SEED = 0
"""Seed where `seed_everything` was not called; Lightning's default as well."""


def command_line_value(trainer: Trainer | None, name: str) -> object:
    """Return a value of the configuration of anomalib's command, which leaves it in one of the trainer's callbacks.

    Args:
        trainer: The run's trainer.
        name: Name of the value, for instance ``"trainer.max_epochs"``.

    Returns:
        The value; ``None`` if it is not given, and outside of anomalib's command.
    """
    for callback in getattr(trainer, "callbacks", ()):
        if isinstance(callback, SaveConfigCallback):
            return callback.config.get(name)
    return None


def command_line_seed(trainer: Trainer | None) -> int | None:
    """Return the number of ``--seed_everything`` on anomalib's command line, which 2.7 reads but does not apply.

    Args:
        trainer: The run's trainer.
    """
    seed = command_line_value(trainer, "seed_everything")
    return seed if isinstance(seed, int) and not isinstance(seed, bool) else None


def seed_of(trainer: Trainer | None) -> int:
    """Return the seed of a run.

    Args:
        trainer: The run's trainer; ``None`` outside a run.

    Returns:
        The number of ``--seed_everything`` on the command line, else that of the last call of ``seed_everything``, else
        0. The state of the random generators has no influence.
    """
    seed = command_line_seed(trainer)
    if seed is not None:
        return seed
    last_call = os.environ.get("PL_GLOBAL_SEED", "")
    return int(last_call) if last_call.isdecimal() else DEFAULT_SEED


def running_trainer(module: object) -> Trainer | None:
    """Return the trainer of the present run of a module; ``None`` outside a run, whatever ran it before."""
    trainer: Trainer | None = getattr(module, "_trainer", None)
    return trainer if trainer is not None and trainer.state.status == TrainerStatus.RUNNING else None


def refuse_during_run(module: object, call: str) -> None:
    """Refuse a call that would change a model while an Engine runs it.

    Args:
        module: The model.
        call: Name of the call.

    Raises:
        RuntimeError: If an Engine is running the model.
    """
    if running_trainer(module) is not None:
        msg = f"An Engine is running the model. Call `{call}` before or after the run, not during it."
        raise RuntimeError(msg)


def _data_sources(trainer: Trainer) -> Iterator[object]:
    """Yield where the dataloaders of the run come from: a datamodule, a model, or dataloaders.

    Lightning has no public way to ask. ``trainer.datamodule`` may belong to an earlier run, since a run without a
    datamodule leaves it in place.
    """
    loops = {
        TrainerFn.FITTING: (trainer.fit_loop, trainer.fit_loop.epoch_loop.val_loop),
        TrainerFn.VALIDATING: (trainer.validate_loop,),
        TrainerFn.TESTING: (trainer.test_loop,),
        TrainerFn.PREDICTING: (trainer.predict_loop,),
    }
    for loop in loops[trainer.state.fn] if trainer.state.fn is not None else ():
        yield loop._data_source.instance  # noqa: SLF001


def datamodule_of(trainer: Trainer | None) -> AnomalibDataModule | None:
    """Return the datamodule that a run takes its images from; ``None`` if there is none."""
    for source in _data_sources(trainer) if trainer is not None else ():
        if isinstance(source, AnomalibDataModule):
            return source
    return None


def lacks_validation_split(datamodule: AnomalibDataModule | None) -> bool:
    """Whether a datamodule has no validation split, but would be asked for it and fail."""
    uses_default = type(datamodule).val_dataloader is AnomalibDataModule.val_dataloader if datamodule else False
    return uses_default and not hasattr(datamodule, "val_data")


def use_own_dataloader(trainer: Trainer, module: LightningModule) -> None:
    """Let a validation ask the module for images, not a datamodule without a validation split.

    Lightning asks the datamodule where there is one, else the module. anomalib's datamodules fail without a validation
    split; the module answers that there are no images. Lightning chooses anew at the start of each run.

    Args:
        trainer: The trainer of a validation.
        module: Its module.
    """
    trainer.validate_loop._data_source.instance = module  # noqa: SLF001


def reset_metrics(*components: nn.Module | None) -> None:
    """Reset metrics, which may hold the scores of a run that was aborted.

    Args:
        *components: A post-processor, or the metrics of an evaluator.
    """
    for component in components:
        for metric in component.modules() if component is not None else ():
            if isinstance(metric, Metric):
                metric.reset()


def describe(datamodule: AnomalibDataModule | None) -> Data | None:
    """Describe a datamodule.

    Args:
        datamodule: The datamodule. For one that tests on another one, its ``validation``, that one is described.

    Returns:
        Name, category and normal images; ``None`` without a datamodule.
    """
    if datamodule is None:
        return None
    described: AnomalibDataModule = getattr(datamodule, "validation", None) or datamodule

    def list_normal_images() -> list[str]:
        if not hasattr(described, "train_data"):
            described.prepare_data()
            described.setup()
        return [str(file) for file in normal_training_files(described)]

    known = next((known.__name__ for known in (Visa, MVTecAD) if isinstance(described, known)), described.name)
    return Data(known, described.category or "", list_normal_images)


def check_files(loaders: object) -> None:
    """Check the images and masks behind dataloaders of anomalib's datasets.

    Args:
        loaders: A dataloader, or several.

    Raises:
        ValueError: If files cannot be used, or if batches would hold images of several sizes; the message names files.
    """
    all_loaders = _as_list(loaders)
    datasets = [getattr(loader, "dataset", None) for loader in all_loaders]
    masks = {image: mask for dataset in datasets for image, mask in _mask_files(dataset)}
    sizes = check_image_files([file for dataset in datasets for file in _image_files(dataset)], masks)
    for loader in all_loaders:
        if _is_collated_by_anomalib(loader):
            _refuse_mixed_sizes(loader.dataset, sizes)


def image_files(loaders: object) -> list[str]:
    """List the image files behind dataloaders of anomalib's datasets; others are not known.

    Args:
        loaders: A dataloader, or several.
    """
    return [file for loader in _as_list(loaders) for file in _image_files(getattr(loader, "dataset", None))]


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
