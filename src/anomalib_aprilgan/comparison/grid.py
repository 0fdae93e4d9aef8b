# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""The runs of a comparison. Imports nothing of anomalib, so that the command's help is quick."""

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from anomalib_aprilgan.comparison.results import KEY

__all__ = ["Component", "Run", "Shots", "checked_numbers", "make_grid", "shard_of"]

Component = Mapping[str, Any]
"""A class of anomalib with its arguments: ``class_path`` and ``init_args``."""

Shots = int | Literal["full"]
"""Number of normal reference images; ``"full"``: the whole training split."""

LARGEST_SEED = 2**32 - 1
"""Largest seed of numpy's global generator."""

IGNORED_ARGUMENTS = ("category", "num_workers", "evaluator", "visualizer")
"""Arguments left out of the settings: they have a column of their own, or do not change a result."""


@dataclass(frozen=True)
class Run:
    """A test of one model on one category, with a number of reference images and a seed.

    Attributes:
        model: The model's name in the configuration.
        component: The model.
        datamodule: The datamodule; its category is replaced.
        category: The category; empty if the datamodule has none.
        shots: Number of reference images.
        seed: Seed of training and of the choice of reference images.
    """

    model: str
    component: Component
    datamodule: Component
    category: str
    shots: Shots
    seed: int

    @property
    def data(self) -> str:
        """Name of the datamodule's class."""
        return str(self.datamodule["class_path"]).rpartition(".")[2]

    @property
    def key(self) -> tuple[str, ...]:
        """The values that identify the run in the table of results."""
        return tuple(str(getattr(self, name)) for name in KEY)

    @property
    def arguments(self) -> str:
        """All arguments that change the result, as JSON."""
        parts = {
            part: {"class_path": component["class_path"], "init_args": _relevant(component.get("init_args") or {})}
            for part, component in (("model", self.component), ("data", self.datamodule))
        }
        return json.dumps(parts, sort_keys=True, indent=2, default=str)

    @property
    def settings(self) -> str:
        """Short digest of the arguments."""
        return hashlib.sha256(self.arguments.encode()).hexdigest()[:12]

    def __str__(self) -> str:
        data = f"{self.data}/{self.category}".rstrip("/")
        return f"{self.model}, {data}, {self.shots}{'' if self.shots == 'full' else '-shot'}, seed {self.seed}"


def _relevant(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if name not in IGNORED_ARGUMENTS}


def checked_numbers(
    shots: Sequence[Shots], seeds: Sequence[int], processes: int | None
) -> tuple[list[Shots], list[int]]:
    """Check numbers of a comparison that do not depend on its data, and drop those that are given twice.

    Args:
        shots: Numbers of reference images.
        seeds: Seeds.
        processes: Number of processes.

    Returns:
        Numbers of reference images, and seeds.

    Raises:
        ValueError: If one is out of its range, or there are none.
    """
    for name, expected, values, wrong in (
        ("shots", 'numbers from 0 on, or "full"', shots, [one for one in shots if one != "full" and not _is_in(one)]),
        ("seeds", f"numbers from 0 to {LARGEST_SEED}", seeds, [one for one in seeds if not _is_in(one, LARGEST_SEED)]),
    ):
        if wrong or not values:
            msg = f"Expected argument `{name}` to hold {expected}, but got {wrong[0] if wrong else 'none'!r}."
            raise ValueError(msg)
    if processes is not None and not _is_in(processes, least=1):
        msg = f"Expected argument `processes` to be a number from 1 on, or None, but got {processes!r}."
        raise ValueError(msg)
    return list(dict.fromkeys(shots)), list(dict.fromkeys(seeds))


def _is_in(value: object, largest: int = sys.maxsize, least: int = 0) -> bool:
    """Whether a value is a whole number from the least to the largest one."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= largest


def make_grid(
    models: Mapping[str, Component],
    datamodule: Component,
    categories: Sequence[str],
    shots: Sequence[Shots],
    seeds: Sequence[int],
    zero_shot: Sequence[str],
    zero_shot_seeds: Sequence[int],
) -> list[Run]:
    """List the runs of a comparison.

    Args:
        models: Models by name.
        datamodule: The data.
        categories: Its categories; ``[""]`` if it has none.
        shots: Numbers of reference images.
        seeds: Seeds.
        zero_shot: Names of the models that work without training images. They take part with 0 shots, but not with the
            whole training split. All others are trained; they take part with the whole split, but not with 0 shots.
        zero_shot_seeds: Seeds of the runs with 0 shots.

    Returns:
        The runs. All runs of a model on a category follow each other, so that they share what was computed once.
    """
    return [
        Run(name, component, datamodule, category, count, seed)
        for category in categories
        for name, component in models.items()
        for count in shots
        for seed in (seeds if count else zero_shot_seeds)
        if count != ("full" if name in zero_shot else 0)
    ]


def shard_of(runs: Sequence[Run], shard: str | None) -> list[Run]:
    """Take every n-th run.

    Args:
        runs: The whole grid.
        shard: Number of the part, counted from 1, and of all parts, for instance ``"2/4"``; ``None``: all runs.

    Returns:
        Runs of the part.

    Raises:
        ValueError: If the text is no such fraction.
    """
    number, _, parts = (shard or "1/1").partition("/")
    if not (number.isdecimal() and parts.isdecimal() and 1 <= int(number) <= int(parts)):
        msg = f"Expected argument `shard` to be for instance 2/4, the second of four parts, but got {shard!r}."
        raise ValueError(msg)
    return list(runs[int(number) - 1 :: int(parts)])
