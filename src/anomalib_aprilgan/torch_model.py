# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""APRIL-GAN in plain torch: :meth:`AprilGanModel.forward` follows the figure of the paper (arXiv 2305.17382)."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from anomalib.data import InferenceBatch
from torch import Tensor

from anomalib_aprilgan.coreset import select_coreset
from anomalib_aprilgan.method.adapted_clip import AdaptedClip
from anomalib_aprilgan.method.architecture import AUTO, DEFAULT_BACKBONE, Architecture
from anomalib_aprilgan.method.clip_weights import RememberedDigest, has_hooks, kinds_of_layers
from anomalib_aprilgan.method.memory_bank import nearest_distances
from anomalib_aprilgan.method.options import MethodOptions
from anomalib_aprilgan.method.recent_scores import PatchScores, RecentScores
from anomalib_aprilgan.method.scoring import (
    RawPrediction,
    abnormal_probability,
    full_precision,
    image_score,
    stage_logits,
    upsample,
)
from anomalib_aprilgan.method.setup_state import SetupTensors

__all__ = ["AprilGanModel"]


class AprilGanModel(AdaptedClip):
    """APRIL-GAN: A Zero-/Few-Shot Anomaly Classification and Segmentation Method for CVPR 2023 VAND Workshop Challenge.

    Chen, Han and Zhang, arXiv 2305.17382. A frozen CLIP compares an image with text descriptions of the normal and the
    abnormal state of its class. One linear adapter per stage maps patch tokens into the joint space, which gives the
    zero-shot map. One memory bank per stage stores normal reference images; the distances to them are added to the map.

    Args:
        backbone: Name of an open_clip architecture with a standard ViT, also one added with
            ``open_clip.add_model_config``, or ``"ViT-builtin"`` for the small CLIP in this package.
        pretrained: Tag of open_clip, path of a CLIP state dict, ``None`` for random weights, or ``"auto"`` for OpenAI's
            weights (with ViT-builtin: its own).
        image_size: Height and width of the images in pixels, without windows a multiple of the patch size. ``None``:
            518 for ViT-L-14-336 as in the paper, otherwise the size that the backbone was made for.
        layers: Stages with an adapter: blocks of the image tower, counted from 1, in rising order. ``None``: four
            evenly spaced blocks, for ViT-L-14-336 (6, 12, 18, 24) as in the paper; with ViT-builtin, the last one.
        reference_layers: Stages that are kept in memory banks. ``None``: as ``layers`` (with ViT-builtin: all).
        quick_gelu: Use QuickGELU instead of GELU, for adapters that you train yourself. The published adapters and
            numbers were obtained with GELU, although OpenAI trained CLIP with QuickGELU.
        adapter: ``"visa"`` or ``"mvtec"`` (published, trained on that data set), ``"builtin"`` (for ViT-builtin), path
            of an adapter file, or ``None`` for fresh adapters. A file may have more stages than ``layers``.
        method: Options that change the method, for ablation studies and large memory banks.
        window: Height and width in pixels of the windows that images are cut into, a multiple of the patch size and
            smaller than ``image_size``, whose default is then twice the window. ``None`` or 0: whole images.

    Attributes:
        state: The current setup: class, memory banks, calibration and setup record. Before calibration, the map's
            maximum is scaled with the smallest and the largest possible value.

    Raises:
        ValueError: If an argument is invalid or an adapter does not fit the model; the message names both sides.
        RuntimeError: If weights cannot be downloaded.

    Examples:
        >>> model = AprilGanModel("ViT-builtin", adapter="builtin")
        >>> model.setup("bottle")
        >>> prediction = model(torch.zeros(1, 3, 192, 192))  # an image of CLIP's mean colour
        >>> prediction.pred_score.shape, prediction.anomaly_map.shape
        (torch.Size([1]), torch.Size([1, 192, 192]))
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
        window: int | None = None,
    ) -> None:
        method = method or MethodOptions()
        architecture = Architecture.of(backbone, pretrained, image_size, layers, reference_layers, quick_gelu, window)
        map_stages = method.chosen_stages(architecture.layers)
        super().__init__(architecture, method)
        self.map_stages = map_stages
        self._adapters_digest, self._banks_digest = RememberedDigest(), RememberedDigest()
        if method.largest_bank is not None:
            for bank in self.state.banks:
                bank.reduce = partial(select_coreset, size=method.largest_bank)
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

    def predict_raw(
        self,
        images: Tensor,
        tensors: SetupTensors,
        text_features: Tensor | None = None,
        recent: RecentScores | None = None,
    ) -> RawPrediction:
        """Compute zero-shot image scores and anomaly maps.

        Args:
            images: Pre-processed images of shape ``(N, 3, image_size, image_size)``.
            tensors: Tensors of a setup.
            text_features: Text features of each image, shape ``(N, 2, D)``. ``None``: ``tensors.text_features``.
            recent: Keeps what is computed, and returns what is computed already. ``None``: all is computed.

        Raises:
            RuntimeError: If no class was set up, or if ``map_stages=()`` and the memory banks are empty.
        """
        images = self._checked("images", images)
        if text_features is None:
            self._require_class()
            text_features = tensors.text_features
        if not self.map_stages and not tensors.is_few_shot:
            msg = "With map_stages=() the map needs memory banks, but they are empty. Set up reference images first."
            raise RuntimeError(msg)
        predictions: Iterable[tuple[Tensor, Tensor]]
        if torch.compiler.is_compiling():  # all views in one pass: a graph would hold the tower once per pass
            together = torch.cat(list(self.windows.views(images)))
            parts = self._predict_view(together, tensors, text_features)
            predictions = zip(*(part.reshape(len(self.windows), -1, *part.shape[1:]) for part in parts), strict=True)
        else:  # one pass for each view, which limits memory
            keep = None if recent is None or has_hooks(self) else partial(recent.of, self._digest_of_scores(tensors))
            views = self.windows.views(images)
            predictions = (self._predict_view(view, tensors, text_features, keep) for view in views)
        return RawPrediction(*self.windows.merge(predictions))

    def _predict_view(
        self,
        images: Tensor,
        tensors: SetupTensors,
        text_features: Tensor,
        keep: Callable[[Tensor, Tensor, Callable[[], PatchScores]], PatchScores] | None = None,
    ) -> RawPrediction:
        """Compute the predictions of one pass through the image tower, or of patch scores that are kept."""
        compute = partial(self._patch_scores, images, tensors, text_features)
        scores = compute() if keep is None else keep(images, text_features, compute)
        with full_precision(images.device):
            maps = []
            if scores.logits is not None:
                maps.append(upsample(scores.logits, self.windows.size).sigmoid().sum(dim=1) / self._divisor)
            if scores.distances is not None:
                maps.append(upsample(scores.distances, self.windows.size).sum(dim=1) / self._divisor)
            return RawPrediction(scores.probability, torch.stack(maps).sum(dim=0))

    def _patch_scores(self, images: Tensor, tensors: SetupTensors, text_features: Tensor) -> PatchScores:
        """Compute image scores, and logits and distances of all patches."""
        embedding, tokens = self.clip.encode_image(images, {*self.layers, *self.reference_layers})
        with full_precision(images.device):
            probability = abnormal_probability(embedding.to(text_features.dtype), text_features)
            logits = self._stage_logits(tokens, text_features, self.map_stages)
            banks = zip(self.reference_layers, tensors.reference_tokens, strict=True) if tensors.is_few_shot else ()
            distances = [nearest_distances(tokens[layer], bank) for layer, bank in banks]
            return PatchScores(
                probability,
                torch.stack(logits, dim=1) if logits else None,
                torch.stack(distances, dim=1) if distances else None,
            )

    def image_score(self, raw: RawPrediction, tensors: SetupTensors) -> Tensor:
        """Compute image scores, shape ``(N,)``, from zero-shot scores and, with references, map maxima."""
        return image_score(raw.probability, raw.map_max, tensors.map_range) if tensors.is_few_shot else raw.probability

    def stage_maps(self, images: Tensor, text_features: Tensor, recurs: Sequence[bool] | None = None) -> list[Tensor]:
        """Compute the maps for the training loss. Only the adapters receive gradients.

        Args:
            images: Pre-processed images of shape ``(N, 3, image_size, image_size)``; with windows, views of images, of
                shape ``(N, 3, window, window)``.
            text_features: Text features of shape ``(2, D)``, or ``(N, 2, D)`` if each image has its own class.
            recurs: Whether each image will be seen again; the features of others are not stored. ``None``: all will.

        Returns:
            Per stage, the probabilities of both states, shape ``(N, 2, H, W)`` with height and width of the images.
        """
        images = self._checked("images", images, self.architecture.tower_size)
        tokens = self.clip.encode_image(images, self.layers, recurs).tokens
        with full_precision(images.device):
            logits = self._stage_logits(tokens, text_features, self.layers)
            maps = [upsample(stage[:, None], self.windows.size) for stage in logits]
            return [torch.cat([-stage, stage], dim=1).sigmoid() for stage in maps]

    def _stage_logits(self, tokens: Mapping[int, Tensor], text_features: Tensor, stages: Sequence[int]) -> list[Tensor]:
        """Compute the logits of some of the stages that have an adapter, shape ``(N, P)`` each."""
        if not stages:
            return []
        adapted = dict(zip(self.layers, self.adapters([tokens[layer] for layer in self.layers]), strict=True))
        return [stage_logits(adapted[stage], text_features) for stage in stages]

    def _digest_of_scores(self, tensors: SetupTensors) -> str:
        """Return a digest of all that patch scores depend on, except images, text features and precision."""
        adapters = self._adapters_digest.of(self.adapters.state_dict(), kinds_of_layers(self.adapters))
        banks = self._banks_digest.of({str(stage): bank for stage, bank in enumerate(tensors.reference_tokens)})
        stages = self.layers, self.reference_layers, self.map_stages
        return f"{self.clip.digest_of_tower()} {adapters} {banks} {stages} {self.clip.store is None}"

    @property
    def _divisor(self) -> int:
        """Divisor of the summed maps: the number of stages with a zero-shot map."""
        return len(self.map_stages) or len(self.layers)

    @property
    def largest_map_value(self) -> float:
        """Largest possible value of an anomaly map; each reference stage adds at most 2 to the sum."""
        zero_shot = 1.0 if self.map_stages else 0.0
        return zero_shot + (2 * len(self.reference_layers) / self._divisor if self.is_few_shot else 0.0)
