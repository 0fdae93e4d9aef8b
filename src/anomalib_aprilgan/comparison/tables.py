# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Means over categories and seeds, which of them are best, and published figures beside them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

import pandas as pd

from anomalib_aprilgan.comparison.published_figures import CATEGORY_FIGURES, MEAN_FIGURES
from anomalib_aprilgan.comparison.results import DONE

__all__ = [
    "ANOMALIB",
    "AUTHORS",
    "Averages",
    "Metric",
    "add_published",
    "average",
    "done_of",
    "harmonic_mean",
    "measured_metrics",
    "order",
    "prepare",
]


class Metric(NamedTuple):
    """A metric: its column in the table of results, what it is computed on (image, pixel, VAND), and its title."""

    column: str
    level: str
    title: str


def _protocol(prefix: str, average_precision: str, overlap: str) -> tuple[Metric, ...]:
    titles = (("AUROC", "AUROC"), ("F1Max", "F1-max"), ("AUPR", average_precision))
    return (
        *(Metric(f"{prefix}{level}_{name}", level, title) for level in ("image", "pixel") for name, title in titles),
        Metric(f"{prefix}pixel_{overlap}", "pixel", overlap),
        Metric(f"{prefix}VAND_F1", "VAND", "F1"),
    )


ANOMALIB: Final = _protocol("", "AUPR", "AUPRO")
AUTHORS: Final = _protocol("authors_", "AP", "PRO")


def order(text: str) -> tuple[int, int, str]:
    """Return a key that sorts numbers by value, then words: 0, 1, 4, 16, full."""
    return (0, int(text), "") if text.isdecimal() and text.isascii() else (1, 0, text)


def harmonic_mean(first: pd.Series, second: pd.Series) -> pd.Series:
    """Return the harmonic means of numbers in [0, 1]; 0 if both are 0, NaN if one is missing."""
    total = first + second
    return (2 * first * second / total).mask(total == 0, 0.0)


def prepare(results: pd.DataFrame) -> pd.DataFrame:
    """Add derived columns, and give keys their order.

    Args:
        results: What ``read_runs`` returns.

    Returns:
        A new table with the F1 of the VAND challenge in both protocols (``VAND_F1``, ``authors_VAND_F1``) and the name
        of the model's class (``class_name``). Its keys are ordered categories: data and models by their first runs,
        the others by value.
    """
    first_seen = {name: results[name].unique() for name in ("model", "data")}
    by_value = {name: sorted(results[name].unique(), key=order) for name in ("category", "shots", "seed")}
    return results.assign(
        **{
            f"{prefix}VAND_F1": harmonic_mean(results[f"{prefix}image_F1Max"], results[f"{prefix}pixel_F1Max"])
            for prefix in ("", "authors_")
        },
        **{
            name: pd.Categorical(results[name], values, ordered=True)
            for name, values in (first_seen | by_value).items()
        },
        class_name=results["class_path"].map(lambda path: path.rpartition(".")[2]),
    )


