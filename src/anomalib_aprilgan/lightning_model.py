# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""APRIL-GAN as a model of anomalib: everything that Engine, command line and checkpoints need."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Literal, cast

import torch
from anomalib import LearningType
from anomalib.data import AnomalibDataModule, AnomalibDataset, Batch, InferenceBatch, PredictDataset
from anomalib.metrics import AUPR, AUPRO, AUROC, Evaluator, F1Max
from anomalib.models.components import AnomalibModule
from anomalib.pre_processing import PreProcessor
from anomalib.visualization import Visualizer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import EVAL_DATALOADERS, STEP_OUTPUT
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from anomalib_aprilgan.checkpoint_io import ExplainingCheckpointIO, check_checkpoint
from anomalib_aprilgan.embedded import suited_settings
from anomalib_aprilgan.export import Exportable
from anomalib_aprilgan.losses import adapter_loss
from anomalib_aprilgan.post_processing import AprilGanPostProcessor
from anomalib_aprilgan.pre_processing import AprilGanPreProcessor
from anomalib_aprilgan.products import Switchable
from anomalib_aprilgan.references import check_image_files
from anomalib_aprilgan.scoring import image_score
from anomalib_aprilgan.seeding import apply_command_line_seed
from anomalib_aprilgan.torch_model import CLIP_ITSELF, AprilGanModel
from anomalib_aprilgan_plugin import register

__all__ = ["AprilGan"]

logger = logging.getLogger(__name__)

_RESTORING: ContextVar[bool] = ContextVar("restoring", default=False)
"""Set while a checkpoint is being loaded, whose adapters make those of the arguments needless."""


