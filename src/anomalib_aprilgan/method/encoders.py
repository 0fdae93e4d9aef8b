# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Forward passes through CLIP's image and text tower.

open_clip changed its transformers from sequence-first (2.24) to batch-first (3.x). These functions return the same
numbers with both. They are differentiable, so that the embedded CLIP can be trained with them.
"""

from collections.abc import Collection, Iterable
from math import isqrt
from typing import NamedTuple

import torch
from torch import Tensor, nn

from anomalib_aprilgan.method.clip_weights import resize_positional_embedding
from anomalib_aprilgan.method.towers import Towers

__all__ = ["ImageFeatures", "encode_image", "encode_text", "pools_end_token"]


class ImageFeatures(NamedTuple):
    """Output of one pass through the image tower.

    Attributes:
        embedding: CLIP's image embeddings, not normalised, shape ``(N, D)``.
        tokens: By stage, the patch tokens after that block, without class token and final norm, shape
            ``(N, P, width)``.
    """

    embedding: Tensor
    tokens: dict[int, Tensor]


def encode_image(visual: Towers, images: Tensor, stages: Collection[int]) -> ImageFeatures:
    """Encode images in one pass through the image tower, with gradients.

    Args:
        visual: Image tower, a standard ViT.
        images: Pre-processed images of shape ``(N, 3, n, n)``. If ``n`` is not the tower's image size, the positional
            embedding is resized.
        stages: Blocks whose patch tokens are returned, counted from 1.

    Returns:
        The image embeddings, and the patch tokens of each stage.
    """
    patches = visual.conv1(images).flatten(2).mT  # (N, P, width)
    patches = patches.to(visual.class_embedding.dtype)  # keeps the residual stream in fp32 under autocast
    class_token = visual.class_embedding.expand(patches.shape[0], 1, -1)
    positions = visual.positional_embedding
    if len(positions) != 1 + patches.shape[1]:
        positions = resize_positional_embedding(positions, isqrt(patches.shape[1]))
    x = torch.cat([class_token, patches], dim=1) + positions
    x = visual.ln_pre(visual.patch_dropout(x))

    tokens: dict[int, Tensor] = {}
    for number, x in enumerate(_outputs_of_blocks(visual.transformer, x), start=1):  # noqa: B020
        if number in stages:
            tokens[number] = x[:, 1:]

    if visual.final_ln_after_pool:
        embedding = visual.ln_post(visual._global_pool(x)[0])  # noqa: SLF001
    else:
        embedding = visual._global_pool(visual.ln_post(x))[0]  # noqa: SLF001
    return ImageFeatures(embedding @ visual.proj.to(embedding.dtype), tokens)


def _outputs_of_blocks(transformer: Towers, x: Tensor, attn_mask: Tensor | None = None) -> Iterable[Tensor]:
    """Run the blocks of a batch-first or sequence-first transformer one after the other.

    Args:
        transformer: Stack of residual attention blocks.
        x: Tokens of shape ``(N, L, width)``.
        attn_mask: Additive attention mask of shape ``(L, L)``.

    Yields:
        The output of each block, shape ``(N, L, width)``.
    """
    batch_first = getattr(transformer.resblocks[0].attn, "batch_first", False)
    if not batch_first:
        x = x.transpose(0, 1)
    for block in transformer.resblocks:
        x = block(x, attn_mask=attn_mask)
        yield x if batch_first else x.transpose(0, 1)


def pools_end_token(tower: Towers) -> bool:
    """Whether a text tower is causal and pools the end token, so that padding behind that token has no influence."""
    pool_type = getattr(tower, "pool_type", getattr(tower, "text_pool_type", None))
    has_standard_parts = all(hasattr(tower, part) for part in ("token_embedding", "transformer", "ln_final"))
    is_causal = getattr(tower, "attn_mask", None) is not None and getattr(tower, "cls_emb", None) is None
    return has_standard_parts and is_causal and pool_type == "argmax"


def encode_text(tower: Towers, token_ids: Tensor) -> Tensor:
    """Encode sentences without the padding behind the longest one, with gradients.

    Differs from the authors' code: they encode the padding up to the context length too. The embeddings are equal, but
    take longer to compute.

    Args:
        tower: Text tower for which :func:`pools_end_token` holds. The end token has the highest token id.
        token_ids: Token ids of shape ``(S, context_length)``.

    Returns:
        Sentence embeddings, not normalised, shape ``(S, D)``.
    """
    end = token_ids.argmax(dim=-1)
    length = int(end.max()) + 1
    x = tower.token_embedding(token_ids[:, :length])
    x = x + tower.positional_embedding[:length]
    for x in _outputs_of_blocks(tower.transformer, x, tower.attn_mask[:length, :length]):  # noqa: B007, B020
        pass
    x = tower.ln_final(x)[torch.arange(len(end), device=x.device), end]
    if isinstance(tower.text_projection, nn.Linear):
        return tower.text_projection(x)
    return x if tower.text_projection is None else x @ tower.text_projection
