# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Messages of anomalib's command: errors for the user end it with one message, bugs keep their traceback."""

import io
import logging
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from anomalib.cli.cli import AnomalibCLI
from anomalib.engine import Engine
from PIL import Image
from rich.console import Console
from rich.logging import RichHandler

from anomalib_aprilgan import AprilGan
from anomalib_aprilgan.files import published
from anomalib_aprilgan.files.adapter_origin import AdapterOrigin
from anomalib_aprilgan.files.downloads import MissingFileError
from anomalib_aprilgan.files.published import MIRROR_VARIABLE, PublishedAdapters
from anomalib_aprilgan.integration import command_line
from anomalib_aprilgan.integration.quiet import quieten_command

EMBEDDED = ("--model.backbone", "ViT-builtin")
QUIET = ("--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Write a folder with one image."""
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("RGB", (96, 96), "tan").save(folder / "000.png")
    return folder


@pytest.fixture
def without_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty the caches and cut the network off; return the home folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(MIRROR_VARIABLE, (tmp_path / "mirror").as_uri())
    monkeypatch.setattr(published, "user_cache_path", lambda name: tmp_path / "cache" / name)
    return tmp_path


@pytest.fixture
def predict(images: Path, tmp_path: Path) -> Callable[..., None]:
    """Run ``anomalib predict --model AprilGan``."""

    def run(*arguments: object) -> None:
        results = ("--default_root_dir", tmp_path / "results", *QUIET)
        AnomalibCLI([*map(str, ("predict", "--model", "AprilGan", *arguments, "--data", images, *results))])

    return run


def message_of(command: Callable[..., None], *arguments: object) -> str:
    """Run a command that fails, and return what it prints."""
    with pytest.raises(SystemExit) as error:
        command(*arguments)
    assert isinstance(error.value.code, str), "the exit status is not 1, or there is no message"
    assert error.value.code.startswith("anomalib-aprilgan: ")
    return error.value.code.removeprefix("anomalib-aprilgan: ")


# ---- Missing files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", [(), ("--model.backbone", "ViT-L-14-336")], ids=["lazy", "in the constructor"])
@pytest.mark.parametrize("adapter", ["auto", "visa", "mvtec"])
def test_all_missing_files_are_named_at_once(predict, without_files, backbone, adapter):
    message = message_of(predict, *backbone, "--model.adapter", adapter)
    name = adapter.replace("auto", "visa")
    for part in (
        str(without_files / ".cache" / "clip" / "ViT-L-14-336px.pt"),
        str(without_files / "cache" / "anomalib-aprilgan" / f"{name}_pretrained.pth"),
        "`--model.pretrained PATH`",
        "`--model.adapter PATH`",
        "`--model.backbone ViT-builtin`",
    ):
        assert message.count(part) == 1, part


def test_the_same_message_is_an_exception_in_python(predict, images, without_files):
    message = message_of(predict)
    with pytest.raises(MissingFileError) as error:
        Engine(default_root_dir=without_files, accelerator="cpu").predict(AprilGan(), data_path=images)
    assert str(error.value) == message


def test_only_what_is_missing_is_named(predict, without_files, official_adapter, clip_weights, monkeypatch):
    own_file = message_of(predict, "--model.adapter", official_adapter)
    assert "--model.pretrained" in own_file
    assert "--model.adapter" not in own_file
    assert "--model.adapter" not in message_of(predict, "--model.adapter", "null")
    origin = AdapterOrigin(backbone="golden-vit", quick_gelu=False, layers=(2, 4), trained_on=("Visa",))
    monkeypatch.setattr(PublishedAdapters, "origin", property(lambda entry: origin))
    small = ("--model.backbone", "golden-vit", "--model.image_size", "64", "--model.layers", "[2,4]")
    adapters = message_of(predict, *small, "--model.pretrained", clip_weights)
    assert "--model.adapter PATH" in adapters
    assert "--model.pretrained" not in adapters


# ---- Other errors ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("--model.learning_rate", "-1"), "`learning_rate`"),
        (("--model.image_size", "97"), "`image_size`"),
        (("--model.window", "100"), "`window`"),
        (("--model.window", "96", "--model.image_size", "96"), "`window`"),
        (("--model.k_shot", "1", "--model.few_shot_source", "absent"), "`few_shot_source`"),
        (("--model.k_shot", "1"), "k_shot=1"),
        (("--model.adapter", "absent.pth"), "absent.pth"),
    ],
)
def test_errors_for_the_user_are_a_message(predict, arguments, part):
    assert part in message_of(predict, *EMBEDDED, *arguments)


