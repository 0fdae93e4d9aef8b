# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""What the embedded CLIP is pre-trained on: pairs of pictures, drawn ahead into files, and their captions."""

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
from anomalib_aprilgan.prompts import ABNORMAL_STATES, NORMAL_STATES, TEMPLATES

__all__ = ["UNKNOWN", "Batch", "Pairs", "captions", "draw_pairs", "words_of_captions"]

GRID = IMAGE_SIZE // int(json.loads(CONFIG.read_text(encoding="utf-8"))["vision_cfg"]["patch_size"])
DRAWN_AT = 128
"""Height and width in pixels at which pictures are drawn, before they are resized like any image."""

PAIRS_PER_FILE = 500

INVENTED = 0.5
"""Part of the pairs that show something invented."""

NAMED_KINDS = tuple(kind for kind in AUXILIARY_KINDS if kind not in INVENTIONS)

UNKNOWN = "thing"
"""The word that stands for every word that is in no caption."""

NAMELESS = (UNKNOWN, f"{UNKNOWN} {UNKNOWN}", f"{UNKNOWN} {UNKNOWN} {UNKNOWN}", "object", "surface")


def draw_pairs(folder: Path, pairs: int, seed: int) -> list[Path]:
    """Draw pairs into files, of which those that are there stay, on all processors."""
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
        kind = str(rng.choice(INVENTIONS if rng.random() < INVENTED else NAMED_KINDS))
        kinds[i], defects[i] = AUXILIARY_KINDS.index(kind), rng.integers(len(AUXILIARY_DEFECTS))
        look, picture = (int(seed_) for seed_ in rng.integers(1 << 40, size=2))
        pair = render_pair(kind, AUXILIARY_DEFECTS[defects[i]], look, picture, DRAWN_AT)
        for state, pixels in enumerate((pair.normal, pair.abnormal)):
            images[i, state] = _resized(pixels, IMAGE_SIZE, Image.Resampling.BICUBIC)
        masks[i] = _resized(pair.mask, GRID, Image.Resampling.BOX)
    unfinished = path.with_suffix(".part.npz")
    np.savez(unfinished, images=images, masks=masks, kinds=kinds, defects=defects)
    return unfinished.rename(path)


def _resized(pixels: NDArray[np.uint8], size: int, resampling: Image.Resampling) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(pixels).resize((size, size), resampling))


class Batch(NamedTuple):
    """``B`` pairs.

    Attributes:
        images: Normalised, shape ``(B, 2, 3, H, W)``: without and with the defect.
        covered: How far the defect covers each patch, shape ``(B, P)`` in [0, 1].
        captions: Two per pair.
        is_named: Whether the captions name the kind, shape ``(B,)``.
        kinds: Numbers of the kinds, shape ``(B,)``.
    """

    images: Tensor
    covered: Tensor
    captions: list[str]
    is_named: Tensor
    kinds: Tensor


class Pairs:
    """All pairs, in memory.

    Args:
        files: Where they are.
    """

    def __init__(self, files: list[Path]) -> None:
        parts = [np.load(file) for file in files]
        self.images, self.masks, self.kinds, self.defects = (
            np.concatenate([part[name] for part in parts]) for name in ("images", "masks", "kinds", "defects")
        )

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, size: int, rng: Generator) -> Batch:
        """Draw a batch: each pair turned, mirrored and with exchanged colour channels at random, and captioned."""
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
            *twins, named = captions(AUXILIARY_KINDS[self.kinds[number]], AUXILIARY_DEFECTS[self.defects[number]], rng)
            texts += twins
            is_named.append(named)
        return Batch(
            ((torch.from_numpy(images) / 255 - torch.tensor(CLIP_MEAN)) / torch.tensor(CLIP_STD)).movedim(-1, 2),
            torch.from_numpy(masks).flatten(1) / 255,
            texts,
            torch.tensor(is_named),
            torch.from_numpy(self.kinds[chosen]).long(),
        )


def captions(kind: str, defect: str, rng: Generator) -> tuple[str, str, bool]:
    """A caption without and one with a defect, alike but for the state, and whether they name the kind.

    Names are written with and without underscore. Some captions have a word without meaning in the name's place, so
    that a name that is in no caption can be used later; what is invented never has a name.
    """
    is_named = bool(rng.random() < 0.7 and kind not in INVENTIONS)  # noqa: PLR2004
    kind = kind if rng.random() < 0.3 else kind.replace("_", " ")  # noqa: PLR2004
    name = kind if is_named else str(rng.choice(NAMELESS))
    template = str(rng.choice(TEMPLATES))
    abnormal = str(rng.choice([*ABNORMAL_STATES, *ABNORMAL_STATES, _with(defect)]))
    return (
        template.format(str(rng.choice(NORMAL_STATES)).format(name)),
        template.format(abnormal.format(name)),
        is_named,
    )


def _with(defect: str) -> str:
    return "{} with a " + defect.replace("_", " ")


def words_of_captions() -> list[str]:
    """Sentences that hold every word of every caption."""
    kinds = {name for kind in NAMED_KINDS for name in (kind, kind.replace("_", " "))}
    states = [*NORMAL_STATES, *ABNORMAL_STATES, *map(_with, AUXILIARY_DEFECTS)]
    sentences = [state.format(name) for state in states for name in (*kinds, *NAMELESS)]
    return [*sentences, *(template.format(UNKNOWN) for template in TEMPLATES)]
