# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""APRIL-GAN as a model of anomalib: the hooks that Engine, command line and checkpoints call."""

import logging
from pathlib import Path
from typing import Any, Literal, cast

import torch
from anomalib.data import Batch, InferenceBatch
from anomalib.metrics import Evaluator
from anomalib.models.components import AnomalibModule
from anomalib.visualization import Visualizer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import EVAL_DATALOADERS, STEP_OUTPUT
from torch import Tensor, nn
from torch.optim import Optimizer

from anomalib_aprilgan.datamodule import AuxiliaryDataModule
from anomalib_aprilgan.export.export import Exportable
from anomalib_aprilgan.export.products import Product, apply_product
from anomalib_aprilgan.files.paths import checked_path
from anomalib_aprilgan.integration import preparation, processes, run_images, runs, training
from anomalib_aprilgan.integration.building import Blueprint
from anomalib_aprilgan.integration.calibration import MapRange
from anomalib_aprilgan.integration.command_line import with_short_errors
from anomalib_aprilgan.integration.features import AUTO_FEATURES, checked_features, open_store
from anomalib_aprilgan.integration.finite_scores import mark_unusable_images, refuse_non_finite_scores
from anomalib_aprilgan.integration.metrics import paper_evaluator
from anomalib_aprilgan.integration.post_processing import snapshot
from anomalib_aprilgan.integration.pre_processing import AprilGanPreProcessor
from anomalib_aprilgan.integration.predictions import PredictionFiles
from anomalib_aprilgan.integration.quiet import quieten_command
from anomalib_aprilgan.integration.setup import AUTO_ADAPTER
from anomalib_aprilgan.integration.setup_module import SetupModule
from anomalib_aprilgan.method.architecture import AUTO
from anomalib_aprilgan.method.options import MethodOptions
from anomalib_aprilgan.method.recent_scores import RecentScores
from anomalib_aprilgan.method.scoring import image_score
from anomalib_aprilgan.torch_model import AprilGanModel
from anomalib_aprilgan_plugin import register

__all__ = ["AprilGan"]

logger = logging.getLogger(__name__)


