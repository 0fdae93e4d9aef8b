# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Training data of the embedded CLIP: batches of pairs of images, augmented and with captions."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor

from anomalib_aprilgan.demo.drawing.scenes import AUXILIARY_DEFECTS, AUXILIARY_KINDS
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
        kinds: Index of each pair's kind, shape ``(B,)``.
    """

    images: Tensor
    covered: Tensor
    captions: list[str]
    is_named: Tensor
    kinds: Tensor


class Pairs:
    """All pairs, loaded into memory.

    Args:
        files: Files of :func:`~anomalib_aprilgan.pretraining.drawn_files.draw_pairs`.
    """

    def __init__(self, files: list[Path]) -> None:
        parts = [np.load(file) for file in files]
        self.images, self.masks, self.kinds, self.defects = (
            np.concatenate([part[name] for part in parts]) for name in ("images", "masks", "kinds", "defects")
        )

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, size: int, rng: Generator) -> Batch:
        """Choose pairs at random, augment them and write their captions.

        Both images of a pair are rotated by a multiple of 90 degrees, mirrored and have their colour channels permuted
        in the same way.

        Args:
            size: Number of pairs, at most the number of all pairs.
            rng: Random generator.

        Returns:
            The batch.
        """
        chosen = rng.choice(len(self.images), min(size, len(self.images)), replace=False)
        images, masks = self.images[chosen], self.masks[chosen]
        texts: list[str] = []
        is_named = []
        for i, number in enumerate(chosen):
            turns, mirrored = int(rng.integers(4)), bool(rng.integers(2))
            images[i], masks[i] = np.rot90(images[i], turns, (1, 2)), np.rot90(masks[i], turns)
            if mirrored:
                images[i], masks[i] = images[i][:, :, ::-1], masks[i][:, ::-1]
            if rng.random() < 0.5:  # noqa: PLR2004
                images[i] = images[i][..., rng.permutation(3)]
            normal, abnormal, named = captions(
                AUXILIARY_KINDS[self.kinds[number]], AUXILIARY_DEFECTS[self.defects[number]], rng
            )
            texts += [normal, abnormal]
            is_named.append(named)
        return Batch(
            ((torch.from_numpy(images) / 255 - torch.tensor(CLIP_MEAN)) / torch.tensor(CLIP_STD)).movedim(-1, 2),
            torch.from_numpy(masks).flatten(1) / 255,
            texts,
            torch.tensor(is_named),
            torch.from_numpy(self.kinds[chosen]).long(),
        )
