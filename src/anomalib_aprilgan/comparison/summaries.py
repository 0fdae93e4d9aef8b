# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""The tables of a report as texts: metrics, models, costs, failures, reference images."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any, Final, Literal

import pandas as pd

from anomalib_aprilgan.comparison.results import FAILED
from anomalib_aprilgan.comparison.tables import Averages, Metric, done_of

__all__ = [
    "Table",
    "cost_table",
    "data_titles",
    "environment",
    "failure_table",
    "in_words",
    "marker_classes",
    "metric_table",
    "model_table",
    "reference_table",
]

ENVIRONMENT: Final = {
    "device": "device",
    "anomalib_aprilgan": "anomalib-aprilgan",
    "anomalib": "anomalib",
    "torch": "torch",
    "open_clip": "open_clip",
}
"""Columns that should have one value throughout a comparison, and their titles."""

NOTHING: Final = "–"  # noqa: RUF001  # a dash

MAX_LISTED: Final = 6
"""Number of missing runs that a note lists."""


@dataclass(frozen=True)
class Table:
    """A table of texts, for HTML and Markdown.

    Attributes:
        cells: Texts; the columns are titles, or pairs of a level and a title.
        classes: CSS classes of the cells; ``best`` is bold in Markdown, too.
        left: Columns that are aligned to the left.
        notes: Sentences below the table.
    """

    cells: pd.DataFrame
    classes: pd.DataFrame
    left: Sequence[str | tuple[str, str]]
    notes: list[str] = field(default_factory=list)


def in_words(shots: str) -> str:
    """Describe a number of reference images: zero-shot, 4-shot, full training split."""
    if shots.isdecimal():
        return f"{shots}-shot" if int(shots) else "zero-shot"
    return f"{shots} training split"


def metric_table(
    averages: Averages, metrics: Sequence[Metric], by: Literal["shots", "category"], models: Iterable[str]
) -> Table:
    """Make a table of metrics in percent, one row per group and model.

    Args:
        averages: Means, also published ones.
        metrics: The columns.
        by: Column that makes the groups.
        models: Names of the models in their order.
    """
    cells = {(cell.group, cell.model, cell.source, cell.metric): cell for cell in averages.cells.itertuples()}
    markers = marker_classes(models)
    texts, classes, previous = [], [], None
    for row in averages.rows.itertuples():
        of_row = [cells.get((row.group, row.model, row.source, metric.column)) for metric in metrics]
        title = in_words(row.group) if by == "shots" else row.group or "all"
        if row.source:
            name, count = f"{row.model}, published {row.source}", row.note
        else:
            name, count = row.model, f"{row.runs:.0f} of {row.expected:.0f}{' †' if row.missing else ''}"
        texts.append([title, name, *map(_metric_text, of_row), count])
        css = [
            "repeated" if row.group == previous else "",
            "hollow" if row.source else markers[row.model],
            *("best" if cell is not None and cell.is_best else "" for cell in of_row),
            "gap" if row.missing else "",
        ]
        line = ("published " if row.source else "") + ("first" if row.group != previous else "")
        classes.append([f"{names} {line}".strip() for names in css])
        previous = row.group
    left = [("", by), ("", "model")]
    columns = pd.MultiIndex.from_tuples([*left, *((metric.level, metric.title) for metric in metrics), ("", "runs")])
    return Table(
        pd.DataFrame(texts, columns=columns), pd.DataFrame(classes, columns=columns), left, _notes(averages, by)
    )


def _metric_text(cell: Any) -> str:  # noqa: ANN401  # a row of a data frame
    """Format mean and standard deviation in percent; ‡ marks a metric that some runs lack."""
    if cell is None:
        return NOTHING
    deviation = "" if pd.isna(cell.std) else f" ±{100 * cell.std:.1f}"
    return f"{100 * cell.mean:.1f}{deviation}{' ‡' if cell.is_partial else ''}"


def _notes(averages: Averages, by: str) -> list[str]:
    """Explain the marks of a table."""
    notes = []
    for row in averages.rows[averages.rows["missing"].map(len) > 0].itertuples():
        if by == "category":
            notes = ["† Some seeds are missing."]
            break
        listed = ", ".join(row.missing[:MAX_LISTED])
        listed += f" and {len(row.missing) - MAX_LISTED} more" if len(row.missing) > MAX_LISTED else ""
        note = f"† {row.model}, {in_words(row.group)}: {f'without {listed}.' if row.runs else 'no run is done.'}"
        if row.lacks_categories:
            note += " Its means are over fewer categories and cannot be compared; where they lead, none is bold."
        notes.append(note)
    published = averages.rows[averages.rows["source"] == "[Q]"]
    for known, measured in published[["expected", "runs"]].drop_duplicates().itertuples(index=False):
        if measured < known:
            notes.append(f"[Q] are means over all {known:.0f} categories; {measured:.0f} were measured here.")
    if averages.cells["is_partial"].any():
        notes.append("‡ Some of the row's runs lack this metric, so it cannot be compared.")
    return notes


