# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Pre-processing as in the authors' code: 8-bit resizing by PIL, then normalisation with CLIP's mean and deviation."""

from typing import Any

import torch
from anomalib.pre_processing import PreProcessor
from anomalib.pre_processing.utils.spec import transform_to_spec
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import Compose, InterpolationMode, Normalize, Resize
from torchvision.transforms.v2 import functional as F  # noqa: N812  # torchvision's own custom

from anomalib_aprilgan.integration.resizing import resize_by_matrices, resize_by_pil

__all__ = ["CLIP_MEAN", "CLIP_STD", "AprilGanPreProcessor", "EightBitResize"]

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


ROUNDING = 0.5 / 255
"""How far raw images may leave [0, 1]: such values round to 0 or 255."""

OVERSHOOT = 0.5
"""How far images that were resized with a bicubic filter may leave [0, 1]."""


class EightBitResize(Resize):
    """Resizes images like PIL in 8 bits (bicubic), and masks bilinear with a threshold of 0.5.

    anomalib reads images as floats. Resized as floats, they would differ from the authors' images by up to 0.24 in
    normalised units. An image or mask that already has the right size is returned unchanged. Values of float images lie
    in [0, 1]; the overshoot of an earlier bicubic resize is clamped.

    Args:
        size: Height and width in pixels.

    Raises:
        ValueError: If a float RGB image has values far outside of [0, 1], or NaN.
    """

    def __init__(self, size: int) -> None:
        super().__init__(size=(size, size), interpolation=InterpolationMode.BICUBIC, antialias=True)

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:  # noqa: ANN401  # the signature is torchvision's
        """Resize an RGB image or a mask with any number of leading dimensions. torchvision resizes everything else."""
        if not isinstance(inpt, Tensor):
            return super().transform(inpt, params)
        if torch.compiler.is_compiling():
            return self._resize_in_graph(inpt)
        is_mask = isinstance(inpt, tv_tensors.Mask)
        if not is_mask and inpt.is_floating_point() and inpt.shape[-3] == 3:  # noqa: PLR2004
            _check_range("images", inpt, OVERSHOOT)
        if tuple(inpt.shape[-2:]) == tuple(self.size):
            return inpt
        if is_mask:
            return tv_tensors.wrap(self._resize_mask(inpt.as_subclass(Tensor)), like=inpt)
        if inpt.shape[-3] != 3:  # noqa: PLR2004
            return super().transform(inpt, params)
        resized = self._resize_image(inpt.as_subclass(Tensor))
        return tv_tensors.wrap(resized, like=inpt) if isinstance(inpt, tv_tensors.Image) else resized

    def _resize_image(self, image: Tensor) -> Tensor:
        if image.dtype == torch.uint8:
            return resize_by_pil(image, self.size[0])
        as_bytes = (image.float() * 255).round().clamp(0, 255).to(torch.uint8)
        return resize_by_pil(as_bytes, self.size[0]).to(image.dtype) / 255

    def _resize_in_graph(self, image: Tensor) -> Tensor:
        """Resize a float image in an exported graph, where height and width may be symbolic."""
        sides = list(image.shape[-2:])
        if all(isinstance(side, int) for side in sides) and sides == list(self.size):
            return image
        return resize_by_matrices((image * 255).round().clamp(0, 255), self.size[0]) / 255

    def _resize_mask(self, mask: Tensor) -> Tensor:
        size = [int(side) for side in self.size]
        planes = mask.reshape(-1, 1, *mask.shape[-2:]).float()
        resized = F.resize(planes, size, interpolation=InterpolationMode.BILINEAR, antialias=True)
        return (resized > 0.5).to(mask.dtype).reshape(*mask.shape[:-2], *size)  # noqa: PLR2004


