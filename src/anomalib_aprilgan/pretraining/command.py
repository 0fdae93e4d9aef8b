# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""The command ``anomalib-aprilgan pretrain FOLDER``: from drawn images to the weights that the package contains.

The result depends on the seed only. If the command is interrupted, run it again: it continues where it stopped.
``weights/README.md`` states how long it takes and how good the result is.
"""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save

from anomalib_aprilgan.demo.drawing.defects import DEFECTS, HELD_OUT_DEFECTS
from anomalib_aprilgan.demo.drawing.scenes import HELD_OUT_KINDS
from anomalib_aprilgan.demo.experiment import evaluate_category, train_adapters
from anomalib_aprilgan.demo.results import METRICS
from anomalib_aprilgan.demo.sample_data import DATA_SETS, write_sample_data
from anomalib_aprilgan.files.adapter_files import write_adapters
from anomalib_aprilgan.files.embedded import ADAPTERS, BACKBONE, TAG, WEIGHTS
from anomalib_aprilgan.integration.quiet import quietly
from anomalib_aprilgan.method.towers import Towers, tokenizer_of
from anomalib_aprilgan.pretraining.captions import UNKNOWN, vocabulary_sentences
from anomalib_aprilgan.pretraining.drawn_files import draw_pairs
from anomalib_aprilgan.pretraining.pairs import Pairs
from anomalib_aprilgan.pretraining.training import GREATEST_TEMPERATURE, train

__all__ = ["pretrain"]

ADAPTER_LOOKS, ADAPTER_EPOCHS = 4, 2
"""The adapters are trained on so many data sets, each with other looks of the same kinds, for so many epochs."""

SHOTS = (0, 1, 2, 4, 8)
"""Numbers of reference images to test with."""


def pretrain(
    folder: Path,
    pairs: int = 60_000,
    steps: int = 4400,
    batch_size: int = 64,
    learning_rate: float = 1.5e-3,
    seed: int = 0,
) -> None:
    """Draw pairs of images, pre-train the CLIP on them, train its adapters, and test both on held-out kinds.

    Args:
        folder: Folder for pairs, checkpoint, weights and adapters.
        pairs: Number of pairs.
        steps: Steps of pre-training.
        batch_size: Pairs per step.
        learning_rate: Maximum learning rate of AdamW.
        seed: Seed of everything.

    Raises:
        ValueError: If the folder holds the checkpoint of a training with other settings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawn = Pairs(draw_pairs(folder, pairs, seed))
    towers = train(folder, drawn, steps, batch_size, learning_rate, seed)
    weights = folder / WEIGHTS.name
    _write_weights(towers, weights)
    with quietly():
        _train_and_test_adapters(folder, weights, seed)


def _write_weights(towers: Towers, path: Path) -> None:
    """Write the CLIP in half precision. All tokens that occur in no caption get the embedding of the unknown word.

    These rows are equal, so the vocabulary of 49,408 tokens hardly adds to the size of the compressed wheel.
    """
    tokenizer = tokenizer_of(BACKBONE)
    known = torch.unique(tokenizer(vocabulary_sentences()))
    weights = {name: value.detach().half().contiguous() for name, value in towers.state_dict().items()}
    rows = weights["token_embedding.weight"]
    (unknown,) = tokenizer([UNKNOWN])[0, 1:2]
    weights["token_embedding.weight"] = rows[unknown].repeat(len(rows), 1).index_copy(0, known, rows[known])
    weights["logit_scale"] = torch.tensor(math.log(GREATEST_TEMPERATURE)).half()
    path.write_bytes(save(weights))


def _train_and_test_adapters(folder: Path, weights: Path, seed: int) -> None:
    """Train adapters on the auxiliary kinds, and print metrics on the held-out kinds and defects."""
    auxiliary = [
        write_sample_data(folder / f"auxiliary-{look}", *DATA_SETS["auxiliary"], train=1, test=1, seed=seed + look)
        for look in range(ADAPTER_LOOKS)
    ]
    model = train_adapters(auxiliary, ADAPTER_EPOCHS, seed, folder / "adapters", pretrained=weights)
    # TAG is the name of these weights once they are part of the package.
    origin = replace(model.model.origin, pretrained=TAG, trained_on=tuple(DATA_SETS["auxiliary"][0]))
    adapters = write_adapters(folder / ADAPTERS.name, model.model.adapters.state_dict(), origin)
    for name, defects in (("all defects", tuple(DEFECTS)), ("held-out defects", HELD_OUT_DEFECTS)):
        root = write_sample_data(folder / name.replace(" ", "_"), HELD_OUT_KINDS, defects, train=16, test=8, seed=seed)
        for k_shot in SHOTS:
            results = [
                evaluate_category(
                    root, kind, k_shot, seed, folder / "tests", pretrained=weights, adapter=adapters
                ).metrics
                for kind in HELD_OUT_KINDS
            ]
            means = ", ".join(f"{metric} {np.mean([row[metric] for row in results]):.3f}" for metric in METRICS)
            print(f"held-out kinds, {name}, {k_shot}-shot: {means}")
