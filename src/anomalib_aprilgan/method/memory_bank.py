# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Memory bank of one stage: the patch tokens of the normal reference images (arXiv 2305.17382, section 3.3)."""

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

__all__ = ["MemoryBank", "nearest_distances"]

CHUNK = 4096
"""Number of reference tokens that are compared at once; it limits the memory that a large bank needs."""

BLOCK = 1024
"""Number of test tokens that are compared at once; it limits the memory that a large batch or image needs.

With :data:`CHUNK` it makes products of at most 1024 x 4096 similarities: 16 MiB in single precision.
"""


class MemoryBank(nn.Module):
    """Stores the reference tokens of one stage.

    The tokens are a persistent buffer of variable size: they are saved, moved and restored with the module. A change
    replaces the tensor and never modifies it in place, so other threads always read a consistent tensor.

    Args:
        width: Dimensions of a token.

    Attributes:
        tokens: L2-normalised reference tokens, shape ``(M, width)``; ``M`` is 0 while the bank is empty.
        reduce: Function that maps the tokens of a full bank to those that are kept. ``None`` keeps all.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("tokens", torch.empty(0, width))
        self.tokens: Tensor
        self.reduce: Callable[[Tensor], Tensor] | None = None

    def __len__(self) -> int:
        return self.tokens.shape[0]

    def clear(self) -> None:
        """Remove all tokens."""
        self.tokens = self.tokens[:0]

    def add(self, tokens: Tensor) -> None:
        """Normalise the tokens of reference images, append them, and reduce the bank.

        Args:
            tokens: Raw patch tokens of ``K`` reference images, shape ``(K, P, width)``.
        """
        self.tokens = self._reduced(torch.cat([self.tokens, normalize(tokens.flatten(0, 1).to(self.tokens), dim=-1)]))

    def forward(self, tokens: Tensor) -> Tensor:
        """Compute cosine distances to the nearest reference token, see :func:`nearest_distances`."""
        return nearest_distances(tokens, self.tokens)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:  # noqa: ANN401
        # As anomalib's DynamicBufferMixin, which cannot be used: this folder does not import anomalib.
        stored = state_dict.get(prefix + "tokens")
        if isinstance(stored, Tensor) and stored.shape[1:] == self.tokens.shape[1:]:
            stored = self._reduced(stored)
            self.tokens = self.tokens.new_empty(stored.shape)
            state_dict = {**state_dict, prefix + "tokens": stored}
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _reduced(self, tokens: Tensor) -> Tensor:
        return tokens if self.reduce is None else self.reduce(tokens)


def nearest_distances(tokens: Tensor, reference_tokens: Tensor) -> Tensor:
    """Compute the cosine distance of each patch token to its nearest reference token (section 3.3).

    Beside tensors as large as the result, it needs memory for one product of :data:`BLOCK` test tokens and
    :data:`CHUNK` reference tokens, whatever the number of images, their size and the size of the bank. Graphs for an
    export hold one block of all test tokens, since their number is not known then.

    Args:
        tokens: Raw patch tokens of the tested images, shape ``(N, P, width)``.
        reference_tokens: L2-normalised reference tokens, shape ``(M, width)``.

    Returns:
        ``1 - max cosine similarity`` of each patch, shape ``(N, P)`` in [0, 2].

    Raises:
        RuntimeError: If there are no reference tokens.
    """
    if not len(reference_tokens):
        msg = "The memory bank is empty. Call `setup` with reference images before computing distances."
        raise RuntimeError(msg)
    chunks = torch.split(reference_tokens, CHUNK)
    if torch.compiler.is_compiling():
        return _distances_of_block(tokens, chunks)
    images_at_once = max(1, BLOCK // tokens.shape[1])
    rows = [
        [_distances_of_block(block, chunks) for block in torch.split(images, BLOCK, dim=1)]
        for images in torch.split(tokens, images_at_once)
    ]
    return torch.cat([torch.cat(row, dim=1) for row in rows])


def _distances_of_block(tokens: Tensor, chunks: Sequence[Tensor]) -> Tensor:
    queries = normalize(tokens.to(chunks[0].dtype), dim=-1)
    similarities = ((queries @ chunk.T).amax(dim=-1) for chunk in chunks)
    return (1 - reduce(torch.maximum, similarities)).clamp(min=0)
