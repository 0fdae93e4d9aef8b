"""The examples in docstrings run and give the results that they show."""

import doctest
import shutil
from importlib import import_module
from pathlib import Path

import pytest

import anomalib_aprilgan

PACKAGE = Path(anomalib_aprilgan.__file__).parent
MODULES = [
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    for path in sorted(PACKAGE.rglob("*.py"))
    if ">>>" in path.read_text(encoding="utf-8")
]


def test_the_public_classes_have_examples() -> None:
    assert {f"anomalib_aprilgan.{name}" for name in ("datamodule", "lightning_model", "torch_model")} < set(MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str, sample_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run them in a folder with data in the places where anomalib looks for them."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(sample_root / "gravel", "datasets/MVTecAD/metal_nut")
    results = doctest.testmod(import_module(name))
    assert results.attempted
    assert not results.failed
