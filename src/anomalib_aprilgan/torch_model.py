# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""APRIL-GAN in plain torch: :meth:`AprilGanModel.forward` follows the figure of the paper (arXiv 2305.17382)."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from anomalib.data import InferenceBatch
from torch import Tensor

from anomalib_aprilgan.files.adapter_files import find_adapters, refuse_foreign_state, write_adapters
from anomalib_aprilgan.files.adapter_origin import AdapterOrigin
from anomalib_aprilgan.method.adapters import ClipProjection, StageAdapters
from anomalib_aprilgan.method.architecture import AUTO, DEFAULT_BACKBONE, Architecture
from anomalib_aprilgan.method.few_shot_clip import FewShotClip
from anomalib_aprilgan.method.memory_bank import nearest_distances
from anomalib_aprilgan.method.options import MethodOptions
from anomalib_aprilgan.method.scoring import (
    RawPrediction,
    abnormal_probability,
    full_precision,
    image_score,
    stage_probabilities,
    upsample,
)
from anomalib_aprilgan.method.setup import Setup
from anomalib_aprilgan.method.setup_state import SetupTensors

__all__ = ["AprilGanModel"]


class AprilGanModel(FewShotClip):
    """APRIL-GAN: A Zero-/Few-Shot Anomaly Classification and Segmentation Method for CVPR 2023 VAND Workshop Challenge.

    Chen, Han and Zhang, arXiv 2305.17382. A frozen CLIP compares an image with text descriptions of the normal and the
    abnormal state of its class. One linear adapter per stage maps patch tokens into the joint space, which gives the
    zero-shot map. One memory bank per stage stores normal reference images; the distances to them are added to the map.

    Args:
        backbone: Name of an open_clip architecture with a standard ViT, also one added with
            ``open_clip.add_model_config``, or ``"ViT-demo"`` for the small CLIP in this package.
        pretrained: Tag of open_clip, path of a CLIP state dict, ``None`` for random weights, or ``"auto"`` for OpenAI's
            weights (with ViT-demo: its own).
        image_size: Height and width of the images in pixels, a multiple of the patch size. ``None``: 518 for
            ViT-L-14-336 as in the paper, otherwise the size that the backbone was made for.
        layers: Stages with an adapter: blocks of the image tower, counted from 1, in rising order. ``None``: four
            evenly spaced blocks, for ViT-L-14-336 (6, 12, 18, 24) as in the paper.
        reference_layers: Stages that are kept in memory banks. ``None``: the same as ``layers`` (with ViT-demo: all).
        quick_gelu: Use QuickGELU instead of GELU, for adapters that you train yourself. The published adapters and
            numbers were obtained with GELU, although OpenAI trained CLIP with QuickGELU.
        adapter: ``"visa"`` or ``"mvtec"`` (published, trained on that data set), ``"demo"`` (for ViT-demo), path of an
            adapter file, or ``None`` for fresh adapters.
        method: Options for ablation studies.

    Attributes:
        state: The current setup: class, memory banks, calibration and setup record. Before calibration, the map's
            maximum is scaled with the smallest and the largest possible value.

    Raises:
        ValueError: If an argument is invalid or an adapter does not fit the model; the message names both sides.
        RuntimeError: If weights cannot be downloaded.

    Example:
        >>> model = AprilGanModel("ViT-B-16", pretrained=None, image_size=224, layers=(3, 6, 9, 12))
        >>> model.setup("bottle")
        >>> prediction = model(torch.rand(1, 3, 224, 224))
        >>> prediction.pred_score.shape, prediction.anomaly_map.shape
        (torch.Size([1]), torch.Size([1, 224, 224]))
    """

    def __init__(
        self,
        backbone: str = DEFAULT_BACKBONE,
        pretrained: str | Path | None = AUTO,
        image_size: int | None = None,
        layers: Sequence[int] | None = None,
        reference_layers: Sequence[int] | None = None,
        quick_gelu: bool = False,
        adapter: str | Path | None = None,
        method: MethodOptions | None = None,
    ) -> None:
        method = method or MethodOptions()
        architecture = Architecture.of(backbone, pretrained, image_size, layers, reference_layers, quick_gelu)
        map_stages = method.chosen_stages(architecture.layers)
        super().__init__(architecture, method.prompts)
        self.method = method
        self.map_stages = map_stages
        self.adapters: StageAdapters | ClipProjection = (
            StageAdapters(len(self.layers), self.clip.width, self.clip.embed_dim)
            if method.projection == "adapters"
            else ClipProjection(self.clip.project)
        )
        self.reset_calibration()
        if adapter is not None:
            self.load_adapters(adapter)

    # ---- The method -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def forward(self, images: Tensor, tensors: SetupTensors | None = None) -> InferenceBatch:
        """Compute image scores and anomaly maps.

        Args:
            images: Pre-processed images of shape ``(N, 3, image_size, image_size)``.
            tensors: Tensors of a setup. ``None``: the current setup.

        Returns:
            ``pred_score`` of shape ``(N,)`` in [0, 1] and ``anomaly_map`` of shape ``(N, image_size, image_size)``.
            The zero-shot map is the mean probability of the stages, in [0, 1]. The few-shot map adds the distances of
            all reference stages, each in [0, 2], divided by the same number of stages.

        Raises:
            ValueError: If the images have another shape, contain NaN, or are not normalised.
            RuntimeError: If no class was set up.
        """
        tensors = tensors or self.state.tensors()
        raw = self.predict_raw(images, tensors)
        return InferenceBatch(pred_score=self.image_score(raw, tensors), anomaly_map=raw.anomaly_map)

    def predict_raw(self, images: Tensor, tensors: SetupTensors, text_features: Tensor | None = None) -> RawPrediction:
        """Compute zero-shot image scores and anomaly maps.

        Args:
            images: Pre-processed images of shape ``(N, 3, image_size, image_size)``.
            tensors: Tensors of a setup.
            text_features: Text features of each image, shape ``(N, 2, D)``. ``None``: ``tensors.text_features``.

        Raises:
            RuntimeError: If no class was set up, or if ``map_stages=()`` and the memory banks are empty.
        """
        images = self._checked("images", images)
        if text_features is None:
            self._require_class()
            text_features = tensors.text_features
        embedding, tokens = self.clip.encode_image(images, {*self.layers, *self.reference_layers})
        with full_precision(images.device):
            probability = abnormal_probability(embedding.to(text_features.dtype), text_features)
            maps = [self._zero_shot_map(tokens, text_features)] if self.map_stages else []
            if tensors.is_few_shot:
                maps.append(self._few_shot_map(tokens, tensors.reference_tokens))
        if not maps:
            msg = "With map_stages=() the map needs memory banks, but they are empty. Set up reference images first."
            raise RuntimeError(msg)
        return RawPrediction(probability, torch.stack(maps).sum(dim=0))

    def image_score(self, raw: RawPrediction, tensors: SetupTensors) -> Tensor:
        """Compute image scores, shape ``(N,)``, from zero-shot scores and, with references, map maxima."""
        return image_score(raw.probability, raw.map_max, tensors.map_range) if tensors.is_few_shot else raw.probability

    def stage_maps(self, images: Tensor, text_features: Tensor) -> list[Tensor]:
        """Compute the maps for the training loss. Only the adapters receive gradients.

        Args:
            images: Pre-processed images of shape ``(N, 3, image_size, image_size)``.
            text_features: Text features of shape ``(2, D)``, or ``(N, 2, D)`` if each image has its own class.

        Returns:
            Per stage, the probabilities of both states, shape ``(N, 2, image_size, image_size)``.
        """
        images = self._checked("images", images)
        tokens = self.clip.encode_image(images, self.layers).tokens
        with full_precision(images.device):
            return self._stage_maps(tokens, text_features, self.layers)

    def _stage_maps(self, tokens: Mapping[int, Tensor], text_features: Tensor, stages: Sequence[int]) -> list[Tensor]:
        adapted = dict(zip(self.layers, self.adapters([tokens[layer] for layer in self.layers]), strict=True))
        return [stage_probabilities(adapted[stage], text_features, self.image_size) for stage in stages]

    def _zero_shot_map(self, tokens: Mapping[int, Tensor], text_features: Tensor) -> Tensor:
        maps = self._stage_maps(tokens, text_features, self.map_stages)
        return torch.stack([stage[:, 1] for stage in maps]).sum(dim=0) / self._divisor

    def _few_shot_map(self, tokens: Mapping[int, Tensor], reference_tokens: Sequence[Tensor]) -> Tensor:
        stages = zip(self.reference_layers, reference_tokens, strict=True)
        distances = torch.stack([nearest_distances(tokens[layer], bank) for layer, bank in stages], dim=1)  # (N, R, P)
        return upsample(distances, self.image_size).sum(dim=1) / self._divisor

    @property
    def _divisor(self) -> int:
        """Divisor of the summed maps: the number of stages with a zero-shot map."""
        return len(self.map_stages) or len(self.layers)

    @property
    def largest_map_value(self) -> float:
        """Largest possible value of an anomaly map; each reference stage adds at most 2 to the sum."""
        zero_shot = 1.0 if self.map_stages else 0.0
        return zero_shot + (2 * len(self.reference_layers) / self._divisor if self.is_few_shot else 0.0)

    # ---- Adapters ---------------------------------------------------------------------------------------------------

    @property
    def origin(self) -> AdapterOrigin:
        """Origin of adapters that are trained in this model."""
        return AdapterOrigin(
            backbone=self.backbone,
            pretrained=self.architecture.pretrained,
            fingerprint=self.clip.fingerprint,
            quick_gelu=self.clip.quick_gelu,
            image_size=self.image_size,
            layers=self.layers,
            trained_on=self.trained_on,
        )

    def load_adapters(self, adapter: str | Path) -> None:
        """Load trained adapters.

        Args:
            adapter: ``"visa"``, ``"mvtec"``, ``"demo"``, or a path: a file of :meth:`save_adapters`, a checkpoint of
                ``AprilGan``, or one of the authors' ``.pth`` files.

        Raises:
            ValueError: If the file cannot be used or does not fit the model; the message names both sides.
            RuntimeError: If published adapters cannot be downloaded, or the model has no adapters.
        """
        adapters = self._require_adapters()
        weights, origin = find_adapters(adapter, self.origin, adapters.shapes)
        with self.state.locked():
            adapters.load_state_dict(weights)
            self.state.record = replace(
                self.state.record, adapter=str(adapter), adapter_origin="call", trained_on=origin.trained_on
            )

    def save_adapters(self, path: str | Path) -> Path:
        """Write the adapters and their origin to a safetensors file, and return its path.

        Raises:
            ValueError: If the suffix of the path is not ``.safetensors``.
            RuntimeError: If the model has no adapters.
        """
        return write_adapters(path, self._require_adapters().state_dict(), self.origin)

    def reset_adapters(self, seed: int) -> None:
        """Initialise the adapters anew, at random but determined by the seed.

        Raises:
            RuntimeError: If the model has no adapters.
        """
        self._require_adapters().reset_parameters(seed)

    def mark_trained(self, trained_on: Sequence[str]) -> bool:
        """Record that the adapters are trained, also after training on other data. Class and references are removed.

        Args:
            trained_on: Data sets and categories of the present training.

        Returns:
            Whether that changes the record.
        """
        every = tuple(dict.fromkeys((*self.trained_on, *trained_on)))
        wanted = Setup(adapter_origin="call", trained_on=every)
        has_changed = wanted != self.state.record
        if has_changed:
            self.state.replace(wanted, tokens=[])
            self.reset_calibration()
        return has_changed

    def _require_adapters(self) -> StageAdapters:
        if isinstance(self.adapters, StageAdapters):
            return self.adapters
        msg = "A model with projection='clip' has no adapters. Omit `adapter`, or use projection='adapters'."
        raise RuntimeError(msg)

    # ---- Saved state ------------------------------------------------------------------------------------------------

    def get_extra_state(self) -> dict[str, Any]:
        """Return the plain data of the state dict: setup record, stages, method options, and the adapters' origin."""
        return {
            "setup": self.state.record.to_dict(),
            "k_shot": self.k_shot,
            "reference_layers": list(self.reference_layers),
            "method": self.method.to_dict(),
            "origin": self.origin.to_dict(),
        }

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Restore the setup record."""
        saved = Setup.from_dict(state["setup"])
        if saved != self.state.record:
            self.state.record = saved.restored()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:  # noqa: ANN401
        """Check that the state belongs to this model before anything is changed."""
        extra_state = state_dict.get(f"{prefix}_extra_state")
        if extra_state is not None:
            refuse_foreign_state(extra_state, self.origin, self.reference_layers, "The checkpoint's weights do")
        super()._load_from_state_dict(state_dict, prefix, *args)
