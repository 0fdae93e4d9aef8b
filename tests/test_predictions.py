"""Files of predictions: the table, maps and pictures, and what the screen says."""

import csv
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from anomalib.data import ImageItem, MVTecAD
from anomalib.engine import Engine
from anomalib.visualization import ImageVisualizer
from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from PIL import Image

from anomalib_aprilgan import AprilGan
from anomalib_aprilgan.integration import runs
from anomalib_aprilgan.integration.output_files import INDEX, OutputFolder
from anomalib_aprilgan.integration.predictions import PredictionFiles, PredictionTable
from anomalib_aprilgan.integration.visualizer import AprilGanVisualizer

MakeModel = Callable[..., AprilGan]
Predict = Callable[..., list[Any]]


@pytest.fixture
def predict(tmp_path: Path) -> Predict:
    """Predict images with the folder ``results`` of a test."""

    def run(model: AprilGan, path: Path, **arguments: Any) -> list[Any]:
        quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
        engine = Engine(accelerator="cpu", devices=1, default_root_dir=tmp_path / "results", **quiet)
        return list(engine.predict(model, data_path=path, **arguments))

    return run


@pytest.fixture
def shots(sample_root: Path, tmp_path: Path) -> Path:
    """Write images of the same names in different folders."""
    for line in ("line1", "line2"):
        for label, source in (("good", "good"), ("bad", "stain")):
            folder = tmp_path / "shots" / line / label
            folder.mkdir(parents=True)
            for number in (0, 1):
                with Image.open(sample_root / "gravel/test" / source / f"{number:03}.png") as image:
                    image.save(folder / f"{number:03}.png")
    return tmp_path / "shots"


def results(tmp_path: Path) -> Path:
    return tmp_path / "results/AprilGan/latest"


def read_table(folder: Path) -> list[dict[str, str]]:
    with (folder / "predictions.csv").open(newline="", encoding="utf-8") as table:
        return list(csv.DictReader(table))


def pictures(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() and path.name != INDEX}


def test_each_image_has_a_row_and_a_picture(
    make_lightning_model: MakeModel, predict: Predict, shots: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    batches = predict(make_lightning_model(), shots)

    rows = read_table(results(tmp_path))
    assert [row["file"] for row in rows] == [path for batch in batches for path in batch.image_path]
    assert [float(row["score"]) for row in rows] == pytest.approx([float(b.pred_score) for b in batches], rel=1e-8)
    assert np.array_equal(
        np.float32([row["score"] for row in rows]), np.float32([float(b.pred_score) for b in batches])
    )
    assert [row["label"] == "anomalous" for row in rows] == [bool(batch.pred_label) for batch in batches]
    assert all((float(row["score"]) > float(row["threshold"])) == (row["label"] == "anomalous") for row in rows)
    assert pictures(results(tmp_path) / "images") == pictures(shots)
    assert all(Path(row["heatmap"]).is_file() for row in rows)
    assert len({row["heatmap"] for row in rows}) == len(rows) == 8
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"{sum(row['label'] == 'anomalous' for row in rows)} of 8 images are anomalous (threshold: ")
    assert str(results(tmp_path) / "predictions.csv") in last
    assert str(results(tmp_path) / "images") in last


def test_threshold_and_labels_follow_the_sensitivity(
    make_lightning_model: MakeModel, predict: Predict, shots: Path, tmp_path: Path
) -> None:
    model = make_lightning_model(visualizer=False)
    model.post_processor.image_sensitivity = 0.9

    predict(model, shots)

    rows = read_table(results(tmp_path))
    assert {np.float32(row["threshold"]) for row in rows} == {np.float32(1) - np.float32(0.9)}
    assert all((float(row["score"]) > float(row["threshold"])) == (row["label"] == "anomalous") for row in rows)
    assert {row["heatmap"] for row in rows} == {""}


