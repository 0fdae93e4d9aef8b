# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Checkpoints: what is written to them, what is taken from them, and clear errors for those that cannot be used."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from anomalib.models.components import AnomalibModule
from anomalib.utils.serialization import anomalib_safe_globals
from lightning.pytorch import LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from anomalib_aprilgan.files.adapter_origin import AdapterOrigin
from anomalib_aprilgan.files.paths import checked_path
from anomalib_aprilgan.files.weight_files import non_finite, read_weight_file, refuse_non_finite
from anomalib_aprilgan.method.adapted_clip import misfits
from anomalib_aprilgan.method.options import MethodOptions
from anomalib_aprilgan.method.setup import Setup
from anomalib_aprilgan.torch_model import AprilGanModel

__all__ = [
    "check_checkpoint",
    "check_facts",
    "discard",
    "fitted_state",
    "is_calibrated_for",
    "named",
    "non_finite_state",
    "refuse_misfits",
    "saved_architecture",
    "saved_state",
    "without_metrics",
]

logger = logging.getLogger(__name__)

STATE_KEY = "model._extra_state"
"""Name under which every checkpoint of AprilGan, and no other, holds the plain data of the model."""

POST_PROCESSOR = "post_processor."

METRICS = ("evaluator.", "visualizer.")
"""Beginnings of state names that are no part of a model."""


def check_checkpoint(path: str | Path) -> None:
    """Check that a file is a checkpoint of AprilGan. A missing file is left to Lightning, which names it.

    Args:
        path: The file.

    Raises:
        ValueError: If it is damaged, would run code, belongs to another model, or contains NaN or infinite values; the
            message names it.
    """
    path = checked_path(path, "ckpt_path")
    if path.is_dir():
        msg = f"Expected a checkpoint file, but {path} is a folder. Pass the file in it, for instance model.ckpt."
        raise ValueError(msg)
    if not path.exists():
        return
    with anomalib_safe_globals():
        content, _ = read_weight_file(path, "a checkpoint")
    saved_state(content, f"The file {path}")
    arguments = content.get("hyper_parameters", {})  # while it loads, Lightning adds others
    if not isinstance(arguments, Mapping) or not set(arguments) <= {"learning_rate"}:
        msg = f"The file {path} is damaged: it has other arguments than a learning rate. Use an undamaged file."
        raise ValueError(msg)


@contextmanager
def named(path: str | Path | None) -> Iterator[None]:
    """Name a checkpoint in the errors about its content.

    Args:
        path: The file; ``None`` if it is not known.
    """
    try:
        yield
    except ValueError as error:
        if path is None:
            raise
        msg = f"Could not load {path}: {error}"
        raise ValueError(msg) from error


def saved_state(checkpoint: Any, name: str = "The checkpoint") -> Mapping[str, Any]:  # noqa: ANN401
    """Return the plain data of the model in a checkpoint: its setup, architecture and method.

    Args:
        checkpoint: Content of the checkpoint.
        name: Name of the checkpoint at the beginning of the message.

    Raises:
        ValueError: If it is no checkpoint of AprilGan, or contains NaN or infinite values.
    """
    state = checkpoint.get("state_dict") if isinstance(checkpoint, Mapping) else None
    extra = state.get(STATE_KEY) if isinstance(state, Mapping) else None
    required = {"setup", "origin", "reference_layers", "method", "k_shot", "has_reduced_banks"}
    is_complete = isinstance(extra, Mapping) and required <= set(extra)
    if not is_complete or "pytorch-lightning_version" not in checkpoint:
        msg = f"{name} is no checkpoint of AprilGan. Pass adapters alone, also those of the authors, as `adapter`."
        raise ValueError(msg)
    check_facts(extra, name)
    refuse_non_finite(non_finite_state(without_metrics(checkpoint)), name)
    return cast("Mapping[str, Any]", extra)


