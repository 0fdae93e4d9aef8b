# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""The example images of a report: image, ground truth, and the heatmaps of all models."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pandas as pd
from PIL import Image

from anomalib_aprilgan.comparison.results import KEY
from anomalib_aprilgan.comparison.tables import done_of, order
from anomalib_aprilgan.pages.rendering import data_url, heatmap_over

__all__ = ["Gallery", "GalleryRow", "Prediction", "read_gallery"]

MAX_ROWS: Final = 24
PIXELS: Final = 160
"""Longer side of the images in the page."""

MAX_PIXELS: Final = 1 << 24
"""Largest number of pixels of an image in the folder; the examples that are written are far smaller."""

IDENTITY: Final = [*KEY, "started"]
"""Columns that tell the attempts of a run apart."""

Column = tuple[str, str]
"""Shots and model."""


@dataclass(frozen=True)
class Prediction:
    """Prediction of a model for an image.

    Attributes:
        heatmap: Data URL of the image with the heatmap over it; empty if there is none.
        score: Normalised score in [0, 1].
        label: Whether the model calls the image anomalous.
        is_right: Whether the label is right.
    """

    heatmap: str
    score: float
    label: bool
    is_right: bool


@dataclass(frozen=True)
class GalleryRow:
    """An image and its predictions.

    Attributes:
        category: Category, or title of the data set if it has no categories.
        name: Name of the image.
        image: Data URL of the image.
        mask: Data URL of the ground truth; empty if there is none.
        predictions: Predictions by shots and model.
    """

    category: str
    name: str
    image: str
    mask: str
    predictions: dict[Column, Prediction]


@dataclass(frozen=True)
class Gallery:
    """Example images.

    Attributes:
        columns: Shots and model of the heatmaps.
        rows: One row per image.
        found: Number of images in the folder.
    """

    columns: list[Column]
    rows: list[GalleryRow]
    found: int


def read_gallery(folder: Path, runs: pd.DataFrame, titles: Mapping[str, str]) -> Gallery:
    """Read example images: the first ones of each category, and of each model the predictions with its first seed.

    Args:
        folder: Folder of the examples; it may be missing.
        runs: Prepared runs. Examples of other runs, and of earlier attempts of a run, are left out.
        titles: Titles of the data sets.

    Returns:
        At most 24 images, without rows if there are none.
    """
    places = {model: place for place, model in enumerate(runs["model"].cat.categories)}
    identities = set(done_of(runs)[IDENTITY].astype(str).itertuples(index=False, name=None))
    lines = [line for path in sorted(folder.glob("*/*/*.json")) if (line := _read_prediction(path)) is not None]
    found = [line for line in lines if tuple(line[name] for name in IDENTITY) in identities]
    if not found:
        return Gallery([], [], 0)
    keys = {"seed": order, "shots": order, "model": places.get, "category": order}
    table = pd.DataFrame(found).sort_values(
        ["data", "category", "image", "shots", "model", "seed"],
        key=lambda column: column.map(keys[column.name]) if column.name in keys else column,
    )
    table = table.drop_duplicates(["folder", "shots", "model"])
    images = table[["folder", "data", "category"]].drop_duplicates()
    turns = images.groupby(["data", "category"], sort=False).cumcount()
    chosen = images["folder"][turns.sort_values(kind="stable").index[:MAX_ROWS]]
    of_images = table[table["folder"].isin(chosen)].groupby("folder", sort=False)
    rows = [row for example, lines in of_images if (row := _read_row(example, lines, titles)) is not None]
    columns = sorted(
        {column for row in rows for column in row.predictions}, key=lambda one: (order(one[0]), places[one[1]])
    )
    return Gallery(columns, rows, len(images))


def _read_prediction(path: Path) -> dict[str, Any] | None:
    """Read the file of a prediction; ``None`` if it is damaged."""
    if not path.is_file():
        return None
    try:
        line = json.loads(path.read_text(encoding="utf-8"))
        texts = {name: str(line[name]) for name in (*IDENTITY, "image")}
        score, label, anomalous = float(line["score"]), bool(line["label"]), bool(line["anomalous"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
    return {
        **texts,
        "score": score,
        "label": label,
        "is_right": label == anomalous,
        "path": path,
        "folder": path.parent,
    }


def _read_row(folder: Path, lines: pd.DataFrame, titles: Mapping[str, str]) -> GalleryRow | None:
    """Read an image and its predictions; ``None`` if the image cannot be read."""
    image, mask = _read_image(folder / "image.png", "RGB"), _read_image(folder / "mask.png", "L")
    if image is None:
        return None
    first = lines.iloc[0]
    return GalleryRow(
        category=first["category"] or titles[first["data"]],
        name=first["image"],
        image=data_url(image),
        mask="" if mask is None else data_url(mask),
        predictions={
            (line.shots, line.model): Prediction(_heatmap(line.path, image), line.score, line.label, line.is_right)
            for line in lines.itertuples()
        },
    )


def _heatmap(path: Path, image: Image.Image) -> str:
    """Return a data URL of the image with the heatmap over it; empty if the map cannot be read."""
    grey = _read_image(path.with_suffix(".png"), "L")
    if grey is None:
        return ""
    return data_url(heatmap_over(image, grey))


def _read_image(path: Path, mode: str) -> Image.Image | None:
    """Read an image; ``None`` if it is missing, damaged or too large."""
    if not path.is_file():
        return None
    try:
        with Image.open(path) as file:
            if file.size[0] * file.size[1] > MAX_PIXELS:
                return None
            image = file.convert(mode)
    except Exception:  # PIL raises errors of many types for damaged files
        return None
    image.thumbnail((PIXELS, PIXELS), Image.Resampling.BICUBIC)
    return image
