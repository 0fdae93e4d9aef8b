"""Every script in examples/ is run, with a small backbone in place of the default one."""

import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from anomalib_aprilgan import AprilGan, lightning_model
from anomalib_aprilgan.adapters import read_adapters

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def run(
    make_lightning_model: Callable[..., AprilGan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., None]:
    """Run a script with arguments, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lightning_model, "AprilGan", make_lightning_model)

    def run_script(name: str, *arguments: Any) -> None:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")

    return run_script


def test_zero_shot_image(run: Callable[..., None], sample_root: Path, tmp_path: Path, capsys: Any) -> None:
    run("zero_shot_image.py", sample_root / "gravel" / "test" / "stain" / "000.png", "gravel")
    assert "000.png: score 0." in capsys.readouterr().out
    with Image.open(tmp_path / "heatmap.png") as image:
        assert image.size == (64, 64)


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


@pytest.mark.parametrize("path", sorted(EXAMPLES.iterdir()), ids=lambda path: path.name)
def test_examples_are_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) < 40
