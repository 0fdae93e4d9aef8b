# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Suppresses irrelevant output of third-party libraries. Imports nothing of anomalib, which may be half imported."""

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from anomalib_aprilgan_plugin import is_quiet_command

__all__ = ["quieten_command", "quietly"]

NOISE = re.compile(
    "Initializing AprilGan model|Loading the callbacks|Overriding num_sanity_val_steps|"
    "ckpt_path is not provided|Running validation before|"  # anomalib; this model needs neither
    "Parsing tokenizer identifier|Attempting to load config from built-in|Using default SimpleTokenizer|"  # open_clip
    "TPU available|.?.? ?Tip: |The following callbacks returned in `LightningModule"  # Lightning
)
"""Matches log messages that tell nothing about a run of ``AprilGan``."""

IRRELEVANT = (
    "`isinstance\\(treespec, LeafSpec\\)` is deprecated",
    "Total length of `list` across ranks is zero",
    "'pin_memory' argument is set as true but no accelerator is found",
    "The dirpath has changed from",
    "Found \\d+ module\\(s\\) in eval mode",
    "`max_epochs` was not set",
    "This DataLoader will create \\d+ worker processes",
    "The ``compute`` method of metric \\w+ was called before the ``update`` method",
)
"""Match warnings of Lightning and torch that the user can do nothing about."""


def quieten_command() -> None:
    """In the process of anomalib's command, drop irrelevant messages, and print each message once.

    anomalib prints each message twice: as a line, and in columns. This function does nothing in other processes, and if
    the environment variable ``ANOMALIB_APRILGAN_VERBOSE`` is 1. A second call changes nothing.
    """
    if not is_quiet_command():
        return
    for message in IRRELEVANT:
        warnings.filterwarnings("ignore", message=message)
    for name in ("root", "lightning.pytorch", "lightning_fabric"):
        handlers = logging.getLogger(name).handlers
        for handler in handlers:
            is_copy = type(handler).__module__ == "rich.logging" and len(handlers) > 1
            handler.addFilter(_is_nothing if is_copy else _is_relevant)


def _is_nothing(_: logging.LogRecord) -> bool:
    return False


def _is_relevant(record: logging.LogRecord) -> bool:
    """Whether a log message tells something about a run of ``AprilGan``."""
    return not NOISE.match(record.getMessage())


@contextmanager
def quietly() -> Iterator[None]:
    """Suppress warnings, and log messages up to level WARNING, within a ``with`` block. Errors are still logged."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
