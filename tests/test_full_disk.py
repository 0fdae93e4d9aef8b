# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""A full disk, for everything that writes files: what was there stays, and the error names the file and the reason."""

import errno
import hashlib
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from anomalib.engine import Engine
from lightning.pytorch.plugins.io import TorchCheckpointIO
from numpy.random import default_rng
from PIL import Image
from torch import nn

from anomalib_aprilgan import AprilGan, AprilGanModel
from anomalib_aprilgan.comparison import callbacks
from anomalib_aprilgan.comparison.compare import compare
from anomalib_aprilgan.comparison.job import ComparisonJob
from anomalib_aprilgan.comparison.report import write_report
from anomalib_aprilgan.comparison.results import write_run
from anomalib_aprilgan.demo.page import write_page
from anomalib_aprilgan.demo.results import METRICS, DemoResults, Example, Prediction
from anomalib_aprilgan.demo.sample_data import write_sample_data
from anomalib_aprilgan.files import published
from anomalib_aprilgan.files.published import MIRROR_VARIABLE, PUBLISHED, fetch
from anomalib_aprilgan.files.whole_files import write_file
from anomalib_aprilgan.integration.checkpoint_files import WholeCheckpoints
from anomalib_aprilgan.integration.output_files import INDEX
from anomalib_aprilgan.integration.predictions import PredictionFiles
from anomalib_aprilgan.pretraining import pair_files, training
from anomalib_aprilgan.pretraining.held_out import write_held_out_photographs
from anomalib_aprilgan.pretraining.materials import Material

resource = pytest.importorskip("resource", reason="needs limits of processes, which Windows has not")

Write = Callable[[Path, int], object]
"""Writes files of a version into a folder."""

REASONS = (os.strerror(errno.ENOSPC), os.strerror(errno.EFBIG), "has only", "could not write")


@contextmanager
def nearly_full(disk: Path, free: int) -> Iterator[None]:
    """Fill a disk up to some bytes, and empty it afterwards."""
    with (disk / "rest").open("wb", buffering=0) as rest, suppress(OSError):
        while True:
            rest.write(bytes(4096))
    os.truncate(disk / "rest", max(0, (disk / "rest").stat().st_size - free))
    try:
        yield
    finally:
        (disk / "rest").unlink()


@contextmanager
def small_files(disk: Path, size: int) -> Iterator[None]:
    """Limit the size of the files that this process may write, which needs no disk of its own."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def contents(folder: Path) -> dict[str, bytes]:
    """Read all files, without the name of the folder, which a report holds."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes().replace(bytes(folder), b"") for path in files}