def model_table(runs: pd.DataFrame) -> Table:
    """List the models that took part."""
    of_model = runs.groupby("model", observed=True)
    cells = of_model.agg(shots=("shots", _in_order), seeds=("seed", _in_order))
    done, total = done_of(runs).groupby("model", observed=False).size().reindex(cells.index), of_model.size()
    cells["runs done"] = done.astype(str) + " of " + total.astype(str)
    cells["class"] = of_model["class_path"].agg(lambda paths: ", ".join(_texts(paths)))
    cells = cells.rename_axis("model").reset_index()
    return _table(
        cells, ["model", "shots", "seeds", "class"], **{"runs done": (done < total).map({True: "gap", False: ""})}
    )


def cost_table(runs: pd.DataFrame) -> Table:
    """Summarise time and memory of the runs that are done: medians, and of memory the maximum."""
    keys = ["data", "model", "shots", "device"]
    columns = {
        "seconds_per_image": ("s per image", "median"),
        "fit_seconds": ("fit, s", "median"),
        "test_seconds": ("test, s", "median"),
        "peak_memory_mb": ("memory, MB", "max"),
        "parameters": ("parameters, million", "median"),
    }
    of_runs = done_of(runs).assign(parameters=runs["parameters"] / 1e6).groupby(keys, observed=True)
    costs = of_runs.agg(**{title: (name, how) for name, (title, how) in columns.items()}).map(_digits)
    costs = costs.assign(runs=of_runs.size().astype(str)).reset_index()
    costs["shots"] = costs["shots"].astype(str).map(in_words)
    in_order = ["model", "shots", "data", *(title for title, _ in columns.values()), "runs", "device"]
    return _table(costs[in_order], keys)


def failure_table(runs: pd.DataFrame) -> Table:
    """List the runs that failed, with their errors."""
    failed = runs[runs["status"] == FAILED]
    cells = failed[["model", "data", "category", "shots", "seed", "error"]].reset_index(drop=True)
    cells = cells.assign(shots=cells["shots"].astype(str).map(in_words), error=cells["error"].replace("", "no message"))
    return _table(cells, list(cells), error="long folded wrong")


def reference_table(runs: pd.DataFrame) -> tuple[Table, bool]:
    """List the reference images, and return whether all models had the same ones.

    Models with the same images share a row.
    """
    keys = ["data", "category", "shots", "seed"]
    with_any = runs[runs["references"] != ""]
    drawn = with_any.groupby([*keys, "references"], observed=True)["model"].agg(_in_order).reset_index()
    folders = [_split_folder(files.split(";")) for files in drawn["references"]]
    cells = pd.DataFrame(
        {
            "category": drawn["category"].astype(str).mask(drawn["category"] == "", drawn["data"].astype(str)),
            "shots": drawn["shots"].astype(str).map(in_words),
            "seed": drawn["seed"].astype(str),
            "files": [files for _, files in folders],
            "folder": [folder for folder, _ in folders],
            "models": drawn["model"],
        }
    )
    return _table(cells, list(cells), files="long"), not drawn.duplicated(keys).any()


def data_titles(runs: pd.DataFrame) -> dict[str, str]:
    """Return titles of the data sets by the classes of their datamodules.

    A title is the argument ``name`` of the datamodule, as of a ``Folder``. Without it, it is the folder's name with
    the name of the class, or the class alone if both are the same. Titles differ from each other.
    """
    titles = {}
    for data in runs["data"].cat.categories:
        known = next(filter(None, runs["arguments"][runs["data"] == data]), "{}")
        arguments = json.loads(known).get("data", {}).get("init_args", {})
        folder = PurePath(str(arguments.get("root") or data)).name
        own = data if folder.casefold() == data.casefold() else f"{folder} ({data})"
        titles[data] = str(arguments.get("name") or own)
    if len(set(titles.values())) < len(titles):
        return {data: f"{title} ({data})" for data, title in titles.items()}
    return titles


def environment(runs: pd.DataFrame) -> dict[str, list[str]]:
    """List devices and versions by title. Several values mean that they changed between runs."""
    return {title: _texts(runs[column]) for column, title in ENVIRONMENT.items()}


def _table(cells: pd.DataFrame, left: Sequence[str], **classes: str | pd.Series) -> Table:
    """Make a table with classes of some columns, and the markers of models."""
    css = pd.DataFrame("", index=cells.index, columns=cells.columns)
    if "model" in cells:
        css["model"] = cells["model"].astype(str).map(marker_classes(cells["model"].cat.categories))
    for column, names in classes.items():
        css[column] = names if isinstance(names, str) else list(names)
    return Table(cells.astype(str), css, left)


def marker_classes(models: Iterable[str]) -> dict[str, str]:
    """Return the CSS classes that put a model's marker before its name."""
    return {model: f"model-{place}" for place, model in enumerate(models)}


def _split_folder(files: list[str]) -> tuple[str, str]:
    """Separate the folder that all files are in from their names; it is empty if there are several."""
    folders = {str(PurePath(file).parent) for file in files}
    if len(folders) > 1:
        return "", ", ".join(files)
    return folders.pop(), ", ".join(PurePath(file).name for file in files)


def _texts(column: pd.Series) -> list[str]:
    """Return the different texts of a column that are not empty."""
    return [text for text in column.unique() if text]


def _in_order(column: pd.Series) -> str:
    return ", ".join(map(str, column.unique().sort_values()))


def _digits(value: float) -> str:
    """Format a measured value with three digits."""
    if pd.isna(value):
        return NOTHING
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"  # noqa: PLR2004
