# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""What the report says of each data set: tables and plots, by each protocol."""

from base64 import b64encode
from dataclasses import dataclass
from itertools import groupby

import pandas as pd

from anomalib_aprilgan.comparison.plots import Style, bars_by_category, metric_by_seconds, metric_by_shots
from anomalib_aprilgan.comparison.protocols import ANOMALIB, AUTHORS, Metric, Protocol
from anomalib_aprilgan.comparison.published_rows import is_published, published_category_rows, published_mean_rows
from anomalib_aprilgan.comparison.tables import (
    Row,
    categories_of,
    category_rows,
    done_of,
    has_no_masks,
    in_words,
    mean_rows,
    metrics_of,
    shots_of,
)

__all__ = ["Chapter", "Plot", "Section", "Table", "write_sections"]


@dataclass(frozen=True)
class Table:
    """Rows in groups, under two lines of headings.

    Attributes:
        metrics: The columns.
        groups: Rows by shots, or by category.
    """

    metrics: list[Metric]
    groups: dict[str, list[Row]]

    @property
    def levels(self) -> list[tuple[str, int]]:
        """What successive columns look at, and how many of them do."""
        return [(level, len(list(part))) for level, part in groupby(self.metrics, lambda metric: metric.level)]

    @property
    def gaps(self) -> list[Row]:
        """Measured rows that lack runs."""
        return [row for group in self.groups.values() for row in group if row.missing]

    @property
    def models(self) -> set[str]:
        """Names of the measured models."""
        return {row.model for group in self.groups.values() for row in group if not row.source}

    @property
    def has_published(self) -> bool:
        """Whether published rows stand beside measured ones."""
        return any(row.source for group in self.groups.values() for row in group)

    @property
    def has_partial_cells(self) -> bool:
        """Whether a number leaves out runs of its row."""
        return any(cell.is_partial for group in self.groups.values() for row in group for cell in row.cells.values())


@dataclass(frozen=True)
class Plot:
    """A plot: what it shows, and an address that holds it."""

    title: str
    address: str


@dataclass(frozen=True)
class Chapter:
    """What a protocol says.

    Attributes:
        protocol: Its name.
        means: Means over categories, by shots.
        plots: Means against shots, and for anomalib's protocol against time.
        bars: For anomalib's protocol, categories side by side.
        categories: Each category, by shots; empty if there is only one.
    """

    protocol: str
    means: Table
    plots: list[Plot]
    bars: list[Plot]
    categories: dict[str, Table]


@dataclass(frozen=True)
class Section:
    """What there is to say of a data set.

    Attributes:
        data: Its name.
        has_no_masks: Whether there are image metrics only.
        chapters: One for each protocol that something was measured by.
    """

    data: str
    has_no_masks: bool
    chapters: list[Chapter]


def write_sections(runs: pd.DataFrame, styles: dict[str, Style]) -> list[Section]:
    """Write a section for each data set.

    Args:
        runs: All runs, with what is derived from their metrics.
        styles: How the models are drawn.

    Returns:
        Sections in the order of the data sets' first runs.
    """
    return [_section(data, of_data, styles) for data, of_data in runs.groupby("data", sort=False)]


def _section(data: str, runs: pd.DataFrame, styles: dict[str, Style]) -> Section:
    protocols = [protocol for protocol in (ANOMALIB, AUTHORS) if metrics_of(runs, protocol)]
    return Section(
        data=data,
        has_no_masks=has_no_masks(runs),
        chapters=[_chapter(data, runs, protocol, styles) for protocol in protocols],
    )


def _chapter(data: str, runs: pd.DataFrame, protocol: Protocol, styles: dict[str, Style]) -> Chapter:
    metrics = metrics_of(runs, protocol)
    means = mean_rows(runs, protocol)
    each = {shots: category_rows(runs, protocol, shots) for shots in shots_of(runs)}
    if protocol is AUTHORS and is_published(data, categories_of(runs)):
        for shots, rows in means.items():
            measured = categories_of(done_of(runs[runs["shots"] == shots]))
            rows.extend(published_mean_rows(rows, data, measured))
            for category, of_category in each[shots].items():
                of_category.extend(published_category_rows(of_category, data, category))
    aurocs = [metric for metric in metrics if metric.title == "AUROC"]
    drawn = [(metric, "by reference images", metric_by_shots(means, metric.column, styles)) for metric in aurocs]
    bars = []
    if protocol is ANOMALIB:
        drawn += [(metric, "by time", metric_by_seconds(means, metric.column, styles)) for metric in aurocs]
        bars = [
            (metric, in_words(shots), bars_by_category(each[shots], metric.column, styles))
            for shots in _shots_side_by_side(means)
            for metric in aurocs
        ]
    return Chapter(
        protocol=protocol.name,
        means=Table(metrics, means),
        plots=_plots(drawn),
        bars=_plots(bars),
        categories={shots: Table(metrics, groups) for shots, groups in each.items() if len(categories_of(runs)) > 1},
    )


def _shots_side_by_side(means: dict[str, list[Row]]) -> list[str]:
    """Zero-shot, and the largest number of shots that several models have."""
    measured = {shots: [row for row in rows if row.runs] for shots, rows in means.items()}
    most = min(2, max(map(len, measured.values())))
    largest = [shots for shots, rows in measured.items() if len(rows) >= most][-1:]
    return list(dict.fromkeys([shots for shots in measured if shots == "0"] + largest))


def _plots(drawn: list[tuple[Metric, str, str | None]]) -> list[Plot]:
    """Those that there was something to draw of."""
    return [
        Plot(
            title=f"{metric.level.title()} {metric.title}, {what}",
            address=f"data:image/svg+xml;base64,{b64encode(svg.encode()).decode()}",
        )
        for metric, what, svg in drawn
        if svg is not None
    ]
