# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Pre- and post-processor in checkpoints: an argument comes first, then the checkpoint."""

import logging
from collections.abc import Collection, Mapping
from typing import Any

from anomalib.models.components import AnomalibModule
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from torch import nn

from anomalib_aprilgan.integration.post_processing import AprilGanPostProcessor
from anomalib_aprilgan.integration.pre_processing import AprilGanPreProcessor

__all__ = ["components_to_restore", "write_components"]

logger = logging.getLogger(__name__)

COMPONENTS_KEY = "anomalib_aprilgan_components"
"""Name under which a checkpoint holds the classes of pre- and post-processor."""


def write_components(checkpoint: dict[str, Any], model: AnomalibModule) -> None:
    """Note in a checkpoint which pre- and post-processor the model has.

    Args:
        checkpoint: The checkpoint, as anomalib has filled it.
        model: The model.
    """
    components = (model.pre_processor, model.post_processor, model.evaluator, model.visualizer)
    classes = {PreProcessor, PostProcessor, *map(type, components)}  # Lightning saves them as callbacks once more
    names = {one.__qualname__ for one in classes}
    callbacks = checkpoint.get("callbacks", {})
    checkpoint["callbacks"] = {name: state for name, state in callbacks.items() if name not in names}
    transform = getattr(model.pre_processor, "transform", None)
    config = checkpoint.get("anomalib_pre_processor_config") or {}
    checkpoint[COMPONENTS_KEY] = {
        "pre_processor": _class_of(model.pre_processor),
        "pre_processor_is_whole": transform is None or config.get("transform") is not None,
        "post_processor": _class_of(model.post_processor),
    }


def components_to_restore(
    checkpoint: Mapping[str, Any], model: AnomalibModule, given: Collection[str]
) -> dict[str, Any]:
    """Return what anomalib should restore of pre- and post-processor, as it is saved in a checkpoint.

    A component that was passed as an argument stays as it is. Metrics are no part of a checkpoint.

    Args:
        checkpoint: The checkpoint.
        model: The model.
        given: Names of the components that were passed as arguments.

    Raises:
        ValueError: If the checkpoint was made with a pre-processor that it cannot hold, and none was passed.
    """
    classes = checkpoint.get(COMPONENTS_KEY, {})
    enabled = dict(checkpoint.get("anomalib_components_enabled", {}))
    configs = {name: checkpoint.get(f"anomalib_{name}_config") for name in ("pre_processor", "post_processor")}
    restored: dict[str, Any] = {}
    for name in ("pre_processor", "post_processor"):
        if name in given:
            enabled.pop(name, None)
            if name == "pre_processor":
                _warn_of_other_transform(model.pre_processor, configs[name])
        elif enabled.get(name, True):
            restored[f"anomalib_{name}_config"] = configs[name]
        else:
            _disable(getattr(model, name))
    own_options = isinstance(model.post_processor, AprilGanPostProcessor)  # it knows which of its options were passed
    if "post_processor" in given and own_options and configs["post_processor"] is not None:
        restored["anomalib_post_processor_config"] = configs["post_processor"]
    if "visualizer" in given:
        enabled.pop("visualizer", None)
    enabled.pop("evaluator", None)
    restored["anomalib_components_enabled"] = enabled
    if "pre_processor" not in given:
        _refuse_lost_pre_processor(classes)
    saved = classes.get("post_processor")
    if "post_processor" not in given and saved not in {None, _name_of(AprilGanPostProcessor)}:
        logger.warning(
            "The checkpoint was made with the post-processor %s. Its thresholds and options are used by %s; pass "
            "`post_processor` to use another one.",
            saved,
            AprilGanPostProcessor.__name__,
        )
    return restored


def _warn_of_other_transform(pre_processor: nn.Module | None, saved: Mapping[str, Any] | None) -> None:
    """Say that a calibration may not hold, if the pre-processor that was passed is not the one of the checkpoint."""
    config = pre_processor.checkpoint_config() if isinstance(pre_processor, PreProcessor) else None
    if (config or {}).get("transform") != (saved or {}).get("transform"):
        logger.warning(
            "The pre-processor that was passed differs from the checkpoint's: its thresholds and memory banks may not "
            "fit. Validate again, and draw the reference images anew."
        )


def _refuse_lost_pre_processor(classes: Mapping[str, Any]) -> None:
    saved = classes.get("pre_processor")
    is_known = saved in {None, _name_of(AprilGanPreProcessor), _name_of(PreProcessor)}
    if not (is_known and classes.get("pre_processor_is_whole", True)):
        msg = (
            f"The checkpoint was made with a pre-processor ({saved}) that a checkpoint cannot hold. Pass it as "
            "`pre_processor`, for instance AprilGan.load_from_checkpoint(path, pre_processor=...)."
        )
        raise ValueError(msg)


def _disable(component: nn.Module | None) -> None:
    """Switch a component off that may be a callback of a running trainer already."""
    if isinstance(component, PreProcessor):
        component.transform = component.export_transform = None
    if isinstance(component, PostProcessor):
        component.enable_normalization = component.enable_thresholding = False


def _class_of(component: nn.Module | None) -> str | None:
    return None if component is None else _name_of(type(component))


def _name_of(component: type) -> str:
    return f"{component.__module__}.{component.__qualname__}"
