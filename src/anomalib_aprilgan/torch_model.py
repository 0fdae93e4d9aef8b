# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""APRIL-GAN in plain torch: the figure of arXiv 2305.17382, one line per arrow."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import torch
from anomalib.data import InferenceBatch
from torch import Tensor, nn

from anomalib_aprilgan.adapters import AdapterOrigin, ClipProjection, StageAdapters, read_adapters, write_adapters
from anomalib_aprilgan.clip import Clip
from anomalib_aprilgan.embedded import ADAPTERS, TAG, suited_settings
from anomalib_aprilgan.memory_bank import MemoryBank
from anomalib_aprilgan.prompts import PROMPTS
from anomalib_aprilgan.published import PUBLISHED, fetch
from anomalib_aprilgan.scoring import (
    abnormal_probability,
    average_states,
    image_score,
    stage_probabilities,
    upsample,
)

__all__ = ["CLIP_ITSELF", "AprilGanModel", "Evidence"]

CLIP_ITSELF = "clip"
"""What stands for ``adapter`` where there shall be none."""


class Evidence(NamedTuple):
    """What an image score is computed from.

    Attributes:
        probability: Zero-shot image scores, shape ``(N,)`` in [0, 1].
        anomaly_map: Anomaly maps, shape ``(N, image_size, image_size)``.
    """

    probability: Tensor
    anomaly_map: Tensor

    @property
    def map_max(self) -> Tensor:
        """Each map's maximum, shape ``(N,)``."""
        return self.anomaly_map.amax(dim=(-2, -1))


