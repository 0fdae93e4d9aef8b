# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""The linear adapters, one per stage (arXiv 2305.17382, section 3.2)."""

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

__all__ = ["ClipProjection", "StageAdapters"]


class StageAdapters(nn.Module):
    """Linear layers that map patch tokens into CLIP's joint space, one per stage.

    Args:
        num_stages: Number of stages.
        width: Dimensions of a patch token.
        embed_dim: Dimensions ``D`` of the joint space.
    """

    def __init__(self, num_stages: int, width: int, embed_dim: int) -> None:
        super().__init__()
        self.fc = nn.ModuleList(
            nn.Linear(width, embed_dim) for _ in range(num_stages)
        )  # named as in the authors' files

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shape ``(D, width)`` of each adapter's weight."""
        return [tuple(cast("nn.Linear", adapter).weight.shape) for adapter in self.fc]

    def reset_parameters(self, seed: int) -> None:
        """Draw fresh weights.

        Args:
            seed: Seed of the draw; the global random state is neither used nor changed.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for adapter in self.fc:
                cast("nn.Linear", adapter).reset_parameters()

    def forward(self, tokens: Sequence[Tensor]) -> list[Tensor]:
        """Adapt each stage's tokens.

        Args:
            tokens: Per stage, raw patch tokens of shape ``(N, P, width)``.

        Returns:
            Per stage, tokens of length 1, shape ``(N, P, D)``.
        """
        return [
            normalize(adapter(stage.to(next(adapter.parameters()).dtype)), dim=-1)
            for adapter, stage in zip(self.fc, tokens, strict=True)
        ]


class ClipProjection(nn.Module):
    """Projects patch tokens with CLIP's own final norm and projection, in place of adapters (for ablation studies).

    It has no weights of its own.

    Args:
        project: CLIP's final norm and projection.
    """

    def __init__(self, project: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._project = project

    def forward(self, tokens: Sequence[Tensor]) -> list[Tensor]:
        """Project each stage's tokens.

        Args:
            tokens: Per stage, raw patch tokens of shape ``(N, P, width)``.

        Returns:
            Per stage, tokens of length 1, shape ``(N, P, D)``.
        """
        return [normalize(self._project(stage), dim=-1) for stage in tokens]
