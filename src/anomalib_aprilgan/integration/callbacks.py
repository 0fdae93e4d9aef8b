# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""The callback through which a trainer reaches the default components of a model."""

import logging
from typing import Any, cast

from anomalib.data import Batch
from anomalib.metrics import Evaluator
from anomalib.models.components import AnomalibModule
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from anomalib.visualization import ImageVisualizer
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from anomalib_aprilgan.integration.checkpoint_files import WholeCheckpoints
from anomalib_aprilgan.integration.checkpoints import check_checkpoint
from anomalib_aprilgan.integration.command_line import end_command, with_short_errors
from anomalib_aprilgan.integration.features import HasFeatures, close_store
from anomalib_aprilgan.integration.metrics import accept_no_images, sort_values
from anomalib_aprilgan.integration.post_processing import AprilGanPostProcessor
from anomalib_aprilgan.integration.pre_processing import AprilGanPreProcessor
from anomalib_aprilgan.integration.predictions import PredictionTable
from anomalib_aprilgan.integration.processes import drop_repeated_images
from anomalib_aprilgan.integration.run_images import name_unreadable_files
from anomalib_aprilgan.integration.visualizer import AprilGanVisualizer

__all__ = ["ModelCallback", "model_callbacks"]

logger = logging.getLogger(__name__)

DEFAULT_COMPONENTS = (AprilGanPreProcessor, AprilGanPostProcessor, AprilGanVisualizer)
"""Classes of the components that are called by :class:`ModelCallback`."""


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
    direct = [one for one in components if not isinstance(one, DEFAULT_COMPONENTS)]
    post_processor = PostProcessor(enable_normalization=False, enable_thresholding=False)
    visualizer = ImageVisualizer()
    visualizer.fields, visualizer.overlay_fields = [], []
    idle: list[Callback] = [PreProcessor(), post_processor, Evaluator(), visualizer]
    present = {type(one) for one in direct}
    return [ModelCallback(model), *direct, *(one for one in idle if type(one) not in present)]


class ModelCallback(Callback):
    """Calls the default components of one model and its table of predictions. Looks after the run's checkpoints.

    Args:
        model: The model. Runs of other models with the same trainer are left alone.
    """

    def __init__(self, model: AnomalibModule) -> None:
        self._model = model
        options = getattr(model, "predictions", None)
        self._table = None if options is None else PredictionTable(options)

    def _call(self, hook: str, trainer: Trainer, module: LightningModule, *args: Any) -> None:  # noqa: ANN401
        """Call a hook of the components in the order in which a batch passes through them."""
        if module is not self._model or any(
            isinstance(arg, Batch) and not len(cast("Tensor", arg.image)) for arg in args
        ):
            return
        model = self._model
        for component in (model.pre_processor, model.post_processor, model.visualizer, self._table):
            if isinstance(component, (*DEFAULT_COMPONENTS, PredictionTable)):
                getattr(component, hook)(trainer, module, *args)

    def _close_store(self, module: LightningModule) -> None:
        if module is self._model and "model" in module._modules:  # noqa: SLF001  # a run may end before there is one
            close_store(cast("HasFeatures", module))

    def _drop_repeated_images(self, trainer: Trainer, module: LightningModule, *args: Any) -> None:  # noqa: ANN401
        """Count each image once. Components of the user's get no batch without images, which they may not accept."""
        if module is not self._model:
            return
        components = (module.pre_processor, module.post_processor, module.visualizer)
        are_ours = all(one is None or isinstance(one, DEFAULT_COMPONENTS) for one in components)
        smallest = 0 if are_ours and accept_no_images(cast("Evaluator | None", module.evaluator)) else 1
        drop_repeated_images(trainer, *args, smallest=smallest)

    def _sort_values(self, module: LightningModule, metrics: str) -> None:
        if module is self._model and isinstance(module.evaluator, Evaluator):
            sort_values(getattr(module.evaluator, metrics))

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the checkpoints of the run in one step."""
        del stage
        if pl_module is self._model:
            WholeCheckpoints.begin(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:  # noqa: ANN401
        """Transform a batch."""
        self._call("on_train_batch_start", trainer, pl_module, *args)

    def on_validation_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:  # noqa: ANN401
        """Drop what another process scores as well, then transform the batch."""
        self._drop_repeated_images(trainer, pl_module, *args)
        self._call("on_validation_batch_start", trainer, pl_module, *args[:2])  # anomalib takes no dataloader_idx

    def on_test_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:  # noqa: ANN401
        """Drop what another process scores as well, then transform the batch."""
        self._drop_repeated_images(trainer, pl_module, *args)
        self._call("on_test_batch_start", trainer, pl_module, *args)

    def on_predict_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:  # noqa: ANN401
        """Transform a batch."""
        self._call("on_predict_batch_start", trainer, pl_module, *args)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:  # noqa: ANN401
        """Take scores and maps for thresholds and ranges."""
        self._call("on_validation_batch_end", trainer, pl_module, *args)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compute thresholds and ranges, and prepare the metrics, which the evaluator computes after this."""
        self._sort_values(pl_module, "val_metrics")
        self._call("on_validation_epoch_end", trainer, pl_module)

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove files of an earlier run. The model has checked its images before."""
        self._call("on_test_epoch_start", trainer, pl_module)

    def on_predict_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove files of an earlier run, the table first, since it names the others. Images were checked before."""
        if self._table is not None and pl_module is self._model:
            self._table.begin(trainer)
        self._call("on_predict_epoch_start", trainer, pl_module)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prepare the metrics, which the evaluator computes after this."""
        del trainer
        self._sort_values(pl_module, "test_metrics")

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:  # noqa: ANN401
        """Post-process a batch, and draw its pictures."""
        self._call("on_test_batch_end", trainer, pl_module, *args)

    def on_predict_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:  # noqa: ANN401
        """Post-process a batch, draw its pictures, and write its rows."""
        self._call("on_predict_batch_end", trainer, pl_module, *args)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sum up the predictions."""
        self._call("on_predict_end", trainer, pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Print what predictions amount to, or which threshold a validation has set, below the progress bar."""
        WholeCheckpoints.end(trainer)
        self._close_store(pl_module)
        self._call("teardown", trainer, pl_module, stage)
        calibration = getattr(pl_module.post_processor, "calibration", None) if pl_module is self._model else None
        if stage == TrainerFn.VALIDATING and calibration is not None and trainer.progress_bar_callback is not None:
            trainer.print(calibration)
            if calibration.warning:
                logger.warning(calibration.warning)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Explain faults of the run's checkpoint or images. On the command line, print the message alone."""
        WholeCheckpoints.end(trainer)
        self._close_store(pl_module)
        if pl_module is not self._model or not isinstance(exception, Exception):
            return
        if trainer.ckpt_path is not None:
            with_short_errors(check_checkpoint)(trainer.ckpt_path)
        with_short_errors(name_unreadable_files)(trainer, exception)
        end_command(exception)
