# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Plots of a comparison, as SVG that fits a phone. Who is who is told by the page, which knows the same styles."""

from collections.abc import Iterable, Mapping, Sequence
from io import StringIO
from typing import Any, Final, NamedTuple

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from anomalib_aprilgan.comparison.tables import Row

__all__ = ["Style", "bars_by_category", "metric_by_seconds", "metric_by_shots", "styles_of"]

Rows = Mapping[str, Sequence[Row]]
"""Rows by shots, or by category."""


class Style(NamedTuple):
    """How a model is drawn: its colour, matplotlib's marker, and the same as a character."""

    colour: str
    marker: str
    character: str


COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette, which colour-blind readers can tell apart, without its yellow, which white swallows."""

MARKERS: Final = (("o", "●"), ("s", "■"), ("^", "▲"), ("D", "◆"), ("v", "▼"), ("P", "✚"), ("X", "✖"), ("*", "★"))

NEUTRAL: Final = Style("#555555", "o", "●")
"""Of published figures, where several models are of the class."""

SETTINGS: Final[dict[Any, Any]] = {
    "font.size": 9.0,
    "svg.hashsalt": "comparison",  # the same input gives the same file
    "text.parse_math": False,  # a name may hold a dollar sign
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "axes.axisbelow": True,
    "lines.linewidth": 1.5,
    "lines.markersize": 5.5,
}
WIDTH: Final = 3.9
"""Inches; as many CSS pixels as a phone has, so that the letters keep their size."""

CHANCE: Final = 50.0
"""AUROC of a coin, in percent."""


def styles_of(models: Iterable[str]) -> dict[str, Style]:
    """Give each model its style, by its place; 56 of them differ."""
    return {
        model: Style(COLOURS[place % len(COLOURS)], *MARKERS[place % len(MARKERS)])
        for place, model in enumerate(models)
    }


def metric_by_shots(rows: Rows, column: str, styles: Mapping[str, Style]) -> str | None:
    """Draw a metric against the number of reference images; bars are standard deviations over seeds, † as in tables.

    Args:
        rows: Rows by shots. Published ones become hollow markers.
        column: The metric.
        styles: By model.

    Returns:
        SVG, or ``None`` if there are values of fewer than two numbers of shots.
    """
    shots = [shots for shots, group in rows.items() if any(column in row.cells and not row.source for row in group)]
    if len(shots) < 2:  # noqa: PLR2004  # nothing that could rise or fall
        return None
    with rc_context(SETTINGS):
        figure, axes = _figure(2.7)
        for model, style in styles.items():
            points = [
                (place, row)
                for place, count in enumerate(shots)
                for row in rows[count]
                if row.model == model and not row.source and column in row.cells
            ]
            axes.errorbar(
                [place for place, _ in points],
                [100 * row.cells[column].mean for _, row in points],
                [100 * (row.cells[column].deviation or 0) for _, row in points],
                color=style.colour,
                marker=style.marker,
                capsize=2,
                elinewidth=1,
            )
            for place, row in points:
                _annotate(axes, _mark(row, column), place, 100 * row.cells[column].mean)
        for place, count in enumerate(shots):
            for row in rows[count]:
                if row.source == "[Q]" and column in row.cells:
                    style = _published_style(row, rows, styles)
                    axes.plot(
                        place,
                        100 * row.cells[column].mean,
                        color=style.colour,
                        marker=style.marker,
                        markersize=8,
                        markerfacecolor="none",
                        zorder=3,
                    )
        axes.set_xticks(range(len(shots)), shots)
        axes.set_xlim(-0.3, len(shots) - 0.7)
        axes.set_xlabel("reference images")
        axes.set_ylabel("percent")
        return _svg(figure)


def metric_by_seconds(rows: Rows, column: str, styles: Mapping[str, Style]) -> str | None:
    """Draw a metric against the time per image; each point bears its number of reference images.

    Args:
        rows: Rows by shots.
        column: The metric.
        styles: By model.

    Returns:
        SVG, or ``None`` if no time was measured.
    """
    points = [
        (row.model, row.shots + _mark(row, column), row.seconds_per_image, 100 * row.cells[column].mean)
        for group in rows.values()
        for row in group
        if row.seconds_per_image and column in row.cells
    ]
    if not points:
        return None
    with rc_context(SETTINGS):
        figure, axes = _figure(2.7)
        for model, style in styles.items():
            own = [point for point in points if point[0] == model]
            seconds, values = [point[2] for point in own], [point[3] for point in own]
            axes.plot(seconds, values, color=style.colour, marker=style.marker, linewidth=0.8)
            for _, text, second, value in own:
                _annotate(axes, text, second, value)
        axes.set_xscale("log")
        shortest, longest = (extreme(point[2] for point in points) for extreme in (min, max))
        axes.set_xlim(shortest / 1.6, longest * 1.6)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda second, _: f"{second:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.margins(y=0.12)
        axes.set_xlabel("seconds per image")
        axes.set_ylabel("percent")
        return _svg(figure)


def bars_by_category(rows: Rows, column: str, styles: Mapping[str, Style]) -> str | None:
    """Draw an AUROC of each category and model, as the distance from chance.

    Args:
        rows: Rows by category.
        column: The metric.
        styles: By model.

    Returns:
        SVG, or ``None`` if there are values of fewer than two categories.
    """
    categories = [category for category, group in rows.items() if any(column in row.cells for row in group)]
    if len(categories) < 2:  # noqa: PLR2004  # the mean tells it
        return None
    models = [model for model in styles if any(row.model == model for group in rows.values() for row in group)]
    thickness = 0.8 / len(models)
    with rc_context(SETTINGS):
        figure, axes = _figure(0.6 + len(categories) * (0.12 + 0.09 * len(models)))
        for place, category in enumerate(categories):
            for row in rows[category]:
                if not row.source and column in row.cells:
                    offset = (models.index(row.model) + 0.5) * thickness - 0.4
                    value = 100 * row.cells[column].mean
                    colour = styles[row.model].colour
                    axes.barh(place + offset, value - CHANCE, thickness * 0.9, left=CHANCE, color=colour)
        axes.axvline(CHANCE, color="black", linewidth=0.8)
        axes.set_xlim(right=100)
        axes.set_yticks(range(len(categories)), [_shortened(category) for category in categories])
        axes.set_ylim(len(categories) - 0.4, -0.6)
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("percent")
        return _svg(figure)


def _mark(row: Row, column: str) -> str:
    """What marks a number in the tables that cannot be compared with others."""
    return "" if row.can_be_best(column) else "†"


def _annotate(axes: Axes, text: str, x: float, y: float) -> None:
    axes.annotate(text, (x, y), (6, 0), textcoords="offset points", va="center", fontsize=7.5)


def _published_style(row: Row, rows: Rows, styles: Mapping[str, Style]) -> Style:
    """The style of the model that is of the class, if there is but one."""
    models = {other.model for group in rows.values() for other in group if other.class_name == row.class_name}
    own = [style for model, style in styles.items() if model in models]
    return own[0] if len(own) == 1 else NEUTRAL


def _shortened(text: str, length: int = 22) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _figure(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.add_subplot()


def _svg(figure: Figure) -> str:
    buffer = StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()
