# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Training data of the adapters: the labelled images of all categories of auxiliary data sets (section 4.1).

The paper (arXiv 2305.17382) trains on the test split of VisA for tests on MVTec AD, and vice versa: on normal and
abnormal images with masks, whose classes are not tested.
"""

import copy
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pandas as pd
from anomalib.data import AnomalibDataModule
from anomalib.data.utils import LabelName
from lightning.pytorch.utilities.types import EVAL_DATALOADERS
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import Transform

from anomalib_aprilgan.integration.auxiliary_dataset import AuxiliaryDataset, AuxiliaryItem, Category, EpochSampler
from anomalib_aprilgan.integration.command_line import with_short_errors
from anomalib_aprilgan.integration.runs import seed_of

__all__ = ["AuxiliaryDataModule", "category_folders", "category_names"]

logger = logging.getLogger(__name__)


class AuxiliaryDataModule(AnomalibDataModule):
    """Provides the labelled images of all categories of one or several anomalib datamodules to train adapters on.

    The labelled images are the test split of each category: normal and abnormal images with masks. The text features
    of an image are computed for its own category. A ``Folder`` is one category, named after the datamodule.

    Args:
        source: An image datamodule of anomalib with masks, or a list of them. If its data set has several categories,
            all of them are used, whatever the category of the datamodule is.
        categories: Names of the categories to train on. ``None``: all categories.
        mosaic_probability: Probability in [0, 1] that a training image is replaced by a 2 x 2 mosaic of four random
            images of its category. The paper uses 0.2 for MVTec AD and 0 for VisA.
        validation: A datamodule whose test split is validated after each epoch, and tested by ``Engine.train``. It is
            not used for training.
        train_batch_size: Number of images per training step; 8 in the paper.
        eval_batch_size: Number of images per validation step.
        num_workers: Number of processes that load images.
        train_augmentations: Transform of image and mask, applied before resizing.
        seed: Seed of the order of images and of the mosaics. ``None``: number of ``--seed_everything``,
            else of the last call of ``seed_everything``, else 0.

    Raises:
        ValueError: If an argument is invalid, a category does not exist, or a source has no masks or no anomalies.

    Examples:
        >>> from anomalib.data import Visa
        >>> datamodule = AuxiliaryDataModule(source=Visa(root="./datasets/visa"))
    """

    @with_short_errors
    def __init__(
        self,
        source: AnomalibDataModule | list[AnomalibDataModule],
        categories: list[str] | None = None,
        mosaic_probability: float = 0.0,
        validation: AnomalibDataModule | None = None,
        train_batch_size: int = 8,
        eval_batch_size: int = 8,
        num_workers: int = 8,
        train_augmentations: Transform | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__(
            train_batch_size=train_batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            train_augmentations=train_augmentations,
            seed=seed,
        )
        self.sources = list(source) if isinstance(source, list | tuple) else [source]
        if not self.sources or not all(isinstance(one, AnomalibDataModule) for one in self.sources):
            msg = f"Expected argument `source` to be an anomalib datamodule or a list of them, but got {source!r}."
            raise ValueError(msg)
        if not 0 <= mosaic_probability <= 1:
            msg = f"Expected argument `mosaic_probability` to be in [0, 1], but got {mosaic_probability}."
            raise ValueError(msg)
        if categories is not None and (isinstance(categories, str) or not categories):
            msg = f"Expected argument `categories` to be a list of names, or None for all, but got {categories!r}."
            raise ValueError(msg)
        self.categories = categories
        self.mosaic_probability = mosaic_probability
        self.validation = validation

    @property
    def trained_on(self) -> tuple[str, ...]:
        """Names of the categories that are trained on, as ``source/category``, without duplicates."""
        names = (f"{category.source}/{category.class_name}" for category in self.train_data.categories)
        return tuple(dict.fromkeys(names))

    def prepare_data(self) -> None:
        """Let each datamodule prepare its data, for example by a download."""
        for datamodule in (*self.sources, *([self.validation] if self.validation else [])):
            datamodule.prepare_data()

    def setup(self, stage: str | None = None) -> None:
        """Collect the labelled images of all categories."""
        if not hasattr(self, "train_data"):
            self._setup(stage)
        self._update_augmentations()

    def _setup(self, _stage: str | None = None) -> None:
        found = [category for source in self.sources for category in _categories_of(source, self.categories)]
        self._require_categories(found)
        if not any(category.dataset.has_anomalous for category in found):
            names = ", ".join(type(source).__name__ for source in self.sources)
            msg = (
                f"Expected argument `source` to have abnormal images in its test split, but {names} has none. Adapters "
                "are trained on abnormal images with masks."
            )
            raise ValueError(msg)
        self.train_data: AuxiliaryDataset = AuxiliaryDataset(found, self.mosaic_probability)
        logger.info("Training on %d images of %d categories: %s", len(self.train_data), len(found), self.trained_on)
        if self.validation is not None:
            name = self.validation.category or self.validation.name
            self.val_data = AuxiliaryDataset([_load_category(self.validation, self.validation.category, name)])
            self.test_data = copy.copy(self.val_data)

    def _require_categories(self, found: Sequence[Category]) -> None:
        """Check that all requested categories were found."""
        missing = sorted(set(self.categories or ()) - {category.class_name for category in found})
        if missing:
            available = [name for source in self.sources for name in category_names(source)]
            msg = f"Expected argument `categories` to be names from {available}, but got {missing}."
            raise ValueError(msg)

    def train_dataloader(self) -> DataLoader[AuxiliaryItem]:
        """Return the training images in a new random order each epoch.

        Order and mosaics depend only on seed and epoch. A resumed training therefore uses the same images as an
        uninterrupted one, and several processes together use the same batches as one process.
        """
        trainer = self.trainer
        seed = self.seed if self.seed is not None else seed_of(trainer)
        self.train_data.seed = seed
        sampler = EpochSampler(
            self.train_data,
            num_replicas=trainer.world_size if trainer else 1,
            rank=trainer.global_rank if trainer else 0,
            seed=seed,
        )
        return DataLoader(
            dataset=cast("Any", self.train_data),
            sampler=sampler,
            batch_size=self.train_batch_size,
            num_workers=self.num_workers,
            collate_fn=self.external_collate_fn or self.train_data.collate_fn,
        )

    def val_dataloader(self) -> EVAL_DATALOADERS:
        """Return the images of ``validation``; nothing if there is none."""
        return super().val_dataloader() if self.validation is not None else []

    def test_dataloader(self) -> EVAL_DATALOADERS:
        """Return the images of ``validation``; nothing if there is none."""
        return super().test_dataloader() if self.validation is not None else []


def category_names(source: AnomalibDataModule) -> list[str]:
    """List the categories of a datamodule's data set.

    Args:
        source: A datamodule whose data are on disk.

    Returns:
        Names of the category folders that contain a test split, in alphabetical order. If there are none: category of
        the datamodule, or its name.
    """
    return category_folders(source) or [source.category or source.name]


def category_folders(source: AnomalibDataModule) -> list[str]:
    """List the category folders of a datamodule's data set that are on disk, as :func:`category_names` does.

    Args:
        source: A datamodule, whose data may be missing.

    Returns:
        Names of the folders; none if the data are missing, or the datamodule has no categories.
    """
    root = getattr(source, "split_root", None) or getattr(source, "root", None)
    if not source.category or root is None or not Path(root).is_dir():
        return []
    return sorted(folder.name for folder in Path(root).iterdir() if any(folder.glob("test*/")))


def _categories_of(source: AnomalibDataModule, wanted: Sequence[str] | None) -> list[Category]:
    names = category_names(source)
    return [
        _load_category(source, name if source.category else "", name) for name in names if not wanted or name in wanted
    ]


def _load_category(source: AnomalibDataModule, category: str, class_name: str) -> Category:
    """Read the test split of one category.

    Args:
        source: A datamodule, which is not changed.
        category: Name of the category; empty if the datamodule has none.
        class_name: Class name for the prompts.

    Returns:
        The category with its labelled images.

    Raises:
        ValueError: If the category cannot be read, or an abnormal image has no mask.
    """
    datamodule = copy.copy(source)
    datamodule.category = category
    name = f"{class_name!r} of {source.name}"
    advice = "Adapters are trained on a test split of normal and abnormal images, with a mask for each abnormal image."
    try:
        # `setup` would move images from the test split to the validation split.
        datamodule._setup()  # noqa: SLF001
    except (OSError, RuntimeError, ValueError, TypeError, KeyError) as error:
        msg = f"Could not read category {name}: {type(error).__name__}: {error}. {advice}"
        raise ValueError(msg) from error
    dataset = datamodule.test_data
    samples = dataset.samples
    abnormal = samples[samples.label_index == LabelName.ABNORMAL]
    masks = abnormal.get("mask_path", pd.Series([None] * len(abnormal)))
    without = [path for path, mask in zip(abnormal.image_path, masks, strict=True) if not _exists(mask)]
    if without:
        msg = (
            f"Expected argument `source` to have a mask for each abnormal image, but {len(without)} of "
            f"{len(abnormal)} in category {name} have none, the first being {without[0]}. {advice}"
        )
        raise ValueError(msg)
    dataset.augmentations = None
    return Category(source.name, class_name, dataset)


def _exists(mask_path: object) -> bool:
    """Whether a mask exists. Some data sets have several masks, or a folder of masks, for one image."""
    if isinstance(mask_path, list | tuple):
        return bool(mask_path) and all(map(_exists, mask_path))
    return isinstance(mask_path, str | Path) and str(mask_path) != "" and Path(mask_path).exists()
