"""The command `anomalib-aprilgan demo` and its page."""

import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomalib_aprilgan.cli import main
from anomalib_aprilgan.demo import demonstration
from anomalib_aprilgan.demo.page import write_page
from anomalib_aprilgan.demo.results import DemoResults, Example, Prediction
from anomalib_aprilgan.files.adapter_files import read_adapters


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reduce the demonstration to two training kinds, two tested kinds, a photograph and one epoch."""
    monkeypatch.setattr(demonstration, "AUXILIARY_KINDS", ("leather", "washer"))
    monkeypatch.setattr(demonstration, "HELD_OUT_KINDS", ("corduroy", "gear"))
    monkeypatch.setattr(demonstration, "TESTED_PHOTOGRAPHS", ("brick",))
    monkeypatch.setattr(demonstration, "EPOCHS", 1)
    monkeypatch.setattr(demonstration, "TESTED_IMAGES", 2)


class Page(HTMLParser):
    """Parses the text of a page, and the addresses that it loads."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name == "src" or (tag == "link" and name == "href")]

    def handle_data(self, data: str) -> None:
        self.text += data + " "


@pytest.mark.usefixtures("small")
def test_the_command_writes_a_page_and_can_be_run_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "demo"
    main(["demo", "--output", str(output), "--seed", "3"])
    first = capsys.readouterr().out
    page = Page(output / "index.html")
    (output / "own.txt").write_text("mine", encoding="utf-8")
    shutil.copytree(output / "data/tested/gear", output / "data/auxiliary/gear")  # as of an earlier version
    main(["demo", "--output", str(output), "--seed", "3"])
    again = capsys.readouterr().out

    row_of_table = r"(corduroy|gear|brick|mean)" + 4 * r"[\s│]+([\d.]+)"
    rows = re.findall(row_of_table, first)
    assert [row[0] for row in rows] == ["corduroy", "gear", "mean", "brick", "mean"]
    assert rows[-1][1:] == rows[-2][1:], "the mean of one category"
    assert re.findall(row_of_table, again) == rows
    for row in rows:
        assert re.search(r"\s+".join(map(re.escape, row)), page.text), "the page shows the printed table"
    assert sorted(path.name for path in (output / "data/auxiliary").iterdir()) == ["leather", "washer"]
    assert sorted(path.name for path in output.iterdir()) == ["adapters.safetensors", "data", "index.html", "own.txt"]
    assert all(address.startswith("data:image/jpeg;base64,") for address in page.addresses), "no other file is loaded"
    assert len(page.addresses) == 1 + 4 * (2 + 1 + 1) + 3 * 4, "the scale, the examples, the references"
    assert str(output / "data/tested/gear/train/good") in (output / "index.html").read_text(encoding="utf-8")
    _, origin = read_adapters(output / "adapters.safetensors")
    assert origin.backbone == "ViT-builtin"


def test_the_page_marks_wrong_predictions_and_escapes_names(tmp_path: Path) -> None:
    image = tmp_path / "<b>" / "test" / "hole" / "000.png"
    image.parent.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(image)
    Image.new("L", (8, 8)).save(tmp_path / "mask.png")
    missed, found = (Prediction(score, score > 0.5, np.full((4, 4), score, np.float32)) for score in (0.25, 0.75))
    results = DemoResults(0, 4, 1, (1, 2))
    metrics = {"image_AUROC": 0.5, "pixel_AUROC": 0.25}
    results.metrics |= {("<b>", 0): metrics, ("<b>", 4): metrics}
    results.categories["drawn kinds"] = ["<b>"]
    results.references["<b>"] = (str(image),)
    results.examples.append(Example(image, tmp_path / "mask.png", {0: missed, 4: found}))
    html = write_page(tmp_path / "page.html", results).read_text(encoding="utf-8")
    assert re.search(r"0\.25 normal\s+<span class=\"wrong\">", html)
    assert re.search(r"0\.75 anomalous\s+<span class=\"correct\">", html)
    assert "<b>, hole" not in html
    assert f"<title>{tmp_path.name}: " in html
    assert f"<h1>{tmp_path.name}: " in html
    assert "&lt;b&gt;" in html
