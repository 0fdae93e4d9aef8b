# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Training of adapters and tests with the embedded CLIP, through anomalib's Engine."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from anomalib.data import AnomalibDataModule, MVTecAD
from anomalib.metrics import AUROC, Evaluator
from lightning.pytorch import seed_everything

from anomalib_aprilgan.datamodule import AuxiliaryDataModule
from anomalib_aprilgan.demo.findings import METRICS, Prediction
from anomalib_aprilgan.files.embedded import BACKBONE
from anomalib_aprilgan.lightning_model import AprilGan
from anomalib_aprilgan.integration.quiet_engine import quiet_engine

__all__ = ["Tested", "measure_category", "train_adapters"]


class Tested(NamedTuple):
    """What a test found.

    Attributes:
        metrics: Values in [0, 1] by anomalib's names.
        references: The reference images' files.
        predictions: By file of the test split; empty unless asked for.
    """

    metrics: dict[str, float]
    references: tuple[str, ...]
    predictions: dict[str, Prediction]


def train_adapters(roots: Sequence[Path], epochs: int, seed: int, folder: Path, **model_arguments: Any) -> AprilGan:  # noqa: ANN401
    """Train adapters of the embedded CLIP.

    Args:
        roots: Data sets with MVTec AD's folders; the test splits of all their categories are trained on.
        epochs: How often each image is seen.
        seed: Seed of the adapters' first weights and of the order of images.
        folder: Where the engine may write.
        **model_arguments: Arguments of ``AprilGan``.

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


def measure_category(
    root: Path,
    category: str,
    k_shot: int,
    seed: int,
    folder: Path,
    *,
    predict: bool,
    **model_arguments: Any,  # noqa: ANN401
) -> Tested:
    """Test the embedded CLIP on one category.

    Args:
        root: Data set with MVTec AD's folders.
        category: The category.
        k_shot: Number of reference images.
        seed: Seed of their choice.
        folder: Where the engine may write.
        predict: Also collect what is said of each test image.
        **model_arguments: Arguments of ``AprilGan``.

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
    )  # the others take several times as long as the model
    model = AprilGan(backbone=BACKBONE, k_shot=k_shot, evaluator=evaluator, visualizer=False, **model_arguments)
    engine = quiet_engine(folder)
    (metrics,) = engine.test(model, datamodule=datamodule, verbose=False)
    predictions = _collect(engine.predict(model, datamodule=datamodule)) if predict else {}
    return Tested({name: float(metrics[name]) for name in METRICS}, model.reference_files, predictions)


def _collect(batches: Any) -> dict[str, Prediction]:  # noqa: ANN401  # Lightning's type says little
    """Sort what a model says of each image by its file."""
    collected = {}
    for batch in batches:
        for item in batch:
            anomaly_map = np.asarray(torch.as_tensor(item.anomaly_map).squeeze().cpu(), np.float32)
            collected[str(item.image_path)] = Prediction(
                float(torch.as_tensor(item.pred_score)), bool(item.pred_label), anomaly_map
            )
    return collected