class AprilGanModel(nn.Module):
    """APRIL-GAN: A Zero-/Few-Shot Anomaly Classification and Segmentation Method for CVPR 2023 VAND Workshop Challenge.

    Chen, Han and Zhang, arXiv 2305.17382. A frozen CLIP compares an image with sentences about the normal and the
    abnormal state of its class. A linear adapter per stage lets the patch tokens take part, which gives the zero-shot
    map. Normal reference images, where there are some, fill a memory bank per stage; the distances to them are added.

    Args:
        backbone: Name of an open_clip architecture with a standard ViT, also one added with
            ``open_clip.add_model_config``. ``"ViT-demo"`` is the small one that comes with this package; the defaults
            of the next arguments suit ViT-L-14-336, and with ViT-demo its own settings stand in for them.
        pretrained: Tag of open_clip, path of a CLIP state dict, or ``None`` for random weights.
        image_size: Height and width of the images in pixels; a multiple of the patch size.
        layers: Stages that get an adapter: blocks of the image tower, counted from 1, in rising order.
        reference_layers: Stages that are kept in memory banks. ``None``: the same as ``layers`` (with ViT-demo: all).
        quick_gelu: Run CLIP with QuickGELU. The published adapters and numbers belong to GELU, although OpenAI trained
            with QuickGELU; this is for adapters that are trained anew.
        adapter: ``"visa"`` or ``"mvtec"`` (published; trained on that data set), ``"demo"`` (the embedded CLIP's), the
            path of an adapter file, or ``None`` for fresh adapters. ``"clip"`` does without: patch tokens then go
            through CLIP's own final norm and projection, which shows what adapters are worth.
        map_stages: Those of ``layers`` whose zero-shot maps are summed. ``None``: all. With none of them, ``()``, the
            map is made by the memory banks alone.
        prompts: ``"ensemble"``, or ``"single"`` for one sentence per state.

    Attributes:
        class_name: Class whose text features are in use; ``None`` before :meth:`setup`.
        reference_files: Files that the memory banks were filled from, if known.
        text_features: Normal and abnormal text feature, shape ``(2, D)``, each of length 1.
        map_range: What the few-shot map's maximum is min-max scaled by, shape ``(2,)``. Until it is calibrated: the
            smallest and the largest value that a map can have.

    Raises:
        ValueError: If an argument is out of its range or an adapter does not fit; the message names both sides.
        RuntimeError: If weights must be downloaded and cannot be.

    Example:
        >>> model = AprilGanModel("ViT-B-16", pretrained=None, image_size=224, layers=(3, 6, 9, 12))
        >>> model.setup("bottle")
        >>> prediction = model(torch.rand(1, 3, 224, 224))
        >>> prediction.pred_score.shape, prediction.anomaly_map.shape
        (torch.Size([1]), torch.Size([1, 224, 224]))
    """

    def __init__(
        self,
        backbone: str = "ViT-L-14-336",
        pretrained: str | Path | None = "openai",
        image_size: int = 518,
        layers: Sequence[int] = (6, 12, 18, 24),
        reference_layers: Sequence[int] | None = None,
        quick_gelu: bool = False,
        adapter: str | Path | None = None,
        map_stages: Sequence[int] | None = None,
        prompts: Literal["ensemble", "single"] = "ensemble",
    ) -> None:
        super().__init__()
        pretrained, image_size, layers, reference_layers = suited_settings(
            backbone, pretrained, image_size, layers, reference_layers
        )
        self.layers = _validated_stages("layers", layers)
        self.reference_layers = (
            self.layers if reference_layers is None else _validated_stages("reference_layers", reference_layers)
        )
        self.map_stages = self.layers if map_stages is None else self._validated_map_stages(map_stages)
        if prompts not in PROMPTS:
            msg = f"Expected argument `prompts` to be one of {', '.join(PROMPTS)}, but got {prompts!r}."
            raise ValueError(msg)
        self._prompts = PROMPTS[prompts]
        self.image_size = image_size
        self.backbone = backbone
        self.pretrained = None if pretrained is None else str(pretrained)
        self.clip = Clip(backbone, pretrained, image_size, quick_gelu=quick_gelu)
        for name in ("layers", "reference_layers"):
            if max(getattr(self, name)) > self.clip.num_blocks:
                msg = (
                    f"Expected argument `{name}` to hold blocks from 1 to {self.clip.num_blocks}, which is what "
                    f"{backbone} has, but got {getattr(self, name)}."
                )
                raise ValueError(msg)

        self.adapters: StageAdapters | ClipProjection = (
            ClipProjection(self.clip.project)
            if adapter == CLIP_ITSELF
            else StageAdapters(len(self.layers), self.clip.width, self.clip.embed_dim)
        )
        self.memory_banks = nn.ModuleList(MemoryBank(self.clip.width) for _ in self.reference_layers)
        self.trained_on: tuple[str, ...] = ()
        self.class_name: str | None = None
        self.reference_files: tuple[str, ...] = ()
        self.register_buffer("text_features", torch.zeros(2, self.clip.embed_dim))
        self.register_buffer("map_range", torch.empty(2))
        self.text_features: Tensor
        self.map_range: Tensor
        self._text_feature_cache: dict[str, Tensor] = {}
        self.reset_calibration()
        if adapter is not None and adapter != CLIP_ITSELF:
            self.load_adapters(adapter)

    # ---- The method -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def forward(self, images: Tensor) -> InferenceBatch:
        """Score images and map their anomalies.

        Args:
            images: Pre-processed images of shape ``(N, 3, image_size, image_size)``.

        Returns:
            ``pred_score`` of shape ``(N,)`` in [0, 1] and ``anomaly_map`` of shape ``(N, image_size, image_size)``.
            Zero-shot, the map is the mean of the stages' probabilities and lies in [0, 1]. Few-shot, distances in
            [0, 2] per reference stage are added, divided by the number of stages in ``layers`` as well.

        Raises:
            RuntimeError: If no class was set up.
        """
        evidence = self.weigh(images)
        return InferenceBatch(pred_score=self.image_score(evidence), anomaly_map=evidence.anomaly_map)

    def weigh(self, images: Tensor, text_features: Tensor | None = None) -> Evidence:
        """Compute the zero-shot image score and the anomaly map, before the two are combined.

        Args:
            images: Pre-processed images of shape ``(N, 3, image_size, image_size)``.
            text_features: Shape ``(2, D)`` or ``(N, 2, D)``. ``None``: those that were set up.

        Returns:
            The evidence of each image.
        """
        if text_features is None:
            text_features = self._require_text_features()
        self._check_images("images", images)
        embedding, tokens = self.clip.encode_image(images, {*self.layers, *self.reference_layers})
        with _full_precision(images.device):
            probability = abnormal_probability(embedding.to(text_features.dtype), text_features)
            terms = [self._zero_shot_map(tokens, text_features)] if self.map_stages else []
            if self.is_few_shot:
                terms.append(self._few_shot_map(tokens))
        if not terms:
            msg = "With map_stages=(), the map is made by memory banks alone, and they are empty. Set up references."
            raise RuntimeError(msg)
        return Evidence(probability, torch.stack(terms).sum(dim=0))

    def image_score(self, evidence: Evidence) -> Tensor:
        """Compute image scores, shape ``(N,)``: the probability, or few-shot its mean with the scaled map maximum."""
        if not self.is_few_shot:
            return evidence.probability
        return image_score(evidence.probability, evidence.map_max, self.map_range)

    def stage_maps(self, images: Tensor, text_features: Tensor) -> list[Tensor]:
        """Compute what the adapters are trained on. Only they receive gradients.

        Args:
            images: Pre-processed images of shape ``(N, 3, image_size, image_size)``.
            text_features: Shape ``(2, D)``, or ``(N, 2, D)`` where each image has its own class.

        Returns:
            Per stage, the probabilities of both states, shape ``(N, 2, image_size, image_size)``.
        """
        self._check_images("images", images)
        tokens = self.clip.encode_image(images, self.layers).tokens
        with _full_precision(images.device):
            return self._stage_maps(tokens, text_features, self.layers)

    def _stage_maps(self, tokens: Mapping[int, Tensor], text_features: Tensor, stages: Sequence[int]) -> list[Tensor]:
        adapted = dict(zip(self.layers, self.adapters([tokens[layer] for layer in self.layers]), strict=True))
        return [stage_probabilities(adapted[stage], text_features, self.image_size) for stage in stages]

    def _zero_shot_map(self, tokens: Mapping[int, Tensor], text_features: Tensor) -> Tensor:
        maps = self._stage_maps(tokens, text_features, self.map_stages)
        return torch.stack([stage[:, 1] for stage in maps]).sum(dim=0) / self._divisor

    def _few_shot_map(self, tokens: Mapping[int, Tensor]) -> Tensor:
        distances = [bank(tokens[layer]) for layer, bank in zip(self.reference_layers, self._banks, strict=True)]
        maps = upsample(torch.stack(distances, dim=1), self.image_size)  # (N, R, H, W)
        return maps.sum(dim=1) / self._divisor

    @property
    def _divisor(self) -> int:
        """What the summed map is divided by: the number of its zero-shot stages."""
        return len(self.map_stages) or len(self.layers)

    # ---- Class, references and calibration --------------------------------------------------------------------------

    def setup(self, class_name: str | None = None, reference_images: Tensor | None = None) -> None:
        """Set the class and, few-shot, the reference images. What is ``None`` stays as it is.

        Args:
            class_name: Name of the object or surface, as it should stand in a sentence.
            reference_images: Pre-processed normal images of shape ``(K, 3, image_size, image_size)``.

        Raises:
            ValueError: If the class name is empty or the images have another shape.
        """
        if class_name is not None:
            self.text_features.copy_(self.encode_class(class_name))
            self.class_name = class_name
        if reference_images is not None:
            tokens = self._reference_tokens(reference_images)
            for bank in self._banks:
                bank.clear()
            self.reference_files = ()
            self._add_to_banks(tokens)

    def add_references(self, reference_images: Tensor, files: Sequence[str | Path] = ()) -> None:
        """Add to the reference images. The calibration stays, unless these are the first.

        Args:
            reference_images: Pre-processed normal images of shape ``(K, 3, image_size, image_size)``.
            files: Where they come from.

        Raises:
            ValueError: If the images have another shape.
        """
        self._add_to_banks(self._reference_tokens(reference_images))
        self.reference_files = (*self.reference_files, *map(str, files))

    def encode_class(self, class_name: str) -> Tensor:
        """Embed a class's prompt ensemble; the result is remembered.

        Args:
            class_name: Name of the object or surface.

        Returns:
            Normal and abnormal text feature, shape ``(2, D)``.

        Raises:
            ValueError: If the class name is empty.
        """
        if class_name not in self._text_feature_cache:
            states = [average_states(self.clip.encode_text(sentences)) for sentences in self._prompts(class_name)]
            with torch.inference_mode(mode=False):
                self._text_feature_cache[class_name] = torch.stack(states).cpu()
        return self._text_feature_cache[class_name].to(self.text_features)

    def encode_classes(self, class_names: Sequence[str]) -> Tensor:
        """Embed the class of each image of a batch, shape ``(N, 2, D)``."""
        return torch.stack([self.encode_class(class_name) for class_name in class_names])

    def calibrate(self, minimum: float | Tensor, maximum: float | Tensor) -> None:
        """Set what the few-shot map's maximum is scaled by: its minimum and maximum over a set of images."""
        self.map_range.copy_(torch.stack([torch.as_tensor(minimum), torch.as_tensor(maximum)]))

    def reset_calibration(self) -> None:
        """Scale by the smallest and the largest value that a map can have."""
        self.calibrate(0.0, self.largest_map_value)

    @property
    def largest_map_value(self) -> float:
        """The largest value that an anomaly map can have: 1, and 2 more per reference stage where there are banks."""
        zero_shot = 1.0 if self.map_stages else 0.0
        return zero_shot + (2 * len(self.reference_layers) / self._divisor if self.is_few_shot else 0.0)

    @property
    def is_few_shot(self) -> bool:
        """Whether the memory banks hold references."""
        return len(self._banks[0]) > 0

    @property
    def k_shot(self) -> int:
        """Number of reference images in the memory banks."""
        return len(self._banks[0]) // self.clip.num_patches

    @property
    def _banks(self) -> list[MemoryBank]:
        return cast("list[MemoryBank]", list(self.memory_banks))

    def _reference_tokens(self, images: Tensor) -> list[Tensor]:
        """Encode reference images, one at a time; per reference stage, shape ``(K, P, width)``."""
        self._check_images("reference_images", images)
        with torch.inference_mode(mode=False), torch.no_grad():
            images = images.to(self.text_features)
            tokens = [self.clip.encode_image(image[None], self.reference_layers).tokens for image in images]
            return [torch.cat([image[layer] for image in tokens]) for layer in self.reference_layers]

    def _add_to_banks(self, tokens: Sequence[Tensor]) -> None:
        are_first = not self.is_few_shot
        with torch.inference_mode(mode=False), torch.no_grad():
            for bank, stage in zip(self._banks, tokens, strict=True):
                bank.add(stage)
        if are_first:
            self.reset_calibration()

    def _validated_map_stages(self, stages: Sequence[int]) -> tuple[int, ...]:
        if isinstance(stages, str) or not set(stages) <= set(self.layers) or len(set(stages)) != len(stages):
            msg = f"Expected argument `map_stages` to hold some of layers={self.layers}, but got {stages!r}."
            raise ValueError(msg)
        return tuple(stages)

    def _check_images(self, name: str, images: Tensor) -> None:
        expected = (3, self.image_size, self.image_size)
        if images.ndim != 4 or images.shape[0] == 0 or tuple(images.shape[1:]) != expected:  # noqa: PLR2004
            msg = (
                f"Expected argument `{name}` to be a tensor of shape (N, {', '.join(map(str, expected))}) with at "
                f"least one image, but got shape {tuple(images.shape)}. Use the model's pre-processor."
            )
            raise ValueError(msg)

    def _require_text_features(self) -> Tensor:
        if self.class_name is None:
            msg = "The model does not know its class yet. Call `setup('bottle')`, with your class, before using it."
            raise RuntimeError(msg)
        return self.text_features

    # ---- Adapters and what they belong to ---------------------------------------------------------------------------

    @property
    def origin(self) -> AdapterOrigin:
        """What the model's adapters belong to."""
        return AdapterOrigin(
            backbone=self.backbone,
            pretrained=self.pretrained,
            fingerprint=self.clip.fingerprint,
            quick_gelu=self.clip.quick_gelu,
            image_size=self.image_size,
            layers=self.layers,
            trained_on=self.trained_on,
        )

    def load_adapters(self, adapter: str | Path) -> None:
        """Load adapters that were trained before.

        Args:
            adapter: ``"visa"``, ``"mvtec"``, ``"demo"``, or the path of a file: one written by :meth:`save_adapters`, a
                checkpoint of ``AprilGan``, or one of the authors' ``.pth``.

        Raises:
            ValueError: If the file is unusable or does not fit the model; the message names both sides.
            RuntimeError: If published adapters cannot be downloaded.
        """
        if adapter in PUBLISHED:
            origin = PUBLISHED[str(adapter)].origin
            self._refuse(origin.conflicts_with(self.origin), f"The published adapters {adapter!r} do", origin)
            weights, _ = read_adapters(fetch(str(adapter)))
        else:
            weights, origin = read_adapters(ADAPTERS if adapter == TAG else adapter)
        theirs = [tuple(weights[f"fc.{number}.weight"].shape) for number in range(len(weights) // 2)]
        ours = [(self.clip.embed_dim, self.clip.width)] * len(self.layers)
        conflicts = origin.conflicts_with(self.origin)
        if theirs != ours:
            conflicts.append(f"{_shapes(theirs)} against the model's {_shapes(ours)}")
        self._refuse(conflicts, f"The adapters in {adapter} do", origin)
        self._require_adapters().load_state_dict(weights)
        self.trained_on = origin.trained_on

    def save_adapters(self, path: str | Path) -> Path:
        """Write the adapters, and what they belong to, to a safetensors file.

        Args:
            path: The file; its suffix must be ``.safetensors``.

        Returns:
            The path.

        Raises:
            RuntimeError: If there are none.
        """
        return write_adapters(path, self._require_adapters().state_dict(), self.origin)

    def reset_adapters(self) -> None:
        """Draw fresh weights for the adapters.

        Raises:
            RuntimeError: If there are none.
        """
        self._require_adapters().reset_parameters()

    def _require_adapters(self) -> StageAdapters:
        if isinstance(self.adapters, StageAdapters):
            return self.adapters
        msg = "With adapter='clip', the model has no adapters. Pass others, or adapter=None for fresh ones."
        raise RuntimeError(msg)

    def _refuse(self, conflicts: Sequence[str], subject: str, origin: AdapterOrigin) -> None:
        """Raise if there are conflicts."""
        if not conflicts:
            return
        fitting = f" with backbone={origin.backbone!r}, layers={origin.layers}" if origin.backbone else ""
        msg = (
            f"{subject} not fit the model (backbone {self.backbone!r}, {len(self.layers)} stages {self.layers}, "
            f"quick_gelu={self.clip.quick_gelu}): {'; '.join(conflicts)}. Use them{fitting} and whatever else they "
            "were made with, pass another file, or train fresh adapters with adapter=None."
        )
        raise ValueError(msg)

    # ---- State ------------------------------------------------------------------------------------------------------

    def get_extra_state(self) -> dict[str, Any]:
        """Return what a state dict keeps beside tensors: plain data only."""
        return {
            "class_name": self.class_name,
            "k_shot": self.k_shot,
            "reference_files": list(self.reference_files),
            "reference_layers": list(self.reference_layers),
            "origin": self.origin.to_dict(),
        }

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`get_extra_state` returned."""
        self.class_name = state["class_name"]
        self.reference_files = tuple(state["reference_files"])
        self.trained_on = tuple(state["origin"]["trained_on"])

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:  # noqa: ANN401
        """Refuse the state of another model before anything is changed."""
        state = state_dict.get(f"{prefix}_extra_state")
        if state is not None:
            self.refuse_foreign(state, "The checkpoint's weights do")
        super()._load_from_state_dict(state_dict, prefix, *args)

    def refuse_foreign(self, state: Mapping[str, Any], subject: str) -> None:
        """Make sure that an extra state belongs to a model like this one.

        Args:
            state: What :meth:`get_extra_state` returned.
            subject: Beginning of a message that goes on with "not fit the model".

        Raises:
            ValueError: If it does not; the message names both sides.
        """
        origin = AdapterOrigin.from_dict(state["origin"])
        conflicts = origin.conflicts_with(self.origin)
        stages = tuple(state["reference_layers"])
        if stages != self.reference_layers:
            conflicts.append(f"reference_layers {stages} against the model's {self.reference_layers}")
        if state["k_shot"] and origin.image_size != self.image_size:
            conflicts.append(f"memory banks of image_size {origin.image_size} against the model's {self.image_size}")
        self._refuse(conflicts, subject, origin)


def _validated_stages(name: str, stages: Sequence[int]) -> tuple[int, ...]:
    """Check all that can be checked of stages before the backbone is known."""
    valid = isinstance(stages, Sequence) and not isinstance(stages, str) and len(stages) > 0
    valid = valid and all(isinstance(stage, int) and stage > 0 for stage in stages)
    if not valid or list(stages) != sorted(set(stages)):
        msg = (
            f"Expected argument `{name}` to hold blocks of the image tower, counted from 1, each once and in rising "
            f"order such as (6, 12, 18, 24), but got {stages!r}."
        )
        raise ValueError(msg)
    return tuple(stages)


def _shapes(shapes: Sequence[tuple[int, ...]]) -> str:
    return f"{len(shapes)} adapters of shape {' and '.join(map(str, dict.fromkeys(shapes)))}"


def _full_precision(device: torch.device) -> torch.autocast:
    """Leave autocast: with a temperature of 100, rounded similarities would show in the maps."""
    return torch.autocast(device.type, enabled=False)
