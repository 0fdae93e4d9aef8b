# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Reading and writing of adapter files: own files, checkpoints, and the authors' files (arXiv 2305.17382)."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from anomalib_aprilgan.files.adapter_origin import AdapterOrigin
from anomalib_aprilgan.files.embedded import ADAPTERS, TAG
from anomalib_aprilgan.files.paths import checked_path
from anomalib_aprilgan.files.published import PUBLISHED, fetch
from anomalib_aprilgan.files.weight_files import non_finite, read_weight_file, refuse_non_finite, write_weight_file

__all__ = ["find_adapters", "read_adapters", "refuse_foreign_state", "write_adapters"]

logger = logging.getLogger(__name__)

OFFICIAL_KEY = "trainable_linearlayer"
"""Key of the adapters' weights in the authors' files."""
METADATA_KEY = "anomalib_aprilgan"
"""Key of the adapters' origin in the metadata of a safetensors file."""

Weights = dict[str, Tensor]


def find_adapters(
    adapter: str | Path, model: AdapterOrigin, shapes: Sequence[tuple[int, ...]]
) -> tuple[Weights, AdapterOrigin]:
    """Read adapters and check that they fit a model. Of a file with more stages than the model's, take only those.

    Args:
        adapter: ``"visa"``, ``"mvtec"``, ``"builtin"``, or the path of a file, see :func:`read_adapters`.
        model: Description of the model.
        shapes: Shape ``(D, width)`` of each adapter of the model.

    Returns:
        A state dict for ``StageAdapters``, and the origin of the adapters.

    Raises:
        ValueError: If the file cannot be used or does not fit the model; the message names both sides.
        RuntimeError: If published adapters cannot be downloaded.
    """
    if isinstance(adapter, str) and adapter in PUBLISHED:
        stored = PUBLISHED[adapter].origin
        origin = _for_stages_of(model, stored)
        _raise_if_any(origin.conflicts_with(model), f"The published adapters {adapter!r} do", stored, model)
        weights, _ = read_adapters(fetch(adapter))
    else:
        weights, stored = read_adapters(ADAPTERS if adapter == TAG else adapter)
        origin = _for_stages_of(model, stored)
    if origin.layers != stored.layers:
        weights = _selected(weights, stored.layers or (), origin.layers or ())
        if adapter not in {TAG, *PUBLISHED}:
            message = "Of the stages %s in %s, the model has %s. Pass layers=%s to use all of them."
            logger.warning(message, stored.layers, adapter, origin.layers, stored.layers)
    found = [tuple(weights[f"fc.{number}.weight"].shape) for number in range(len(weights) // 2)]
    conflicts = origin.conflicts_with(model)
    if found != list(shapes):
        conflicts.append(f"{_described(found)} against the model's {_described(shapes)}")
    _raise_if_any(conflicts, f"The adapters in {adapter} do", origin, model)
    return weights, origin


def _for_stages_of(model: AdapterOrigin, stored: AdapterOrigin) -> AdapterOrigin:
    """Return the origin with the model's stages only, if the file has all of them; otherwise unchanged."""
    is_part = stored.layers is not None and model.layers is not None and set(model.layers) < set(stored.layers)
    return replace(stored, layers=model.layers) if is_part else stored


def _selected(weights: Weights, stored: Sequence[int], wanted: Sequence[int]) -> Weights:
    """Return the adapters of the wanted stages, numbered anew."""
    return {
        f"fc.{number}.{part}": weights[f"fc.{stored.index(stage)}.{part}"]
        for number, stage in enumerate(wanted)
        for part in ("weight", "bias")
    }


def refuse_foreign_state(
    extra_state: Mapping[str, Any], model: AdapterOrigin, reference_layers: tuple[int, ...], subject: str
) -> None:
    """Check that a saved state belongs to a model.

    Args:
        extra_state: Return value of ``AprilGanModel.get_extra_state``.
        model: Description of the model.
        reference_layers: Stages of the model that are kept in memory banks.
        subject: Subject and auxiliary verb of the message, for example "The checkpoint's weights do".

    Raises:
        ValueError: If the state belongs to another model; the message names both sides.
    """
    origin = AdapterOrigin.from_dict(extra_state["origin"])
    conflicts = origin.conflicts_with(model)
    stages = tuple(extra_state["reference_layers"])
    if stages != reference_layers:
        conflicts.append(f"reference_layers {stages} against the model's {reference_layers}")
    theirs, ours = ({"image_size": one.image_size, "window": one.window or 0} for one in (origin, model))
    if extra_state["k_shot"]:
        conflicts += [
            f"memory banks of {name} {value} against the model's {ours[name]}"
            for name, value in theirs.items()
            if value != ours[name]
        ]
    _raise_if_any(conflicts, subject, origin, model)


def _raise_if_any(conflicts: Sequence[str], subject: str, origin: AdapterOrigin, model: AdapterOrigin) -> None:
    """Raise an error if there are conflicts; its message begins with the subject."""
    if not conflicts:
        return
    fitting = f" with backbone={origin.backbone!r}, layers={origin.layers}" if origin.backbone else ""
    layers = model.layers or ()
    msg = (
        f"{subject} not fit the model (backbone {model.backbone!r}, {len(layers)} stages {layers}, "
        f"quick_gelu={model.quick_gelu}): {'; '.join(conflicts)}. Use them{fitting} and the other settings that they "
        "were trained with, pass another file, or train fresh adapters with adapter=None."
    )
    raise ValueError(msg)


def _described(shapes: Sequence[tuple[int, ...]]) -> str:
    return f"{len(shapes)} adapters of shape {' and '.join(map(str, dict.fromkeys(shapes)))}"


def read_adapters(path: str | Path) -> tuple[dict[str, Tensor], AdapterOrigin]:
    """Read adapters from a file without running code from it.

    Args:
        path: A file of :func:`write_adapters`, a checkpoint of ``AprilGan``, or one of the authors' ``.pth`` files.

    Returns:
        A state dict for ``StageAdapters``, and the origin of the adapters.

    Raises:
        ValueError: If the file is missing or damaged, would run code, holds no adapters, or contains NaN or infinite
            values; the message names it.
    """
    path = checked_path(path, "adapter")
    if not path.is_file():
        msg = (
            f"Expected argument `adapter` to be 'visa', 'mvtec', 'builtin', None or the path of an adapter file, but "
            f"got {str(path)!r}, which is no existing file."
        )
        raise ValueError(msg)
    content, metadata = read_weight_file(path, "adapters")
    try:
        weights, origin = _adapters_in(content, metadata)
    except (TypeError, ValueError, RecursionError) as error:
        msg = f"The file {path} contains no adapters: {error}."
        raise ValueError(msg) from error
    refuse_non_finite(non_finite(weights.items()), f"The file {path}")
    return weights, origin


def write_adapters(path: str | Path, weights: Mapping[str, Tensor], origin: AdapterOrigin) -> Path:
    """Write adapters to a safetensors file. An existing file is replaced only when the new file is complete.

    Args:
        path: The file; its suffix must be ``.safetensors``.
        weights: State dict of ``StageAdapters``.
        origin: Origin of the adapters, which is written as metadata.

    Returns:
        The path.

    Raises:
        ValueError: If the path has another suffix.
    """
    return write_weight_file(path, weights, {METADATA_KEY: json.dumps(origin.to_dict())})


def _adapters_in(content: Any, metadata: Mapping[str, str]) -> tuple[dict[str, Tensor], AdapterOrigin]:  # noqa: ANN401
    """Find the adapters and their origin in the content of a file."""
    content = _mapping(content)
    if OFFICIAL_KEY in content:
        # The authors' code uses GELU, although OpenAI trained CLIP with QuickGELU.
        return _only_adapters(_mapping(content[OFFICIAL_KEY])), AdapterOrigin(quick_gelu=False)
    state = _mapping(content.get("state_dict", content))
    fields = _mapping(json.loads(metadata.get(METADATA_KEY, "{}")))
    for name, value in state.items():
        if str(name).endswith("_extra_state"):
            fields = _mapping(_mapping(value).get("origin", {}))
    prefixes = ("model.adapters.", "adapters.", "")
    prefix = next(prefix for prefix in prefixes if prefix == "" or f"{prefix}fc.0.weight" in state)
    stripped = {str(name).removeprefix(prefix): value for name, value in state.items() if str(name).startswith(prefix)}
    weights, origin = _only_adapters(stripped), AdapterOrigin.from_dict(fields)
    if origin.layers is not None and len(origin.layers) != len(weights) // 2:
        msg = f"its metadata lists the stages {origin.layers}, but it contains {len(weights) // 2} adapters"
        raise ValueError(msg)
    return weights, origin


def _mapping(value: Any) -> Mapping[str, Any]:  # noqa: ANN401
    if not isinstance(value, Mapping):
        msg = f"expected a mapping, but found {type(value).__name__}"
        raise TypeError(msg)
    return value


def _is_linear(weight: Tensor, bias: Tensor) -> bool:
    return weight.ndim == 2 and bias.shape == weight.shape[:1]  # noqa: PLR2004


def _only_adapters(weights: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the weights named ``fc.K.weight`` and ``fc.K.bias`` after checking their shapes; ignore other names."""
    adapters: dict[str, Tensor] = {}
    while (weight := weights.get(f"fc.{len(adapters) // 2}.weight")) is not None:
        number = len(adapters) // 2
        bias = weights.get(f"fc.{number}.bias")
        if not isinstance(weight, Tensor) or not isinstance(bias, Tensor) or not _is_linear(weight, bias):
            msg = f"adapter {number} has no weight of shape (D, width) with a bias of shape (D,)"
            raise ValueError(msg)
        adapters |= {f"fc.{number}.weight": weight.float(), f"fc.{number}.bias": bias.float()}
    if not adapters:
        names = ", ".join(map(str, list(weights)[:4])) or "nothing"
        msg = f"expected weights named fc.0.weight, fc.0.bias, ..., but it contains {names}"
        raise ValueError(msg)
    return adapters
