# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Checkpoints survive kills and full disks, also if TMPDIR is on another disk."""

import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from anomalib.data import MVTecAD
from anomalib.engine import Engine
from anomalib.engine.plugins import AnomalibCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.io import AsyncCheckpointIO, TorchCheckpointIO

from anomalib_aprilgan import AprilGan, AuxiliaryDataModule
from anomalib_aprilgan.files.whole_files import UNFINISHED

MakeModel = Callable[..., AprilGan]
QUIET = {"accelerator": "cpu", "devices": 1, "enable_progress_bar": False, "enable_model_summary": False}

OTHER_DISK = Path("/dev/shm")  # noqa: S108
"""A disk in memory that most Linux systems have."""


class SaveAtEnd(Callback):
    """Calls a function that saves checkpoints when the first epoch has ended."""

    def __init__(self, save: Callable[[Trainer], None]) -> None:
        self.save = save

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.save(trainer)


@pytest.fixture
def train(make_lightning_model: MakeModel, sample_root: Path, tmp_path: Path) -> Callable[..., Engine]:
    def train_one_epoch(**arguments: Any) -> Engine:
        engine = Engine(default_root_dir=tmp_path, max_epochs=1, **QUIET | arguments)
        datamodule = AuxiliaryDataModule(MVTecAD(sample_root, category="brick"), ["brick"], num_workers=0)
        engine.fit(make_lightning_model(adapter=None), datamodule=datamodule)
        return engine

    return train_one_epoch


def weights(path: Path) -> Any:
    return torch.load(path, weights_only=False)["state_dict"]["model.adapters.fc.0.weight"]


def kill_while_saving(kills: int, trainer: Trainer, path: Path) -> None:
    """Save checkpoints in a process that is killed, again and again, and check that the file can be read."""

    def save_for_ever() -> None:
        while True:
            trainer.save_checkpoint(path)

    trainer.save_checkpoint(path)
    for kill in range(kills):
        process = multiprocessing.get_context("fork").Process(target=save_for_ever)
        process.start()
        time.sleep(0.02 + 0.0037 * (kill % 23))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        weights(path)
    trainer.save_checkpoint(path)


@pytest.mark.skipif(not os.access(OTHER_DISK, os.W_OK), reason="there is no second disk")
@pytest.mark.posix
@pytest.mark.parametrize("kills", [8, pytest.param(60, marks=pytest.mark.slow)])
def test_a_kill_leaves_the_old_or_the_new_checkpoint(
    kills: int, train: Callable[..., Engine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tempfile.TemporaryDirectory(dir=OTHER_DISK) as other_disk:
        monkeypatch.setattr(tempfile, "tempdir", other_disk)
        path = tmp_path / "killed" / "model.ckpt"
        train(callbacks=[SaveAtEnd(lambda trainer: kill_while_saving(kills, trainer, path))])
        assert not list(Path(other_disk).iterdir())
    assert not list(tmp_path.rglob(f"{UNFINISHED}*"))


def test_a_full_disk_keeps_the_checkpoint(train: Callable[..., Engine], small_disk: Path) -> None:
    path = small_disk / "model.ckpt"
    saved = []

    def save_twice(trainer: Trainer) -> None:
        trainer.save_checkpoint(path)
        saved.append(path.read_bytes())
        (small_disk / "rest").write_bytes(bytes((1 << 20) - path.stat().st_size - 50_000))
        trainer.save_checkpoint(path)

    with pytest.raises(OSError, match=r"No space left on device, .*'[^']*/model\.ckpt'"):
        train(callbacks=[SaveAtEnd(save_twice)])
    assert path.read_bytes() == saved[0]


def test_only_lightning_s_own_writing_is_replaced_and_only_during_a_run(train: Callable[..., Engine]) -> None:
    during = []
    look = SaveAtEnd(lambda trainer: during.append(trainer.strategy.checkpoint_io))
    engine = train(callbacks=[look])
    assert isinstance(engine.trainer.strategy.checkpoint_io, AnomalibCheckpointIO)
    own = AsyncCheckpointIO(TorchCheckpointIO())
    engine = train(callbacks=[look], plugins=[own])
    assert engine.trainer.strategy.checkpoint_io is own
    assert [type(one).__name__ for one in during] == ["WholeCheckpoints", "AsyncCheckpointIO"]


def test_after_an_error_lightning_writes_again(make_lightning_model: MakeModel, tmp_path: Path) -> None:
    engine = Engine(default_root_dir=tmp_path, **QUIET)
    (tmp_path / "image.png").touch()
    with pytest.raises(ValueError, match="damaged or no image"):
        engine.predict(make_lightning_model(), data_path=tmp_path / "image.png")
    assert isinstance(engine.trainer.strategy.checkpoint_io, AnomalibCheckpointIO)
