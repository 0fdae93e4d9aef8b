# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Published figures as rows of tables, for the classes of models that were measured with the same data and shots."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from anomalib_aprilgan.comparison.protocols import harmonic_mean
from anomalib_aprilgan.comparison.published_figures import CATEGORY_FIGURES, MEAN_FIGURES, Figures
from anomalib_aprilgan.comparison.tables import Cell, Row

__all__ = ["is_published", "published_category_rows", "published_mean_rows"]

CATEGORIES: Final[Mapping[str, frozenset[str]]] = {
    data: frozenset(figures) for (_, data, _), figures in CATEGORY_FIGURES.items()
}


def is_published(data: str, categories: Iterable[str]) -> bool:
    """Whether figures of a data set were published, as far as its name and those of its categories tell."""
    return CATEGORIES.get(data, frozenset()).issuperset(categories)


def published_mean_rows(measured: Iterable[Row], data: str, categories: Sequence[str]) -> list[Row]:
    """What was published of the means over categories.

    Args:
        measured: Rows of models, all with the same shots.
        data: Data set that they were measured on.
        categories: Categories that were measured; figures of them must have been published.

    Returns:
        For each class of models the paper's mean over all categories [Q], then the mean over the very categories that
        were measured [M], as far as there are figures.
    """
    rows = []
    for row in _one_per_class(measured):
        key = (row.class_name, data, row.shots)
        if key in MEAN_FIGURES:
            number = len(CATEGORIES[data])
            note = "" if len(categories) == number else f", {len(categories)} measured here"
            rows.append(_published(row, "[Q]", _cells(MEAN_FIGURES[key]), f"{number} categories{note}"))
        if key in CATEGORY_FIGURES and categories:
            each = [_category_cells(CATEGORY_FIGURES[key][category]) for category in categories]
            means = {column: Cell(sum(cells[column].mean for cells in each) / len(each)) for column in each[0]}
            rows.append(_published(row, "[M]", means, f"the same {len(each)}"))
    return rows


def published_category_rows(measured: Iterable[Row], data: str, category: str) -> list[Row]:
    """What was published of a category [M].

    Args:
        measured: Rows of models, all with the same shots.
        data: Data set that they were measured on.
        category: The category.

    Returns:
        One row for each class of models that there are figures of.
    """
    return [
        _published(row, "[M]", _category_cells(CATEGORY_FIGURES[key][category]))
        for row in _one_per_class(measured)
        if category in CATEGORY_FIGURES.get(key := (row.class_name, data, row.shots), {})
    ]


def _one_per_class(rows: Iterable[Row]) -> Iterable[Row]:
    return {row.class_name: row for row in rows}.values()


def _published(row: Row, source: str, cells: dict[str, Cell], note: str = "") -> Row:
    return Row(row.class_name, row.class_name, row.shots, source, cells, note=note)


def _cells(figures: Figures) -> dict[str, Cell]:
    """Figures in [0, 1]; those that were not found are left out."""
    return {
        column: Cell(figure.mean / 100, None if figure.deviation is None else figure.deviation / 100)
        for column, figure in figures.items()
        if figure is not None
    }


def _category_cells(figures: Figures) -> dict[str, Cell]:
    """Figures of one category in [0, 1], and what the VAND challenge makes of them."""
    cells = _cells(figures)
    f1 = harmonic_mean(cells["authors_image_F1Max"].mean, cells["authors_pixel_F1Max"].mean)
    return {**cells, "authors_VAND_F1": Cell(f1)}
