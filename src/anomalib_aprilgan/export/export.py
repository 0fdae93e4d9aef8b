# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Export: anomalib's, with class, references and calibration in the file, and without CLIP's text tower."""

import ast
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, cast

import torch
from anomalib.data import AnomalibDataModule
from anomalib.deploy import CompressionType, ExportType
from anomalib.models.components.base.export_mixin import ExportMixin
from torch import Tensor, nn

from anomalib_aprilgan import __version__
from anomalib_aprilgan.integration.quiet import quietly
from anomalib_aprilgan.integration.setup import ANY_CLASS
from anomalib_aprilgan.method.clip import copy_without_text
from anomalib_aprilgan.torch_model import AprilGanModel

__all__ = ["Exportable"]

logger = logging.getLogger(__name__)

OPSET = 18
"""The ONNX operator set that torch writes without a conversion."""

LARGEST_FILE = 1.9e9
"""Bytes of weights that fit into one ONNX file, which ends at 2 GiB; more go into a file beside it."""

CALIBRATED = (CompressionType.INT8_PTQ, CompressionType.INT8_ACQ)
"""Compressions that look at images."""

CLIP_FIELDS = ("backbone", "pretrained", "fingerprint", "quick_gelu")


class Exportable(ExportMixin):
    """A model that can be exported, ready for use: with its class, its adapters and its references.

    An exported graph takes float images in [0, 1] of any height and width, in batches of any size, and returns what the
    Engine would: it resizes as the default pre-processor does, and normalises scores and maps.
    """

    model: AprilGanModel
    pre_processor: nn.Module | None
    post_processor: nn.Module | None
    evaluator: nn.Module | None

    if TYPE_CHECKING:

        def ensure_prepared(self, datamodule: AnomalibDataModule | None = None) -> None:
            """Set the class, the adapters and the reference images, where they are missing."""

    @property
    def metadata(self) -> dict[str, str]:
        """What an exported file tells of itself; lists are in JSON.

        Thresholds are of raw scores and maps, where there are any. In normalised ones they lie at 0.5, unless the
        post-processor's sensitivity is another.
        """
        model = self.model
        facts: dict[str, Any] = {
            "anomalib_aprilgan": __version__,
            "class_name": model.class_name,
            "k_shot": model.k_shot,
            "reference_files": model.reference_files,
            "image_size": model.image_size,
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

    def to_torch(self, export_root: Path | str, model_file_name: str = "model") -> Path:
        """Export as a pickled module, for anomalib's ``TorchInferencer``.

        Args:
            export_root: Folder; the file is ``weights/torch/<model_file_name>.pt`` in it.
            model_file_name: Name of the file, without suffix.

        Returns:
            The file. A file that is there already is replaced once the new one is complete.
        """
        deployed = self._deployed()
        with _replacing(export_root, ExportType.TORCH) as unfinished:
            path = ExportMixin.to_torch(deployed, unfinished, model_file_name)
        return _folder(export_root, ExportType.TORCH) / path.name

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
            input_size: Height and width of the images. ``None``: any.
            **kwargs: Arguments of ``torch.onnx.export``.

        Returns:
            The file. A file that is there already is replaced once the new one is complete.

        Raises:
            ModuleNotFoundError: If packages of the extra ``export`` are missing.
        """
        _require("onnx", "onnxscript")
        deployed = self._deployed()
        if input_size is None and getattr(self.pre_processor, "transform", None) is None:  # nothing resizes images
            input_size = (self.model.image_size, self.model.image_size)
        options = {"opset_version": OPSET, "verbose": False, "external_data": _bytes(deployed.model) > LARGEST_FILE}
        with _replacing(export_root, ExportType.ONNX) as unfinished:
            with torch.no_grad(), quietly():  # without gradients, else torch forgets what belongs to which module
                path = ExportMixin.to_onnx(deployed, unfinished, model_file_name, input_size, **(options | kwargs))
            _annotate(path, deployed.metadata)
        return _folder(export_root, ExportType.ONNX) / path.name

    def to_openvino(  # type: ignore[override]  # anomalib's own arguments beyond these are passed on
        self,
        export_root: Path | str,
        model_file_name: str = "model",
        input_size: tuple[int, int] | None = None,
        compression_type: CompressionType | None = None,
        datamodule: AnomalibDataModule | None = None,
        **kwargs: Any,  # noqa: ANN401
    ) -> Path:
        """Export as OpenVINO's IR, with :attr:`metadata` as its runtime information under ``framework``.

        Args:
            export_root: Folder; the files are ``weights/openvino/<model_file_name>.xml`` and ``.bin`` in it.
            model_file_name: Name of the files, without suffix.
            input_size: Height and width of the images. ``None``: any.
            compression_type: ``FP16`` and ``INT8`` compress weights; ``INT8_PTQ`` and ``INT8_ACQ`` compute with 8 bits
                in the image tower, where the work is, and with full precision elsewhere.
            datamodule: Images to calibrate ``INT8_PTQ`` and ``INT8_ACQ`` on: the validation split, or where there is
                none the training split. A model whose class or references are still to be found has them from it too.
            **kwargs: anomalib's further arguments.

        Returns:
            The ``.xml`` file. Files that are there already are replaced once the new ones are complete.

        Raises:
            ModuleNotFoundError: If packages of the extra ``export`` are missing.
            ValueError: If the compression is unknown, or there are no images to calibrate on.
        """
        if compression_type is not None:
            compression_type = CompressionType(compression_type)
        is_8_bit = compression_type not in {None, CompressionType.FP16}
        _require("onnx", "onnxscript", "openvino", *(["nncf"] if is_8_bit else []))
        if compression_type in CALIBRATED and datamodule is None:
            msg = (
                f"Expected argument `datamodule` to bring images that compression_type={compression_type} can look at, "
                "but got None. Pass one (on the command line: --data Folder --data.root ...)."
            )
            raise ValueError(msg)
        deployed = self._deployed(datamodule)
        with _replacing(export_root, ExportType.OPENVINO) as unfinished:
            path = ExportMixin.to_openvino(
                deployed,
                unfinished,
                model_file_name,
                input_size,
                compression_type,
                datamodule,
                **kwargs,
            )
        return _folder(export_root, ExportType.OPENVINO) / path.name

    def _compress_ov_model(
        self,
        model: Any,  # noqa: ANN401  # of openvino
        compression_type: CompressionType | None = None,
        datamodule: AnomalibDataModule | None = None,
        metric: Any = None,  # noqa: ANN401
        task: Any = None,  # noqa: ANN401
        max_drop: float = 0.01,
    ) -> Any:  # noqa: ANN401
        """Take anomalib's place where it would compress sensitive parts with the rest."""
        from anomalib_aprilgan.export import quantization  # noqa: PLC0415  # needs nncf

        del task
        if compression_type == CompressionType.INT8_PTQ and datamodule is not None:
            return quantization.quantize(model, datamodule)
        if compression_type == CompressionType.INT8_ACQ and datamodule is not None:
            return quantization.quantize_within(max_drop, model, datamodule, metric, self.model.image_size)
        return quantization.compress_weights(model)

    def _deployed(self, datamodule: AnomalibDataModule | None = None) -> "Exportable":
        """Copy the model, prepared and for good, without its text tower; the rest of CLIP's weights are shared.

        Metrics stay behind too: they hold on to scores of what they have measured.
        """
        if not self.model.clip.has_text:
            return self
        self.ensure_prepared(datamodule)
        if self.model.class_name == ANY_CLASS:
            logger.warning("The model is exported for the class %r. Pass `class_name` to tell what it is.", ANY_CLASS)
        deployed = cast("Exportable", copy_without_text(cast("nn.Module", self), self.model.clip))
        deployed.evaluator = None
        return deployed


def _require(*packages: str) -> None:
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        msg = f'This export needs {", ".join(missing)}: pip install "anomalib-aprilgan[export]"'
        raise ModuleNotFoundError(msg, name=missing[0])


def _folder(export_root: Path | str, kind: ExportType) -> Path:
    return Path(export_root) / "weights" / kind.value


@contextmanager
def _replacing(export_root: Path | str, kind: ExportType) -> Iterator[Path]:
    """Give a folder to export to; its files take the place of older ones when all is done, and not before."""
    folder = _folder(export_root, kind)
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder, prefix=".unfinished-") as unfinished:
        yield Path(unfinished)
        for file in sorted(_folder(unfinished, kind).iterdir()):
            file.replace(folder / file.name)


def _bytes(module: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in (*module.parameters(), *module.buffers()))


def _annotate(path: Path, metadata: dict[str, str]) -> None:
    """Add metadata to an ONNX file, name its operations after the modules that they belong to, and drop the rest.

    The rest is where in the source code each operation comes from, a fifth of a small file.
    """
    import onnx  # noqa: PLC0415  # of the extra

    content = onnx.load(str(path), load_external_data=False)
    onnx.helper.set_model_props(content, metadata)
    for node in content.graph.node:
        for entry in node.metadata_props:
            if entry.key == "pkg.torch.onnx.name_scopes":
                module = ast.literal_eval(entry.value)[-2]
                node.name = f"{module}/{node.name}"
        node.ClearField("metadata_props")
    unfinished = path.with_name(f"{path.name}.annotated")
    onnx.save(content, str(unfinished))
    unfinished.replace(path)
