# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Which runs of an Engine store the features of their images, and where."""

import logging
from collections.abc import Sequence, Sized
from pathlib import Path
from typing import Protocol

from torchvision.transforms.v2 import Resize

from anomalib_aprilgan.files.feature_files import LIMIT_VARIABLE, FeatureFiles, default_folder, folder_of_environment
from anomalib_aprilgan.files.paths import checked_path
from anomalib_aprilgan.integration.auxiliary_dataset import AuxiliaryDataset
from anomalib_aprilgan.method.feature_store import FeatureStore
from anomalib_aprilgan.torch_model import AprilGanModel

__all__ = ["AUTO_FEATURES", "CACHED_FEATURES", "HasFeatures", "checked_features", "close_store", "open_store"]

logger = logging.getLogger(__name__)

AUTO_FEATURES = "auto"
"""Value of `features` that lets the environment and the kind of run decide."""

CACHED_FEATURES = "cache"
"""Value of `features` for the folder of the environment, else for the cache, if there is room in it."""


def checked_features(features: str | Path | None) -> str | Path | None:
    """Check the argument `features`.

    Raises:
        ValueError: If it is no path.
    """
    is_path = features is not None and features not in (AUTO_FEATURES, CACHED_FEATURES)  # a list has no hash
    return checked_path(features, "features") if is_path else features


class HasFeatures(Protocol):
    """The parts of ``AprilGan`` that are used here."""

    model: AprilGanModel
    features: str | Path | None


def open_store(module: HasFeatures, datasets: Sequence[object], *, trains: bool = False) -> None:
    """Let a model store and look up the features of images during a run, if that is wanted.

    Args:
        module: The model.
        datasets: Datasets of the run.
        trains: Whether the images will be seen in several epochs: then features are stored unless the user says no.
            Resized images are stored too. Random augmentations make other images in each epoch: nothing is stored.

    Raises:
        ValueError: If the user named a folder, and the features do not fit there.
    """
    close_store(module)
    auxiliary = [dataset for dataset in datasets if isinstance(dataset, AuxiliaryDataset)]
    for dataset in auxiliary:
        dataset.files = None
    if trains and any(_is_augmented(dataset) for dataset in datasets):
        return
    is_cached = module.features == CACHED_FEATURES or (module.features == AUTO_FEATURES and trains)
    folder = folder_of_environment() if module.features in {AUTO_FEATURES, CACHED_FEATURES} else module.features
    is_explicit = folder is not None
    if folder is None and is_cached:
        folder = default_folder()
    if folder is None:
        return
    files = FeatureFiles(Path(folder))
    number = sum(len(dataset) for dataset in datasets if isinstance(dataset, Sized))
    size = number * _bytes_per_image(module.model)
    stored = sum(group.size for group in files.groups())
    room = min(files.limit, stored + files.free_space())
    megabytes, room_in_megabytes = (f"{max(value, 0) / 1e6:,.1f} MB" for value in (size, room))
    if size <= room:
        message = "Features of up to %d images are stored in %s: %s, as far as they are not stored there yet."
        logger.info(message, number, folder, megabytes)
        module.model.clip.store = FeatureStore(files)
        for dataset in auxiliary:
            dataset.files = files
        return
    problem = (
        f"The features of {number} images take {megabytes}, but {folder} has room for {room_in_megabytes}: the "
        f"limit is {files.limit / 1e6:,.1f} MB (environment variable {LIMIT_VARIABLE}), and the disk has "
        f"{max(files.free_space(), 0) / 1e6:,.1f} MB to spare."
    )
    if is_explicit:
        msg = f"{problem} Make room, name a folder on another disk, or pass features=None to encode all images anew."
        raise ValueError(msg)
    logger.warning("%s They are not stored: images are encoded each time.", problem)


def close_store(module: HasFeatures) -> None:
    """Stop storing features, at the end of a run."""
    store, module.model.clip.store = module.model.clip.store, None
    if store is not None and store.found + store.computed:  # a test may use the scores of its validation instead
        logger.info("Features: %d images were stored before, %d were encoded.", store.found, store.computed)


def _is_augmented(dataset: object) -> bool:
    """Whether a dataset changes images otherwise than by resizing them."""
    augmentations = getattr(dataset, "augmentations", None)
    return augmentations is not None and not isinstance(augmentations, Resize)


def _bytes_per_image(model: AprilGanModel) -> int:
    """Size of the features of all views of an image in half precision, and of the resized image with its mask."""
    clip, stages = model.clip, {*model.layers, *model.reference_layers}
    features = 2 * len(model.windows) * (clip.embed_dim + len(stages) * clip.num_patches * clip.width)
    return features + 4 * model.image_size**2
