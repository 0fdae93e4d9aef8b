# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Runs of several processes: they share work, and count each image of a validation or test once, as one process does.

Lightning gives each process the same number of images. If the images cannot be divided evenly, the last ones are
repetitions of the first ones. Thresholds and metrics would count these images twice.
"""

import hashlib
import platform
from collections.abc import Sequence, Sized
from dataclasses import fields
from pathlib import Path
from typing import TypeVar, cast

import torch.distributed
from anomalib.data import Batch
from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler

from anomalib_aprilgan.integration.runs import data_sources, evaluated_loaders

__all__ = ["drop_repeated_images", "gather", "part_of_this_process", "refuse_idle_processes"]

T = TypeVar("T")

SPLITS = {
    TrainerFn.FITTING: "val_data",
    TrainerFn.VALIDATING: "val_data",
    TrainerFn.TESTING: "test_data",
    TrainerFn.PREDICTING: "test_data",
}
"""Datasets of anomalib's datamodules that are divided among processes, by the kind of run."""


def gather(value: T) -> list[T]:
    """Gather a value from each process of the run, in the order of their ranks. All of them must call this function."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [value]
    values = [value] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def part_of_this_process(files: Sequence[str]) -> Sequence[str]:
    """Divide image files among the processes of each machine, and return this one's. All processes must call this.

    The machines do not share the files, since each may have its own copy of the data, also in another folder.

    Raises:
        ValueError: In all processes, if they have different images.
    """
    names = "\n".join("/".join(Path(file).parts[-2:]) for file in files)
    processes = gather((platform.node(), hashlib.sha256(names.encode(errors="surrogateescape")).digest()))
    if len({digest for _, digest in processes}) > 1:
        msg = (
            "Expected all processes of the run to have the same images, but they differ. If the datamodule divides the "
            "images by chance, pass it a seed, for instance `seed=0` (on the command line: `--data.seed 0`)."
        )
        raise ValueError(msg)
    machines = [machine for machine, _ in processes]
    rank = torch.distributed.get_rank() if len(machines) > 1 else 0
    peers = [other for other, machine in enumerate(machines) if machine == machines[rank]]
    return files[peers.index(rank) :: len(peers)]


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