def test_a_bad_image_is_a_message(predict, images):
    (images / "001.png").write_bytes(b"no image")
    assert str(images / "001.png") in message_of(predict, *EMBEDDED)


def test_a_bad_checkpoint_is_a_message(predict, tmp_path):
    (tmp_path / "model.ckpt").write_bytes(b"no checkpoint")
    assert "model.ckpt" in message_of(predict, *EMBEDDED, "--ckpt_path", tmp_path / "model.ckpt")


def test_an_error_of_an_export_is_a_message(tmp_path):
    def export(*arguments: str) -> None:
        AnomalibCLI(["export", "--model", "AprilGan", *EMBEDDED, "--default_root_dir", str(tmp_path), *arguments])

    assert "`datamodule`" in message_of(export, "--export_type", "openvino", "--compression_type", "INT8_PTQ")
    assert "few_shot_source" in message_of(export, "--export_type", "torch", "--model.k_shot", "2")


def test_an_error_of_the_training_data_is_a_message(tmp_path):
    def fit(*arguments: str) -> None:
        data = ("--data", "AuxiliaryDataModule", "--data.source", "MVTecAD", "--data.source.root", str(tmp_path))
        AnomalibCLI(["fit", "--model", "AprilGan", *EMBEDDED, "--model.adapter", "null", *data, *arguments])

    assert "`mosaic_probability`" in message_of(fit, "--data.mosaic_probability", "2")


@pytest.mark.parametrize("fault", [lambda *_: torch.cat([torch.ones(1, 1), torch.ones(1)]), lambda *_: int("seven")])
def test_bugs_keep_their_traceback(predict, monkeypatch, fault):
    monkeypatch.setattr(AprilGan, "predict_step", fault)
    with pytest.raises((RuntimeError, ValueError)):
        predict(*EMBEDDED)


def test_an_error_of_torch_in_a_line_of_this_package_is_a_bug(monkeypatch):
    monkeypatch.setattr(command_line, "_runs_in_command", lambda: True)
    with pytest.raises(RuntimeError, match="size"):
        command_line.with_short_errors(torch.ones(1, 2).view)(3)


def test_a_benchmark_goes_on_after_an_error():
    """It runs its jobs in the process of the command, and logs their errors."""
    calls = {"anomalib.cli.cli": SystemExit, "anomalib.cli.pipelines": ValueError, "a_program": ValueError}
    for caller, expected in calls.items():
        with pytest.raises(expected):
            exec("AprilGan(learning_rate=-1)", {"__name__": caller, "AprilGan": AprilGan})  # noqa: S102


# ---- Messages -------------------------------------------------------------------------------------------------------


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Log messages and raise warnings after `quieten_command`, with anomalib's two handlers; return what they print."""

    def log(program: str, **environment: str) -> list[str]:
        stream = io.StringIO()
        handlers = [logging.StreamHandler(stream), RichHandler(console=Console(file=stream, width=200))]
        monkeypatch.setattr(logging.getLogger(), "handlers", handlers)
        monkeypatch.setattr(sys, "argv", [program, "predict", "--model", "AprilGan"])
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            quieten_command()
            logging.getLogger("anomalib.engine").warning("ckpt_path is not provided. Model weights will not be loaded.")
            logging.getLogger("anomalib_aprilgan").warning("Reference images: 000.png")
            warnings.warn("`isinstance(treespec, LeafSpec)` is deprecated, use something else", stacklevel=1)
            warnings.warn("something else", stacklevel=1)
        return [*stream.getvalue().splitlines(), *(str(warning.message) for warning in caught)]

    return log


@pytest.mark.parametrize("program", ["/somewhere/bin/anomalib", "anomalib", "C:\\Scripts\\anomalib.exe"])
def test_the_command_prints_what_matters_once(printed, program):
    assert printed(program) == ["Reference images: 000.png", "something else"]


@pytest.mark.parametrize(
    ("program", "environment"),
    [("anomalib", {"ANOMALIB_APRILGAN_VERBOSE": "1"}), ("pytest", {}), ("my_anomalib.py", {}), ("", {})],
)
def test_other_programs_print_everything(printed, program, environment):
    lines = printed(program, **environment)
    assert sum("Reference images" in line for line in lines) == 2
    assert sum("ckpt_path" in line for line in lines) == 2
    assert sum("LeafSpec" in line for line in lines) == 1
