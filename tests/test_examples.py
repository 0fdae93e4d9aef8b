"""Every script in examples/ is run, with the embedded CLIP in place of the default one.

app.py and walkthrough.ipynb have tests of their own.
"""

import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from anomalib_aprilgan import AprilGan
from anomalib_aprilgan.files.adapter_files import read_adapters

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Run a script with arguments, in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def run_script(name: str, *arguments: Any) -> None:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments), "--backbone", "ViT-builtin"])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")

    return run_script


def test_zero_shot_image(run: Callable[..., None], sample_root: Path, tmp_path: Path, capsys: Any) -> None:
    run("zero_shot_image.py", sample_root / "gravel" / "test" / "stain" / "000.png", "gravel")
    assert "000.png: score 0." in capsys.readouterr().out
    with Image.open(tmp_path / "heatmap.png") as image:
        assert image.size == (192, 192)


def test_few_shot_folder(run: Callable[..., None], sample_root: Path, tmp_path: Path, capsys: Any) -> None:
    run("few_shot_folder.py", sample_root / "gravel" / "train", sample_root / "gravel" / "test", "gravel", 2)
    output = capsys.readouterr().out
    references, scores = output.split("References:")[1].split("\n0.", 1)
    assert references.count("/train/good/") == 2
    assert scores.count("/gravel/test/") == 12
    assert len(list((tmp_path / "results").rglob("images/*/*.png"))) == 12


def test_train_adapters(run: Callable[..., None], sample_root: Path, tmp_path: Path) -> None:
    run("train_adapters.py", sample_root, tmp_path / "adapters.safetensors", 1)
    _, origin = read_adapters(tmp_path / "adapters.safetensors")
    assert origin.trained_on == ("MVTecAD/brick", "MVTecAD/coins", "MVTecAD/gravel")


def test_benchmark_quality(run: Callable[..., None], sample_root: Path, capsys: Any) -> None:
    run("benchmark_quality.py", sample_root, "--shots", "0", "2", "--seeds", "2", "--image_size", "64")
    heading, rule, *rows = capsys.readouterr().out.splitlines()
    assert heading.count("AUROC") == 2
    assert rule.count("---") == 9
    assert [row.split(" | ")[:2] for row in rows] == [
        [f"| {category}", shots] for shots in "02" for category in ("brick", "coins", "gravel", "mean")
    ]
    values = [[float(cell.split(" ±")[0]) for cell in row.strip("| ").split(" | ")[2:]] for row in rows]
    for first in (0, 4):
        mean = np.mean(values[first : first + 3], axis=0)
        assert values[first + 3] == pytest.approx(mean, abs=0.11)
    assert all("±" in row for row in rows[4:7])
    assert not any("±" in row for row in (*rows[:4], rows[7]))


def test_benchmark_quality_names_a_folder_without_categories(run: Callable[..., None], tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="bottle/test/good"):
        run("benchmark_quality.py", tmp_path)


def test_run_onnx(
    make_lightning_model: Callable[..., AprilGan], sample_root: Path, tmp_path: Path, capsys: Any
) -> None:
    """In a process that has neither anomalib nor torch."""
    pytest.importorskip("onnxruntime", reason="needs the extra `export`")
    good = sample_root / "gravel" / "train" / "good"
    model = make_lightning_model(class_name="gravel", k_shot=2, few_shot_source=good).to_onnx(tmp_path)
    image = shutil.copy(sample_root / "gravel" / "test" / "stain" / "000.png", tmp_path / "stain.png")
    without = "import sys; sys.modules.update(torch=None, anomalib=None, anomalib_aprilgan=None); import runpy; "
    script = f"{without}sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-c", script, EXAMPLES / "run_onnx.py", model, image]
    output = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path).stdout
    assert output.startswith(f'class gravel, references ["{good}/')
    assert f"{image}: score 0." in output
    with Image.open(tmp_path / "stain.heatmap.png") as heatmap:
        assert heatmap.size == (64, 64)


def test_benchmark_export(tmp_path: Path, capsys: Any) -> None:
    """One form of a small model; the real thing takes half an hour."""
    script = runpy.run_path(str(EXAMPLES / "benchmark_export.py"))
    script["BACKBONES"].clear()
    script["BACKBONES"]["ViT-builtin"] = (96, (5, 6))
    for name in [name for name in script["FORMS"] if name != "torch, bf16 autocast"]:
        del script["FORMS"][name]
    script["cost"](tmp_path)
    *_, row = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"\| ViT-builtin, 96 px: torch, bf16 autocast \| \d+\.\d{3} \| \d+\.\d GB \| 9 MB \|", row)


SCRIPTS = sorted(path for path in EXAMPLES.iterdir() if path.suffix in {".py", ".sh"})
LONGER = {"app.py", "benchmark_export.py", "benchmark_quality.py"}


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_help(path: Path) -> None:
    """It says what the script does. It imports neither anomalib nor torch, so it is quick."""
    without = "import sys; sys.modules.update(torch=None, anomalib=None, onnxruntime=None, anomalib_aprilgan=None); "
    code = f"{without}import runpy; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    command = ["bash"] if path.suffix == ".sh" else [sys.executable, "-c", code]
    output = subprocess.run([*command, path, "--help"], check=True, capture_output=True, text=True).stdout
    text = path.read_text(encoding="utf-8")
    first = text.splitlines()[1][2:] if path.suffix == ".sh" else text.partition("\n")[0].strip('"')
    assert first in output
    assert ("--backbone" in output) == ("AprilGan(" in text and path.name != "benchmark_export.py")


@pytest.mark.parametrize("path", [path for path in SCRIPTS if path.name not in LONGER], ids=lambda path: path.name)
def test_examples_are_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) < 40
