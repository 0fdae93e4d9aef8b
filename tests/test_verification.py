"""The command `verify`, with a small CLIP and small data in the folders of MVTec AD and VisA."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from anomalib_aprilgan import AprilGanModel
from anomalib_aprilgan.cli import main
from anomalib_aprilgan.comparison.published_figures import CATEGORY_FIGURES, PUBLISHED_METRICS, Figure
from anomalib_aprilgan.comparison.results import COLUMNS, read_runs
from anomalib_aprilgan.files import published
from anomalib_aprilgan.verification import text_check, verify
from anomalib_aprilgan.verification.figures import describe_figures
from anomalib_aprilgan.verification.text_check import describe_similarities, similarities

CLASSES = ("cable", "pcb1")
"""Classes of the text check that the recorded CLIP has words for."""
MVTEC, VISA = (data_set.categories for data_set in verify.DATA_SETS)


@pytest.fixture
def options(
    clip_weights: Path, official_adapter: Path, sample_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """Write both data sets with few categories, and return options with weights in place of the published ones."""
    shutil.copytree(sample_root / "gravel", tmp_path / "mvtec" / "bottle")
    shutil.copytree(sample_root / "coins", tmp_path / "mvtec" / "capsule")
    shutil.copytree(sample_root / "brick", tmp_path / "visa" / "visa_pytorch" / "candle")
    small = {"backbone": "golden-vit", "image_size": 64, "layers": [2, 4], "quick_gelu": False}
    monkeypatch.setattr(verify, "MODEL", small)
    monkeypatch.setattr(verify, "MVTEC_CATEGORIES", CLASSES)
    (tmp_path / "adapters").mkdir()
    for name, adapters in published.PUBLISHED.items():
        file = Path(shutil.copy(official_adapter, tmp_path / "adapters" / adapters.file_name))
        entry = replace(adapters, git_object_id=published.git_object_id(file))
        monkeypatch.setitem(published.PUBLISHED, name, entry)
    monkeypatch.setattr(published, "user_cache_path", lambda _: tmp_path / "cache")
    output = tmp_path / "output"
    weights = [f"--pretrained={clip_weights}", f"--adapters={tmp_path / 'adapters'}"]
    return [*weights, f"--output={output}", "--accelerator=cpu", "--num_workers=0"]


def test_both_data_sets_and_a_continuation(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    roots = [f"--root={tmp_path / name}" for name in ("mvtec", "visa")]
    with pytest.raises(SystemExit, match="1"):  # random weights meet no published figure
        main(["verify", roots[0], *options])
    first = capsys.readouterr().out
    assert "2 of 2 runs are to be done" in first
    assert "smallest" in first
    assert "!" in first
    started = read_runs(tmp_path / "output").started.tolist()
    assert set(json.loads((tmp_path / "output" / "text_features.json").read_text(encoding="utf-8"))["cosines"]) == set(
        CLASSES
    )

    runs = read_runs(tmp_path / "output").set_index("category")
    own = {
        name: " / ".join(f"{100 * runs.loc[name, metric]:.1f}" for metric in PUBLISHED_METRICS) for name in runs.index
    }
    met = {name: figures_of(line) for name, line in own.items()}
    monkeypatch.setitem(CATEGORY_FIGURES, ("AprilGan", "MVTecAD", "0"), met)
    monkeypatch.setitem(CATEGORY_FIGURES, ("AprilGan", "Visa", "0"), {})
    cosines = json.loads((tmp_path / "output" / "text_features.json").read_text(encoding="utf-8"))["cosines"]
    by_size = dict(sorted(cosines.items(), key=lambda item: item[1]))
    monkeypatch.setattr(text_check, "EXTREMES", by_size)
    monkeypatch.setattr(text_check, "write_file", None)  # the text check is not repeated
    main(["verify", *roots, *options])
    second = capsys.readouterr().out
    assert "0 of 2 runs are to be done" in second
    assert "1 of 1 runs are to be done" in second
    assert "All figures are within the tolerance." in second
    rows = read_runs(tmp_path / "output")
    assert rows.started.tolist()[:2] == started
    assert rows[["data", "category", "seed"]].to_numpy().tolist()[-1] == ["Visa", "candle", "42"]
    text = (tmp_path / "output" / "verification.txt").read_text(encoding="utf-8")
    assert "No mean: capsules" in text
    assert f"bottle        {100 * runs.loc['bottle', 'authors_pixel_AUROC']:.2f}" in text
    assert "open_clip: " in text


def figures_of(line: str) -> dict[str, Figure]:
    values = map(float, line.split(" / "))
    return {metric: Figure(value) for metric, value in zip(PUBLISHED_METRICS, values, strict=True)}


def test_nothing_is_downloaded_unless_asked_for(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        pytest.fail("a download")

    monkeypatch.setattr("anomalib.data.datamodules.image.mvtecad.download_and_extract", refuse)
    monkeypatch.setattr("anomalib.data.datamodules.image.visa.download_and_extract", refuse)
    monkeypatch.setattr(published, "download", refuse)
    monkeypatch.setattr(verify, "cached_weights", lambda *_: [])
    with pytest.raises(SystemExit, match="does not download data sets"):
        main(["verify", f"--root={tmp_path / 'adapters'}", *options])
    root = f"--root={tmp_path / 'mvtec'}"
    with pytest.raises(
        SystemExit, match=r"not on this machine:\n- CLIP.*\n- the authors' adapters 'visa'(.|\n)*--download true"
    ):
        main(["verify", root, f"--output={tmp_path / 'output'}"])
    (tmp_path / "adapters" / "visa_pretrained.pth").write_bytes(b"another file")
    with pytest.raises(SystemExit, match=r"git object id .*another content"):
        main(["verify", root, *options])
    assert not (tmp_path / "output").exists()


def test_the_layouts_of_the_data_sets(tmp_path: Path) -> None:
    for folder in ("mvtec/screw", "raw/candle", "raw/pcb1", "split/visa_pytorch/fryum"):
        (tmp_path / folder).mkdir(parents=True)
    found = [verify._find(tmp_path / name) for name in ("mvtec", "raw", "split")]
    assert [one.data_set.datamodule for one in found] == ["MVTecAD", "Visa", "Visa"]
    assert [one.categories for one in found] == [["screw"], ["candle", "pcb1"], ["fryum"]]
    assert {one.data_set.datamodule: one.data_set.adapters for one in found} == {"MVTecAD": "visa", "Visa": "mvtec"}
    for data_set in verify.DATA_SETS:
        assert set(CATEGORY_FIGURES["AprilGan", data_set.datamodule, "0"]) == set(data_set.categories)


def published_runs(data: str, shots: int, change: float = 0.0) -> pd.DataFrame:
    """Return runs that measured the published zero-shot figures, with another pixel AUROC."""
    rows = []
    for category, row in CATEGORY_FIGURES["AprilGan", data, "0"].items():
        values = {metric: figure.mean / 100 for metric, figure in row.items()}
        values["authors_pixel_AUROC"] += change / 100
        rows.append({"data": data, "category": category, "shots": str(shots), "status": "done", **values})
    return pd.DataFrame(rows, columns=[*COLUMNS])


@pytest.mark.parametrize(("data", "categories"), [("MVTecAD", MVTEC), ("Visa", VISA)])
def test_tolerances(data: str, categories: tuple[str, ...]) -> None:
    text, fits = describe_figures(published_runs(data, 0), data, 0, categories)
    assert fits
    assert "!" not in text.partition("\n")[2]
    assert text.splitlines()[-1].startswith("mean")
    text, fits = describe_figures(published_runs(data, 0, 0.4), data, 0, categories)
    assert not fits
    assert [line.split()[0] for line in text.splitlines()[1:] if "!" in line] == ["mean"], "all of them a bit too good"
    text, fits = describe_figures(published_runs(data, 0, 0.6), data, 0, categories)
    assert text.count("!") - 1 == len(categories) + 1
    runs = published_runs(data, 0, 9.0)
    text, fits = describe_figures(runs[runs.category != categories[0]], data, 0, categories)
    assert f"No mean: {categories[0]} not measured." in text
    text, fits = describe_figures(published_runs(data, 4), data, 4, categories)
    assert not fits, "zero-shot figures are no few-shot figures"
    assert [line.split()[0] for line in text.splitlines()[1:] if "!" in line] == ["mean"], "categories have none"


def test_the_text_check() -> None:
    found = {"bottle": 0.97, "capsule": 0.9663, "screw": 0.9847}
    assert describe_similarities(found)[1]
    assert not describe_similarities(found | {"screw": 0.9829})[1]
    assert not describe_similarities(found | {"bottle": 0.9655})[1]


def test_similarities_of_other_weights_are_computed_anew(
    make_model: Callable[..., AprilGanModel], tmp_path: Path
) -> None:
    file = tmp_path / "text.json"
    first = similarities(make_model(), ["capsule"], file)
    normal, abnormal = make_model().encode_class("capsule")
    assert first["capsule"] == pytest.approx(float(normal @ abnormal), abs=1e-4)
    file.write_text(file.read_text(encoding="utf-8").replace(str(first["capsule"]), "0.5"), encoding="utf-8")
    assert similarities(make_model(), ["capsule"], file) == {"capsule": 0.5}
    assert similarities(make_model(pretrained=None, adapter=None), ["capsule"], file)["capsule"] != 0.5
