# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Export by anomalib, with class, references and calibration in the file, and without CLIP's text tower."""

import gc
import json
import logging
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from anomalib import TaskType
from anomalib.data import AnomalibDataModule
from anomalib.deploy import CompressionType, ExportType
from anomalib.models.components.base.export_mixin import ExportMixin
from torch import Tensor, nn
from torchmetrics import Metric

from anomalib_aprilgan import __version__
from anomalib_aprilgan.export.exported_files import annotate, export_folder, replacing
from anomalib_aprilgan.integration.checkpoints import non_finite_state
from anomalib_aprilgan.integration.command_line import with_short_errors
from anomalib_aprilgan.integration.quiet import quietly
from anomalib_aprilgan.integration.setup import ANY_CLASS
from anomalib_aprilgan.method.clip import copy_without_text
from anomalib_aprilgan.torch_model import AprilGanModel
from anomalib_aprilgan_plugin import WithoutTelemetry

__all__ = ["Exportable"]

logger = logging.getLogger(__name__)

OPSET = 18
"""ONNX operator set that torch writes without conversion."""

LARGEST_FILE = 1.9e9
"""Bytes of weights that fit into one ONNX file, which is limited to 2 GiB. Larger weights go into a second file."""

CALIBRATED = (CompressionType.INT8_PTQ, CompressionType.INT8_ACQ)
"""Compressions that need images for calibration."""

CLIP_FIELDS = ("backbone", "pretrained", "fingerprint", "quick_gelu")


