# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""What a run of anomalib's Engine says: its datamodule, its seed, and its image files."""

import logging
import os
from collections.abc import Iterator
from typing import cast

from anomalib.data import AnomalibDataModule, MVTecAD, Visa
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.trainer.states import TrainerFn, TrainerStatus
from torch import nn
from torchmetrics import Metric

from anomalib_aprilgan.integration.references import normal_training_files
from anomalib_aprilgan.integration.setup import Data

__all__ = [
    "DEFAULT_SEED",
    "command_line_seed",
    "command_line_value",
    "data_sources",
    "datamodule_of",
    "describe",
    "evaluated_loaders",
    "lacks_validation_split",
    "limit_predictions",
    "refuse_during_run",
    "reset_metrics",
    "running_trainer",
    "seed_of",
    "use_own_dataloader",
]

logger = logging.getLogger(__name__)

DEFAULT_SEED = 0
"""Seed where `seed_everything` was not called; Lightning's default as well."""


BYTES_PER_PIXEL = 17
"""Memory of a kept prediction: image and map as floats, and the mask."""

MANY_GIGABYTES = 4
"""Memory of kept predictions from which a warning says so."""


def command_line_value(trainer: Trainer | None, name: str) -> object:
    """Return a value of the configuration of anomalib's command, which leaves it in one of the trainer's callbacks.

    Args:
        trainer: The run's trainer.
        name: Name of the value, for instance ``"trainer.max_epochs"``.

    Returns:
        The value; ``None`` if it is not given, and outside of anomalib's command.
    """
    for callback in getattr(trainer, "callbacks", ()):
        if isinstance(callback, SaveConfigCallback):
            return callback.config.get(name)
    return None


def command_line_seed(trainer: Trainer | None) -> int | None:
    """Return the number of ``--seed_everything`` on anomalib's command line, which 2.7 reads but does not apply.

    Args:
        trainer: The run's trainer.
    """
    seed = command_line_value(trainer, "seed_everything")
    return seed if isinstance(seed, int) and not isinstance(seed, bool) else None


def seed_of(trainer: Trainer | None) -> int:
    """Return the seed of a run.

    Args:
        trainer: The run's trainer; ``None`` outside a run.

    Returns:
        The number of ``--seed_everything`` on the command line, else that of the last call of ``seed_everything``, else
        0. The state of the random generators has no influence.
    """
    seed = command_line_seed(trainer)
    if seed is not None:
        return seed
    last_call = os.environ.get("PL_GLOBAL_SEED", "")
    return int(last_call) if last_call.isdecimal() else DEFAULT_SEED


def limit_predictions(trainer: Trainer, number: int, image_size: int) -> None:
    """Keep no predictions in memory on anomalib's command line, which discards them; from Python, warn of many.

    Args:
        trainer: The trainer of a prediction that has not begun.
        number: Number of images.
        image_size: Height and width of images and maps in pixels.
    """
    loop = trainer.predict_loop
    is_command = any(isinstance(callback, SaveConfigCallback) for callback in getattr(trainer, "callbacks", ()))
    if is_command and command_line_value(trainer, "return_predictions") is None:
        loop.return_predictions = False
    gigabytes = number * BYTES_PER_PIXEL * image_size**2 / 1e9
    if loop.return_predictions and gigabytes > MANY_GIGABYTES:
        logger.warning(
            "The Engine keeps the predictions of all %d images in memory, about %.0f GB. Pass return_predictions=False "
            "if the table of scores and the files beside it suffice.",
            number,
            gigabytes,
        )


def running_trainer(module: object) -> Trainer | None:
    """Return the trainer of the present run of a module; ``None`` outside a run, whatever ran it before."""
    trainer: Trainer | None = getattr(module, "_trainer", None)
    return trainer if trainer is not None and trainer.state.status == TrainerStatus.RUNNING else None


