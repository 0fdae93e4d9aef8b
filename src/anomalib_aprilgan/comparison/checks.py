# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Checks before the first run, so that missing data or weights are found once and not by every run."""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from anomalib.data import AnomalibDataModule
from lightning.pytorch import Trainer

from anomalib_aprilgan.comparison.components import make_datamodule
from anomalib_aprilgan.comparison.grid import Component, Run
from anomalib_aprilgan.comparison.kept_model import model_of
from anomalib_aprilgan.datamodule import category_folders
from anomalib_aprilgan.files.adapter_files import find_adapters
from anomalib_aprilgan.integration.quiet import quietly
from anomalib_aprilgan.integration.references import normal_training_files
from anomalib_aprilgan.integration.runs import describe
from anomalib_aprilgan.integration.setup import with_adapter
from anomalib_aprilgan.lightning_model import AprilGan
from anomalib_aprilgan.method.adapters import StageAdapters

__all__ = ["check_data", "check_models", "check_trainer", "find_categories", "read_lists"]


def find_categories(data: Component, wanted: Sequence[str] | None) -> list[str]:
    """List the categories to test on. If none are on disk, anomalib first downloads, unpacks and splits the data.

    Args:
        data: The datamodule.
        wanted: Names of categories; ``None``: all.

    Returns:
        Names of categories; ``[""]`` if the datamodule has none.

    Raises:
        ValueError: If the data are missing, a category does not exist, or the categories cannot be listed.
    """
    datamodule = make_datamodule(data, "")
    if not datamodule.category:
        if wanted:
            msg = f"Expected argument `categories` to be None for {datamodule.name}, which has none, but got {wanted}."
            raise ValueError(msg)
        return [""]
    if not category_folders(datamodule):
        read_lists(make_datamodule(data, wanted[0] if wanted else ""))
    found = category_folders(datamodule) or list(wanted or ())
    if not found:
        msg = (
            f"Expected argument `categories` to hold names, since the categories of {datamodule.name} have no folders "
            "of their own, but got None."
        )
        raise ValueError(msg)
    missing = sorted(set(wanted or ()) - set(found))
    if missing:
        msg = f"Expected argument `categories` to hold names from {found}, but got {missing}."
        raise ValueError(msg)
    return list(wanted or found)


def check_data(runs: Iterable[Run]) -> None:
    """Read the lists of images of every category.

    Raises:
        ValueError: If the data of a category are missing, cannot be read, or have fewer normal training images than a
            run needs.
    """
    with_most = {run.category: run for run in sorted(runs, key=_references)}
    for run in with_most.values():
        datamodule = make_datamodule(run.datamodule, run.category)
        read_lists(datamodule)
        needed = _references(run)
        number = len(normal_training_files(datamodule)) if needed else 0
        if number < needed:
            msg = (
                f"Expected argument `shots` to be at most {number}, the number of normal training images of "
                f"{f'{run.data}/{run.category}'.rstrip('/')}, but got {needed}. No run was started."
            )
            raise ValueError(msg)


def _references(run: Run) -> int:
    return 0 if run.shots == "full" else run.shots


def check_trainer(trainer: Mapping[str, Any]) -> None:
    """Check the names of arguments of anomalib's Engine.

    Raises:
        ValueError: If one is unknown.
    """
    known = inspect.signature(Trainer).parameters
    if unknown := [name for name in trainer if name not in known]:
        msg = f"Expected argument `trainer` to hold arguments of Lightning's Trainer, but got {', '.join(unknown)}."
        raise ValueError(msg)


def read_lists(datamodule: AnomalibDataModule) -> None:
    """List the images of a datamodule. If they are missing, anomalib downloads them first.

    Raises:
        ValueError: If they are missing, or cannot be read.
    """
    try:
        with quietly():
            datamodule.prepare_data()
            datamodule.setup()
    except Exception as error:  # anomalib and pandas raise errors of many types
        name = f"{type(datamodule).__name__} {datamodule.category}".rstrip()
        msg = (
            f"Expected argument `data` to be data that exist or can be downloaded, but {name} in "
            f"{getattr(datamodule, 'root', None)} cannot be read: {_in_one_line(error)}. Check `root` and the other "
            "arguments of the data. No run was started."
        )
        raise ValueError(msg) from error


def check_models(runs: Iterable[Run]) -> None:
    """Make each model once, with the adapters that it will use. Weights are downloaded, as in a run.

    Raises:
        RuntimeError: If a model cannot be made, for instance because its weights cannot be downloaded.
    """
    for run in {run.model: run for run in runs}.values():
        try:
            with quietly():
                _make(run)
        except Exception as error:  # models of anomalib and their weights raise errors of many types
            msg = f"The model {run.model!r} cannot be made: {_in_one_line(error)}. No run was started."
            raise RuntimeError(msg) from error


def _make(run: Run) -> None:
    """Make the model of a run, and read its adapters if it is an ``AprilGan`` that uses some."""
    model = model_of(run.component, 0)
    if isinstance(model, AprilGan) and isinstance(model.model.adapters, StageAdapters):
        data = describe(make_datamodule(run.datamodule, run.category))
        wanted = with_adapter(model.arguments, model.setup_record, data, model.model.backbone)
        if wanted.adapter is not None:
            find_adapters(wanted.adapter, model.model.origin, model.model.adapters.shapes)


def _in_one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(".")
