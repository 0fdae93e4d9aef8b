# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Models, Engines and checkpoints that are used again: what an earlier run left behind never decides anything."""

import copy
import logging
import os
import pickle
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from anomalib.cli.cli import AnomalibCLI
from anomalib.data import Folder, MVTecAD, Visa
from anomalib.engine import Engine
from anomalib.metrics import AUPRO, AUROC, Evaluator, F1Score
from anomalib.models import Padim
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from lightning import seed_everything
from lightning.pytorch import Callback
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import Compose, Normalize, RandomErasing, Resize

from anomalib_aprilgan import AprilGan, AprilGanModel, AuxiliaryDataModule
from anomalib_aprilgan.files import embedded
from anomalib_aprilgan.integration.post_processing import AprilGanPostProcessor
from anomalib_aprilgan.integration.quiet_engine import QUIET
from anomalib_aprilgan.integration.references import draw
from anomalib_aprilgan.method.options import MethodOptions

MakeModel = Callable[..., AprilGan]
MakeEngine = Callable[..., Engine]


@pytest.fixture
def engine(tmp_path: Path) -> MakeEngine:
    return lambda **arguments: Engine(default_root_dir=tmp_path / "results", **QUIET | arguments)


@pytest.fixture(scope="module")
def make(make_lightning_model: MakeModel) -> MakeModel:
    return lambda **arguments: make_lightning_model(**{"visualizer": False} | arguments)


@pytest.fixture(autouse=True)
def _no_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)


def data(root: Path, category: str = "gravel", **arguments: Any) -> MVTecAD:
    return MVTecAD(root, category=category, **{"num_workers": 0, "eval_batch_size": 6} | arguments)


def visa(root: Path, folder: Path, category: str = "gravel") -> Visa:
    shutil.copytree(root, folder / "visa" / "visa_pytorch", dirs_exist_ok=True)
    return Visa(folder / "visa", category=category, num_workers=0)


def folder_data(root: Path, category: str) -> Folder:
    return Folder(
        name=category,
        root=root / category,
        normal_dir="train/good",
        normal_test_dir="test/good",
        abnormal_dir="test/stain",
        num_workers=0,
        val_split_mode="same_as_test",
    )


def calibration(model: AprilGan) -> tuple[float, ...]:
    post_processor = model.post_processor
    return (*model.model.map_range.tolist(), float(post_processor.image_threshold), float(post_processor.pixel_max))


def answers(model: AprilGan, images: Tensor) -> dict[str, Tensor]:
    with torch.no_grad():
        return model.eval()(images)._asdict()


