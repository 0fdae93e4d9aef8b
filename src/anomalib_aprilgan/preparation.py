# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""What a model needs before it can score: its class, its adapters, and few-shot its references."""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from anomalib.data import AnomalibDataModule, Visa
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from anomalib_aprilgan.embedded import BACKBONE, TAG
from anomalib_aprilgan.post_processing import AprilGanPostProcessor
from anomalib_aprilgan.references import draw, files_in_source, normal_training_files, read_references
from anomalib_aprilgan.torch_model import AprilGanModel

__all__ = ["ANY_CLASS", "Preparable"]

logger = logging.getLogger(__name__)

ANY_CLASS = "object"
"""Class name of a model that was told none."""


class Preparable(LightningModule):
    """A model that finds its class, adapters and references when they are needed.

    Arguments come first, then a checkpoint, then the datamodule.
    """

    model: AprilGanModel
    pre_processor: nn.Module | None
    post_processor: nn.Module | None
    adapter: str | Path | None
    class_name: str | None
    k_shot: int
    few_shot_source: Path | None

    _adapters_are_loaded: bool
    _keeps_class: bool = False
    _keeps_references: bool = False
    _references_drawn_from: object = None

    def prepare(self, datamodule: AnomalibDataModule | None = None) -> None:
        """Set the class, load the adapters and draw the references, as far as that is still to be done.

        It runs by itself before validation, test, prediction and export.

        Args:
            datamodule: Where class and references come from, unless arguments tell. ``None``: the trainer's, if any.

        Raises:
            ValueError: If there are too few references, or they cannot be read.
            RuntimeError: If references are asked for and there is nowhere to draw them from, or if published adapters
                cannot be downloaded.
        """
        datamodule = datamodule or self._datamodule
        if not self._adapters_are_loaded:
            self._load_published_adapters(datamodule)
        if self.adapter is None and not self.model.trained_on:
            logger.warning("The adapters are untrained. Pass `adapter`, a checkpoint, or train them first.")
        class_name = self._find_class_name(datamodule)
        if class_name != self.model.class_name:
            logger.info("Class name: %s", class_name)
            self.model.setup(class_name)
            self._reset_calibration()
        if self.k_shot:
            self._draw_references(datamodule)
        elif self.model.is_few_shot:
            logger.warning("The checkpoint holds %d reference images; it stays few-shot.", self.model.k_shot)

    def ensure_prepared(self, datamodule: AnomalibDataModule | None = None) -> None:
        """Prepare the model, unless it is: what was set and calibrated stays, whatever the seed and datamodule are now.

        References that have been drawn also stay when ``k_shot`` or ``few_shot_source`` are changed.

        Args:
            datamodule: As for :meth:`prepare`.
        """
        has_class = self.model.class_name is not None and self.class_name in {None, self.model.class_name}
        has_references = self.model.is_few_shot or not self.k_shot
        if not (self._adapters_are_loaded and has_class and has_references):
            self.prepare(datamodule)

    def settle(self) -> None:
        """Keep class, adapters and references as they are, also in checkpoints, whatever datamodule comes later."""
        self._adapters_are_loaded = self._keeps_class = True
        self.class_name = self.model.class_name if self.model.class_name != ANY_CLASS else None
        self._keep_references()

    def _keep_references(self) -> None:
        self._keeps_references = True
        self.k_shot, self.few_shot_source = self.model.k_shot, None
        now = {"class_name": self.class_name, "k_shot": self.k_shot, "few_shot_source": None}
        self.hparams.update({name: value for name, value in now.items() if name in self.hparams})

    def __getstate__(self) -> dict[str, Any]:
        """Leave behind what belongs to this process alone: Lightning its trainer, and this the datamodule."""
        return {**super().__getstate__(), "_references_drawn_from": None}

    @property
    def _datamodule(self) -> AnomalibDataModule | None:
        trainer = getattr(self, "_trainer", None)
        return getattr(trainer, "datamodule", None)

    def _find_class_name(self, datamodule: AnomalibDataModule | None) -> str:
        """Argument, else checkpoint, else the datamodule's category, else what was set before, else ``"object"``."""
        category: str = getattr(datamodule, "category", None) or ""
        if self.class_name is not None:
            return self.class_name
        if self._keeps_class and self.model.class_name is not None:
            if category and category != self.model.class_name:
                logger.warning(
                    "The checkpoint was made for class %r and stays with it, although the datamodule's category is %r. "
                    "Pass class_name=%r to change it.",
                    self.model.class_name,
                    category,
                    category,
                )
            return self.model.class_name
        return category or self.model.class_name or ANY_CLASS

    def _load_published_adapters(self, datamodule: AnomalibDataModule | None) -> None:
        of_real_clip = "mvtec" if isinstance(datamodule, Visa) else "visa"
        name = TAG if self.model.backbone == BACKBONE else of_real_clip
        logger.info("Adapters: %r, which have not seen %s", name, getattr(datamodule, "name", "the images"))
        self.model.load_adapters(name)
        self._adapters_are_loaded = True

    def _draw_references(self, datamodule: AnomalibDataModule | None) -> None:
        if self._keeps_references and self.model.is_few_shot:
            if self.k_shot != self.model.k_shot or self.few_shot_source is not None:
                logger.warning(
                    "The checkpoint's %d reference images stay in use, whatever k_shot=%d and few_shot_source=%s ask "
                    "for. Leave the checkpoint out, and pass it as `adapter`, to draw others.",
                    self.model.k_shot,
                    self.k_shot,
                    self.few_shot_source,
                )
            return
        seed = torch.initial_seed()  # what was set last, however many random numbers have been drawn since
        if self.few_shot_source is not None:
            drawn_from: object = (self.few_shot_source, seed)
            if drawn_from == self._references_drawn_from:
                return
            files = files_in_source(self.few_shot_source)
        elif datamodule is not None:
            drawn_from = (datamodule, datamodule.category, seed)
            if drawn_from == self._references_drawn_from:
                return
            if not hasattr(datamodule, "train_data"):
                datamodule.prepare_data()
                datamodule.setup()
            files = normal_training_files(datamodule)
        elif self.model.is_few_shot:
            return
        else:
            msg = (
                f"k_shot={self.k_shot} asks for reference images, but there is neither a datamodule with a training "
                "split nor `few_shot_source`. Pass one of the two, or a checkpoint that holds references. (anomalib "
                "hands a datamodule to an OpenVINO export alone, not to torch and ONNX.)"
            )
            raise RuntimeError(msg)
        chosen = draw(files, self.k_shot, seed)
        logger.info("Reference images: %s", ", ".join(map(str, chosen)))
        self.model.setup(reference_images=self._read_references(chosen))
        self.model.reference_files = tuple(map(str, chosen))
        self._references_drawn_from = drawn_from
        self._reset_calibration()

    def _read_references(self, files: Iterable[Path]) -> Tensor:
        transform: Any = getattr(self.pre_processor, "transform", None) or nn.Identity()
        return read_references(files, transform)

    def _reset_calibration(self) -> None:
        self.model.reset_calibration()
        if isinstance(self.post_processor, AprilGanPostProcessor):
            self.post_processor.reset_calibration(self.model.largest_map_value)