class AprilGanPreProcessor(PreProcessor):
    """The default pre-processor: :class:`EightBitResize`, then CLIP's normalisation.

    Args:
        image_size: Height and width in pixels.
    """

    def __init__(self, image_size: int) -> None:
        super().__init__(_default_transform(image_size))
        self.image_size = image_size
        self.export_transform = self.transform

    def resize_to(self, image_size: int) -> None:
        """Change the size that images are resized to. A custom transform is kept.

        Args:
            image_size: Height and width in pixels.
        """
        if image_size != self.image_size and self._has_default_transform:
            self.transform = self.export_transform = _default_transform(image_size)
        self.image_size = image_size

    def forward(self, batch: Tensor) -> Tensor:
        """Pre-process raw images for inference.

        A transform of your own gets the images unchanged. In exported graphs nothing is checked or converted.

        Args:
            batch: RGB images of shape ``(N, 3, h, w)``: floats of any precision in [0, 1], or 8-bit integers.

        Returns:
            Normalised float images of shape ``(N, 3, image_size, image_size)``.

        Raises:
            ValueError: If the images have another shape or type, or values outside of [0, 1].
        """
        if not torch.compiler.is_compiling() and self._has_default_transform:
            batch = _to_unit_floats(batch)
        return super().forward(batch)

    def are_usable(self, batch: Tensor) -> Tensor:
        """Tell in an exported graph which raw images :meth:`forward` would accept.

        Args:
            batch: Float images of shape ``(N, 3, h, w)``.

        Returns:
            Booleans of shape ``(N,)``: false for values outside of [0, 1] or NaN. A transform of your own gets all
            images.
        """
        if not self._has_default_transform:
            return torch.ones(len(batch), dtype=torch.bool, device=batch.device)
        is_inside = (batch >= -ROUNDING) & (batch <= 1 + ROUNDING)  # false for NaN
        return is_inside.float().amin(dim=(1, 2, 3)) > 0

    @property
    def resize(self) -> EightBitResize:
        """The resizing alone, as a transform for a dataset whose images have several sizes."""
        return EightBitResize(self.image_size)

    @property
    def _has_default_transform(self) -> bool:
        parts: list[Any] = list(getattr(self.transform, "transforms", ()))
        if [type(part) for part in parts] != [EightBitResize, Normalize]:
            return False
        resize, normalize = parts
        is_same_size = tuple(resize.size) == (self.image_size, self.image_size)
        return is_same_size and tuple(normalize.mean) == CLIP_MEAN and tuple(normalize.std) == CLIP_STD

    def checkpoint_config(self) -> dict[str, Any]:
        """Describe the transform as plain data. anomalib's pre-processor can restore the nearest stock transform."""
        if not self._has_default_transform:
            return super().checkpoint_config()
        size = (self.image_size, self.image_size)
        resize = Resize(size, interpolation=InterpolationMode.BICUBIC, antialias=True)
        equivalent = Compose([resize, Normalize(mean=list(CLIP_MEAN), std=list(CLIP_STD))])
        return {"image_size": self.image_size, "transform": transform_to_spec(equivalent)}

    def load_checkpoint_config(self, config: dict[str, Any]) -> None:
        """Restore a custom transform. The default transform is not restored, since the model sets the image size."""
        if "image_size" not in config:
            super().load_checkpoint_config(config)


def _default_transform(image_size: int) -> Compose:
    return Compose([EightBitResize(image_size), Normalize(mean=CLIP_MEAN, std=CLIP_STD)])


def _to_unit_floats(images: object) -> Tensor:
    """Convert raw images to floats in [0, 1]; refuse what is no batch of RGB images."""
    expected = "RGB images of shape (N, 3, height, width), with floats in [0, 1] or 8-bit integers (torch.uint8)"
    if not isinstance(images, Tensor):
        msg = f"Expected argument `batch` to be a tensor with {expected}, but got {type(images).__name__}."
        raise ValueError(msg)  # noqa: TRY004  # one kind of error for all arguments
    if images.ndim != 4 or images.shape[1] != 3 or not images.numel():  # noqa: PLR2004
        msg = (
            f"Expected argument `batch` to be {expected}, but got shape {tuple(images.shape)}. Add the dimension of a "
            "single image with `image[None]`, repeat the channel of grey images with `images.expand(-1, 3, -1, -1)`, "
            "drop the alpha channel of RGBA images with `images[:, :3]`, and move channels that come last with "
            "`images.permute(0, 3, 1, 2)`."
        )
        raise ValueError(msg)
    if images.dtype == torch.uint8:
        return images.float() / 255
    if not images.is_floating_point():
        msg = f"Expected argument `batch` to be {expected}, but got {images.dtype}. Convert the images."
        raise ValueError(msg)
    _check_range("batch", images, ROUNDING)
    return images.float()


def _check_range(name: str, images: Tensor, tolerance: float) -> None:
    low, high = (float(value) for value in torch.aminmax(images.detach().as_subclass(Tensor)))
    if not (-tolerance <= low and high <= 1 + tolerance):  # also refuses NaN
        msg = (
            f"Expected argument `{name}` to have values in [0, 1], but got values from {low:.6g} to {high:.6g}. Divide "
            "8-bit values by 255, do not normalise the images, and replace NaN."
        )
        raise ValueError(msg)
