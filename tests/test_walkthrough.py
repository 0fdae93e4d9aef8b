"""The notebook in examples/ is run, and its committed outputs fit its cells.

To renew the outputs: cd examples && jupyter execute --inplace walkthrough.ipynb
"""

import re
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat", reason='needs pip install -e ".[dev]"')
nbclient = pytest.importorskip("nbclient", reason='needs pip install -e ".[dev]"')
pytest.importorskip("ipykernel", reason='needs pip install -e ".[dev]"')

NOTEBOOK = Path(__file__).parents[1] / "examples" / "walkthrough.ipynb"


def text_outputs(notebook: Any) -> dict[str, str]:
    """Return what each cell with code printed."""
    return {
        cell.id: "".join(output.text for output in cell.outputs if output.output_type == "stream")
        for cell in notebook.cells
        if cell.cell_type == "code"
    }


def pictures(notebook: Any) -> dict[str, int]:
    """Return the number of pictures below each cell with code."""
    return {
        cell.id: sum("image/jpeg" in output.get("data", {}) for output in cell.outputs)
        for cell in notebook.cells
        if cell.cell_type == "code"
    }


def test_the_notebook_runs(tmp_path: Path) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    committed = pictures(notebook)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()
    printed = text_outputs(notebook)
    assert printed["make-folder"].splitlines()[-1] == "18 good and 18 bad photographs"
    for cell in ("predict-zero-shot", "predict-few-shot", "show-errors"):
        photographs, misses, false_alarms = map(int, re.findall(r"\d+(?= photographs| misses| false)", printed[cell]))
        assert misses + false_alarms <= photographs / 3, printed[cell]
    assert printed["load"].splitlines()[-1] == "class 'coins', 4 references"
    assert float(re.findall(r"heatmaps: (\S+)", printed["compare-onnx"])[0]) < 1e-4
    assert "Same labels: True" in printed["compare-onnx"]
    assert pictures(notebook) == committed
    assert {path.name for path in tmp_path.iterdir()} == {"walkthrough"}
    assert list((tmp_path / "walkthrough").rglob("model.onnx"))


def test_the_committed_outputs_are_complete_and_small() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert all(output.output_type != "error" for cell in code for output in cell.outputs)
    assert sum(pictures(notebook).values()) >= 4
    assert notebook.metadata.kernelspec.name == "python3"
    content = NOTEBOOK.read_text(encoding="utf-8")
    assert len(content) < 500_000
    assert not re.search(r"/(root|home|tmp|Users)/", content)
