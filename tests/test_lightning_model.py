"""AprilGan with anomalib's Engine: scores, references, checkpoints, training, and files."""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from anomalib import LearningType
from anomalib.data import Folder, ImageBatch, InferenceBatch, MVTecAD, PredictDataset, Visa
from anomalib.engine import Engine
from anomalib.post_processing import PostProcessor
from anomalib.visualization import ImageVisualizer
from lightning import seed_everything
from PIL import Image
from sklearn.metrics import average_precision_score, f1_score, precision_recall_curve, roc_auc_score
from torch import Tensor
from torch.utils.data import DataLoader

from anomalib_aprilgan import AprilGan, AprilGanModel, AuxiliaryDataModule
from anomalib_aprilgan.files.published import PUBLISHED
from anomalib_aprilgan.method.options import MethodOptions

MakeModel = Callable[..., AprilGan]


@pytest.fixture
def engine(tmp_path: Path) -> Callable[..., Engine]:
    """Make engines that write to the folder of a test."""

    def make(**arguments: Any) -> Engine:
        quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
        return Engine(accelerator="cpu", devices=1, default_root_dir=tmp_path / "results", **quiet | arguments)

    return make


def data(root: Path, category: str = "gravel", **arguments: Any) -> MVTecAD:
    return MVTecAD(root, category=category, **{"num_workers": 0, "eval_batch_size": 5} | arguments)


def raw_predictions(model: AprilGan, root: Path, category: str = "gravel") -> tuple[list[str], Tensor, Tensor]:
    """Score a category's test images one by one with the plain model: paths, probabilities, maps."""
    paths = sorted(map(str, (root / category / "test").rglob("*.png")))
    raw = []
    for path in paths:
        with Image.open(path) as image:
            array = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1) / 255
        with torch.no_grad():
            images = model.pre_processor.transform(array)[None]
            raw.append(model.model.predict_raw(images, model.model.state.tensors()))
    return paths, torch.cat([one.probability for one in raw]), torch.cat([one.anomaly_map for one in raw])


def predictions(batches: list[Any]) -> dict[str, tuple[float, bool, Tensor]]:
    """Return score, label and map by image path."""
    return {
        path: (float(batch.pred_score[index]), bool(batch.pred_label[index]), batch.anomaly_map[index])
        for batch in batches
        for index, path in enumerate(batch.image_path)
    }


# ---- Learning type, components, arguments ---------------------------------------------------------------------------


def test_learning_type(make_lightning_model: MakeModel) -> None:
    assert make_lightning_model().learning_type == LearningType.ZERO_SHOT
    assert make_lightning_model(k_shot=2).learning_type == LearningType.FEW_SHOT
    assert make_lightning_model(adapter=None).learning_type == LearningType.ONE_CLASS


def test_default_components(make_lightning_model: MakeModel) -> None:
    model = make_lightning_model()
    assert [metric.name for metric in model.evaluator.test_metrics] == [
        "image_AUROC",
        "image_F1Max",
        "pixel_AUROC",
        "pixel_F1Max",
        "image_AUPR",
        "pixel_AUPR",
        "pixel_AUPRO",
    ]
    assert isinstance(model.visualizer, ImageVisualizer)
    assert model.input_size == (64, 64)
    assert make_lightning_model(pre_processor=False, visualizer=False).pre_processor is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k_shot": -1}, "`k_shot`.*-1"),
        ({"k_shot": 1.5}, "`k_shot`.*1.5"),
        ({"k_shot": True}, "`k_shot`.*True"),
        ({"class_name": ""}, "`class_name`"),
        ({"class_name": "  "}, "`class_name`"),
        ({"few_shot_source": "folder"}, "`k_shot`.*folder"),
        ({"learning_rate": 0.0}, "`learning_rate`"),
    ],
)
def test_invalid_arguments_are_named(arguments: dict[str, Any], message: str, make_lightning_model: MakeModel) -> None:
    with pytest.raises(ValueError, match=message):
        make_lightning_model(**arguments)


