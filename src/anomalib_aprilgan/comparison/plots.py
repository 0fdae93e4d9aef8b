# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Plots of a comparison as SVG, narrow enough for a phone. The page shows the legend."""

from collections.abc import Iterable, Mapping
from io import StringIO
from typing import Any, Final, NamedTuple

import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

__all__ = ["Style", "bars_by_category", "metric_by_seconds", "metric_by_shots", "styles_of"]


class Style(NamedTuple):
    """A model's colour, its marker in matplotlib, and the same marker as a character."""

    colour: str
    marker: str
    character: str


COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
"""The palette of Okabe and Ito for colour-blind readers, without its yellow, which is hard to see on white, and with
grey instead of black, which is hard to see on a dark page."""

MARKERS: Final = (("o", "●"), ("s", "■"), ("^", "▲"), ("D", "◆"), ("v", "▼"), ("P", "✚"), ("X", "✖"), ("*", "★"))

NEUTRAL: Final = Style("#7F7F7F", "o", "●")
"""Style of published figures if several models have the class."""

INK: Final = "#16191d"
"""Colour of texts and axes, which :func:`_svg` makes depend on the reader's colour scheme."""

SCHEMES: Final = f"svg {{ color: {INK} }} @media (prefers-color-scheme: dark) {{ svg {{ color: #e4e7ea }} }}"

SETTINGS: Final[dict[Any, Any]] = {
    "font.size": 9.0,
    "svg.hashsalt": "comparison",  # makes the ids in the file reproducible
    "text.parse_math": False,  # names may contain dollar signs
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#888888",
    "grid.alpha": 0.25,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
    "axes.axisbelow": True,
    "lines.linewidth": 1.5,
    "lines.markersize": 5.5,
}
WIDTH: Final = 3.9
"""Inches; about the width of a phone, so that the text keeps its size."""

CHANCE: Final = 50.0
"""AUROC of random scores, in percent."""


def styles_of(models: Iterable[str]) -> dict[str, Style]:
    """Give each model a style, by its place; the first 56 styles differ."""
    return {
        model: Style(COLOURS[place % len(COLOURS)], *MARKERS[place % len(MARKERS)])
        for place, model in enumerate(models)
    }


def metric_by_shots(cells: pd.DataFrame, metric: str, styles: Mapping[str, Style]) -> str | None:
    """Draw a metric against the number of reference images.

    Bars are standard deviations over seeds, † marks values that are not comparable, hollow markers are published [Q].

    Args:
        cells: Cells of averages by shots.
        metric: Column of the metric.
        styles: Styles by model.

    Returns:
        SVG, or ``None`` if there are values of fewer than two numbers of shots.
    """
    points = cells[cells["metric"] == metric]
    measured = points[points["source"] == ""]
    shots = [str(group) for group in measured["group"].unique().sort_values()]
    if len(shots) < 2:  # noqa: PLR2004  # a single point is no curve
        return None
    places = {group: place for place, group in enumerate(shots)}
    with rc_context(SETTINGS):
        figure, axes = _figure(2.7)
        for model, style in styles.items():
            own = measured[measured["model"] == model]
            x, y = [places[group] for group in own["group"]], 100 * own["mean"]
            deviation = 100 * own["std"].fillna(0)
            axes.errorbar(x, y, deviation, color=style.colour, marker=style.marker, capsize=2, elinewidth=1)
            for place, value, is_comparable in zip(x, y, own["is_comparable"], strict=True):
                _annotate(axes, "" if is_comparable else "†", place, value)
        published = points[(points["source"] == "[Q]") & points["group"].isin(shots)]
        for row in published.itertuples():
            of_class = set(measured["model"][measured["class_name"] == row.class_name])
            style = styles[of_class.pop()] if len(of_class) == 1 else NEUTRAL
            look: dict[str, Any] = {
                "color": style.colour,
                "marker": style.marker,
                "markersize": 8,
                "markerfacecolor": "none",
            }
            axes.plot(places[row.group], 100 * row.mean, zorder=3, **look)
        axes.set_xticks(range(len(shots)), shots)
        axes.set_xlim(-0.3, len(shots) - 0.7)
        axes.set_xlabel("reference images")
        axes.set_ylabel("percent")
        return _svg(figure)


def metric_by_seconds(cells: pd.DataFrame, metric: str, styles: Mapping[str, Style]) -> str | None:
    """Draw a metric against the time per image. Labels are numbers of reference images.

    Args:
        cells: Cells of averages by shots.
        metric: Column of the metric.
        styles: Styles by model.

    Returns:
        SVG, or ``None`` if no time was measured.
    """
    points = cells[(cells["metric"] == metric) & (cells["seconds_per_image"] > 0)]
    if points.empty:
        return None
    with rc_context(SETTINGS):
        figure, axes = _figure(2.7)
        for model, style in styles.items():
            own = points[points["model"] == model]
            seconds, values = own["seconds_per_image"], 100 * own["mean"]
            axes.plot(seconds, values, color=style.colour, marker=style.marker, linewidth=0.8)
            for group, is_comparable, x, y in zip(own["group"], own["is_comparable"], seconds, values, strict=True):
                _annotate(axes, group if is_comparable else f"{group}†", x, y)
        axes.set_xscale("log")
        axes.set_xlim(points["seconds_per_image"].min() / 1.6, points["seconds_per_image"].max() * 1.6)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda second, _: f"{second:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.margins(y=0.12)
        axes.set_xlabel("seconds per image")
        axes.set_ylabel("percent")
        return _svg(figure)


def bars_by_category(cells: pd.DataFrame, metric: str, styles: Mapping[str, Style]) -> str | None:
    """Draw an AUROC of each category and model, as the distance from chance.

    Args:
        cells: Cells of averages by category.
        metric: Column of the AUROC.
        styles: Styles by model.

    Returns:
        SVG, or ``None`` if there are values of fewer than two categories.
    """
    points = cells[(cells["metric"] == metric) & (cells["source"] == "")]
    categories = [str(group) for group in points["group"].unique().sort_values()]
    if len(categories) < 2:  # noqa: PLR2004  # the mean has the same value
        return None
    models = [model for model in styles if model in set(points["model"])]
    thickness = 0.8 / len(models)
    with rc_context(SETTINGS):
        figure, axes = _figure(0.6 + len(categories) * (0.12 + 0.09 * len(models)))
        for group, model, mean in points[["group", "model", "mean"]].itertuples(index=False):
            place = categories.index(group) + (models.index(model) + 0.5) * thickness - 0.4
            axes.barh(place, 100 * mean - CHANCE, thickness * 0.9, left=CHANCE, color=styles[model].colour)
        axes.axvline(CHANCE, color=INK, linewidth=0.8)
        axes.set_xlim(right=100)
        axes.set_yticks(range(len(categories)), [_shortened(category) for category in categories])
        axes.set_ylim(len(categories) - 0.4, -0.6)
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("percent")
        return _svg(figure)


def _annotate(axes: Axes, text: str, x: float, y: float) -> None:
    axes.annotate(text, (x, y), (6, 0), textcoords="offset points", va="center", fontsize=7.5)


def _shortened(text: str, length: int = 22) -> str:
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1] + "…"


def _figure(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.add_subplot()


def _svg(figure: Figure) -> str:
    buffer = StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue().replace(INK, "currentColor").replace("</style>", f"{SCHEMES}</style>", 1)