def test_without_a_post_processor_label_and_threshold_are_empty(
    make_lightning_model: MakeModel, predict: Predict, shots: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predict(make_lightning_model(post_processor=False), shots / "line1/bad")

    assert {(row["label"], row["threshold"]) for row in read_table(results(tmp_path))} == {("", "")}
    assert "anomalous" not in capsys.readouterr().out


def test_an_argument_turns_the_files_off(
    make_lightning_model: MakeModel, predict: Predict, shots: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predict(make_lightning_model(predictions=False, visualizer=False), shots)

    assert not list((tmp_path / "results").rglob("*.csv"))
    assert "images are" not in capsys.readouterr().out


@pytest.mark.parametrize("maps", ["npy", "tiff"])
def test_json_lines_maps_and_boxes(
    maps: Any, make_lightning_model: MakeModel, predict: Predict, shots: Path, tmp_path: Path
) -> None:
    model = make_lightning_model(predictions=PredictionFiles(format="jsonl", maps=maps, boxes=True))
    model.post_processor.pixel_sensitivity = 0.95

    batches = predict(model, shots)

    lines = (results(tmp_path) / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(batches) == 8
    found_boxes = 0
    for line, batch in zip(lines, batches, strict=True):
        row = json.loads(line)
        assert row["file"] == batch.image_path[0]
        path = Path(row["map"])
        stored = np.load(path) if maps == "npy" else np.asarray(Image.open(path))
        assert stored.dtype == np.float32
        assert np.array_equal(stored, batch.anomaly_map[0].numpy())
        scale = Image.open(row["file"]).width / stored.shape[1]
        covered = np.zeros(stored.shape, bool)
        for left, top, right, bottom in np.round(np.array(row["boxes"]).reshape(-1, 4) / scale).astype(int):
            covered[top:bottom, left:right] = True
        mask = batch.pred_mask[0].numpy()
        assert covered[mask].all()
        assert bool(row["boxes"]) == mask.any()
        found_boxes += len(row["boxes"])
    assert found_boxes


def test_boxes_need_masks(make_lightning_model: MakeModel, predict: Predict, shots: Path) -> None:
    model = make_lightning_model(predictions=PredictionFiles(boxes=True), post_processor=False)
    with pytest.raises(ValueError, match="`boxes`"):
        predict(model, shots)


@pytest.mark.parametrize("option", [{"format": "xml"}, {"maps": "png"}])
def test_unknown_options_are_refused(option: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"`{next(iter(option))}` to be one of"):
        PredictionFiles(**option)


def test_a_new_prediction_replaces_the_files_of_an_earlier_one(
    make_lightning_model: MakeModel, predict: Predict, shots: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predict(make_lightning_model(predictions=PredictionFiles(format="jsonl", maps="npy")), shots)
    own = results(tmp_path) / "images/line1/notes.png"
    own.write_bytes(b"the user's")
    capsys.readouterr()

    predict(make_lightning_model(), shots / "line2/bad")

    assert pictures(results(tmp_path)) == {
        "predictions.csv",
        "images/bad/000.png",
        "images/bad/001.png",
        "images/line1/notes.png",
    }
    assert len(read_table(results(tmp_path))) == 2
    assert "replaces" in capsys.readouterr().out


def test_a_refused_prediction_leaves_the_files_of_an_earlier_one(
    make_lightning_model: MakeModel, predict: Predict, shots: Path, tmp_path: Path
) -> None:
    predict(make_lightning_model(), shots)
    before = pictures(results(tmp_path))
    (shots / "damaged.png").write_bytes(b"nonsense")

    with pytest.raises(ValueError, match=r"damaged\.png"):
        predict(make_lightning_model(), shots)

    assert pictures(results(tmp_path)) == before


def test_rows_of_an_interrupted_prediction_stay(
    make_lightning_model: MakeModel, predict: Predict, shots: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_lightning_model()
    score = model.predict_step

    def score_five(batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        if batch_idx == 5:
            message = "power cut"
            raise OSError(message)
        return score(batch, batch_idx, dataloader_idx)

    monkeypatch.setattr(model, "predict_step", score_five)
    with pytest.raises(OSError, match="power cut"):
        predict(model, shots)

    assert len(read_table(results(tmp_path))) == 5


@pytest.mark.slow
def test_a_prediction_that_is_killed_leaves_whole_rows_and_pictures(
    kill_repeatedly: Callable[..., Iterator[bool]],
    make_lightning_model: MakeModel,
    predict: Predict,
    shots: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = make_lightning_model(predictions=PredictionFiles(maps="npy", boxes=True))
    predict(model, shots)  # also prepares the model for the others
    expected = read_table(results(tmp_path))
    files = pictures(results(tmp_path))
    start = time.monotonic()
    predict(model, shots)
    seconds = time.monotonic() - start
    rows: list[int] = []
    ends = 0
    for was_killed in kill_repeatedly(lambda: predict(model, shots), 60, longest=1.5 * seconds):
        found = read_table(results(tmp_path)) if (results(tmp_path) / "predictions.csv").exists() else []
        assert found == expected[: len(found)], "a row is cut off, doubled or of another image"
        for row in found:
            with Image.open(row["heatmap"]) as picture:
                picture.load()
            assert np.load(row["map"]).shape == (64, 64)
        rows.append(len(found))
        if not was_killed:
            assert len(found) == 8
            assert pictures(results(tmp_path)) == files, "nothing of a killed prediction is left"
            ends += 1
    with capsys.disabled():
        print(f"\n60 kills of predictions of {seconds:.1f} s: {ends} ended, rows left {sorted(rows)}")
    assert ends
    assert len(set(rows)) > 3
    predict(model, shots)
    assert pictures(results(tmp_path)) == files


def test_an_index_of_files_removes_nothing_outside_its_folder(
    make_lightning_model: MakeModel, predict: Predict, shots: Path, tmp_path: Path
) -> None:
    predict(make_lightning_model(), shots)
    outside = tmp_path / "results/AprilGan/precious.png"
    outside.write_bytes(b"precious")
    with (results(tmp_path) / "images" / INDEX).open("a", encoding="utf-8") as index:
        index.write('"../../precious.png"\n')

    predict(make_lightning_model(), shots)

    assert outside.is_file()


@pytest.mark.posix
def test_a_line_break_in_a_name_removes_no_file_of_others(
    make_lightning_model: MakeModel, predict: Predict, shots: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "photographs"
    folder.mkdir()
    shutil.copy(next(shots.rglob("*.png")), folder / "new\nline.png")
    predict(make_lightning_model(), folder)
    foreign = results(tmp_path) / "images/line.png"
    foreign.write_bytes(b"foreign")
    written = [path for path in results(tmp_path).rglob("*") if "\n" in path.name]
    assert written
    predict(make_lightning_model(), shots)
    assert foreign.read_bytes() == b"foreign"
    assert not any(path.exists() for path in written)


def test_names_of_any_script_and_format_are_kept_apart(
    make_lightning_model: MakeModel, predict: Predict, tmp_path: Path
) -> None:
    folder = tmp_path / "photographs"
    (folder / "部品").mkdir(parents=True)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8))
    names = ["ä.png", "ä.jpg", "ä.tif", "ä.bmp", "部品/ä.png", "=cmd, 'x'.png"]
    for name in names:
        image.save(folder / name)

    predict(make_lightning_model(), folder)

    rows = read_table(results(tmp_path))
    assert {row["file"] for row in rows} == {str(folder / name) for name in names}
    assert len({row["heatmap"] for row in rows}) == len(names)
    assert all(Image.open(row["heatmap"]).width >= 3 * 160 for row in rows)


def test_pictures_have_proportions_score_label_and_uncut_titles(tmp_path: Path) -> None:
    yes, no = torch.ones((), dtype=torch.bool), torch.zeros((), dtype=torch.bool)
    item = ImageItem(
        image=torch.rand(3, 60, 120),
        anomaly_map=torch.rand(30, 30),
        pred_mask=no.expand(30, 30),
        pred_score=torch.tensor(0.83),
        pred_label=yes,
        gt_label=no,
    )

    picture = AprilGanVisualizer().visualize(item)
    plain = AprilGanVisualizer(text_config={"enable": False}).visualize(item)

    assert isinstance(picture, Image.Image)
    assert isinstance(plain, Image.Image)
    assert plain.size == (3 * 256, 128)  # the photograph is twice as wide as it is high
    assert picture.size == (3 * 256, 128 + 2 * 26)
    first_line = np.asarray(picture.convert("L"))[:26]
    assert first_line.max() > 200
    assert not first_line[:, [0, -1]].any()  # no letter touches an edge
    assert not first_line[[0, -1]].any()


@pytest.mark.parametrize("size", [(3, 400), (400, 3)])
def test_pictures_of_extreme_shapes_can_be_read(size: tuple[int, int]) -> None:
    item = ImageItem(image=torch.rand(3, *size), anomaly_map=torch.rand(30, 30), pred_score=torch.tensor(0.8))
    picture = AprilGanVisualizer().visualize(item)
    assert isinstance(picture, Image.Image)
    assert picture.width >= 2 * 160


def test_pictures_of_a_test_replace_earlier_ones(
    make_lightning_model: MakeModel, sample_root: Path, tmp_path: Path
) -> None:
    for category, expected in (("gravel", {"scratch", "stain", "wrong_texture", "good"}), ("coins", {"stain", "good"})):
        model = make_lightning_model(visualizer=AprilGanVisualizer(output_dir=tmp_path / "pictures"))
        datamodule = MVTecAD(sample_root, category=category, num_workers=0)
        Engine(accelerator="cpu", logger=False, default_root_dir=tmp_path, enable_progress_bar=False).test(
            model, datamodule=datamodule, verbose=False
        )
        assert expected <= {name.split("/")[0] for name in pictures(tmp_path / "pictures")}
    files = {
        path.relative_to(sample_root / "coins/test").as_posix() for path in (sample_root / "coins/test").rglob("*.png")
    }
    assert pictures(tmp_path / "pictures") == files


def test_a_visualizer_that_an_earlier_model_left_draws_nothing(
    make_lightning_model: MakeModel, shots: Path, tmp_path: Path
) -> None:
    engine = Engine(
        accelerator="cpu", logger=False, default_root_dir=tmp_path / "results", enable_progress_bar=False,
        callbacks=[left := ImageVisualizer(output_dir=tmp_path / "left")],
    )  # fmt: skip

    engine.predict(make_lightning_model(visualizer=False), data_path=shots)

    assert not (tmp_path / "left").exists()
    assert left not in engine.trainer.callbacks  # type: ignore[attr-defined]  # set by Lightning


SCRIPT = """
import sys, warnings
warnings.filterwarnings("ignore")
from anomalib.engine import Engine
from anomalib_aprilgan import AprilGan
from anomalib_aprilgan.integration.predictions import PredictionFiles

images, output, format = sys.argv[1:]
model = AprilGan(backbone="ViT-builtin", class_name="gravel", predictions=PredictionFiles(format=format, boxes=True))
engine = Engine(
    accelerator="cpu", devices=2, strategy="ddp", default_root_dir=output, logger=False, enable_progress_bar=False,
)
engine.predict(model, data_path=images, return_predictions=False)
"""


def test_two_processes_write_one_table(predict: Predict, shots: Path, tmp_path: Path) -> None:
    (shots / "line2/bad/001.png").unlink()  # an odd number of images
    script = tmp_path / "predict.py"
    script.write_text(SCRIPT, encoding="utf-8")
    command = [sys.executable, script, shots, tmp_path / "two", "csv"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "MASTER_ADDR": "127.0.0.1"}
    process = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=300)
    assert process.returncode == 0, process.stderr[-3000:]
    predict(AprilGan(backbone="ViT-builtin", class_name="gravel", predictions=PredictionFiles(boxes=True)), shots)

    one, two = read_table(results(tmp_path)), read_table(tmp_path / "two/AprilGan/latest")
    for row in (*one, *two):
        row["heatmap"] = row["heatmap"].partition("/latest/")[2]
    assert [row | {"score": ""} for row in two] == [row | {"score": ""} for row in one]
    assert [float(row["score"]) for row in two] == pytest.approx([float(row["score"]) for row in one], abs=1e-5)
    assert pictures(tmp_path / "two/AprilGan/latest") >= {"predictions.csv", "images/line1/bad/000.png"}
    assert not list((tmp_path / "two").rglob("*.part*"))
    assert process.stdout.count("of 7 images are anomalous") == 1


def test_rows_of_an_unknown_table_are_not_kept(
    make_lightning_model: MakeModel, predict: Predict, shots: Path, tmp_path: Path
) -> None:
    results(tmp_path).mkdir(parents=True)
    (results(tmp_path) / "predictions.csv").write_text("file,score\nother.png,1\n", encoding="utf-8")

    predict(make_lightning_model(), shots)

    assert len(read_table(results(tmp_path))) == 8


# ---- Many images, long rows, a full disk ----------------------------------------------------------------------------


def table_in(folder: Path, processes: int = 1, **options: Any) -> tuple[PredictionTable, Any]:
    """Make a table that writes to a folder, and a trainer."""
    trainer = SimpleNamespace(default_root_dir=folder, global_rank=0, world_size=processes)
    table = PredictionTable(PredictionFiles(**options))
    table._table_folder = OutputFolder(folder, [])
    return table, trainer


def test_rows_of_any_length_are_merged(tmp_path: Path) -> None:
    boxes = [[number, number, number + 1, number + 1] for number in range(20_000)]
    rows = [{"file": name, "score": 0.5, "label": None, "boxes": boxes} for name in ("b\n.png", 'a,".png')]
    table, trainer = table_in(tmp_path, processes=2)
    table._files = ['a,".png', "b\n.png"]
    for rank, row in enumerate(rows):
        table._write(table._part(trainer, rank), [row], is_first=True, as_json=True)
    table._merge(trainer)
    (line,) = [path.name for path in tmp_path.glob("predictions*")]
    assert line == "predictions.csv"
    merged = pd.read_csv(tmp_path / line)
    assert merged.file.tolist() == table._files
    assert json.loads(merged.boxes[1]) == boxes
    assert merged.label.isna().all()


def test_each_process_lists_its_own_files(tmp_path: Path) -> None:
    """Machines that share a folder cannot append to one file. The next run removes what all of them have written."""
    strategy = SimpleNamespace(barrier=lambda name: None)
    first, second = (
        SimpleNamespace(global_rank=rank, is_global_zero=rank == 0, strategy=strategy) for rank in range(2)
    )
    folders = [OutputFolder(tmp_path, ["/x/y/a.png", "/x/y/b.png"]) for _ in range(2)]
    for folder, trainer in zip(folders, (first, second), strict=True):
        assert not folder.clear(trainer)
    for folder, name in zip(folders, ("a.png", "b.png"), strict=True):
        folder.add(folder.path_for(f"/x/y/{name}")).touch()
    assert {path.name for path in tmp_path.glob(f"{INDEX}*")} == {INDEX, f"{INDEX}-1"}
    assert OutputFolder(tmp_path, []).clear(first)
    assert not list(tmp_path.iterdir())


def test_a_missing_part_is_an_error(tmp_path: Path) -> None:
    """The nodes of a cluster may not share the folder. A table without a part of the images would look complete."""
    table, trainer = table_in(tmp_path, processes=3)
    table._write(table._part(trainer, 0), [{"file": "a.png"}], is_first=True, as_json=True)
    with pytest.raises(RuntimeError, match=r"are missing: predictions.csv.part1, predictions.csv.part2. All"):
        table._merge(trainer)
    assert [path.name for path in tmp_path.glob("predictions*")] == ["predictions.csv.part0"]


def test_no_path_is_a_formula(tmp_path: Path) -> None:
    table, trainer = table_in(tmp_path)
    names = ["=cmd|' /C calc'!A0.png", "+1.png", "-1.png", "@sum.png", "\tx.png", "plain.png"]
    table._write(table._part(trainer, 0), [{"file": name} for name in names], is_first=True, as_json=False)
    assert pd.read_csv(tmp_path / "predictions.csv").file.tolist() == [*(f"./{name}" for name in names[:-1]), names[-1]]


def test_a_full_disk_leaves_whole_rows(small_disk: Path) -> None:
    table, trainer = table_in(small_disk)
    path = table._part(trainer, 0)
    rows = [{"file": "x" * 1000, "score": 0.5}] * 3
    table._write(path, rows, is_first=True, as_json=False)
    (small_disk / "rest").write_bytes(bytes((1 << 20) - 60_000))

    def write_for_ever() -> None:
        while True:
            table._write(path, rows, is_first=False, as_json=False)

    with pytest.raises(OSError, match="No space left on device"):
        write_for_ever()
    assert set(pd.read_csv(path).file.str.len()) == {1000}


@pytest.mark.parametrize("kind", ["npy", "tiff"])
def test_a_full_disk_leaves_whole_maps(kind: str, small_disk: Path) -> None:
    table, _ = table_in(small_disk, maps=kind)
    table._maps = OutputFolder(small_disk, [])
    for number in range(2):
        table._write_map(f"{number}.png", torch.rand(300, 300))
    with pytest.raises(OSError, match=rf"this file was not written: '.*{kind}'"):
        table._write_map("2.png", torch.rand(300, 300))
    assert {path.stat().st_size // 1000 for path in small_disk.rglob(f"*.{kind}")} == {360}


class Command(SaveConfigCallback):
    """Holds the configuration of anomalib's command, without writing it."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        pass


@pytest.mark.parametrize(("given", "is_kept"), [(None, False), (False, False), (True, True)])
def test_the_command_keeps_predictions_only_if_asked_to(
    given: bool | None, is_kept: bool, make_lightning_model: MakeModel, shots: Path, tmp_path: Path
) -> None:
    command = Command(ArgumentParser(), Namespace(return_predictions=given, seed_everything=True))
    engine = Engine(accelerator="cpu", default_root_dir=tmp_path, logger=False, callbacks=[command])
    found = engine.predict(make_lightning_model(), data_path=shots, return_predictions=given)
    assert bool(found) == is_kept
    assert len(read_table(tmp_path / "AprilGan/latest")) == 8


def test_predictions_that_take_much_memory_are_pointed_out(
    make_lightning_model: MakeModel,
    predict: Predict,
    shots: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    predict(make_lightning_model(), shots)
    assert "return_predictions=False" not in caplog.text
    monkeypatch.setattr(runs, "MANY_GIGABYTES", 0)
    assert len(predict(make_lightning_model(), shots)) == 8
    assert "keeps the predictions of all 8 images in memory" in caplog.text
