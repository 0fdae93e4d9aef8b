# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Training data of the embedded CLIP: batches of pairs of images, augmented and with captions."""

import hashlib
from bisect import bisect_right
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor

from anomalib_aprilgan.demo.drawing.scenes import AUXILIARY_DEFECTS
from anomalib_aprilgan.integration.pre_processing import CLIP_MEAN, CLIP_STD
from anomalib_aprilgan.pretraining.captions import captions
from anomalib_aprilgan.pretraining.damage import DEFECT_NAMES
from anomalib_aprilgan.pretraining.pair_files import pair_type

__all__ = ["Batch", "Pairs"]

DEFECTS = {*AUXILIARY_DEFECTS, *DEFECT_NAMES}
"""Names of defects in files of pairs."""

DAMAGED = "Expected {} to hold pairs of images, but it is damaged or of another kind. Delete it and run again."

CROPPED_FRACTION = 0.6
"""Fraction of the pairs of which a part is shown, so that small images show small defects too."""


class Batch(NamedTuple):
    """A batch of ``B`` pairs.

    Attributes:
        images: Normalised images without and with the defect, shape ``(B, 2, 3, H, W)``.
        references: Normalised images without defect, seen otherwise, shape ``(B, 3, H, W)``.
        covered: Fraction of each patch that the defect covers, shape ``(B, P)``, in [0, 1].
        captions: Two captions per pair: normal, abnormal.
        is_named: Whether the captions name the kind, shape ``(B,)``.
        kinds: Number of each pair's kind, shape ``(B,)``; equal for the same kind.
    """

    images: Tensor
    references: Tensor
    covered: Tensor
    captions: list[str]
    is_named: Tensor
    kinds: Tensor

    def to(self, device: torch.device) -> "Batch":
        """Move the tensors to a device."""
        images, references, covered, is_named, kinds = (
            tensor.to(device) for tensor in (self.images, self.references, self.covered, self.is_named, self.kinds)
        )
        return Batch(images, references, covered, self.captions, is_named, kinds)


class Pairs:
    """All pairs, read from files when they are needed.

    Args:
        files: Files of :func:`~anomalib_aprilgan.pretraining.pair_files.write_pairs`.

    Raises:
        ValueError: If a file is damaged or of another kind.

    Attributes:
        digest: Digest of the files' names, which say what they contain.
    """

    def __init__(self, files: list[Path]) -> None:
        self._files: list[np.memmap[Any, np.dtype[np.void]]] = [_read(file) for file in files]
        self._ends = list(accumulate(len(file) for file in self._files))
        names = "\n".join(file.name for file in files)
        self.digest = hashlib.sha256(names.encode()).hexdigest()[:8]

    def __len__(self) -> int:
        return self._ends[-1]

    def _row(self, number: int) -> np.void:
        """Read a pair.

        Raises:
            ValueError: If its names are damaged.
        """
        place = bisect_right(self._ends, number)
        file = self._files[place]
        row: np.void = file[number - self._ends[place]]
        try:
            is_right = str(row["kind"]) != "" and str(row["defect"]) in DEFECTS
        except ValueError:  # numbers that are no characters
            is_right = False
        if not is_right:
            raise ValueError(DAMAGED.format(file.filename))
        return row

    def batch(self, size: int, rng: Generator, image_size: int, patch_size: int) -> Batch:
        """Choose pairs at random, crop, resize and augment them, and write their captions.

        Both images of a pair are cropped, rotated by a multiple of 90 degrees, mirrored and have their colour channels
        permuted in the same way. Crops contain a part of the defect. The reference is a crop of the same size
        near it, turned and mirrored differently, with the same permutation of the channels.

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
        images = np.empty((len(rows), 3, image_size, image_size, 3), np.uint8)
        masks = np.empty((len(rows), grid, grid), np.uint8)
        texts: list[str] = []
        is_named = []
        for i, row in enumerate(rows):
            normal, abnormal = row["images"]
            here, elsewhere = _squares(row["mask"], len(normal), image_size, rng)
            turn, turn_otherwise = (_Turn(int(rng.integers(4)), bool(rng.integers(2))) for _ in range(2))
            channels = rng.permutation(3) if rng.random() < 0.5 else np.arange(3)  # noqa: PLR2004
            mask = cv2.resize(row["mask"], normal.shape[:2], interpolation=cv2.INTER_NEAREST)
            masks[i] = turn(here.cut(mask, grid))
            views = (normal, here, turn), (abnormal, here, turn), (normal, elsewhere, turn_otherwise)
            for view, (picture, square, turned) in enumerate(views):
                images[i, view] = turned(square.cut(picture, image_size))[..., channels]
            *both, named = captions(str(row["kind"]), str(row["defect"]), rng)
            texts += both
            is_named.append(named)
        _, kinds = np.unique([str(row["kind"]) for row in rows], return_inverse=True)
        normalised = (torch.from_numpy(images) / 255 - torch.tensor(CLIP_MEAN)) / torch.tensor(CLIP_STD)
        normalised = normalised.movedim(-1, 2)
        return Batch(
            normalised[:, :2],
            normalised[:, 2],
            torch.from_numpy(masks).flatten(1) / 255,
            texts,
            torch.tensor(is_named),
            torch.from_numpy(kinds).long(),
        )


def _read(file: Path) -> np.memmap[Any, np.dtype[np.void]]:
    """Map a file into memory.

    Raises:
        ValueError: If it is damaged or of another kind.
    """
    try:
        rows: np.memmap[Any, np.dtype[np.void]] = np.lib.format.open_memmap(file, mode="r")
        is_right = rows.ndim == 1 and len(rows) > 0 and rows.dtype == pair_type(rows.dtype["images"].shape[1])
    except Exception:  # numpy raises errors of many types, and may advise to run the code of a file
        is_right = False
    if not is_right:
        raise ValueError(DAMAGED.format(file))
    return rows


class _Turn(NamedTuple):
    """Rotation by a number of quarters, then a reflection."""

    quarters: int
    is_mirrored: bool

    def __call__(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return np.rot90(picture, self.quarters)[:, :: -1 if self.is_mirrored else 1]


class _Square(NamedTuple):
    """Part of a picture, in pixels."""

    top: int
    left: int
    side: int

    def cut(self, picture: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
        """Crop a picture and resize the part to height and width ``size``."""
        part = picture[self.top : self.top + self.side, self.left : self.left + self.side]
        return np.asarray(cv2.resize(part, (size, size), interpolation=cv2.INTER_AREA), np.uint8)


def _squares(mask: NDArray[np.uint8], extent: int, least: int, rng: Generator) -> tuple[_Square, _Square]:
    """Choose a square that contains a part of the defect, and another one at most a quarter of its side away.

    Args:
        mask: The defect, at half the pictures' size.
        extent: Height and width of the pictures in pixels.
        least: Least side of the squares in pixels.
        rng: Random generator.
    """
    whole = _Square(0, 0, extent)
    defect = np.argwhere(mask > 127)  # noqa: PLR2004
    if least >= extent or not len(defect) or rng.random() > CROPPED_FRACTION:
        return whole, whole
    side = int(np.exp(rng.uniform(np.log(least), np.log(extent))))
    corner = 2 * defect[rng.integers(len(defect))] - rng.integers(side // 8, side - side // 8, size=2)
    near = corner + rng.integers(-side // 4, side // 4 + 1, size=2)
    here, elsewhere = (np.clip(place, 0, extent - side) for place in (corner, near))
    return _Square(int(here[0]), int(here[1]), side), _Square(int(elsewhere[0]), int(elsewhere[1]), side)
