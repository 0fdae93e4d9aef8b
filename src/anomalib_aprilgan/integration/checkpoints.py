# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Checkpoints: what is written to them, what is taken from them, and clear errors for those that cannot be used."""

import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from anomalib.models.components import AnomalibModule
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from anomalib.utils.serialization import anomalib_safe_globals
from lightning.pytorch import LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from torch import nn

from anomalib_aprilgan.files.adapter_origin import AdapterOrigin
from anomalib_aprilgan.files.weight_files import read_weight_file
from anomalib_aprilgan.integration.post_processing import AprilGanPostProcessor
from anomalib_aprilgan.integration.pre_processing import AprilGanPreProcessor
from anomalib_aprilgan.method.options import MethodOptions

__all__ = [
    "check_checkpoint",
    "components_to_restore",
    "discard",
    "fitted_state",
    "saved_architecture",
    "saved_state",
    "write_components",
]

logger = logging.getLogger(__name__)

STATE_KEY = "model._extra_state"
"""Name under which every checkpoint of AprilGan, and no other, holds the plain data of the model."""

COMPONENTS_KEY = "anomalib_aprilgan_components"
"""Name under which a checkpoint holds the classes of pre- and post-processor."""

METRICS = ("evaluator.", "visualizer.")
"""Beginnings of state names that are no part of a model."""


def check_checkpoint(path: str | Path) -> None:
    """Check that a file is a checkpoint of AprilGan. A missing file is left to Lightning, which names it.

    Args:
        path: The file.

    Raises:
        ValueError: If it is damaged, would run code, or belongs to another model; the message names it.
    """
    path = Path(path)
    if path.is_dir():
        msg = f"Expected a checkpoint file, but {path} is a folder. Pass the file in it, for instance model.ckpt."
        raise ValueError(msg)
    if not path.is_file():
        return
    with anomalib_safe_globals():
        content, _ = read_weight_file(path, "a checkpoint")
    saved_state(content, f"The file {path}")


def saved_state(checkpoint: Any, name: str = "The checkpoint") -> Mapping[str, Any]:  # noqa: ANN401
    """Return the plain data of the model in a checkpoint: its setup, architecture and method.

    Args:
        checkpoint: Content of the checkpoint.
        name: Name of the checkpoint at the beginning of the message.

    Raises:
        ValueError: If it is no checkpoint of AprilGan.
    """
    state = checkpoint.get("state_dict") if isinstance(checkpoint, Mapping) else None
    extra = state.get(STATE_KEY) if isinstance(state, Mapping) else None
    required = {"setup", "origin", "reference_layers", "method", "k_shot"}
    if not isinstance(extra, Mapping) or not required <= set(extra) or "pytorch-lightning_version" not in checkpoint:
        msg = f"{name} is no checkpoint of AprilGan. Pass adapters alone, also those of the authors, as `adapter`."
        raise ValueError(msg)
    return extra


def saved_architecture(extra_state: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments of ``AprilGanModel`` that make a model like the saved one.

    Args:
        extra_state: The value of :func:`saved_state`.
    """
    origin = AdapterOrigin.from_dict(extra_state["origin"])
    names = ("backbone", "pretrained", "image_size", "layers", "quick_gelu")
    return {
        **{name: getattr(origin, name) for name in names},
        "reference_layers": tuple(extra_state["reference_layers"]),
        "method": MethodOptions(**extra_state["method"]),
    }


def fitted_state(state_dict: Mapping[str, Any], model: AnomalibModule) -> dict[str, Any]:
    """Fit a saved state to the components of a model.

    Args:
        state_dict: The saved state.
        model: The model.

    Returns:
        The state without metrics and without values of a post-processor that the model has not. The model's own values
        stand in for missing ones.
    """
    components = (*METRICS, "pre_processor.", "post_processor.")
    own = {name: value for name, value in model.state_dict().items() if name.startswith(components)}
    saved = {
        name: value
        for name, value in state_dict.items()
        if not name.startswith(METRICS) and (name in own or not name.startswith(components))
    }
    margin = "post_processor.margin"  # AprilGanPostProcessor computes it if it is missing
    return {**{name: value for name, value in own.items() if name not in saved and name != margin}, **saved}


def discard(checkpoint: dict[str, Any], model: LightningModule) -> None:
    """Make a checkpoint restore nothing.

    Lightning keeps the checkpoint of a run that failed while it was loaded, and restores it in the trainer's next run,
    although that run has none.

    Args:
        checkpoint: Content of the checkpoint.
        model: The model of the next run.

    Raises:
        RuntimeError: If the next run is a training, whose progress would be restored as well.
    """
    if model.trainer.state.fn == TrainerFn.FITTING:
        msg = "An earlier run of this Engine failed while its checkpoint was loaded. Use a new Engine for the training."
        raise RuntimeError(msg)
    checkpoint["state_dict"] = dict(model.state_dict())
    checkpoint["callbacks"], checkpoint["loops"] = {}, None


def write_components(checkpoint: dict[str, Any], model: AnomalibModule) -> None:
    """Complete a checkpoint: leave metrics out, and note which pre- and post-processor the model has.

    Args:
        checkpoint: The checkpoint, as anomalib has filled it.
        model: The model.
    """
    checkpoint["state_dict"] = {
        name: value for name, value in checkpoint["state_dict"].items() if not name.startswith(METRICS)
    }
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
