# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""The frozen CLIP as a module: it encodes images into stage tokens and embeddings, and sentences into embeddings."""

import copy
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from anomalib_aprilgan.method.clip_weights import RememberedDigest, has_hooks, kinds_of_layers
from anomalib_aprilgan.method.encoders import ImageFeatures, encode_image
from anomalib_aprilgan.method.feature_store import FeatureStore, now
from anomalib_aprilgan.method.text_tower import TextTower
from anomalib_aprilgan.method.towers import Towers, build_image_tower, uses_quick_gelu

__all__ = ["Clip", "copy_without_text"]

Module = TypeVar("Module", bound=nn.Module)


class Clip(nn.Module):
    """A frozen CLIP with a ViT image tower.

    It is always in evaluation mode and computes no gradients. A state dict does not contain its weights, since they are
    not trained and are far larger than the adapters.

    Args:
        backbone: Name of an open_clip architecture, also one added with ``open_clip.add_model_config``.
        pretrained: Tag of open_clip, path of a CLIP state dict (also OpenAI's own archives), or ``None`` for random
            weights, which are the same each time.
        image_size: Height and width of the images in pixels; the positional embedding is resized to it.
        quick_gelu: Use QuickGELU instead of GELU.

    Attributes:
        visual: The image tower.
        text: The text tower; exported models have none.
        quick_gelu: Whether the towers use QuickGELU.
        width: Dimensions of a patch token.
        embed_dim: Dimensions ``D`` of the joint space.
        num_blocks: Number of transformer blocks in the image tower.
        num_patches: Number of patches of an image.
        fingerprint: Digest of the weights, which shows whether a checkpoint was made with them.
        store: Where the features of images are stored and looked up; ``None``: all images are encoded.

    Raises:
        ValueError: If the architecture is unknown or no standard ViT, if there is no such tag or file, or if the patch
            size does not divide the image size.
        RuntimeError: If the weights cannot be downloaded.
    """

    def __init__(self, backbone: str, pretrained: str | Path | None, image_size: int, *, quick_gelu: bool) -> None:
        super().__init__()
        self.quick_gelu = uses_quick_gelu(backbone, quick_gelu=quick_gelu)
        image = build_image_tower(backbone, pretrained, image_size, quick_gelu=quick_gelu)
        self.visual: Towers = image.visual
        visual = self.visual
        self.text: TextTower | None = TextTower(
            backbone, image.file, quick_gelu=self.quick_gelu, digest=image.text_digest
        )
        self.width: int = visual.conv1.out_channels
        self.embed_dim: int = visual.proj.shape[1]
        self.num_patches: int = visual.grid_size[0] * visual.grid_size[1]
        self.num_blocks = len(visual.transformer.resblocks)
        self.fingerprint = image.fingerprint
        self.store: FeatureStore | None = None
        self._digest = RememberedDigest()
        self._backbone = backbone
        self.requires_grad_(requires_grad=False)
        self.train(mode=False)

    @torch.no_grad()
    def encode_image(
        self, images: Tensor, stages: Collection[int], recurs: Sequence[bool] | None = None
    ) -> ImageFeatures:
        """Encode images in one pass through the image tower, or look up what it returned for them before.

        Args:
            images: Pre-processed images of shape ``(N, 3, image_size, image_size)``.
            stages: Blocks whose patch tokens are returned, counted from 1.
            recurs: Whether each image will be seen again; others are not stored. ``None``: all will.

        Returns:
            The image embeddings, and the patch tokens of each stage.
        """
        if self.store is None or torch.compiler.is_compiling() or has_hooks(self.visual):
            return encode_image(self.visual, images, stages)
        identity = (self._backbone, self.quick_gelu, self.digest_of_tower())
        return self.store.encode_image(self.visual, images, sorted(stages), identity, recurs)

    def digest_of_tower(self) -> str:
        """Return the digest of the image tower."""
        return self._digest.of(self.visual.state_dict(), kinds_of_layers(self.visual))

    def clock(self) -> float:
        """Return the time in seconds, with the seconds that stored features have saved added to it."""
        saved = 0.0 if self.store is None else self.store.seconds_saved
        return now(self.visual.conv1.weight.device) + saved

    @torch.no_grad()
    def project(self, tokens: Tensor) -> Tensor:
        """Map patch tokens into the joint space as CLIP maps the class token: final norm, then projection.

        Args:
            tokens: Patch tokens of shape ``(N, P, width)``.

        Returns:
            Projected tokens, not normalised, shape ``(N, P, D)``.
        """
        visual = self.visual
        return visual.ln_post(tokens.to(visual.proj.dtype)) @ visual.proj

    def encode_text(self, sentences: Sequence[str]) -> Tensor:
        """Encode sentences.

        Args:
            sentences: ``S`` sentences; the tokenizer truncates them to the context length.

        Returns:
            Sentence embeddings, not normalised, shape ``(S, D)``. They are no inference tensors, so that adapters can
            be trained with them.

        Raises:
            RuntimeError: If there is no text tower.
        """
        if self.text is None:
            msg = (
                "An exported model has no text tower, so it cannot encode the name of another class. Export a model "
                "of that class, or load a product file of that class."
            )
            raise RuntimeError(msg)
        return self.text.encode(sentences, self.visual.conv1.weight.device)

    @property
    def identity_of_text(self) -> tuple[str | bool, ...]:
        """What determines the embeddings of sentences; nothing of an exported model."""
        if self.text is None:
            return ()
        return (*self.text.identity, self.visual.conv1.weight.device.type, torch.get_float32_matmul_precision())

    def train(self, mode: bool = True) -> "Clip":
        """Keep evaluation mode, whatever ``mode`` is."""
        del mode
        return super().train(mode=False)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]  # noqa: ANN401
        """Add nothing to a state dict."""
        destination = kwargs.get("destination", args[0] if args else None)
        return {} if destination is None else destination

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:  # noqa: ANN401
        # A strict load would otherwise report CLIP's weights as missing.
        own = super().state_dict()
        state_dict.update({prefix + name: value for name, value in own.items()})
        super()._load_from_state_dict(state_dict, prefix, *args)


def copy_without_text(module: Module, clip: Clip) -> Module:
    """Copy a module without the text tower of its CLIP. The copy shares the image tower.

    Args:
        module: A module that contains the CLIP.
        clip: The CLIP.

    Returns:
        The copy.
    """
    return copy.deepcopy(module, {id(clip.visual): clip.visual, id(clip.text): None})
