# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Bicubic resizing of 8-bit images, as PIL did when the authors used it: with PIL, and as part of an exported graph.

PIL resizes in two passes and rounds to 8 bits after each, so their order shows in the result. It used to be width
first, always; from release 13 on it is height first where an image shrinks much more in height. Here it is width first,
whatever release is installed.
"""

import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F  # noqa: N812  # torchvision's own custom

__all__ = ["resize_by_matrices", "resize_by_pil"]

SHARPNESS = -0.5
"""PIL's choice of the bicubic kernel's one parameter."""


def resize_by_pil(images: Tensor, size: int) -> Tensor:
    """Resize images with PIL.

    Args:
        images: 8-bit images of shape ``(..., 3, h, w)``.
        size: Height and width in pixels.

    Returns:
        8-bit images of shape ``(..., 3, size, size)``.
    """
    resized = [_resize_one(image, size) for image in images.cpu().reshape(-1, *images.shape[-3:])]
    return torch.stack(resized).reshape(*images.shape[:-2], size, size).to(images.device)


def _resize_one(image: Tensor, size: int) -> Tensor:
    bicubic = InterpolationMode.BICUBIC
    widened = F.resize(F.to_pil_image(image), [image.shape[-2], size], interpolation=bicubic)
    return F.pil_to_tensor(F.resize(widened, [size, size], interpolation=bicubic))


def resize_by_matrices(images: Tensor, size: int) -> Tensor:
    """Do the same by a product with a matrix per pass, which every runtime has.

    The result is the same to the last grey level where the runtime computes the weights in double precision, as ONNX
    Runtime does. Where it does not, as with OpenVINO, a few in a hundred thousand values are off by one level.

    Args:
        images: Float images of whole grey levels in [0, 255], shape ``(..., h, w)``; height and width may be symbolic.
        size: Height and width in pixels.

    Returns:
        Float images of whole grey levels in [0, 255], shape ``(..., size, size)``.
    """
    widened = _resize_last(images, size)
    return _resize_last(widened.mT, size).mT


def _resize_last(levels: Tensor, new: int) -> Tensor:
    """Resize the last dimension, and round to whole grey levels, halves upwards.

    PIL's weights are whole multiples of 2 ** -22, and so are their sums, which single precision cannot hold. Weights
    are therefore halved into coarse and fine digits, whose sums it holds exactly.
    """
    weights = (_weights(levels.shape[-1], new) * 2**22).round()
    coarse = (weights / 2**11).round()
    fine = weights - coarse * 2**11
    digits = torch.cat([coarse, fine]).to(levels)
    sums = levels @ digits.T
    coarse_sum, fine_sum = sums[..., :new] / 2**11, sums[..., new:] / 2**22
    whole = coarse_sum.floor()
    rest = coarse_sum - whole + fine_sum
    return (whole + (rest + 0.5).floor()).clamp(0, 255)


def _weights(old: int, new: int) -> Tensor:
    """Compute how much each old pixel adds to each new one, shape ``(new, old)``; rows sum to 1."""
    steps = torch.arange(old) * 2 + 1  # centres of pixels, in half pixels
    new_steps = torch.arange(new) * 2 + 1
    # In whole numbers, which no runtime rounds, until distances are known.
    offset = (steps * new - new_steps[:, None] * old).abs().double()
    weights = _bicubic(torch.div(offset, 2 * torch.sym_max(old, new)))  # type: ignore[arg-type]  # symbols in a graph
    return weights / weights.sum(dim=-1, keepdim=True)


def _bicubic(distance: Tensor) -> Tensor:
    """Evaluate the kernel, which ends at a distance of 2."""
    near = ((SHARPNESS + 2) * distance - (SHARPNESS + 3)) * distance.square() + 1
    far = SHARPNESS * (((distance - 5) * distance + 8) * distance - 4)
    return torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))  # noqa: PLR2004