class AprilGan(Exportable, Switchable, AnomalibModule):
    """APRIL-GAN: zero- and few-shot anomaly detection with a frozen CLIP (arXiv 2305.17382).

    With adapters it is a zero-shot model, or with ``k_shot`` a few-shot one: ``Engine.test`` and ``Engine.predict``
    work at once, ``Engine.fit`` only collects thresholds. With ``adapter=None``, ``Engine.fit`` trains adapters on an
    ``AuxiliaryDataModule``.

    Args:
        backbone: Name of an open_clip architecture with a standard ViT, also one added with
            ``open_clip.add_model_config``. ``"ViT-demo"`` is the small one that comes with this package; the defaults
            of the next arguments suit ViT-L-14-336, and with ViT-demo its own settings stand in for them.
        pretrained: Tag of open_clip, path of a CLIP state dict, or ``None`` for random weights.
        image_size: Height and width of the images in pixels; a multiple of the patch size.
        layers: Stages that get an adapter: blocks of the image tower, counted from 1, in rising order.
        reference_layers: Stages that are kept in memory banks. ``None``: the same as ``layers`` (with ViT-demo: all).
        quick_gelu: Run CLIP with QuickGELU. The published adapters belong to GELU.
        adapter: ``"auto"`` for the published adapters that have not seen the tested data (those trained on MVTec AD for
            a ``Visa`` datamodule, else those trained on VisA; with ViT-demo, its own), ``"visa"``, ``"mvtec"``,
            ``"demo"``, the path of an adapter file or of a checkpoint, or ``None`` to train adapters. ``"clip"``: no
            adapters, but CLIP's own final norm and projection.
        class_name: Name of the object or surface. ``None``: the datamodule's category, or ``"object"``.
        k_shot: Number of normal reference images; 0 is zero-shot. They are drawn without replacement, by the seed of
            ``seed_everything``.
        few_shot_source: Where to draw from: a folder, one image, or a text file that lists image paths. ``None``: the
            normal images of the datamodule's training split.
        learning_rate: Of Adam, for the adapters.
        map_stages: Those of ``layers`` whose zero-shot maps are summed. ``None``: all; ``()``: memory banks alone.
        prompts: ``"ensemble"``, or ``"single"`` for one sentence per state.
        pre_processor: anomalib's component; ``True`` for the default (8-bit resizing, CLIP's normalisation).
        post_processor: anomalib's component; ``True`` for the default.
        evaluator: anomalib's component; ``True`` for the default (the paper's seven metrics).
        visualizer: anomalib's component; ``True`` for the default.

    Raises:
        ValueError: If an argument is out of its range or an adapter does not fit.
        RuntimeError: If weights must be downloaded and cannot be.

    Example:
        >>> from anomalib.data import MVTecAD
        >>> from anomalib.engine import Engine
        >>> Engine().test(AprilGan(k_shot=4), datamodule=MVTecAD(category="metal_nut"))  # doctest: +SKIP
    """

    def __init__(
        self,
        backbone: str = "ViT-L-14-336",
        pretrained: str | Path | None = "openai",
        image_size: int = 518,
        layers: tuple[int, ...] = (6, 12, 18, 24),
        reference_layers: tuple[int, ...] | None = None,
        quick_gelu: bool = False,
        adapter: str | Path | None = "auto",
        class_name: str | None = None,
        k_shot: int = 0,
        few_shot_source: str | Path | None = None,
        learning_rate: float = 1e-3,
        map_stages: tuple[int, ...] | None = None,
        prompts: Literal["ensemble", "single"] = "ensemble",
        pre_processor: nn.Module | bool = True,
        post_processor: nn.Module | bool = True,
        evaluator: Evaluator | bool = True,
        visualizer: Visualizer | bool = True,
    ) -> None:
        _check_arguments(class_name, k_shot, few_shot_source, learning_rate)
        # Known before the components are made, which depend on them.
        self.adapter = adapter
        self.k_shot = k_shot
        suited = suited_settings(backbone, pretrained, image_size, layers, reference_layers)
        super().__init__(
            pre_processor=AprilGanPreProcessor(suited.image_size) if pre_processor is True else pre_processor,
            post_processor=post_processor,
            evaluator=evaluator,
            visualizer=visualizer,
        )
        self.class_name = class_name
        self.few_shot_source = None if few_shot_source is None else Path(few_shot_source)
        self.learning_rate = learning_rate
        self.model: AprilGanModel = AprilGanModel(
            backbone=backbone,
            pretrained=pretrained,
            image_size=image_size,
            layers=layers,
            reference_layers=reference_layers,
            quick_gelu=quick_gelu,
            adapter=None if adapter == "auto" or (_RESTORING.get() and adapter != CLIP_ITSELF) else adapter,
            map_stages=map_stages,
            prompts=prompts,
        )
        self._adapters_are_loaded = adapter != "auto"
        self._evidence: list[tuple[Tensor, Tensor, Tensor | None]] = []  # probability, map maximum, label

    # ---- What anomalib asks -----------------------------------------------------------------------------------------

    @property
    def learning_type(self) -> LearningType:
        """Zero-shot or few-shot; with ``adapter=None`` a model that is trained, for which anomalib has one type."""
        if self.adapter is None:
            return LearningType.ONE_CLASS
        return LearningType.FEW_SHOT if self.k_shot else LearningType.ZERO_SHOT

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """No sanity check before training: there is nothing in the adapters to check yet."""
        return {"num_sanity_val_steps": 0}

    @property
    def reference_files(self) -> tuple[str, ...]:
        """The files that the memory banks were filled from."""
        return self.model.reference_files

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
        """Make the default evaluator: the paper's seven metrics, with anomalib's classes."""
        image: dict[str, Any] = {"fields": ["pred_score", "gt_label"], "prefix": "image_"}
        pixel: dict[str, Any] = {"fields": ["anomaly_map", "gt_mask"], "prefix": "pixel_", "strict": False}
        return Evaluator(
            test_metrics=[
                *(metric(**image) for metric in (AUROC, F1Max, AUPR)),
                *(metric(**pixel) for metric in (AUROC, F1Max, AUPR, AUPRO)),
            ],
        )

    def configure_optimizers(self) -> Optimizer | None:
        """Adam for the adapters (section 4.1); nothing to optimise where they are given."""
        if self.adapter is not None:
            return None
        return Adam(self.model.adapters.parameters(), lr=self.learning_rate, betas=(0.5, 0.999))

    def val_dataloader(self) -> EVAL_DATALOADERS:
        """No images: without validation data there is nothing to calibrate on, and nothing fails."""
        return []

    # ---- Before a stage ---------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Explain bad checkpoints, apply the command line's seed, and let a datamodule do without validation data.

        The seed is also applied to fresh adapters, which were made before it could be known.
        """
        ExplainingCheckpointIO.install(self.trainer)
        datamodule = self._datamodule
        if datamodule is not None and stage == "validate" and _lacks_validation_data(datamodule):
            vars(datamodule)["val_dataloader"] = self.val_dataloader  # anomalib's own would fail; see teardown
        if apply_command_line_seed(self.trainer) and stage == "fit" and not self.model.trained_on:
            self.model.reset_adapters()

    def teardown(self, stage: str) -> None:
        """Give the datamodule back as it was."""
        if stage == "validate" and self._datamodule is not None:
            vars(self._datamodule).pop("val_dataloader", None)

    def on_train_start(self) -> None:
        """Look at all files before the first step, and note what the adapters see."""
        self._check_files(self.trainer.train_dataloader)
        datamodule = self._datamodule
        seen = getattr(datamodule, "trained_on", None)
        if seen is None:
            seen = () if datamodule is None else (f"{datamodule.name}/{datamodule.category}".rstrip("/"),)
            logger.warning(
                "The adapters are being trained on %s, whose training images are normal. They learn from abnormal "
                "images with masks: wrap the datamodule in an AuxiliaryDataModule.",
                "/".join(seen) or "a dataloader",
            )
        self.model.trained_on = tuple(seen)

    def on_validation_start(self) -> None:
        """Set class, adapters and references, unless this is validation in between training epochs."""
        self._evidence = []
        if self.trainer.state.fn != TrainerFn.FITTING:
            self.prepare()
            self._check_files(self.trainer.val_dataloaders)

    def on_test_start(self) -> None:
        """Set class, adapters and references; look at all files before the first is scored."""
        self.prepare()
        self._check_files(self.trainer.test_dataloaders)

    def on_predict_start(self) -> None:
        """Set class, adapters and references; look at all files before the first is scored."""
        self.prepare()
        self._check_files(self.trainer.predict_dataloaders)

    @staticmethod
    def _check_files(loaders: object) -> None:
        """Check the image files of anomalib's datasets."""
        for loader in loaders if isinstance(loaders, list | tuple) else [loaders]:
            dataset = getattr(loader, "dataset", None)
            if isinstance(dataset, AnomalibDataset):
                check_image_files(dataset.samples.image_path)
            elif isinstance(dataset, PredictDataset):
                check_image_files(dataset.image_filenames)

    # ---- Steps ------------------------------------------------------------------------------------------------------

    def training_step(self, batch: Batch[Any], *args: Any, **kwargs: Any) -> Tensor:  # noqa: ANN401
        """Compute the loss of the adapters.

        Args:
            batch: Images with masks; of an ``AuxiliaryDataModule`` also with class names.
            *args: Unused.
            **kwargs: Unused.

        Returns:
            Focal plus dice loss, summed over the stages.

        Raises:
            ValueError: If the images have no masks.
        """
        del args, kwargs
        if batch.gt_mask is None:
            msg = "Expected training images with masks, but got none. Train on an AuxiliaryDataModule with masks."
            raise ValueError(msg)
        images = cast("Tensor", batch.image)
        stages = self.model.stage_maps(images, self._text_features(batch))
        loss = adapter_loss(stages, batch.gt_mask.as_subclass(Tensor))
        self.log("train_loss", loss, on_step=True, on_epoch=True, prog_bar=True, batch_size=len(images), sync_dist=True)
        return loss

    def validation_step(self, batch: Batch[Any], *args: Any, **kwargs: Any) -> STEP_OUTPUT:  # noqa: ANN401
        """Score a batch, and keep what few-shot scores are made of until the whole set has been seen."""
        del args, kwargs
        return self._score(batch, keep=self.model.is_few_shot)

    def test_step(self, batch: Batch[Any], batch_idx: int, *args: Any, **kwargs: Any) -> STEP_OUTPUT:  # noqa: ANN401
        """Score a batch."""
        del batch_idx, args, kwargs
        return self._score(batch)

    def predict_step(self, batch: Batch[Any], batch_idx: int, dataloader_idx: int = 0) -> STEP_OUTPUT:
        """Score a batch."""
        del batch_idx, dataloader_idx
        return self._score(batch)

    def _score(self, batch: Batch[Any], *, keep: bool = False) -> STEP_OUTPUT:
        with torch.no_grad():
            evidence = self.model.weigh(cast("Tensor", batch.image), self._text_features(batch))
            if keep:
                self._evidence.append((evidence.probability, evidence.map_max, batch.gt_label))
            scores = self.model.image_score(evidence)
        predictions = InferenceBatch(pred_score=scores, anomaly_map=evidence.anomaly_map)
        return cast("STEP_OUTPUT", batch.update(**predictions._asdict()))

    def _text_features(self, batch: Batch[Any]) -> Tensor:
        """Each image's own text features, where it brings a class name; else those of the model's class."""
        class_names = getattr(batch, "class_name", None)
        if class_names:
            return self.model.encode_classes(class_names)
        if self.model.class_name is None:
            self.model.setup(self._find_class_name(self._datamodule))
        return self.model.text_features

    def calibrate(self) -> tuple[Tensor, Tensor | None] | None:
        """Fix what few-shot map maxima are scaled by: their range over the validation set just seen (section 3.3).

        :class:`AprilGanPostProcessor` calls it before it computes the threshold.

        Returns:
            The final scores and labels of this process's validation images; ``None`` for a zero-shot model.
        """
        if not self._evidence:
            return None
        probability = torch.cat([probability for probability, _, _ in self._evidence])
        map_max = torch.cat([map_max for _, map_max, _ in self._evidence])
        labels = [label for _, _, label in self._evidence if label is not None]
        self._evidence = []
        bounds = torch.as_tensor(self.all_gather(torch.stack([map_max.min(), map_max.max()]))).reshape(-1, 2)
        self.model.calibrate(bounds[:, 0].min(), bounds[:, 1].max())
        return image_score(probability, map_max, self.model.map_range), torch.cat(labels) if labels else None

    @property
    def smallest_score(self) -> float:
        """The smallest raw image score that there can be: of an image without probability and an empty map."""
        nothing = self.model.map_range.new_zeros(1)
        return float(image_score(nothing, nothing, self.model.map_range)) if self.model.is_few_shot else 0.0

    # ---- Checkpoints and export -------------------------------------------------------------------------------------

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls,
        checkpoint_path: str | Path,
        *args: Any,  # noqa: ANN401
        **kwargs: Any,  # noqa: ANN401
    ) -> "AprilGan":
        """Load a model from a checkpoint, as anomalib does. CLIP's weights are not in it and must be at hand.

        Raises:
            ValueError: If the checkpoint is damaged, would run code, or belongs to another model.
        """
        check_checkpoint(checkpoint_path)
        with _restoring():
            return super().load_from_checkpoint(checkpoint_path, *args, **kwargs)  # type: ignore[return-value]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Let the checkpoint's adapters, class, references and calibration stand in for those still to be set."""
        super().on_load_checkpoint(checkpoint)
        self._keeps_class = self._keeps_references = self._adapters_are_loaded = True

    def forward(self, batch: Tensor, *args: Any, **kwargs: Any) -> InferenceBatch:  # noqa: ANN401
        """Score float images of any size in [0, 1], shape ``(N, 3, h, w)``, as exported models do."""
        self.ensure_prepared()
        return super().forward(batch, *args, **kwargs)