def done_of(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the runs that have results."""
    return runs[runs["status"] == DONE]


def measured_metrics(runs: pd.DataFrame, protocol: Iterable[Metric]) -> list[Metric]:
    """Return the metrics of a protocol that at least one run has a value of."""
    return [metric for metric in protocol if done_of(runs)[metric.column].notna().any()]


@dataclass(frozen=True)
class Averages:
    """Means of models, in groups: one group per number of shots, or one per category.

    Attributes:
        rows: One line per model and group, with the columns ``group``, ``model``, ``class_name``, ``source`` (of
            published figures; empty if measured), ``runs`` (number of runs that are done), ``expected`` (number of all
            runs), ``missing`` (description of the missing runs), ``lacks_categories`` (whether the mean of a seed is
            over fewer categories than there are), ``seconds_per_image`` (median) and ``note``. For published figures,
            ``runs`` is the number of measured categories and ``expected`` of all, and ``note`` replaces them.
        cells: One line per row and metric, with the columns of ``rows``, ``metric``, ``mean`` and ``std`` (in [0, 1];
            the sample standard deviation over seeds, NaN for a single one), ``is_partial`` (whether a run of the row
            lacks the metric), ``is_comparable`` and ``is_best``.
    """

    rows: pd.DataFrame
    cells: pd.DataFrame


def average(runs: pd.DataFrame, metrics: Sequence[Metric], by: Literal["shots", "category"]) -> Averages:
    """Average over the categories of each seed, then over seeds.

    Args:
        runs: Prepared runs on one data set, failed ones included. To average by category, all must have the same
            number of shots.
        metrics: The metrics.
        by: Column that makes the groups. By category, there is only the mean over seeds.

    Returns:
        The means of the runs that are done.
    """
    keys = [by, "model"]
    done = done_of(runs)
    long = done.melt([*keys, "seed"], [metric.column for metric in metrics], var_name="metric")
    of_seeds = long.groupby([*keys, "metric", "seed"], observed=True)["value"].mean()
    cells = of_seeds.groupby([*keys, "metric"], observed=True).agg(["mean", "std"])
    cells["is_partial"] = long.assign(gap=long["value"].isna()).groupby([*keys, "metric"], observed=True)["gap"].any()
    rows = runs.groupby(keys, observed=True).agg(class_name=("class_name", "first"))
    of_done = done.groupby(keys, observed=True)
    rows["runs"] = of_done.size().reindex(rows.index, fill_value=0)
    rows["seconds_per_image"] = of_done["seconds_per_image"].median()
    gaps = pd.DataFrame([_gaps(runs, by, *key) for key in rows.index], rows.index)
    rows = rows.join(gaps).assign(source="", note="").reset_index(names=["group", "model"])
    rows["model"] = rows["model"].astype(object)
    cells = cells.dropna(subset=["mean"]).reset_index(names=["group", "model", "metric"])
    cells = cells.merge(rows, on=["group", "model"])
    return Averages(rows, _mark_best(cells))


def _gaps(runs: pd.DataFrame, by: str, group: str, model: str) -> dict[str, Any]:
    """Find the categories and seeds that a model has no results of, among all that the data has in this group."""
    in_group = runs[runs[by] == group]
    seeds = (in_group if by == "shots" else runs)["seed"].unique().sort_values()
    categories = runs["category"].unique().sort_values() if by == "shots" else [group]
    done = done_of(in_group[in_group["model"] == model])
    count = pd.crosstab(done["seed"], done["category"]).reindex(index=seeds, columns=categories, fill_value=0)
    missing, lacks_categories = [], False
    for seed, line in count.iterrows():
        absent = list(line.index[line == 0])
        if len(absent) == len(line):
            missing.append(f"seed {seed}")
        elif absent:
            lacks_categories = True
            missing += [f"{category} with seed {seed}" for category in absent]
    return {"expected": count.size, "missing": tuple(missing), "lacks_categories": lacks_categories}


def _mark_best(cells: pd.DataFrame) -> pd.DataFrame:
    """Mark the best value of each group, at the precision of the tables.

    Values that are not comparable are never marked, and if one of them is the largest, no value is.
    """
    is_comparable = ~(cells["is_partial"] | cells["lacks_categories"]).astype(bool)
    shown = (100 * cells["mean"]).round(1)
    groups = [cells["group"], cells["metric"]]
    largest = shown.groupby(groups, observed=True).transform("max")
    several = is_comparable.groupby(groups, observed=True).transform("sum") > 1
    return cells.assign(is_comparable=is_comparable, is_best=is_comparable & several & (shown == largest))


def add_published(averages: Averages, runs: pd.DataFrame, by: Literal["shots", "category"]) -> Averages:
    """Add published figures of the classes of models that were measured with the same data and shots.

    Args:
        averages: Means by the authors' protocol.
        runs: Runs that they are made of.
        by: Column that makes the groups.

    Returns:
        A new table with, in each group, the paper's mean over all categories [Q], and the mean over the measured
        categories or the figure of the category [M]. Nothing is added if a category of the data is unknown.
    """
    data = str(runs["data"].iloc[0])
    known = {category for (_, name, _), figures in CATEGORY_FIGURES.items() if name == data for category in figures}
    if not known.issuperset(runs["category"]):
        return averages
    rows, cells = [], []
    for group, class_name in averages.rows[["group", "class_name"]].drop_duplicates().itertuples(index=False):
        key = (class_name, data, group if by == "shots" else str(runs["shots"].iloc[0]))
        measured = list(done_of(runs[runs[by] == group])["category"].unique().sort_values())
        if by == "category":
            measured = [group]
        published = []
        if by == "shots" and key in MEAN_FIGURES:
            figures = pd.DataFrame(MEAN_FIGURES[key], ["mean", "std"], dtype=float).T / 100
            published.append(("[Q]", figures, f"{len(known)} categories"))
        if key in CATEGORY_FIGURES and measured:
            means = _category_figures(key).loc[measured].mean()
            note = f"the same {len(measured)}" if by == "shots" else ""
            published.append(("[M]", means.to_frame("mean").assign(std=float("nan")), note))
        for source, figures, note in published:
            row = {"group": group, "model": class_name, "class_name": class_name, "source": source, "note": note}
            rows.append({**row, "missing": (), "runs": len(measured), "expected": len(known)})
            cells.append(figures.dropna(subset=["mean"]).rename_axis("metric").reset_index().assign(**row))
    return Averages(_append(averages.rows, [pd.DataFrame(rows)]), _append(averages.cells, cells))


def _category_figures(key: tuple[str, str, str]) -> pd.DataFrame:
    """Return published figures in [0, 1] by category and metric, with the F1 of the VAND challenge."""
    percent = {
        category: {name: figure.mean for name, figure in line.items() if figure is not None}
        for category, line in CATEGORY_FIGURES[key].items()
    }
    figures = pd.DataFrame(percent).T / 100
    return figures.assign(authors_VAND_F1=harmonic_mean(figures["authors_image_F1Max"], figures["authors_pixel_F1Max"]))


def _append(measured: pd.DataFrame, published: list[pd.DataFrame]) -> pd.DataFrame:
    """Append lines to their groups."""
    flags = {name: False for name in ("is_partial", "is_comparable", "is_best") if name in measured}
    groups = measured["group"].dtype
    new = [table.assign(group=table["group"].astype(groups), **flags) for table in published if len(table)]
    return pd.concat([measured, *new]).sort_values("group", kind="stable", ignore_index=True)