def check_facts(facts: Any, name: str) -> None:  # noqa: ANN401
    """Check the types of the plain data of a model in a file.

    Args:
        facts: What ``AprilGanModel.get_extra_state`` returns.
        name: Name of the file at the beginning of the message.

    Raises:
        ValueError: If they are damaged.
    """
    try:
        Setup.from_dict(facts["setup"])
        AdapterOrigin.from_dict(facts["origin"])
        MethodOptions(**facts.get("method", {}))
        stages = facts["reference_layers"]
        if not isinstance(stages, list | tuple) or not all(type(one) is int for one in (*stages, facts["k_shot"])):
            msg = "expected numbers of stages and reference images"
            raise TypeError(msg)  # noqa: TRY301
        if not isinstance(facts["has_reduced_banks"], bool):
            msg = "expected to know whether its memory banks are reduced"
            raise TypeError(msg)  # noqa: TRY301
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        msg = f"{name} is damaged: {type(error).__name__}: {error}. Use an undamaged file."
        raise ValueError(msg) from error


def refuse_misfits(state_dict: Mapping[str, Any], module: AnomalibModule, *, strict: bool) -> None:
    """Check a state before any part of a model is changed.

    Args:
        state_dict: The state, fitted to the components of the model.
        module: The model.
        strict: Refuse a state that is not complete.

    Raises:
        ValueError: If the state belongs to another model, or is damaged.
    """
    cast("AprilGanModel", module.model).check_state(state_dict, "model.", strict=strict)
    own = module.state_dict()
    wrong = misfits(state_dict, {name: one for name, one in own.items() if isinstance(one, Tensor)})
    wrong += [str(name) for name in state_dict if strict and name not in own]  # torch would change the model before
    if wrong:
        msg = (
            f"The state does not fit the model: {', '.join(wrong[:4])} have other shapes or types, or are unknown. Use "
            "another file."
        )
        raise ValueError(msg)


def non_finite_state(state_dict: Mapping[str, Any]) -> list[str]:
    """Return the names of the tensors of a state that contain NaN or infinity.

    In the state of anomalib's post-processor, which has no margin, NaN means that there was no validation.

    Args:
        state_dict: State of an ``AprilGan``, or part of it.
    """
    may_be_nan = () if "post_processor.margin" in state_dict else ("post_processor.",)
    return non_finite(
        (name, value[~value.isnan()] if name.startswith(may_be_nan) else value)
        for name, value in state_dict.items()
        if isinstance(value, Tensor)
    )


def saved_architecture(extra_state: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments of ``AprilGanModel`` that make a model like the saved one.

    Args:
        extra_state: The value of :func:`saved_state`.
    """
    origin = AdapterOrigin.from_dict(extra_state["origin"])
    names = ("backbone", "pretrained", "image_size", "layers", "quick_gelu")
    return {
        **{name: getattr(origin, name) for name in names},
        "window": origin.window or 0,
        "reference_layers": tuple(extra_state["reference_layers"]),
        "method": MethodOptions(**extra_state["method"]),
    }


def is_calibrated_for(state_dict: Mapping[str, Any], module: AnomalibModule) -> bool:
    """Whether the calibration in a saved state holds for a model.

    Scores depend on image size, window and method options.

    Args:
        state_dict: The saved state.
        module: The model, whose architecture is that of the state except for image size and window.
    """
    extra_state = state_dict.get(STATE_KEY)
    has_thresholds = module.post_processor is None or any(name.startswith(POST_PROCESSOR) for name in state_dict)
    if extra_state is None or not has_thresholds:
        return False
    saved, model = saved_architecture(extra_state), cast("AprilGanModel", module.model)
    theirs = (saved["image_size"], saved["window"], saved["method"])
    return theirs == (model.image_size, model.architecture.window, model.method)


def without_metrics(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state dict of a checkpoint without the state of metrics."""
    return {name: value for name, value in checkpoint["state_dict"].items() if not name.startswith(METRICS)}


def fitted_state(state_dict: Mapping[str, Any], model: AnomalibModule) -> dict[str, Any]:
    """Fit a saved state to the components of a model.

    Args:
        state_dict: The saved state.
        model: The model.

    Returns:
        The state without metrics and without values of components that the model has not. Values that are missing are
        the model's own, except for the margin, which :class:`AprilGanPostProcessor` derives from the others.
    """
    components = (*METRICS, "pre_processor.", POST_PROCESSOR)
    own = {name: value for name, value in model.state_dict().items() if name.startswith(components)}
    saved = {
        name: value
        for name, value in state_dict.items()
        if not name.startswith(METRICS) and (name in own or not name.startswith(components))
    }
    if any(name.startswith(POST_PROCESSOR) for name in saved):
        own.pop(f"{POST_PROCESSOR}margin", None)
    return {**own, **saved}


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
