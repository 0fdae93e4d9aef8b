# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""A module of anomalib around the plain model: made when needed, set up by value, saved with its setup."""

import logging
from dataclasses import replace
from pathlib import Path
from threading import RLock
from typing import Any, cast

import torch
from anomalib import LearningType
from anomalib.data import AnomalibDataModule
from anomalib.metrics import Evaluator
from anomalib.models.components import AnomalibModule
from anomalib.pre_processing import PreProcessor
from lightning.pytorch import Callback, LightningModule
from torch import nn
from typing_extensions import Self

from anomalib_aprilgan.files.downloads import MissingFileError
from anomalib_aprilgan.files.paths import checked_path
from anomalib_aprilgan.integration import checkpoints, preparation, runs
from anomalib_aprilgan.integration.building import Blueprint
from anomalib_aprilgan.integration.callbacks import model_callbacks
from anomalib_aprilgan.integration.checkpoint_files import WholeCheckpoints
from anomalib_aprilgan.integration.command_line import with_short_errors
from anomalib_aprilgan.integration.components import check_components, components_to_restore, write_components
from anomalib_aprilgan.integration.metrics import paper_evaluator
from anomalib_aprilgan.integration.post_processing import AprilGanPostProcessor
from anomalib_aprilgan.integration.pre_processing import AprilGanPreProcessor
from anomalib_aprilgan.integration.setup import AUTO_ADAPTER, Arguments
from anomalib_aprilgan.integration.visualizer import AprilGanVisualizer
from anomalib_aprilgan.method.setup import Setup
from anomalib_aprilgan.torch_model import AprilGanModel

__all__ = ["SetupModule"]

logger = logging.getLogger(__name__)

_MAKING = RLock()
"""Held while a plain model is made, so that several threads get the same one."""


