# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Exported models: the same predictions as the Engine, metadata, compression, and error messages."""

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import openvino
import pytest
import torch
from anomalib.data import MVTecAD, PredictDataset
from anomalib.data.utils import read_image
from anomalib.deploy import CompressionType, ExportType, OpenVINOInferencer, TorchInferencer
from anomalib.engine import Engine
from anomalib.metrics import AUROC
from anomalib.models.components.base.export_mixin import ExportMixin
from lightning import seed_everything
from numpy.typing import NDArray
from PIL import Image

from anomalib_aprilgan import AprilGan
from anomalib_aprilgan.demo.sample_data import write_sample_data
from anomalib_aprilgan.export import export
from anomalib_aprilgan.export.quantization import compress_weights, quantize, quantize_within
from anomalib_aprilgan.method.clip import Clip

PRECISE = {"INFERENCE_PRECISION_HINT": "f32"}
"""Without this option, OpenVINO computes in bf16 if the CPU supports it."""

SIZES = [(96, 96), (64, 64), (200, 120), (97, 300), (640, 480), (33, 50)]
SIDE = 96
SUFFIXES = {"torch": "pt", "onnx": "onnx", "openvino": "xml"}

Answer = dict[str, NDArray[Any]]
Predict = Callable[[NDArray[Any]], Answer]
Make = Callable[..., AprilGan]


class Exported(NamedTuple):
    """A calibrated model, the Engine's predictions for some image files, and the exported files."""

    model: AprilGan
    engine: Engine
    expected: dict[str, Answer]
    root: Path

    def file(self, kind: str) -> Path:
        path = self.root / "weights" / kind / f"model.{SUFFIXES[kind]}"
        return path if path.is_file() else self.file("onnx")  # OpenVINO reads ONNX files, too


def data(root: Path, category: str = "gravel") -> MVTecAD:
    return MVTecAD(root, category=category, num_workers=0, eval_batch_size=4)


def quiet_engine(folder: Path) -> Engine:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    return Engine(accelerator="cpu", devices=1, default_root_dir=folder, **quiet)


def answer(prediction: Any) -> Answer:
    """Convert a prediction to arrays of equal shapes, which differ between anomalib's inferencers."""
    shapes = {"pred_score": (-1,), "pred_label": (-1,), "anomaly_map": (-1, SIDE, SIDE), "pred_mask": (-1, SIDE, SIDE)}
    return {name: np.asarray(getattr(prediction, name)).reshape(shape) for name, shape in shapes.items()}


def onnx_runtime(path: Path) -> Predict:
    session = onnxruntime.InferenceSession(str(path))
    names = [output.name for output in session.get_outputs()]
    return lambda images: dict(zip(names, session.run(None, {"input": images}), strict=True))


def open_vino(path: Path, config: dict[str, Any] = PRECISE) -> Predict:
    compiled = openvino.Core().compile_model(path, "CPU", config)
    return lambda images: {port.any_name: value.copy() for port, value in compiled({"input": images}).items()}


