# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Losses of pre-training.

Each but the last two is a cross-entropy over similarities of images and captions, as in CLIP (arXiv 2103.00020):

- contrast: all images of the batch against all captions. An image matches the captions of its kind and state.
- twins: each image against both captions of its pair, and each caption against both images of its pair.
- patches: each patch against both captions of its pair. Its target is the fraction that the defect covers. Patches of
  the last block go through CLIP's final norm and projection. Patches of the stages that APRIL-GAN uses go through
  linear adapters; so every one of these stages learns where defects are.
- distances: each patch of the abnormal image against the nearest patch of a reference image, as in memory banks
  (arXiv 2305.17382, section 3.3). It is close to it, unless the defect covers it.
- embedding: the cosine distance of each image embedding to that of the same image before the training.
- state: how far the probabilities of both captions are from those before the training (Kullback-Leibler divergence).

The first round trains with the first four, the second one with patches, embedding and state.

Pairs whose defect covers less than a tenth of every patch are left out of contrast and twins: nobody could see it.
"""

import json
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax, logsigmoid, normalize

from anomalib_aprilgan.files.embedded import ADAPTED, CONFIG
from anomalib_aprilgan.method.adapters import StageAdapters
from anomalib_aprilgan.method.encoders import encode_image, encode_text
from anomalib_aprilgan.method.towers import Towers
from anomalib_aprilgan.pretraining.pairs import Batch

__all__ = [
    "Encoded",
    "distance_loss",
    "encode",
    "encode_images",
    "encode_references",
    "image_losses",
    "kept_losses",
    "patch_loss",
]

LEAST_COVERED = 0.1
"""Fraction of a patch that a defect covers at least, to be seen in the image."""

STEEPNESS, MIDDLE = 20.0, 0.15
"""Factor of the distances, and distance that is as likely normal as abnormal."""

BLOCKS = int(json.loads(CONFIG.read_text(encoding="utf-8"))["vision_cfg"]["layers"])


class Encoded(NamedTuple):
    """Features of ``B`` pairs with ``P`` patches. All are normalised, except the tokens of the stages.

    Attributes:
        images: Image embeddings, shape ``(B, 2, D)``.
        captions: Embeddings of the captions, shape ``(B, 2, D)``.
        patches: Projected patches of the last block, and adapted ones of each stage, shape ``(B, 2, P, D)`` each.
        stages: Patch tokens of each stage, not normalised, shape ``(2 B, P, width)`` each.
    """

    images: Tensor
    captions: Tensor
    patches: list[Tensor]
    stages: list[Tensor]


def encode(towers: Towers, adapters: StageAdapters, tokenizer: Callable[[list[str]], Tensor], batch: Batch) -> Encoded:
    """Encode pairs of images with their captions, the image tower in bfloat16.

    Args:
        towers: The CLIP.
        adapters: Linear adapters of its stages ``ADAPTED``.
        tokenizer: The CLIP's tokenizer.
        batch: Pairs of images with captions.
    """
    visual = towers.visual
    with torch.autocast(batch.images.device.type, torch.bfloat16):
        embedding, tokens = encode_image(visual, batch.images.flatten(0, 1).contiguous(), range(1, BLOCKS + 1))
        projected = [visual.ln_post(tokens[BLOCKS]) @ visual.proj, *adapters([tokens[stage] for stage in ADAPTED])]
    token_ids = tokenizer(batch.captions).to(batch.images.device)
    return Encoded(
        _in_pairs(embedding),
        _in_pairs(encode_text(towers, token_ids)),
        [_in_pairs(tokens) for tokens in projected],
        [tokens[stage] for stage in ADAPTED],
    )


@torch.no_grad()
def encode_images(visual: Towers, batch: Batch) -> Tensor:
    """Return the image embeddings of an image tower that is not trained, shape ``(2 B, D)``."""
    with torch.autocast(batch.images.device.type, torch.bfloat16):
        return encode_image(visual, batch.images.flatten(0, 1).contiguous(), ()).embedding


@torch.no_grad()
def encode_references(towers: Towers, batch: Batch) -> list[Tensor]:
    """Return the normalised patch tokens of the references of each stage, shape ``(B, P, width)`` each."""
    with torch.autocast(batch.references.device.type, torch.bfloat16):
        _, tokens = encode_image(towers.visual, batch.references, ADAPTED)
    return [normalize(tokens[stage].float(), dim=-1) for stage in ADAPTED]


def image_losses(encoded: Encoded, batch: Batch, temperature: float) -> dict[str, Tensor]:
    """Compute the losses contrast and twins.

    Args:
        encoded: The features of the batch.
        batch: Pairs of images with captions.
        temperature: Factor of the cosine similarities.

    Returns:
        The losses by name, shape () each.
    """
    images, captions = encoded.images, encoded.captions
    state = torch.arange(2, device=batch.images.device)
    description = 2 * batch.kinds[:, None] + state  # (B, 2), equal for the same kind and state
    is_visible = batch.covered.amax(dim=1) > LEAST_COVERED
    is_named = batch.is_named & is_visible
    named_images, named_captions, named = (x[is_named].flatten(0, 1) for x in (images, captions, description))
    contrast = _contrast(named_images, named_captions, named, temperature)

    visible = is_visible.repeat_interleave(2) / is_visible.sum().clamp(min=1) / 2
    similarities = temperature * images @ captions.mT  # (B, state of the image, state of the caption)
    of_captions, of_images = (
        visible @ cross_entropy(logits.flatten(0, 1), state.repeat(len(logits)), reduction="none", label_smoothing=0.05)
        for logits in (similarities, similarities.mT)
    )
    return {"contrast": contrast, "twins": (of_captions + of_images) / 2}


def patch_loss(encoded: Encoded, batch: Batch, temperature: float) -> dict[str, Tensor]:
    """Compute the loss patches; arguments and result as for :func:`image_losses`."""
    patches = [_patches(tokens, encoded.captions, batch.covered, temperature) for tokens in encoded.patches]
    return {"patches": torch.stack(patches).mean()}


def distance_loss(encoded: Encoded, references: list[Tensor], batch: Batch) -> dict[str, Tensor]:
    """Compute the loss distances.

    Args:
        encoded: The features of the batch.
        references: Result of :func:`encode_references`.
        batch: Pairs of images with captions.

    Returns:
        The loss by name, shape ().
    """
    stages = zip(encoded.stages, references, strict=True)
    distances = [_distances(_in_pairs(tokens)[:, 1], near, batch.covered) for tokens, near in stages]
    return {"distances": torch.stack(distances).mean()}


def kept_losses(encoded: Encoded, before: Tensor, temperature: float) -> dict[str, Tensor]:
    """Compute the losses embedding and state.

    Args:
        encoded: The features of a batch.
        before: Image embeddings of the CLIP before the training, shape ``(2 B, D)``.
        temperature: Factor of the cosine similarities.

    Returns:
        The losses by name, shape () each.
    """
    kept = _in_pairs(before)
    now, then = (log_softmax(temperature * images @ encoded.captions.mT, dim=-1) for images in (encoded.images, kept))
    change = kl_div(now, then, reduction="none", log_target=True).sum(dim=-1)
    return {"embedding": 1 - (encoded.images * kept).sum(dim=-1).mean(), "state": change.mean()}


def _in_pairs(embeddings: Tensor) -> Tensor:
    """Normalise embeddings and group them in pairs: shape ``(2 B, ..., D)`` becomes ``(B, 2, ..., D)``."""
    return normalize(embeddings.float(), dim=-1).reshape(-1, 2, *embeddings.shape[1:])


def _contrast(images: Tensor, captions: Tensor, description: Tensor, temperature: float) -> Tensor:
    """CLIP's loss, shape (), where images and captions match if they have the same description; 0 without any."""
    if not len(images):
        return images.sum()
    same = (description[:, None] == description).float()
    target = same / same.sum(dim=1, keepdim=True)
    logits = temperature * images @ captions.T
    return (cross_entropy(logits, target) + cross_entropy(logits.T, target)) / 2


