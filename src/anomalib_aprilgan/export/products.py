# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Product files: the setup and the calibration of a model for one product, which the same model can use again."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from anomalib_aprilgan.files.adapter_files import refuse_foreign_state
from anomalib_aprilgan.files.weight_files import read_weight_file, write_weight_file
from anomalib_aprilgan.method.setup import Setup
from anomalib_aprilgan.torch_model import AprilGanModel

__all__ = ["Product", "take_up"]

METADATA_KEY = "anomalib_aprilgan_product"

STATE, POST_PROCESSOR = "model.state.", "post_processor."
"""Beginnings of the names of values that differ from product to product."""


@dataclass(frozen=True)
class Product:
    """The setup of a model for one product, with its calibration.

    The image tower and the adapters are the same for all products, so one loaded model serves many: see
    ``AprilGan.product`` and ``AprilGan.switch_to``.

    Attributes:
        tensors: Part of the model's state dict: text features, memory banks, thresholds and ranges.
        facts: The plain data of the state dict: class name, reference files, and what model they belong to.
        options: Options of the post-processor, for instance its sensitivities.
        calibrated_with: What the calibration depends on beside: adapters, stages, image size, post-processor.
    """

    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]
    options: Mapping[str, Any]
    calibrated_with: Mapping[str, Any]

    @classmethod
    def of(cls, model: "CalibratedModel") -> "Product":
        """Copy the present product of a model.

        Args:
            model: A prepared ``AprilGan``.
        """
        with model.model.state.locked():
            return cls(
                {name: value.detach().cpu().clone() for name, value in _tensors(model).items()},
                model.model.get_extra_state(),
                _options(model),
                _calibrated_with(model),
            )

    @property
    def class_name(self) -> str:
        """Name of the object or surface."""
        return str(self.facts["setup"]["class_name"])

    @property
    def reference_files(self) -> tuple[str, ...]:
        """Paths of the reference images in the memory banks."""
        return tuple(self.facts["setup"]["references"]["files"])

    def save(self, path: str | Path) -> Path:
        """Write the product to a safetensors file. An existing file is replaced once the new one is complete.

        Args:
            path: The file; its suffix must be ``.safetensors``.

        Returns:
            The path.

        Raises:
            ValueError: If the suffix is another one.
        """
        content = {"facts": self.facts, "options": self.options, "calibrated_with": self.calibrated_with}
        return write_weight_file(path, self.tensors, {METADATA_KEY: json.dumps(content)})

    @classmethod
    def load(cls, path: str | Path) -> "Product":
        """Read what :meth:`save` wrote. No code that a file may hold is run.

        Args:
            path: The file.

        Returns:
            The product.

        Raises:
            ValueError: If the file is missing, damaged, or no product file.
        """
        path = Path(path).expanduser()
        if not path.is_file():
            msg = f"Expected argument `path` to be a product file, but got {str(path)!r}, which is no existing file."
            raise ValueError(msg)
        tensors, metadata = read_weight_file(path, "a product")
        try:
            content = json.loads(metadata[METADATA_KEY])
            facts, options, calibrated_with = (dict(content[name]) for name in ("facts", "options", "calibrated_with"))
            Setup.from_dict(facts["setup"])
            missing = {"k_shot", "origin", "reference_layers"} - set(facts)
        except (KeyError, TypeError, ValueError):
            missing = {METADATA_KEY}
        if missing:
            msg = (
                f"The file {path} holds no product: it lacks {', '.join(sorted(missing))}. Write one with "
                "`model.product.save(path)`."
            )
            raise ValueError(msg)
        return cls(tensors, facts, options, calibrated_with)


class CalibratedModel(Protocol):
    """What is used of ``AprilGan`` here."""

    model: AprilGanModel
    post_processor: nn.Module | None

    def ensure_adapters(self) -> None:
        """Load the adapters that the arguments ask for, if they are not in use."""


def take_up(model: CalibratedModel, product: Product) -> None:
    """Use a product in place of the present one. Everything is checked before anything changes.

    Args:
        model: An ``AprilGan`` with the same CLIP, adapters and stages.
        product: The product.

    Raises:
        ValueError: If it was made by another model.
    """
    model.ensure_adapters()
    subject = f"The product {product.class_name!r} does"
    refuse_foreign_state(product.facts, model.model.origin, model.model.reference_layers, subject)
    ours, theirs = _calibrated_with(model), product.calibrated_with
    conflicts = [
        f"{name} {theirs.get(name)!r} against {value!r}" for name, value in ours.items() if theirs.get(name) != value
    ]
    if conflicts or _shapes(product.tensors) != _shapes(_tensors(model)):
        msg = (
            f"The product {product.class_name!r} was calibrated by another model than this one: "
            f"{', '.join(conflicts) or 'its values have other names or shapes'}. Load the model that it was made with, "
            "or make the product anew."
        )
        raise ValueError(msg)
    record = Setup.from_dict(product.facts["setup"]).restored()
    record = replace(record, references=replace(record.references, origin="call"))
    record = replace(record, class_origin="default" if record.class_origin == "default" else "call")
    now = model.model.state.record
    record = replace(record, adapter=now.adapter, adapter_origin=now.adapter_origin, trained_on=now.trained_on)
    with model.model.state.locked():
        for name, value in product.tensors.items():
            if name.startswith(STATE):
                _replace_buffer(model.model.state, name.removeprefix(STATE), value)
            elif model.post_processor is not None:
                _replace_buffer(model.post_processor, name.removeprefix(POST_PROCESSOR), value)
        model.model.state.record = record
        for name, value in product.options.items():
            setattr(model.post_processor, name, value)


def _replace_buffer(module: nn.Module, name: str, value: Tensor) -> None:
    """Put a new tensor in place of a buffer; whoever reads the old one is not disturbed."""
    path, _, buffer = name.rpartition(".")
    owner = module.get_submodule(path)
    setattr(owner, buffer, value.to(getattr(owner, buffer), copy=True))


def _tensors(model: CalibratedModel) -> dict[str, Tensor]:
    parts = ((STATE, model.model.state), (POST_PROCESSOR, model.post_processor))
    return {
        prefix + name: value
        for prefix, part in parts
        if part is not None
        for name, value in part.state_dict().items()
        if isinstance(value, Tensor)
    }


def _options(model: CalibratedModel) -> dict[str, Any]:
    config: Callable[[], dict[str, Any]] = getattr(model.post_processor, "checkpoint_config", dict)
    return config()


def _calibrated_with(model: CalibratedModel) -> dict[str, Any]:
    digest = hashlib.sha256()
    for weight in model.model.adapters.state_dict().values():
        digest.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return {
        "adapters": digest.hexdigest()[:16],
        "map_stages": list(model.model.map_stages),
        "prompts": model.model.method.prompts,
        "image_size": model.model.image_size,
        "post_processor": type(model.post_processor).__name__,
    }


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Shapes by name; of memory banks without the number of tokens, which differs from product to product."""
    return {
        name: tuple(tensor.shape[1:] if ".memory_banks." in name else tensor.shape) for name, tensor in tensors.items()
    }
