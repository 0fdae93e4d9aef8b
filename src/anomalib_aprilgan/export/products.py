# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Product files: they store the setup and the calibration of a model for one product."""

import hashlib
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from anomalib.post_processing import PostProcessor
from torch import Tensor, nn

from anomalib_aprilgan.files.adapter_files import refuse_foreign_state
from anomalib_aprilgan.files.paths import checked_path
from anomalib_aprilgan.files.weight_files import read_weight_file, refuse_non_finite, write_weight_file
from anomalib_aprilgan.integration.checkpoints import check_facts, non_finite_state
from anomalib_aprilgan.method.adapted_clip import misfits
from anomalib_aprilgan.method.setup import Setup
from anomalib_aprilgan.torch_model import AprilGanModel

__all__ = ["Product", "apply_product"]

METADATA_KEY = "anomalib_aprilgan_product"

STATE, POST_PROCESSOR = "model.state.", "post_processor."
"""Prefixes of the names of product-specific values in the state dict."""


SHARES = ("image_sensitivity", "pixel_sensitivity", "false_alarm_rate")
"""Options of the post-processor that lie in [0, 1]."""


@dataclass(frozen=True)
class Product:
    """Setup and calibration of a model for one product.

    Image tower and adapters are the same for all products, so one loaded model can switch between products: see
    ``AprilGan.product`` and ``AprilGan.switch_to``.

    Attributes:
        tensors: Part of the model's state dict: text features, memory banks, thresholds and ranges.
        facts: Plain data of the state dict: setup record, stages, and description of the model.
        options: Options of the post-processor, for example its sensitivities.
        calibrated_with: Parts of the model that the calibration depends on: adapters, stages, prompts, largest
            bank, image size, window, post-processor.
    """

    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]
    options: Mapping[str, Any]
    calibrated_with: Mapping[str, Any]

    @classmethod
    def of(cls, model: "CalibratedModel") -> "Product":
        """Copy setup and calibration of a model.

        Args:
            model: An ``AprilGan`` that is set up.
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
        """Write the product to a safetensors file. An existing file is replaced only when the new file is complete.

        Args:
            path: The file; its suffix must be ``.safetensors``.

        Returns:
            The path.

        Raises:
            ValueError: If the path has another suffix.
        """
        content = {"facts": self.facts, "options": self.options, "calibrated_with": self.calibrated_with}
        return write_weight_file(path, self.tensors, {METADATA_KEY: json.dumps(content)})

    @classmethod
    def load(cls, path: str | Path) -> "Product":
        """Read a product file without running code from it.

        Args:
            path: A file of :meth:`save`.

        Returns:
            The product.

        Raises:
            ValueError: If the file is missing, damaged or no product file, or contains NaN or infinity; the message
                names it.
        """
        path = checked_path(path, "path")
        if not path.is_file():
            msg = f"Expected argument `path` to be a product file, but got {str(path)!r}, which is no existing file."
            raise ValueError(msg)
        tensors, metadata = read_weight_file(path, "a product")
        try:
            content = json.loads(metadata[METADATA_KEY])
            facts, options, calibrated_with = (dict(content[name]) for name in ("facts", "options", "calibrated_with"))
            missing = {"setup", "k_shot", "has_reduced_banks", "origin", "reference_layers"} - set(facts)
        except (KeyError, TypeError, ValueError, RecursionError):
            missing = {METADATA_KEY}
        if missing:
            msg = (
                f"Expected {path} to be a product file, but it lacks {', '.join(sorted(missing))}. Write product files "
                "with `model.product.save(path)`."
            )
            raise ValueError(msg)
        check_facts(facts, f"The product file {path}")
        refuse_non_finite(non_finite_state(tensors), f"The product file {path}")
        return cls(tensors, facts, options, calibrated_with)


class CalibratedModel(Protocol):
    """The part of ``AprilGan`` that this module uses."""

    model: AprilGanModel
    post_processor: nn.Module | None

    def ensure_adapters(self) -> None:
        """Load the adapters of the model's arguments if they are not loaded yet."""


