# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""The examples of a comparison: per test image the picture, the ground truth, and each model's heatmap over it."""

import json
from base64 import b64encode
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from io import BytesIO
from itertools import zip_longest
from pathlib import Path
from typing import Final

import numpy as np
from anomalib.visualization.image.functional import apply_colormap, overlay_image
from PIL import Image

from anomalib_aprilgan.comparison.tables import order

__all__ = ["Gallery", "GalleryRow", "Said", "read_gallery", "scale"]

MOST_ROWS: Final = 24
PIXELS: Final = 160
"""Longer side of the pictures in the page."""

OPACITY: Final = 0.6
"""Of the heatmaps, as in the demonstration."""

Column = tuple[str, str]
"""Shots and model."""


@dataclass(frozen=True)
class Said:
    """What a run said of a picture.

    Attributes:
        heatmap: Address that holds the picture under the heatmap; empty if there is none.
        score: Normalised score in [0, 1]; above one half: anomalous. ``None`` if there is none.
        label: Whether the run calls the picture anomalous.
        is_right: Whether it is.
    """

    heatmap: str
    score: float | None = None
    label: bool = False
    is_right: bool = False


@dataclass(frozen=True)
class GalleryRow:
    """A picture, and what was said of it.

    Attributes:
        data: Data set.
        category: Category.
        name: The picture's name.
        picture: Address that holds it.
        truth: Address that holds its mask; empty if it has none.
        said: By shots and model.
    """

    data: str
    category: str
    name: str
    picture: str
    truth: str
    said: dict[Column, Said]


@dataclass(frozen=True)
class Gallery:
    """Some of the examples.

    Attributes:
        columns: Shots and model of the heatmaps.
        rows: One per picture.
        found: Number of examples that there are.
    """

    columns: list[Column]
    rows: list[GalleryRow]
    found: int


def read_gallery(folder: Path, models: Iterable[str]) -> Gallery:
    """Read examples: the first ones of each category, of each run those with the first seed.

    Args:
        folder: Folder of the examples, ``<data>/<category>/<name>`` below it; it need not be there.
        models: Names of the models in their order.

    Returns:
        Examples of at most 24 pictures, without rows if there are none.
    """
    by_category: defaultdict[Path, list[Path]] = defaultdict(list)
    for picture in sorted(folder.glob("*/*/*/picture.png")):
        by_category[picture.parents[1]].append(picture.parent)
    in_turn = [example for turn in zip_longest(*by_category.values()) for example in turn if example is not None]
    rows = [row for example in sorted(in_turn[:MOST_ROWS]) if (row := _row(example)) is not None]
    places = {model: place for place, model in enumerate(models)}
    columns = sorted(
        {column for row in rows for column in row.said},
        key=lambda column: (order(column[0]), places.get(column[1], len(places)), column[1]),
    )
    return Gallery(columns, rows, len(in_turn))


def scale() -> str:
    """The heatmaps' colours from 0 to 1, as an address that holds them."""
    return _inline(apply_colormap(Image.fromarray(np.linspace(0, 255, 128).astype(np.uint8)[None].repeat(8, axis=0))))


def _row(example: Path) -> GalleryRow | None:
    """Read an example; ``None`` if a run was killed before its picture was whole."""
    picture = _read(example / "picture.png", "RGB")
    if picture is None:
        return None
    first: dict[Column, tuple[str, Path]] = {}
    for path in example.glob("*-*-*.json"):
        model, shots, seed = path.stem.rsplit("-", 2)
        if (shots, model) not in first or order(seed) < order(first[shots, model][0]):
            first[shots, model] = seed, path
    truth = _read(example / "truth.png", "L")
    return GalleryRow(
        data=example.parts[-3],
        category=example.parts[-2],
        name=example.name,
        picture=_inline(picture),
        truth="" if truth is None else _inline(truth),
        said={column: _said(path, picture) for column, (_, path) in first.items()},
    )


def _said(path: Path, picture: Image.Image) -> Said:
    """Read the score and the heatmap that belong to a picture, or what there is of them."""
    grey = _read(path.with_suffix(".png"), "L")
    heatmap = ""
    if grey is not None:
        colours = apply_colormap(grey.resize(picture.size, Image.Resampling.BICUBIC))
        heatmap = _inline(overlay_image(picture, colours, alpha=OPACITY))
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return Said(heatmap, float(values["score"]), values["label"], values["label"] == values["anomalous"])
    except (ValueError, KeyError):
        return Said(heatmap)


def _read(path: Path, mode: str) -> Image.Image | None:
    """Read a picture; ``None`` if it is not there, or not whole."""
    try:
        with Image.open(path) as image:
            picture = image.convert(mode)
    except (OSError, SyntaxError):  # Pillow's word for a PNG that ends too early
        return None
    picture.thumbnail((PIXELS, PIXELS), Image.Resampling.BICUBIC)
    return picture


def _inline(image: Image.Image) -> str:
    """An image as an address that holds it."""
    buffer = BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{b64encode(buffer.getvalue()).decode()}"
