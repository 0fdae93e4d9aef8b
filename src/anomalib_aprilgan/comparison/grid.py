# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""The runs of a comparison, and the models and datamodules that they are made of."""

import hashlib
import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal, cast

import anomalib.models  # registers the models' short names
from anomalib.data import AnomalibDataModule
from anomalib.models.components import AnomalibModule
from jsonargparse import ArgumentError, ArgumentParser

from anomalib_aprilgan.comparison.results import KEY

__all__ = [
    "Component",
    "Run",
    "Shots",
    "add_component_arguments",
    "checked_components",
    "is_zero_shot",
    "make_datamodule",
    "make_grid",
    "make_model",
    "shard_of",
]

Component = Mapping[str, Any]
"""A class of anomalib with its arguments: ``class_path`` and ``init_args``."""

Shots = int | Literal["full"]
"""Number of normal reference images; ``"full"``: the whole training split."""

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
        models: Models by name.
        datamodule: The data.
        categories: Its categories; ``[""]`` if it has none.
        shots: Numbers of reference images.
        seeds: Seeds.
        zero_shot: Names of the models that work without training images. They take part with 0 shots, but not with the
            whole training split. All others are trained; they take part with the whole split, but not with 0 shots.

    Returns:
        The runs, ordered so that the models follow each other on each category.
    """
    return [
        Run(name, component, datamodule, category, count, seed)
        for seed in seeds
        for count in shots
        for category in categories
        for name, component in models.items()
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


def add_component_arguments(parser: ArgumentParser) -> None:
    """Add the arguments ``models`` and ``data``, written as on anomalib's command line, to a parser."""
    parser.add_argument("--models", type=dict[str, AnomalibModule], required=True, help="Models by names of your own.")
    parser.add_subclass_arguments(AnomalibDataModule, "data", required=True)


def checked_components(models: Mapping[str, Component], data: Component) -> tuple[dict[str, Component], Component]:
    """Check classes and arguments, and complete them.

    Args:
        models: Models by name. Class paths may be short, as on anomalib's command line.
        data: The datamodule.

    Returns:
        The same with full class paths and all default arguments.

    Raises:
        ValueError: If a class or an argument is unknown, or a model has arguments that choose its own references.
    """
    for name, model in models.items():
        own = {
            key: value for key in ("k_shot", "few_shot_source") if (value := (model.get("init_args") or {}).get(key))
        }
        if own:
            msg = (
                f"Expected the model {name!r} to use the reference images that all models get, but got {own}. Leave "
                "these arguments out, and set the number of images in `shots`."
            )
            raise ValueError(msg)
    parser = ArgumentParser(exit_on_error=False)
    add_component_arguments(parser)
    try:
        parsed = parser.parse_object({"models": dict(models), "data": dict(data)}).as_dict()
    except ArgumentError as error:
        msg = f"Expected arguments `models` and `data` to hold classes of anomalib with their arguments: {error}"
        raise ValueError(msg) from error
    return parsed["models"], parsed["data"]


def is_zero_shot(model: Component) -> bool:
    """Return whether a model has an argument ``k_shot``; all others are trained."""
    return "k_shot" in inspect.signature(_class_of(model)).parameters


def make_model(model: Component, k_shot: int) -> AnomalibModule:
    """Make a new model, with a number of reference images if it has such an argument."""
    arguments = dict(model.get("init_args") or {}) | ({"k_shot": k_shot} if is_zero_shot(model) else {})
    return cast("AnomalibModule", _instantiate(AnomalibModule, model, arguments))


def make_datamodule(data: Component, category: str) -> AnomalibDataModule:
    """Make a new datamodule, with a category unless it is empty."""
    arguments = dict(data.get("init_args") or {}) | ({"category": category} if category else {})
    return cast("AnomalibDataModule", _instantiate(AnomalibDataModule, data, arguments))


def _instantiate(base: type[Any], component: Component, arguments: Mapping[str, Any]) -> object:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(base, "component")
    content = {"class_path": component["class_path"], "init_args": dict(arguments)}
    return parser.instantiate_classes(parser.parse_object({"component": content})).component


def _class_of(component: Component) -> type[Any]:
    module, _, name = str(component["class_path"]).rpartition(".")
    return cast("type[Any]", getattr(import_module(module or anomalib.models.__name__), name))
