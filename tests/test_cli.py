"""The console command."""

import subprocess
import sys
from pathlib import Path
from shutil import which

import pytest

from anomalib_aprilgan.cli import COMMANDS, main
from anomalib_aprilgan.files.adapter_files import read_adapters


def test_the_command_is_installed_and_its_help_imports_neither_torch_nor_anomalib() -> None:
    code = """
import sys
from anomalib_aprilgan.cli import COMMANDS, main
for name in ("", *COMMANDS):
    try:
        main([name, "--help"] if name else ["--help"])
    except SystemExit as stopped:
        assert not stopped.code, stopped
    assert not {"torch", "anomalib"} & set(sys.modules), name
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    text = " ".join(process.stdout.split())
    for name, command in COMMANDS.items():
        assert name in text
        assert " ".join((command.__doc__ or "").partition("\n")[0].split()) in text
    assert "--retry_failed" in text
    assert which("anomalib-aprilgan", path=str(Path(sys.executable).parent))


def test_sample_data_writes_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["sample-data", str(tmp_path), "--size=32", "--train=2", "--test=1"])
    assert len(list(tmp_path.rglob("*.png"))) == 6 * (2 + 1 + 3 + 3)
    assert "brick" in capsys.readouterr().out


def test_extract_writes_the_same_adapters(tmp_path: Path, official_adapter: Path) -> None:
    output = tmp_path / "adapters.safetensors"
    main(["extract", str(official_adapter), str(output)])
    (weights, origin), (expected, _) = read_adapters(output), read_adapters(official_adapter)
    assert all(weights[name].equal(value) for name, value in expected.items())
    assert origin.quick_gelu is False


def test_errors_are_reported_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"^anomalib-aprilgan extract: .*no existing file"):
        main(["extract", str(tmp_path / "absent.pth"), str(tmp_path / "out.safetensors")])
    with pytest.raises(SystemExit, match="2"):
        main(["fetch", "imagenet"])
