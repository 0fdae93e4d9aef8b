# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""The command ``anomalib-aprilgan pretrain FOLDER``: from pictures to the weights that the package contains.

The CLIP is trained in two rounds: on drawn pairs from random weights, then on pairs of photographs and drawn pairs. The
second round improves maps and keeps the image embedding. The result depends on the pictures and the seed only. If the
command is interrupted, run it again: it continues where it stopped. ``weights/README.md`` states how long it takes and
how good the result is.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from anomalib_aprilgan.demo.drawing.defects import DEFECTS
from anomalib_aprilgan.demo.drawing.scenes import AUXILIARY_KINDS, HELD_OUT_KINDS
from anomalib_aprilgan.demo.experiment import evaluate_category
from anomalib_aprilgan.demo.results import METRICS
from anomalib_aprilgan.demo.sample_data import write_sample_data
from anomalib_aprilgan.files.adapter_files import write_adapters
from anomalib_aprilgan.files.embedded import ADAPTED, ADAPTERS, BACKBONE, TAG, WEIGHTS
from anomalib_aprilgan.files.whole_files import write_file
from anomalib_aprilgan.integration.quiet import quietly
from anomalib_aprilgan.method.towers import Towers, tokenizer_of
from anomalib_aprilgan.pretraining.captions import UNKNOWN, vocabulary_sentences
from anomalib_aprilgan.pretraining.held_out import write_held_out_photographs
from anomalib_aprilgan.pretraining.materials import Material, read_index
from anomalib_aprilgan.pretraining.pair_files import write_pairs
from anomalib_aprilgan.pretraining.pairs import Pairs
from anomalib_aprilgan.pretraining.training import GREATEST_TEMPERATURE, Schedule, Start, Trained, train
from anomalib_aprilgan.torch_model import AprilGanModel

__all__ = ["pretrain"]

DRAWN_SIZE, DRAWN_SIZES = 128, (96,)
"""First round: size at which pairs are drawn, and sizes at which the CLIP sees them, in pixels."""

PHOTOGRAPH_SIZE, PHOTOGRAPH_SIZES = 288, (112, 160, 224, 224, 288)
"""Second round, likewise."""

DRAWN_SHARE = 0.3
"""Fraction of drawn pairs in the second round."""

SHOTS = (0, 1, 2, 4, 8, 16)
"""Numbers of reference images to test with."""


def pretrain(
    folder: Path,
    photographs: Path | None,
    start: str | None,
    pairs: int,
    steps: int,
    photograph_pairs: int,
    photograph_steps: int,
    seed: int,
) -> None:
    """Make pairs of images, pre-train the CLIP on them, and test it with its adapters on data that were held out.

    Args:
        folder: Folder for pairs, checkpoints, weights and adapters.
        photographs: Folder of photographs for the second round; see
            :mod:`~anomalib_aprilgan.pretraining.materials`. Without it, there is no second round.
        start: What the second round starts from, instead of the first round: a folder with weights and adapters of this
            command, or ``"builtin"`` for those of this package.
        pairs: Number of pairs of the first round.
        steps: Steps of the first round.
        photograph_pairs: Number of pairs of the second round.
        photograph_steps: Steps of the second round.
        seed: Seed of everything.

    Raises:
        ValueError: If a folder holds the checkpoint of a training with other settings, if ``start`` is given without
            ``photographs`` or lacks a file, or if the index of the photographs cannot be used.
        FileNotFoundError: If the photographs or their index are missing.
    """
    if start is not None and photographs is None:
        msg = f"Expected argument `start` together with `photographs`, but got {start!r} alone."
        raise ValueError(msg)
    pictures = [] if photographs is None else read_index(photographs)
    trained_on = [picture for picture in pictures if picture.is_trained_on]
    materials = sorted({picture.name for picture in trained_on})
    if start is None:
        files = write_pairs(folder / "drawn", pairs, DRAWN_SIZE, seed)
        schedule = Schedule(steps, 64, 1.5e-3, DRAWN_SIZES, seed)
        trained = train(folder / "first_round", Pairs(files), schedule)
        begin = _write(trained, folder / "first_round", AUXILIARY_KINDS)
    else:
        begin = Start(TAG, TAG) if start == TAG else _written(Path(start))
    if pictures:
        drawn_pairs = round(photograph_pairs * DRAWN_SHARE)
        files = [
            *write_pairs(folder / "pairs", photograph_pairs - drawn_pairs, PHOTOGRAPH_SIZE, seed, trained_on),
            *write_pairs(folder / "pairs", drawn_pairs, PHOTOGRAPH_SIZE, seed),
        ]
        schedule = Schedule(photograph_steps, 24, 1e-4, PHOTOGRAPH_SIZES, seed)
        trained = train(folder / "second_round", Pairs(files), schedule, begin)
    result = _write(trained, folder, (*AUXILIARY_KINDS, *materials))
    with quietly():
        _test(folder, result, pictures, seed)


