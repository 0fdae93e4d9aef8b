# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""A frozen CLIP with the text features of a class and the memory banks of its reference images."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from anomalib_aprilgan.method.architecture import Architecture
from anomalib_aprilgan.method.clip import Clip
from anomalib_aprilgan.method.options import Prompts
from anomalib_aprilgan.method.setup import References
from anomalib_aprilgan.method.setup_state import SetupState
from anomalib_aprilgan.method.text_features import TextFeatures
from anomalib_aprilgan.method.towers import patch_grid
from anomalib_aprilgan.method.windows import Windows

__all__ = ["FewShotClip"]

LARGEST_INPUT = 10
"""Largest absolute value of pre-processed images. CLIP's normalisation gives values in [-1.8, 2.2]."""


class FewShotClip(nn.Module):
    """A frozen CLIP with the text features of a class and the memory banks of reference images.

    Args:
        architecture: The CLIP and its stages.
        prompts: ``"ensemble"`` for the prompt ensemble, ``"single"`` for one sentence per state.

    Attributes:
        windows: Cuts images into views, each of which is one pass through the image tower.
        state: The current setup: text features, memory banks, calibration and setup record. Before calibration, the
            map's maximum is scaled with the smallest and the largest possible value.
    """

    def __init__(self, architecture: Architecture, prompts: Prompts) -> None:
        super().__init__()
        self.architecture = architecture
        self.backbone = architecture.backbone
        self.image_size = architecture.image_size
        self.layers = architecture.layers
        self.reference_layers = architecture.reference_layers
        if architecture.window:
            patch_grid(architecture.backbone, architecture.window, "window")  # checks it
        self.clip = Clip(
            architecture.backbone,
            architecture.pretrained,
            architecture.tower_size,
            quick_gelu=architecture.quick_gelu,
        )
        self.windows = Windows(architecture.image_size, architecture.tower_size)
        self.state = SetupState(self.clip.embed_dim, self.clip.width, len(architecture.reference_layers))
        self._text = TextFeatures(prompts)

    @property
    def class_name(self) -> str | None:
        """Name of the current class; ``None`` before one is set."""
        return self.state.record.class_name

    @property
    def text_features(self) -> Tensor:
        """L2-normalised normal and abnormal text feature of the current class, shape ``(2, D)``."""
        return self.state.text_features

    @property
    def memory_banks(self) -> nn.ModuleList:
        """One memory bank per reference stage."""
        return self.state.memory_banks

    @property
    def map_range(self) -> Tensor:
        """Minimum and maximum for the min-max scaling of the few-shot map's maximum, shape ``(2,)``."""
        return self.state.map_range

    @property
    def reference_files(self) -> tuple[str, ...]:
        """Paths of the reference images; empty if there are no images or if they were given as tensors."""
        return self.state.record.references.files

    @property
    def trained_on(self) -> tuple[str, ...]:
        """Data sets, or data sets and categories, that the adapters were trained on."""
        return self.state.record.trained_on

    @property
    def is_few_shot(self) -> bool:
        """Whether the memory banks contain reference images."""
        return self.bank_size > 0

    @property
    def k_shot(self) -> int:
        """Number of reference images in the memory banks."""
        return self.state.number_of_references

    @property
    def bank_size(self) -> int:
        """Number of tokens in each memory bank."""
        return len(self.state.banks[0])

    @property
    def has_reduced_banks(self) -> bool:
        """Whether the memory banks contain only a part of the tokens of the reference images."""
        return self.bank_size < self.k_shot * self.tokens_per_reference

    @property
    def tokens_per_reference(self) -> int:
        """Number of tokens of a reference image for each memory bank: the patches of all its views."""
        return len(self.windows) * self.clip.num_patches

    @property
    def largest_map_value(self) -> float:
        """Largest possible value of an anomaly map."""
        return 1.0

    def setup(self, class_name: str | None = None, reference_images: Tensor | None = None) -> None:
        """Set the class, the reference images, or both.

        Args:
            class_name: Name of the object or surface, as used in a sentence. ``None`` keeps the present class.
            reference_images: Pre-processed normal images of shape ``(K, 3, image_size, image_size)``, which replace the
                present ones. ``None`` keeps the present ones.

        Raises:
            ValueError: If the class name is empty or the images have another shape.
        """
        text_features = None if class_name is None else self.encode_class(class_name)
        tokens = None if reference_images is None else self.encode_references(reference_images)
        with self.state.locked():
            record = self.state.record
            if class_name is not None:
                record = replace(record, class_name=class_name, class_origin="call")
            if reference_images is not None:
                record = replace(record, references=References(k_shot=len(reference_images), origin="call"))
            self.state.replace(record, text_features, tokens)
            if reference_images is not None:
                self.reset_calibration()

    def add_references(self, reference_images: Tensor, files: Sequence[str | Path] = ()) -> bool:
        """Add reference images. The calibration is reset if there were no reference images before.

        Args:
            reference_images: Pre-processed normal images of shape ``(K, 3, image_size, image_size)``.
            files: Paths of the images, if known.

        Returns:
            Whether the calibration was reset.

        Raises:
            ValueError: If the images have another shape or are not normalised.
        """
        tokens = self.encode_references(reference_images)
        with self.state.locked():
            are_first = not self.is_few_shot
            self.state.add(tokens, tuple(map(str, files)))
            if are_first:
                self.reset_calibration()
        return are_first

    def encode_class(self, class_name: str) -> Tensor:
        """Return the text features of a class, shape ``(2, D)``. They are computed once per class."""
        return self._text.of_class(class_name, self.clip).to(self.text_features)

    def encode_classes(self, class_names: Sequence[str]) -> Tensor:
        """Return the text features of ``N`` class names, one per image of a batch, shape ``(N, 2, D)``."""
        return self._text.of_classes(class_names, self.clip).to(self.text_features)

    def forget_other_classes(self) -> None:
        """Delete the text features of all classes except the current one."""
        self._text.keep_only(self.class_name)

    def encode_references(self, images: Tensor) -> list[Tensor]:
        """Encode reference images one view after the other, which limits memory to the activations of one view.

        The patch tokens of an image are those of all its views (section 3.3).

        Args:
            images: Pre-processed images of shape ``(K, 3, image_size, image_size)``.

        Returns:
            Per reference stage, patch tokens of shape ``(K, P, width)``; ``P`` counts the patches of all views.

        Raises:
            ValueError: If the images have another shape or are not normalised.
        """
        images = self._checked("reference_images", images)
        with torch.inference_mode(mode=False), torch.no_grad():
            images = images.to(self.text_features)
            views = (view for image in images for view in self.windows.views(image[None]))
            tokens = [self.clip.encode_image(view, self.reference_layers).tokens for view in views]
            stages = [torch.cat([view[layer] for view in tokens]) for layer in self.reference_layers]
            return [stage.reshape(len(images), -1, self.clip.width) for stage in stages]

    def calibrate(self, minimum: float | Tensor, maximum: float | Tensor) -> None:
        """Set the range for the scaling of the few-shot map's maximum, see :meth:`SetupState.calibrate`."""
        self.state.calibrate(minimum, maximum)

    def reset_calibration(self) -> None:
        """Set the range to the smallest and the largest possible value of an anomaly map."""
        self.state.calibrate(0.0, self.largest_map_value)

    def _checked(self, name: str, images: Tensor, size: int | None = None) -> Tensor:
        """Check images and convert them to the model's precision. Exported graphs contain nothing of that."""
        size = size or self.image_size
        expected = (3, size, size)
        is_tensor = isinstance(images, Tensor)
        if not is_tensor or images.ndim != 4 or images.shape[0] == 0 or tuple(images.shape[1:]) != expected:  # noqa: PLR2004
            got = f"shape {tuple(images.shape)}" if is_tensor else type(images).__name__
            msg = (
                f"Expected argument `{name}` to be a tensor of shape (N, {', '.join(map(str, expected))}) with at "
                f"least one image, but got {got}. Apply the model's pre-processor first."
            )
            raise ValueError(msg)
        if torch.compiler.is_compiling():
            return images
        normalized = (
            f"floats that are normalised with CLIP's mean and deviation (in [-{LARGEST_INPUT}, {LARGEST_INPUT}])"
        )
        remedy = "Scale the images to [0, 1], then apply the model's pre-processor."
        if not images.is_floating_point():
            msg = f"Expected argument `{name}` to be {normalized}, but got {images.dtype}. {remedy}"
            raise ValueError(msg)
        low, high = (float(value) for value in torch.aminmax(images.detach().as_subclass(Tensor)))
        if not (low >= -LARGEST_INPUT and high <= LARGEST_INPUT):  # also refuses NaN
            msg = (
                f"Expected argument `{name}` to be {normalized}, but got values from {low:.6g} to {high:.6g}. {remedy}"
            )
            raise ValueError(msg)
        return images.to(self.text_features.dtype)

    def _require_class(self) -> None:
        if self.class_name is None:
            msg = (
                "No class has been set. Call `setup` with the name of your class first, for example `setup('bottle')`."
            )
            raise RuntimeError(msg)
