# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Stored images and masks of the model's size, which need not be decoded and resized again."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import PIL
import torch
from torch import Tensor
from torchvision.tv_tensors import Image, Mask

from anomalib_aprilgan.files.feature_files import FeatureFiles

__all__ = ["read_or_store"]


def read_or_store(
    files: FeatureFiles, image_size: int, paths: tuple[str, str], read: Callable[[], tuple[Image, Mask]]
) -> tuple[Image, Mask]:
    """Return a resized image with its mask: as it was stored before, or newly read.

    They are found by the content of their files.

    Args:
        files: Where they are stored.
        image_size: Height and width in pixels.
        paths: Files of the image and of its mask; the latter is empty if there is none.
        read: Reads and resizes them.

    Returns:
        Image of shape ``(3, image_size, image_size)`` in [0, 1], and mask of shape ``(image_size, image_size)``.
    """
    digest = hashlib.sha256(f"1 {PIL.__version__} {bool(paths[1])}".encode())
    for path in filter(None, paths):
        content = Path(path).read_bytes()
        digest.update(len(content).to_bytes(8, "big"))
        digest.update(content)
    group, name = f"images-{image_size}", digest.hexdigest()[:40]
    stored = files.read(group, name)
    if stored is not None and stored[0].keys() >= {"image", "mask"}:
        image, mask = stored[0]["image"], stored[0]["mask"]
        return Image(image.float() / 255), Mask(mask.clone())
    image, mask = read()
    as_bytes = (image.as_subclass(Tensor) * 255).round().to(torch.uint8)
    if torch.equal(as_bytes.float() / 255, image.as_subclass(Tensor)):  # true of images that the model resizes
        files.write(group, name, {"image": as_bytes, "mask": mask.as_subclass(Tensor).contiguous()}, {})
    return image, mask
