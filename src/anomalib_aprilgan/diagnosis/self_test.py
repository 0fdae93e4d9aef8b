# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Self-test: computes scores and maps with ViT-builtin, and compares them with recorded numbers."""

import json
import math
from importlib.metadata import version
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

from anomalib_aprilgan.files.embedded import BACKBONE, IMAGE_SIZE, TAG
from anomalib_aprilgan.integration.pre_processing import AprilGanPreProcessor
from anomalib_aprilgan.torch_model import AprilGanModel

__all__ = ["RECORD", "TOLERANCE", "largest_difference", "measure", "record"]

RECORD: Final = Path(__file__).with_name("self_test.json")
"""The recorded numbers. After a training of ViT-builtin, ``anomalib-aprilgan doctor --record true`` makes them anew."""

TOLERANCE: Final = 5e-4
"""Largest difference to a recorded number that is taken for rounding.

Measured on a CPU: torch 2.6 with open_clip 2.24 and torch 2.14 with open_clip 3.3 agree within 1e-6. Mistakes differ by
more than the tolerance: resizing of floats in place of 8-bit values by 1.5e-2, bfloat16 in place of float32 by 4e-3,
QuickGELU in place of GELU by 2.7e-2, other adapters by 0.55.
"""

PIXELS: Final = 128
"""Height and width of the images; resizing them is a part of the test."""

CLASS_NAME: Final = "tile"


def pictures() -> Tensor:
    """Draw three normal images and a damaged one, with integers alone, so that they are the same everywhere.

    Returns:
        Images of shape ``(4, 3, 128, 128)`` in [0, 1]: tiles with joints, at different places. The last one has a dark
        scratch.
    """
    row, column = np.mgrid[:PIXELS, :PIXELS]
    drawn = []
    for shift in (0, 5, 11, 17):
        joint = ((row + shift) % 32 < 3) | ((column + 2 * shift) % 32 < 3)
        grain = (row * 31 + column * 17 + row * column + 7 * shift) % 23
        drawn.append(np.where(joint, 90, 160) + grain)
    drawn[-1] = np.where((abs(row - column - 8) < 3) & (row > 40) & (row < 90), 20, drawn[-1])
    grey = torch.from_numpy(np.stack(drawn)).float()
    return (grey[:, None] * torch.tensor([1.0, 0.9, 0.8])[:, None, None]).floor() / 255


@torch.no_grad()
def measure(device: torch.device | str = "cpu") -> dict[str, float]:
    """Compute the numbers of the self-test.

    Args:
        device: Where to compute.

    Returns:
        Values by name: similarity of the two text features, and for the last normal and the damaged image the score,
        and maximum and mean of the map, zero-shot and with two references. Scores and zero-shot maps lie in [0, 1].
    """
    model = AprilGanModel(BACKBONE, adapter=TAG).to(device).eval()
    images = AprilGanPreProcessor(IMAGE_SIZE)(pictures()).to(device)
    found: dict[str, Tensor] = {}
    for name, references in (("zero-shot", None), ("2-shot", images[:2])):
        model.setup(CLASS_NAME, references)
        prediction = model(images[2:])
        found["text features, cosine"] = model.text_features[0] @ model.text_features[1]
        for number, image in enumerate(("normal", "damaged")):
            found[f"{name}, {image}, score"] = prediction.pred_score[number]
            found[f"{name}, {image}, map maximum"] = prediction.anomaly_map[number].max()
            found[f"{name}, {image}, map mean"] = prediction.anomaly_map[number].mean()
    return {name: float(value) for name, value in found.items()}


def largest_difference(found: dict[str, float]) -> tuple[str, float]:
    """Compare numbers with the recorded ones.

    Args:
        found: Return value of :func:`measure`.

    Returns:
        Name of the number that differs most, and the difference.

    Raises:
        ValueError: If other numbers are recorded.
    """
    recorded = json.loads(RECORD.read_text(encoding="utf-8"))["numbers"]
    if set(recorded) != set(found):
        msg = f"Expected {RECORD.name} to hold {sorted(found)}, but got {sorted(recorded)}. Record the numbers anew."
        raise ValueError(msg)
    differences = {name: abs(found[name] - recorded[name]) for name in found}
    name = max(differences, key=lambda name: (math.isnan(differences[name]), differences[name]))
    return name, differences[name]


def record() -> Path:
    """Write the numbers of this machine's CPU to the file of recorded numbers, and return its path."""
    numbers = {name: round(value, 6) for name, value in measure().items()}
    made_with = {name: version(name) for name in ("torch", "open_clip_torch")}
    text = json.dumps({"made_with": made_with, "numbers": numbers}, indent=2)
    RECORD.write_text(f"{text}\n", encoding="utf-8", newline="\n")
    return RECORD
