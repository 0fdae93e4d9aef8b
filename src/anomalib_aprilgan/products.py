# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""What a model knows of one product, to be kept in a file and taken up again by the same model."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from anomalib_aprilgan.weight_files import read_weight_file, write_weight_file

__all__ = ["Product"]

METADATA_KEY = "anomalib_aprilgan_product"


@dataclass(frozen=True)
class Product:
    """What a model knows of one product: class, text features, memory banks and calibration.

    The image tower and the adapters are the same for all products, so one loaded model serves many: see
    :attr:`AprilGan.product` and :meth:`AprilGan.switch_to`.

    Attributes:
        tensors: Part of the model's state dict.
        facts: What else the state dict holds, plain data: class name, reference files, and what model it belongs to.
    """

    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]

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
        return write_weight_file(path, self.tensors, {METADATA_KEY: json.dumps(self.facts)})

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
        if METADATA_KEY not in metadata:
            msg = f"The file {path} holds no product. Write one with `model.product.save(path)`."
            raise ValueError(msg)
        return cls(tensors, json.loads(metadata[METADATA_KEY]))
