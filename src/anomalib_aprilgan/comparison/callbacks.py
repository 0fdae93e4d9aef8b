# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Callbacks of a run: they select the reference images, measure time, and write example images."""

import json
import os
import shutil
import time
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from anomalib.data import AnomalibDataModule
from anomalib.data.utils import LabelName
from anomalib.visualization import Visualizer
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.types import STEP_OUTPUT
from PIL import Image

from anomalib_aprilgan.comparison.folder import safe_name
from anomalib_aprilgan.comparison.grid import Run
from anomalib_aprilgan.comparison.results import KEY
from anomalib_aprilgan.files.whole_files import write_file
from anomalib_aprilgan.integration.references import draw, normal_training_files
from anomalib_aprilgan.lightning_model import AprilGan
from anomalib_aprilgan.method.feature_store import now

__all__ = ["ExampleWriter", "References", "Stopwatch"]

EXAMPLE_PIXELS = 256
"""Height and width of the example images."""


class References(Callback):
    """Reduces the training split to the reference images, which are the same for every model.

    Few-shot models use all of them as references, and the other models are trained on them.

    Args:
        k_shot: Number of reference images; ``None``: the training split is not changed.
        seed: Seed of the selection; ``AprilGan`` selects the same images with it.

    Attributes:
        files: Paths of the reference images; empty if the training split is not changed.
    """

    def __init__(self, k_shot: int | None, seed: int) -> None:
        self.k_shot = k_shot
        self.seed = seed
        self.files: tuple[str, ...] = ()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Select the references, after the set-up of the data and before the set-up of the model."""
        del pl_module, stage
        datamodule: AnomalibDataModule | None = getattr(trainer, "datamodule", None)
        if self.k_shot is None or self.files or datamodule is None:
            return
        files = normal_training_files(datamodule)
        chosen = draw(files, self.k_shot, self.seed)
        paths = datamodule.train_data.samples.image_path.map(Path)
        rows = [int(np.flatnonzero(paths == file)[0]) for file in chosen]
        datamodule.train_data = datamodule.train_data.subsample(rows)
        self.files = tuple(map(str, chosen))


class Stopwatch(Callback):
    """Measures the seconds that preparing a model, testing it and scoring an image take.

    If features of images were stored by an earlier run, or by the validation, the seconds that computing them took then
    are counted, so that the times are those of this run alone.

    Attributes:
        fit_seconds: Seconds of set-up, training and validation, until the test begins.
        test_seconds: Seconds of the test, metrics included.
        images: Number of tested images.
        image_seconds: Seconds of pre-processing and model, summed over all tested images.
    """

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._batch_start = 0.0
        self._test_start = 0.0
        self._saved = 0.0
        self.fit_seconds = 0.0
        self.test_seconds = 0.0
        self.images = 0
        self.image_seconds = 0.0

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count what stored features have saved."""
        del trainer
        self._saved += _seconds_saved(pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record when the model is ready."""
        del trainer, pl_module
        self._test_start = time.perf_counter()
        self.fit_seconds = self._test_start - self._start + self._saved

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record when the test ends."""
        del trainer
        self.test_seconds = time.perf_counter() - self._test_start + _seconds_saved(pl_module)

    def on_test_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,  # noqa: ANN401
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Start the clock before the model's own callbacks, one of which pre-processes the batch."""
        del trainer, batch, batch_idx, dataloader_idx
        self._batch_start = now(pl_module.device) - _seconds_saved(pl_module)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: STEP_OUTPUT,
        batch: Any,  # noqa: ANN401
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Stop the clock before the model's own callbacks, which post-process the batch and update metrics."""
        del trainer, outputs, batch_idx, dataloader_idx
        self.image_seconds += now(pl_module.device) + _seconds_saved(pl_module) - self._batch_start
        self.images += batch.batch_size


def _seconds_saved(module: LightningModule) -> float:
    """Return what stored features, and scores of the validation, have saved in the present run of a model."""
    if not isinstance(module, AprilGan):
        return 0.0
    stores = module.model.clip.store, module.recent_scores
    return sum(store.seconds_saved for store in stores if store is not None)


class ExampleWriter(Visualizer):
    """Writes images, masks and normalised anomaly maps of a few test images, for the report.

    Each image has a folder, named after its path within the test images. All runs on the same data share it.

    Args:
        folder: Folder of the examples.
        run: The run.
        started: When the run started. The report shows the examples of the latest attempt only.
        number: Number of anomalous images, from different defect types if possible. One normal image is added.
    """

    def __init__(self, folder: Path, run: Run, started: str, number: int) -> None:
        super().__init__()
        self._folder = folder / safe_name(run.data, run.category)
        self._stem = safe_name(*run.key)
        self._identity = {**dict(zip(KEY, run.key, strict=True)), "started": started}
        self._number = number
        self._root = ""
        self._files: frozenset[str] = frozenset()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Choose the images, the same ones for every model. Delete the files of an earlier attempt of this run."""
        del pl_module
        samples = cast("Any", trainer).datamodule.test_data.samples
        self._root = os.path.commonpath([Path(path).parent for path in samples.image_path])
        abnormal = samples[samples.label_index == LabelName.ABNORMAL]
        kind = abnormal.image_path.map(lambda path: Path(path).parent.name)
        nth_of_kind = abnormal.groupby(kind).cumcount()
        chosen = abnormal.assign(nth_of_kind=nth_of_kind).sort_values("nth_of_kind", kind="stable")[: self._number]
        normal = samples[samples.label_index == LabelName.NORMAL][: min(self._number, 1)]
        self._files = frozenset(map(str, [*chosen.image_path, *normal.image_path]))
        earlier = list(self._folder.glob(f"*/{self._stem}.*"))
        for path in earlier:
            path.unlink()
        for folder in {path.parent for path in earlier}:
            if not any(folder.glob("*.json")):  # no other run has tested this image
                shutil.rmtree(folder)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: STEP_OUTPUT,
        batch: Any,  # noqa: ANN401
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write the chosen images of the batch."""
        del trainer, pl_module, outputs, batch_idx, dataloader_idx
        for item in batch:
            if str(item.image_path) in self._files and item.anomaly_map is not None:
                self._write(item)

    def _write(self, item: Any) -> None:  # noqa: ANN401  # anomalib's items carry few types
        path = Path(item.image_path)
        name = path.relative_to(self._root)
        folder = self._folder / safe_name(*name.parts)
        with Image.open(path) as image:
            _save(image.convert("RGB"), folder / "image.png")
        if item.gt_mask is not None:
            _save(_grey(item.gt_mask), folder / "mask.png")
        _save(_grey(item.anomaly_map), folder / f"{self._stem}.png")
        prediction = {
            **self._identity,
            "image": name.as_posix(),
            "score": float(item.pred_score),
            "label": bool(item.pred_label),
            "anomalous": bool(item.gt_label),
        }
        write_file(folder / f"{self._stem}.json", json.dumps(prediction))


def _grey(values: Any) -> Image.Image:  # noqa: ANN401
    """Turn a mask or map in [0, 1] into an 8-bit grey image."""
    return Image.fromarray(np.asarray(torch.as_tensor(values).float().cpu().squeeze().clamp(0, 1) * 255, np.uint8))


def _save(image: Image.Image, path: Path) -> None:
    buffer = BytesIO()
    image.resize((EXAMPLE_PIXELS, EXAMPLE_PIXELS), Image.Resampling.BICUBIC).save(buffer, "PNG")
    write_file(path, buffer.getvalue())
