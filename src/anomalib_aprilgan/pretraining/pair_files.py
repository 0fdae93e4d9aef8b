# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Generation of the training data: files with pairs of the same image without and with a defect.

This module does not import torch, because every process that draws has to import it.
"""

import hashlib
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from io import BytesIO
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.random import Generator, default_rng
from numpy.typing import NDArray
from PIL import Image
from rich.progress import track

from anomalib_aprilgan.demo.drawing.scenes import AUXILIARY_DEFECTS, INVENTIONS, Pair, render_pair
from anomalib_aprilgan.files.whole_files import write_file
from anomalib_aprilgan.pretraining.camera import Camera
from anomalib_aprilgan.pretraining.captions import NAMED_KINDS
from anomalib_aprilgan.pretraining.damage import damage
from anomalib_aprilgan.pretraining.materials import Material, Materials
from anomalib_aprilgan.pretraining.scenes import undamaged

__all__ = ["Named", "Source", "drawn_pair", "pair_from_photographs", "pair_type", "write_pairs"]

PAIRS_PER_FILE = 250

INVENTED_FRACTION = 0.5
"""Fraction of the drawn pairs that show an invented kind."""


class Named(NamedTuple):
    """A pair of images, and what they show.

    Attributes:
        pair: The images and the mask.
        kind: Name of what both images show.
        defect: Name of the defect.
    """

    pair: Pair
    kind: str
    defect: str


Source = Callable[[Generator, int], Named]
"""Makes a pair of a size in pixels."""


def drawn_pair(rng: Generator, size: int) -> Named:
    """Draw a pair of a kind and with a defect that the embedded CLIP is trained on."""
    kind = str(rng.choice(INVENTIONS if rng.random() < INVENTED_FRACTION else NAMED_KINDS))
    defect = str(rng.choice(AUXILIARY_DEFECTS))
    look, picture = (int(seed) for seed in rng.integers(1 << 40, size=2))
    return Named(render_pair(kind, defect, look, picture, size), kind, defect)


def pair_from_photographs(materials: Materials, rng: Generator, size: int) -> Named:
    """Compose a scene of photographs, damage it, and take a picture of both."""
    scene, name = undamaged(materials, rng, size)
    damaged = damage(scene, materials, rng)
    camera = Camera(rng)
    normal, abnormal = camera.take(scene.picture), camera.take(damaged.picture)
    return Named(Pair(normal, abnormal, np.asarray(damaged.mask * 255, np.uint8)), name, damaged.defect)


def pair_type(size: int) -> np.dtype[Any]:
    """Return the format of a pair in a file: images, mask at half their size, and names."""
    return np.dtype(
        [
            ("images", np.uint8, (2, size, size, 3)),
            ("mask", np.uint8, (size // 2, size // 2)),
            ("kind", "U24"),
            ("defect", "U24"),
        ]
    )


def write_pairs(folder: Path, pairs: int, size: int, seed: int, pictures: list[Material] | None = None) -> list[Path]:
    """Write pairs of images into files, on all processors. Files that exist already are kept.

    Args:
        folder: Folder of the files.
        pairs: Number of pairs.
        size: Height and width of the images in pixels.
        seed: Random seed.
        pictures: Photographs to compose the pairs of; ``None`` draws them.

    Returns:
        The files: arrays of :func:`pair_type`.
    """
    sizes = [min(PAIRS_PER_FILE, pairs - first) for first in range(0, pairs, PAIRS_PER_FILE)]
    folder.mkdir(parents=True, exist_ok=True)
    write = partial(_write_file, folder, size=size, seed=seed, pictures=pictures)
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        what = "Drawing pairs" if pictures is None else "Composing pairs of photographs"
        return list(track(pool.map(write, range(len(sizes)), sizes), what, total=len(sizes)))


def _write_file(
    folder: Path, number: int, pairs: int, *, size: int, seed: int, pictures: list[Material] | None
) -> Path:
    path = folder / f"{_content(pictures)}-{size}-{seed}-{number:04}-{pairs}.npy"
    if path.exists():
        return path
    source: Source = drawn_pair if pictures is None else partial(pair_from_photographs, Materials(pictures))
    rng = default_rng([seed, number])
    rows = np.empty(pairs, pair_type(size))
    for row in rows:
        made = source(rng, size)
        row["images"] = np.stack([made.pair.normal, made.pair.abnormal])
        row["mask"] = _halved(made.pair.mask)
        row["kind"], row["defect"] = made.kind, made.defect
    np.save(content := BytesIO(), rows)  # its errors of a full disk would not say so
    return write_file(path, content.getvalue())


def _content(pictures: list[Material] | None) -> str:
    """Return the beginning of a file's name. It differs between sets of photographs."""
    if pictures is None:
        return "drawn"
    names = "\n".join(f"{picture.name}/{picture.path.name}" for picture in pictures)
    return f"photographs-{hashlib.sha256(names.encode()).hexdigest()[:8]}"


def _halved(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    size = len(mask) // 2
    return np.asarray(Image.fromarray(mask).resize((size, size), Image.Resampling.BOX))