@pytest.fixture
def images() -> Tensor:
    return torch.rand(2, 3, 70, 80, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def training_checkpoint(make: MakeModel, sample_root: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    os.environ.pop("PL_GLOBAL_SEED", None)
    runner = Engine(default_root_dir=tmp_path_factory.mktemp("training"), max_epochs=1, **QUIET)
    datamodule = AuxiliaryDataModule(data(sample_root, "brick"), ["brick"], num_workers=0)
    runner.fit(make(adapter=None), datamodule=datamodule)
    return str(runner.best_model_path)


@pytest.fixture(scope="module")
def fitted(make: MakeModel, sample_root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[AprilGan, str]:
    """A calibrated 2-shot model, and its checkpoint."""
    os.environ.pop("PL_GLOBAL_SEED", None)
    model, runner = make(k_shot=2), Engine(default_root_dir=tmp_path_factory.mktemp("fitted"), **QUIET)
    runner.fit(model, datamodule=data(sample_root))
    return model, str(runner.best_model_path)


# ---- One model, several data sets -----------------------------------------------------------------------------------


def test_a_training_checkpoint_follows_the_datamodule(
    training_checkpoint: str, engine: MakeEngine, sample_root: Path
) -> None:
    model = AprilGan.load_from_checkpoint(training_checkpoint, k_shot=2, visualizer=False)
    for category in ("gravel", "coins", "gravel"):
        engine().validate(model, datamodule=data(sample_root, category), verbose=False)
        assert model.model.class_name == category
        assert all(f"/{category}/train/" in path for path in model.reference_files)
        assert model.model.k_shot == 2


def test_auto_adapters_follow_the_datamodule(
    make: MakeModel, engine: MakeEngine, sample_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []
    monkeypatch.setattr(AprilGanModel, "load_adapters", lambda _, name: loaded.append(name))
    model = make(adapter="auto")
    for datamodule in (data(sample_root), visa(sample_root, tmp_path), data(sample_root, "coins")):
        engine().validate(model, datamodule=datamodule, verbose=False)
    engine().predict(model, data_path=sample_root / "coins/test/stain")
    assert loaded == ["visa", "mvtec", "visa"]


def test_adapters_that_have_seen_the_tested_data_are_pointed_out(
    training_checkpoint: str, engine: MakeEngine, sample_root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = AprilGan.load_from_checkpoint(training_checkpoint, visualizer=False)
    for category, is_warned in (("gravel", False), ("brick", True)):
        caplog.clear()
        engine().test(model, datamodule=data(sample_root, category), verbose=False)
        message = f"trained on MVTecAD/brick and are tested on MVTecAD/{category}"
        assert (message in caplog.text) == is_warned


def test_training_that_watches_its_own_data_is_pointed_out(
    make: MakeModel, engine: MakeEngine, sample_root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source, watched = data(sample_root, "brick"), data(sample_root, "brick")
    datamodule = AuxiliaryDataModule(source, ["brick"], validation=watched, num_workers=0)
    engine(max_epochs=1).fit(make(adapter=None), datamodule=datamodule)
    assert "trained on MVTecAD/brick and are tested on MVTecAD/brick" in caplog.text


def test_a_datamodule_without_category_gives_the_same_class_on_any_model(
    make: MakeModel, engine: MakeEngine, sample_root: Path
) -> None:
    fresh, used = make(k_shot=1), make(k_shot=1)
    engine().validate(used, datamodule=data(sample_root), verbose=False)
    for model in (fresh, used):
        engine().validate(model, datamodule=folder_data(sample_root, "coins"), verbose=False)
        assert model.model.class_name == "object"
        assert "/coins/train/" in model.reference_files[0]
    assert fresh.setup_record == used.setup_record
    assert calibration(fresh) == calibration(used)


# ---- One Engine, several models -------------------------------------------------------------------------------------


def test_an_engine_s_earlier_datamodule_is_not_that_of_a_later_run(
    make: MakeModel, engine: MakeEngine, sample_root: Path
) -> None:
    runner = engine()
    runner.test(make(), datamodule=data(sample_root), verbose=False)
    with pytest.raises(RuntimeError, match="k_shot=2 asks for 2 reference images"):
        runner.predict(make(k_shot=2), data_path=sample_root / "coins/test/stain")
    other = make()
    runner.predict(other, data_path=sample_root / "coins/test/stain")
    assert other.model.class_name == "object"


def test_a_run_that_is_over_says_nothing_to_later_calls(
    make: MakeModel, engine: MakeEngine, sample_root: Path, images: Tensor
) -> None:
    model = make()
    engine().predict(model, data_path=sample_root / "coins/test/stain", datamodule=None)
    model.class_name = None
    engine().validate(model, datamodule=data(sample_root), verbose=False)
    model.k_shot = 2  # nothing to draw from any more: the run is over
    with pytest.raises(RuntimeError, match="k_shot=2"):
        answers(model, images)


def padim(**arguments: Any) -> Padim:
    return Padim(backbone="resnet18", layers=["layer1"], pre_trained=False, n_features=5, **arguments)


def test_an_engine_runs_other_models_afterwards_as_if_it_were_new(
    make: MakeModel, engine: MakeEngine, sample_root: Path, tmp_path: Path
) -> None:
    """Their checkpoints are theirs, and our pre- and post-processor leave their images and scores alone."""
    seed_everything(0)
    first = engine(max_epochs=1)
    first.fit(padim(visualizer=False), datamodule=data(sample_root))
    checkpoint = shutil.copy(first.best_model_path, tmp_path / "padim.ckpt")
    fresh = engine().test(padim(visualizer=False), datamodule=data(sample_root), ckpt_path=checkpoint, verbose=False)
    runner = engine()
    runner.test(make(k_shot=2), datamodule=data(sample_root), verbose=False)
    used = runner.test(padim(visualizer=False), datamodule=data(sample_root), ckpt_path=checkpoint, verbose=False)
    assert used == fresh
    (again,) = runner.test(make(k_shot=2), datamodule=data(sample_root), verbose=False)
    (expected,) = engine().test(make(k_shot=2), datamodule=data(sample_root), verbose=False)
    assert again == expected


def test_two_models_with_different_components_share_an_engine(
    make: MakeModel, engine: MakeEngine, sample_root: Path
) -> None:
    runner = engine()
    runner.test(make(k_shot=2), datamodule=data(sample_root), verbose=False)
    stock = [
        one.test(make(post_processor=PostProcessor()), datamodule=data(sample_root), verbose=False)
        for one in (runner, engine())
    ]
    assert stock[0] == stock[1]


@pytest.mark.parametrize("fault", ["damaged", "foreign"])
def test_a_broken_checkpoint_leaves_engine_and_datamodule_as_they_were(
    fault: str, make: MakeModel, engine: MakeEngine, sample_root: Path, tmp_path: Path
) -> None:
    path = tmp_path / "model.ckpt"
    if fault == "damaged":
        path.write_bytes(b"no checkpoint")
    else:
        torch.save({"state_dict": {"model.weight": torch.zeros(1)}, "pytorch-lightning_version": "2.6.0"}, path)
    runner, datamodule = engine(), data(sample_root, val_split_mode="none")
    attributes = set(vars(datamodule))
    for verb in (runner.validate, runner.test):
        with pytest.raises(ValueError, match=str(path)) as error:
            verb(make(), datamodule=datamodule, ckpt_path=path, verbose=False)
        assert "weights_only=False" not in str(error.value)
    assert "val_dataloader" not in vars(datamodule)
    assert {name for name in set(vars(datamodule)) - attributes if "dataloader" in name} == set()
    (after,) = runner.test(make(), datamodule=datamodule, verbose=False)
    (expected,) = engine().test(make(), datamodule=data(sample_root, val_split_mode="none"), verbose=False)
    assert after == expected


# ---- Explicit arguments and checkpoints -----------------------------------------------------------------------------


def test_adapters_passed_with_a_checkpoint_are_the_ones_in_use(
    fitted: tuple[AprilGan, str], make: MakeModel, engine: MakeEngine, sample_root: Path, tmp_path: Path
) -> None:
    torch.manual_seed(3)
    other = make(adapter=None).model
    mine = other.save_adapters(tmp_path / "mine.safetensors")
    through_engine = make(adapter=mine)
    engine().predict(through_engine, data_path=sample_root / "gravel/test/good", ckpt_path=fitted[1])
    for model in (AprilGan.load_from_checkpoint(fitted[1], adapter=mine), through_engine):
        assert model.setup_record.adapter == str(mine)
        for name, value in other.adapters.state_dict().items():
            assert torch.equal(model.model.adapters.state_dict()[name], value)
        assert model.reference_files == fitted[0].reference_files
        assert calibration(model)[2] == 0.5, "thresholds of other adapters no longer hold"


def test_the_same_adapters_passed_again_keep_the_calibration(
    fitted: tuple[AprilGan, str], official_adapter: Path
) -> None:
    model = AprilGan.load_from_checkpoint(fitted[1], adapter=official_adapter)
    assert calibration(model) == calibration(fitted[0])


@pytest.mark.parametrize("route", ["ckpt_path", "load_from_checkpoint"])
def test_options_passed_with_a_checkpoint_are_the_ones_in_use(
    route: str, make: MakeModel, engine: MakeEngine, sample_root: Path
) -> None:
    runner = engine()
    saved = make(post_processor=AprilGanPostProcessor(image_sensitivity=0.7, pixel_sensitivity=0.6))
    runner.fit(saved, datamodule=data(sample_root))
    path, images_folder = runner.best_model_path, sample_root / "gravel/test/good"
    for passed, expected in (
        (True, (0.7, 0.6)),
        (AprilGanPostProcessor(image_sensitivity=0.2), (0.2, 0.6)),
        (PostProcessor(image_sensitivity=0.3), (0.3, 0.5)),
    ):
        if route == "ckpt_path":
            model = make(post_processor=passed)
            engine().predict(model, data_path=images_folder, ckpt_path=path)
        else:
            model = AprilGan.load_from_checkpoint(path, post_processor=passed)
        post_processor = model.post_processor
        assert (post_processor.image_sensitivity, post_processor.pixel_sensitivity) == expected
        assert post_processor.image_threshold == saved.post_processor.image_threshold
        assert post_processor.image_max == saved.post_processor.image_max
        assert passed is True or post_processor is passed
        assert model.setup_record.post_processor["image_sensitivity"] == expected[0]


def test_a_checkpoint_made_with_anomalib_s_post_processor_keeps_its_thresholds(
    make: MakeModel, engine: MakeEngine, sample_root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    runner, saved = engine(), make(post_processor=PostProcessor(image_sensitivity=0.7))
    runner.fit(saved, datamodule=data(sample_root))
    model = AprilGan.load_from_checkpoint(runner.best_model_path, visualizer=False)
    assert "made with the post-processor anomalib.post_processing" in caplog.text
    assert model.post_processor.image_threshold == saved.post_processor.image_threshold
    assert model.post_processor.image_sensitivity == 0.7
    assert model.post_processor.is_calibrated


def metrics(*classes: Any) -> list[Any]:
    return [one(fields=["pred_score", "gt_label"], prefix="image_") for one in classes]


def test_metrics_are_no_part_of_a_checkpoint(
    fitted: tuple[AprilGan, str], make: MakeModel, engine: MakeEngine, sample_root: Path, tmp_path: Path
) -> None:
    path = fitted[1]
    assert not [name for name in torch.load(path, weights_only=True)["state_dict"] if name.startswith("evaluator")]
    pro = AUPRO(fields=["anomaly_map", "gt_mask"], prefix="pixel_", strict=False)
    label = F1Score(fields=["pred_label", "gt_label"], prefix="image_")
    (usual,) = engine().test(make(k_shot=2), datamodule=data(sample_root), ckpt_path=path, verbose=False)
    for own in (Evaluator(test_metrics=[*metrics(AUROC), label]), Evaluator(test_metrics=[pro]), False):
        through_engine = engine().test(
            make(k_shot=2, evaluator=own), datamodule=data(sample_root), ckpt_path=path, verbose=False
        )
        restored = AprilGan.load_from_checkpoint(path, evaluator=copy.deepcopy(own), visualizer=False)
        directly = engine().test(restored, datamodule=data(sample_root), verbose=False)
        assert through_engine == directly
        names = {metric.name for metric in own.test_metrics} if own else set()
        assert set(through_engine[0]) == names
        for name in names & set(usual):
            assert through_engine[0][name] == usual[name]
    without = Engine(default_root_dir=tmp_path / "without", **QUIET)
    without.fit(make(k_shot=2, evaluator=False), datamodule=data(sample_root))
    back = shutil.copy(without.best_model_path, tmp_path / "without.ckpt")
    assert engine().test(make(k_shot=2), datamodule=data(sample_root), ckpt_path=back, verbose=False) == [usual]
    restored = AprilGan.load_from_checkpoint(back, visualizer=False)
    assert engine().test(restored, datamodule=data(sample_root), verbose=False) == [usual]


def test_validation_metrics_may_be_added_when_a_training_goes_on(
    training_checkpoint: str, make: MakeModel, engine: MakeEngine, sample_root: Path
) -> None:
    watch = AUROC(fields=["anomaly_map", "gt_mask"], prefix="pixel_", strict=False)
    datamodule = AuxiliaryDataModule(data(sample_root, "brick"), ["brick"], validation=data(sample_root), num_workers=0)
    runner = engine(max_epochs=2)
    model = make(adapter=None, evaluator=Evaluator(val_metrics=[watch]))
    runner.fit(model, datamodule=datamodule, ckpt_path=training_checkpoint)
    assert runner.trainer.current_epoch == 2
    assert 0 <= float(runner.trainer.callback_metrics["pixel_AUROC"]) <= 1


class OwnPreProcessor(PreProcessor):
    """A user's own class."""


@pytest.mark.parametrize("route", ["ckpt_path", "load_from_checkpoint"])
def test_a_custom_pre_processor_is_restored_or_asked_for(
    route: str, make: MakeModel, engine: MakeEngine, sample_root: Path
) -> None:
    transform = Compose([Resize((64, 64), antialias=True), Normalize(mean=[0.1] * 3, std=[0.9] * 3)])
    test_folder = sample_root / "gravel" / "test" / "stain"

    def load(path: str, **arguments: Any) -> AprilGan:
        if route == "load_from_checkpoint":
            return AprilGan.load_from_checkpoint(path, visualizer=False, **arguments)
        model = make(**arguments)
        engine().predict(model, data_path=test_folder, ckpt_path=path)
        return model

    def scores(model: AprilGan, path: str | None) -> Tensor:
        found = engine().predict(model, data_path=test_folder, ckpt_path=path)
        return torch.cat([batch.anomaly_map for batch in found])

    runner, saved = engine(), make(pre_processor=PreProcessor(transform))
    runner.fit(saved, datamodule=data(sample_root))
    expected = scores(saved, None)
    path = str(runner.best_model_path)
    assert torch.equal(scores(load(path), path if route == "ckpt_path" else None), expected)

    for lost in (OwnPreProcessor(transform), PreProcessor(Compose([Resize((64, 64)), RandomErasing(p=0.0)]))):
        runner = engine()
        runner.fit(make(pre_processor=lost), datamodule=data(sample_root))
        with pytest.raises(ValueError, match=r"pre-processor .* a checkpoint cannot hold. Pass it as `pre_processor`"):
            load(str(runner.best_model_path))
        assert load(str(runner.best_model_path), pre_processor=lost).pre_processor is lost


def test_another_image_size_or_method_does_not_keep_the_thresholds(
    make: MakeModel, engine: MakeEngine, sample_root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    runner = engine()
    runner.fit(make(), datamodule=data(sample_root))
    path = runner.best_model_path
    for arguments in ({"image_size": 96}, {"method": MethodOptions(map_stages=(2,))}):
        caplog.clear()
        model = AprilGan.load_from_checkpoint(path, **arguments)
        assert calibration(model) == (0.0, 1.0, 0.5, 1.0)
        assert "thresholds and ranges are reset" in caplog.text
        assert model.setup_record.class_name == "gravel"


def test_an_explicit_pre_processor_stays(fitted: tuple[AprilGan, str], caplog: pytest.LogCaptureFixture) -> None:
    transform = Compose([Resize((64, 64), antialias=True), Normalize(mean=[0.1] * 3, std=[0.9] * 3)])
    own = PreProcessor(transform)
    model = AprilGan.load_from_checkpoint(fitted[1], pre_processor=own)
    assert model.pre_processor is own
    assert own.transform is transform
    assert "differs from the checkpoint's" in caplog.text


def test_components_that_were_switched_off_stay_off(make: MakeModel, engine: MakeEngine, sample_root: Path) -> None:
    runner, saved = engine(), make(post_processor=False)
    runner.fit(saved, datamodule=data(sample_root))
    path, test_folder = runner.best_model_path, sample_root / "gravel/test/stain"
    expected = engine().predict(saved, data_path=test_folder)
    for found in (
        engine().predict(make(), data_path=test_folder, ckpt_path=path),
        engine().predict(AprilGan.load_from_checkpoint(path, visualizer=False), data_path=test_folder),
    ):
        for one, other in zip(expected, found, strict=True):
            assert torch.equal(one.pred_score, other.pred_score)
            assert other.pred_label is None


def test_a_training_that_would_train_nothing_is_refused(make: MakeModel, engine: MakeEngine, sample_root: Path) -> None:
    for validation in (None, data(sample_root)):
        datamodule = AuxiliaryDataModule(data(sample_root, "brick"), ["brick"], validation=validation, num_workers=0)
        for model in (make(), make(adapter="auto")):
            with pytest.raises(ValueError, match="`adapter` to be None for an AuxiliaryDataModule"):
                engine(max_epochs=1).fit(model, datamodule=datamodule)


def test_a_checkpoint_knows_its_architecture(
    fitted: tuple[AprilGan, str], engine: MakeEngine, sample_root: Path
) -> None:
    """Nothing is said but the checkpoint, and CLIP's weights are those that it was made with."""
    plain = AprilGan(visualizer=False)
    engine().predict(plain, data_path=sample_root / "gravel/test/good", ckpt_path=fitted[1])
    for model in (plain, AprilGan.load_from_checkpoint(fitted[1])):
        assert model.model.architecture == fitted[0].model.architecture
        assert model.input_size == (64, 64)
        assert model.setup_record.class_name == "gravel"
        assert calibration(model) == calibration(fitted[0])


def test_images_are_resized_once_to_the_size_of_the_checkpoint(
    fitted: tuple[AprilGan, str], engine: MakeEngine, sample_root: Path, tmp_path: Path
) -> None:
    """The datamodule's workers resize; they are set up before the checkpoint is read."""
    root = write_large(sample_root, tmp_path)
    (expected,) = engine().test(
        AprilGan.load_from_checkpoint(fitted[1], visualizer=False),
        datamodule=data(root),
        ckpt_path=fitted[1],
        verbose=False,
    )
    for workers in (0, 1):
        (found,) = engine().test(
            AprilGan(visualizer=False),
            datamodule=data(root, num_workers=workers),
            ckpt_path=fitted[1],
            verbose=False,
        )
        assert found == expected


def write_large(sample_root: Path, folder: Path) -> Path:
    """Copy the category gravel with images of 200 px."""
    root = folder / "large"
    shutil.copytree(sample_root / "gravel", root / "gravel")
    for path in root.rglob("*.png"):
        with Image.open(path) as image:
            image.resize((200, 200), Image.Resampling.NEAREST).save(path)
    return root


def test_the_command_line_needs_nothing_but_the_checkpoint(
    engine: MakeEngine, sample_root: Path, tmp_path: Path
) -> None:
    runner = engine()
    model = AprilGan(embedded.BACKBONE, k_shot=2, visualizer=False)
    runner.fit(model, datamodule=data(sample_root))
    arguments = ["predict", "--model", "AprilGan", "--data", str(sample_root / "gravel/test/stain")]
    arguments += ["--ckpt_path", str(runner.best_model_path), "--default_root_dir", str(tmp_path / "cli")]
    cli = AnomalibCLI([*arguments, "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"])
    assert cli.model.model.backbone == embedded.BACKBONE
    assert cli.model.setup_record == AprilGan.load_from_checkpoint(runner.best_model_path).setup_record
    assert calibration(cli.model) == calibration(model)


# ---- Copies, processes, seeds ---------------------------------------------------------------------------------------


def test_a_calibrated_model_keeps_references_and_thresholds(
    make: MakeModel,
    engine: MakeEngine,
    sample_root: Path,
    tmp_path: Path,
    images: Tensor,
    clip_weights: Path,
) -> None:
    """Copied, pickled, in another process, after another seed, and where the folder of the references is gone."""
    source = Path(shutil.copytree(sample_root / "gravel/train/good", tmp_path / "good"))
    seed_everything(1)
    model = make(k_shot=2, few_shot_source=source, class_name="gravel")
    engine().fit(model, datamodule=data(sample_root))
    expected = answers(model, images), model.setup_record, calibration(model)
    pickled = tmp_path / "model.pkl"
    pickled.write_bytes(pickle.dumps(model))

    def check(found: AprilGan) -> None:
        engine().predict(found, data_path=sample_root / "gravel/test/good")
        assert found.setup_record == expected[1]
        assert calibration(found) == expected[2]
        for name, value in answers(found, images).items():
            assert torch.equal(value, expected[0][name])

    for copied in (copy.deepcopy(model), pickle.loads(pickled.read_bytes())):  # noqa: S301
        check(copied)
    seed_everything(2)
    check(model)
    shutil.rmtree(source)
    check(model)
    check(copy.deepcopy(model))
    check(pickle.loads(pickled.read_bytes()))  # noqa: S301
    code = f"""
import pickle, sys, warnings
warnings.simplefilter("ignore")
sys.path.insert(0, {str(Path(__file__).parent)!r})
import conftest
from pathlib import Path
from anomalib.engine import Engine
model = pickle.loads(Path({str(pickled)!r}).read_bytes())
Engine(default_root_dir={str(tmp_path / "other")!r}, **{QUIET}).predict(
    model, data_path={str(sample_root / "gravel/test/good")!r}
)
print(model.setup_record == model.setup_record, list(model.reference_files), model.model.map_range.tolist())
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    last = process.stdout.strip().splitlines()[-1]
    assert last == f"True {list(model.reference_files)} {model.model.map_range.tolist()}"


def test_without_a_seed_each_start_draws_the_same_references(
    make: MakeModel, engine: MakeEngine, sample_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drawn(k_shot: int = 3) -> tuple[str, ...]:
        model = make(k_shot=k_shot)
        engine().validate(model, datamodule=data(sample_root), verbose=False)
        return model.reference_files

    default = []
    for state in range(3):
        torch.manual_seed(state)  # the state of the random generators has no influence
        default.append(drawn())
    assert len(set(default)) == 1
    seeds: dict[int, tuple[str, ...]] = {}
    for seed in (0, 1, 2, 1):
        seed_everything(seed)
        torch.rand(7)
        found = drawn()
        assert seeds.setdefault(seed, found) == found
    assert seeds[0] == default[0], "the fixed default is 0"
    assert len(set(seeds.values())) > 1
    monkeypatch.setenv("PL_GLOBAL_SEED", "2")  # as Lightning hands it to the processes that it starts
    assert drawn() == seeds[2]


def test_the_command_line_s_seed_decides_and_nothing_is_seeded_behind_the_user_s_back(
    sample_root: Path, tmp_path: Path
) -> None:
    def drawn(*arguments: str) -> tuple[str, ...]:
        command = ["validate", "--model", "AprilGan", "--model.backbone", "ViT-builtin", "--model.k_shot", "2"]
        command += ["--data", "MVTecAD", "--data.root", str(sample_root), "--data.category", "gravel"]
        command += ["--data.num_workers", "0", "--trainer.accelerator", "cpu", "--default_root_dir", str(tmp_path)]
        torch.manual_seed(1234)
        cli = AnomalibCLI([*command, "--trainer.enable_progress_bar", "false", *arguments])
        assert torch.initial_seed() == 1234
        assert "PL_GLOBAL_SEED" not in os.environ
        return cli.model.reference_files

    default, chosen = drawn(), drawn("--seed_everything", "7")
    assert default != chosen
    for seed, expected in ((0, default), (7, chosen)):
        files = sorted(map(str, (sample_root / "gravel/train/good").iterdir()))
        assert set(draw(files, 2, seed)) == set(expected)


# ---- Threads --------------------------------------------------------------------------------------------------------


def test_predictions_while_others_switch_products_are_those_of_one_product(
    make: MakeModel, engine: MakeEngine, sample_root: Path, images: Tensor
) -> None:
    model, products, expected = make(k_shot=2), {}, {}
    for category in ("gravel", "coins"):
        engine().validate(model, datamodule=data(sample_root, category), verbose=False)
        products[category], expected[category] = model.product, answers(model, images)
    assert not torch.allclose(expected["gravel"]["pred_score"], expected["coins"]["pred_score"])
    model.switch_to(products["gravel"])
    stop = threading.Event()

    def switch() -> None:
        while not stop.is_set():
            for product in products.values():
                model.switch_to(product)

    seen = set()
    with ThreadPoolExecutor(5) as pool:
        switching = pool.submit(switch)
        try:
            for found in pool.map(lambda _: answers(model, images), range(120)):
                is_that_of = [
                    name
                    for name, whole in expected.items()
                    if all(torch.equal(value, whole[part]) for part, value in found.items())
                ]
                assert len(is_that_of) == 1, "a mixture of both products"
                seen.update(is_that_of)
        finally:
            stop.set()
        switching.result()
    assert seen == set(products)


def test_references_added_by_several_threads_are_all_there(make: MakeModel, sample_root: Path, images: Tensor) -> None:
    files = sorted((sample_root / "gravel/train/good").iterdir())
    model = make(class_name="gravel")
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(model.add_references, files))
    assert {len(bank) for bank in model.model.memory_banks} == {len(files) * model.model.clip.num_patches}
    assert sorted(model.reference_files) == sorted(map(str, files))
    at_once = make(class_name="gravel", k_shot=len(files), few_shot_source=sample_root / "gravel/train/good")
    at_once.prepare()
    raw = [one.model.predict_raw(one.pre_processor(images), one.model.state.tensors()) for one in (model, at_once)]
    torch.testing.assert_close(*raw)


def test_a_model_in_an_engine_s_hands_is_not_changed(
    make: MakeModel, engine: MakeEngine, sample_root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Meddler(AprilGan):
        def on_predict_end(self) -> None:
            self.add_references(sample_root / "coins/train/good")

    caplog.set_level(logging.ERROR)
    model = make()
    meddler = Meddler(visualizer=False, backbone="ViT-builtin")
    with pytest.raises(RuntimeError, match="Call `add_references` before or after the run"):
        engine().predict(meddler, data_path=sample_root / "gravel/test/good")
    engine().predict(model, data_path=sample_root / "gravel/test/good")
    model.add_references(sample_root / "coins/train/good")
    assert model.model.k_shot == 6


def test_a_training_that_goes_on_with_other_data_remembers_both(
    training_checkpoint: str, make: MakeModel, engine: MakeEngine, sample_root: Path
) -> None:
    model = make(adapter=None)
    datamodule = AuxiliaryDataModule(data(sample_root, "coins"), ["coins"], num_workers=0)
    engine(max_epochs=2).fit(model, datamodule=datamodule, ckpt_path=training_checkpoint)
    assert model.model.trained_on == ("MVTecAD/brick", "MVTecAD/coins")


# ---- After failures -------------------------------------------------------------------------------------------------


def test_a_failed_checkpoint_says_nothing_to_the_next_model(
    engine: MakeEngine, sample_root: Path, tmp_path: Path
) -> None:
    torch.save(
        {"state_dict": {"model.weight": torch.zeros(1)}, "pytorch-lightning_version": "2.6"}, tmp_path / "x.ckpt"
    )
    (expected,) = engine().test(AprilGan("ViT-builtin", visualizer=False), datamodule=data(sample_root), verbose=False)
    used = AprilGan("ViT-builtin", k_shot=2, visualizer=False)
    engine().test(used, datamodule=data(sample_root, "coins"), verbose=False)
    used.k_shot = None
    for model in (AprilGan("ViT-builtin", visualizer=False), used):
        runner = engine()
        with pytest.raises(ValueError, match="no checkpoint of AprilGan"):
            runner.test(model, datamodule=data(sample_root), ckpt_path=tmp_path / "x.ckpt")
        assert runner.test(model, datamodule=data(sample_root), verbose=False) == [expected]
        assert model.setup_record.class_name == "gravel"


def test_scores_of_an_aborted_run_do_not_count(make: MakeModel, engine: MakeEngine, sample_root: Path) -> None:
    class Aborts(Callback):
        def on_validation_batch_end(self, *_: Any) -> None:
            msg = "aborted"
            raise RuntimeError(msg)

        on_test_batch_end = on_validation_batch_end

    model, fresh = make(), make()
    for verb in ("validate", "test"):
        aborted = engine(callbacks=[Aborts()])
        with pytest.raises(RuntimeError, match="aborted"):
            getattr(aborted, verb)(model, datamodule=data(sample_root, "coins"))
    found = engine().test(model, datamodule=data(sample_root), verbose=False)
    assert found == engine().test(fresh, datamodule=data(sample_root), verbose=False)
    assert calibration(model) == calibration(fresh)


def test_a_training_that_fails_at_its_first_step_changes_nothing(
    make: MakeModel, engine: MakeEngine, sample_root: Path
) -> None:
    model = make(adapter=None)
    with pytest.raises(ValueError, match="masks"):
        engine(max_epochs=1).fit(model, datamodule=folder_data(sample_root, "coins"))
    assert model.model.trained_on == ()


def test_a_refused_checkpoint_leaves_the_model(fitted: tuple[AprilGan, str], make: MakeModel, tmp_path: Path) -> None:
    content = torch.load(fitted[1], weights_only=True)
    content["anomalib_aprilgan_components"]["pre_processor"] = "somebody.Else"
    torch.save(content, tmp_path / "other.ckpt")
    model = make(class_name="stone")
    plain = model.model
    with pytest.raises(ValueError, match="cannot hold"):
        model.on_load_checkpoint(content)
    assert model.model is plain


def test_a_partial_state_keeps_the_rest(make: MakeModel, images: Tensor) -> None:
    model = make(class_name="stone")
    expected = answers(model, images)
    adapters = {name: value for name, value in model.state_dict().items() if ".adapters." in name}
    model.load_state_dict(adapters, strict=False)
    for name, value in answers(model, images).items():
        assert torch.equal(value, expected[name])


def test_a_state_without_thresholds_resets_them(
    make: MakeModel, engine: MakeEngine, fitted: tuple[AprilGan, str]
) -> None:
    state = {name: value for name, value in fitted[0].state_dict().items() if not name.startswith("post_processor.")}
    for model in (make(), AprilGan.load_from_checkpoint(fitted[1])):
        model.load_state_dict(state)
        assert not model.post_processor.is_calibrated
        assert model.setup_record.class_name == "gravel"


# ---- One checkpoint after the other, and models that are made late --------------------------------------------------


def test_components_of_an_earlier_checkpoint_do_not_stay(
    fitted: tuple[AprilGan, str], make: MakeModel, engine: MakeEngine, sample_root: Path, tmp_path: Path
) -> None:
    test_folder = sample_root / "gravel/test/stain"
    transform = Compose([Resize((64, 64), antialias=True), Normalize(mean=[0.1] * 3, std=[0.9] * 3)])
    others = []
    for number, arguments in enumerate(({"pre_processor": PreProcessor(transform)}, {"post_processor": False})):
        runner = Engine(default_root_dir=tmp_path / str(number), **QUIET)
        runner.fit(make(**arguments), datamodule=data(sample_root))
        others.append(str(runner.best_model_path))
    (expected,) = engine().predict(AprilGan(visualizer=False), data_path=test_folder / "000.png", ckpt_path=fitted[1])
    model = AprilGan(visualizer=False)
    for path in (*others, fitted[1]):
        (found,) = engine().predict(model, data_path=test_folder / "000.png", ckpt_path=path)
    assert torch.equal(found.anomaly_map, expected.anomaly_map)
    assert torch.equal(found.pred_label, expected.pred_label)


@pytest.fixture
def late(clip_weights: Path, official_adapter: Path, monkeypatch: pytest.MonkeyPatch) -> MakeModel:
    """Make models whose plain model is made on first use, of the small CLIP."""
    monkeypatch.setattr("anomalib_aprilgan.integration.building.DEFAULT_BACKBONE", "golden-vit")
    arguments = {"pretrained": clip_weights, "image_size": 64, "layers": (2, 4), "adapter": official_adapter}
    return lambda **overrides: AprilGan(**{"visualizer": False} | arguments | overrides)


def test_a_model_that_is_made_in_a_run_can_be_used_like_any_other(
    late: MakeModel, engine: MakeEngine, sample_root: Path
) -> None:
    model, runner = late(k_shot=2), engine()
    runner.fit(model, datamodule=data(sample_root))
    (first,) = runner.test(model, datamodule=data(sample_root), ckpt_path=runner.best_model_path, verbose=False)
    assert first["pixel_AUROC"] > 0
    model.load_state_dict(model.state_dict())
    other = late(k_shot=2)
    other.load_state_dict(model.state_dict())
    assert other.setup_record.class_name == "gravel"


def test_a_model_that_several_threads_use_first_is_made_once(
    late: MakeModel, sample_root: Path, images: Tensor
) -> None:
    arguments = {"class_name": "gravel", "k_shot": 2, "few_shot_source": sample_root / "gravel/train/good"}
    expected = answers(late(**arguments), images)
    model = late(**arguments).eval()
    with ThreadPoolExecutor(6) as pool:
        for found in pool.map(lambda _: answers(model, images), range(12)):
            for name, value in found.items():
                torch.testing.assert_close(value, expected[name])


def test_switching_wins_over_arguments_while_others_predict(
    make: MakeModel, engine: MakeEngine, sample_root: Path, images: Tensor
) -> None:
    of_coins = make(k_shot=1)
    engine().validate(of_coins, datamodule=data(sample_root, "coins"), verbose=False)
    product, source = of_coins.product, sample_root / "gravel/train/good"
    for _ in range(4):
        model = make(class_name="gravel", k_shot=2, few_shot_source=source)
        with ThreadPoolExecutor(5) as pool:
            predicted = [pool.submit(answers, model, images) for _ in range(8)]
            pool.submit(model.switch_to, product).result()
            predicted += [pool.submit(answers, model, images) for _ in range(4)]
        assert all(one.exception() is None for one in predicted)
        assert model.setup_record.class_name == "coins"
        assert model.reference_files == product.reference_files


def test_references_of_a_test_on_watched_data_are_its_own(
    make: MakeModel, engine: MakeEngine, sample_root: Path
) -> None:
    model = make(adapter=None, k_shot=2)
    watched = data(sample_root, "coins")
    datamodule = AuxiliaryDataModule(data(sample_root, "brick"), ["brick"], validation=watched, num_workers=0)
    engine(max_epochs=1).train(model, datamodule=datamodule)
    assert all("/coins/train/" in path for path in model.reference_files)


def test_a_training_does_not_validate_with_an_earlier_runs_references(
    make: MakeModel, engine: MakeEngine, sample_root: Path
) -> None:
    model = make(adapter=None, k_shot=2)
    engine().test(model, datamodule=data(sample_root), verbose=False)
    datamodule = AuxiliaryDataModule(
        data(sample_root, "brick"), ["brick"], validation=data(sample_root, "coins"), num_workers=0
    )
    runner = engine(max_epochs=1)
    runner.fit(model, datamodule=datamodule)
    restored = AprilGan.load_from_checkpoint(runner.best_model_path)
    assert restored.setup_record.class_name is None
    assert not restored.model.is_few_shot


def test_anomalib_s_post_processor_forgets_thresholds_of_another_class(
    make: MakeModel, engine: MakeEngine, sample_root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = make(post_processor=PostProcessor())
    engine().fit(model, datamodule=data(sample_root))
    model.class_name = "coin"
    engine().predict(model, data_path=sample_root / "coins/test/stain")
    assert model.post_processor.image_threshold.isnan()
    assert "thresholds and ranges are reset" in caplog.text


def test_the_command_line_resumes_a_training_with_a_seed(
    training_checkpoint: str, sample_root: Path, tmp_path: Path
) -> None:
    arguments = ["fit", "--model", "AprilGan", "--model.adapter", "null", "--data", "AuxiliaryDataModule"]
    arguments += ["--data.source", "MVTecAD", "--data.source.root", str(sample_root), "--data.source.category", "brick"]
    arguments += ["--data.categories", "[brick]", "--data.num_workers", "0", "--trainer.max_epochs", "2"]
    arguments += ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    arguments += ["--default_root_dir", str(tmp_path), "--ckpt_path", training_checkpoint, "--seed_everything", "3"]
    assert AnomalibCLI(arguments).model.model.trained_on == ("MVTecAD/brick",)