class Exportable(ExportMixin):
    """Mixin for models that are exported together with class, adapters and reference images.

    An exported model takes float images in [0, 1] of any height and width, in batches of any size, and returns the same
    predictions as the Engine. It contains the default pre-processing and the normalisation of scores and maps.
    """

    model: AprilGanModel
    pre_processor: nn.Module | None
    post_processor: nn.Module | None
    evaluator: nn.Module | None

    if TYPE_CHECKING:  # another base class of `AprilGan` has this method

        def ensure_prepared(self, datamodule: AnomalibDataModule | None = None) -> None:
            """Set class, adapters and reference images if they are not set yet."""

    @property
    def metadata(self) -> dict[str, str]:
        """Metadata of exported files as strings by name; other types than strings are in JSON.

        Thresholds, if there are any, refer to raw scores and maps. In normalised scores and maps they are 0.5, unless
        the post-processor has another sensitivity.
        """
        model = self.model
        facts: dict[str, Any] = {
            "anomalib_aprilgan": __version__,
            "class_name": model.class_name,
            "k_shot": model.k_shot,
            "reference_files": model.reference_files,
            "image_size": model.image_size,
            "window": model.architecture.window,
            **{f"clip_{name}": value for name, value in model.origin.to_dict().items() if name in CLIP_FIELDS},
            "layers": model.layers,
            "reference_layers": model.reference_layers,
            "trained_on": model.trained_on,
        }
        for name in ("image_threshold", "pixel_threshold"):
            threshold = getattr(self.post_processor, f"_{name}", None)
            if isinstance(threshold, Tensor) and not threshold.isnan():
                facts[name] = threshold.item()
        return {name: value if isinstance(value, str) else json.dumps(value) for name, value in facts.items()}

    @with_short_errors
    def to_torch(self, export_root: Path | str, model_file_name: str = "model") -> Path:
        """Export as a pickled module, for anomalib's ``TorchInferencer``.

        Args:
            export_root: Folder; the file is ``weights/torch/<model_file_name>.pt`` in it.
            model_file_name: Name of the file, without suffix.

        Returns:
            The file. An existing file is replaced only when the new file is complete.
        """
        deployed = self._deployed()
        with replacing(export_root, ExportType.TORCH) as unfinished:
            path = ExportMixin.to_torch(deployed, unfinished, model_file_name)
        return export_folder(export_root, ExportType.TORCH) / path.name

    @with_short_errors
    def to_onnx(
        self,
        export_root: Path | str,
        model_file_name: str = "model",
        input_size: tuple[int, int] | None = None,
        **kwargs: Any,  # noqa: ANN401
    ) -> Path:
        """Export as ONNX, with :attr:`metadata` as the file's metadata.

        Args:
            export_root: Folder; the file is ``weights/onnx/<model_file_name>.onnx`` in it.
            model_file_name: Name of the file, without suffix.
            input_size: Height and width of the images in pixels. ``None``: any.
            **kwargs: Further arguments of ``torch.onnx.export``.

        Returns:
            The file. An existing file is replaced only when the new file is complete.

        Raises:
            ModuleNotFoundError: If packages of the extra ``export`` are not installed.
        """
        _require("onnx", "onnxscript")
        deployed = self._deployed()
        if input_size is None and getattr(self.pre_processor, "transform", None) is None:  # images are not resized
            input_size = (self.model.image_size, self.model.image_size)
        is_large = _size_in_bytes(deployed.model) > LARGEST_FILE
        options = {"opset_version": OPSET, "verbose": False, "external_data": is_large}
        with WithoutTelemetry(), replacing(export_root, ExportType.ONNX) as unfinished:
            with torch.no_grad(), quietly():  # with gradients, torch would lose the module names
                path = ExportMixin.to_onnx(deployed, unfinished, model_file_name, input_size, **(options | kwargs))
            gc.collect()  # torch's tracer may leave a second class AprilGan, and the command line refuses two
            annotate(path, deployed.metadata)
        return export_folder(export_root, ExportType.ONNX) / path.name

    @with_short_errors
    def to_openvino(
        self,
        export_root: Path | str,
        model_file_name: str = "model",
        input_size: tuple[int, int] | None = None,
        compression_type: CompressionType | None = None,
        datamodule: AnomalibDataModule | None = None,
        metric: Metric | None = None,
        task: TaskType | None = None,
        max_drop: float = 0.01,
        ov_kwargs: dict[str, Any] | None = None,
        onnx_kwargs: dict[str, Any] | None = None,
    ) -> Path:
        """Export as OpenVINO IR, with :attr:`metadata` as runtime information under ``framework``.

        Args:
            export_root: Folder; the files are ``weights/openvino/<model_file_name>.xml`` and ``.bin`` in it.
            model_file_name: Name of the files, without suffix.
            input_size: Height and width of the images in pixels. ``None``: any.
            compression_type: ``FP16`` and ``INT8`` compress weights. ``INT8_PTQ`` and ``INT8_ACQ`` also compute the
                image tower, which takes most of the time, with 8 bits, and the rest with full precision.
            datamodule: Images for the calibration of ``INT8_PTQ`` and ``INT8_ACQ``: the validation split, or the
                training split if there is none. It also provides class name and reference images that are not set yet.
            metric: Metric that ``INT8_ACQ`` watches. ``None``: F1 of the image labels.
            task: Not used; it stands here because anomalib's method has it.
            max_drop: Largest decrease of the metric that ``INT8_ACQ`` allows, in [0, 1].
            ov_kwargs: Further arguments of OpenVINO's ``convert_model``.
            onnx_kwargs: Further arguments of ``torch.onnx.export``.

        Returns:
            The ``.xml`` file. Existing files are replaced only when the new files are complete.

        Raises:
            ModuleNotFoundError: If packages of the extra ``export`` are not installed.
            ValueError: If the compression is unknown, or there are no images for its calibration.
            OSError: If the files cannot be written.
        """
        del task
        if compression_type is not None:
            compression_type = CompressionType(compression_type)
        is_8_bit = compression_type not in {None, CompressionType.FP16}
        _require("onnx", "onnxscript", "openvino", *(["nncf"] if is_8_bit else []))
        if compression_type in CALIBRATED and datamodule is None:
            msg = (
                f"Expected argument `datamodule` to provide images for compression_type={compression_type}, but got "
                "None. Pass a datamodule (on the command line: --data Folder --data.root ...)."
            )
            raise ValueError(msg)
        deployed = self._deployed(datamodule)
        with WithoutTelemetry(), replacing(export_root, ExportType.OPENVINO) as unfinished:
            import openvino  # noqa: PLC0415  # part of the extra `export`

            onnx_file = deployed.to_onnx(unfinished, model_file_name, input_size, **(onnx_kwargs or {}))
            model = openvino.convert_model(onnx_file, **(ov_kwargs or {}))
            if is_8_bit:
                from anomalib_aprilgan.export.quantization import compress  # noqa: PLC0415  # needs nncf

                model = compress(model, compression_type, datamodule, metric, max_drop, self.model.image_size)
            path = export_folder(unfinished, ExportType.OPENVINO) / f"{model_file_name}.xml"
            openvino.save_model(model, path, compress_to_fp16=compression_type == CompressionType.FP16)
        return export_folder(export_root, ExportType.OPENVINO) / path.name

    def _deployed(self, datamodule: AnomalibDataModule | None = None) -> "Exportable":
        """Return a copy that is set up, without text tower and metrics. The copy shares the image tower.

        Metrics are removed because they store scores of test images, and other classes because their names may be
        secret.

        Raises:
            RuntimeError: If weights, references or thresholds contain NaN or infinite values.
        """
        if self.model.clip.text is None:
            self._refuse_non_finite()
            return self
        self.ensure_prepared(datamodule)
        if self.model.class_name == ANY_CLASS:
            logger.warning("The model is exported for the class %r. Pass `class_name` to name the object.", ANY_CLASS)
        deployed = cast("Exportable", copy_without_text(cast("nn.Module", self), self.model.clip))
        deployed.evaluator = None
        deployed.model.forget_other_classes()
        module = cast("Any", deployed)
        module.hparams.clear()  # the arguments, of which the setup has replaced some
        module.save_hyperparameters({"learning_rate": module.learning_rate})
        deployed._refuse_non_finite()  # noqa: SLF001
        return deployed

    def _refuse_non_finite(self) -> None:
        state = {
            f"model.{name}": value for name, value in (*self.model.named_parameters(), *self.model.named_buffers())
        }
        if self.post_processor is not None:
            state |= {f"post_processor.{name}": value for name, value in self.post_processor.state_dict().items()}
        names = non_finite_state(state)
        if names:
            msg = (
                f"The model was not exported, because it contains NaN or infinite values in {', '.join(names[:4])}. "
                "Train or load its adapters, references and thresholds anew."
            )
            raise RuntimeError(msg)


def _require(*packages: str) -> None:
    """Raise an error if packages are not installed."""
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        msg = f'This export needs {", ".join(missing)}: run pip install ".[export]" in a checkout of anomalib-aprilgan.'
        raise ModuleNotFoundError(msg, name=missing[0])


def _size_in_bytes(module: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in (*module.parameters(), *module.buffers()))
