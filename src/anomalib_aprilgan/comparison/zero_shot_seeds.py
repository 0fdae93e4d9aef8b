# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Seeds of the runs without reference images, most of which would give the same results with each seed."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from anomalib.models import WinClip

from anomalib_aprilgan.comparison.checks import read_lists
from anomalib_aprilgan.comparison.components import class_of, make_datamodule
from anomalib_aprilgan.comparison.grid import Component, Shots
from anomalib_aprilgan.lightning_model import AprilGan

__all__ = ["zero_shot_seeds"]


def zero_shot_seeds(
    models: Mapping[str, Component],
    data: Component,
    categories: Sequence[str],
    shots: Sequence[Shots],
    seeds: Sequence[int],
) -> list[int]:
    """Return the seeds of runs without reference images: only the first, if nothing in them is random.

    Args:
        models: The models that can do without training images.
        data: The datamodule.
        categories: Its categories.
        shots: Numbers of reference images of the comparison.
        seeds: Its seeds.

    Raises:
        ValueError: If the data of a category are missing, or cannot be read.
    """
    is_needed = 0 in shots and len(seeds) > 1 and _has_own_images(data) and all(map(_is_determined, models.values()))
    if not is_needed or any(_draws(data, category) for category in categories):
        return list(seeds)
    return list(seeds[:1])


def _is_determined(model: Component) -> bool:
    """Whether a model is known to be the same for each seed: one of two classes, with adapters and own components."""
    kind, arguments = class_of(model), model.get("init_args") or {}
    has_own = all(arguments.get(name, True) is True for name in ("pre_processor", "post_processor"))
    return has_own and (kind is WinClip or (kind is AprilGan and arguments.get("adapter", "auto") is not None))


def _has_own_images(data: Component) -> bool:
    """Whether a datamodule is known to give the same images each time: one of anomalib, without augmentations."""
    arguments = data.get("init_args") or {}
    is_known = class_of(data).__module__.partition(".")[0] == "anomalib"
    return is_known and not any(value for name, value in arguments.items() if name.endswith("augmentations"))


def _draws(data: Component, category: str) -> bool:
    """Whether a datamodule draws random numbers, for instance to split images into validation and test."""
    before = _random_states()
    read_lists(make_datamodule(data, category))
    return _random_states() != before


def _random_states() -> tuple[object, ...]:
    """Return the states of the global generators of Python, numpy and torch."""
    numbers: Any = np.random.get_state(legacy=False)  # noqa: NPY002  # anomalib and pandas use it
    return random.getstate(), numbers["state"]["key"].tolist(), numbers["state"]["pos"], torch.get_rng_state().tolist()
