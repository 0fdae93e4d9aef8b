# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Writing of checkpoints in one step, through Lightning's own interface.

Lightning writes a checkpoint to the folder for temporary files, and moves it. If that folder is on another file system,
the move is a copy: a kill or a full disk destroys the checkpoint that was there.
"""

from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from anomalib.engine.plugins import AnomalibCheckpointIO
from lightning.fabric.plugins.io import CheckpointIO, TorchCheckpointIO
from lightning.pytorch import Trainer

from anomalib_aprilgan.files.whole_files import write_file

__all__ = ["WholeCheckpoints"]


class WholeCheckpoints(CheckpointIO):
    """Writes checkpoints beside their target and renames them; leaves everything else to another ``CheckpointIO``.

    Args:
        other: The other one, which also writes to remote storage.
        trainer: A trainer that is left as it was after one checkpoint; ``None``: :meth:`end` does that.
    """

    def __init__(self, other: CheckpointIO, trainer: Trainer | None = None) -> None:
        self.other = other
        self._trainer = trainer

    @classmethod
    def begin(cls, trainer: Trainer, *, once: bool = False) -> None:
        """Write checkpoints in one step until the end of a run, unless the user has chosen how they are written.

        Args:
            trainer: The trainer.
            once: Only write the next checkpoint so.
        """
        current = trainer.strategy.checkpoint_io
        if type(current) in {AnomalibCheckpointIO, TorchCheckpointIO}:
            trainer.strategy.checkpoint_io = cls(current, trainer if once else None)

    @classmethod
    def end(cls, trainer: Trainer) -> None:
        """Leave the trainer as it was before the run."""
        current = trainer.strategy.checkpoint_io
        if isinstance(current, cls):
            trainer.strategy.checkpoint_io = current.other

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:  # noqa: ANN401
        """Write a checkpoint.

        Args:
            checkpoint: Its content.
            path: The file.
            storage_options: Options of remote storage.

        Raises:
            OSError: If it cannot be written. An earlier checkpoint of the same name is kept.
        """
        if self._trainer is not None:
            self.end(self._trainer)
        if storage_options is not None or "://" in str(path):
            self.other.save_checkpoint(checkpoint, path, storage_options)
            return
        content = BytesIO()  # torch's errors of a full disk would not say so
        torch.save(checkpoint, content)
        write_file(Path(path), content.getvalue())

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:  # noqa: ANN401
        """Read a checkpoint."""
        return self.other.load_checkpoint(path, *args, **kwargs)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete a checkpoint."""
        self.other.remove_checkpoint(path)

    def teardown(self) -> None:
        """End the process's use of checkpoints."""
        self.other.teardown()
