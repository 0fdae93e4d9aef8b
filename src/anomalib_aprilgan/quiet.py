# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""anomalib's Engine for commands that tell themselves what is worth telling."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from anomalib.engine import Engine

__all__ = ["quiet_engine", "quietly"]


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


@contextmanager
def quietly() -> Iterator[None]:
    """Keep the logs and warnings of what runs within to what went wrong."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
