# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Training data of the embedded CLIP: pairs of the same image without and with a defect, stored in files."""

import json
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.random import Generator, default_rng
from numpy.typing import NDArray
from PIL import Image
from rich.progress import track
from torch import Tensor

from anomalib_aprilgan.demo.drawing.scenes import AUXILIARY_DEFECTS, AUXILIARY_KINDS, INVENTIONS, render_pair
from anomalib_aprilgan.embedded import CONFIG, IMAGE_SIZE
from anomalib_aprilgan.pre_processing import CLIP_MEAN, CLIP_STD
from anomalib_aprilgan.pretraining.captions import NAMED_KINDS, captions

__all__ = ["Batch", "Pairs", "draw_pairs"]

GRID = IMAGE_SIZE // int(json.loads(CONFIG.read_text(encoding="utf-8"))["vision_cfg"]["patch_size"])
"""Patches along each side of an image."""

DRAWN_SIZE = 128
"""Height and width in pixels at which images are drawn; they are then resized to the model's input size."""

PAIRS_PER_FILE = 500

INVENTED_FRACTION = 0.5
"""Fraction of the pairs that show an invented kind."""


def draw_pairs(folder: Path, pairs: int, seed: int) -> list[Path]:
    """Draw pairs of images into files, on all processors. Files that exist already are kept.

    Args:
        folder: Folder of the files.
        pairs: Number of pairs.
        seed: Random seed.

    Returns:
        The files.
    """
    sizes = [min(PAIRS_PER_FILE, pairs - first) for first in range(0, pairs, PAIRS_PER_FILE)]
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        drawn = pool.map(_draw_file, repeat(folder), range(len(sizes)), sizes, repeat(seed))
        return list(track(drawn, "Drawing pairs", total=len(sizes)))


def _draw_file(folder: Path, number: int, size: int, seed: int) -> Path:
    path = folder / f"pairs-{seed}-{number:04}-{size}.npz"
    if path.exists():
        return path
    rng = default_rng([seed, number])
    images = np.empty((size, 2, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    masks = np.empty((size, GRID, GRID), np.uint8)
    kinds, defects = (np.empty(size, np.int16) for _ in range(2))
    for i in range(size):
        kind = str(rng.choice(INVENTIONS if rng.random() < INVENTED_FRACTION else NAMED_KINDS))
        kinds[i], defects[i] = AUXILIARY_KINDS.index(kind), rng.integers(len(AUXILIARY_DEFECTS))
        look, picture = (int(seed_) for seed_ in rng.integers(1 << 40, size=2))
        pair = render_pair(kind, AUXILIARY_DEFECTS[defects[i]], look, picture, DRAWN_SIZE)
        for state, pixels in enumerate((pair.normal, pair.abnormal)):
            images[i, state] = _resized(pixels, IMAGE_SIZE, Image.Resampling.BICUBIC)
        masks[i] = _resized(pair.mask, GRID, Image.Resampling.BOX)
    unfinished = path.with_suffix(".part.npz")
    np.savez(unfinished, images=images, masks=masks, kinds=kinds, defects=defects)
    return unfinished.rename(path)


def _resized(pixels: NDArray[np.uint8], size: int, resampling: Image.Resampling) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(pixels).resize((size, size), resampling))


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
        files: Files of :func:`draw_pairs`.
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