# ---- Scores ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k_shot", [0, 3])
def test_the_metrics_of_the_engine_equal_the_authors(
    k_shot: int, make_lightning_model: MakeModel, engine: Callable[..., Engine], sample_root: Path
) -> None:
    """With validation on the test split, metrics equal those that scikit-learn computes from the authors' scores."""
    seed_everything(1)
    model = make_lightning_model(k_shot=k_shot, visualizer=False)
    (results,) = engine().test(model, datamodule=data(sample_root))

    paths, probability, maps = raw_predictions(model, sample_root)
    score = probability
    if k_shot:
        map_max = maps.amax(dim=(1, 2))
        score = 0.5 * (probability + (map_max - map_max.min()) / (map_max.max() - map_max.min()))
    labels = np.array(["good" not in path for path in paths])
    masks = []
    for path in paths:
        mask = Path(path.replace("/test/", "/ground_truth/").replace(".png", "_mask.png"))
        masks.append(np.array(Image.open(mask)) > 0 if mask.is_file() else np.zeros((64, 64), dtype=bool))

    image, pixel = (labels, score.numpy()), (np.stack(masks).ravel(), maps.flatten().numpy())
    for level, (truth, value) in (("image", image), ("pixel", pixel)):
        precision, recall, _ = precision_recall_curve(truth, value)
        f1_max = (2 * precision * recall / (precision + recall).clip(1e-12)).max()
        assert results[f"{level}_AUROC"] == pytest.approx(roc_auc_score(truth, value), abs=1e-5)
        assert results[f"{level}_AUPR"] == pytest.approx(average_precision_score(truth, value), abs=1e-5)
        assert results[f"{level}_F1Max"] == pytest.approx(f1_max, abs=1e-5)


def test_few_shot_scores_have_the_same_order_as_the_authors(
    make_lightning_model: MakeModel, engine: Callable[..., Engine], sample_root: Path
) -> None:
    model = make_lightning_model(k_shot=2, visualizer=False)
    datamodule = data(sample_root)
    runner = engine()
    runner.validate(model, datamodule=datamodule)
    found = predictions(runner.predict(model, datamodule=datamodule))

    paths, probability, maps = raw_predictions(model, sample_root)
    map_max = maps.amax(dim=(1, 2))
    authors = 0.5 * (probability + (map_max - map_max.min()) / (map_max.max() - map_max.min()))
    assert model.model.map_range.tolist() == pytest.approx([float(bound) for bound in map_max.aminmax()], abs=1e-6)
    assert sorted(paths, key=lambda path: found[path][0]) == [paths[index] for index in authors.argsort()]
    scores = np.array([found[path][0] for path in paths])
    assert scores.max() == pytest.approx(0.95)
    # The threshold gives the largest possible F1.
    truth = np.array(["good" not in path for path in paths])
    labels = np.array([found[path][1] for path in paths])
    assert labels.tolist() == (authors > model.post_processor.image_threshold).tolist()
    assert f1_score(truth, labels) == pytest.approx(max(f1_score(truth, authors >= value) for value in authors))
    assert len(set(scores.tolist())) == len(paths)  # no two scores are tied


@pytest.mark.parametrize("k_shot", [0, 2])
def test_predictions_are_defined_without_validation_data(
    k_shot: int, make_lightning_model: MakeModel, engine: Callable[..., Engine], sample_root: Path
) -> None:
    source = {"few_shot_source": sample_root / "gravel" / "train", "k_shot": k_shot} if k_shot else {}
    model = make_lightning_model(class_name="gravel", **source)
    batches = engine().predict(model, data_path=sample_root / "gravel" / "test")
    found = predictions(batches)
    assert len(found) == 12
    paths, probability, maps = raw_predictions(model, sample_root)
    for path, expected, raw_map in zip(paths, probability, maps, strict=True):
        value, label, anomaly_map = found[path]
        assert label == (value > 0.5)
        assert anomaly_map.isfinite().all()
        assert 0 <= anomaly_map.min() <= anomaly_map.max() <= 1
        assert torch.equal(anomaly_map > 0.5, raw_map > model.post_processor.pixel_threshold)
        if not k_shot:
            assert value == pytest.approx(float(expected), abs=1e-5)
            assert torch.allclose(anomaly_map, raw_map, atol=1e-6)


@pytest.mark.parametrize("mode", ["none", "from_train", "synthetic"])
def test_metrics_do_not_depend_on_the_validation_data(
    mode: str, make_lightning_model: MakeModel, engine: Callable[..., Engine], sample_root: Path
) -> None:
    """Zero-shot, validation only sets thresholds. Scores above its range keep their order, too."""
    authors, found = (
        engine().test(
            make_lightning_model(visualizer=False, class_name="gravel"),
            datamodule=data(sample_root, val_split_mode=one, seed=0),
        )
        for one in ("same_as_test", mode)
    )
    assert found[0] == pytest.approx(authors[0], abs=1e-6)


@pytest.mark.parametrize("k_shot", [0, 2])
def test_a_datamodule_without_validation_data_can_be_tested(
    k_shot: int, make_lightning_model: MakeModel, engine: Callable[..., Engine], sample_root: Path
) -> None:
    model = make_lightning_model(k_shot=k_shot, visualizer=False)
    (results,) = engine().test(model, datamodule=data(sample_root, val_split_mode="none"))
    assert all(np.isfinite(list(results.values())))
    if not k_shot:  # else the normal training images set a threshold
        assert model.model.map_range.tolist() == [0, 1]
        assert model.post_processor.image_threshold == 0.5
    assert (model.post_processor.calibration is None) == (k_shot == 0)


