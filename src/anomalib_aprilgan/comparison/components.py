# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""anomalib's models and datamodules by class and arguments, checked before the first run begins."""

import inspect
from collections.abc import Mapping
from importlib import import_module
from typing import Any, cast

import anomalib.models  # makes the models' short names known
from anomalib.data import AnomalibDataModule
from anomalib.models.components import AnomalibModule
from jsonargparse import ArgumentError, ArgumentParser

from anomalib_aprilgan.comparison.grid import Component

__all__ = ["add_component_arguments", "checked_components", "is_zero_shot", "make_datamodule", "make_model"]


def add_component_arguments(parser: ArgumentParser) -> None:
    """Add models and data, written as on anomalib's command line.

    Args:
        parser: Gets the arguments ``models`` and ``data``.
    """
    parser.add_argument("--models", type=dict[str, AnomalibModule], required=True, help="Models by names of your own.")
    parser.add_subclass_arguments(AnomalibDataModule, "data", required=True)


def checked_components(models: Mapping[str, Component], data: Component) -> tuple[dict[str, Component], Component]:
    """Complete class paths and arguments.

    Args:
        models: By name. Class paths may be short, as on anomalib's command line.
        data: The datamodule.

    Returns:
        The same with full class paths and all default arguments.

    Raises:
        ValueError: If a class or an argument is unknown, or a model is to choose its own references.
    """
    for name, model in models.items():
        own = {
            key: value for key in ("k_shot", "few_shot_source") if (value := (model.get("init_args") or {}).get(key))
        }
        if own:
            msg = (
                f"Expected the model {name!r} to take the reference images that all models get, but got {own}. Say how "
                "many in `shots`, and leave these arguments out."
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
    """Whether a model takes reference images, if any, as ``k_shot``; all others are trained."""
    return "k_shot" in inspect.signature(_class_of(model)).parameters


def make_model(model: Component, k_shot: int) -> AnomalibModule:
    """Make a model anew.

    Args:
        model: The model.
        k_shot: Number of reference images, for a model that takes them.
    """
    arguments = dict(model.get("init_args") or {})
    if is_zero_shot(model):
        arguments["k_shot"] = k_shot
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(AnomalibModule, "model")
    parsed = parser.parse_object({"model": {"class_path": model["class_path"], "init_args": arguments}})
    return cast("AnomalibModule", parser.instantiate_classes(parsed).model)


def make_datamodule(data: Component, category: str) -> AnomalibDataModule:
    """Make a datamodule anew.

    Args:
        data: The datamodule.
        category: The category; empty where it knows none.
    """
    arguments = dict(data.get("init_args") or {}) | ({"category": category} if category else {})
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(AnomalibDataModule, "data")
    parsed = parser.parse_object({"data": {"class_path": data["class_path"], "init_args": arguments}})
    return cast("AnomalibDataModule", parser.instantiate_classes(parsed).data)


def _class_of(component: Component) -> type[Any]:
    module, _, name = str(component["class_path"]).rpartition(".")
    return cast("type[Any]", getattr(import_module(module or anomalib.models.__name__), name))
