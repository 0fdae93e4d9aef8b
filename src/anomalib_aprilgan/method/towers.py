# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Builds CLIP's towers, both or one of them, and loads their weights.

Releases of open_clip treat OpenAI's weights differently: 2.24 forces QuickGELU and ignores a forced image size, while
3.x only warns. Here the towers have the requested architecture, activation and image size with both releases.
"""

import difflib
import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import nullcontext
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import open_clip
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from anomalib_aprilgan.files import embedded
from anomalib_aprilgan.method.clip_weights import (
    digest_of_weights,
    fingerprint,
    read_clip_weights,
    resize_positional_embedding,
)
from anomalib_aprilgan.method.pretrained import find_weights

__all__ = [
    "ImageTower",
    "Towers",
    "build_image_tower",
    "build_text_tower",
    "build_towers",
    "native_image_size",
    "number_of_blocks",
    "patch_grid",
    "runs_batch_first",
    "tokenizer_of",
    "uses_quick_gelu",
]

Weights = dict[str, Tensor]
Towers = Any
"""Both towers, or one of them: modules of open_clip, which has no type annotations."""

open_clip.add_model_config(embedded.CONFIG)


class ImageTower(NamedTuple):
    """An image tower, and what identifies the weights.

    Attributes:
        visual: The tower; ``grid_size`` and ``image_size`` are set for the image size.
        file: File of the weights; ``None`` for random ones.
        fingerprint: Digest of the beginning of all weights of both towers.
        text_digest: SHA-256 of all weights of the text tower.
    """

    visual: Towers
    file: Path | None
    fingerprint: str
    text_digest: str


def build_towers(backbone: str, pretrained: str | Path | None, image_size: int, *, quick_gelu: bool) -> Towers:
    """Build a CLIP with a ViT image tower.

    Args:
        backbone: Name of an open_clip architecture, also one added with ``open_clip.add_model_config``.
        pretrained: Tag of open_clip, path of a CLIP state dict (also OpenAI's own archives), or ``None`` for random
            weights, which are the same each time.
        image_size: Height and width of the images in pixels; the positional embedding is resized to it.
        quick_gelu: Use QuickGELU, even if the configuration of the architecture says GELU.

    Returns:
        Both towers; ``visual.grid_size`` and ``visual.image_size`` are set for the image size.

    Raises:
        ValueError: If the architecture is unknown or no standard ViT, if there is no such tag or file, or if the patch
            size does not divide the image size.
        MissingFileError: If the weights cannot be downloaded.
    """
    file = None if pretrained is None else find_weights(backbone, pretrained)
    return _build_and_load(backbone, file, image_size, ("image", "text"), quick_gelu=quick_gelu)


def build_image_tower(backbone: str, pretrained: str | Path | None, image_size: int, *, quick_gelu: bool) -> ImageTower:
    """Build the image tower of a CLIP alone; arguments and errors as for :func:`build_towers`."""
    file = None if pretrained is None else find_weights(backbone, pretrained)
    towers = _build_and_load(backbone, file, image_size, ("image",), quick_gelu=quick_gelu)
    text = {name: value for name, value in towers.state_dict().items() if not name.startswith("visual.")}
    return ImageTower(towers.visual, file, fingerprint(towers), digest_of_weights(text))


def build_text_tower(backbone: str, file: Path | None, *, quick_gelu: bool) -> Towers:
    """Build a CLIP without its image tower, from a file of weights; ``None`` for random ones."""
    return _build_and_load(backbone, file, native_image_size(backbone), ("text",), quick_gelu=quick_gelu)


def _build_and_load(
    backbone: str, file: Path | None, image_size: int, parts: tuple[str, ...], *, quick_gelu: bool
) -> Towers:
    """Build both towers, and load the weights of those that will be used. The other one takes no memory.

    Args:
        backbone: See :func:`build_towers`.
        file: File of weights; ``None`` for random ones.
        image_size: See :func:`build_towers`.
        parts: The towers that will be used: ``"image"``, ``"text"``, or both.
        quick_gelu: See :func:`build_towers`.
    """
    config = _architecture(backbone)
    grid = patch_grid(backbone, image_size)
    config["quick_gelu"] = bool(config.get("quick_gelu")) or quick_gelu
    with nullcontext() if file is None else _WithoutInitialisation():
        towers = _build(config)
    has_image = "image" in parts
    if not has_image:
        towers.visual = nn.Identity()
    if file is not None:
        weights = read_clip_weights(file, without=None if has_image else "visual.")
        used = {name for name in weights if ("image" if name.startswith("visual.") else "text") in parts}
        _load_into(towers, weights, used, grid, f"{backbone} from {file}")
    elif has_image:
        resized = resize_positional_embedding(towers.visual.positional_embedding, grid)
        towers.visual.positional_embedding = nn.Parameter(resized)
    towers.visual.image_size = (image_size, image_size)
    towers.visual.grid_size = (grid, grid)
    return towers


class _WithoutInitialisation(TorchFunctionMode):
    """Skips the initialisation of weights that will be replaced. Random values would take seconds, and memory."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        del types
        if func in {torch.Tensor.normal_, torch.Tensor.uniform_} or getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else (kwargs or {})["tensor"]
        return (torch.empty if func is torch.randn else func)(*args, **(kwargs or {}))


@cache
def tokenizer_of(backbone: str) -> Callable[[list[str]], Tensor]:
    """Return the tokenizer of an architecture: it maps ``S`` sentences to token ids, shape ``(S, context_length)``."""
    root, nothing = logging.getLogger(), logging.NullHandler()
    root.addHandler(nothing)  # open_clip logs through the root logger, which Python would configure otherwise
    try:
        return open_clip.get_tokenizer(backbone)
    finally:
        root.removeHandler(nothing)


def runs_batch_first() -> bool:
    """Whether the transformers of the installed open_clip take batch-first input, as they do since release 2.26."""
    return "batch_first" in inspect.signature(open_clip.transformer.Transformer).parameters


def uses_quick_gelu(backbone: str, *, quick_gelu: bool) -> bool:
    """Whether the towers use QuickGELU: because of the argument, or because of the architecture's configuration."""
    return bool(_architecture(backbone).get("quick_gelu")) or quick_gelu


def native_image_size(backbone: str) -> int:
    """Return the image size of an architecture: height and width in pixels."""
    size = _architecture(backbone)["vision_cfg"].get("image_size", 224)
    return int(size if isinstance(size, int) else size[0])


def number_of_blocks(backbone: str) -> int:
    """Return the number of transformer blocks in the image tower of an architecture."""
    return int(_architecture(backbone)["vision_cfg"].get("layers", 12))


def patch_grid(backbone: str, size: int, argument: str = "image_size") -> int:
    """Return the number of patches along each side of an image.

    Args:
        backbone: Name of an open_clip architecture.
        size: Height and width of the image in pixels.
        argument: Name of the argument that holds the size, for the message.

    Raises:
        ValueError: If the patch size does not divide the size.
    """
    patch_size = int(_architecture(backbone)["vision_cfg"]["patch_size"])
    if not isinstance(size, int) or size <= 0 or size % patch_size:
        lower = max(size // patch_size, 1) * patch_size if isinstance(size, int) else 16 * patch_size
        msg = (
            f"Expected argument `{argument}` to be a multiple of the patch size {patch_size} of {backbone}, but got "
            f"{size!r}. Use for example {lower} or {lower + patch_size}."
        )
        raise ValueError(msg)
    return size // patch_size


def _architecture(backbone: str) -> dict[str, Any]:
    """Return the configuration of an architecture, after checking that its image tower is a standard ViT."""
    known = open_clip.list_models()
    if backbone not in known:
        similar = difflib.get_close_matches(str(backbone), known, n=4, cutoff=0.5) or ["ViT-B-16", "ViT-L-14-336"]
        msg = (
            f"Expected argument `backbone` to be an architecture of open_clip, but got {backbone!r}. Did you mean "
            f"{', '.join(similar)}? `open_clip.list_models()` lists all architectures, and "
            "`open_clip.add_model_config` adds your own."
        )
        raise ValueError(msg)
    config: dict[str, Any] = open_clip.get_model_config(backbone)
    vision = config["vision_cfg"]
    if vision.get("timm_model_name"):
        kind = f"the timm model {vision['timm_model_name']}"
    elif isinstance(vision.get("layers"), list | tuple):
        kind = "a ResNet"
    elif vision.get("attentional_pool") or "multimodal_cfg" in config or vision.get("pool_type", "tok") == "none":
        kind = "a ViT with attentional pooling"
    elif {"hf_model_name", "hf_tokenizer_name"} & set(config["text_cfg"]) and find_spec("transformers") is None:
        msg = f"The text tower of {backbone} needs the package transformers. Run: pip install transformers"
        raise ValueError(msg)
    else:
        return config
    msg = (
        f"Expected argument `backbone` to be a CLIP whose image tower is a standard ViT, but got {backbone}, which has "
        f"{kind}. APRIL-GAN needs the patch tokens between transformer blocks. Use for example ViT-B-16, ViT-L-14 or "
        "ViT-L-14-336."
    )
    raise ValueError(msg)


def _build(config: dict[str, Any]) -> Towers:
    """Build both towers with the same random weights each time; the global random state does not change."""
    has_hf_text = "hf_model_name" in config["text_cfg"]
    if has_hf_text:
        config["text_cfg"]["hf_model_pretrained"] = False
    custom_text = config.pop("custom_text", False) or has_hf_text
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return (open_clip.CustomTextCLIP if custom_text else open_clip.CLIP)(**config)


def _load_into(towers: Towers, weights: Weights, used: AbstractSet[str], grid: int, source: str) -> None:
    """Put weights into the towers, with the positional embedding resized to the patch grid.

    Args:
        towers: Both towers.
        weights: Weights by name.
        used: Names of the weights that will be used. They become single precision, one after the other; the others are
            checked, but stay as they are.
        grid: Number of patches along each side.
        source: Describes the weights.

    Raises:
        ValueError: If the weights belong to another architecture.
    """
    ignored = ("input_resolution", "context_length", "vocab_size", "text.transformer.embeddings.position_ids")
    for name in ignored:
        weights.pop(name, None)
    name = "visual.positional_embedding"
    for one in used & weights.keys():
        if weights[one].is_floating_point():
            weights[one] = weights[one].to(torch.float32)
    try:
        if hasattr(towers, "text") and "positional_embedding" in weights:
            weights = open_clip.model.convert_to_custom_text_state_dict(weights)
        if "logit_scale" in weights:
            weights["logit_scale"] = weights["logit_scale"].reshape(towers.logit_scale.shape)
        if name in weights and weights[name].shape[1:] == towers.visual.positional_embedding.shape[1:]:
            weights[name] = resize_positional_embedding(weights[name].float(), grid)
            towers.visual.positional_embedding = nn.Parameter(torch.empty_like(weights[name]))
        towers.load_state_dict(weights, assign=True)
    except RuntimeError as error:  # shapes that do not fit
        details = " ".join(str(error).split())[:400]
        msg = f"The CLIP weights do not fit the architecture ({source}): {details} ..."
        raise ValueError(msg) from error
