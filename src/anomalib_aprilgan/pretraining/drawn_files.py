# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Drawing of the training data: files with pairs of the same image without and with a defect.

This module does not import torch, because every process that draws has to import it.
"""

import json
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.random import default_rng
from numpy.typing import NDArray
from PIL import Image
from rich.progress import track

from anomalib_aprilgan.demo.drawing.scenes import AUXILIARY_DEFECTS, AUXILIARY_KINDS, INVENTIONS, render_pair
from anomalib_aprilgan.files.embedded import CONFIG, IMAGE_SIZE
from anomalib_aprilgan.pretraining.captions import NAMED_KINDS

__all__ = ["draw_pairs"]

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
