# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Labelled sample data in MVTec AD's folder layout, drawn by the generator. The same seed gives the same files."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

from PIL import Image

from anomalib_aprilgan.demo.drawing.defects import DEFECTS
from anomalib_aprilgan.demo.drawing.photographs import PHOTOGRAPHS
from anomalib_aprilgan.demo.drawing.scenes import (
    AUXILIARY_DEFECTS,
    AUXILIARY_KINDS,
    HELD_OUT_KINDS,
    KINDS,
    Pixels,
    render,
    render_pair,
)
from anomalib_aprilgan.files.whole_files import write_file

__all__ = ["DATA_SETS", "write_png", "write_sample_data"]

DATA_SETS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "photographs": (tuple(PHOTOGRAPHS), ("scratch", "stain", "wrong_texture")),
    "auxiliary": (AUXILIARY_KINDS, AUXILIARY_DEFECTS),
    "held_out": (HELD_OUT_KINDS, tuple(DEFECTS)),
}
"""Categories and defects of each data set that the command line can write.

photographs: photographs of real surfaces with drawn defects; auxiliary: drawn images to train adapters on; held_out:
drawn kinds and defects that neither the embedded CLIP nor its adapters were trained on."""


def write_sample_data(
    root: str | Path,
    categories: Sequence[str] = DATA_SETS["photographs"][0],
    defects: Sequence[str] = DATA_SETS["photographs"][1],
    size: int = 128,
    train: int = 8,
    test: int = 4,
    seed: int = 0,
) -> Path:
    """Write a data set. Existing files are overwritten.

    Args:
        root: Folder of the data set.
        categories: Names from :data:`~anomalib_aprilgan.demo.drawing.scenes.KINDS`.
        defects: Names from :data:`~anomalib_aprilgan.demo.drawing.defects.DEFECTS`.
        size: Height and width of the images in pixels.
        train: Number of normal training images per category.
        test: Number of normal test images per category, and number of test images per defect.
        seed: Seed of colours, shapes, defects and light.

    Returns:
        The folder.

    Raises:
        ValueError: If a category or defect is unknown, or a size or number is not positive.
        OSError: If an image cannot be written; the error names it.
    """
    for argument, names, known in (("categories", categories, KINDS), ("defects", defects, tuple(DEFECTS))):
        if not names or not set(names) <= set(known):
            msg = f"Expected argument `{argument}` to hold names from {known}, but got {tuple(names)}."
            raise ValueError(msg)
    for argument, value in (("size", size), ("train", train), ("test", test)):
        if value < 1:
            msg = f"Expected argument `{argument}` to be positive, but got {value}."
            raise ValueError(msg)
    root = Path(root)
    for category in categories:
        folder = root / category
        for number in range(train):
            write_png(folder / "train" / "good" / f"{number:03}.png", render(category, seed, number, size))
        for number in range(test):
            write_png(folder / "test" / "good" / f"{number:03}.png", render(category, seed, train + number, size))
        for defect in defects:
            for number in range(test):
                # New numbers, so that no abnormal image has a normal counterpart in the data set.
                _, image, mask = render_pair(category, defect, seed, train + test + number, size)
                write_png(folder / "test" / defect / f"{number:03}.png", image)
                write_png(folder / "ground_truth" / defect / f"{number:03}_mask.png", mask)
    return root


def write_png(path: Path, pixels: Pixels) -> None:
    """Write an image as PNG, complete or not at all.

    Args:
        path: The file; its folder is made if it is missing.
        pixels: The image.

    Raises:
        OSError: If it cannot be written; the error names it.
    """
    Image.fromarray(pixels).save(content := BytesIO(), "PNG")
    write_file(path, content.getvalue())
