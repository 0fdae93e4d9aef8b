# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""The frozen CLIP: stage tokens, image embeddings and sentence embeddings.

open_clip changed its towers from sequence-first (2.24) to batch-first (3.x). Here both give the same numbers.
"""

import copy
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from anomalib_aprilgan.method.towers import Towers, build_towers, fingerprint, tokenizer_of, uses_quick_gelu

__all__ = ["Clip", "ImageFeatures", "copy_without_text", "encode_causal", "encode_image"]

Module = TypeVar("Module", bound=nn.Module)


class ImageFeatures(NamedTuple):
    """What one pass through the image tower yields.

    Attributes:
        embedding: CLIP's image embeddings, not normalised, shape ``(N, D)``.
        tokens: By stage, the patch tokens after that block: no class token, no final norm, shape ``(N, P, width)``.
    """

    embedding: Tensor
    tokens: dict[int, Tensor]


class Clip(nn.Module):
    """A frozen CLIP with a ViT image tower.

    It stays in evaluation mode, takes no gradients, and leaves no trace in a state dict: its weights are many times
    larger than all that is learned, and they are the same for everybody.

    Args:
        backbone: Name of an open_clip architecture, also one added with ``open_clip.add_model_config``.
        pretrained: A tag of open_clip, the path of a CLIP state dict (also OpenAI's own archives), or ``None`` for
            random weights, which are the same each time.
        image_size: Height and width in pixels of the images; the positional embedding is resized to it.
        quick_gelu: Run with QuickGELU instead of GELU.

    Attributes:
        quick_gelu: Whether it runs with QuickGELU.
        width: Dimensions of a patch token.
        embed_dim: Dimensions ``D`` of the joint space.
        num_blocks: Transformer blocks in the image tower.
        num_patches: Patches of an image.
        fingerprint: Digest of the weights, to tell whether a checkpoint belongs to them.

    Raises:
        ValueError: If the architecture is unknown or no standard ViT, if the tag or file is, or if the patch size does
            not divide the image size.
        RuntimeError: If weights must be downloaded and cannot be.
    """

    def __init__(self, backbone: str, pretrained: str | Path | None, image_size: int, *, quick_gelu: bool) -> None:
        super().__init__()
        self.towers: Towers = build_towers(backbone, pretrained, image_size, quick_gelu=quick_gelu)
        self.quick_gelu = uses_quick_gelu(backbone, quick_gelu=quick_gelu)
        visual = self.towers.visual
        self.width: int = visual.conv1.out_channels
        self.embed_dim: int = visual.proj.shape[1]
        self.num_patches: int = visual.grid_size[0] * visual.grid_size[1]
        self.num_blocks = len(visual.transformer.resblocks)
        self.fingerprint = fingerprint(self.towers)
        self._tokenizer = tokenizer_of(backbone)
        self.requires_grad_(requires_grad=False)
        self.train(mode=False)

    @property
    def has_text(self) -> bool:
        """Whether there is a text tower; exported models have none."""
        return not isinstance(self.towers, ImageTowerAlone)

    @torch.no_grad()
    def encode_image(self, images: Tensor, stages: Collection[int]) -> ImageFeatures:
        """Pass images through the tower once.

        Args:
            images: Pre-processed images of shape ``(N, 3, image_size, image_size)``.
            stages: Blocks whose tokens are wanted, counted from 1.

        Returns:
            The image embeddings and the wanted stages' patch tokens.
        """
        return encode_image(self.towers.visual, images, stages)

    @torch.no_grad()
    def project(self, tokens: Tensor) -> Tensor:
        """Map patch tokens into the joint space as CLIP does with the class token: final norm, then projection.

        Args:
            tokens: Shape ``(N, P, width)``.

        Returns:
            Shape ``(N, P, D)``, of any length.
        """
        visual = self.towers.visual
        return visual.ln_post(tokens.to(visual.proj.dtype)) @ visual.proj

    def encode_text(self, sentences: Sequence[str]) -> Tensor:
        """Embed sentences.

        Args:
            sentences: ``S`` sentences; beyond the context length they are cut.

        Returns:
            Sentence embeddings, not normalised, shape ``(S, D)``. They may take part in training.

        Raises:
            RuntimeError: If there is no text tower.
        """
        if not self.has_text:
            msg = (
                "An exported model has no text tower and cannot read sentences of another class. Export it for that "
                "class, or load a product file that was made for it."
            )
            raise RuntimeError(msg)
        device = self.towers.visual.conv1.weight.device
        with torch.inference_mode(mode=False), torch.no_grad(), torch.autocast(device.type, enabled=False):
            token_ids = self._tokenizer(list(sentences)).to(device)
            tower = getattr(self.towers, "text", self.towers)
            if _ends_with_end_token(tower):
                return encode_causal(tower, token_ids)
            return self.towers.encode_text(token_ids)

    def train(self, mode: bool = True) -> "Clip":  # the signature is torch's
        """Stay in evaluation mode, whatever is asked."""
        del mode
        return super().train(mode=False)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]  # noqa: ANN401
        """Contribute nothing to a state dict."""
        destination = kwargs.get("destination", args[0] if args else None)
        return {} if destination is None else destination

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:  # noqa: ANN401
        own = {prefix + name: value for name, value in self.towers.state_dict(prefix="towers.").items()}
        state_dict.update(own)  # what no state dict holds is not missing from it
        super()._load_from_state_dict(state_dict, prefix, *args)


class ImageTowerAlone(nn.Module):
    """Stands in for the towers where no sentence is read any more.

    Args:
        visual: Image tower.
    """

    def __init__(self, visual: Towers) -> None:
        super().__init__()
        self.visual = visual


def copy_without_text(module: Module, clip: Clip) -> Module:
    """Copy a module that contains a CLIP, without the text tower; the image tower is shared.

    Args:
        module: The module.
        clip: The CLIP in it.

    Returns:
        The copy.
    """
    towers, visual, tokenizer = clip.towers, clip.towers.visual, clip._tokenizer  # noqa: SLF001
    return copy.deepcopy(module, {id(towers): ImageTowerAlone(visual), id(visual): visual, id(tokenizer): None})


def encode_image(visual: Towers, images: Tensor, stages: Collection[int]) -> ImageFeatures:
    """Pass images through an image tower once. Unlike :meth:`Clip.encode_image`, it may take part in training.

    Args:
        visual: Image tower with a standard ViT.
        images: Pre-processed images of shape ``(N, 3, image_size, image_size)``.
        stages: Blocks whose tokens are wanted, counted from 1.

    Returns:
        The image embeddings and the wanted stages' patch tokens.
    """
    patches = visual.conv1(images).flatten(2).mT  # (N, P, width)
    patches = patches.to(visual.class_embedding.dtype)  # under autocast, the sums between blocks stay in fp32
    class_token = visual.class_embedding.expand(patches.shape[0], 1, -1)
    x = torch.cat([class_token, patches], dim=1) + visual.positional_embedding
    x = visual.ln_pre(visual.patch_dropout(x))

    tokens: dict[int, Tensor] = {}
    for number, x in enumerate(_outputs_of_blocks(visual.transformer, x), start=1):  # noqa: B020
        if number in stages:
            tokens[number] = x[:, 1:]

    # Only the pooled token goes through the final norm, before or after pooling alike for the class token.
    if visual.final_ln_after_pool:
        embedding = visual.ln_post(visual._global_pool(x)[0])  # noqa: SLF001
    else:
        embedding = visual._global_pool(visual.ln_post(x))[0]  # noqa: SLF001
    return ImageFeatures(embedding @ visual.proj.to(embedding.dtype), tokens)


def _outputs_of_blocks(transformer: Towers, x: Tensor, attn_mask: Tensor | None = None) -> Iterable[Tensor]:
    """Run a transformer's blocks in turn, whichever way round they want their input.

    Args:
        transformer: Tower of residual attention blocks.
        x: Tokens of shape ``(N, L, width)``.
        attn_mask: Additive attention mask of shape ``(L, L)``.

    Yields:
        Each block's output, shape ``(N, L, width)``.
    """
    batch_first = getattr(transformer.resblocks[0].attn, "batch_first", False)
    if not batch_first:
        x = x.transpose(0, 1)
    for block in transformer.resblocks:
        x = block(x, attn_mask=attn_mask)
        yield x if batch_first else x.transpose(0, 1)


def _ends_with_end_token(tower: Towers) -> bool:
    """Whether a text tower is causal and pools the end token, so that what follows that token has no influence."""
    pool_type = getattr(tower, "pool_type", getattr(tower, "text_pool_type", None))
    has_standard_parts = all(hasattr(tower, part) for part in ("token_embedding", "transformer", "ln_final"))
    is_causal = getattr(tower, "attn_mask", None) is not None and getattr(tower, "cls_emb", None) is None
    return has_standard_parts and is_causal and pool_type == "argmax"


def encode_causal(tower: Towers, token_ids: Tensor) -> Tensor:
    """Embed sentences, cut behind the longest one.

    Differs from the authors' code: they pad every sentence to the context length, which changes nothing but the time.

    Args:
        tower: Causal text tower that pools the end token, which has the highest number.
        token_ids: Shape ``(S, context_length)``.

    Returns:
        Sentence embeddings of shape ``(S, D)``.
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