def test_the_stock_post_processor_of_anomalib_can_be_used(
    make_lightning_model: MakeModel, engine: Callable[..., Engine], sample_root: Path
) -> None:
    model = make_lightning_model(k_shot=2, post_processor=PostProcessor(), visualizer=False)
    (results,) = engine().test(model, datamodule=data(sample_root))
    assert all(np.isfinite(list(results.values())))


def test_images_without_masks_give_image_metrics(
    make_lightning_model: MakeModel, engine: Callable[..., Engine], sample_root: Path
) -> None:
    datamodule = Folder(
        name="coins",
        root=sample_root / "coins",
        normal_dir="train/good",
        normal_test_dir="test/good",
        abnormal_dir="test/stain",
        num_workers=0,
        val_split_mode="same_as_test",
    )
    model = make_lightning_model(visualizer=False)
    (results,) = engine().test(model, datamodule=datamodule)
    assert 0 <= results["image_AUROC"] <= 1
    assert model.model.class_name == "object"  # `Folder` has no category


@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed"])
def test_mixed_precision_gives_nearly_the_same_predictions(
    precision: str, make_lightning_model: MakeModel, engine: Callable[..., Engine], sample_root: Path
) -> None:
    folder = sample_root / "gravel" / "test" / "stain"
    full, mixed = (
        predictions(engine(precision=one).predict(make_lightning_model(visualizer=False), data_path=folder))
        for one in ("32-true", precision)
    )
    for path, (score, _, anomaly_map) in full.items():
        assert mixed[path][0] == pytest.approx(score, abs=0.05)
        assert (mixed[path][2] - anomaly_map).abs().mean() < 0.05
        assert mixed[path][2].dtype == torch.float32


# ---- Class name -----------------------------------------------------------------------------------------------------


def test_the_class_name_is_argument_else_category_else_object(
    make_lightning_model: MakeModel, engine: Callable[..., Engine], sample_root: Path
) -> None:
    named, from_data, plain = make_lightning_model(class_name="pebble"), make_lightning_model(), make_lightning_model()
    engine().validate(named, datamodule=data(sample_root))
    assert named.model.class_name == "pebble"
    engine().validate(from_data, datamodule=data(sample_root))
    assert from_data.model.class_name == "gravel"
    engine().predict(plain, data_path=sample_root / "gravel" / "test" / "stain" / "000.png")
    assert plain.model.class_name == "object"


def test_one_model_can_be_tested_on_several_categories(
    make_lightning_model: MakeModel, engine: Callable[..., Engine], sample_root: Path
) -> None:
    model = make_lightning_model(k_shot=2, visualizer=False)
    results = [engine().test(model, datamodule=data(sample_root, name)) for name in ("gravel", "coins")]
    assert model.model.class_name == "coins"
    assert all("/coins/train/" in path for path in model.reference_files)
    fresh = make_lightning_model(k_shot=2, visualizer=False)
    assert engine().test(fresh, datamodule=data(sample_root, "coins")) == results[1]


# ---- References -----------------------------------------------------------------------------------------------------


def references(model: AprilGan, engine: Callable[..., Engine], root: Path, seed: int, **arguments: Any) -> list[str]:
    seed_everything(seed)
    engine().validate(model, datamodule=data(root, **arguments))
    return [str(Path(path).relative_to(root)) for path in model.reference_files]


def test_references_depend_only_on_the_seed(
    make_lightning_model: MakeModel,
    engine: Callable[..., Engine],
    sample_root: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, logger="anomalib_aprilgan")
    drawn = references(make_lightning_model(k_shot=3), engine, sample_root, 7)
    assert len(set(drawn)) == 3
    assert all(path.startswith("gravel/train/good/") for path in drawn)
    assert all(Path(path).name in caplog.text for path in drawn)
    assert references(make_lightning_model(k_shot=3), engine, sample_root, 7, train_batch_size=1) == drawn
    others = {tuple(references(make_lightning_model(k_shot=3), engine, sample_root, seed)) for seed in range(4)}
    assert len(others) > 1


