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
        # The authors' files name their layers `fc`, too.
        self.fc = nn.ModuleList(nn.Linear(width, embed_dim) for _ in range(num_stages))

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shape ``(D, width)`` of each adapter's weight."""
        return [tuple(cast("nn.Linear", adapter).weight.shape) for adapter in self.fc]

    def reset_parameters(self, seed: int) -> None:
        """Initialise the weights anew, at random.

        Args:
            seed: Seed of the weights; the global random state is neither used nor changed.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for adapter in self.fc:
                cast("nn.Linear", adapter).reset_parameters()

    def forward(self, tokens: Sequence[Tensor]) -> list[Tensor]:
        """Map the patch tokens of each stage into the joint space with the adapter of that stage.

        Args:
            tokens: Per stage, raw patch tokens of shape ``(N, P, width)``.

        Returns:
            Per stage, L2-normalised tokens of shape ``(N, P, D)``.
        """
        return [
            normalize(adapter(stage.to(next(adapter.parameters()).dtype)), dim=-1)
            for adapter, stage in zip(self.fc, tokens, strict=True)
        ]


class ClipProjection(nn.Module):
    """Maps patch tokens into the joint space with CLIP's final norm and projection instead of adapters.

    It is used in ablation studies and has no weights of its own.

    Args:
        project: Function that applies CLIP's final norm and projection, see ``Clip.project``.
    """

    def __init__(self, project: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._project = project

    def forward(self, tokens: Sequence[Tensor]) -> list[Tensor]:
        """Map the patch tokens of each stage into the joint space.

        Args:
            tokens: Per stage, raw patch tokens of shape ``(N, P, width)``.

        Returns:
            Per stage, L2-normalised tokens of shape ``(N, P, D)``.
        """
        return [normalize(self._project(stage), dim=-1) for stage in tokens]