class SetupModule(LightningModule):
    """Holds a plain model, and keeps it set up for what arguments, checkpoint and datamodule say.

    It is a base class beside ``AnomalibModule``, not below it: anomalib finds models among the direct subclasses of
    that class.

    Attributes:
        model: The plain model. It is made on first use, if no argument names a backbone: a checkpoint may do so.
        adapter: Explicit argument, see ``AprilGan``; may be set later.
        class_name: Likewise.
        k_shot: Likewise.
        few_shot_source: Likewise.
    """

    model: AprilGanModel
    pre_processor: nn.Module | None
    post_processor: nn.Module | None
    adapter: str | None
    class_name: str | None
    k_shot: int | None
    few_shot_source: Path | None
    _blueprint: Blueprint
    _given_components: frozenset[str]

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        """Make the plain model when it is used for the first time."""
        if name == "model" and "_blueprint" in self.__dict__:
            with _MAKING:
                if "model" not in self._modules:
                    self._make_model()
        return super().__getattr__(name)

    def _make_model(self, saved: dict[str, Any] | None = None) -> None:
        """Make the plain model, with the architecture of a checkpoint where no argument says otherwise."""
        adapter = self.adapter if saved is None and self.adapter != AUTO_ADAPTER else None
        made = cast("AprilGanModel | None", self._modules.get("model"))
        with torch.inference_mode(mode=False):  # a run may be what uses the model first
            try:
                model = self._blueprint.make(saved, made, adapter)
            except MissingFileError as error:
                if saved is not None and self.adapter == AUTO_ADAPTER:  # the checkpoint brings the adapters
                    raise
                data = runs.describe(runs.datamodule_of(runs.running_trainer(self)))
                raise self._blueprint.with_adapters(error, self.arguments, data) from error
            if model is not made:
                self.model = model.to(device=self.device, dtype=cast("torch.dtype", self.dtype)).train(self.training)
        if isinstance(self.pre_processor, AprilGanPreProcessor) and "pre_processor" not in self._given_components:
            self.pre_processor.resize_to(model.image_size)

    @property
    def arguments(self) -> Arguments:
        """What the user asked for, by arguments or by attributes that were set later."""
        given = self.few_shot_source
        source = None if given is None else str(checked_path(given, "few_shot_source").absolute())
        return Arguments(self.class_name, None if self.adapter is None else str(self.adapter), self.k_shot, source)

    @property
    def setup_record(self) -> Setup:
        """What the model is set up for: class, adapters, reference images, options of the post-processor."""
        config = getattr(self.post_processor, "checkpoint_config", dict)
        return replace(self.model.state.record, post_processor=config())

    @property
    def reference_files(self) -> tuple[str, ...]:
        """Paths of the reference images in the memory banks."""
        return self.model.reference_files

    def prepare(self, datamodule: AnomalibDataModule | None = None) -> None:
        """Set the class, load the adapters and draw the reference images, where that changes anything.

        It is called before validation, test and prediction. If anything changes, the calibration is reset.

        Args:
            datamodule: Where class and references come from if arguments and checkpoint do not say. ``None``: that of
                the present run, if any.

        Raises:
            ValueError: If there are too few references, or they cannot be read.
            RuntimeError: If references are asked for and there is nothing to draw them from, or if published adapters
                cannot be downloaded.
        """
        preparation.prepare(self, datamodule)

    def ensure_prepared(self, datamodule: AnomalibDataModule | None = None) -> None:
        """Prepare what is missing, for instance before an export. What is set up stays, whatever the datamodule is."""
        preparation.prepare(self, datamodule, only_missing=True)

    def ensure_adapters(self) -> None:
        """Load the adapters that the arguments ask for, if they are not in use."""
        preparation.ensure_adapters(self)

    def add_references(self, source: str | Path) -> None:
        """Add reference images to the memory banks. They stay, whatever datamodule comes later.

        Thresholds and ranges stay, unless these are the first references; validate again to renew them.

        Args:
            source: A folder, one image, or a text file that lists image paths.

        Raises:
            ValueError: If there are none, or they cannot be read.
            RuntimeError: If an Engine is running the model.
        """
        runs.refuse_during_run(self, "add_references")
        self.ensure_prepared()
        preparation.add_references(self, source)

    @property
    def learning_type(self) -> LearningType:
        """Zero-shot or few-shot; with ``adapter=None`` a model that is trained, for which anomalib has one type."""
        if self.adapter is None:
            return LearningType.ONE_CLASS
        made = cast("AprilGanModel | None", self._modules.get("model"))
        is_few_shot = made is not None and made.is_few_shot if self.k_shot is None else self.k_shot > 0
        return LearningType.FEW_SHOT if is_few_shot else LearningType.ZERO_SHOT

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """No sanity check before training: there is nothing in the adapters to check yet."""
        return {"num_sanity_val_steps": 0}

    @classmethod
    def configure_pre_processor(cls, image_size: tuple[int, int] | None = None) -> PreProcessor:
        """Make the default pre-processor.

        Args:
            image_size: Height and width in pixels, which must be equal. ``None``: 518 x 518.

        Raises:
            ValueError: If height and width differ.
        """
        height, width = image_size or (518, 518)
        if height != width:
            msg = f"Expected argument `image_size` to be square, but got {image_size}."
            raise ValueError(msg)
        return AprilGanPreProcessor(height)

    def configure_post_processor(self) -> AprilGanPostProcessor:
        """Make the default post-processor."""
        return AprilGanPostProcessor()

    @staticmethod
    def configure_evaluator() -> Evaluator:
        """Make the default evaluator: the paper's seven metrics."""
        return paper_evaluator()

    @classmethod
    def configure_visualizer(cls) -> AprilGanVisualizer:
        """Make the default visualizer."""
        return AprilGanVisualizer()

    def configure_callbacks(self) -> list[Callback]:
        """Return the components as callbacks."""
        return model_callbacks(cast("AnomalibModule", self), cast("list[Callback]", super().configure_callbacks()))

    @classmethod
    @with_short_errors
    def load_from_checkpoint(  # type: ignore[override]
        cls,
        checkpoint_path: str | Path,
        *args: Any,  # noqa: ANN401
        **kwargs: Any,  # noqa: ANN401
    ) -> Self:
        """Load a model from a checkpoint. CLIP's weights are not in it and must be at hand.

        Args:
            checkpoint_path: The checkpoint.
            *args: anomalib's further arguments.
            **kwargs: anomalib's further arguments, and arguments of this class, which come before the checkpoint's.

        Raises:
            ValueError: If the checkpoint is damaged, would run code, or belongs to another model.
        """
        checkpoints.check_checkpoint(checkpoint_path)
        with checkpoints.named(checkpoint_path):
            model = super().load_from_checkpoint(checkpoint_path, *args, **kwargs)
        model.ensure_adapters()
        return model

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the setup with the state; leave out metrics, and arguments, which the setup makes needless."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["hyper_parameters"] = {"learning_rate": self.learning_rate}
        checkpoint["state_dict"] = checkpoints.without_metrics(checkpoint)
        write_components(checkpoint, cast("AnomalibModule", self))
        if (trainer := getattr(self, "_trainer", None)) is not None:  # the user may save a checkpoint after a run
            WholeCheckpoints.begin(trainer, once=runs.running_trainer(self) is None)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take from the checkpoint what no argument says: the architecture, and options of the components."""
        trainer = runs.running_trainer(self)
        if trainer is not None and trainer.ckpt_path is None:
            checkpoints.discard(checkpoint, self)
            return
        module = cast("Any", self)
        with checkpoints.named(getattr(trainer, "ckpt_path", None)):
            architecture = checkpoints.saved_architecture(checkpoints.saved_state(checkpoint))
            check_components(checkpoint, module, self._given_components)
            self._make_model(architecture)
        if "pre_processor" not in self._given_components:  # an earlier checkpoint may have replaced it
            self.pre_processor = AprilGanPreProcessor(self.model.image_size)
        if "post_processor" not in self._given_components:
            self.post_processor = self.configure_post_processor()
        super().on_load_checkpoint(components_to_restore(checkpoint, module, self._given_components))
        datamodule = runs.datamodule_of(trainer)
        if datamodule is not None:  # its workers resize images as the pre-processor does
            datamodule.setup(self.trainer.state.fn)

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:  # noqa: ANN401
        """Load a state. Metrics are no part of it; of another post-processor, what both have in common is taken.

        Thresholds and ranges are reset if the state has none, or was calibrated with another image size or other method
        options.
        """
        extra_state = state_dict.get(checkpoints.STATE_KEY)
        if extra_state is not None and "model" not in self._modules:
            self._make_model(checkpoints.saved_architecture(extra_state))
        module = cast("AnomalibModule", self)
        fitted = checkpoints.fitted_state(state_dict, module)
        with checkpoints.named(getattr(runs.running_trainer(self), "ckpt_path", None)):
            checkpoints.refuse_misfits(fitted, module, strict=strict)
        loaded = super().load_state_dict(fitted, strict, assign)
        if not checkpoints.is_calibrated_for(state_dict, module):
            preparation.reset_calibration(self)
        if extra_state is not None and self.reference_files:
            logger.info("Reference images in the state: %s", ", ".join(self.reference_files))
        return loaded
