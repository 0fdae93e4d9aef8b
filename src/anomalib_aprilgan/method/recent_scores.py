# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""What a validation has computed for its images, so that a test of the same images does not compute it again."""

import hashlib
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from anomalib_aprilgan.method.feature_store import precision_of

__all__ = ["PatchScores", "RecentScores"]

LARGEST_MEMORY = 256 * 1024**2
"""Bytes that are kept at most: the scores of some 6,000 images of 518 x 518 pixels with 4 references."""


class PatchScores(NamedTuple):
    """What image scores and anomaly maps are computed from. ``S`` stages, ``R`` reference stages, ``P`` patches.

    Attributes:
        probability: Zero-shot image scores, shape ``(N,)`` in [0, 1].
        logits: Logits of the abnormal minus the normal state, shape ``(N, S, P)``; ``None`` without zero-shot map.
        distances: Distances to the nearest reference token, shape ``(N, R, P)`` in [0, 2]; ``None`` without references.
    """

    probability: Tensor
    logits: Tensor | None
    distances: Tensor | None


class RecentScores:
    """Keeps the patch scores of batches in memory.

    They are found by what determines them: the model, the content of the images and of their text features, and the
    precision of the computation. From :data:`LARGEST_MEMORY` on, no more are kept.

    Args:
        clock: Returns the time in seconds, to measure what is saved.

    Attributes:
        seconds_saved: Seconds that computing the found scores took the first time, minus the time for finding them.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.seconds_saved = 0.0
        self._clock = clock
        self._known: dict[str, tuple[PatchScores, float]] = {}
        self._bytes = 0

    def of(self, model: str, images: Tensor, text_features: Tensor, compute: Callable[[], PatchScores]) -> PatchScores:
        """Return the patch scores of a batch: those that are kept, or computed ones, which are kept then.

        Args:
            model: Digest of the model and its setup.
            images: Pre-processed images, shape ``(N, 3, n, n)``.
            text_features: Their text features, shape ``(2, D)`` or ``(N, 2, D)``.
            compute: Computes the scores.
        """
        start = self._clock()
        key = _digest(model, images, text_features)
        if key in self._known:
            scores, seconds = self._known[key]
            self.seconds_saved += seconds - (self._clock() - start)
            return _own(scores)
        start = self._clock()
        scores = compute()
        size = sum(part.nbytes for part in scores if part is not None)
        if self._bytes + size <= LARGEST_MEMORY:
            self._known[key] = _own(scores), self._clock() - start
            self._bytes += size
        return scores


def _own(scores: PatchScores) -> PatchScores:
    """Copy what leaves the model, where a callback could change it. Logits and distances do not leave it."""
    return scores._replace(probability=scores.probability.clone())


def _digest(model: str, images: Tensor, text_features: Tensor) -> str:
    digest = hashlib.sha256(f"{model} {precision_of(images)}".encode())
    for tensor in (images, text_features):
        digest.update(str(tuple(tensor.shape)).encode())
        content = tensor.detach().as_subclass(Tensor).cpu().contiguous()
        digest.update(content.view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
