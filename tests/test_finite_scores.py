# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""NaN and infinity in a model, its images or its checkpoint are errors; no image is labelled normal because of them."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from anomalib.data import MVTecAD
from anomalib.engine import Engine
from anomalib.post_processing import PostProcessor
from torch import Tensor

from anomalib_aprilgan import AprilGan

MakeModel = Callable[..., AprilGan]

SPOILT = (
    "model.adapters.fc.1.weight",
    "model.state.memory_banks.0.tokens",
    "model.state.text_features",
    "model.state.map_range",
)
"""Weights of a few-shot model that change its scores."""


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    return Engine(accelerator="cpu", devices=1, default_root_dir=tmp_path / "results", **quiet)


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def few_shot(make_lightning_model: MakeModel, sample_root: Path) -> AprilGan:
    model = make_lightning_model(class_name="gravel", k_shot=1, few_shot_source=sample_root / "gravel/train/good")
    model.prepare()
    return model.eval()


def tensors_of(model: AprilGan) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def spoil(model: AprilGan, name: str, value: float = math.nan) -> None:
    tensors_of(model)[name].data.reshape(-1)[0] = value


@pytest.mark.parametrize("name", SPOILT)
def test_scores_that_are_not_finite_are_errors(
    few_shot: AprilGan, engine: Engine, sample_root: Path, images: Tensor, name: str
) -> None:
    folder = sample_root / "gravel" / "test" / "good"
    spoil(few_shot, name)
    with pytest.raises(RuntimeError, match=r"finite score and map.*image 0 of the batch, image 1 of the batch"):
        few_shot(images)
    with pytest.raises(RuntimeError, match="finite score and map") as error:
        engine.predict(few_shot, data_path=folder)
    assert str(min(folder.iterdir())) in str(error.value)
    datamodule = MVTecAD(sample_root, category="gravel", num_workers=0, eval_batch_size=5)
    for run in (engine.validate, engine.test):
        with pytest.raises(RuntimeError, match=r"finite score and map.*gravel/test/.*png"):
            run(few_shot, datamodule=datamodule, verbose=False)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("post_processor", [True, False])
def test_pixels_that_are_not_finite_are_errors(
    make_lightning_model: MakeModel, images: Tensor, value: float, post_processor: bool
) -> None:
    model = make_lightning_model(class_name="gravel", pre_processor=False, post_processor=post_processor).eval()
    assert torch.isfinite(model(images).pred_score).all()
    images[1, 0, 5, 7] = value
    with pytest.raises((RuntimeError, ValueError)):
        model(images)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(
    "name", [*SPOILT, "post_processor._image_threshold", "post_processor.pixel_max", "post_processor.margin"]
)
def test_checkpoints_that_are_not_finite_are_refused_by_name(
    few_shot: AprilGan, engine: Engine, sample_root: Path, tmp_path: Path, name: str, value: float
) -> None:
    engine.predict(few_shot, data_path=sample_root / "gravel" / "test" / "good")
    path = tmp_path / "model.ckpt"
    spoil(few_shot, name, value)
    engine.trainer.save_checkpoint(path)
    with pytest.raises(ValueError, match="NaN or infinite values") as error:
        AprilGan.load_from_checkpoint(path)
    assert str(path) in str(error.value)
    assert name in str(error.value)
    with pytest.raises(ValueError, match="NaN or infinite values"):
        few_shot.on_load_checkpoint(torch.load(path, weights_only=True))


def test_checkpoints_with_a_post_processor_of_anomalib_load_without_validation(
    make_lightning_model: MakeModel, engine: Engine, sample_root: Path, tmp_path: Path
) -> None:
    """Its thresholds are NaN then."""
    model = make_lightning_model(post_processor=PostProcessor())
    engine.predict(model, data_path=sample_root / "gravel" / "test" / "good")
    engine.trainer.save_checkpoint(tmp_path / "model.ckpt")
    AprilGan.load_from_checkpoint(tmp_path / "model.ckpt", post_processor=PostProcessor())
    model.to_torch(tmp_path)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", [*SPOILT, "post_processor._image_threshold", "model.clip.visual.proj"])
def test_exports_refuse_weights_that_are_not_finite(
    few_shot: AprilGan, tmp_path: Path, name: str, value: float
) -> None:
    spoil(few_shot, name, value)
    for export in (few_shot.to_torch, few_shot.to_onnx, few_shot.to_openvino):
        with pytest.raises(RuntimeError, match=f"was not exported.*{name}"):
            export(tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
