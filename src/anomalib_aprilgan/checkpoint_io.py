# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Checkpoints that cannot be used are explained before torch trips over them."""

from pathlib import Path
from typing import Any

from anomalib.utils.serialization import anomalib_safe_globals
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch import Trainer

from anomalib_aprilgan.weight_files import read_weight_file

__all__ = ["ExplainingCheckpointIO", "check_checkpoint"]

STATE_KEY = "model._extra_state"
"""What every checkpoint of AprilGan holds, and no other."""


def check_checkpoint(path: str | Path) -> None:
    """Make sure that a file is a checkpoint of AprilGan. A missing file is left to Lightning, which says so.

    Args:
        path: The file.

    Raises:
        ValueError: If it is damaged, would run code, or belongs to another model; the message names it.
    """
    path = Path(path)
    if path.is_dir():
        msg = f"Expected a checkpoint file, but {path} is a folder. Pass the file in it, for instance model.ckpt."
        raise ValueError(msg)
    if not path.is_file():
        return
    with anomalib_safe_globals():
        content, _ = read_weight_file(path, "a checkpoint")
    state = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(state, dict) or not state.get(STATE_KEY) or "pytorch-lightning_version" not in content:
        msg = f"The file {path} is no checkpoint of AprilGan. Adapters alone, also the authors', go to `adapter`."
        raise ValueError(msg)


class ExplainingCheckpointIO(CheckpointIO):
    """A trainer's own checkpoint plugin, with a check before it loads.

    Args:
        checkpoint_io: The trainer's plugin.
    """

    def __init__(self, checkpoint_io: CheckpointIO) -> None:
        self.checkpoint_io = checkpoint_io

    @classmethod
    def install(cls, trainer: Trainer) -> None:
        """Wrap the trainer's plugin, once."""
        if not isinstance(trainer.strategy.checkpoint_io, cls):
            trainer.strategy.checkpoint_io = cls(trainer.strategy.checkpoint_io)

    def save_checkpoint(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        """Save as the trainer's plugin does."""
        self.checkpoint_io.save_checkpoint(*args, **kwargs)

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:  # noqa: ANN401
        """Check, then load as the trainer's plugin does."""
        check_checkpoint(path)
        return self.checkpoint_io.load_checkpoint(path, *args, **kwargs)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove as the trainer's plugin does."""
        self.checkpoint_io.remove_checkpoint(path)

    def teardown(self) -> None:
        """Tear the trainer's plugin down."""
        self.checkpoint_io.teardown()
