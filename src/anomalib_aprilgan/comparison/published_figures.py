# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Published figures of APRIL-GAN and of the baselines, as constants.

All of them belong to the authors' protocol. There are two kinds of sources: [Q], the paper's tables (arXiv 2305.17382)
as third parties quote them; [M], measurements of the authors' unmodified code and adapters by a third party.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple

__all__ = ["CATEGORY_FIGURES", "MEAN_FIGURES", "PUBLISHED_METRICS", "Figure", "Figures"]


class Figure(NamedTuple):
    """A published number.

    Attributes:
        mean: Mean in percent.
        deviation: Standard deviation over seeds in percent; ``None`` if it was not published.
    """

    mean: float
    deviation: float | None = None


Figures = Mapping[str, Figure | None]
"""Figures by column of the table of results; ``None`` if the number was not found."""

PUBLISHED_METRICS: Final = (
    "authors_pixel_AUROC",
    "authors_pixel_F1Max",
    "authors_pixel_AUPR",
    "authors_pixel_PRO",
    "authors_image_AUROC",
    "authors_image_F1Max",
    "authors_image_AUPR",
)
"""The order of the numbers in the lines below."""


def _figures(line: str) -> dict[str, Figure | None]:
    """Parse a line of numbers."""
    texts = [text.strip() for text in line.replace("|", "/").split("/")]
    return {
        metric: None if text == "?" else Figure(*map(float, text.split("±")))
        for metric, text in zip(PUBLISHED_METRICS, texts, strict=True)
    }


MEAN_FIGURES: Final[Mapping[tuple[str, str, str], Figures]] = {
    key: _figures(line)
    for key, line in {
        ("AprilGan", "MVTecAD", "0"): "87.6 / 43.3 / 40.8 / 44.0 | 86.1 / 90.4 / 93.5",
        ("AprilGan", "MVTecAD", "1"): "95.1±0.1 / 54.2±0.0 / ? / 90.6±0.2 | 92.0±0.3 / 92.4±0.2 / 95.8±0.2",
        ("AprilGan", "MVTecAD", "2"): "95.5±0.0 / 55.9±0.5 / ? / 91.3±0.1 | 92.4±0.3 / 92.6±0.1 / 96.0±0.2",
        ("AprilGan", "MVTecAD", "4"): "95.9±0.0 / 56.9±0.1 / 54.5 / 91.8±0.1 | 92.8±0.2 / 92.8±0.1 / 96.3±0.1",
        ("AprilGan", "Visa", "0"): "94.2 / 32.3 / 25.7 / 86.8 | 78.0 / 78.7 / 81.4",
        ("AprilGan", "Visa", "1"): "96.0±0.0 / 38.5±0.3 / ? / 90.0±0.1 | 91.2±0.8 / 86.9±0.6 / 93.3±0.8",
        ("AprilGan", "Visa", "2"): "96.2±0.0 / 39.3±0.2 / ? / 90.1±0.1 | 92.2±0.3 / 87.7±0.3 / 94.2±0.3",
        ("AprilGan", "Visa", "4"): "96.2±0.0 / 40.0±0.1 / 32.2 / 90.2±0.1 | 92.6±0.4 / 88.4±0.5 / 94.5±0.3",
        ("WinClip", "MVTecAD", "0"): "85.1 / 31.7 / ? / 64.6 | 91.8 / 92.9 / 96.5",
        ("WinClip", "MVTecAD", "1"): "95.2 / 55.9 / ? / 87.1 | 93.1 / 93.7 / 96.5",
        ("WinClip", "MVTecAD", "2"): "96.0 / 58.4 / ? / 88.4 | 94.4 / 94.4 / 97.0",
        ("WinClip", "MVTecAD", "4"): "96.2 / 59.5 / ? / 89.0 | 95.2 / 94.7 / 97.3",
        ("WinClip", "Visa", "0"): "79.6 / 14.8 / ? / 56.8 | 78.1 / 79.0 / 81.2",
        ("WinClip", "Visa", "1"): "96.4 / 41.3 / ? / 85.1 | 83.8 / 83.1 / 85.1",
        ("WinClip", "Visa", "2"): "96.8 / 43.5 / ? / 86.2 | 84.6 / 83.0 / 85.8",
        ("WinClip", "Visa", "4"): "97.2 / 47.0 / ? / 87.6 | 87.3 / 84.2 / 88.8",
        ("Patchcore", "MVTecAD", "1"): "92.0 / 50.4 / ? / 79.7 | 83.4 / 90.5 / 92.2",
        ("Patchcore", "MVTecAD", "2"): "93.3 / 53.0 / ? / 82.3 | 86.3 / 92.0 / 93.8",
        ("Patchcore", "MVTecAD", "4"): "94.3 / 55.0 / ? / 84.3 | 88.8 / 92.6 / 94.5",
        ("Patchcore", "Visa", "1"): "95.4 / 38.0 / ? / 80.5 | 79.9 / 81.7 / 82.8",
        ("Patchcore", "Visa", "2"): "96.1 / 41.0 / ? / 82.6 | 81.6 / 82.5 / 84.8",
        ("Patchcore", "Visa", "4"): "96.8 / 43.9 / ? / 84.9 | 85.3 / 84.3 / 87.5",
    }.items()
}
"""Means over all categories [Q], by model class, data and shots as in the table of results."""

