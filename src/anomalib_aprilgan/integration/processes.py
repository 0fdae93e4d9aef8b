# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Runs of several processes: validation and test count each image once, as a run of one process does.

Lightning gives each process the same number of images. If the images cannot be divided evenly, the last ones are
repetitions of the first ones. Thresholds and metrics would count these images twice.
"""

from collections.abc import Sized
from dataclasses import fields
from typing import cast

from anomalib.data import Batch
from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler

from anomalib_aprilgan.integration.runs import data_sources, evaluated_loaders

__all__ = ["drop_repeated_images", "refuse_idle_processes"]

SPLITS = {
    TrainerFn.FITTING: "val_data",
    TrainerFn.VALIDATING: "val_data",
    TrainerFn.TESTING: "test_data",
    TrainerFn.PREDICTING: "test_data",
}
"""Datasets of anomalib's datamodules that are divided among processes, by the kind of run."""


def refuse_idle_processes(trainer: Trainer) -> None:
    """Refuse a validation, test or prediction with fewer images than processes.

    Args:
        trainer: The trainer, before it makes the dataloaders of the run.

    Raises:
        ValueError: If there are fewer images than processes. Lightning would wait forever, or count images twice.
    """
    if trainer.world_size == 1 or trainer.state.fn is None:
        return
    split = SPLITS[trainer.state.fn]
    for source in data_sources(trainer):
        loaders = source if isinstance(source, list | tuple) else [source]
        for dataset in (getattr(loader, split, getattr(loader, "dataset", None)) for loader in loaders):
            number = len(dataset) if isinstance(dataset, Sized) else trainer.world_size
            if 0 < number < trainer.world_size:
                msg = (
                    f"Expected at least one image for each of the {trainer.world_size} processes, but got {number}. "
                    "Use fewer devices, for instance devices=1."
                )
                raise ValueError(msg)


def drop_repeated_images(
    trainer: Trainer, batch: object, batch_idx: int, dataloader_idx: int = 0, *, smallest: int = 0
) -> None:
    """Drop the images of a batch that another process scores as well, in place.

    All processes keep the same number of batches, so that none of them waits for another one. The last batch of a
    process may become empty.

    Args:
        trainer: The trainer of a validation or test.
        batch: The batch.
        batch_idx: Number of the batch in this process.
        dataloader_idx: Number of its dataloader.
        smallest: Number of images that stay in any case.
    """
    if trainer.world_size == 1 or not isinstance(batch, Batch):
        return
    size = len(cast("Tensor", batch.image))
    loader = evaluated_loaders(trainer)[dataloader_idx]
    sampler = getattr(loader, "sampler", None)
    if not isinstance(loader, DataLoader) or not isinstance(sampler, DistributedSampler) or loader.batch_size is None:
        return
    first = sampler.rank + batch_idx * loader.batch_size * sampler.num_replicas
    own = len(range(first, len(cast("Sized", sampler.dataset)), sampler.num_replicas))
    keep = max(own, smallest)
    if keep < size:
        values = {field.name: getattr(batch, field.name) for field in fields(batch)}
        batch.update(**{name: value[:keep] for name, value in values.items() if value is not None})
