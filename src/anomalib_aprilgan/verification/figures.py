# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Measured figures beside published ones, as text, with the tolerance of each."""

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Final, NamedTuple

import pandas as pd

from anomalib_aprilgan.comparison.published_figures import (
    CATEGORY_FIGURES,
    MEAN_FIGURES,
    PUBLISHED_METRICS,
    Figure,
    Figures,
)
from anomalib_aprilgan.comparison.results import DONE

__all__ = ["describe_figures"]

MODEL: Final = "AprilGan"
TITLES: Final = ("AUROC", "F1-max", "AP", "PRO", "AUROC", "F1-max", "AP")
"""Titles of `PUBLISHED_METRICS`: four of pixels, three of images."""

MEAN_TOLERANCE: Final = 0.3
"""Percentage points by which a mean over all categories may differ; with references, three standard deviations more.

The tolerances are chosen, not measured: this project has had no access to the real weights. The authors compute in half
precision on a GPU, where few images and pixels change places. Means hide that, single categories do not.
"""


def tolerance(metric: str, figure: Figure, *, is_mean: bool) -> float:
    """Return by how many percentage points a figure may differ.

    In a category, one image of a hundred moves image metrics by a point, and PRO depends on its 200 thresholds.
    """
    if is_mean:
        return MEAN_TOLERANCE + 3 * (figure.deviation or 0.0)
    return 1.0 if "image" in metric or metric.endswith("PRO") else 0.5


class Cell(NamedTuple):
    """A figure in percent, measured and published; NaN and ``None`` if there is none."""

    measured: float
    published: float | None
    is_met: bool

    def __str__(self) -> str:
        published = "?" if self.published is None else f"{self.published:.1f}"
        return f"{self.measured:6.2f} {published:>5}{' ' if self.is_met else '!'}"


def describe_figures(runs: pd.DataFrame, data: str, shots: int, categories: Sequence[str]) -> tuple[str, bool]:
    """Compare the figures of a data set with the published ones.

    Args:
        runs: Return value of ``read_runs``.
        data: Class of the datamodule, ``"MVTecAD"`` or ``"Visa"``.
        shots: Number of reference images.
        categories: Categories that the data set should have.

    Returns:
        A table, and whether all published figures are met. Without all categories, no mean is compared.
    """
    key = (MODEL, data, str(shots))
    done = runs[(runs.status == DONE) & (runs.data == data) & (runs.shots == str(shots))]
    measured = 100 * done.groupby("category")[list(PUBLISHED_METRICS)].mean()
    published = CATEGORY_FIGURES.get(key, {})
    rows = {
        name: _row(measured.loc[name], published.get(name, {}), is_mean=False)
        for name in categories
        if name in measured.index
    }
    missing = [name for name in categories if name not in measured.index]
    if not missing:
        rows["mean"] = _row(measured.loc[list(categories)].mean(), _mean_of(published, key), is_mean=True)
    head = [f"{title:^13}" for title in TITLES]
    lines = [
        f"{data}, {shots}-shot: measured and published figures in percent; ! marks those outside of the tolerance",
        f"{'':<12}  {'pixel':<{14 * 4}}image",
        " ".join([f"{'':<12}", *head]).rstrip(),
        *(" ".join([f"{name:<12}", *map(str, cells)]).rstrip() for name, cells in rows.items()),
    ]
    if missing:
        lines.append(f"No mean: {', '.join(missing)} not measured.")
    return "\n".join(lines), all(cell.is_met for cells in rows.values() for cell in cells)


def _row(measured: "pd.Series[float]", published: Figures, *, is_mean: bool) -> list[Cell]:
    cells = []
    for metric in PUBLISHED_METRICS:
        value, figure = float(measured[metric]), published.get(metric)
        limit = 0.0 if figure is None else tolerance(metric, figure, is_mean=is_mean)
        is_met = figure is None or abs(value - figure.mean) <= limit + 1e-9
        cells.append(Cell(value, None if figure is None else figure.mean, is_met))
    return cells


def _mean_of(categories: Mapping[str, Figures], key: tuple[str, str, str]) -> Figures:
    """Return the mean of the categories' figures, which one person measured; without them, the paper's mean."""
    if not categories:
        return MEAN_FIGURES.get(key, {})
    figures = {metric: [row[metric] for row in categories.values()] for metric in PUBLISHED_METRICS}
    return {
        metric: Figure(mean(figure.mean for figure in column if figure is not None))
        for metric, column in figures.items()
    }
