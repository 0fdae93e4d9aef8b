# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Bicubic resizing of 8-bit images with the results of the authors' PIL: by PIL, or by matrices in exported graphs.

PIL resizes width and height in two passes and rounds to 8 bits after each pass, so their order changes the result.
Earlier releases always resize the width first. Release 13 resizes the height first if an image shrinks much more in
height. The functions below always resize the width first.
"""

from typing import cast

import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F  # noqa: N812  # torchvision's own custom

from anomalib_aprilgan.integration.double_single import Pair, add, divide, multiply, to_pair

__all__ = ["resize_by_matrices", "resize_by_pil"]


def resize_by_pil(images: Tensor, size: int) -> Tensor:
    """Resize images with PIL, width first.

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
    new_width = F.resize(F.to_pil_image(image), [image.shape[-2], size], interpolation=bicubic)
    return F.pil_to_tensor(F.resize(new_width, [size, size], interpolation=bicubic))


def resize_by_matrices(images: Tensor, size: int) -> Tensor:
    """Resize images with one matrix product per pass, to exactly the same 8-bit values as :func:`resize_by_pil`.

    Every runtime of exported models supports the operations that are used.

    Args:
        images: Float images with integer values in [0, 255], shape ``(..., h, w)``; height and width may be symbolic.
        size: Height and width in pixels.

    Returns:
        Float images with integer values in [0, 255], shape ``(..., size, size)``.
    """
    new_width = _resize_last(images, size)
    return _resize_last(new_width.mT, size).mT


def _resize_last(levels: Tensor, new: int) -> Tensor:
    """Resize the last dimension and round to integers, halves upwards."""
    coarse, fine = _weights(levels.shape[-1], new, levels.device)
    coarse_sum, fine_sum = levels @ coarse.T / 2**11, levels @ fine.T / 2**22
    whole = coarse_sum.floor()
    rest = coarse_sum - whole + fine_sum
    return (whole + (rest + 0.5).floor()).clamp(0, 255)


def _weights(old: int, new: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Compute the weight of each old pixel in each new pixel, as PIL does.

    PIL's weights and their weighted sums are multiples of 2 ** -22, which single precision cannot represent. Each
    weight is therefore split into a coarse and a fine part, whose sums are exact in single precision.

    Args:
        old: Number of old pixels.
        new: Number of new pixels.
        device: Device of the weights.

    Returns:
        Coarse and fine parts of the weights, in units of 2 ** -11 and 2 ** -22, both of shape ``(new, old)``.
    """
    larger = cast("int", torch.sym_max(old, new))  # sizes are symbolic while a graph is exported
    reach = 2 * ((larger + new - 1) // new)  # radius of the kernel in old pixels, rounded up
    centres = torch.arange(new, device=device)[:, None] * 2 + 1  # centres of new pixels, in half pixels
    pixels = centres * old // (2 * new) + torch.arange(-reach, reach + 1, device=device)
    is_inside = (pixels >= 0) & (pixels < old)

    # The distances are computed with integers, which no runtime rounds.
    offsets = ((2 * pixels + 1) * new - centres * old).abs().float()
    kernel = _bicubic(divide(to_pair(offsets), to_pair(torch.zeros_like(offsets) + 2 * larger)))
    kernel = Pair(*(part * is_inside for part in kernel))
    weights = divide(kernel, Pair(*(part.expand_as(offsets) for part in _sum_of_row(kernel))))

    scaled = weights.high * 2**11
    coarse = scaled.round()
    fine = ((scaled - coarse + weights.low * 2**11) * 2**11).round()
    places = pixels.clamp(0, old - 1)
    empty = torch.zeros(new, old, device=device)
    return empty.scatter_add(1, places, coarse), empty.scatter_add(1, places, fine)


def _bicubic(distance: Pair) -> Pair:
    """Evaluate PIL's bicubic kernel (a = -1/2): one polynomial for distances below 1, another for 1 to 2, else 0."""
    minus_distance = Pair(-distance.high, -distance.low)
    one_minus = add(to_pair(1.0), minus_distance)
    two_minus = add(to_pair(2.0), minus_distance)
    # With x = 1 - d, the first polynomial is x (1/2 + x (2 - 3/2 x)), and the second is 1/2 x (2 - d)^2.
    inner = add(to_pair(2.0), multiply(to_pair(-1.5), one_minus))
    near = multiply(one_minus, add(to_pair(0.5), multiply(one_minus, inner)))
    far = multiply(multiply(to_pair(0.5), one_minus), multiply(two_minus, two_minus))
    return Pair(
        *(
            torch.where(distance.high < 1, within, torch.where(distance.high < 2, beyond, 0.0))  # noqa: PLR2004
            for within, beyond in zip(near, far, strict=True)
        )
    )


def _sum_of_row(values: Pair) -> Pair:
    """Sum over the last dimension."""
    coarse = (values.high * 2**11).round() / 2**11  # so few binary digits that sums are exact
    fine = values.high - coarse + values.low
    return add(to_pair(coarse.sum(dim=-1, keepdim=True)), to_pair(fine.sum(dim=-1, keepdim=True)))