def apply_product(model: CalibratedModel, product: Product) -> None:
    """Load the setup and calibration of a product into a model. If the product does not fit, the model stays as it is.

    Args:
        model: An ``AprilGan`` with the same CLIP, adapters and stages as the model that made the product.
        product: The product.

    Raises:
        ValueError: If the product was made by another model; the message names both sides.
    """
    model.ensure_adapters()
    check_facts(product.facts, "The product")
    subject = f"The product {product.class_name!r} does"
    refuse_foreign_state(product.facts, model.model.origin, model.model.reference_layers, subject)
    ours, theirs = _calibrated_with(model), product.calibrated_with
    conflicts = [
        f"{name} {theirs.get(name)!r} against {value!r}" for name, value in ours.items() if theirs.get(name) != value
    ]
    if conflicts:
        msg = (
            f"Expected a product of this model, but {product.class_name!r} was calibrated with another model: "
            f"{', '.join(conflicts)}. Load the model that made the product, or make the product anew."
        )
        raise ValueError(msg)
    faults = _faults(product, model)
    if faults:
        msg = f"The product {product.class_name!r} is damaged: {', '.join(faults)}. Make it anew."
        raise ValueError(msg)
    record = Setup.from_dict(product.facts["setup"]).restored()
    record = replace(record, references=replace(record.references, origin="call"))
    record = replace(record, class_origin="default" if record.class_origin == "default" else "call")
    now = model.model.state.record
    record = replace(record, adapter=now.adapter, adapter_origin=now.adapter_origin, trained_on=now.trained_on)
    with model.model.state.locked(), torch.inference_mode(mode=False):
        for name, value in product.tensors.items():
            if name.startswith(STATE):
                _replace_buffer(model.model.state, name.removeprefix(STATE), value)
            elif model.post_processor is not None:
                _replace_buffer(model.post_processor, name.removeprefix(POST_PROCESSOR), value)
        model.model.state.record = record
        model.model.state.number_of_references = product.facts["k_shot"]
        if isinstance(model.post_processor, PostProcessor):
            model.post_processor.load_checkpoint_config(dict(product.options))


def _faults(product: Product, model: CalibratedModel) -> list[str]:
    """List what is wrong with a product of this model; nothing of it has been used before."""
    own = _tensors(model)
    faults = misfits(product.tensors, own)
    faults += [f"{name} is missing" for name in own if name not in product.tensors]
    faults += [f"{name} is unknown" for name in product.tensors if name not in own]
    banks = {len(bank) for name, bank in product.tensors.items() if ".memory_banks." in name and name not in faults}
    if not faults and not model.model.has_banks_of(banks, product.facts):
        faults.append(f"memory banks of {product.facts['k_shot']} images have {banks} tokens")
    class_name = Setup.from_dict(product.facts["setup"]).class_name
    if class_name is None or not class_name.strip():
        faults.append("class_name is missing")
    ours = _options(model)
    names = dict.fromkeys([*ours, *product.options])
    return faults + [f"option {name!r}" for name in names if not _is_option(name, product.options, ours)]


def _is_option(name: str, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> bool:
    """Whether an option is known, has a value of the right type, and lies in [0, 1] if it is a share."""
    if name not in theirs or name not in ours:
        return False
    numbers = [isinstance(value, int | float) and not isinstance(value, bool) for value in (theirs[name], ours[name])]
    if not all(numbers):
        return type(theirs[name]) is type(ours[name])
    return abs(theirs[name]) <= sys.float_info.max and (name not in SHARES or 0 <= theirs[name] <= 1)


def _replace_buffer(module: nn.Module, name: str, value: Tensor) -> None:
    """Replace a buffer by a new tensor, so that concurrent readers keep the old one."""
    path, _, buffer = name.rpartition(".")
    owner = module.get_submodule(path)
    setattr(owner, buffer, value.to(getattr(owner, buffer), copy=True))


def _tensors(model: CalibratedModel) -> dict[str, Tensor]:
    """Return the product-specific part of the state dict."""
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
    for weight in model.model.adapters.state_dict().values():  # signs do not depend on the precision
        digest.update(torch.signbit(weight.detach()).cpu().numpy().tobytes())
    return {
        "adapters": digest.hexdigest()[:16],
        "map_stages": list(model.model.map_stages),
        "prompts": model.model.method.prompts,
        "largest_bank": model.model.method.largest_bank,
        "image_size": model.model.image_size,
        "window": model.model.architecture.window,
        "post_processor": type(model.post_processor).__name__,
    }
