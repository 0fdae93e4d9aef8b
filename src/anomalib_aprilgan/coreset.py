# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Reduces a memory bank to the tokens that represent it best, with anomalib's k-center greedy algorithm."""

import numpy as np
import torch
from torch import Tensor

__all__ = ["select_coreset"]

SEED = 0
"""Seed of the first token and of the random projection."""


def select_coreset(tokens: Tensor, size: int) -> Tensor:
    """Select tokens so that the largest distance of any token to its nearest selected one is small.

    As PatchCore does (arXiv 2106.08265, algorithm 1): each step selects the token that is farthest from those selected
    before, after a random projection to fewer dimensions. The result depends on tokens and size alone, on a given kind
    of device: random states are neither used nor changed.

    Args:
        tokens: L2-normalised reference tokens, shape ``(M, width)``.
        size: Number of tokens to select.

    Returns:
        The selected tokens in the order of selection, shape ``(size, width)``; ``tokens`` if there are not more.
    """
    if len(tokens) <= size:
        return tokens
    from anomalib.models.components import KCenterGreedy  # noqa: PLC0415  # loads all models of anomalib

    points = tokens.float() if tokens.is_cuda else tokens.float().cpu()
    devices = [points.device] if points.is_cuda else []
    with torch.no_grad(), torch.random.fork_rng(devices):
        torch.default_generator.manual_seed(SEED)
        if points.is_cuda:
            torch.cuda.default_generators[points.device.index].manual_seed(SEED)
        sampler = KCenterGreedy(points, sampling_ratio=(size + 0.5) / len(points))  # it rounds the product down
        # A generator, since a number gives all rows of the projection the same columns; None: NumPy's global state.
        sampler.model.random_state = np.random.RandomState(SEED)  # type: ignore[assignment]
        return tokens[sampler.select_coreset_idxs()]
