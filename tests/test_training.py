# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Training of adapters with anomalib's Engine: its number of epochs, and the metrics of its validations."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from anomalib.data import MVTecAD
from anomalib.engine import Engine
from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger

from anomalib_aprilgan import AprilGan, AuxiliaryDataModule

MakeModel = Callable[..., AprilGan]


def train(model: AprilGan, root: Path, results: Path, validation: MVTecAD | None = None, **arguments: Any) -> Engine:
    """Train on one category."""
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu", "devices": 1}
    engine = Engine(default_root_dir=results, **quiet | arguments)
    source = MVTecAD(root, category="brick")
    engine.fit(model, datamodule=AuxiliaryDataModule(source, ["brick"], validation=validation, num_workers=0))
    return engine


class Look(Callback):
    """Notes the number of epochs and ends the training before its first step."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.max_epochs = trainer.max_epochs
        trainer.should_stop = True


class Command(SaveConfigCallback):
    """Holds the configuration of anomalib's command, without writing it."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        pass


def test_validations_log_metrics_to_watch(make_lightning_model: MakeModel, sample_root: Path, tmp_path: Path) -> None:
    watch = ModelCheckpoint(tmp_path / "best", filename="{epoch}", monitor="val_pixel_AUROC", mode="max", save_top_k=2)
    validation = MVTecAD(sample_root, category="gravel", num_workers=0)
    logger = CSVLogger(tmp_path)
    engine = train(
        make_lightning_model(adapter=None),
        sample_root,
        tmp_path,
        validation,
        max_epochs=2,
        callbacks=[watch],
        logger=logger,
    )
    names = {f"val_{what}_{metric}" for what in ("image", "pixel") for metric in ("AUROC", "F1Max", "AUPR")}
    last = dict(engine.trainer.callback_metrics)
    assert names == {name for name in last if name.startswith("val_")}
    logged = pd.read_csv(Path(logger.log_dir, "metrics.csv"))
    assert [len(logged[name].dropna()) for name in sorted(names)] == [2] * 6, "one value per epoch"
    assert float(watch.best_model_score) == pytest.approx(logged["val_pixel_AUROC"].max(), abs=1e-6)
    tester = make_lightning_model(adapter=engine.best_model_path)
    (results,) = Engine(default_root_dir=tmp_path, accelerator="cpu").test(tester, datamodule=validation)
    for name in names:
        assert results[name.removeprefix("val_")] == pytest.approx(float(last[name]), abs=1e-4), name


def test_a_model_that_is_not_trained_computes_no_metrics_in_validations(make_lightning_model: MakeModel) -> None:
    """They would take as long as the test that follows."""
    assert not make_lightning_model().evaluator.val_metrics


@pytest.mark.parametrize(
    ("given", "epochs", "line"),
    [
        ({}, 15, "Training for 15 epochs"),
        ({"max_epochs": 3}, 3, "max_epochs=3"),
        ({"max_epochs": 1, "max_steps": 7}, 1, "max_epochs=1, max_steps=7"),
        ({"max_steps": 7}, -1, "max_steps=7"),
        ({"max_time": "00:00:01:00"}, -1, "max_time"),
        ({"max_epochs": -1}, -1, "none"),
    ],
)
def test_a_training_without_a_limit_takes_the_paper_s_number_of_epochs(
    given: dict[str, Any],
    epochs: int,
    line: str,
    make_lightning_model: MakeModel,
    sample_root: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    look = Look()
    with caplog.at_level("INFO", "anomalib_aprilgan"):
        train(make_lightning_model(adapter=None), sample_root, tmp_path, callbacks=[look], **given)
    assert look.max_epochs == epochs
    assert [line in text for text in caplog.messages if text.startswith(("Training for", "Training until"))] == [True]


@pytest.mark.parametrize(("given", "epochs"), [(None, 15), (1000, 1000)])
def test_on_the_command_line_even_lightning_s_default_may_be_given(
    given: int | None, epochs: int, make_lightning_model: MakeModel, sample_root: Path, tmp_path: Path
) -> None:
    config = Namespace(trainer=Namespace(max_epochs=given), seed_everything=True)
    command = Command(ArgumentParser(), config)
    look = Look()
    train(make_lightning_model(adapter=None), sample_root, tmp_path, callbacks=[look, command], max_epochs=given)
    assert look.max_epochs == epochs
