"""The console command."""

import subprocess
import sys
from pathlib import Path

import pytest

from anomalib_aprilgan.cli import main
from anomalib_aprilgan.files.adapter_files import read_adapters


def test_the_command_is_installed_and_its_help_does_not_import_torch() -> None:
    code = """
import contextlib, io, sys
from anomalib_aprilgan.cli import main
with contextlib.redirect_stdout(io.StringIO()) as output, contextlib.suppress(SystemExit):
    main(["--help"])
print("sample-data" in output.getvalue(), "torch" in sys.modules, "anomalib" in sys.modules)
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.split() == ["True", "False", "False"]
    assert Path(sys.executable).with_name("anomalib-aprilgan").is_file()


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
