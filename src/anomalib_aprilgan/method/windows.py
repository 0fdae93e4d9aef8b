# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Sliding window for small defects in large images. It is not part of the paper.

anomalib's tiling does not fit. Its ``Tiler`` averages overlapping tiles with equal weights, which leaves steps at their
borders, and it encodes all tiles at once. A callback attaches it to a model, so neither checkpoints nor exported models
would contain it. anomalib's tiled ensemble trains a model for each position.
"""

from collections.abc import Iterable, Iterator
from math import ceil, pi

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad

__all__ = ["Windows"]

SMALLEST_OVERLAP = 0.25
"""Share of its width that a window has in common with its neighbour, at least."""

WHOLE_SHARE = 0.25
"""Weight of the map of the whole image. It was chosen on drawn images with ViT-builtin, as was the rule for the score:
the map of the windows alone finds small defects hardly better, and large ones much worse."""


class Windows(nn.Module):
    """Cuts images into views, and merges the predictions of the views.

    The views of an image are windows, on a square grid with equal distances, and the whole image reduced to the size of
    a window: a window may show too little of an object to tell what it is. If the images are not larger than a window,
    the image itself is the only view.

    Args:
        image_size: Height and width of the images in pixels.
        size: Height and width of the windows in pixels, at most ``image_size``.

    Attributes:
        starts: First pixel of each window along a side of the image, in rising order.
    """

    def __init__(self, image_size: int, size: int) -> None:
        super().__init__()
        self.image_size = image_size
        self.size = size
        rest = image_size - size
        steps = ceil(rest / (size * (1 - SMALLEST_OVERLAP)))
        self.starts = tuple(round(step * rest / steps) for step in range(steps + 1)) if steps else (0,)
        self.register_buffer("weights", _weights(image_size, size, self.starts), persistent=False)
        self.register_buffer("reduction", _reduction(image_size, size), persistent=False)
        self.weights: Tensor
        self.reduction: Tensor

    def __len__(self) -> int:
        """Number of views of an image, which is its number of passes through the image tower."""
        windows = len(self.starts) ** 2
        return windows + 1 if windows > 1 else 1

    def views(self, images: Tensor) -> Iterator[Tensor]:
        """Cut images into views, one view of all images after the other.

        Args:
            images: Images or masks as floats, shape ``(..., image_size, image_size)``.

        Yields:
            Views of shape ``(..., size, size)``: the windows row by row, then the whole image.
        """
        if len(self) == 1:
            yield images
            return
        for top in self.starts:
            for left in self.starts:
                yield images[..., top : top + self.size, left : left + self.size]
        yield self.reduction @ images @ self.reduction.T

    def merge(self, predictions: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Merge the predictions of all views of images. Only one of them is in memory at a time.

        The score is the mean of the whole image's score and of the largest score of the windows. The maps of the
        windows are blended with weights that fall smoothly to the borders of a window. The result is averaged with the
        map of the whole image, which has a weight of 0.25.

        Args:
            predictions: For each view, in the order of :meth:`views`, scores of shape ``(N,)`` and anomaly maps of
                shape ``(N, size, size)``.

        Returns:
            Scores of shape ``(N,)`` and anomaly maps of shape ``(N, image_size, image_size)``.
        """
        predictions = iter(predictions)
        score, anomaly_map = next(predictions)
        if len(self) == 1:
            return score, anomaly_map
        largest, blended = score, self._weighted(anomaly_map, 0)
        for number in range(1, len(self) - 1):
            score, anomaly_map = next(predictions)
            largest, blended = torch.maximum(largest, score), blended + self._weighted(anomaly_map, number)
        score, anomaly_map = next(predictions)
        size = (self.image_size, self.image_size)
        whole = interpolate(anomaly_map[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
        return (score + largest) / 2, WHOLE_SHARE * whole + (1 - WHOLE_SHARE) * blended

    def _weighted(self, maps: Tensor, number: int) -> Tensor:
        """Multiply the maps of a window by its weights, and surround them with zeros up to the size of the images."""
        row, column = divmod(number, len(self.starts))
        weighted = self.weights[row, :, None] * self.weights[column] * maps
        (top, left), rest = (self.starts[row], self.starts[column]), self.image_size - self.size
        return pad(weighted, (left, rest - left, top, rest - top))


def _weights(image_size: int, size: int, starts: tuple[int, ...]) -> Tensor:
    """Compute the weights of the windows along a side. At each pixel, the weights of all windows add up to 1.

    Returns:
        Tensor of shape ``(len(starts), size)``.
    """
    profile = torch.sin(pi * (torch.arange(size, dtype=torch.float64) + 0.5) / size) ** 2
    total = torch.stack([pad(profile, (start, image_size - size - start)) for start in starts]).sum(dim=0)
    return torch.stack([profile / total[start : start + size] for start in starts]).float()


def _reduction(image_size: int, size: int) -> Tensor:
    """Compute the matrix that reduces a column of pixels, bicubic with antialiasing, shape ``(size, image_size)``."""
    pixels = torch.eye(image_size)[None, None]
    return interpolate(pixels, size=(size, image_size), mode="bicubic", antialias=True)[0, 0]
