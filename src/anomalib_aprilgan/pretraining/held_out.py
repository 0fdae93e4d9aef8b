# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Data to choose settings by: photographs that are not trained on, with drawn defects, in MVTec AD's layout."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from numpy.random import Generator, default_rng

from anomalib_aprilgan.demo.drawing.canvas import Array
from anomalib_aprilgan.demo.drawing.sheet import Scene
from anomalib_aprilgan.demo.sample_data import write_png
from anomalib_aprilgan.pretraining.camera import Camera
from anomalib_aprilgan.pretraining.damage import damage
from anomalib_aprilgan.pretraining.materials import Material, Materials, read_picture

__all__ = ["write_held_out_photographs"]

SIZE = 320
"""Height and width of the images in pixels."""

LEAST_SIDE = 320
"""Shorter side of a picture from which it is used, in pixels."""


def write_held_out_photographs(
    root: Path, pictures: list[Material], categories: int = 24, train: int = 16, test: int = 12, seed: int = 0
) -> Path:
    """Write a data set in MVTec AD's layout. Each category shows crops of one picture, taken with one camera.

    Args:
        root: Folder of the data set. Existing files are overwritten.
        pictures: Pictures of an index; those that are trained on are left out.
        categories: Number of categories, of as many different materials as possible.
        train: Number of normal training images per category.
        test: Number of normal test images per category, and of abnormal ones.
        seed: Random seed.

    Returns:
        The folder.
    """
    held_out = [picture for picture in pictures if not picture.is_trained_on]
    materials = Materials(held_out)
    for number, picture in enumerate(_varied(held_out, categories, default_rng(seed))):
        folder = root / f"{number:02}_{picture.name.replace(' ', '_')}"
        _write_category(folder, picture, materials, default_rng([seed, number]), train, test)
    return root


def _write_category(
    folder: Path, picture: Material, materials: Materials, rng: Generator, train: int, test: int
) -> None:
    crop = _crops(picture, rng)
    camera = Camera(rng)
    for split, number in (("train", train), ("test", test)):
        for i in range(number):
            write_png(folder / split / "good" / f"{i:03}.png", camera.take(crop()))
    for i in range(test):
        texture = crop()
        below = np.full_like(texture, texture.mean() * 0.5)
        damaged = damage(Scene(texture, below, np.ones(texture.shape[:2], np.float32)), materials, rng)
        write_png(folder / "test" / "damaged" / f"{i:03}.png", camera.take(damaged.picture))
        mask = np.asarray(damaged.mask * 255, np.uint8)
        write_png(folder / "ground_truth" / "damaged" / f"{i:03}_mask.png", mask)


def _crops(picture: Material, rng: Generator) -> Callable[[], Array]:
    """Return a function that crops a square at a random place; all squares have the same side."""
    pixels = read_picture(picture.path)
    side = int(rng.uniform(0.4, 0.7) * min(pixels.shape[:2]))

    def crop() -> Array:
        top, left = (int(rng.integers(extent - side + 1)) for extent in pixels.shape[:2])
        square = pixels[top : top + side, left : left + side]
        return np.asarray(cv2.resize(square, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC), np.float32) / 255

    return crop


def _varied(pictures: list[Material], number: int, rng: Generator) -> list[Material]:
    """Choose large pictures, from one material after the other."""
    large = [picture for picture in pictures if min(read_picture(picture.path).shape[:2]) >= LEAST_SIDE]
    shuffled = [large[i] for i in rng.permutation(len(large))]
    names: list[str] = []
    ranked = []
    for picture in shuffled:
        ranked.append((names.count(picture.name), picture))
        names.append(picture.name)
    return [picture for _, picture in sorted(ranked, key=lambda pair: pair[0])[:number]]
