# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Files of exported models: weights never meet the graph of another model, whatever ends an export."""

import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
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
def test_a_kill_never_mixes_two_models(kills: int, tmp_path: Path) -> None:
    kind, found = ExportType.OPENVINO, set()

    def export_for_ever() -> None:
        while True:
            for version in "12":
                export(tmp_path, kind, version)

    for kill in range(kills):
        process = multiprocessing.get_context("fork").Process(target=export_for_ever)
        process.start()
        time.sleep(0.02 + 0.0031 * (kill % 19))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        graph, weights = versions(tmp_path, kind)
        assert graph in {None, weights}
        found.add(graph)
    assert found & {"1", "2"}
    export(tmp_path, kind, "3")
    assert versions(tmp_path, kind) == ["3", "3"]
    assert not list(tmp_path.rglob(f"{UNFINISHED}*")), "what the kills left is deleted"


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
