"""Thresholds: with labels, from normal images alone, and what is said about them."""

import csv
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from anomalib.data import Folder, MVTecAD
from anomalib.engine import Engine
from lightning import seed_everything
from PIL import Image
from scipy.stats import norm
from torch import Tensor

from anomalib_aprilgan import AprilGan
from anomalib_aprilgan.demo.sample_data import write_sample_data
from anomalib_aprilgan.integration.post_processing import AprilGanPostProcessor
from anomalib_aprilgan.integration.thresholds import Calibration, false_alarm_threshold, images_needed

MakeModel = Callable[..., AprilGan]


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    """Make an engine that writes to the folder of a test."""
    return Engine(accelerator="cpu", devices=1, default_root_dir=tmp_path, logger=False, enable_model_summary=False)


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.1, 0.3])
@pytest.mark.parametrize("more", [0, 1, 40])
def test_enough_images_give_the_named_rate_for_any_distribution(rate: float, more: int) -> None:
    generator = torch.Generator().manual_seed(0)
    number = images_needed(rate) + more
    alarms = []
    for _ in range(400):
        scores = torch.rand(number + 200, generator=generator) ** 8  # skewed
        alarms.append(float((scores[number:] > false_alarm_threshold(scores[:number], rate)).float().mean()))
    assert np.mean(alarms) <= rate + 0.01
    assert np.mean(alarms) >= rate - 1 / (number + 1) - 0.01


@pytest.mark.parametrize("number", [2, 4, 8])
def test_few_images_give_the_named_rate_for_normal_scores(number: int) -> None:
    generator = torch.Generator().manual_seed(0)
    alarms = []
    for _ in range(3000):
        scores = 5 + torch.randn(number, generator=generator)
        alarms.append(1 - norm.cdf(float(false_alarm_threshold(scores, 0.05)) - 5))
    assert np.mean(alarms) == pytest.approx(0.05, abs=0.01)


def test_a_lower_rate_gives_a_higher_threshold() -> None:
    scores = torch.rand(6, generator=torch.Generator().manual_seed(0))
    thresholds = [float(false_alarm_threshold(scores, rate)) for rate in (0.001, 0.01, 0.05, 0.2, 0.5)]
    assert thresholds == sorted(thresholds, reverse=True)
    assert len(set(thresholds)) == len(thresholds)
    assert scores[0] < false_alarm_threshold(scores[:1], 0.05) < 1.0001 * scores[0]


@pytest.mark.parametrize(("rate", "number"), [(0.05, 19), (0.1, 9), (0.01, 99), (0.3, 3), (0.5, 1)])
def test_number_of_images_that_a_rate_needs(rate: float, number: int) -> None:
    assert images_needed(rate) == number
    scores = torch.rand(number)
    assert scores.max() < false_alarm_threshold(scores, rate) < 1.0001 * scores.max()


def test_rounding_errors_do_not_decide_about_the_image_at_the_threshold() -> None:
    scores = torch.tensor([-0.2, 0.1, 0.3])
    for rate, score in ((0.8, -0.2), (0.5, 0.1), (0.25, 0.3)):
        distance = float(false_alarm_threshold(scores, rate)) - score
        assert 5e-6 * abs(score) < distance < 2e-5 * abs(score), "more than errors of single precision"


@pytest.mark.parametrize("rate", [0, 1, -0.1, 5])
def test_rates_outside_of_0_and_1_are_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="`false_alarm_rate`"):
        AprilGanPostProcessor(false_alarm_rate=rate)