def _written(folder: Path) -> Start:
    """Return the files that this command has written into a folder.

    Raises:
        ValueError: If one is missing.
    """
    found = Start(folder / WEIGHTS.name, folder / ADAPTERS.name)
    if not all(Path(path).is_file() for path in found):
        msg = (
            f"Expected argument `start` to be 'builtin' or a folder with {WEIGHTS.name} and {ADAPTERS.name}, but got "
            f"{str(folder)!r}, which lacks one of them."
        )
        raise ValueError(msg)
    return found


def _write(trained: Trained, folder: Path, trained_on: Sequence[str]) -> Start:
    """Write weights and adapters, with the names of what they were trained on, into a folder."""
    weights = write_file(folder / WEIGHTS.name, save(_weights(trained.towers)))
    # TAG is the name of these weights once they are part of the package.
    origin = replace(
        AprilGanModel(BACKBONE, weights, layers=ADAPTED).origin,
        pretrained=TAG,
        trained_on=tuple(dict.fromkeys(trained_on)),
    )
    return Start(weights, write_adapters(folder / ADAPTERS.name, trained.adapters.state_dict(), origin))


def _weights(towers: Towers) -> dict[str, Tensor]:
    """Return the CLIP in half precision. All tokens that occur in no caption get the embedding of the unknown word.

    These rows are equal, so the vocabulary of 49,408 tokens hardly adds to the size of the compressed wheel. The second
    round leaves the text tower as it is; to it, names of materials in photographs are unknown words.
    """
    tokenizer = tokenizer_of(BACKBONE)
    known = torch.unique(tokenizer(vocabulary_sentences()))
    weights = {name: value.detach().half().contiguous() for name, value in towers.state_dict().items()}
    rows = weights["token_embedding.weight"]
    (unknown,) = tokenizer([UNKNOWN])[0, 1:2]
    weights["token_embedding.weight"] = rows[unknown].repeat(len(rows), 1).index_copy(0, known, rows[known])
    weights["logit_scale"] = torch.tensor(math.log(GREATEST_TEMPERATURE)).half()
    return weights


def _test(folder: Path, trained: Start, pictures: list[Material], seed: int) -> None:
    """Print metrics on drawn kinds and photographs that were held out."""
    defects = tuple(DEFECTS)
    data_sets = {
        "drawn kinds": write_sample_data(
            folder / "held_out_kinds", HELD_OUT_KINDS, defects, train=16, test=8, seed=seed
        )
    }
    if pictures:
        data_sets["photographs"] = write_held_out_photographs(folder / "held_out_photographs", pictures, seed=seed)
    for name, root in data_sets.items():
        categories = sorted(path.parent.name for path in root.glob("*/train"))
        for k_shot in SHOTS:
            results = [
                evaluate_category(
                    root, category, k_shot, seed, folder / "tests", pretrained=trained.weights, adapter=trained.adapters
                ).metrics
                for category in categories
            ]
            means = ", ".join(f"{metric} {np.mean([row[metric] for row in results]):.3f}" for metric in METRICS)
            print(f"held-out {name}, {k_shot}-shot: {means}")