def refuse_during_run(module: object, call: str) -> None:
    """Refuse a call that would change a model while an Engine runs it.

    Args:
        module: The model.
        call: Name of the call.

    Raises:
        RuntimeError: If an Engine is running the model.
    """
    if running_trainer(module) is not None:
        msg = f"An Engine is running the model. Call `{call}` before or after the run, not during it."
        raise RuntimeError(msg)


def data_sources(trainer: Trainer) -> Iterator[object]:
    """Yield where the dataloaders of the run come from: a datamodule, a model, or dataloaders.

    Lightning has no public way to ask. ``trainer.datamodule`` may belong to an earlier run, since a run without a
    datamodule leaves it in place.
    """
    loops = {
        TrainerFn.FITTING: (trainer.fit_loop, trainer.fit_loop.epoch_loop.val_loop),
        TrainerFn.VALIDATING: (trainer.validate_loop,),
        TrainerFn.TESTING: (trainer.test_loop,),
        TrainerFn.PREDICTING: (trainer.predict_loop,),
    }
    for loop in loops[trainer.state.fn] if trainer.state.fn is not None else ():
        yield loop._data_source.instance  # noqa: SLF001


def evaluated_loaders(trainer: Trainer) -> list[object]:
    """List the dataloaders of the present validation or test.

    ``trainer.val_dataloaders`` may belong to an earlier training.

    Args:
        trainer: The trainer.
    """
    loops = {TrainerFn.VALIDATING: trainer.validate_loop, TrainerFn.TESTING: trainer.test_loop}
    loop = loops.get(cast("TrainerFn", trainer.state.fn), trainer.fit_loop.epoch_loop.val_loop)
    return [] if loop._combined_loader is None else list(loop._combined_loader.flattened)  # noqa: SLF001


def datamodule_of(trainer: Trainer | None) -> AnomalibDataModule | None:
    """Return the datamodule that a run takes its images from; ``None`` if there is none."""
    for source in data_sources(trainer) if trainer is not None else ():
        if isinstance(source, AnomalibDataModule):
            return source
    return None


def lacks_validation_split(datamodule: AnomalibDataModule | None) -> bool:
    """Whether a datamodule has no validation split, but would be asked for it and fail."""
    uses_default = type(datamodule).val_dataloader is AnomalibDataModule.val_dataloader if datamodule else False
    return uses_default and not hasattr(datamodule, "val_data")


def use_own_dataloader(trainer: Trainer, module: LightningModule) -> None:
    """Let a validation ask the module for images, not a datamodule without a validation split.

    Lightning asks the datamodule where there is one, else the module. anomalib's datamodules fail without a validation
    split; the module answers that there are no images. Lightning chooses anew at the start of each run.

    Args:
        trainer: The trainer of a validation.
        module: Its module.
    """
    trainer.validate_loop._data_source.instance = module  # noqa: SLF001


def reset_metrics(*components: nn.Module | None) -> None:
    """Reset metrics, which may hold the scores of a run that was aborted.

    Args:
        *components: A post-processor, or the metrics of an evaluator.
    """
    for component in components:
        for metric in component.modules() if component is not None else ():
            if isinstance(metric, Metric):
                metric.reset()


def describe(datamodule: AnomalibDataModule | None) -> Data | None:
    """Describe a datamodule.

    Args:
        datamodule: The datamodule. For one that tests on another one, its ``validation``, that one is described.

    Returns:
        Name, category and normal images; ``None`` without a datamodule.
    """
    if datamodule is None:
        return None
    described: AnomalibDataModule = getattr(datamodule, "validation", None) or datamodule

    def list_normal_images() -> list[str]:
        if not hasattr(described, "train_data"):
            described.prepare_data()
            described.setup()
        return [str(file) for file in normal_training_files(described)]

    known = next((known.__name__ for known in (Visa, MVTecAD) if isinstance(described, known)), described.name)
    return Data(known, described.category or "", list_normal_images)
