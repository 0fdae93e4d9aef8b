# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Labelled images of several categories with class names, and mosaics of them (arXiv 2305.17382, section 4.1)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import pandas as pd
import torch
from anomalib.data import AnomalibDataset, ImageBatch, ImageItem
from numpy.random import default_rng
from torch import Tensor
from torch.utils.data import DistributedSampler
from torchvision.transforms.v2 import Transform
from torchvision.transforms.v2 import functional as F  # noqa: N812  # torchvision's own custom
from torchvision.tv_tensors import Image, Mask

from anomalib_aprilgan.files.feature_files import FeatureFiles
from anomalib_aprilgan.integration.pre_processing import EightBitResize
from anomalib_aprilgan.integration.resized_images import read_or_store

__all__ = ["AuxiliaryBatch", "AuxiliaryDataset", "AuxiliaryItem", "Category", "EpochSampler", "mosaic"]

MOSAIC_TILES = 4


@dataclass
class AuxiliaryItem(ImageItem):
    """An image with its class name.

    Attributes:
        class_name: Class name for the prompts.
        recurs: Whether the next epochs will have the same image; mosaics are drawn anew.
    """

    class_name: str | None = None
    recurs: bool | None = None


@dataclass
class AuxiliaryBatch(ImageBatch):
    """A batch of images with their class names.

    Attributes:
        class_name: Class name of each image.
        recurs: Whether the next epochs will have the same image, for each image.
    """

    item_class = AuxiliaryItem
    class_name: list[str] | None = None
    recurs: list[bool] | None = None


@dataclass(frozen=True)
class Category:
    """The labelled images of one category.

    Attributes:
        source: Name of the datamodule.
        class_name: Name of the category.
        dataset: Labelled images of the category, without augmentation.
    """

    source: str
    class_name: str
    dataset: AnomalibDataset


class AuxiliaryDataset(AnomalibDataset):
    """Concatenates the labelled images of several categories.

    Args:
        categories: The categories.
        mosaic_probability: Probability in [0, 1] that an image is replaced by a mosaic of images of its category.
        augmentations: Transform of image and mask, applied after the mosaic.
        seed: Seed of the mosaics. They depend only on the seed, on ``epoch`` and on the index of the image.

    Attributes:
        epoch: Number of the epoch, set by :class:`EpochSampler`.
        files: Where resized images and masks are stored, so that later epochs need not decode them; ``None``: nowhere.
    """

    def __init__(
        self,
        categories: Sequence[Category],
        mosaic_probability: float = 0.0,
        augmentations: Transform | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(augmentations=augmentations)
        self.seed = seed
        self.epoch = 0
        self.files: FeatureFiles | None = None
        self.categories = tuple(categories)
        self.mosaic_probability = mosaic_probability
        frames = [
            category.dataset.samples.assign(
                class_name=category.class_name,
                category_index=index,
                index_in_category=range(len(category.dataset)),
            )
            for index, category in enumerate(self.categories)
        ]
        self.samples = pd.concat(frames, ignore_index=True)
        self.samples.attrs["task"] = "segmentation"

    def __getitem__(self, index: int) -> AuxiliaryItem:
        """Return an image or a mosaic, with mask, label and class name."""
        row = self.samples.iloc[index]
        category = self.categories[row.category_index]
        rng = default_rng([self.seed, self.epoch, index])
        is_mosaic = bool(rng.random() < self.mosaic_probability)
        if is_mosaic:
            items = [category.dataset[int(number)] for number in rng.integers(len(category.dataset), size=MOSAIC_TILES)]
            label = int(any(item.gt_label for item in items))
            image, mask = self._augmented(*mosaic(items))
        else:
            label = int(row.label_index)
            image, mask = self._single(category.dataset, row)
        return AuxiliaryItem(
            image=image,
            gt_mask=mask,
            gt_label=torch.tensor(label),
            image_path=str(row.image_path),
            mask_path=str(row.mask_path or ""),
            class_name=category.class_name,
            recurs=not is_mosaic,
        )

    def _single(self, dataset: AnomalibDataset, row: Any) -> tuple[Image, Mask]:  # noqa: ANN401  # a row of the samples
        """Return one image and its mask."""

        def read() -> tuple[Image, Mask]:
            item = cast("ImageItem", dataset[int(row.index_in_category)])
            return self._augmented(Image(item.image), _mask_of(item))

        mask_path = row.mask_path or ""
        if self.files is None or not isinstance(self.augmentations, EightBitResize) or not isinstance(mask_path, str):
            return read()
        return read_or_store(self.files, self.augmentations.size[0], (str(row.image_path), mask_path), read)

    def _augmented(self, image: Image, mask: Mask) -> tuple[Image, Mask]:
        return (image, mask) if self.augmentations is None else self.augmentations(image, mask)

    @property
    def collate_fn(self) -> Any:  # noqa: ANN401  # the signature is anomalib's
        """Collate items to an :class:`AuxiliaryBatch`."""
        return AuxiliaryBatch.collate


class EpochSampler(DistributedSampler[AuxiliaryItem]):
    """Shuffles depending only on seed and epoch, and sets the epoch of the data set.

    Args:
        dataset: The data set.
        num_replicas: Number of processes.
        rank: Number of this process, counted from 0.
        seed: Seed of the order.
    """

    def __init__(self, dataset: AuxiliaryDataset, num_replicas: int, rank: int, seed: int) -> None:
        super().__init__(cast("Any", dataset), num_replicas=num_replicas, rank=rank, seed=seed)
        self.auxiliary_dataset = dataset

    def set_epoch(self, epoch: int) -> None:
        """Set the number of the epoch; Lightning calls this before each epoch."""
        super().set_epoch(epoch)
        self.auxiliary_dataset.epoch = epoch


def mosaic(items: Sequence[ImageItem]) -> tuple[Image, Mask]:
    """Combine four images and their masks into a 2 x 2 mosaic.

    Args:
        items: Four items in row-major order. They are resized to the size ``(h, w)`` of the first one.

    Returns:
        Image of shape ``(3, 2h, 2w)`` and mask of shape ``(2h, 2w)``.
    """
    height, width = cast("Tensor", items[0].image).shape[-2:]
    images = [_to_size(Image(item.image), height, width) for item in items]
    masks = [_to_size(_mask_of(item), height, width) for item in items]
    image, mask = (
        torch.cat([torch.cat(tiles[:2], dim=-1), torch.cat(tiles[2:], dim=-1)], dim=-2) for tiles in (images, masks)
    )
    return Image(image), Mask(mask)


def _to_size(tile: Tensor, height: int, width: int) -> Tensor:
    if tuple(tile.shape[-2:]) != (height, width):
        tile = F.resize(tile, [height, width], antialias=True)
    return tile.as_subclass(Tensor)


def _mask_of(item: ImageItem) -> Mask:
    """Return the mask of an item; zeros if it has none, as normal images may."""
    if item.gt_mask is not None:
        return Mask(item.gt_mask)
    return Mask(torch.zeros(cast("Tensor", item.image).shape[-2:], dtype=torch.uint8))