def test_references_from_a_folder_an_image_and_a_list(
    make_lightning_model: MakeModel, engine: Callable[..., Engine], sample_root: Path, tmp_path: Path
) -> None:
    folder = sample_root / "coins" / "train" / "good"
    image = folder / "001.png"
    listed = tmp_path / "references.txt"
    listed.write_text(f"# two of them\n{folder / '002.png'}\n\n{folder / '004.png'}\n", encoding="utf-8")
    for source, k_shot, expected in (
        (folder, 6, {f"00{number}.png" for number in range(6)}),
        (image, 1, {"001.png"}),
        (listed, 2, {"002.png", "004.png"}),
    ):
        model = make_lightning_model(k_shot=k_shot, few_shot_source=source, class_name="coins", visualizer=False)
        engine().predict(model, data_path=sample_root / "coins" / "test" / "stain")
        assert {Path(path).name for path in model.reference_files} == expected
        assert model.model.k_shot == k_shot


def test_too_few_references_are_refused(
    make_lightning_model: MakeModel, engine: Callable[..., Engine], sample_root: Path
) -> None:
    with pytest.raises(ValueError, match=r"k_shot=7.*there are 6"):
        engine().validate(make_lightning_model(k_shot=7), datamodule=data(sample_root))


def test_few_shot_without_a_source_of_references_is_refused(
    make_lightning_model: MakeModel, engine: Callable[..., Engine], sample_root: Path
) -> None:
    with pytest.raises(RuntimeError, match=r"k_shot=2.*few_shot_source"):
        engine().predict(make_lightning_model(k_shot=2), data_path=sample_root / "coins" / "test")


# ---- Checkpoints ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k_shot", [0, 2])
def test_a_restored_model_gives_the_same_scores(
    k_shot: int, make_lightning_model: MakeModel, engine: Callable[..., Engine], sample_root: Path
) -> None:
    folder = sample_root / "gravel" / "test"
    model = make_lightning_model(k_shot=k_shot, visualizer=False)
    runner = engine()
    runner.fit(model, datamodule=data(sample_root))
    path = runner.best_model_path
    before = predictions(engine().predict(model, data_path=folder))

    checkpoint = torch.load(path, weights_only=True)
    assert not [name for name in checkpoint["state_dict"] if "clip" in name]
    state = checkpoint["state_dict"]["model._extra_state"]
    assert state["setup"]["class_name"] == "gravel"
    assert tuple(state["setup"]["references"]["files"]) == model.reference_files

    restored = AprilGan.load_from_checkpoint(path, visualizer=False)
    through_engine = make_lightning_model(k_shot=k_shot, visualizer=False)
    for name, after in (
        ("load_from_checkpoint", predictions(engine().predict(restored, data_path=folder))),
        ("ckpt_path", predictions(engine().predict(through_engine, data_path=folder, ckpt_path=path))),
    ):
        for image, (score, label, anomaly_map) in before.items():
            assert after[image][:2] == (score, label), name
            assert torch.equal(after[image][2], anomaly_map), name
    for other in (restored, through_engine):
        assert other.reference_files == model.reference_files
        assert other.model.class_name == "gravel"


def test_a_checkpoint_needs_neither_its_adapter_file_nor_its_references(
    make_lightning_model: MakeModel,
    engine: Callable[..., Engine],
    sample_root: Path,
    official_adapter: Path,
    tmp_path: Path,
) -> None:
    adapter = Path(shutil.copy(official_adapter, tmp_path / "adapter.pth"))
    source = Path(shutil.copytree(sample_root / "gravel" / "train", tmp_path / "references"))
    model = make_lightning_model(adapter=adapter, k_shot=2, few_shot_source=source)
    runner = engine()
    runner.fit(model, datamodule=data(sample_root))
    adapter.unlink()
    shutil.rmtree(source)
    restored = AprilGan.load_from_checkpoint(runner.best_model_path)
    assert engine().predict(restored, data_path=sample_root / "gravel" / "test" / "stain")
    for name, value in model.model.adapters.state_dict().items():
        assert torch.equal(value, restored.model.adapters.state_dict()[name])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layers": (1, 4), "adapter": None}, r"layers \(2, 4\) against the model's \(1, 4\)"),
        ({"quick_gelu": True, "adapter": None}, "quick_gelu False against the model's True"),
        ({"pretrained": None, "adapter": None}, "other CLIP weights"),
        ({"reference_layers": (1,)}, r"reference_layers \(2, 4\) against the model's \(1,\)"),
    ],
)
def test_a_checkpoint_of_another_model_is_explained(
    arguments: dict[str, Any],
    message: str,
    make_lightning_model: MakeModel,
    engine: Callable[..., Engine],
    sample_root: Path,
) -> None:
    runner = engine()
    runner.fit(make_lightning_model(), datamodule=data(sample_root))
    path = runner.best_model_path
    with pytest.raises(ValueError, match=message) as error:
        engine().test(make_lightning_model(**arguments), datamodule=data(sample_root), ckpt_path=path)
    assert str(error.value).count(str(path)) == 1