def _patches(patches: Tensor, captions: Tensor, covered: Tensor, temperature: float) -> Tensor:
    """Loss of patches, shape ``(B, 2, P, D)``, against both captions of their pair; shape ()."""
    log_probabilities = log_softmax(temperature * patches @ captions[:, None].mT, dim=-1)  # (B, 2, P, state)
    return _of_states(log_probabilities, torch.stack([torch.zeros_like(covered), covered], dim=1))


def _distances(patches: Tensor, references: Tensor, covered: Tensor) -> Tensor:
    """Loss of the cosine distances of patches ``(B, P, D)`` to the nearest of ``(B, R, D)``; shape ()."""
    distances = 1 - (patches @ references.mT).amax(dim=-1)
    logits = STEEPNESS * (distances - MIDDLE)
    return _of_states(logsigmoid(torch.stack([-logits, logits], dim=-1)), covered)


def _of_states(log_probabilities: Tensor, covered: Tensor) -> Tensor:
    """Cross-entropy of log probabilities of both states, shape ``(..., 2)``, for patches covered like ``(...)``.

    A patch counts as abnormal by three times the fraction that the defect covers, so that thin lines and pits count
    too. The means over patches with and without defect are added, since the former are rare.
    """
    target = (3 * covered).clamp(0.02, 0.98)
    each = -(1 - target) * log_probabilities[..., 0] - target * log_probabilities[..., 1]
    is_covered = target > 0.5  # noqa: PLR2004
    of_defect = each[is_covered].sum() / is_covered.sum().clamp(min=1)
    return of_defect / 2 + each[~is_covered].mean()
