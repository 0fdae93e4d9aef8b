# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Bicubic resizing of 8-bit images, as PIL did when the authors used it: with PIL, and as part of an exported graph.

PIL resizes in two passes and rounds to 8 bits after each, so their order shows in the result. It used to be width
first, always; from release 13 on it is height first where an image shrinks much more in height. Here it is width first,
whatever release is installed.
"""

from typing import cast

import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F  # noqa: N812  # torchvision's own custom

from anomalib_aprilgan.integration.double_single import Pair, add, divide, exactly, multiply

__all__ = ["resize_by_matrices", "resize_by_pil"]


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
    """Do the same, to the last grey level, by a product with a matrix per pass, which every runtime has.

    Args:
        images: Float images of whole grey levels in [0, 255], shape ``(..., h, w)``; height and width may be symbolic.
        size: Height and width in pixels.

    Returns:
        Float images of whole grey levels in [0, 255], shape ``(..., size, size)``.
    """
    widened = _resize_last(images, size)
    return _resize_last(widened.mT, size).mT


def _resize_last(levels: Tensor, new: int) -> Tensor:
    """Resize the last dimension, and round to whole grey levels, halves upwards."""
    coarse, fine = _digits(levels.shape[-1], new, levels.device)
    coarse_sum, fine_sum = levels @ coarse.T / 2**11, levels @ fine.T / 2**22
    whole = coarse_sum.floor()
    rest = coarse_sum - whole + fine_sum
    return (whole + (rest + 0.5).floor()).clamp(0, 255)


def _digits(old: int, new: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Compute how much each old pixel adds to each new one.

    PIL's weights are whole multiples of 2 ** -22, and so are their sums, which single precision cannot hold. Their
    coarse and fine digits are therefore summed apart; those sums it holds.

    Returns:
        Coarse and fine digits of the weights, in units of 2 ** -11 and 2 ** -22, both of shape ``(new, old)``.
    """
    larger = cast("int", torch.sym_max(old, new))  # in a graph, a symbol
    reach = 2 * ((larger + new - 1) // new)  # of the kernel in old pixels, rounded up
    centres = torch.arange(new, device=device)[:, None] * 2 + 1  # of new pixels, in halves of them
    pixels = centres * old // (2 * new) + torch.arange(-reach, reach + 1, device=device)  # within reach
    is_inside = (pixels >= 0) & (pixels < old)

    # In whole numbers, which no runtime rounds, until distances are known.
    offsets = ((2 * pixels + 1) * new - centres * old).abs().float()
    kernel = _bicubic(divide(exactly(offsets), exactly(torch.zeros_like(offsets) + 2 * larger)))
    kernel = Pair(*(part * is_inside for part in kernel))
    weights = divide(kernel, Pair(*(part.expand_as(offsets) for part in _sum_of_row(kernel))))

    scaled = weights.high * 2**11
    coarse = scaled.round()
    fine = ((scaled - coarse + weights.low * 2**11) * 2**11).round()
    places = pixels.clamp(0, old - 1)
    empty = torch.zeros(new, old, device=device)
    return empty.scatter_add(1, places, coarse), empty.scatter_add(1, places, fine)


def _bicubic(distance: Pair) -> Pair:
    """Evaluate PIL's kernel (of parameter -1/2), which is one polynomial up to a distance of 1 and another up to 2."""
    minus_distance = Pair(-distance.high, -distance.low)
    to_one = add(exactly(1.0), minus_distance)
    to_two = add(exactly(2.0), minus_distance)
    # With x = 1 - d, the first is x (1/2 + x (2 - 3/2 x)), and the second 1/2 x (2 - d)^2.
    inner = add(exactly(2.0), multiply(exactly(-1.5), to_one))
    near = multiply(to_one, add(exactly(0.5), multiply(to_one, inner)))
    far = multiply(multiply(exactly(0.5), to_one), multiply(to_two, to_two))
    return Pair(
        *(
            torch.where(distance.high < 1, within, torch.where(distance.high < 2, beyond, 0.0))  # noqa: PLR2004
            for within, beyond in zip(near, far, strict=True)
        )
    )


def _sum_of_row(values: Pair) -> Pair:
    """Sum the last dimension."""
    coarse = (values.high * 2**11).round() / 2**11  # of so few digits that no sum is rounded
    fine = values.high - coarse + values.low
    return add(exactly(coarse.sum(dim=-1, keepdim=True)), exactly(fine.sum(dim=-1, keepdim=True)))
