# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""anomalib's Engine for commands that tell themselves what is worth telling."""

from pathlib import Path
from typing import Any

from anomalib.engine import Engine

__all__ = ["quiet_engine"]


def quiet_engine(folder: Path, **arguments: Any) -> Engine:  # noqa: ANN401
    """Make an engine that shows nothing and writes only to a folder.

    Args:
        folder: The folder.
        **arguments: Of the engine; on one device of the CPU unless they say otherwise.

    Returns:
        The engine.
    """
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Engine(default_root_dir=folder, **defaults | arguments)
