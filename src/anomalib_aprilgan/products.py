# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""What a model knows of one product, to be kept in a file and taken up again by the same model."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anomalib_aprilgan.preparation import Preparable
from anomalib_aprilgan.references import files_in_source
from anomalib_aprilgan.weight_files import read_weight_file, write_weight_file

__all__ = ["Product", "Switchable"]

METADATA_KEY = "anomalib_aprilgan_product"

PREFIXES = ("post_processor.", "model.text_features", "model.map_range", "model.memory_banks.")
"""Of the names in a model's state dict that differ from product to product."""


@dataclass(frozen=True)
class Product:
    """What a model knows of one product: class, text features, memory banks and calibration.

    The image tower and the adapters are the same for all products, so one loaded model serves many: see
    :attr:`AprilGan.product` and :meth:`AprilGan.switch_to`.

    Attributes:
        tensors: Part of the model's state dict.
        facts: What else the state dict holds, plain data: class name, reference files, and what model it belongs to.
        calibrated_with: What scores and thresholds depend on beside: adapters, stages and size of the maps.
    """

    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]
    calibrated_with: Mapping[str, Any]

    @property
    def class_name(self) -> str:
        """Name of the object or surface."""
        return str(self.facts["class_name"])

    @property
    def reference_files(self) -> tuple[str, ...]:
        """The files that the memory banks were filled from."""
        return tuple(self.facts["reference_files"])

    def save(self, path: str | Path) -> Path:
        """Write the product to a safetensors file. An existing file is replaced once the new one is complete.

        Args:
            path: The file; its suffix must be ``.safetensors``.

        Returns:
            The path.

        Raises:
            ValueError: If the suffix is another one.
        """
        told = json.dumps({"facts": self.facts, "calibrated_with": self.calibrated_with})
        return write_weight_file(path, self.tensors, {METADATA_KEY: told})

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
            told = json.loads(metadata[METADATA_KEY])
            facts, calibrated_with = dict(told["facts"]), dict(told["calibrated_with"])
            missing = {"class_name", "k_shot", "origin", "reference_files", "reference_layers"} - set(facts)
        except (KeyError, TypeError, ValueError):
            missing = {METADATA_KEY}
        if missing:
            msg = (
                f"The file {path} holds no product: it does not tell {', '.join(sorted(missing))}. Write one with "
                "`model.product.save(path)`."
            )
            raise ValueError(msg)
        return cls(tensors, facts, calibrated_with)


class Switchable(Preparable):
    """A model that serves many products, one after the other."""

    @property
    def product(self) -> Product:
        """What the model knows of its product now: class, references and calibration, apart from later changes."""
        self.ensure_prepared()
        tensors = {name: value.detach().cpu().clone() for name, value in self._state_of_product().items()}
        return Product(tensors, self.model.get_extra_state(), self._calibrated_with())

    def switch_to(self, product: Product) -> None:
        """Take up another product, without loading or encoding anything.

        Args:
            product: Made by a model with the same CLIP, adapters and stages.

        Raises:
            ValueError: If it was made by another model; nothing has changed then.
        """
        if not self._adapters_are_loaded:
            self._load_published_adapters(self._datamodule)
        self.model.refuse_foreign(product.facts, f"The product {product.class_name!r} does")
        ours, theirs = self._calibrated_with(), product.calibrated_with
        conflicts = [
            f"{name} {theirs.get(name)!r} against {value!r}"
            for name, value in ours.items()
            if theirs.get(name) != value
        ]
        if conflicts or _shapes(product.tensors) != _shapes(self._state_of_product()):
            msg = (
                f"The product {product.class_name!r} was calibrated by another model than this one: "
                f"{', '.join(conflicts) or 'another post-processor'}. Load the model that it was made with, or make "
                "the product anew."
            )
            raise ValueError(msg)
        self.load_state_dict({**self.state_dict(), **product.tensors, "model._extra_state": dict(product.facts)})
        self.settle()

    def add_references(self, source: str | Path) -> None:
        """Add reference images to the memory banks, which then keep what they hold.

        Thresholds and ranges stay as they were, unless these are the first references; validate again to renew them.

        Args:
            source: A folder, one image, or a text file that lists image paths.

        Raises:
            ValueError: If there are none, or they cannot be read.
        """
        self.ensure_prepared()
        was_few_shot = self.model.is_few_shot
        files = files_in_source(source, argument="source")
        self.model.add_references(self._read_references(files), files)
        self._keep_references()
        if not was_few_shot:
            self._reset_calibration()

    def _state_of_product(self) -> dict[str, Tensor]:
        return {name: value for name, value in self.state_dict().items() if name.startswith(PREFIXES)}

    def _calibrated_with(self) -> dict[str, Any]:
        digest = hashlib.sha256()
        for weight in self.model.adapters.state_dict().values():
            digest.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        model = self.model
        return {
            "adapters": digest.hexdigest()[:16],
            "map_stages": list(model.map_stages),
            "image_size": model.image_size,
        }


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Shapes by name; of memory banks without the number of tokens, which is each product's own."""
    return {
        name: tuple(tensor.shape[1:] if ".memory_banks." in name else tensor.shape) for name, tensor in tensors.items()
    }
