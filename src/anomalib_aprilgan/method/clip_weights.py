# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""CLIP weights: reading of files, resizing of the positional embedding, and digests that identify weights."""

import hashlib
import re
from collections.abc import Mapping
from math import isqrt
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from anomalib_aprilgan.files.weight_files import non_finite, read_weight_file, refuse_non_finite

__all__ = [
    "RememberedDigest",
    "digest_of_weights",
    "fingerprint",
    "has_hooks",
    "kinds_of_layers",
    "read_clip_weights",
    "resize_positional_embedding",
]


def read_clip_weights(path: Path, without: str | None = None) -> dict[str, Tensor]:
    """Read a CLIP state dict from a file.

    Args:
        path: A state dict, a checkpoint that holds one under ``state_dict``, or a TorchScript archive such as OpenAI's.
        without: Beginning of the names of weights that are left out.

    Returns:
        Tensors by name, without the prefix ``module.`` of distributed training.

    Raises:
        ValueError: If the file is damaged, holds no state dict, has the format of the package transformers, or contains
            NaN or infinite values; the message names the file.
    """
    content, _ = read_weight_file(path, "CLIP weights", torchscript=True, without=without)
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        names = f"a dict with {', '.join(map(str, list(content)[:4]))}" if isinstance(content, dict) else type(content)
        msg = f"Expected {path} to contain the state dict of a CLIP (names and tensors), but it contains {names}."
        raise ValueError(msg)
    if any(str(name).startswith(("vision_model.", "text_model.")) for name in content):
        msg = (
            f"Expected {path} to contain a CLIP in OpenAI's or open_clip's format, but it has that of the package "
            "transformers (vision_model...). Use OpenAI's file, for instance ViT-L-14-336px.pt, or open_clip's, for "
            "instance open_clip_model.safetensors."
        )
        raise ValueError(msg)
    weights = {re.sub(r"^module\.", "", str(name)): value for name, value in content.items()}
    if without is not None:
        weights = {name: value for name, value in weights.items() if not name.startswith(without)}
    refuse_non_finite(non_finite(weights.items()), f"The file {path}")
    return weights


def resize_positional_embedding(embedding: Tensor, grid: int) -> Tensor:
    """Resize a positional embedding to another patch grid: bicubic with antialias; the class token's row is kept.

    The result equals that of open_clip's ``resize_pos_embed``, which is not called because it logs through the root
    logger and thereby configures it.

    Args:
        embedding: Positional embedding of shape ``(1 + old_grid ** 2, width)``; row 0 is the class token.
        grid: Number of patches along each side.

    Returns:
        Tensor of shape ``(1 + grid ** 2, width)``, with gradients; a copy if the grid has that size already.
    """
    class_row, patches = embedding[:1], embedding[1:]
    old_grid = isqrt(patches.shape[0])
    if old_grid == grid:
        return embedding.clone()
    patches = patches.T.reshape(1, -1, old_grid, old_grid).float()
    patches = interpolate(patches, size=(grid, grid), mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([class_row, patches[0].flatten(1).T.to(class_row.dtype)])


def digest_of_weights(weights: Mapping[str, Tensor]) -> str:
    """Compute the SHA-256 of all values of a tower's state dict in single precision; ViT-L takes about a second."""
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        single = value.detach().float() if value.is_floating_point() else value
        digest.update(f"{name} {single.dtype} {tuple(single.shape)}".encode())
        digest.update(single.cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


class RememberedDigest:
    """The digest of tensors, computed again only if they were replaced or changed.

    A change shows in addresses and version counters. What goes past these, such as ``weight.data.add_(...)``, shows in
    up to 256 values of each weight, evenly spaced.
    """

    def __init__(self) -> None:
        self._seen: object = None
        self._digest = ""

    def of(self, weights: Mapping[str, Tensor], layers: str = "") -> str:
        """Return the digest of tensors by name, and of a description of the layers that use them."""
        samples = [value.detach().flatten()[:: max(1, value.numel() // 256)].float() for value in weights.values()]
        sampled = torch.cat(samples).cpu().numpy().tobytes() if samples else b""
        seen = layers, sampled, [(name, value.data_ptr(), value._version) for name, value in weights.items()]  # noqa: SLF001
        if self._seen != seen:
            self._digest = hashlib.sha256(f"{layers} {digest_of_weights(weights)}".encode()).hexdigest()
            self._seen = seen
        return self._digest


def kinds_of_layers(module: nn.Module) -> str:
    """Describe the classes of a module and of all its parts."""
    return str([type(layer) for layer in module.modules()])


def has_hooks(module: nn.Module) -> bool:
    """Whether functions of others are called when the module runs, which may change what it returns."""
    return any(layer._forward_hooks or layer._forward_pre_hooks for layer in module.modules())  # noqa: SLF001


def fingerprint(towers: nn.Module) -> str:
    """Compute a digest of CLIP's weights, which does not depend on the image size.

    Args:
        towers: Both towers.

    Returns:
        16 hexadecimal digits. They cover the first 256 values of each weight except the positional embedding.
    """
    digest = hashlib.sha256()
    for name, weight in sorted(towers.named_parameters()):
        if name != "visual.positional_embedding":  # the only weight that is resized
            digest.update(weight.detach().flatten()[:256].float().numpy().tobytes())
    return digest.hexdigest()[:16]
