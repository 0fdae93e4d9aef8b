# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Training of adapters and tests of the embedded CLIP, with anomalib's Engine."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from anomalib.data import AnomalibDataModule, ImageBatch, MVTecAD
from anomalib.metrics import AUROC, Evaluator
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything

from anomalib_aprilgan.datamodule import AuxiliaryDataModule
from anomalib_aprilgan.demo.results import METRICS, Prediction
from anomalib_aprilgan.files.embedded import BACKBONE
from anomalib_aprilgan.integration.quiet_engine import quiet_engine
from anomalib_aprilgan.lightning_model import AprilGan

__all__ = ["CategoryResult", "evaluate_category", "train_adapters"]


class CategoryResult(NamedTuple):
    """Result of the test on one category.

    Attributes:
        metrics: Metrics in [0, 1] by anomalib's names.
        references: Files of the reference images.
        predictions: Prediction by file of the test image; empty if predictions were not requested.
    """

    metrics: dict[str, float]
    references: tuple[str, ...]
    predictions: dict[str, Prediction]


def train_adapters(roots: Sequence[Path], epochs: int, seed: int, folder: Path, **model_arguments: Any) -> AprilGan:  # noqa: ANN401
    """Train adapters of the embedded CLIP.

    Args:
        roots: Data sets in MVTec AD's layout. The adapters are trained on the test splits of all their categories.
        epochs: Number of epochs.
        seed: Seed of initial weights and image order.
        folder: Folder that the engine may write to.
        **model_arguments: Further arguments of ``AprilGan``.

    Returns:
        The trained model.
    """
    seed_everything(seed, verbose=False)
    source: list[AnomalibDataModule] = [
        MVTecAD(root=root, category=min(path.name for path in root.iterdir() if path.is_dir())) for root in roots
    ]
    datamodule = AuxiliaryDataModule(source=source, num_workers=0)
    model = AprilGan(backbone=BACKBONE, adapter=None, visualizer=False, **model_arguments)
    quiet_engine(folder, max_epochs=epochs).fit(model, datamodule=datamodule)
    return model


def evaluate_category(
    root: Path,
    category: str,
    k_shot: int,
    seed: int,
    folder: Path,
    *,
    with_predictions: bool = False,
    **model_arguments: Any,  # noqa: ANN401
) -> CategoryResult:
    """Test the embedded CLIP on one category.

    Args:
        root: Data set in MVTec AD's layout.
        category: Name of the category.
        k_shot: Number of reference images.
        seed: Seed of the choice of reference images.
        folder: Folder that the engine may write to.
        with_predictions: Whether to return the predictions for all test images too.
        **model_arguments: Further arguments of ``AprilGan``.

    Returns:
        Metrics, reference images and predictions.
    """
    seed_everything(seed, verbose=False)
    datamodule = MVTecAD(root=root, category=category, num_workers=0)
    evaluator = Evaluator(
        test_metrics=[
            AUROC(fields=["pred_score", "gt_label"], prefix="image_"),
            AUROC(fields=["anomaly_map", "gt_mask"], prefix="pixel_"),
        ]
    )  # anomalib's other metrics take several times as long as the model
    model = AprilGan(backbone=BACKBONE, k_shot=k_shot, evaluator=evaluator, visualizer=False, **model_arguments)
    tested = _TestedBatches()
    engine = quiet_engine(folder, callbacks=[tested] if with_predictions else [])
    (metrics,) = engine.test(model, datamodule=datamodule, verbose=False)
    metrics = {name: float(metrics[name]) for name in METRICS}
    return CategoryResult(metrics, model.reference_files, _by_file(tested.batches))


class _TestedBatches(Callback):
    """Keeps the batches of a test, so that the images need not be predicted a second time."""

    def __init__(self) -> None:
        self.batches: list[ImageBatch] = []

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any) -> None:  # noqa: ANN401
        """Keep a batch. The post-processor, which runs after this, changes it in place."""
        del trainer, pl_module, args
        self.batches.append(outputs)


def _by_file(batches: Sequence[ImageBatch]) -> dict[str, Prediction]:
    """Map each image file to its prediction."""
    predictions = {}
    for batch in batches:
        for item in batch:
            anomaly_map = np.asarray(torch.as_tensor(item.anomaly_map).squeeze().cpu(), np.float32)
            predictions[str(item.image_path)] = Prediction(
                float(torch.as_tensor(item.pred_score)), bool(item.pred_label), anomaly_map
            )
    return predictions
