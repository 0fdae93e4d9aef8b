# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""What is on record about runs beside their metrics: what took part, what it cost, what failed, the references."""

from dataclasses import dataclass
from pathlib import PurePath
from typing import Final

import pandas as pd

from anomalib_aprilgan.comparison.results import FAILED
from anomalib_aprilgan.comparison.tables import categories_of, done_of, order, shots_of

__all__ = [
    "Cost",
    "DataRecord",
    "Failure",
    "ModelRecord",
    "ReferenceRecord",
    "costs",
    "data_sets",
    "failures",
    "models",
    "references",
    "surroundings",
]

SURROUNDINGS: Final = {
    "device": "device",
    "anomalib_aprilgan": "anomalib-aprilgan",
    "anomalib": "anomalib",
    "torch": "torch",
    "open_clip": "open_clip",
    "git_revision": "git revision",
}
"""Columns that should hold one value throughout a comparison, and their titles."""


@dataclass(frozen=True)
class ModelRecord:
    """A model that took part.

    Attributes:
        name: Its name in the configuration.
        class_path: Its class; several if runs disagree.
        shots: Numbers of reference images, in their order.
        seeds: Seeds, in their order.
        settings: Digests of its settings by data; more than one if they changed between runs.
        done: Number of runs that are done.
        runs: Number of all runs.
    """

    name: str
    class_path: str
    shots: tuple[str, ...]
    seeds: tuple[str, ...]
    settings: dict[str, tuple[str, ...]]
    done: int
    runs: int

    @property
    def has_changed(self) -> bool:
        """Whether runs that are averaged had different settings."""
        return any(len(digests) > 1 for digests in self.settings.values())


@dataclass(frozen=True)
class DataRecord:
    """A data set: its categories, and the number of its test images (``None``: not on record)."""

    name: str
    categories: tuple[str, ...]
    images: int | None


@dataclass(frozen=True)
class Cost:
    """Medians over a model's runs with the same data, shots and device; of memory the most. ``None``: not measured."""

    data: str
    model: str
    shots: str
    device: str
    runs: int
    seconds_per_image: float | None
    fit_seconds: float | None
    test_seconds: float | None
    peak_memory_mb: float | None
    parameters: float | None


@dataclass(frozen=True)
class Failure:
    """A run that failed."""

    model: str
    data: str
    category: str
    shots: str
    seed: str
    error: str


@dataclass(frozen=True)
class ReferenceRecord:
    """Reference images, and the models that had these very ones.

    Attributes:
        data: Data set.
        category: Category.
        shots: Number of them.
        seed: Seed that they were drawn with.
        models: Names of the models.
        folder: Folder that all of them are in, or empty.
        files: Their names in it, or their paths.
    """

    data: str
    category: str
    shots: str
    seed: str
    models: tuple[str, ...]
    folder: str
    files: tuple[str, ...]


def models(results: pd.DataFrame) -> list[ModelRecord]:
    """List the models, in the order of their first runs."""
    return [
        ModelRecord(
            name=name,
            class_path=", ".join(_texts(runs["class_path"])),
            shots=tuple(shots_of(runs)),
            seeds=tuple(sorted(set(runs["seed"]), key=order)),
            settings={data: _texts(part["settings"]) for data, part in runs.groupby("data", sort=False)},
            done=len(done_of(runs)),
            runs=len(runs),
        )
        for name, runs in results.groupby("model", sort=False)
    ]


def data_sets(results: pd.DataFrame) -> list[DataRecord]:
    """List the data sets, in the order of their first runs."""
    records = []
    for name, runs in results.groupby("data", sort=False):
        images = done_of(runs).groupby("category")["images"].median().sum()
        records.append(DataRecord(name, tuple(categories_of(runs)), int(images) or None))
    return records


def surroundings(results: pd.DataFrame) -> dict[str, tuple[str, ...]]:
    """List device, versions and revision by their titles; more than one value each if they changed between runs."""
    return {title: _texts(results[column]) for column, title in SURROUNDINGS.items()}


def costs(results: pd.DataFrame) -> list[Cost]:
    """List what the runs that are done took, in the order of data, models and shots."""
    done = done_of(results)
    keys = ["data", "model", "shots", "device"]
    groups = [
        Cost(
            **dict(zip(keys, key, strict=True)),
            runs=len(runs),
            seconds_per_image=_number(runs["seconds_per_image"].median()),
            fit_seconds=_number(runs["fit_seconds"].median()),
            test_seconds=_number(runs["test_seconds"].median()),
            peak_memory_mb=_number(runs["peak_memory_mb"].max()),
            parameters=_number(runs["parameters"].median()),
        )
        for key, runs in done.groupby(keys, sort=False)
    ]
    places = [list(dict.fromkeys(results[column])) for column in ("data", "model")]
    return sorted(groups, key=lambda cost: (places[0].index(cost.data), places[1].index(cost.model), order(cost.shots)))


def failures(results: pd.DataFrame) -> list[Failure]:
    """List the runs that failed, with their errors."""
    failed = results[results["status"] == FAILED]
    columns = ["model", "data", "category", "shots", "seed", "error"]
    return [Failure(*values) for values in failed[columns].itertuples(index=False, name=None)]


def references(results: pd.DataFrame) -> list[ReferenceRecord]:
    """List the reference images of the runs that had any; models that had the same ones share a line."""
    with_any = results[results["references"] != ""]
    keys = ["data", "category", "shots", "seed", "references"]
    drawn = [
        ReferenceRecord(data, category, shots, seed, _texts(runs["model"]), *_in_folder(files.split(";")))
        for (data, category, shots, seed, files), runs in with_any.groupby(keys, sort=False)
    ]
    places = list(dict.fromkeys(results["data"]))
    return sorted(
        drawn, key=lambda one: (places.index(one.data), order(one.category), order(one.shots), order(one.seed))
    )


def _in_folder(files: list[str]) -> tuple[str, tuple[str, ...]]:
    """Tell the folder that all files are in from their names; without one, it is empty."""
    folders = {str(PurePath(file).parent) for file in files}
    if len(folders) > 1:
        return "", tuple(files)
    return folders.pop(), tuple(PurePath(file).name for file in files)


def _texts(column: pd.Series) -> tuple[str, ...]:
    """The different texts of a column that are not empty."""
    return tuple(dict.fromkeys(text for text in column if text))


def _number(value: float) -> float | None:
    return None if pd.isna(value) else float(value)
