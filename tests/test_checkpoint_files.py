# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Checkpoints survive kills and full disks, also if TMPDIR is on another disk."""

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from anomalib.data import MVTecAD
from anomalib.engine import Engine
from anomalib.engine.plugins import AnomalibCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import AsyncCheckpointIO, TorchCheckpointIO

from anomalib_aprilgan import AprilGan, AuxiliaryDataModule
from anomalib_aprilgan.files.adapter_files import read_adapters
from anomalib_aprilgan.files.whole_files import UNFINISHED
from anomalib_aprilgan.integration.checkpoints import check_checkpoint

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


@pytest.mark.skipif(not os.access(OTHER_DISK, os.W_OK), reason="there is no second disk")
@pytest.mark.posix
@pytest.mark.parametrize("kills", [8, pytest.param(60, marks=pytest.mark.slow)])
def test_a_kill_leaves_the_old_or_the_new_checkpoint(
    kills: int,
    kill_repeatedly: Callable[..., Iterator[bool]],
    train: Callable[..., Engine],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "killed" / "model.ckpt"

    def save_and_kill(trainer: Trainer) -> None:
        def save_for_ever() -> None:
            while True:
                trainer.save_checkpoint(path)

        trainer.save_checkpoint(path)
        for _ in kill_repeatedly(save_for_ever, kills, longest=0.1, shortest=0.02):
            weights(path)
        trainer.save_checkpoint(path)

    with tempfile.TemporaryDirectory(dir=OTHER_DISK) as other_disk:
        monkeypatch.setattr(tempfile, "tempdir", other_disk)
        train(callbacks=[SaveAtEnd(save_and_kill)])
        assert not list(Path(other_disk).iterdir())
    assert not list(tmp_path.rglob(f"{UNFINISHED}*"))


@pytest.mark.slow
def test_a_training_that_is_killed_continues_as_if_it_had_not_been(
    kill_repeatedly: Callable[..., Iterator[bool]],
    make_lightning_model: MakeModel,
    sample_root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "killed"

    def train_on(folder: Path) -> None:
        """Train for three epochs, from the last checkpoint if there is one."""
        seed_everything(5, verbose=False)
        last = folder / "last.ckpt"
        options: dict[str, Any] = {"filename": last.stem, "enable_version_counter": False}
        options["mode"] = "max"  # tells it from the one that the Engine adds
        saving = ModelCheckpoint(folder, save_on_train_epoch_end=True, every_n_epochs=1, **options)
        engine = Engine(default_root_dir=tmp_path / "engine", max_epochs=3, callbacks=[saving], logger=False, **QUIET)
        model = make_lightning_model(adapter=None)
        datamodule = AuxiliaryDataModule(MVTecAD(sample_root, category="brick"), ["brick"], num_workers=0)
        engine.fit(model, datamodule=datamodule, ckpt_path=last if last.exists() else None)
        model.model.save_adapters(folder / "adapters.safetensors")

    train_on(tmp_path / "first")  # takes longer than later trainings, which have imported everything
    start = time.monotonic()
    train_on(tmp_path / "second")
    seconds = time.monotonic() - start
    expected, _ = read_adapters(tmp_path / "second" / "adapters.safetensors")
    ends = resumed = 0
    for was_killed in kill_repeatedly(lambda: train_on(folder), 50, longest=2 * seconds):
        resumed += (folder / "last.ckpt").exists()
        if (folder / "last.ckpt").exists():
            check_checkpoint(folder / "last.ckpt")
        if not was_killed:
            found, _ = read_adapters(folder / "adapters.safetensors")
            for name, value in expected.items():
                torch.testing.assert_close(found[name], value, atol=1e-6, rtol=0)
            shutil.rmtree(folder)
            ends += 1
    with capsys.disabled():
        print(f"\n50 kills of trainings of {seconds:.1f} s: {resumed} left a checkpoint, {ends} trainings ended")
    assert min(ends, resumed) > 5


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


def test_a_full_disk_keeps_what_is_saved_after_a_run(train: Callable[..., Engine], small_disk: Path) -> None:
    path, trainer = small_disk / "model.ckpt", train().trainer
    trainer.save_checkpoint(path)
    before = path.read_bytes()
    (small_disk / "rest").write_bytes(bytes((1 << 20) - len(before) - 5_000))
    for weights_only in (False, True):
        with pytest.raises(OSError, match=r"No space left on device, .*'[^']*/model\.ckpt'"):
            trainer.save_checkpoint(path, weights_only=weights_only)
        assert path.read_bytes() == before
        assert isinstance(trainer.strategy.checkpoint_io, AnomalibCheckpointIO)


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
