# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""The seed of a run. anomalib 2.7 parses ``--seed_everything`` on its command line but does not apply it."""

import logging

from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.cli import SaveConfigCallback

__all__ = ["apply_command_line_seed"]

logger = logging.getLogger(__name__)


def apply_command_line_seed(trainer: Trainer) -> bool:
    """Seed everything as anomalib's command line was asked to.

    Args:
        trainer: The trainer, which carries the command line's configuration in a callback.

    Returns:
        Whether there was a seed to apply.
    """
    for callback in getattr(trainer, "callbacks", ()):
        if isinstance(callback, SaveConfigCallback):
            seed = callback.config.get("seed_everything")
            if isinstance(seed, int) and not isinstance(seed, bool):
                logger.info("Seed: %d", seed)
                seed_everything(seed, workers=True)
                return True
    return False
