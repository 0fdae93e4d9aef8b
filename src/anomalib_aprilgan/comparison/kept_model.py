# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""The last ``AprilGan`` of this process, which the next run of the same component uses again.

So CLIP is loaded once, and each class is encoded once. ``AprilGan`` compares what it is set up for with what a run asks
for, and changes what differs; its scores are those of a new model.
"""

import gc
import json

from anomalib import LearningType
from anomalib.models.components import AnomalibModule

from anomalib_aprilgan.comparison.components import make_model
from anomalib_aprilgan.comparison.grid import Component
from anomalib_aprilgan.lightning_model import AprilGan

__all__ = ["model_of", "release"]

_kept: dict[str, AprilGan] = {}
"""At most one model, by its component."""


def model_of(component: Component, k_shot: int) -> AnomalibModule:
    """Return a model for a run: the kept one if it was made of the same component, else a new one.

    Args:
        component: Class and arguments of the model.
        k_shot: Number of reference images.
    """
    release(except_of=component)
    key = _key_of(component)
    if key in _kept:
        _kept[key].k_shot = k_shot
        return _kept[key]
    model = make_model(component, k_shot)
    if isinstance(model, AprilGan) and model.learning_type in {LearningType.ZERO_SHOT, LearningType.FEW_SHOT}:
        _kept[key] = model
    return model


def release(except_of: Component | None = None) -> None:
    """Free the model, for instance after a run that failed.

    Args:
        except_of: Component whose model stays.
    """
    key = None if except_of is None else _key_of(except_of)
    if any(one != key for one in _kept):
        _kept.clear()
        gc.collect()


def _key_of(component: Component) -> str:
    return json.dumps(dict(component), sort_keys=True, default=str)
