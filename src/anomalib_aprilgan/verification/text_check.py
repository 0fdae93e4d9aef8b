# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Text check: the similarity of the two text features of each class, which takes weights but no images."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from anomalib_aprilgan.files.whole_files import write_file
from anomalib_aprilgan.torch_model import AprilGanModel

__all__ = ["describe_similarities", "similarities"]

EXTREMES: Final[Mapping[str, float]] = {"capsule": 0.966, "screw": 0.985}
"""The classes of MVTec AD with the smallest and the largest cosine, as a third party measured with ViT-L-14-336 and
GELU at 518 px."""

TOLERANCE: Final = 0.001
"""Half of it is the rounding of the published values. The other half allows for the authors' half precision."""


def similarities(model: AprilGanModel, class_names: Iterable[str], file: Path) -> dict[str, float]:
    """Compute the cosine of the normal and the abnormal text features of each class.

    Each result is saved at once, so that an interrupted computation continues.

    Args:
        model: A model with CLIP's weights.
        class_names: Names of the classes.
        file: JSON file of the results. Results of other weights are replaced.

    Returns:
        Cosines by class, in [-1, 1].

    Raises:
        ValueError: If the file is damaged.
    """
    weights = str(model.origin.fingerprint)
    found = _read(file, weights) if file.is_file() else {}
    names = list(class_names)
    for name in names:
        if name not in found:
            normal, abnormal = model.encode_class(name)
            found[name] = round(float(normal @ abnormal), 5)
            write_file(file, json.dumps({"weights": weights, "cosines": found}, indent=1))
    return {name: found[name] for name in names}


def _read(file: Path, weights: str) -> dict[str, float]:
    """Read saved results; none if they belong to other weights."""
    try:
        saved = json.loads(file.read_text(encoding="utf-8"))
        found = {str(name): float(cosine) for name, cosine in saved["cosines"].items()}
        return found if saved["weights"] == weights else {}
    except (AttributeError, KeyError, OverflowError, RecursionError, TypeError, ValueError) as error:
        msg = f"Expected {file} to hold the similarities of text features, but it is damaged. Delete it and run again."
        raise ValueError(msg) from error


def describe_similarities(found: Mapping[str, float]) -> tuple[str, bool]:
    """Compare the smallest and the largest cosine with the published ones.

    Args:
        found: Cosines by class, of all classes of MVTec AD.

    Returns:
        A text, and whether both classes and both values are as published.
    """
    lines, fits = ["Text features, cosine of the normal and the abnormal state"], True
    for title, choose, (name, published) in zip(("smallest", "largest"), (min, max), EXTREMES.items(), strict=True):
        own = choose(found, key=found.__getitem__)
        is_met = own == name and abs(found[own] - published) <= TOLERANCE
        fits &= is_met
        expected = f"published: {name} {published:.3f}, within {TOLERANCE}"
        lines.append(f"  {title:<8}  {own} {found[own]:.4f} ({expected}){'' if is_met else ' !'}")
    return "\n".join(lines), fits