@pytest.mark.parametrize("k_shot", [0, 2])
def test_a_labelled_validation_tells_its_errors_on_the_screen_and_in_the_checkpoint(
    k_shot: int,
    make_lightning_model: MakeModel,
    engine: Engine,
    sample_root: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = make_lightning_model(k_shot=k_shot, visualizer=False)
    model.post_processor.image_sensitivity = 0.4

    engine.fit(model, datamodule=MVTecAD(sample_root, category="gravel", num_workers=0))
    shown = capsys.readouterr().out
    batches = engine.predict(model, data_path=sample_root / "gravel/test")

    labels = {batch.image_path[0]: bool(batch.pred_label) for batch in batches}
    misses = sum(not label for path, label in labels.items() if "/good/" not in path)
    false_alarms = sum(label for path, label in labels.items() if "/good/" in path)
    saved = AprilGan.load_from_checkpoint(engine.best_model_path)
    for calibration in (model.post_processor.calibration, saved.post_processor.calibration):
        threshold = float(model.post_processor.image_threshold)
        assert calibration == Calibration(threshold, 3, 9, misses, false_alarms, 0.05)
    assert "from 3 normal and 9 anomalous images" in shown
    assert f"{misses} of 9 anomalous ones missed, {false_alarms} of 3 normal ones" in shown
    assert "Validate with 20 or more images of each kind" in caplog.text


def normal_folder(root: Path, source: Path, number: int) -> Path:
    """Write normal images, each a different part of the same photographs."""
    folder = root / "good"
    folder.mkdir(parents=True)
    photographs = [Image.open(path).convert("RGB") for path in sorted(source.rglob("good/*.png"))]
    for index in range(number):
        photograph = photographs[index % len(photographs)]
        shift = index // len(photographs)
        photograph.crop((shift, shift, 56 + shift, 56 + shift)).save(folder / f"{index:03}.png")
    return folder


@pytest.mark.parametrize(("number", "scored"), [(4, 4), (10, 10), (30, 19)])
def test_references_without_a_validation_set_the_threshold(
    number: int,
    scored: int,
    make_lightning_model: MakeModel,
    engine: Engine,
    sample_root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    good = normal_folder(tmp_path, sample_root / "gravel", number)
    model = make_lightning_model(class_name="gravel", k_shot=4, few_shot_source=good)

    engine.predict(model, data_path=sample_root / "gravel/test")

    calibration = model.post_processor.calibration
    assert calibration is not None
    assert (calibration.normal, calibration.anomalous) == (scored, 0)
    assert f"from {scored} normal images alone, for 5% false alarms" in capsys.readouterr().out
    expected, maxima = leave_one_out(model, good)
    assert calibration.threshold == pytest.approx(float(false_alarm_threshold(expected[:scored], 0.05)), abs=1e-5)
    assert float(model.post_processor.pixel_threshold) == pytest.approx(
        float(false_alarm_threshold(maxima[:scored], 0.05)), abs=1e-5
    )


def test_a_threshold_from_normal_images_tells_damaged_from_normal(engine: Engine, tmp_path: Path) -> None:
    """The threshold is the greatest of 19 scores: by chance, four of 24 others are above it in 9% of all cases."""
    seed_everything(0)
    root = (
        write_sample_data(tmp_path / "data", ("corduroy",), ("crack", "hole"), size=96, train=23, test=24) / "corduroy"
    )
    size = {"backbone": "ViT-builtin", "image_size": 96}
    model = AprilGan(**size, class_name="corduroy", k_shot=4, few_shot_source=root / "train/good", visualizer=False)

    engine.predict(model, data_path=root / "test")

    with (tmp_path / "AprilGan/latest/predictions.csv").open(newline="", encoding="utf-8") as table:
        anomalous = [row["file"] for row in csv.DictReader(table) if row["label"] == "anomalous"]
    assert sum("/good/" not in file for file in anomalous) >= 42  # of 48
    assert sum("/good/" in file for file in anomalous) <= 3  # of 24


def leave_one_out(model: AprilGan, good: Path) -> tuple[Tensor, Tensor]:
    """Score images that are no references, in the order of their draw, and then references without themselves."""
    plain, references = model.model, list(model.reference_files)
    others = [str(path) for path in sorted(good.iterdir()) if str(path) not in references]
    seed = model.setup_record.references.seed or 0
    order = torch.randperm(len(others), generator=torch.Generator().manual_seed(seed)).tolist()

    def read(path: str) -> Tensor:
        with Image.open(path) as image:
            array = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1) / 255
        return model.pre_processor.transform(array)[None]

    raw = []
    for path in [*(others[index] for index in order[:19]), *references]:
        bank = torch.cat([read(reference) for reference in references if reference != path])
        plain.setup("gravel", bank)
        with torch.no_grad():
            raw.append(plain.predict_raw(read(path), plain.state.tensors()))
    is_enough = len(others) >= 19
    used = raw[:19] if is_enough else raw
    maxima = torch.cat([one.map_max for one in used])
    return 0.5 * (torch.cat([one.probability for one in used]) + maxima / maxima.max()), maxima


def test_one_reference_alone_sets_no_threshold(
    make_lightning_model: MakeModel, engine: Engine, sample_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = sample_root / "gravel/train/good/000.png"
    model = make_lightning_model(class_name="gravel", k_shot=1, few_shot_source=file)
    engine.predict(model, data_path=sample_root / "gravel/test/stain")
    assert model.post_processor.calibration is None
    assert "not calibrated" in capsys.readouterr().out


def test_a_threshold_from_normal_images_is_saved_and_exported(
    make_lightning_model: MakeModel, engine: Engine, sample_root: Path, tmp_path: Path
) -> None:
    good = sample_root / "gravel/train/good"
    model = make_lightning_model(class_name="gravel", k_shot=2, few_shot_source=good)
    path = model.to_torch(tmp_path)
    deployed = torch.load(path, weights_only=False)["model"]
    assert model.post_processor.is_calibrated
    assert deployed.post_processor.calibration == model.post_processor.calibration
    assert model.product.tensors["post_processor.counts"].tolist() == [6, 0, 0, 0]


@pytest.mark.parametrize("k_shot", [0, 2])
def test_a_validation_without_anomalous_images_sets_the_threshold(
    k_shot: int, make_lightning_model: MakeModel, engine: Engine, sample_root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    folder = Folder(
        "gravel", root=sample_root / "gravel", normal_dir="train/good", normal_test_dir="test/good", num_workers=0,
        val_split_mode="same_as_test",
    )  # fmt: skip
    model = make_lightning_model(
        class_name="gravel",
        k_shot=k_shot,
        visualizer=False,
        post_processor=AprilGanPostProcessor(false_alarm_rate=0.25),
    )

    engine.fit(model, datamodule=folder)

    calibration = model.post_processor.calibration
    assert calibration is not None
    assert (calibration.normal, calibration.anomalous, calibration.misses) == (3, 0, 0)
    batches = engine.predict(model, data_path=sample_root / "gravel/test/good")
    assert calibration.false_alarms == sum(int(batch.pred_label) for batch in batches) == 0
    assert not any(bool(batch.pred_mask.any()) for batch in batches)
    assert "highest anomaly score" not in caplog.text  # anomalib's warning, which would be wrong here


def test_the_rate_is_kept_in_a_checkpoint(make_lightning_model: MakeModel, engine: Engine, sample_root: Path) -> None:
    model = make_lightning_model(post_processor=AprilGanPostProcessor(false_alarm_rate=0.2), visualizer=False)
    engine.fit(model, datamodule=MVTecAD(sample_root, category="gravel", num_workers=0))
    assert AprilGan.load_from_checkpoint(engine.best_model_path).post_processor.false_alarm_rate == 0.2
    other = AprilGan.load_from_checkpoint(
        engine.best_model_path, post_processor=AprilGanPostProcessor(false_alarm_rate=0.3)
    )
    assert other.post_processor.false_alarm_rate == 0.3


@pytest.mark.parametrize(
    ("counts", "warns", "text"),
    [
        ({"normal": 20, "anomalous": 20}, False, "from 20 normal and 20 anomalous images"),
        ({"normal": 20, "anomalous": 19}, True, "1 of 19 anomalous ones missed"),
        ({"normal": 19, "anomalous": 0}, False, "from 19 normal images alone, for 5% false alarms"),
        ({"normal": 18, "anomalous": 0}, True, "Nothing is known about misses"),
        ({"normal": 1, "anomalous": 0}, True, "from 1 normal image alone"),
    ],
)
def test_what_is_said_about_a_threshold(counts: dict[str, Any], warns: bool, text: str) -> None:
    calibration = Calibration(threshold=0.4, misses=1, false_alarms=2, false_alarm_rate=0.05, **counts)
    assert text in str(calibration)
    assert (calibration.warning is not None) == warns