class AprilGan(Exportable, SetupModule, AnomalibModule):  # type: ignore[misc]  # to_onnx: anomalib's, not Lightning's
    """APRIL-GAN: zero- and few-shot anomaly detection with a frozen CLIP (arXiv 2305.17382).

    With adapters it is a zero-shot model, or with ``k_shot`` a few-shot one: ``Engine.test`` and ``Engine.predict``
    work at once, ``Engine.fit`` only collects thresholds. With ``adapter=None``, ``Engine.fit`` trains adapters on an
    ``AuxiliaryDataModule``.

    An argument that is given comes first, then a checkpoint, then the datamodule, then the default.

    Args:
        backbone: Name of an open_clip architecture with a standard ViT, also one added with
            ``open_clip.add_model_config``, or ``"ViT-builtin"``, the small CLIP in this package. Default: that of the
            checkpoint, else ``"ViT-L-14-336"``.
        pretrained: Tag of open_clip, path of a CLIP state dict, or ``None`` for random weights. ``"auto"``: those of
            the checkpoint, else OpenAI's, or with ViT-builtin its own.
        image_size: Height and width of the images in pixels; without windows a multiple of the patch size. Default:
            that of the checkpoint, else twice the window, else 518 for ViT-L-14-336, else the size that the backbone
            was made for.
        layers: Stages that get an adapter: blocks of the image tower, counted from 1, in rising order. Default: those
            of the checkpoint, else four evenly spaced ones, for ViT-L-14-336 the paper's (6, 12, 18, 24); with
            ViT-builtin, the last one.
        reference_layers: Stages that are kept in memory banks. Default: those of the checkpoint, else the same as
            ``layers`` (with ViT-builtin: all).
        quick_gelu: Run CLIP with QuickGELU. The published adapters belong to GELU. Default: as the checkpoint, else no.
        adapter: ``"visa"``, ``"mvtec"``, ``"builtin"``, the path of an adapter file or of a checkpoint, or ``None`` to
            train adapters. ``"auto"``: those of the checkpoint, else the published ones that were not trained on the
            tested data (``"mvtec"`` for a ``Visa`` datamodule, else ``"visa"``; with ViT-builtin, its own).
        class_name: Name of the object or surface. Default: that of the checkpoint, else the datamodule's category, else
            ``"object"``.
        k_shot: Number of normal reference images; 0 is zero-shot. They are drawn without replacement; the seed of
            ``seed_everything`` decides which, else a fixed one. Default: as the checkpoint, else 0.
        few_shot_source: Where to draw from: a folder, one image, or a text file that lists image paths. Default: the
            normal images of the datamodule's training split.
        learning_rate: Learning rate of Adam, for the adapters.
        method: Options that change the method. Default: those of the checkpoint, else the paper's method.
        window: Height and width in pixels of the windows that images are cut into, for defects that are small in large
            photographs; a multiple of the patch size and smaller than ``image_size``. 0: whole images. Default: as the
            checkpoint, else 0.
        pre_processor: anomalib's component; ``True`` for the default (8-bit resizing, CLIP's normalisation).
        post_processor: anomalib's component; ``True`` for the default.
        evaluator: anomalib's component; ``True`` for the default (the paper's seven metrics; in validations of a
            training, all but PRO as ``val_image_AUROC`` and so on). No part of checkpoints.
        visualizer: anomalib's component; ``True`` for the default, with score, label and proportions in the picture.
        predictions: Which files ``Engine.predict`` writes beside the pictures. ``True``: the table
            ``predictions.csv``; ``False``: none.
        on_bad_image: What to do about image files that cannot be used, such as damaged ones: ``"error"`` names them
            before a run starts; ``"skip"`` names them in a warning and drops them from the run's datasets.
        features: Folder where runs of an Engine store what CLIP's image tower returns, in half precision, so that no
            image is encoded twice. ``"cache"``: the folder that the environment variable ANOMALIB_APRILGAN_FEATURES
            names, else a cache. ``"auto"``: likewise in trainings; other runs only if that variable is set. ``None``:
            nothing is stored.

    Raises:
        ValueError: If an argument is out of its range or an adapter does not fit.
        RuntimeError: If weights must be downloaded and cannot be.

    Examples:
        >>> from anomalib.data import MVTecAD
        >>> from anomalib.engine import Engine
        >>> model = AprilGan("ViT-builtin", k_shot=4)  # without "ViT-builtin": the paper's CLIP, which is downloaded
        >>> engine, data = Engine(enable_progress_bar=False), MVTecAD(category="metal_nut", num_workers=0)
        >>> (metrics,) = engine.test(model, datamodule=data, verbose=False)
        >>> model.setup_record.class_name, len(model.reference_files), sorted(metrics)[:2]
        ('metal_nut', 4, ['image_AUPR', 'image_AUROC'])
    """

    @with_short_errors
    def __init__(
        self,
        backbone: str | None = None,
        pretrained: str | Path | None = AUTO,
        image_size: int | None = None,
        layers: tuple[int, ...] | None = None,
        reference_layers: tuple[int, ...] | None = None,
        quick_gelu: bool | None = None,
        adapter: str | Path | None = AUTO_ADAPTER,
        class_name: str | None = None,
        k_shot: int | None = None,
        few_shot_source: str | Path | None = None,
        learning_rate: float = 1e-3,
        method: MethodOptions | None = None,
        window: int | None = None,
        pre_processor: nn.Module | bool = True,
        post_processor: nn.Module | bool = True,
        evaluator: Evaluator | bool = True,
        visualizer: Visualizer | bool = True,
        predictions: PredictionFiles | bool = True,
        on_bad_image: Literal["error", "skip"] = "error",
        features: str | Path | None = AUTO_FEATURES,
    ) -> None:
        quieten_command()
        if not isinstance(learning_rate, float | int) or not 0 < learning_rate < float("inf"):
            msg = f"Expected argument `learning_rate` to be positive, such as 0.001, but got {learning_rate!r}."
            raise ValueError(msg)
        if on_bad_image not in {"error", "skip"}:
            msg = f"Expected argument `on_bad_image` to be 'error' or 'skip', but got {on_bad_image!r}."
            raise ValueError(msg)
        others: dict[str, Any] = {
            "image_size": image_size,
            "layers": layers,
            "quick_gelu": quick_gelu,
            "window": window,
        }
        blueprint = Blueprint(backbone, pretrained, method, reference_layers=reference_layers, **others)
        super().__init__(
            pre_processor=(
                AprilGanPreProcessor(blueprint.default_image_size) if pre_processor is True else pre_processor
            ),
            post_processor=post_processor,
            evaluator=paper_evaluator(watches_training=adapter is None) if evaluator is True else evaluator,
            visualizer=visualizer,
        )
        components = {"pre_processor": pre_processor, "post_processor": post_processor, "visualizer": visualizer}
        self._given_components = frozenset(name for name, value in components.items() if value is not True)
        self._blueprint = blueprint
        self.predictions = (
            (PredictionFiles() if predictions else None) if isinstance(predictions, bool) else predictions
        )
        self.on_bad_image: str = on_bad_image
        self.features = checked_features(features)
        self.adapter = None if adapter is None else str(adapter)
        self.class_name = class_name
        self.k_shot = k_shot
        self.few_shot_source = None if few_shot_source is None else checked_path(few_shot_source, "few_shot_source")
        self.learning_rate = learning_rate
        self._map_range = MapRange()
        self.recent_scores: RecentScores | None = None
        _ = self.arguments  # checks them
        self.model: AprilGanModel
        if blueprint.has_backbone:  # else a checkpoint may bring another one, so the model is made on first use
            self._make_model()

    # ---- Products ---------------------------------------------------------------------------------------------------

    @property
    def product(self) -> Product:
        """A copy of what the model knows of its product: class, references, calibration."""
        self.ensure_prepared()
        return Product.of(self)

    def switch_to(self, product: Product) -> None:
        """Use another product, without loading or encoding anything. It replaces class, references and calibration.

        Args:
            product: Made by a model with the same CLIP, adapters and stages.

        Raises:
            ValueError: If it was made by another model; nothing has changed then.
            RuntimeError: If an Engine is running the model.
        """
        runs.refuse_during_run(self, "switch_to")
        with self.model.state.locked():
            apply_product(self, product)
            self.class_name, self.k_shot, self.few_shot_source = None, None, None

    # ---- Stages -----------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Limit a training, or refuse one that trains nothing. Let datamodules do without a validation split."""
        if self.on_bad_image == "skip":
            run_images.drop_bad_images(self.trainer)
        datamodule = runs.datamodule_of(self.trainer)
        processes.refuse_idle_processes(self.trainer)
        if stage != TrainerFn.TESTING:
            self.recent_scores = None
        if stage == TrainerFn.FITTING:
            training.limit_epochs(self.trainer)
        if stage == TrainerFn.VALIDATING and isinstance(datamodule, AuxiliaryDataModule) and self.adapter is not None:
            msg = (
                f"Expected argument `adapter` to be None for an AuxiliaryDataModule, whose images train adapters, but "
                f"got {self.adapter!r}. Pass adapter=None to train. To test adapters or to collect thresholds, use "
                "the datamodule of your own images."
            )
            raise ValueError(msg)
        if stage == TrainerFn.VALIDATING and runs.lacks_validation_split(datamodule):
            logger.warning("The datamodule has no validation split: thresholds and ranges are not collected.")
            runs.use_own_dataloader(self.trainer, self)

    # ---- Training ---------------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> Optimizer | None:
        """Adam for the adapters (section 4.1); nothing to optimise where they are given."""
        if self.adapter is not None:
            return None
        return training.make_optimizer(self.model, self.learning_rate, runs.running_trainer(self))

    def on_fit_start(self) -> None:
        """Store features, from before the images are loaded until the end of the training."""
        datamodule = runs.datamodule_of(self.trainer)
        open_store(self, [getattr(datamodule, f"{split}_data", None) for split in ("train", "val")], trains=True)

    def on_train_start(self) -> None:
        """Check all files before the first step."""
        run_images.check_files(self.trainer.train_dataloader)
        run_images.check_files(self.trainer.val_dataloaders)
        training.check_training_data(runs.datamodule_of(self.trainer))

    def on_train_batch_end(self, outputs: STEP_OUTPUT, batch: Batch[Any], batch_idx: int) -> None:
        """Record, once the adapters have changed, what they are trained on. Class and references no longer hold."""
        del outputs, batch
        if batch_idx == 0 and self.model.mark_trained(training.training_data(runs.datamodule_of(self.trainer))):
            preparation.reset_calibration(self)

    def training_step(self, batch: Batch[Any], *args: Any, **kwargs: Any) -> Tensor:  # noqa: ANN401
        """Compute the loss of the adapters: focal plus dice loss, summed over the stages.

        Args:
            batch: Images with masks; of an ``AuxiliaryDataModule`` also with class names.
            *args: Unused.
            **kwargs: Unused.

        Raises:
            ValueError: If the images have no masks.
        """
        del args, kwargs
        text_features = self._text_features(batch)
        if text_features is None:  # an earlier run may have had another class
            text_features = self._training_features()
        loss = training.compute_loss(self.model, batch, text_features)
        size = len(cast("Tensor", batch.image))
        self.log("train_loss", loss, on_step=True, on_epoch=True, prog_bar=True, batch_size=size, sync_dist=True)
        return loss

    # ---- Scoring ----------------------------------------------------------------------------------------------------

    def val_dataloader(self) -> EVAL_DATALOADERS:
        """No images: without validation data there is nothing to calibrate on, and nothing fails."""
        return []

    def on_validation_start(self) -> None:
        """Prepare the model and check all files, unless this is validation between training epochs."""
        self._map_range.clear()
        evaluator = cast("Evaluator | None", self.evaluator)
        runs.reset_metrics(self.post_processor, evaluator.val_metrics if evaluator else None)
        if self.trainer.state.fn != TrainerFn.FITTING:
            self._prepare_for(runs.evaluated_loaders(self.trainer))
            self.recent_scores = RecentScores(self.model.clip.clock)
        elif self.trainer.sanity_checking:  # reads images before `on_train_start`
            run_images.check_files(self.trainer.val_dataloaders)

    def on_test_start(self) -> None:
        """Prepare the model; check all images and masks before the first is scored."""
        evaluator = cast("Evaluator | None", self.evaluator)
        runs.reset_metrics(evaluator.test_metrics if evaluator else None)
        self._prepare_for(runs.evaluated_loaders(self.trainer))

    def on_test_end(self) -> None:
        """Free what the validation has left for the test."""
        self.recent_scores = None

    def on_predict_start(self) -> None:
        """Prepare the model; check all images before the first is scored."""
        loaders = self.trainer.predict_dataloaders
        self._prepare_for(loaders)
        runs.limit_predictions(self.trainer, len(run_images.image_files(loaders)), self.model.image_size)

    def _prepare_for(self, loaders: object) -> None:
        run_images.check_files(loaders)
        open_store(self, run_images.datasets_behind(loaders))
        self.prepare()

    def validation_step(self, batch: Batch[Any], *args: Any, **kwargs: Any) -> STEP_OUTPUT:  # noqa: ANN401
        """Score a batch. Few-shot, raw predictions are kept until the end, when the scores become final."""
        del args, kwargs
        return self._score(batch, self.recent_scores, keep=self.model.is_few_shot)

    def test_step(self, batch: Batch[Any], batch_idx: int, *args: Any, **kwargs: Any) -> STEP_OUTPUT:  # noqa: ANN401
        """Score a batch. If a validation has just scored the same images, its results are used."""
        del batch_idx, args, kwargs
        return self._score(batch, self.recent_scores)

    def predict_step(self, batch: Batch[Any], batch_idx: int, dataloader_idx: int = 0) -> STEP_OUTPUT:
        """Score a batch."""
        del batch_idx, dataloader_idx
        return self._score(batch)

    def _score(self, batch: Batch[Any], recent: RecentScores | None = None, *, keep: bool = False) -> STEP_OUTPUT:
        tensors, images = self.model.state.tensors(), cast("Tensor", batch.image)
        if not len(images):  # other processes score them
            nothing = images.new_zeros(0, *images.shape[-2:])
            return cast("STEP_OUTPUT", batch.update(pred_score=images.new_zeros(0), anomaly_map=nothing))
        with torch.no_grad():
            raw = self.model.predict_raw(images, tensors, self._text_features(batch), recent)
            if keep:
                self._map_range.add(raw, batch.gt_label)
            predictions = InferenceBatch(self.model.image_score(raw, tensors), anomaly_map=raw.anomaly_map)
        refuse_non_finite_scores(predictions, getattr(batch, "image_path", None))
        return cast("STEP_OUTPUT", batch.update(**predictions._asdict()))

    def _text_features(self, batch: Batch[Any]) -> Tensor | None:
        """Text features of the batch's own class names; without any, of the training's class if no other is set."""
        class_names = getattr(batch, "class_name", None)
        if class_names:
            return self.model.encode_classes(class_names)
        return self._training_features() if self.model.class_name is None else None

    def _training_features(self) -> Tensor:
        return self.model.encode_class(training.class_of_training(self.class_name, runs.datamodule_of(self.trainer)))

    def calibrate(self) -> tuple[Tensor, Tensor | None] | None:
        """Set the range of few-shot map maxima, at the end of a validation (section 3.3).

        :class:`AprilGanPostProcessor` calls it before it computes the threshold.

        Returns:
            The final scores and labels of this process's validation images; ``None`` for a zero-shot model.
        """
        return self._map_range.calibrate(self.model, cast("Any", self.all_gather))

    @property
    def smallest_score(self) -> float:
        """The smallest raw image score that is possible: with a probability of 0 and an empty map."""
        zero = self.model.map_range.new_zeros(1)
        return float(image_score(zero, zero, self.model.map_range)) if self.model.is_few_shot else 0.0

    def forward(self, batch: Tensor, *args: Any, **kwargs: Any) -> InferenceBatch:  # noqa: ANN401
        """Score images of any size, as exported models do.

        Several threads may call it while others call :meth:`switch_to` or :meth:`add_references`: each call uses one
        setup from beginning to end.

        Args:
            batch: RGB images of shape ``(N, 3, h, w)``: floats of any precision in [0, 1], or 8-bit integers. A
                pre-processor of your own gets them unchanged.
            *args: Unused.
            **kwargs: Unused.

        Raises:
            ValueError: If the images have another shape or type, values outside of [0, 1], or NaN.
        """
        if torch.compiler.is_compiling():  # exported graphs hold one setup, and cannot raise errors
            prediction = super().forward(batch, *args, **kwargs)
            if not isinstance(self.pre_processor, AprilGanPreProcessor):
                return prediction
            return mark_unusable_images(prediction, self.pre_processor.are_usable(batch))
        self.ensure_prepared()
        with self.model.state.locked():
            tensors, post_processor = self.model.state.tensors(), snapshot(self.post_processor)
        images = self.pre_processor(batch) if self.pre_processor else batch
        prediction = self.model(images, tensors)
        refuse_non_finite_scores(prediction)
        return post_processor(prediction) if post_processor else prediction


register()  # for programs that import this module first: when it imports anomalib, AprilGan does not exist yet
