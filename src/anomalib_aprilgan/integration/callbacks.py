# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""The callback through which a trainer reaches the default components of a model."""

from typing import Any

from anomalib.metrics import Evaluator
from anomalib.models.components import AnomalibModule
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from lightning.pytorch import Callback, LightningModule, Trainer

from anomalib_aprilgan.integration.checkpoints import check_checkpoint
from anomalib_aprilgan.integration.command_line import end_command, with_short_errors
from anomalib_aprilgan.integration.post_processing import AprilGanPostProcessor
from anomalib_aprilgan.integration.pre_processing import AprilGanPreProcessor

__all__ = ["ModelCallback", "model_callbacks"]


def model_callbacks(model: AnomalibModule, components: list[Callback]) -> list[Callback]:
    """Return the callbacks of a model for one run.

    A trainer keeps the callbacks of the models that it ran before. Lightning replaces those whose class a callback of
    the new model has, and of several base classes only one, whichever comes first. So subclasses of anomalib's
    components do not become callbacks themselves, and idle components of anomalib's own classes take the places of
    those that an earlier model has left.

    Args:
        model: The model.
        components: Its components that are callbacks.
    """
    direct = [one for one in components if not isinstance(one, AprilGanPreProcessor | AprilGanPostProcessor)]
    post_processor = PostProcessor(enable_normalization=False, enable_thresholding=False)
    idle: list[Callback] = [PreProcessor(), post_processor, Evaluator()]
    present = {type(one) for one in direct}
    return [ModelCallback(model), *direct, *(one for one in idle if type(one) not in present)]


class ModelCallback(Callback):
    """Calls the default pre- and post-processor of one model, and explains checkpoints that cannot be used.

    Args:
        model: The model. Runs of other models with the same trainer are left alone.
    """

    def __init__(self, model: AnomalibModule) -> None:
        self._model = model

    def _pre_processor(self, module: LightningModule) -> AprilGanPreProcessor | None:
        component = self._model.pre_processor if module is self._model else None
        return component if isinstance(component, AprilGanPreProcessor) else None

    def _post_processor(self, module: LightningModule) -> AprilGanPostProcessor | None:
        component = self._model.post_processor if module is self._model else None
        return component if isinstance(component, AprilGanPostProcessor) else None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:  # noqa: ANN401
        """Transform a batch."""
        if (pre_processor := self._pre_processor(pl_module)) is not None:
            pre_processor.on_train_batch_start(trainer, pl_module, *args)

    def on_validation_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:  # noqa: ANN401
        """Transform a batch."""
        if (pre_processor := self._pre_processor(pl_module)) is not None:
            pre_processor.on_validation_batch_start(trainer, pl_module, *args[:2])

    def on_test_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:  # noqa: ANN401
        """Transform a batch."""
        if (pre_processor := self._pre_processor(pl_module)) is not None:
            pre_processor.on_test_batch_start(trainer, pl_module, *args)

    def on_predict_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:  # noqa: ANN401
        """Transform a batch."""
        if (pre_processor := self._pre_processor(pl_module)) is not None:
            pre_processor.on_predict_batch_start(trainer, pl_module, *args)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:  # noqa: ANN401
        """Take scores and maps for thresholds and ranges."""
        if (post_processor := self._post_processor(pl_module)) is not None:
            post_processor.on_validation_batch_end(trainer, pl_module, *args)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compute thresholds and ranges."""
        if (post_processor := self._post_processor(pl_module)) is not None:
            post_processor.on_validation_epoch_end(trainer, pl_module)

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:  # noqa: ANN401
        """Post-process a batch."""
        if (post_processor := self._post_processor(pl_module)) is not None:
            post_processor.on_test_batch_end(trainer, pl_module, *args)

    def on_predict_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:  # noqa: ANN401
        """Post-process a batch."""
        if (post_processor := self._post_processor(pl_module)) is not None:
            post_processor.on_predict_batch_end(trainer, pl_module, *args)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Explain the fault of the run's checkpoint, if it has one. On the command line, print the message alone."""
        if pl_module is not self._model or not isinstance(exception, Exception):
            return
        if trainer.ckpt_path is not None:
            with_short_errors(check_checkpoint)(trainer.ckpt_path)
        end_command(exception)
