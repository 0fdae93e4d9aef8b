# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Training data of the embedded CLIP: batches of pairs of images, augmented and with captions."""

import hashlib
from bisect import bisect_right
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor

from anomalib_aprilgan.integration.pre_processing import CLIP_MEAN, CLIP_STD
from anomalib_aprilgan.pretraining.captions import captions

__all__ = ["Batch", "Pairs"]


class Batch(NamedTuple):
    """A batch of ``B`` pairs.

    Attributes:
        images: Normalised images without and with the defect, shape ``(B, 2, 3, H, W)``.
        covered: Fraction of each patch that the defect covers, shape ``(B, P)``, in [0, 1].
        captions: Two captions per pair: normal, abnormal.
        is_named: Whether the captions name the kind, shape ``(B,)``.
        kinds: Number of each pair's kind, shape ``(B,)``; equal for the same kind.
    """

    images: Tensor
    covered: Tensor
    captions: list[str]
    is_named: Tensor
    kinds: Tensor

    def to(self, device: torch.device) -> "Batch":
        """Move the tensors to a device."""
        images, covered, is_named, kinds = (
            tensor.to(device) for tensor in (self.images, self.covered, self.is_named, self.kinds)
        )
        return Batch(images, covered, self.captions, is_named, kinds)


class Pairs:
    """All pairs, read from files when they are needed.

    Args:
        files: Files of :func:`~anomalib_aprilgan.pretraining.pair_files.write_pairs`.

    Attributes:
        digest: Digest of the files' names, which say what they contain.
    """

    def __init__(self, files: list[Path]) -> None:
        self._files = [np.load(file, mmap_mode="r") for file in files]
        self._ends = list(accumulate(len(file) for file in self._files))
        names = "\n".join(file.name for file in files)
        self.digest = hashlib.sha256(names.encode()).hexdigest()[:8]

    def __len__(self) -> int:
        return self._ends[-1]

    def _row(self, number: int) -> np.void:
        file = bisect_right(self._ends, number)
        return self._files[file][number - self._ends[file]]

    def batch(self, size: int, rng: Generator, image_size: int, patch_size: int) -> Batch:
        """Choose pairs at random, resize and augment them, and write their captions.

        Both images of a pair are rotated by a multiple of 90 degrees, mirrored and have their colour channels permuted
        in the same way.

        Args:
            size: Number of pairs, at most the number of all pairs.
            rng: Random generator.
            image_size: Height and width of the images in pixels.
            patch_size: Height and width of a patch in pixels.

        Returns:
            The batch.
        """
        rows = [self._row(int(number)) for number in rng.choice(len(self), min(size, len(self)), replace=False)]
        grid = image_size // patch_size
        images = np.empty((len(rows), 2, image_size, image_size, 3), np.uint8)
        masks = np.empty((len(rows), grid, grid), np.uint8)
        texts: list[str] = []
        is_named = []
        for i, row in enumerate(rows):
            turns, is_mirrored = int(rng.integers(4)), bool(rng.integers(2))
            channels = rng.permutation(3) if rng.random() < 0.5 else np.arange(3)  # noqa: PLR2004
            mask = cv2.resize(row["mask"], (grid, grid), interpolation=cv2.INTER_AREA)
            masks[i] = np.rot90(mask, turns)[:, :: -1 if is_mirrored else 1]
            for state, picture in enumerate(row["images"]):
                resized = cv2.resize(picture, (image_size, image_size), interpolation=cv2.INTER_AREA)
                images[i, state] = np.rot90(resized, turns)[:, :: -1 if is_mirrored else 1, channels]
            normal, abnormal, named = captions(str(row["kind"]), str(row["defect"]), rng)
            texts += [normal, abnormal]
            is_named.append(named)
        _, kinds = np.unique([str(row["kind"]) for row in rows], return_inverse=True)
        return Batch(
            ((torch.from_numpy(images) / 255 - torch.tensor(CLIP_MEAN)) / torch.tensor(CLIP_STD)).movedim(-1, 2),
            torch.from_numpy(masks).flatten(1) / 255,
            texts,
            torch.tensor(is_named),
            torch.from_numpy(kinds).long(),
        )
