# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""anomalib's Engine without output, for commands that print their own."""

from pathlib import Path
from typing import Any

from anomalib.engine import Engine

__all__ = ["QUIET", "quiet_engine"]


QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "devices": 1,
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
"""Arguments of an Engine that computes on one CPU device and prints nothing."""


def quiet_engine(folder: Path, **arguments: Any) -> Engine:  # noqa: ANN401
    """Make an engine that prints nothing and writes to one folder only.

    Args:
        folder: The folder.
        **arguments: Arguments of the engine. The default is one CPU device.

    Returns:
        The engine.
    """
    return Engine(default_root_dir=folder, **QUIET | arguments)
