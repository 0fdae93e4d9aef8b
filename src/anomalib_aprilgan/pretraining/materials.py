# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Photographs of undamaged materials and objects, the normal side of the training data.

A folder holds one folder of pictures per material, and ``INDEX.tsv`` with a row per picture: ``file``, ``source``,
``licence`` and ``copyright``. Pictures with a permissive licence are trained on. All others, and the photographs of
scikit-image, which are part of the sample data, are held out, to choose settings by.
"""

import csv
import re
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.random import Generator
from PIL import Image

from anomalib_aprilgan.demo.drawing.canvas import Array
from anomalib_aprilgan.demo.drawing.scenes import Pixels
from anomalib_aprilgan.files.paths import checked_path

__all__ = ["DAMAGED", "Material", "Materials", "read_index", "read_picture"]

PERMISSIVE = re.compile(r"MIT|Expat|Apache-2\.0|BSD-[23]-Clause|CC0(-1\.0)?|public.domain|CC-BY-[\d.]+")
"""Licences that allow weights to be published under Apache-2.0."""

BETWEEN = re.compile(r"no known restrictions|shipped under|and|AND|[/,\s]")
"""What stands between licences."""

COLUMNS = {"file", "source", "licence"}
"""Columns of the index that are read."""

TESTED_SOURCES = ("skimage", "scikit-image")
"""Sources of the photographs in the sample data."""

DAMAGED = ("rust",)
"""Materials whose pictures show damage."""


class Material(NamedTuple):
    """A picture of the index.

    Attributes:
        path: The file.
        name: The material, as captions name it.
        is_trained_on: Whether the embedded CLIP is trained on it. Otherwise it is held out.
    """

    path: Path
    name: str
    is_trained_on: bool


def read_index(folder: Path) -> list[Material]:
    """Read the index of a folder of photographs.

    Args:
        folder: Folder with ``INDEX.tsv``.

    Returns:
        The pictures of undamaged materials.

    Raises:
        FileNotFoundError: If the folder has no index, or the index names a file that does not exist.
        ValueError: If the index is no table, lacks a column or a cell, or none of its pictures may be trained on.
    """
    index = folder / "INDEX.tsv"
    if not index.is_file():
        msg = (
            f"Expected argument `photographs` to be a folder with INDEX.tsv (columns file, source, licence, copyright; "
            f"files as material/name.jpg), but {index} does not exist."
        )
        raise FileNotFoundError(msg)
    try:
        with index.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file, delimiter="\t")
            missing = COLUMNS - set(reader.fieldnames or ())
            rows = list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        msg = f"Expected {index} to be a table in UTF-8 with tabs between its columns, but it cannot be read: {error}."
        raise ValueError(msg) from error
    if missing:
        msg = f"Expected {index} to begin with the names of its columns, but {', '.join(sorted(missing))} is missing."
        raise ValueError(msg)
    for number, row in enumerate(rows, start=2):
        if not row["file"] or any(row[column] is None for column in COLUMNS):
            msg = f"Expected every line of {index} to have {', '.join(sorted(COLUMNS))}, but line {number} has not."
            raise ValueError(msg)
    pictures = [
        Material(
            checked_path(folder / row["file"], "photographs"),
            row["file"].split("/")[0].replace("_", " "),
            _is_trained_on(row["licence"], row["source"]),
        )
        for row in rows
    ]
    for picture in pictures:
        if not picture.path.is_file():
            msg = f"Expected every file that {index} names to exist, but {picture.path} does not."
            raise FileNotFoundError(msg)
    undamaged = [picture for picture in pictures if picture.name not in DAMAGED]
    if not any(picture.is_trained_on for picture in undamaged):
        msg = f"Expected {index} to name pictures with a permissive licence, such as MIT or CC0, but there is none."
        raise ValueError(msg)
    return undamaged


def _is_trained_on(licence: str, source: str) -> bool:
    is_permissive = bool(PERMISSIVE.search(licence)) and not BETWEEN.sub("", PERMISSIVE.sub("", licence))
    return is_permissive and not any(tested in source for tested in TESTED_SOURCES)


class Materials:
    """Random crops of pictures.

    Args:
        pictures: The pictures.
    """

    def __init__(self, pictures: list[Material]) -> None:
        self._by_name: dict[str, list[Path]] = {}
        for picture in pictures:
            self._by_name.setdefault(picture.name, []).append(picture.path)
        self.names = tuple(self._by_name)
        weights = np.sqrt([len(self._by_name[name]) for name in self.names])
        self._probabilities = weights / weights.sum()

    def crop(self, rng: Generator, n: int) -> tuple[Array, str]:
        """Crop a random square of a random picture.

        A material with four times as many pictures is chosen twice as often. The square is turned and mirrored at
        random; its side is between a fifth of the picture's shorter side and all of it.

        Args:
            rng: Random generator.
            n: Height and width of the result in pixels.

        Returns:
            The crop in [0, 1], shape ``(n, n, 3)``, and the name of the material.
        """
        name = str(rng.choice(self.names, p=self._probabilities))
        paths = self._by_name[name]
        picture = read_picture(paths[int(rng.integers(len(paths)))])
        shorter = min(picture.shape[:2])
        side = int(np.clip(shorter * np.exp(rng.uniform(np.log(0.2), 0.1)), min(shorter, n // 4), shorter))
        top, left = (int(rng.integers(extent - side + 1)) for extent in picture.shape[:2])
        square = np.rot90(picture[top : top + side, left : left + side], int(rng.integers(4)))
        square = np.ascontiguousarray(square[:, ::-1] if rng.random() < 0.5 else square)  # noqa: PLR2004
        resampling = cv2.INTER_AREA if side > n else cv2.INTER_CUBIC
        return np.clip(cv2.resize(square, (n, n), interpolation=resampling).astype(np.float32) / 255, 0, 1), name


@lru_cache(maxsize=2000)
def read_picture(path: Path) -> Pixels:
    """Read a picture: 8 bits, RGB, shape ``(H, W, 3)``.

    Raises:
        ValueError: If the file cannot be read.
    """
    try:
        with Image.open(path):  # refuses pictures that are too large
            picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
    except Exception:  # both raise errors of many types
        picture = None
    if picture is None:
        msg = f"Expected {path} to be a picture, but it cannot be read."
        raise ValueError(msg)
    return np.asarray(picture[..., ::-1], np.uint8)
