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

__all__ = ["check_components", "components_to_restore", "write_components"]

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


def check_components(checkpoint: Mapping[str, Any], model: AnomalibModule, given: Collection[str]) -> None:
    """Check whether a model has the components of its checkpoint, before anything is restored.

    Args:
        checkpoint: The checkpoint.
        model: The model.
        given: Names of the components that were passed as arguments.

    Raises:
        ValueError: If the checkpoint was made with a pre-processor that it cannot hold, and none was passed.
    """
    classes = checkpoint.get(COMPONENTS_KEY, {})
    pre_processor, post_processor = classes.get("pre_processor"), classes.get("post_processor")
    is_known = pre_processor in {None, _name_of(AprilGanPreProcessor), _name_of(PreProcessor)}
    if "pre_processor" not in given and not (is_known and classes.get("pre_processor_is_whole", True)):
        msg = (
            f"The checkpoint was made with a pre-processor ({pre_processor}) that a checkpoint cannot hold. Pass it as "
            "`pre_processor`, for instance AprilGan.load_from_checkpoint(path, pre_processor=...)."
        )
        raise ValueError(msg)
    saved = checkpoint.get("anomalib_pre_processor_config") or {}
    passed = model.pre_processor.checkpoint_config() if isinstance(model.pre_processor, PreProcessor) else {}
    if "pre_processor" in given and passed.get("transform") != saved.get("transform"):
        logger.warning(
            "The pre-processor that was passed differs from the checkpoint's: its thresholds and memory banks may not "
            "fit. Validate again, and draw the reference images anew."
        )
    if "post_processor" not in given and post_processor not in {None, _name_of(AprilGanPostProcessor)}:
        logger.warning(
            "The checkpoint was made with the post-processor %s. Its thresholds and options are used by %s; pass "
            "`post_processor` to use another one.",
            post_processor,
            AprilGanPostProcessor.__name__,
        )


def components_to_restore(
    checkpoint: Mapping[str, Any], model: AnomalibModule, given: Collection[str]
) -> dict[str, Any]:
    """Return the parts of a checkpoint that anomalib should restore of the components.

    A component that was passed as an argument stays as it is; of :class:`AprilGanPostProcessor`, the options that were
    not passed come from the checkpoint. Metrics are no part of a checkpoint.

    Args:
        checkpoint: The checkpoint.
        model: The model.
        given: Names of the components that were passed as arguments.
    """
    names = {"pre_processor", "post_processor"} - set(given)
    if isinstance(model.post_processor, AprilGanPostProcessor):
        names.add("post_processor")
    keys = {f"anomalib_{name}_config" for name in names}
    enabled = checkpoint.get("anomalib_components_enabled", {})
    stay = {*given, "evaluator"}
    return {
        **{key: checkpoint[key] for key in keys if checkpoint.get(key) is not None},
        "anomalib_components_enabled": {name: value for name, value in enabled.items() if name not in stay},
    }


def _class_of(component: nn.Module | None) -> str | None:
    return None if component is None else _name_of(type(component))


def _name_of(component: type) -> str:
    return f"{component.__module__}.{component.__qualname__}"
