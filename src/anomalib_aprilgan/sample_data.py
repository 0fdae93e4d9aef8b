# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""A small labelled data set with MVTec AD's folders, cut from the photographs that scikit-image carries.

Crops of a photograph are the normal images of its category. Abnormal ones carry a generated scratch, stain or foreign
patch, with its exact mask. No download, the same files for the same seed.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.random import Generator, default_rng
from PIL import Image, ImageDraw, ImageFilter

__all__ = ["CATEGORIES", "DEFECTS", "write_sample_data"]

CATEGORIES = ("brick", "coffee", "coins", "grass", "gravel", "text")
"""Photographs in scikit-image, which are the data set's categories."""

Defect = Callable[[Image.Image, Generator], tuple[Image.Image, Image.Image]]


def write_sample_data(
    root: str | Path,
    categories: tuple[str, ...] = CATEGORIES,
    size: int = 128,
    train: int = 8,
    test: int = 4,
    seed: int = 0,
) -> Path:
    """Write the data set; files that are there already are replaced by the same content.

    Args:
        root: Folder of the data set.
        categories: Names from :data:`CATEGORIES`.
        size: Height and width of the images in pixels.
        train: Normal training images per category.
        test: Test images per category, of normal ones and of each defect.
        seed: Seed of crops and defects.

    Returns:
        The folder.

    Raises:
        ValueError: If a category is unknown or a size or number is not positive.
    """
    unknown = sorted(set(categories) - set(CATEGORIES))
    if unknown or not categories:
        msg = f"Expected argument `categories` to hold names from {CATEGORIES}, but got {tuple(categories)}."
        raise ValueError(msg)
    for name, value in (("size", size), ("train", train), ("test", test)):
        if value < 1:
            msg = f"Expected argument `{name}` to be positive, but got {value}."
            raise ValueError(msg)
    root = Path(root)
    for category in categories:
        # Each category has a random state of its own, so that it does not depend on which others are written.
        rng = default_rng([seed, CATEGORIES.index(category)])
        photograph, folder = _photograph(category), root / category
        for number in range(train):
            _save(_crop(photograph, size, rng), folder / "train" / "good" / f"{number:03}.png")
        for number in range(test):
            _save(_crop(photograph, size, rng), folder / "test" / "good" / f"{number:03}.png")
        for name, defect in DEFECTS.items():
            for number in range(test):
                image, mask = defect(_crop(photograph, size, rng), rng)
                _save(image, folder / "test" / name / f"{number:03}.png")
                _save(mask, folder / "ground_truth" / name / f"{number:03}_mask.png")
    return root


def _photograph(category: str) -> Image.Image:
    from skimage import data  # noqa: PLC0415  # slow to import

    return Image.fromarray(np.asarray(getattr(data, category)())).convert("RGB")


def _save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def _crop(photograph: Image.Image, size: int, rng: Generator) -> Image.Image:
    """Cut a random square, half as large as the photograph's shorter side, in slightly varying light."""
    side = min(photograph.size) // 2
    left, top = (int(rng.integers(0, extent - side + 1)) for extent in photograph.size)
    crop = photograph.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.BICUBIC)
    light = rng.uniform(0.9, 1.1)
    return crop.point(lambda value: min(255, int(value * light)))


def _scratch(image: Image.Image, rng: Generator) -> tuple[Image.Image, Image.Image]:
    """A thin, bent, bright line."""
    size = image.width
    mask = Image.new("L", image.size)
    points = [tuple(point) for point in rng.uniform(0.1 * size, 0.9 * size, (3, 2)).tolist()]
    ImageDraw.Draw(mask).line(points, fill=255, width=max(2, size // 24), joint="curve")
    colour = tuple(int(value) for value in rng.integers(210, 256, 3))
    return Image.composite(Image.new("RGB", image.size, colour), image, mask), mask


def _stain(image: Image.Image, rng: Generator) -> tuple[Image.Image, Image.Image]:
    """A dark, tinted blot with a soft rim."""
    size = image.width
    mask = _ellipse(size, rng)
    soft = mask.filter(ImageFilter.GaussianBlur(size / 64))
    colour = tuple(int(value) for value in rng.integers(0, 70, 3))
    return Image.composite(Image.blend(image, Image.new("RGB", image.size, colour), 0.8), image, soft), mask


def _foreign(image: Image.Image, rng: Generator) -> tuple[Image.Image, Image.Image]:
    """A patch of noise in a foreign colour."""
    mask = _ellipse(image.width, rng)
    noise = rng.normal(rng.uniform(60, 200, 3), 40, (image.height, image.width, 3)).clip(0, 255).astype(np.uint8)
    return Image.composite(Image.fromarray(noise), image, mask), mask


def _ellipse(size: int, rng: Generator) -> Image.Image:
    mask = Image.new("L", (size, size))
    width, height = rng.uniform(0.15, 0.35, 2) * size
    left, top = rng.uniform(0, size - width), rng.uniform(0, size - height)
    ImageDraw.Draw(mask).ellipse((left, top, left + width, top + height), fill=255)
    return mask


DEFECTS: dict[str, Defect] = {"scratch": _scratch, "stain": _stain, "foreign": _foreign}
