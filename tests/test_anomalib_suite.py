"""The test that anomalib's suite runs for each name in `list_models()`: fit, test, train, validate, predict."""

from pathlib import Path
from typing import Any

import pytest
from anomalib.callbacks import ModelCheckpoint
from anomalib.data import AnomalibDataModule, MVTecAD
from anomalib.engine import Engine
from anomalib.models import get_model, list_models
from anomalib.models.components import AnomalibModule


@pytest.mark.parametrize("adapter", ["given", None])
class TestApi:
    """As in anomalib's integration tests, all steps use one project folder and the checkpoint of the first step."""

    @pytest.fixture
    def parts(
        self, adapter: str | None, clip_weights: Path, official_adapter: Path, sample_root: Path, tmp_path: Path
    ) -> tuple[AnomalibModule, AnomalibDataModule, Engine, Path]:
        small: dict[str, Any] = {
            "backbone": "golden-vit",
            "pretrained": clip_weights,
            "image_size": 64,
            "layers": [2, 4],
            "adapter": official_adapter if adapter else None,
        }
        datamodule = MVTecAD(sample_root, category="gravel", train_batch_size=2, eval_batch_size=2, num_workers=0)
        engine = Engine(logger=False, default_root_dir=tmp_path, max_epochs=1, accelerator="cpu", devices=1)
        assert "april_gan" in list_models()
        checkpoint = tmp_path / "AprilGan" / "MVTecAD" / "gravel" / "v0" / "weights" / "lightning" / "model.ckpt"
        return get_model("april_gan", **small), datamodule, engine, checkpoint

    def test_all_engine_methods_in_sequence(self, parts: Any, adapter: str | None, tmp_path: Path) -> None:
        model, datamodule, engine, checkpoint = parts
        engine.fit(model=model, datamodule=datamodule)
        assert checkpoint.is_file()
        assert isinstance(engine.checkpoint_callback, ModelCheckpoint)

        def fresh() -> Engine:
            return Engine(logger=False, default_root_dir=tmp_path, max_epochs=1, accelerator="cpu", devices=1)

        for ckpt_path in (checkpoint, None):
            (results,) = fresh().test(model=model, datamodule=datamodule, ckpt_path=ckpt_path)
            assert 0 <= results["image_AUROC"] <= 1
            fresh().train(model=model, datamodule=datamodule, ckpt_path=ckpt_path)
            fresh().validate(model=model, datamodule=datamodule, ckpt_path=ckpt_path)
            batches = fresh().predict(model=model, datamodule=datamodule, ckpt_path=ckpt_path)
            assert sum(len(batch.image) for batch in batches) == 12
            assert fresh().export(model=model, ckpt_path=ckpt_path, export_type="torch", export_root=tmp_path).is_file()