class RunsCode:
    """An object that creates a file when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.trace, "run")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("truncated", "Could not read a checkpoint"),
        ("code", "would run code"),
        ("another model", "no checkpoint of AprilGan"),
        ("adapters", "no checkpoint of AprilGan.*`adapter`"),
        ("empty", "empty or truncated"),
        ("folder", "is a folder"),
    ],
)
@pytest.mark.parametrize("through", ["ckpt_path", "load_from_checkpoint"])
def test_unusable_checkpoints_are_explained(
    through: str,
    fault: str,
    message: str,
    make_lightning_model: MakeModel,
    engine: Callable[..., Engine],
    sample_root: Path,
    official_adapter: Path,
    tmp_path: Path,
) -> None:
    path = tmp_path / "model.ckpt"
    if fault == "truncated":
        runner = engine()
        runner.fit(make_lightning_model(), datamodule=data(sample_root))
        whole = Path(runner.best_model_path).read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
    elif fault == "code":
        torch.save({"state_dict": {}, "hyper_parameters": RunsCode(tmp_path / "trace")}, path)
    elif fault == "empty":
        path.touch()
    elif fault == "folder":
        path.mkdir()
    elif fault == "another model":
        torch.save({"state_dict": {"model.weight": torch.zeros(1)}}, path)
    else:
        shutil.copy(official_adapter, path)
    use: Callable[[], object] = {
        "ckpt_path": lambda: engine().test(make_lightning_model(), datamodule=data(sample_root), ckpt_path=path),
        "load_from_checkpoint": lambda: AprilGan.load_from_checkpoint(path),
    }[through]
    with pytest.raises(ValueError, match=message) as error:
        use()
    assert str(path) in str(error.value)
    assert not (tmp_path / "trace").exists()


def test_a_checkpoint_can_be_used_with_another_image_size(
    make_lightning_model: MakeModel, engine: Callable[..., Engine], sample_root: Path
) -> None:
    runner = engine()
    runner.fit(make_lightning_model(), datamodule=data(sample_root))
    larger = make_lightning_model(image_size=96)
    (batch, *_) = engine().predict(larger, data_path=sample_root / "gravel" / "test", ckpt_path=runner.best_model_path)
    assert batch.anomaly_map.shape == (1, 96, 96)


def test_a_checkpoint_keeps_its_class(
    make_lightning_model: MakeModel,
    engine: Callable[..., Engine],
    sample_root: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    runner = engine()
    runner.fit(make_lightning_model(k_shot=2), datamodule=data(sample_root))
    path = runner.best_model_path
    restored = AprilGan.load_from_checkpoint(path)
    engine().validate(restored, datamodule=data(sample_root, "coins"))
    assert restored.model.class_name == "gravel"
    assert "'coins'" in caplog.text
    renamed = AprilGan.load_from_checkpoint(path, class_name="pebble")
    engine().validate(renamed, datamodule=data(sample_root))
    assert renamed.model.class_name == "pebble"


# ---- Adapters: which, and their training ----------------------------------------------------------------------------


@pytest.mark.parametrize(("tested", "expected"), [("visa", "mvtec"), ("mvtec", "visa"), ("folder", "visa")])
def test_auto_selects_adapters_that_were_not_trained_on_the_data(
    tested: str,
    expected: str,
    make_lightning_model: MakeModel,
    engine: Callable[..., Engine],
    sample_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, logger="anomalib_aprilgan")
    loaded: list[str] = []
    monkeypatch.setattr(AprilGanModel, "load_adapters", lambda _, name: loaded.append(name))
    if tested == "visa":
        shutil.copytree(sample_root, tmp_path / "visa" / "visa_pytorch")
        datamodule: Any = Visa(tmp_path / "visa", category="gravel", num_workers=0)
    else:
        datamodule = data(sample_root)
    model = make_lightning_model(adapter="auto", visualizer=False)
    if tested == "folder":
        engine().predict(model, data_path=sample_root / "gravel" / "test" / "stain")
    else:
        engine().test(model, datamodule=datamodule)
    assert loaded == [expected]
    assert f"Adapters: '{expected}'" in caplog.text


def test_published_adapters_are_refused_for_another_backbone(
    make_lightning_model: MakeModel, engine: Callable[..., Engine], sample_root: Path
) -> None:
    assert set(PUBLISHED) == {"mvtec", "visa"}
    with pytest.raises(ValueError, match=r"'ViT-L-14-336' against the model's 'golden-vit'"):
        make_lightning_model(adapter="visa")
    with pytest.raises(ValueError, match=r"'ViT-L-14-336' against the model's 'golden-vit'"):
        engine().validate(make_lightning_model(adapter="auto"), datamodule=data(sample_root))


def train(
    model: AprilGan, engine: Callable[..., Engine], root: Path, epochs: int, ckpt_path: str | None = None, **kw: Any
) -> Engine:
    runner = engine(max_epochs=epochs)
    source = data(root, "brick")
    arguments = {"categories": ["brick", "coins"], "train_batch_size": 4, "num_workers": 0} | kw
    runner.fit(model, datamodule=AuxiliaryDataModule(source=source, **arguments), ckpt_path=ckpt_path)
    return runner


def adapter_weights(model: AprilGan) -> Tensor:
    return torch.cat([value.flatten() for value in model.model.adapters.state_dict().values()])


def test_training_changes_only_the_adapters_and_lowers_the_loss(
    make_lightning_model: MakeModel, engine: Callable[..., Engine], sample_root: Path
) -> None:
    seed_everything(0)
    model = make_lightning_model(adapter=None)
    frozen = {name: value.clone() for name, value in model.model.clip.named_parameters()}
    before = adapter_weights(model)
    runner = train(model, engine, sample_root, 1)
    first = float(runner.trainer.callback_metrics["train_loss_epoch"])
    assert not torch.equal(adapter_weights(model), before)
    assert all(torch.equal(value, frozen[name]) for name, value in model.model.clip.named_parameters())
    assert [name for name, value in model.named_parameters() if value.requires_grad] == [
        f"model.adapters.fc.{number}.{part}" for number in (0, 1) for part in ("weight", "bias")
    ]
    assert not model.model.clip.training
    runner = train(model, engine, sample_root, 4)
    assert float(runner.trainer.callback_metrics["train_loss_epoch"]) < first


def test_seed_fixes_training(make_lightning_model: MakeModel, engine: Callable[..., Engine], sample_root: Path) -> None:
    weights = []
    for seed in (5, 5, 6):
        seed_everything(seed)
        model = make_lightning_model(adapter=None)
        train(model, engine, sample_root, 1, mosaic_probability=0.5)
        weights.append(adapter_weights(model))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_resumed_training_gives_the_same_weights_as_an_uninterrupted_one(
    make_lightning_model: MakeModel, engine: Callable[..., Engine], sample_root: Path
) -> None:
    seed_everything(5)
    whole = make_lightning_model(adapter=None)
    train(whole, engine, sample_root, 2, mosaic_probability=0.5)
    seed_everything(5)
    runner = train(make_lightning_model(adapter=None), engine, sample_root, 1, mosaic_probability=0.5)
    seed_everything(5)
    resumed = make_lightning_model(adapter=None)
    train(resumed, engine, sample_root, 2, ckpt_path=runner.best_model_path, mosaic_probability=0.5)
    assert torch.allclose(adapter_weights(resumed), adapter_weights(whole), atol=1e-6)


def test_training_validates_on_other_data_and_its_checkpoint_contains_adapters(
    make_lightning_model: MakeModel, engine: Callable[..., Engine], sample_root: Path
) -> None:
    seed_everything(0)
    model = make_lightning_model(adapter=None)
    runner = train(model, engine, sample_root, 2, validation=data(sample_root, "gravel"))
    assert not torch.equal(model.post_processor.pixel_max, torch.tensor(1.0))  # set by the validation
    tester = make_lightning_model(adapter=runner.best_model_path)
    assert tester.model.trained_on == ("MVTecAD/brick", "MVTecAD/coins")
    assert torch.equal(adapter_weights(tester), adapter_weights(model))
    (results,) = engine().test(tester, datamodule=data(sample_root, "gravel"))
    assert all(np.isfinite(list(results.values())))


def test_train_fits_and_tests_on_the_validation_data(
    make_lightning_model: MakeModel, engine: Callable[..., Engine], sample_root: Path
) -> None:
    datamodule = AuxiliaryDataModule(
        source=data(sample_root, "brick"),
        categories=["brick"],
        validation=data(sample_root, "gravel"),
        num_workers=0,
    )
    (results,) = engine(max_epochs=1).train(make_lightning_model(adapter=None), datamodule=datamodule)
    assert 0 <= results["pixel_AUROC"] <= 1
    datamodule = AuxiliaryDataModule(source=data(sample_root, "brick"), categories=["brick"], num_workers=0)
    assert engine(max_epochs=1).train(make_lightning_model(adapter=None), datamodule=datamodule) == []


def test_training_without_masks_is_refused(
    make_lightning_model: MakeModel, engine: Callable[..., Engine], sample_root: Path
) -> None:
    folder = Folder(
        name="coins",
        root=sample_root / "coins",
        normal_dir="train/good",
        abnormal_dir="test/stain",
        num_workers=0,
        val_split_mode="same_as_test",
    )
    with pytest.raises(ValueError, match="AuxiliaryDataModule"):
        engine(max_epochs=1).fit(make_lightning_model(adapter=None), datamodule=folder)


# ---- Files and export -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_images_of_any_mode_and_size_are_predicted(
    mode: str, make_lightning_model: MakeModel, engine: Callable[..., Engine], tmp_path: Path
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    pixels = Image.fromarray(rng.integers(0, 256, (37, 91, 3), dtype=np.uint8))
    pixels.convert(mode).save(folder / "odd.png")
    ((batch),) = engine().predict(make_lightning_model(), data_path=folder)
    assert batch.anomaly_map.shape == (1, 64, 64)
    assert batch.pred_score.isfinite().all()


def test_unusable_images_are_all_named_before_any_is_predicted(
    make_lightning_model: MakeModel, engine: Callable[..., Engine], tmp_path: Path, sample_root: Path
) -> None:
    folder = tmp_path / "images"
    shutil.copytree(sample_root / "coins" / "test" / "stain", folder)
    Image.fromarray(np.full((40, 40), 40000, dtype=np.uint16)).save(folder / "deep.png")
    (folder / "broken.png").write_bytes(b"no image")
    whole = (folder / "000.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    Image.open(folder / "000.png").convert("RGB").save(folder / "photo.jpg")
    photo = (folder / "photo.jpg").read_bytes()
    (folder / "torn.jpg").write_bytes(photo[: len(photo) // 2])
    with pytest.raises(ValueError, match=r"(?s)broken\.png.*cut\.png.*deep\.png.*8 bits.*torn\.jpg") as error:
        engine().predict(make_lightning_model(), data_path=folder)
    assert "photo.jpg" not in str(error.value)
    assert not list((tmp_path / "results").rglob("images/*"))


@pytest.mark.parametrize("verb", ["test", "fit"])
def test_damaged_data_are_named_before_anything_starts(
    verb: str, make_lightning_model: MakeModel, engine: Callable[..., Engine], tmp_path: Path, sample_root: Path
) -> None:
    root = Path(shutil.copytree(sample_root, tmp_path / "data"))
    (root / "coins" / "test" / "stain" / "001.png").write_bytes(b"no image")
    start: Callable[[], object] = {
        "test": lambda: engine().test(make_lightning_model(), datamodule=data(root, "coins")),
        "fit": lambda: train(make_lightning_model(adapter=None), engine, root, 1),
    }[verb]
    with pytest.raises(ValueError, match=r"coins/test/stain/001\.png is damaged or no image"):
        start()


def test_damaged_masks_are_named_before_anything_starts(
    make_lightning_model: MakeModel, engine: Callable[..., Engine], tmp_path: Path, sample_root: Path
) -> None:
    """In a test, in auxiliary training, and in the validation of a training."""
    root = Path(shutil.copytree(sample_root, tmp_path / "data"))
    training = AuxiliaryDataModule(source=data(sample_root), validation=data(root, "coins"), num_workers=0)
    starts: list[Callable[[], object]] = [
        lambda: engine().test(make_lightning_model(), datamodule=data(root, "coins")),
        lambda: train(make_lightning_model(adapter=None), engine, root, 1),
        lambda: engine(max_epochs=1, num_sanity_val_steps=0).fit(
            make_lightning_model(adapter=None), datamodule=training
        ),
        lambda: engine(max_epochs=1, num_sanity_val_steps=1).fit(
            make_lightning_model(adapter=None), datamodule=training
        ),
    ]
    mask = root / "coins" / "ground_truth" / "stain" / "001_mask.png"
    whole = mask.read_bytes()
    for start in starts:
        mask.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ValueError, match=r"ground_truth/stain/001_mask\.png is damaged or no image"):
            start()
        Image.new("L", (64, 32)).save(mask)
        with pytest.raises(ValueError, match=r"001_mask\.png is 64 x 32 pixels .*its image is 64 x 64"):
            start()


def test_untrained_adapters_give_a_warning(
    make_lightning_model: MakeModel,
    engine: Callable[..., Engine],
    sample_root: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine().predict(make_lightning_model(adapter=None), data_path=sample_root / "coins" / "test" / "stain")
    assert "The adapters are untrained" in caplog.text


def test_an_exported_torch_model_gives_the_same_scores_as_the_engine(
    make_lightning_model: MakeModel, engine: Callable[..., Engine], sample_root: Path
) -> None:
    model = make_lightning_model(visualizer=False, k_shot=2)
    datamodule = data(sample_root)
    runner = engine()
    runner.fit(model, datamodule=datamodule)
    path = runner.export(make_lightning_model(), export_type="torch", ckpt_path=runner.best_model_path)
    exported = torch.load(path, weights_only=False)["model"].eval()
    found = predictions(engine().predict(model, data_path=sample_root / "gravel" / "test"))
    for image, (score, label, anomaly_map) in found.items():
        with Image.open(image) as opened:
            array = torch.from_numpy(np.array(opened.convert("RGB"))).permute(2, 0, 1)[None] / 255
        prediction: InferenceBatch = exported(array)
        assert float(prediction.pred_score) == pytest.approx(score, abs=1e-5)
        assert bool(prediction.pred_label) == label
        assert torch.allclose(prediction.anomaly_map[0], anomaly_map, atol=1e-5)


def test_images_of_all_precisions_are_scored_and_wrong_ones_refused(
    make_lightning_model: MakeModel, engine: Callable[..., Engine]
) -> None:
    """In memory and in an exported torch file."""
    model = make_lightning_model(class_name="bottle")
    exported = torch.load(engine().export(model, export_type="torch"), weights_only=False)["model"].eval()
    pixels = torch.randint(0, 256, (2, 3, 80, 50), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    for called in (model, exported):
        expected = called(pixels / 255)
        for given in (pixels, (pixels / 255).half(), (pixels / 255).double()):
            found = called(given)
            assert torch.equal(found.anomaly_map, expected.anomaly_map)
            assert torch.equal(found.pred_score, expected.pred_score)
        for wrong in (
            pixels.float(),
            pixels[:, :1],
            torch.cat([pixels, pixels[:, :1]], dim=1),
            pixels / 0,
            pixels.int(),
        ):
            with pytest.raises(ValueError, match=r"^Expected argument `batch` to .*but got"):
                called(wrong)


def test_dataloaders_of_images_that_are_not_in_the_unit_interval_are_refused(
    make_lightning_model: MakeModel, engine: Callable[..., Engine]
) -> None:
    for size in (64, 80):
        batch = ImageBatch(image=torch.rand(2, 3, size, size) * 255)
        loader = DataLoader(cast("Any", [batch]), batch_size=None)
        with pytest.raises(ValueError, match=r"`images` to have values in \[0, 1\], but got values from"):
            engine().predict(make_lightning_model(class_name="bottle"), dataloaders=loader)


def test_images_of_several_sizes_in_a_batch_are_refused_or_scored_as_alone(
    make_lightning_model: MakeModel, engine: Callable[..., Engine], tmp_path: Path
) -> None:
    """anomalib would resize them to the largest one of the batch. The remedies of the message give the same scores."""
    model = make_lightning_model(class_name="bottle", visualizer=False)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for number, size in enumerate(((64, 64), (90, 50), (40, 120))):
        Image.fromarray(noise).resize(size).save(tmp_path / f"{number}.png")

    def scores(batch_size: int, **arguments: Any) -> Tensor:
        dataset = PredictDataset(tmp_path, **arguments)
        loader = DataLoader(dataset, batch_size=batch_size, collate_fn=dataset.collate_fn)
        return torch.cat([batch.pred_score for batch in engine().predict(model, dataloaders=loader)])

    alone = scores(1)
    with pytest.raises(ValueError, match=r"to have one size, but .*0\.png \(64 x 64\).*`batch_size=1`"):
        scores(3)
    torch.testing.assert_close(scores(3, transform=model.pre_processor.resize), alone)
    (tmp_path / "1.png").unlink()
    (tmp_path / "2.png").unlink()
    Image.fromarray(noise[::-1]).save(tmp_path / "3.png")
    torch.testing.assert_close(scores(2)[:1], alone[:1])


@pytest.mark.parametrize("k_shot", [0, 2])
def test_method_options_are_restored_from_a_checkpoint(
    k_shot: int, make_lightning_model: Callable[..., AprilGan], sample_root: Path, tmp_path: Path
) -> None:
    """CLIP's projection instead of adapters, one stage, one sentence per state."""
    method = MethodOptions(map_stages=(4,), prompts="single", projection="clip")
    model = make_lightning_model(visualizer=False, adapter="auto", method=method, k_shot=k_shot)
    engine = Engine(default_root_dir=tmp_path, accelerator="cpu", logger=False)
    datamodule = MVTecAD(root=sample_root, category="gravel", num_workers=0)
    (metrics,) = engine.test(model, datamodule=datamodule)
    engine.trainer.save_checkpoint(tmp_path / "model.ckpt")
    restored = AprilGan.load_from_checkpoint(tmp_path / "model.ckpt")
    assert restored.model.map_stages == (4,)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(restored.model(images).anomaly_map, model.model(images).anomaly_map)
    assert torch.equal(restored.model(images).pred_score, model.model(images).pred_score)
    assert 0 <= metrics["pixel_AUROC"] <= 1
