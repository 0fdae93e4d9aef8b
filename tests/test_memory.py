# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Memory stays flat, however many images are predicted or trained on."""

import gc
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from anomalib.data import MVTecAD
from anomalib.engine import Engine
from lightning.pytorch import Callback, LightningModule, Trainer

from anomalib_aprilgan import AprilGan, AuxiliaryDataModule
from anomalib_aprilgan.integration.quiet_engine import QUIET

resource = pytest.importorskip("resource", reason="needs the memory of processes, which Windows does not tell this way")

MakeModel = Callable[..., AprilGan]

WARM_UP = 200
"""Batches after which everything has been imported and allocated once."""

COUNT = 1000
"""Batches during which the memory is watched."""

GROWTH = 12_000_000
"""Bytes by which the memory may grow afterwards. One kept image with map has 70 kB here, so that 1000 have 70 MB."""


class Memory(Callback):
    """Records the memory of the process after each hundredth batch."""

    def __init__(self) -> None:
        self.batches = 0
        self.bytes: list[int] = []

    def on_train_batch_end(self, *args: Any) -> None:
        self.count()

    def on_predict_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        self.count()

    def count(self) -> None:
        self.batches += 1
        if self.batches % 100 == 0:
            gc.collect()
            pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
            self.bytes.append(pages * resource.getpagesize())

    @property
    def growth(self) -> int:
        return max(self.bytes[WARM_UP // 100 :]) - self.bytes[WARM_UP // 100 - 1]


def many_images(folder: Path, image: Path, number: int) -> Path:
    """Make many names of one image."""
    folder.mkdir()
    for one in range(number):
        os.link(image, folder / f"{one:05}.png")
    return folder


def say(memory: Memory, what: str, capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(f"\n{memory.batches} batches of {what}: {memory.growth / 1e6:.1f} MB more than after {WARM_UP}")


@pytest.mark.slow
@pytest.mark.parametrize("k_shot", [0, 2])
def test_memory_of_a_prediction_is_flat(
    k_shot: int,
    make_lightning_model: MakeModel,
    sample_root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    images = many_images(tmp_path / "images", sample_root / "coins/test/stain/000.png", WARM_UP + COUNT)
    source = sample_root / "coins/train/good" if k_shot else None
    model = make_lightning_model(class_name="coin", k_shot=k_shot, few_shot_source=source)
    memory = Memory()
    engine = Engine(default_root_dir=tmp_path / "results", callbacks=[memory], **QUIET)
    assert engine.predict(model, data_path=images, return_predictions=False) is None
    say(memory, f"a {k_shot}-shot prediction", capsys)
    assert memory.batches == WARM_UP + COUNT
    assert memory.growth < GROWTH
    table = tmp_path / "results/AprilGan/latest/predictions.csv"
    assert len(table.read_text(encoding="utf-8").splitlines()) == 1 + memory.batches


@pytest.mark.slow
def test_memory_of_a_training_is_flat(
    make_lightning_model: MakeModel, sample_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    memory = Memory()
    data = AuxiliaryDataModule(
        MVTecAD(sample_root, category="brick", train_batch_size=1), ["brick"], num_workers=0, train_batch_size=1
    )
    steps = WARM_UP + COUNT
    engine = Engine(default_root_dir=tmp_path, callbacks=[memory], max_epochs=steps, max_steps=steps, **QUIET)
    engine.fit(make_lightning_model(adapter=None), datamodule=data)
    say(memory, "a training", capsys)
    assert memory.batches == steps
    assert memory.growth < GROWTH


PROGRAM = """
import resource
from pathlib import Path
from anomalib_aprilgan import AprilGan
from anomalib.cli.cli import main

def say(model):
    print("memory", int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize())

AprilGan.on_predict_end = say
main()
"""
"""Runs anomalib's command, and prints the memory after the last image, when everything that is kept is there."""


def memory_of_command(images: Path, results: Path) -> int:
    """Predict images with anomalib's command, and return the memory that it has at the end, in bytes."""
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, "predict", "--model", "AprilGan", "--data", str(images)]
    command += ["--model.backbone", "ViT-builtin", "--model.image_size", "64", "--model.class_name", "coin"]
    command += ["--default_root_dir", str(results), "--trainer.accelerator", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    table = (results / "AprilGan/latest/predictions.csv").read_text(encoding="utf-8")
    assert len(table.splitlines()) == 1 + len(list(images.iterdir()))
    return int(re.findall(r"memory (\d+)", done.stdout)[-1])


@pytest.mark.slow
def test_the_command_predicts_thousands_of_images_in_the_memory_of_hundreds(
    sample_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = sample_root / "coins/test/stain/000.png"
    few, many = (many_images(tmp_path / f"{number}", image, number) for number in (200, 2000))
    found = [memory_of_command(images, tmp_path / f"results {images.name}") for images in (few, many)]
    with capsys.disabled():
        print(f"\nMemory of the command: {found[0] / 1e6:.0f} MB after 200 images, {found[1] / 1e6:.0f} MB after 2000")
    assert found[1] - found[0] < 40_000_000, "1800 kept predictions would take 130 MB"
