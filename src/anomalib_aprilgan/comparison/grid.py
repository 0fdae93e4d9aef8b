# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Which runs a comparison is made of."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from anomalib_aprilgan.comparison.results import KEY

__all__ = ["Component", "Run", "Shots", "make_grid", "shard_of"]

Component = Mapping[str, Any]
"""A class of anomalib with its arguments: ``class_path`` and ``init_args``."""

Shots = int | Literal["full"]
"""Number of normal reference images; ``"full"``: the whole training split."""

OWN_LINES = ("category", "num_workers", "evaluator", "visualizer")
"""Arguments that are told by columns of their own, or do not change a result."""


@dataclass(frozen=True)
class Run:
    """One model on one category, with so many reference images, drawn by a seed.

    Attributes:
        model: The model's name in the configuration.
        component: The model.
        datamodule: The datamodule, whatever its category.
        category: The category; empty where the datamodule knows none.
        shots: Number of reference images.
        seed: Seed of everything.
    """

    model: str
    component: Component
    datamodule: Component
    category: str
    shots: Shots
    seed: int

    @property
    def data(self) -> str:
        """The datamodule's class."""
        return str(self.datamodule["class_path"]).rpartition(".")[2]

    @property
    def key(self) -> tuple[str, ...]:
        """What tells the run apart, as in the table of results."""
        return tuple(str(getattr(self, name)) for name in KEY)

    @property
    def settings(self) -> str:
        """All arguments that a result depends on beside the key, as JSON."""
        parts = {
            part: {"class_path": component["class_path"], "init_args": _relevant(component.get("init_args") or {})}
            for part, component in (("model", self.component), ("data", self.datamodule))
        }
        return json.dumps(parts, sort_keys=True, indent=2, default=str)

    @property
    def digest(self) -> str:
        """Short digest of the settings."""
        return hashlib.sha256(self.settings.encode()).hexdigest()[:12]

    def __str__(self) -> str:
        data = f"{self.data}/{self.category}".rstrip("/")
        return f"{self.model}, {data}, {self.shots}{'' if self.shots == 'full' else '-shot'}, seed {self.seed}"


def _relevant(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if name not in OWN_LINES}


def make_grid(
    models: Mapping[str, Component],
    datamodule: Component,
    categories: Sequence[str],
    shots: Sequence[Shots],
    seeds: Sequence[int],
    zero_shot: Sequence[str],
) -> list[Run]:
    """List the runs of a comparison.

    Args:
        models: By name.
        datamodule: The data.
        categories: Its categories; ``[""]`` if it knows none.
        shots: Numbers of reference images.
        seeds: Seeds.
        zero_shot: The models that can do without training images; they take part with 0 shots, but not with the whole
            training split. The others are trained, and the other way round.

    Returns:
        The runs, so that all models of a category follow on each other.
    """
    return [
        Run(name, component, datamodule, category, count, seed)
        for seed in seeds
        for count in shots
        for category in categories
        for name, component in models.items()
        if count != ("full" if name in zero_shot else 0)
    ]


def shard_of(runs: Sequence[Run], shard: tuple[int, int] | None) -> list[Run]:
    """Take every n-th run.

    Args:
        runs: The whole grid.
        shard: Number of the shard, counted from 1, and of all shards; ``None``: all runs.

    Returns:
        The shard's runs.
    """
    number, shards = shard or (1, 1)
    return list(runs[number - 1 :: shards])
