# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Training of the adapters (arXiv 2305.17382, section 4.1)."""

import logging
from typing import Any, cast

import torch
from anomalib.data import AnomalibDataModule, Batch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.optim import Adam, Optimizer

from anomalib_aprilgan.integration import preparation, runs
from anomalib_aprilgan.integration.setup import ANY_CLASS
from anomalib_aprilgan.method.losses import adapter_loss
from anomalib_aprilgan.torch_model import AprilGanModel

__all__ = [
    "check_training_data",
    "class_of_training",
    "compute_loss",
    "limit_epochs",
    "make_optimizer",
    "training_data",
]

logger = logging.getLogger(__name__)

EPOCHS = 15
"""Epochs of the paper's training on VisA (section 4.1); on MVTec AD, it takes 3."""

LIGHTNING_EPOCHS = 1000
"""Lightning's value of `max_epochs` where nothing limits a training."""


def limit_epochs(trainer: Trainer) -> None:
    """Limit a training to the paper's 15 epochs, unless the user has limited it. Log which holds.

    Lightning does not say whether its default was given explicitly. On anomalib's command line the configuration does;
    from Python, 1,000 epochs count as not given.

    Args:
        trainer: The trainer of a training that has not begun.
    """
    given = runs.command_line_value(trainer, "trainer.max_epochs")
    if (trainer.max_epochs, trainer.max_steps) == (LIGHTNING_EPOCHS, -1) and given is None:
        trainer.fit_loop.max_epochs = EPOCHS
        logger.info(
            "Training for %d epochs, the paper's number for VisA (for MVTec AD: 3). Set `max_epochs` to change it "
            "(on the command line: --trainer.max_epochs).",
            EPOCHS,
        )
    else:
        limits = {"max_epochs": trainer.max_epochs, "max_steps": trainer.max_steps}
        chosen = ", ".join(f"{name}={limit}" for name, limit in limits.items() if limit not in {None, -1})
        logger.info("Training until the limit that was given: %s", chosen or "max_time, or none")


def make_optimizer(model: AprilGanModel, learning_rate: float, trainer: Trainer | None) -> Optimizer:
    """Make the paper's optimizer. Adapters that were never trained get weights by the seed of the command line.

    Args:
        model: The model.
        learning_rate: Learning rate.
        trainer: The trainer of the run, if there is one.

    Raises:
        ValueError: If the model has no adapters.
    """
    if model.method.projection == "clip":
        msg = "Expected `projection` to be 'adapters' for training, but got 'clip', which has no weights to train."
        raise ValueError(msg)
    seed = runs.command_line_seed(trainer)
    if trainer is not None and seed is not None and trainer.ckpt_path is None and not model.trained_on:
        model.reset_adapters(seed)  # they were made before the command line's seed was known
    return Adam(model.adapters.parameters(), lr=learning_rate, betas=(0.5, 0.999))


def training_data(datamodule: AnomalibDataModule | None) -> tuple[str, ...]:
    """Name the data sets and categories that a datamodule trains on; empty if it is unknown."""
    names: tuple[str, ...] | None = getattr(datamodule, "trained_on", None)  # of an AuxiliaryDataModule
    if names is not None:
        return names
    return () if datamodule is None else (str(runs.describe(datamodule)),)


def check_training_data(datamodule: AnomalibDataModule | None) -> None:
    """Warn of training data without anomalies, and of validation data that are trained on."""
    if hasattr(datamodule, "trained_on"):
        preparation.warn_of_overlap(training_data(datamodule), runs.describe(getattr(datamodule, "validation", None)))
        return
    logger.warning(
        "The adapters are trained on %s, whose training images are normal. They learn from abnormal images with masks: "
        "wrap the datamodule in an AuxiliaryDataModule.",
        ", ".join(training_data(datamodule)) or "a dataloader",
    )


def class_of_training(class_name: str | None, datamodule: AnomalibDataModule | None) -> str:
    """Return the class of training images that bring no class names: the argument, else the category."""
    data = runs.describe(datamodule)
    return class_name or (data.category if data is not None else "") or ANY_CLASS


def compute_loss(model: AprilGanModel, batch: Batch[Any], text_features: Tensor) -> Tensor:
    """Compute focal plus dice loss, summed over the stages: the mean over the views of the images.

    Args:
        model: The model.
        batch: Images with masks.
        text_features: Shape ``(2, D)``, or ``(N, 2, D)`` if each image has its own class.

    Raises:
        ValueError: If the images have no masks.
    """
    if batch.gt_mask is None:
        msg = "Expected training images with masks, but got none. Train on an AuxiliaryDataModule with masks."
        raise ValueError(msg)
    images, masks = cast("Tensor", batch.image), batch.gt_mask.as_subclass(Tensor).float()
    views = zip(model.windows.views(images), model.windows.views(masks), strict=True)
    recurs = getattr(batch, "recurs", None)
    losses = [adapter_loss(model.stage_maps(view, text_features, recurs), mask > 0.5) for view, mask in views]  # noqa: PLR2004
    return torch.stack(losses).mean()
