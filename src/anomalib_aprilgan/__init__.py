# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""APRIL-GAN (arXiv 2305.17382) for anomalib: zero- and few-shot anomaly detection with a frozen CLIP.

The public names are imported on first use, so that importing this package is fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anomalib_aprilgan.datamodule import AuxiliaryDataModule
    from anomalib_aprilgan.export.products import Product
    from anomalib_aprilgan.lightning_model import AprilGan
    from anomalib_aprilgan.torch_model import AprilGanModel

__all__ = ["AprilGan", "AprilGanModel", "AuxiliaryDataModule", "Product", "__version__"]

__version__ = "0.1.0"

_MODULES = {
    "AprilGan": "anomalib_aprilgan.lightning_model",
    "AprilGanModel": "anomalib_aprilgan.torch_model",
    "AuxiliaryDataModule": "anomalib_aprilgan.datamodule",
    "Product": "anomalib_aprilgan.export.products",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401
    """Import a public name on its first use."""
    if name not in _MODULES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
