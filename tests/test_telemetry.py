# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Commands and exports of this package do not start the telemetry of OpenVINO and nncf, unless the user wants it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from anomalib_aprilgan import AprilGan
from anomalib_aprilgan_plugin import TELEMETRY_SWITCHES, WithoutTelemetry

pytest.importorskip("openvino", reason="needs the extra `export`")

LOOKED_UP = """
import socket
def look_up(host, *arguments, **options):
    open({log!r}, "a").write(host + "\\n")
    raise OSError("no network")
socket.getaddrinfo = look_up
"""
"""What each process does when it starts. From Python 3.14 on, the one that sends messages inherits no patches."""

PROGRAM = """
import sys, os
sys.argv = ["anomalib", *sys.argv[1:]]
before = dict(os.environ)
import anomalib.cli.cli
assert "openvino.tools.ovc" in sys.modules
assert all(os.environ.get(name) == before.get(name) for name in ("CI", "NNCF_CI"))
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make an empty home directory, and forget that this may run in CI."""
    for name in TELEMETRY_SWITCHES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def chosen() -> dict[str, str | None]:
    return {name: os.environ.get(name) for name in TELEMETRY_SWITCHES}


def test_it_is_off_within_the_block_only() -> None:
    before = dict(os.environ)
    with WithoutTelemetry():
        assert chosen() == {"CI": "true", "NNCF_CI": "1"}
    assert dict(os.environ) == before


def test_choices_of_the_user_hold(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "false")
    with WithoutTelemetry():
        assert chosen() == {"CI": "false", "NNCF_CI": "1"}
    assert os.environ["CI"] == "false"
    monkeypatch.delenv("CI")
    (home / "intel").mkdir()
    (home / "intel" / "openvino_telemetry").write_text("1", encoding="utf-8")  # by OpenVINO's command opt_in_out
    with WithoutTelemetry():
        assert chosen() == {"CI": None, "NNCF_CI": None}


def test_an_export_to_openvino_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import openvino  # noqa: PLC0415

    seen = []

    def look(*_: object, **__: object) -> None:
        seen.append(chosen())
        raise KeyboardInterrupt

    monkeypatch.setattr(AprilGan, "to_onnx", lambda *_: tmp_path)
    monkeypatch.setattr(openvino, "convert_model", look)
    with pytest.raises(KeyboardInterrupt):
        AprilGan(backbone="ViT-builtin", class_name="x").to_openvino(tmp_path)
    assert seen == [{"CI": "true", "NNCF_CI": "1"}]
    assert chosen() == {"CI": None, "NNCF_CI": None}


@pytest.mark.parametrize(
    ("arguments", "is_ours"),
    [
        pytest.param(["predict", "--model", "AprilGan"], True, marks=pytest.mark.slow),
        (["fit", "--config={config}"], True),
        (["fit"], False),
    ],
)
def test_anomalib_s_command_has_none_if_it_names_the_model(arguments: list[str], is_ours: bool, tmp_path: Path) -> None:
    """The third case shows that the others could fail."""
    log, config = tmp_path / "log", tmp_path / "config.yaml"
    config.write_text("model:\n  class_path: AprilGan\n", encoding="utf-8")
    given = [argument.format(config=config) for argument in arguments]
    (tmp_path / "sitecustomize.py").write_text(LOOKED_UP.format(log=str(log)), encoding="utf-8")
    paths = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    own = {"ANOMALIB_APRILGAN_AUTOLOAD": "1", "PYTHONWARNINGS": "ignore", "PYTHONPATH": paths}
    command = [sys.executable, "-c", PROGRAM, *given]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | own, check=False)
    assert done.returncode == 0, done.stderr
    assert log.exists() != is_ours