@pytest.fixture
def writers(  # noqa: C901, PLR0915  # one function for each
    make_model: Callable[..., AprilGanModel],
    make_lightning_model: Callable[..., AprilGan],
    official_adapter: Path,
    sample_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> dict[str, Write]:
    """Return what writes files. Two versions differ in content."""

    def write_checkpoint(folder: Path, version: int) -> None:
        WholeCheckpoints(TorchCheckpointIO()).save_checkpoint({"a": torch.full((2000,), version)}, folder / "a.ckpt")

    def write_adapters(folder: Path, version: int) -> None:
        model = make_model()
        model.reset_adapters(version)
        model.save_adapters(folder / "adapters.safetensors")

    def write_product(folder: Path, version: int) -> None:
        product = make_lightning_model(class_name="coin", k_shot=0).product
        replace(product, options={**product.options, "version": version}).save(folder / "product.safetensors")

    def write_export(folder: Path, version: int) -> None:
        make_lightning_model(class_name=f"coin {version}").to_torch(folder)

    def download(folder: Path, version: int) -> None:
        mirror = tmp_path / f"mirror {version}"
        object_id = published.git_object_id(mirror / PUBLISHED["visa"].file_name)
        monkeypatch.setitem(PUBLISHED, "visa", replace(PUBLISHED["visa"], git_object_id=object_id))
        monkeypatch.setattr(published, "user_cache_path", lambda name: folder)
        monkeypatch.setenv(MIRROR_VARIABLE, mirror.as_uri())
        fetch("visa")

    for version in (1, 2):
        write_file(
            tmp_path / f"mirror {version}" / PUBLISHED["visa"].file_name, official_adapter.read_bytes() * version
        )

    def row(version: int, **values: Any) -> dict[str, Any]:
        key = {"model": f"model {version}", "data": "MVTecAD", "category": "coins", "shots": "0", "seed": "0"}
        return {**key, "status": "done", "image_AUROC": 0.5, "error": "x" * 6000, **values}

    def write_run_file(folder: Path, version: int) -> None:
        write_run(folder, row(0, images=version))

    def write_reports(folder: Path, version: int) -> None:
        write_run(folder, row(0, error="", started=f"2026-01-0{version}T00:00:00"))
        write_report(folder)

    def write_example(folder: Path, version: int) -> None:
        pixels = default_rng(version).integers(0, 255, (256, 256), np.uint8)
        callbacks._save(Image.fromarray(pixels), folder / "image.png")

    def write_samples(folder: Path, version: int) -> None:
        write_sample_data(folder, ("brick",), ("scratch",), size=64, train=2, test=1, seed=version)

    def write_demo(folder: Path, version: int) -> None:
        metrics = {("gear", shots): dict.fromkeys(METRICS, 0.5) for shots in (0, 4)}
        results = DemoResults(version, 4, 1, (1, 1), {"drawn kinds": ["gear"]}, metrics)
        prediction = Prediction(0.5, label=False, anomaly_map=np.zeros((8, 8), np.float32))
        image = sample_root / "coins/test/good/000.png"
        results.examples.append(Example(image, None, {0: prediction, 4: prediction}))
        results.references["gear"] = (str(image),)
        write_page(folder / "index.html", results)

    picture = Material(tmp_path / "large.png", "brick", is_trained_on=False)
    Image.new("RGB", (400, 400), "grey").save(picture.path)

    def write_held_out(folder: Path, version: int) -> None:
        write_held_out_photographs(folder, [picture], categories=1, train=1, test=1, seed=version)

    def write_pairs(folder: Path, version: int) -> None:
        pair_files._write_file(folder, version, 1, size=96, seed=0, pictures=None)

    def write_training(folder: Path, version: int) -> None:
        torch.manual_seed(version)
        trained = nn.ModuleList([nn.Linear(40, 40)])
        optimizer = torch.optim.AdamW(trained.parameters())
        training._save(folder / "checkpoint.pt", "settings", version, trained, optimizer)

    return {
        "checkpoint": write_checkpoint,
        "adapters": write_adapters,
        "product": write_product,
        "export": write_export,
        "download": download,
        "run": write_run_file,
        "report": write_reports,
        "example": write_example,
        "sample data": write_samples,
        "demonstration": write_demo,
        "held-out photographs": write_held_out,
        "pairs": write_pairs,
        "pre-training": write_training,
    }


NAMES = (
    *("checkpoint", "adapters", "product", pytest.param("export", marks=pytest.mark.slow), "download", "run", "report"),
    *("example", "sample data", "demonstration", "held-out photographs", "pairs", "pre-training"),
)


@pytest.mark.parametrize("limit", [nearly_full, small_files])
@pytest.mark.parametrize("name", NAMES)
def test_what_was_there_stays_and_the_error_names_file_and_reason(
    name: str, limit: Callable[..., Any], writers: dict[str, Write], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    write = writers[name]
    disk = request.getfixturevalue("small_disk") if limit is nearly_full else tmp_path / "disk"
    if limit is nearly_full:
        subprocess.run(["mount", "-o", "remount,size=16m", disk], check=True)
    folder = disk / "folder"
    folder.mkdir(parents=True)
    write(folder, 1)
    before = contents(folder)
    write(new := tmp_path / "new" / "folder", 2)
    with limit(disk, 500), pytest.raises((OSError, RuntimeError)) as error:
        write(folder, 2)
    message = str(error.value)
    assert any(reason in message for reason in REASONS), message
    assert str(folder) in message
    after = contents(folder)
    whole_parts = {path: content for path, content in after.items() if ".parts/" not in path}  # of a download
    assert set(before) <= set(whole_parts)
    for path, content in whole_parts.items():
        assert content in {before.get(path), contents(new).get(path)}, path
    write(folder, 2)
    assert contents(folder) == {**before, **contents(new)}, "with space, it is written"


SLOW = pytest.mark.slow


@pytest.mark.parametrize("free", [3000, *(pytest.param(free, marks=SLOW) for free in (0, 30_000, 60_000))])
def test_a_prediction_leaves_whole_files(
    free: int,
    make_lightning_model: Callable[..., AprilGan],
    sample_root: Path,
    small_disk: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = make_lightning_model(class_name="coin", predictions=PredictionFiles(maps="npy"))
    model.prepare()
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    engine = Engine(accelerator="cpu", devices=1, default_root_dir=small_disk / "results", **quiet)
    with nearly_full(small_disk, free), pytest.raises(OSError, match="No space left on device") as error:
        engine.predict(model, data_path=sample_root / "coins/test")
    assert str(small_disk / "results") in str(error.value)
    assert "Table of scores" not in capsys.readouterr().out
    folder = small_disk / "results/AprilGan/latest"
    for path in folder.rglob("*.png"):
        with Image.open(path) as picture:
            picture.load()
    for path in folder.rglob("*.npy"):
        np.load(path)
    rows = (
        (folder / "predictions.csv").read_text(encoding="utf-8").splitlines()
        if (folder / "predictions.csv").exists()
        else []
    )
    assert all(row.count(",") == 5 and row.endswith((".npy", "map")) for row in rows), "rows are whole"
    assert len(rows) < 1 + len(list((sample_root / "coins/test").rglob("*.png")))
    engine.predict(model, data_path=sample_root / "coins/test/good")
    names = {path.name for path in folder.rglob("*") if path.is_file()}
    assert names == {"predictions.csv", INDEX, *(f"{n:03}.png{suffix}" for n in range(3) for suffix in ("", ".npy"))}


@pytest.mark.slow
def test_a_comparison_stops_and_continues(
    sample_root: Path, small_disk: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments: dict[str, Any] = {
        "models": {"ours": {"class_path": "AprilGan", "init_args": {"backbone": "ViT-builtin", "image_size": 96}}},
        "data": {"class_path": "MVTecAD", "init_args": {"root": str(sample_root), "num_workers": 0}},
        "categories": ["coins"],
        "shots": [0],
        "output": small_disk / "comparison",
        "trainer": {"accelerator": "cpu"},
    }
    measure = ComparisonJob._measure

    def fill_disk_and_measure(job: ComparisonJob, *others: Any) -> Any:
        with nearly_full(small_disk, 20_000):
            return measure(job, *others)

    with monkeypatch.context() as patch:
        patch.setattr(ComparisonJob, "_measure", fill_disk_and_measure)
        with pytest.raises(
            OSError, match=r"could not be saved\. ours, .*No space left on device.*small-disk/comparison"
        ):
            compare(**arguments)
    assert "[1/1]" not in capsys.readouterr().out
    assert not list(small_disk.rglob("*.json"))
    assert not (small_disk / "comparison/results.csv").exists()
    compare(**arguments)
    digest = hashlib.sha256((small_disk / "comparison/results.csv").read_bytes()).digest()
    with nearly_full(small_disk, 0), pytest.raises(OSError, match=r"No space left on device.*results\.csv"):
        write_report(small_disk / "comparison")
    assert hashlib.sha256((small_disk / "comparison/results.csv").read_bytes()).digest() == digest