@pytest.fixture(scope="module")
def files(sample_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a folder of image files of several sizes and formats."""
    folder = tmp_path_factory.mktemp("files")
    sources = sorted((sample_root / "gravel" / "test").rglob("*.png"))[: len(SIZES)]
    for number, (source, size) in enumerate(zip(sources, SIZES, strict=True)):
        with Image.open(source) as image:
            image.resize(size, Image.Resampling.BICUBIC).save(folder / f"{number}.{'jpg' if number == 4 else 'png'}")
    return folder


@pytest.fixture(scope="module", params=[0, 2], ids=["zero-shot", "few-shot"])
def exported(
    request: pytest.FixtureRequest, sample_root: Path, files: Path, tmp_path_factory: pytest.TempPathFactory
) -> Exported:
    seed_everything(3)
    root = tmp_path_factory.mktemp("exported")
    model = AprilGan(backbone="ViT-builtin", image_size=SIDE, k_shot=request.param)
    engine = quiet_engine(root)
    engine.test(model, datamodule=data(sample_root), verbose=False)
    for kind in ("torch", "onnx", "openvino") if model.k_shot else ("torch", "onnx"):  # to save time
        engine.export(model, kind, export_root=root)
    batches = engine.predict(model, dataset=PredictDataset(files))
    expected = {path: answer(batch) for batch in batches for path in batch.image_path}
    return Exported(model, engine, expected, root)


# ---- Predictions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["onnx", "openvino", "openvino, default precision"])
@pytest.mark.parametrize("fault", ["NaN", "infinity", "0 to 255", "normalised"])
def test_unusable_images_are_never_scored_as_normal(exported: Exported, fault: str, backend: str) -> None:
    """A graph cannot raise an error: score and map are NaN, and the label is anomalous. Other images are scored."""
    if backend != "onnx" and not exported.model.k_shot:
        pytest.skip("exported few-shot only")
    kind, _, is_default = backend.partition(", ")
    path = exported.file(kind)
    predict = onnx_runtime(path) if kind == "onnx" else open_vino(path, {} if is_default else PRECISE)
    images = np.random.default_rng(0).random((2, 3, 90, 70), np.float32)
    images[:, :, 0, :2] = [0, 1]
    expected = predict(images)
    spoiled = images.copy()
    if fault == "NaN":
        spoiled[1, 2, 50, 60] = np.nan
    elif fault == "infinity":
        spoiled[1, 0, 0, 0] = np.inf
    elif fault == "0 to 255":
        spoiled[1] *= 255
    else:
        spoiled[1] = (spoiled[1] - 0.5) / 0.25

    found = predict(spoiled)

    assert np.isnan(found["pred_score"][1])
    assert np.isnan(found["anomaly_map"][1]).all()
    assert found["pred_label"][1]
    assert found["pred_mask"][1].all()
    for name, values in expected.items():
        assert np.isfinite(values).all()
        np.testing.assert_allclose(found[name][0], values[0], atol=1e-6)


@pytest.mark.parametrize("backend", ["torch", "onnx", "openvino"])
def test_predictions_equal_those_of_the_engine(
    exported: Exported, backend: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)  # anomalib writes OpenVINO's cache to the working directory
    monkeypatch.setenv("TRUST_REMOTE_CODE", "1")
    path = exported.file(backend)
    by_file: Callable[[str], Any]
    if backend == "torch":
        by_file = TorchInferencer(path, device="cpu").predict
    elif backend == "openvino":
        by_file = OpenVINOInferencer(path, device="CPU", config=PRECISE).predict
    else:
        predict = onnx_runtime(path)

        def by_file(file: str) -> Any:
            return SimpleNamespace(**predict(read_image(file, as_tensor=True)[None].numpy()))

    assert len(exported.expected) == len(SIZES)
    for file, expected in exported.expected.items():
        found = answer(by_file(file))
        np.testing.assert_allclose(found["pred_score"], expected["pred_score"], atol=1e-4, rtol=0)
        np.testing.assert_allclose(found["anomaly_map"], expected["anomaly_map"], atol=1e-4, rtol=0)
        np.testing.assert_array_equal(found["pred_label"], expected["pred_label"])
        assert (found["pred_mask"] != expected["pred_mask"]).sum() <= 1


@pytest.mark.parametrize("load", [onnx_runtime, open_vino], ids=["onnx", "openvino"])
def test_predictions_do_not_depend_on_the_batch_size(
    exported: Exported, load: Callable[[Path], Predict], sample_root: Path
) -> None:
    sources = sorted((sample_root / "gravel" / "test").rglob("*.png"))[::3][:4]
    images = np.stack([read_image(file, as_tensor=True).numpy() for file in sources])
    predict = load(exported.file("onnx" if load is onnx_runtime else "openvino"))
    together = predict(images)
    assert together["pred_score"].shape == (4,)
    assert together["anomaly_map"].shape == (4, SIDE, SIDE)
    for number in range(4):
        alone = predict(images[number : number + 1])
        for name, value in alone.items():
            np.testing.assert_allclose(value[0].astype(float), together[name][number].astype(float), atol=1e-4, rtol=0)


def test_scores_differ_from_image_to_image(exported: Exported) -> None:
    """Otherwise equal predictions would prove nothing."""
    scores = [float(expected["pred_score"][0]) for expected in exported.expected.values()]
    assert np.std(scores) > 0.01


@pytest.mark.slow
def test_a_model_with_a_fixed_input_size(make_lightning_model: Make, tmp_path: Path, files: Path) -> None:
    model = make_lightning_model(image_size=SIDE, class_name="gravel")
    path = quiet_engine(tmp_path).export(model, "onnx", export_root=tmp_path, input_size=(120, 200))
    image = read_image(files / "2.png", as_tensor=True)[None]
    expected = answer(model(image))
    for predict in (onnx_runtime(path), open_vino(path)):
        found = predict(image.expand(3, -1, -1, -1).numpy())
        np.testing.assert_allclose(found["pred_score"], expected["pred_score"].repeat(3), atol=1e-4)
        np.testing.assert_allclose(found["anomaly_map"], expected["anomaly_map"].repeat(3, axis=0), atol=1e-4)


# ---- Content of files -----------------------------------------------------------------------------------------------


def test_files_contain_the_metadata(exported: Exported, sample_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUST_REMOTE_CODE", "1")
    session = onnxruntime.InferenceSession(str(exported.file("onnx")))
    from_onnx = session.get_modelmeta().custom_metadata_map
    information = openvino.Core().read_model(exported.file("openvino"))
    from_openvino = {name: information.get_rt_info(["framework", name]).value for name in from_onnx}
    from_torch = TorchInferencer(exported.file("torch"), device="cpu").model.metadata
    assert from_onnx == from_openvino == from_torch == exported.model.metadata
    assert from_onnx["class_name"] == "gravel"
    assert from_onnx["clip_backbone"] == "ViT-builtin"
    references = json.loads(from_onnx["reference_files"])
    assert len(references) == json.loads(from_onnx["k_shot"]) == exported.model.k_shot
    assert all(Path(file).parent == sample_root / "gravel" / "train" / "good" for file in references)
    post_processor = exported.model.post_processor
    assert json.loads(from_onnx["image_threshold"]) == pytest.approx(float(post_processor.image_threshold))
    assert json.loads(from_onnx["pixel_threshold"]) == pytest.approx(float(post_processor.pixel_threshold))


def test_files_contain_neither_text_tower_nor_metrics(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUST_REMOTE_CODE", "1")
    weights = sum(weight.numel() * 4 for weight in exported.model.model.clip.visual.parameters())
    banks = sum(bank.tokens.numel() * 4 for bank in exported.model.model.memory_banks)
    for file in (exported.file("torch"), exported.file("onnx")):
        assert weights < file.stat().st_size < 1.1 * (weights + banks) + 1e6, file
    assert len(exported.model.evaluator.test_metrics) == 7  # the model itself keeps its metrics
    assert TorchInferencer(exported.file("torch"), device="cpu").model.evaluator is None  # metrics store test scores
    assert b"token_embedding" not in exported.file("torch").read_bytes()


def test_an_onnx_model_is_one_file(exported: Exported, tmp_path: Path) -> None:
    alone = shutil.copy(exported.file("onnx"), tmp_path / "renamed.onnx")
    assert onnx_runtime(alone)(np.zeros((1, 3, 50, 50), np.float32))["pred_score"].shape == (1,)
    assert sorted(file.name for file in exported.file("onnx").parent.iterdir()) == ["model.onnx"]


def test_an_exported_torch_model_keeps_class_and_references(
    sample_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = shutil.copytree(sample_root / "gravel" / "train" / "good", tmp_path / "good")
    model = AprilGan(backbone="ViT-builtin", image_size=SIDE, class_name="gravel", k_shot=2, few_shot_source=source)
    path = model.to_torch(tmp_path)
    shutil.rmtree(source)
    monkeypatch.setenv("TRUST_REMOTE_CODE", "1")
    deployed = TorchInferencer(path, device="cpu").model
    seed_everything(99)
    deployed.prepare()  # Engine.predict calls it, too
    assert deployed.reference_files == model.reference_files
    with pytest.raises(RuntimeError, match="no text tower"):
        deployed.model.setup("bottle")
    assert isinstance(model.model.clip, Clip)
    assert model.model.encode_class("bottle").shape == (2, 128)  # the model itself still has its text tower


def test_another_seed_or_datamodule_does_not_change_the_setup(exported: Exported, sample_root: Path) -> None:
    """Otherwise references would be drawn anew, and the calibration would be reset."""
    before = exported.model.metadata
    seed_everything(1234)
    assert exported.model._deployed(data(sample_root, "coins")).metadata == before
    assert exported.model.product.reference_files == exported.model.reference_files
    assert exported.model.metadata == before


# ---- Compression ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> tuple[MVTecAD, AprilGan, Path]:
    """Make images of a held-out kind, a model that is calibrated on them, and its ONNX file."""
    root = tmp_path_factory.mktemp("held_out")
    datamodule = data(write_sample_data(root, ("padlock",), size=128, train=6, test=8), "padlock")
    seed_everything(5)
    model = AprilGan(backbone="ViT-builtin", image_size=SIDE, k_shot=2)
    quiet_engine(root).validate(model, datamodule=datamodule)
    return datamodule, model, model.to_onnx(root)


def auroc(predict: Predict, datamodule: MVTecAD, model: AprilGan) -> tuple[float, float]:
    image, pixel = AUROC(fields=["pred_score", "gt_label"]), AUROC(fields=["anomaly_map", "gt_mask"])
    for batch in datamodule.test_dataloader():
        found = {name: torch.from_numpy(value) for name, value in predict(batch.image.numpy()).items()}
        assert found["pred_score"].shape == (len(batch.image),)
        _, batch.gt_mask = model.pre_processor.transform(batch.image, batch.gt_mask)
        batch.update(pred_score=found["pred_score"], anomaly_map=found["anomaly_map"])
        image.update(batch)
        pixel.update(batch)
    return float(image.compute()), float(pixel.compute())


@pytest.mark.parametrize(
    "name", ["int8", *(pytest.param(f"int8_{how}", marks=pytest.mark.slow) for how in ("ptq", "acq"))]
)
def test_8_bit_models_are_nearly_as_good(name: str, held_out: tuple[MVTecAD, AprilGan, Path], tmp_path: Path) -> None:
    """Image AUROC falls by at most 0.02 and pixel AUROC by at most 0.01."""
    datamodule, model, path = held_out
    image, pixel = auroc(open_vino(path), datamodule, model)
    network = openvino.convert_model(path)
    if name == "int8":
        compressed = compress_weights(network)
    elif name == "int8_ptq":
        compressed = quantize(network, datamodule)
    else:
        compressed = quantize_within(0.01, network, datamodule, None, SIDE)
    openvino.save_model(compressed, tmp_path / f"{name}.xml", compress_to_fp16=False)
    weights = sum(weight.numel() for weight in model.model.clip.visual.parameters())
    rest = sum(bank.tokens.numel() for bank in model.model.memory_banks)
    assert (tmp_path / f"{name}.bin").stat().st_size < 1.4 * weights + 4.2 * rest, name  # of a byte or four each
    image_8_bit, pixel_8_bit = auroc(open_vino(tmp_path / f"{name}.xml"), datamodule, model)
    assert image_8_bit >= image - 0.02, name
    assert pixel_8_bit >= pixel - 0.01, name


@pytest.mark.slow
def test_calibration_with_images_of_several_sizes_and_a_fixed_input_size(sample_root: Path, tmp_path: Path) -> None:
    root = shutil.copytree(sample_root, tmp_path / "data")
    for number, file in enumerate(sorted((root / "gravel" / "test" / "good").iterdir())):
        with Image.open(file) as image:
            image.resize((70 + number, 60)).save(file)
    model = AprilGan(backbone="ViT-builtin", image_size=SIDE)
    path = model.to_openvino(tmp_path, "small", (50, 40), CompressionType.INT8_PTQ, data(root))
    assert path.name == "small.xml"
    assert model.model.class_name == "gravel"  # from the datamodule, which was never a trainer's
    assert open_vino(path)(np.random.default_rng(0).random((2, 3, 50, 40), np.float32))["pred_score"].shape == (2,)
    weights = sum(weight.numel() for weight in model.model.clip.visual.parameters())
    assert (
        weights < path.with_suffix(".bin").stat().st_size < 1.7 * weights
    )  # of a byte each, but for the sensitive ones


# ---- Options and errors ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_arguments_of_torch_are_passed_on(make_lightning_model: Make, tmp_path: Path) -> None:
    model = make_lightning_model(class_name="gravel")
    options = {"opset_version": 20, "external_data": True, "input_names": ["picture"]}
    path = quiet_engine(tmp_path).export(model, "onnx", export_root=tmp_path, onnx_kwargs=options)
    session = onnxruntime.InferenceSession(str(path))
    assert [entry.name for entry in session.get_inputs()] == ["picture"]
    assert (path.parent / "model.onnx.data").stat().st_size > 5e5
    assert session.get_modelmeta().custom_metadata_map["class_name"] == "gravel"


def test_a_model_without_pre_and_post_processor(make_lightning_model: Make, tmp_path: Path) -> None:
    model = make_lightning_model(image_size=SIDE, class_name="gravel", pre_processor=False, post_processor=False)
    session = onnxruntime.InferenceSession(str(model.to_onnx(tmp_path)))
    assert session.get_inputs()[0].shape[1:] == [3, SIDE, SIDE]
    assert {output.name for output in session.get_outputs()} == {"pred_score", "anomaly_map"}
    assert "image_threshold" not in model.metadata


def test_the_old_exporter_is_refused(tmp_path: Path) -> None:
    model = AprilGan(backbone="ViT-builtin", image_size=SIDE, class_name="gravel")
    with pytest.raises(ValueError, match="dynamo"):
        model.to_onnx(tmp_path, dynamo=False)
    assert not list(tmp_path.rglob("*.onnx"))


@pytest.mark.parametrize(("kind", "missing"), [("onnx", "onnxscript"), ("openvino", "openvino"), ("openvino", "nncf")])
def test_a_missing_extra_is_named(kind: str, missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "find_spec", lambda name: None if name == missing else object())
    model = AprilGan(backbone="ViT-builtin", image_size=SIDE, class_name="gravel")
    compression = CompressionType.INT8 if missing == "nncf" else None
    with pytest.raises(ModuleNotFoundError, match=rf'{missing}: run pip install "\.\[export\]"'):
        quiet_engine(tmp_path).export(model, kind, export_root=tmp_path, compression_type=compression)


@pytest.mark.parametrize("compression", [CompressionType.INT8_PTQ, CompressionType.INT8_ACQ])
def test_calibration_needs_images(compression: CompressionType, tmp_path: Path) -> None:
    model = AprilGan(backbone="ViT-builtin", image_size=SIDE, class_name="gravel")
    with pytest.raises(ValueError, match="Expected argument `datamodule` to provide images"):
        model.to_openvino(tmp_path, compression_type=compression)


def test_invalid_compression_arguments_are_refused(held_out: tuple[MVTecAD, AprilGan, Path], tmp_path: Path) -> None:
    datamodule, model, path = held_out
    with pytest.raises(ValueError, match="int3"):
        model.to_openvino(tmp_path, compression_type="int3")
    with pytest.raises(ValueError, match=r"`max_drop` to be in \[0, 1\], but got 2"):
        quantize_within(2, openvino.convert_model(path), datamodule, None, SIDE)
    network = openvino.convert_model(path)
    raw = openvino.Model([network.output("pred_score")], network.get_parameters())
    with pytest.raises(ValueError, match=r"`metric` to use an output of the model \(pred_score\), but got None"):
        quantize_within(0.01, raw, datamodule, None, SIDE)


def test_export_without_a_source_of_references_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="few_shot_source"):
        AprilGan(backbone="ViT-builtin", image_size=SIDE, class_name="gravel", k_shot=2).to_onnx(tmp_path)


def test_a_missing_class_name_gives_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    AprilGan(backbone="ViT-builtin", image_size=SIDE).to_torch(tmp_path)
    assert caplog.text.count("Pass `class_name`") == 1


@pytest.mark.parametrize("kind", list(ExportType))
def test_a_failed_export_keeps_existing_files(
    kind: ExportType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = tmp_path / "weights" / kind.value / f"model.{SUFFIXES[kind.value]}"
    good.parent.mkdir(parents=True)
    good.write_bytes(b"good")

    def half(model: AprilGan, root: Path, name: str, *arguments: Any, **options: Any) -> None:
        path = Path(root) / "weights" / kind.value / good.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    # anomalib's export to OpenVINO would leave files in the folder for temporary files, so it is not used
    exporter = kind if kind != ExportType.OPENVINO else ExportType.ONNX
    monkeypatch.setattr(ExportMixin, f"to_{exporter.value}", half)
    model = AprilGan(backbone="ViT-builtin", image_size=SIDE, class_name="gravel")
    with pytest.raises(KeyboardInterrupt):
        quiet_engine(tmp_path).export(model, kind, export_root=tmp_path)
    assert [file.name for file in good.parent.iterdir()] == [good.name]
    assert good.read_bytes() == b"good"


def test_a_checkpoint_is_exported_with_its_calibration(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRUST_REMOTE_CODE", "1")
    checkpoint = tmp_path / "model.ckpt"
    exported.engine.trainer.save_checkpoint(checkpoint)
    fresh = AprilGan(backbone="ViT-builtin", image_size=SIDE)
    path = quiet_engine(tmp_path).export(fresh, "torch", export_root=tmp_path, ckpt_path=checkpoint)
    inferencer = TorchInferencer(path, device="cpu")
    assert inferencer.model.metadata == exported.model.metadata
    for file, expected in exported.expected.items():
        np.testing.assert_allclose(answer(inferencer.predict(file))["anomaly_map"], expected["anomaly_map"], atol=1e-6)


def test_an_exported_file_names_no_other_class_and_no_other_images(
    make_lightning_model: Callable[..., AprilGan], sample_root: Path, tmp_path: Path
) -> None:
    """A customer may get one of several products."""
    shutil.copytree(sample_root / "coins" / "test" / "good", tmp_path / "secret_images")
    model = make_lightning_model(class_name="secret_class")
    engine = quiet_engine(tmp_path / "results")
    engine.predict(model, data_path=tmp_path / "secret_images")
    model.model.encode_class("secret_part")
    model.class_name = "ours"
    path = model.to_torch(tmp_path)
    with zipfile.ZipFile(path) as archive:
        content = b"".join(archive.read(name) for name in archive.namelist())
    assert b"ours" in content
    assert b"secret" not in content
    assert b"secret" not in model.to_onnx(tmp_path).read_bytes()
    assert "secret_class" in model.model._text._computed, "the model itself still knows them"
