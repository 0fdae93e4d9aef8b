# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""The metrics of a run, by each of the two protocols, and what is derived from them."""

from typing import Final, NamedTuple

import pandas as pd

__all__ = ["ANOMALIB", "AUTHORS", "Metric", "Protocol", "harmonic_mean", "with_derived"]


class Metric(NamedTuple):
    """A column of numbers: its name in the table of results, what it looks at, and its title."""

    column: str
    level: str
    title: str


class Protocol(NamedTuple):
    """A way to compute the metrics."""

    name: str
    metrics: tuple[Metric, ...]


def _protocol(name: str, prefix: str, average_precision: str, overlap: str) -> Protocol:
    metrics = [
        Metric(f"{prefix}{level}_{column}", level, title)
        for level in ("image", "pixel")
        for column, title in (("AUROC", "AUROC"), ("F1Max", "F1-max"), ("AUPR", average_precision))
    ]
    metrics += [Metric(f"{prefix}pixel_{overlap}", "pixel", overlap), Metric(f"{prefix}VAND_F1", "VAND", "F1")]
    return Protocol(name, tuple(metrics))


ANOMALIB: Final = _protocol("anomalib", "", "AUPR", "AUPRO")
AUTHORS: Final = _protocol("authors", "authors_", "AP", "PRO")


def with_derived(results: pd.DataFrame) -> pd.DataFrame:
    """Add what is derived: the F1 of the VAND challenge per run, in both protocols, and the model's class.

    Args:
        results: The table of results.

    Returns:
        A new table with the columns ``VAND_F1``, ``authors_VAND_F1`` and ``class_name`` as well.
    """
    derived = {
        f"{prefix}VAND_F1": [
            harmonic_mean(*pair)
            for pair in zip(results[f"{prefix}image_F1Max"], results[f"{prefix}pixel_F1Max"], strict=True)
        ]
        for prefix in ("", "authors_")
    }
    class_names = [path.rpartition(".")[2] for path in results["class_path"]]
    return results.assign(**derived, class_name=class_names)


def harmonic_mean(first: float, second: float) -> float:
    """Harmonic mean of two numbers in [0, 1]; 0 if both are, NaN if one is."""
    return 2 * first * second / (first + second) if first + second else 0.0