CATEGORY_FIGURES: Final[Mapping[tuple[str, str, str], Mapping[str, Figures]]] = {
    ("AprilGan", "MVTecAD", "0"): {
        category: _figures(line)
        for category, line in {
            "bottle": "83.5 / 53.4 / 53.0 / 45.6 | 91.7 / 92.1 / 97.6",
            "cable": "72.2 / 23.9 / 18.2 / 25.7 | 88.2 / 84.7 / 92.9",
            "capsule": "92.0 / 33.1 / 29.6 / 51.3 | 79.9 / 91.6 / 95.4",
            "carpet": "98.4 / 65.7 / 67.5 / 48.5 | 99.5 / 98.3 / 99.8",
            "grid": "95.8 / 40.8 / 36.5 / 31.6 | 86.3 / 89.1 / 94.9",
            "hazelnut": "96.1 / 50.5 / 49.7 / 70.2 | 89.4 / 87.0 / 94.6",
            "leather": "99.1 / 50.0 / 52.3 / 72.4 | 99.7 / 98.9 / 99.9",
            "metal_nut": "65.5 / 28.0 / 25.9 / 38.4 | 68.5 / 89.4 / 91.9",
            "pill": "76.2 / 27.7 / 23.6 / 65.4 | 80.7 / 91.6 / 96.1",
            "screw": "97.8 / 41.7 / 33.7 / 67.1 | 84.9 / 89.1 / 93.5",
            "tile": "92.7 / 66.5 / 66.3 / 26.7 | 99.9 / 98.8 / 99.9",
            "toothbrush": "95.8 / 48.1 / 43.2 / 54.5 | 53.9 / 83.3 / 72.8",
            "transistor": "62.4 / 19.0 / 11.7 / 21.3 | 80.9 / 73.9 / 77.4",
            "wood": "95.8 / 60.3 / 61.8 / 31.1 | 99.0 / 96.8 / 99.7",
            "zipper": "91.1 / 40.5 / 38.7 / 10.7 | 89.5 / 90.8 / 97.0",
        }.items()
    },
    ("AprilGan", "Visa", "0"): {
        category: _figures(line)
        for category, line in {
            "candle": "97.8 / 39.4 / 29.7 / 92.3 | 82.5 / 77.6 / 85.9",
            "capsules": "97.5 / 49.1 / 40.7 / 86.0 | 62.3 / 78.0 / 74.7",
            "cashew": "85.8 / 22.7 / 14.9 / 91.5 | 86.5 / 84.9 / 93.8",
            "chewinggum": "99.5 / 78.5 / 83.6 / 87.5 | 96.4 / 93.0 / 98.4",
            "fryum": "91.9 / 29.5 / 21.9 / 89.3 | 93.8 / 91.9 / 97.1",
            "macaroni1": "98.8 / 35.3 / 24.9 / 93.0 | 69.4 / 70.8 / 67.5",
            "macaroni2": "97.8 / 14.0 / 7.0 / 82.0 | 65.6 / 69.3 / 64.7",
            "pcb1": "92.8 / 12.3 / 8.3 / 87.3 | 51.2 / 66.9 / 55.5",
            "pcb2": "89.8 / 23.3 / 15.2 / 75.4 | 71.5 / 69.1 / 73.6",
            "pcb3": "88.2 / 21.9 / 14.5 / 77.2 | 66.9 / 66.7 / 70.3",
            "pcb4": "94.6 / 31.0 / 24.8 / 86.6 | 94.8 / 86.7 / 94.8",
            "pipe_fryum": "96.0 / 30.4 / 23.6 / 91.0 | 89.3 / 88.1 / 94.6",
        }.items()
    },
}
"""Figures of categories [M] with seed 42, by model class, data and shots, then by category."""
