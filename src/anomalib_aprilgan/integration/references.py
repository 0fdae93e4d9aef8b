# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Finding, drawing and reading the normal reference images (arXiv 2305.17382, section 3.3)."""

import codecs
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from anomalib.data import AnomalibDataModule
from anomalib.data.utils import LabelName, read_image
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS

from anomalib_aprilgan.files.paths import checked_path
from anomalib_aprilgan.integration.image_files import check_image_files

__all__ = ["draw", "files_in_source", "normal_training_files", "read_references"]

File = TypeVar("File", str, Path)

NORMAL = {"good", "normal", "ok"}
"""Usual names of folders of normal images, in lower case."""

MASKS = re.compile("mask|ground.?truth|annotation|segmentation|^gt$")
"""Matches usual names of folders of masks, in lower case."""


def files_in_source(source: str | Path, argument: str = "few_shot_source") -> list[Path]:
    """List the image files of a source.

    Args:
        source: A folder (searched with its subfolders), an image, or a text file with one path per line. In a text
            file (UTF-8 or UTF-16), empty lines and lines that begin with ``#`` are ignored, and relative paths start
            from its folder.
        argument: Name of the argument in error messages.

    Returns:
        The files; files of a folder are in alphabetical order.

    Raises:
        ValueError: If the source does not exist, contains no images, holds masks or defects in subfolders, or lists a
            file that does not exist.
    """
    source = checked_path(source, argument)
    if source.is_dir():
        files = sorted(path for path in source.rglob("*") if path.suffix.lower() in IMG_EXTENSIONS and path.is_file())
        _refuse_labelled_folder(source, files, argument)
    elif source.is_file() and source.suffix.lower() in IMG_EXTENSIONS:
        files = [source]
    elif source.is_file():
        files = _files_in_list(source, argument)
    else:
        msg = (
            f"Expected argument `{argument}` to be a folder of images, an image, or a text file that lists image "
            f"paths, but {str(source)!r} does not exist."
        )
        raise ValueError(msg)
    if not files:
        msg = (
            f"Expected argument `{argument}` to contain images ({', '.join(IMG_EXTENSIONS)}), but found none in "
            f"{str(source)!r}. Add images or choose another source."
        )
        raise ValueError(msg)
    return files


def _refuse_labelled_folder(source: Path, files: Sequence[Path], argument: str) -> None:
    """Refuse a folder whose subfolders hold masks or defects, such as a category of a data set."""
    folders = sorted({folder for file in files for folder in file.relative_to(source).parents if folder.name})
    for folder in folders:
        name = folder.name.lower()
        beside = {other.name.lower() for other in folders if other.parent == folder.parent} - {name}
        if MASKS.search(name) or (name == "test" and "train" in beside) or (name in NORMAL and beside):
            normal = [found for found in folders if found.name.lower() in NORMAL]
            of_training = [found for found in normal if "train" in found.parts]
            advice = f", for instance {str(source / (of_training or normal)[0])!r}" if normal else ""
            others = f" beside {', '.join(sorted(beside))}" if beside else ""
            msg = (
                f"Expected argument `{argument}` to hold normal images alone, but {str(source)!r} has the subfolder "
                f"{str(folder)!r}{others}: masks and defects would be taken as normal. Pass the folder of the normal "
                f"images{advice}, or a text file that lists image paths."
            )
            raise ValueError(msg)


def _files_in_list(source: Path, argument: str) -> list[Path]:
    content = source.read_bytes()
    is_utf_16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        lines = [line.strip() for line in content.decode("utf-16" if is_utf_16 else "utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        msg = (
            f"Expected argument `{argument}` to be a folder, an image ({', '.join(IMG_EXTENSIONS)}) or a text "
            f"file in UTF-8 that lists image paths, but {str(source)!r} is none of these."
        )
        raise ValueError(msg) from error
    files = [source.parent / line for line in lines if line and not line.startswith("#")]
    missing = [str(path) for path in files if not _is_file(path)]
    if missing:
        msg = (
            f"Expected argument `{argument}` to list existing files, but these in {str(source)!r} do not exist: "
            f"{', '.join(name[:200] for name in missing[:5])}. Correct the list; relative paths start from its folder."
        )
        raise ValueError(msg)
    return files


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # for instance a name that is too long
        return False


def normal_training_files(datamodule: AnomalibDataModule) -> list[Path]:
    """List the normal images of a datamodule's training split, in the order of its samples.

    Args:
        datamodule: A datamodule whose ``setup`` was called.

    Returns:
        The files; empty if the datamodule has no training split.
    """
    dataset = getattr(datamodule, "train_data", None)
    if dataset is None:
        return []
    samples = dataset.samples
    if "label_index" in samples:
        samples = samples[samples.label_index == LabelName.NORMAL]
    return [Path(path) for path in samples.image_path]


def draw(files: Sequence[File], k_shot: int, seed: int) -> list[File]:
    """Draw reference images without replacement.

    The draw depends only on the seed. With a larger ``k_shot``, the images of a smaller one are drawn too.

    Differs from the authors' code: they draw with replacement, so that a memory bank can contain an image twice.

    Args:
        files: The files to draw from.
        k_shot: Number of files to draw.
        seed: Seed of the draw.

    Returns:
        ``k_shot`` of the files.

    Raises:
        ValueError: If there are fewer than ``k_shot`` files.
    """
    if len(files) < k_shot:
        msg = (
            f"Expected at least k_shot={k_shot} normal reference images, but there are {len(files)}. Lower `k_shot` or "
            "add images."
        )
        raise ValueError(msg)
    order = torch.randperm(len(files), generator=torch.Generator().manual_seed(seed))
    return [files[index] for index in order[:k_shot].tolist()]


def read_references(files: Iterable[Path], transform: Callable[[Tensor], Tensor]) -> Tensor:
    """Read reference images in the same way as anomalib reads test images.

    Args:
        files: Image files.
        transform: Pre-processing of a float image of shape ``(3, h, w)`` in [0, 1].

    Returns:
        Pre-processed images of shape ``(K, 3, H, W)``.

    Raises:
        ValueError: If files cannot be used; the message names them.
    """
    files, images = list(files), []
    check_image_files(files)
    for path in files:
        try:
            image = read_image(path, as_tensor=True)
        except (OSError, SyntaxError, ValueError) as error:
            msg = f"Could not read the reference image {path}: {error}. Replace or remove it."
            raise ValueError(msg) from error
        images.append(transform(torch.as_tensor(image)))
    return torch.stack([image.as_subclass(Tensor) for image in images])
