# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""From runs to the rows of tables: means over categories and seeds, what they cover, and which are best.

All of it is measured. What was published stands beside it, see ``published_rows.py``; no mean takes both.
"""

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import pandas as pd

from anomalib_aprilgan.comparison.protocols import ANOMALIB, AUTHORS, Metric, Protocol
from anomalib_aprilgan.comparison.results import DONE

__all__ = [
    "Cell",
    "Row",
    "categories_of",
    "category_rows",
    "done_of",
    "has_no_masks",
    "in_words",
    "mean_rows",
    "metrics_of",
    "order",
    "shots_of",
]


class Cell(NamedTuple):
    """A number of a table.

    Attributes:
        mean: In [0, 1].
        deviation: Sample standard deviation over seeds, or as published; ``None`` for a single seed.
        is_partial: Whether some of the row's runs have no such value.
        is_best: Whether no comparable row of the group, at the precision shown, is better.
    """

    mean: float
    deviation: float | None = None
    is_partial: bool = False
    is_best: bool = False


@dataclass(frozen=True)
class Row:
    """A line of a table.

    Attributes:
        model: Name of the measured model, or class of the published one.
        class_name: Class of the model.
        shots: Reference images, as in the table of results.
        source: Where published numbers come from; empty for measured ones.
        cells: By column; those without a value are left out.
        seeds: Number of seeds with a run that is done.
        runs: Number of runs that are done.
        expected: Number of all categories times seeds that were seen with this data and these shots.
        missing: Which of them are missing, in words.
        lacks_categories: Whether the mean of some seed is over fewer categories than there are.
        seconds_per_image: Median over the runs; ``None`` if not measured.
        note: What is to be known of a published row.
    """

    model: str
    class_name: str
    shots: str
    source: str = ""
    cells: dict[str, Cell] = field(default_factory=dict)
    seeds: int = 0
    runs: int = 0
    expected: int = 0
    missing: tuple[str, ...] = ()
    lacks_categories: bool = False
    seconds_per_image: float | None = None
    note: str = ""

    def can_be_best(self, column: str) -> bool:
        """Whether a number is measured, and over as many categories as there are."""
        return not (self.source or self.lacks_categories or self.cells[column].is_partial)


def order(text: str) -> tuple[int, int, str]:
    """Sort numbers by value, then words: 0, 1, 4, 16, full."""
    return (0, int(text), "") if text.isdecimal() else (1, 0, text)


def in_words(shots: str) -> str:
    """Say how many reference images: zero-shot, 4-shot, full training split."""
    if shots.isdecimal():
        return f"{shots}-shot" if int(shots) else "zero-shot"
    return f"{shots} training split"


def shots_of(runs: pd.DataFrame) -> list[str]:
    """Numbers of reference images in runs, in their order."""
    return sorted(set(runs["shots"]), key=order)


def categories_of(runs: pd.DataFrame) -> list[str]:
    """Categories in runs, in their order."""
    return sorted(set(runs["category"]), key=order)


def metrics_of(runs: pd.DataFrame, protocol: Protocol) -> list[Metric]:
    """The metrics that some run has a value of.

    Args:
        runs: Runs of one data set.
        protocol: Which of the two.

    Returns:
        Metrics in the protocol's order.
    """
    return [metric for metric in protocol.metrics if done_of(runs)[metric.column].notna().any()]


def has_no_masks(runs: pd.DataFrame) -> bool:
    """Whether runs of one data set have image metrics, but none of pixels."""
    levels = {metric.level for protocol in (ANOMALIB, AUTHORS) for metric in metrics_of(runs, protocol)}
    return levels == {"image"}


def mean_rows(runs: pd.DataFrame, protocol: Protocol) -> dict[str, list[Row]]:
    """Average over categories, then over seeds.

    Args:
        runs: All runs on one data set, failed ones included, with what :func:`with_derived` adds.
        protocol: Which metrics.

    Returns:
        Rows by shots, one per model.
    """
    categories = categories_of(runs)
    metrics = metrics_of(runs, protocol)
    return {shots: _rows(runs[runs["shots"] == shots], metrics, categories) for shots in shots_of(runs)}


def category_rows(runs: pd.DataFrame, protocol: Protocol, shots: str) -> dict[str, list[Row]]:
    """Average over seeds alone.

    Args:
        runs: All runs on one data set, failed ones included, with what :func:`with_derived` adds.
        protocol: Which metrics.
        shots: Those with so many reference images.

    Returns:
        Rows by category, one per model.
    """
    metrics = metrics_of(runs, protocol)
    at_shots = runs[runs["shots"] == shots]
    seeds = set(at_shots["seed"])
    return {
        category: _rows(at_shots[at_shots["category"] == category], metrics, [category], seeds)
        for category in categories_of(at_shots)
    }


def _rows(
    runs: pd.DataFrame, metrics: Sequence[Metric], categories: Sequence[str], seeds: Collection[str] = ()
) -> list[Row]:
    """One row per model, the best values marked."""
    columns = [metric.column for metric in metrics]
    seeds = sorted({*seeds, *runs["seed"]}, key=order)
    models = dict.fromkeys(runs["model"])
    return _with_best([_row(runs[runs["model"] == model], columns, categories, seeds) for model in models], columns)


def _row(runs: pd.DataFrame, columns: Sequence[str], categories: Sequence[str], seeds: Sequence[str]) -> Row:
    """Average the runs of one model with one number of shots."""
    done = done_of(runs)
    cells = {}
    for column in columns:
        of_seeds = done.groupby("seed")[column].mean().dropna()
        if len(of_seeds):
            deviation = float(of_seeds.std(ddof=1)) if len(of_seeds) > 1 else None
            is_partial = bool(done[column].isna().any())
            cells[column] = Cell(float(of_seeds.mean()), deviation, is_partial)
    covered = set(zip(done["category"], done["seed"], strict=True))
    missing, lacks_categories = [], False
    for seed in seeds:
        absent = [category for category in categories if (category, seed) not in covered]
        if len(absent) == len(categories):
            missing.append(f"seed {seed}")
        elif absent:
            lacks_categories = True
            missing += [f"{category} with seed {seed}" for category in absent]
    first = (done if len(done) else runs).iloc[0]
    seconds = done["seconds_per_image"].median()
    return Row(
        model=first["model"],
        class_name=first["class_name"],
        shots=first["shots"],
        cells=cells,
        seeds=done["seed"].nunique(),
        runs=len(done),
        expected=len(categories) * len(seeds),
        missing=tuple(missing),
        lacks_categories=lacks_categories,
        seconds_per_image=None if pd.isna(seconds) else float(seconds),
    )


def _with_best(rows: list[Row], columns: Iterable[str]) -> list[Row]:
    """Mark the best value of each column; none where it is one that cannot be compared, or the only one that can."""
    best = {}
    for column in columns:
        having = [row for row in rows if column in row.cells]
        several = sum(row.can_be_best(column) for row in having) > 1
        best[column] = max(_shown(row.cells[column]) for row in having) if several else math.inf
    return [
        replace(
            row,
            cells={
                column: cell._replace(is_best=row.can_be_best(column) and _shown(cell) == best[column])
                for column, cell in row.cells.items()
            },
        )
        for row in rows
    ]


def _shown(cell: Cell) -> float:
    """Percent at the precision of the tables."""
    return round(100 * cell.mean, 1)


def done_of(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs that have results."""
    return runs[runs["status"] == DONE]