def _lacks_validation_data(datamodule: AnomalibDataModule) -> bool:
    """Whether a datamodule of anomalib has no validation split, but would be asked for it and fail."""
    is_stock = type(datamodule).val_dataloader is AnomalibDataModule.val_dataloader
    return is_stock and not hasattr(datamodule, "val_data")


@contextmanager
def _restoring() -> Iterator[None]:
    token = _RESTORING.set(True)
    try:
        yield
    finally:
        _RESTORING.reset(token)


def _check_arguments(class_name: object, k_shot: object, few_shot_source: object, learning_rate: object) -> None:
    """Check what the plain model does not."""
    if class_name is not None and (not isinstance(class_name, str) or not class_name.strip()):
        msg = (
            f"Expected argument `class_name` to be a non-empty name such as 'bottle', or None for the datamodule's "
            f"category, but got {class_name!r}."
        )
        raise ValueError(msg)
    if not isinstance(k_shot, int) or isinstance(k_shot, bool) or k_shot < 0:
        msg = (
            f"Expected argument `k_shot` to be 0 (zero-shot) or a number of reference images such as 4, but "
            f"got {k_shot!r}."
        )
        raise ValueError(msg)
    if few_shot_source is not None and not k_shot:
        msg = (
            f"Expected argument `k_shot` to say how many reference images to draw from few_shot_source="
            f"{str(few_shot_source)!r}, but got 0. Pass k_shot, or leave few_shot_source out for zero-shot."
        )
        raise ValueError(msg)
    if not isinstance(learning_rate, float | int) or not 0 < learning_rate < float("inf"):
        msg = f"Expected argument `learning_rate` to be positive, such as 0.001, but got {learning_rate!r}."
        raise ValueError(msg)


register()  # for programs that import this module first: when it imports anomalib, AprilGan does not exist yet
