# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Files of exported models: weights never meet the graph of another model, whatever ends an export."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from anomalib.deploy import ExportType

from anomalib_aprilgan import AprilGan
from anomalib_aprilgan.export.exported_files import export_folder, replacing
from anomalib_aprilgan.files.whole_files import UNFINISHED

PAIRS = {ExportType.OPENVINO: ("model.xml", "model.bin"), ExportType.ONNX: ("model.onnx", "model.onnx.data")}


def export(root: Path, kind: ExportType, version: str) -> None:
    with replacing(root, kind) as unfinished:
        for name in PAIRS[kind]:
            (export_folder(unfinished, kind) / name).write_text(version * 50_000, encoding="utf-8")


def versions(root: Path, kind: ExportType) -> list[str | None]:
    """Return the version of the graph and of the weights; ``None`` if there is none."""
    files = [export_folder(root, kind) / name for name in PAIRS[kind]]
    return [file.read_text(encoding="utf-8")[:1] if file.exists() else None for file in files]


@pytest.mark.parametrize("kind", PAIRS)
def test_a_pair_is_replaced_as_one(kind: ExportType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export(tmp_path, kind, "1")
    original = os.replace
    for stop in range(3):
        calls: list[Any] = []

        def stopped(*arguments: Any, calls: list[Any] = calls, stop: int = stop) -> None:
            calls.append(arguments)
            if len(calls) > stop:
                raise KeyboardInterrupt
            original(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr("anomalib_aprilgan.export.exported_files.os.replace", stopped)
            if stop < 2:
                with pytest.raises(KeyboardInterrupt):
                    export(tmp_path, kind, "2")
            else:
                export(tmp_path, kind, "2")
        graph, weights = versions(tmp_path, kind)
        assert graph in {None, weights}
    assert (graph, weights) == ("2", "2")


@pytest.mark.posix
@pytest.mark.parametrize("kills", [8, pytest.param(60, marks=pytest.mark.slow)])
def test_a_kill_never_mixes_two_models(
    kills: int, kill_repeatedly: Callable[..., Iterator[bool]], tmp_path: Path
) -> None:
    kind, found = ExportType.OPENVINO, set()
    start = time.monotonic()
    export(tmp_path, kind, "1")
    seconds = time.monotonic() - start

    def export_for_ever() -> None:
        while True:
            for version in "21":
                export(tmp_path, kind, version)

    for _ in kill_repeatedly(export_for_ever, kills, longest=5 * seconds + 0.1):
        graph, weights = versions(tmp_path, kind)
        assert graph in {None, weights}
        found.add(graph)
    assert found & {"1", "2"}, "no kill left a model"
    export(tmp_path, kind, "3")
    assert versions(tmp_path, kind) == ["3", "3"]
    assert not list(tmp_path.rglob(f"{UNFINISHED}*")), "what the kills left is deleted"


@pytest.mark.slow
def test_a_real_export_that_is_killed_leaves_a_whole_model(
    kill_repeatedly: Callable[..., Iterator[bool]],
    make_lightning_model: Callable[..., AprilGan],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    models = [make_lightning_model(class_name=name) for name in ("coin", "screw")]
    for model in models:  # the first export imports what it needs
        path = model.to_torch(tmp_path)
    start = time.monotonic()
    models[0].to_torch(tmp_path)
    seconds = time.monotonic() - start

    def class_in_file() -> str:
        return str(torch.load(path, weights_only=False)["model"].model.class_name)

    found: list[str] = []
    for _ in kill_repeatedly(lambda: models[len(found) % 2].to_torch(tmp_path), 50, longest=1.5 * seconds + 0.1):
        found.append(class_in_file())
    with capsys.disabled():
        print(f"\n50 kills of exports of {seconds:.2f} s: {len(found) - 50} exports ended")
    assert set(found) == {"coin", "screw"}
    models[0].to_torch(tmp_path)
    assert class_in_file() == "coin"
    assert not list(tmp_path.rglob(f"{UNFINISHED}*"))


def test_weights_of_an_earlier_larger_model_are_deleted(tmp_path: Path) -> None:
    export(tmp_path, ExportType.ONNX, "1")
    with replacing(tmp_path, ExportType.ONNX) as unfinished:
        (export_folder(unfinished, ExportType.ONNX) / "model.onnx").write_text("2", encoding="utf-8")
    assert versions(tmp_path, ExportType.ONNX) == ["2", None]


@pytest.mark.parametrize("kind", ["torch", pytest.param("onnx", marks=pytest.mark.slow)])
def test_a_full_disk_is_named(kind: str, small_disk: Path) -> None:
    model = AprilGan(backbone="ViT-builtin", class_name="x")
    with pytest.raises(OSError, match=rf"No space left on device, so that the model was not exported.*weights/{kind}"):
        getattr(model, f"to_{kind}")(small_disk)
    assert not [path for path in small_disk.rglob("*") if path.is_file()]
