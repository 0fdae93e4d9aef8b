# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""The example images of a report: image, ground truth, and the heatmaps of all models."""

import json
from base64 import b64encode
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from anomalib.visualization.image.functional import apply_colormap, overlay_image
from PIL import Image

from anomalib_aprilgan.comparison.results import KEY
from anomalib_aprilgan.comparison.tables import done_of, order

__all__ = ["Gallery", "GalleryRow", "Prediction", "read_gallery", "scale"]

MAX_ROWS: Final = 24
PIXELS: Final = 160
"""Longer side of the images in the page."""

OPACITY: Final = 0.6
"""Opacity of the heatmaps, as in the demonstration."""

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
        category: Category, or data set if it has no categories.
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


def read_gallery(folder: Path, runs: pd.DataFrame) -> Gallery:
    """Read example images: the first ones of each category, and of each model the predictions with its first seed.

    Args:
        folder: Folder of the examples; it may be missing.
        runs: Prepared runs. Examples of other runs, and of earlier attempts of a run, are left out.

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
    rows = [row for example, lines in of_images if (row := _read_row(example, lines)) is not None]
    columns = sorted(
        {column for row in rows for column in row.predictions}, key=lambda one: (order(one[0]), places[one[1]])
    )
    return Gallery(columns, rows, len(images))


def scale() -> str:
    """Return a data URL of the heatmaps' colours from 0 to 1."""
    grey = np.linspace(0, 255, 128).astype(np.uint8)[None].repeat(8, axis=0)
    return _data_url(apply_colormap(Image.fromarray(grey)))


def _read_prediction(path: Path) -> dict[str, Any] | None:
    """Read the file of a prediction; ``None`` if it is damaged."""
    try:
        line = json.loads(path.read_text(encoding="utf-8"))
        texts = {name: str(line[name]) for name in (*IDENTITY, "image")}
        score, label, anomalous = float(line["score"]), bool(line["label"]), bool(line["anomalous"])
    except (ValueError, KeyError, TypeError):
        return None
    return {
        **texts,
        "score": score,
        "label": label,
        "is_right": label == anomalous,
        "path": path,
        "folder": path.parent,
    }


def _read_row(folder: Path, lines: pd.DataFrame) -> GalleryRow | None:
    """Read an image and its predictions; ``None`` if the image cannot be read."""
    image, mask = _read_image(folder / "image.png", "RGB"), _read_image(folder / "mask.png", "L")
    if image is None:
        return None
    first = lines.iloc[0]
    return GalleryRow(
        category=first["category"] or first["data"],
        name=first["image"],
        image=_data_url(image),
        mask="" if mask is None else _data_url(mask),
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
    colours = apply_colormap(grey.resize(image.size, Image.Resampling.BICUBIC))
    return _data_url(overlay_image(image, colours, alpha=OPACITY))


def _read_image(path: Path, mode: str) -> Image.Image | None:
    """Read an image; ``None`` if it is missing or damaged."""
    try:
        with Image.open(path) as file:
            image = file.convert(mode)
    except (OSError, SyntaxError):  # Pillow raises the second for a PNG that is cut off
        return None
    image.thumbnail((PIXELS, PIXELS), Image.Resampling.BICUBIC)
    return image


def _data_url(image: Image.Image) -> str:
    buffer = BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{b64encode(buffer.getvalue()).decode()}"
