# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Models and datamodules of a comparison: checked, completed and made from their descriptions."""

import inspect
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from typing import Any, Final, cast

import anomalib.models  # registers the models' short names
from anomalib.data import AnomalibDataModule
from anomalib.models.components import AnomalibModule
from jsonargparse import ArgumentError, ArgumentParser

from anomalib_aprilgan.comparison.grid import Component

__all__ = ["add_component_arguments", "checked_components", "class_of", "is_zero_shot", "make_datamodule", "make_model"]

LONGEST_NAME: Final = 100
"""Characters of the longest name of a model."""


JOINERS: Final = (0x00A0, 0x200C, 0x200D)
"""Characters that Python does not call printable, but names may have: a space, and two that Persian and emoji need."""


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
        ValueError: If a class or an argument is unknown, a model has arguments that choose its own references, or its
            name is unsuitable.
    """
    for name, model in models.items():
        shown = name.translate(dict.fromkeys(JOINERS))
        if not shown.strip() or not shown.isprintable() or len(name) > LONGEST_NAME:
            msg = (
                f"Expected argument `models` to have names of one line and at most {LONGEST_NAME} characters, but got "
                f"{name[:LONGEST_NAME]!r}. The names are those of the models in tables and plots."
            )
            raise ValueError(msg)
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
    return "k_shot" in inspect.signature(class_of(model)).parameters


def make_model(model: Component, k_shot: int) -> AnomalibModule:
    """Make a new model, with a number of reference images if it has such an argument."""
    arguments = dict(model.get("init_args") or {}) | ({"k_shot": k_shot} if is_zero_shot(model) else {})
    return cast("AnomalibModule", _instantiate(AnomalibModule, model, arguments))


def make_datamodule(data: Component, category: str) -> AnomalibDataModule:
    """Make a new datamodule, with a category unless it is empty."""
    arguments = dict(data.get("init_args") or {}) | ({"category": category} if category else {})
    return cast("AnomalibDataModule", _instantiate(AnomalibDataModule, data, arguments))


def _instantiate(base: type[Any], component: Component, arguments: Mapping[str, Any]) -> object:
    content = {"class_path": component["class_path"], "init_args": dict(arguments)}
    parser = _parser_of(base)  # type: ignore[arg-type]  # mypy takes type[Any] for unhashable
    return parser.instantiate_classes(parser.parse_object({"component": content})).component


@cache
def _parser_of(base: type[Any]) -> ArgumentParser:
    """Make a parser for the subclasses of a class, once: each run needs one for its datamodule."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(base, "component")
    return parser


def class_of(component: Component) -> type[Any]:
    """Import the class of a component."""
    module, _, name = str(component["class_path"]).rpartition(".")
    return cast("type[Any]", getattr(import_module(module or anomalib.models.__name__), name))
