# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Builds CLIP's towers and loads their weights. This is the only file that imports open_clip.

Releases of open_clip treat OpenAI's weights differently: 2.24 forces QuickGELU and ignores a forced image size, while
3.x only warns. Here the towers have the requested architecture, activation and image size with both releases.
"""

import difflib
import inspect
import os
import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip import pretrained as open_clip_pretrained
from torch import Tensor, nn

from anomalib_aprilgan.files import embedded
from anomalib_aprilgan.files.digests import digest_of
from anomalib_aprilgan.files.downloads import MissingFileError, cached_from_hub, download, fetch_from_hub
from anomalib_aprilgan.files.paths import checked_path
from anomalib_aprilgan.method.clip_weights import read_clip_weights, resize_positional_embedding

__all__ = [
    "Towers",
    "build_towers",
    "cached_weights",
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

LIMIT = 30_000_000_000
"""Largest size of a file with CLIP weights in bytes. The largest towers that open_clip has take some 20 GB."""

open_clip.add_model_config(embedded.CONFIG)


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
    config = _architecture(backbone)
    grid = patch_grid(backbone, image_size)
    config["quick_gelu"] = bool(config.get("quick_gelu")) or quick_gelu
    weights = _load_weights(backbone, pretrained) if pretrained is not None else None
    towers = _build(config)
    if weights is not None:
        _load_into(towers, weights, grid, f"{backbone} from pretrained={str(pretrained)!r}")
    else:
        resized = resize_positional_embedding(towers.visual.positional_embedding, grid)
        towers.visual.positional_embedding = nn.Parameter(resized)
    towers.visual.image_size = (image_size, image_size)
    towers.visual.grid_size = (grid, grid)
    return towers


def tokenizer_of(backbone: str) -> Callable[[list[str]], Tensor]:
    """Return the tokenizer of an architecture: it maps ``S`` sentences to token ids, shape ``(S, context_length)``."""
    return open_clip.get_tokenizer(backbone)


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


def _load_weights(backbone: str, pretrained: str | Path) -> Weights:
    """Read CLIP weights from a file, or from the file that open_clip downloads for a tag."""
    path = checked_path(pretrained, "pretrained")
    if path.is_file():
        return read_clip_weights(path)
    tags = open_clip_pretrained.list_pretrained_tags_by_model(backbone)
    if backbone == embedded.BACKBONE:
        if pretrained == embedded.TAG:
            return read_clip_weights(embedded.WEIGHTS)
        tags = [embedded.TAG]
    if not open_clip_pretrained.is_pretrained_cfg(backbone, str(pretrained)):
        found = "is a folder" if path.is_dir() and str(pretrained) else "is neither a tag nor an existing file"
        msg = (
            f"Expected argument `pretrained` to be a tag that open_clip has for {backbone} "
            f"({', '.join(tags) if tags else 'there is none'}), the path of a file with CLIP weights such as "
            f"ViT-L-14-336px.pt or open_clip_model.safetensors, or None for random weights, but got "
            f"{str(pretrained)!r}, which {found}."
        )
        raise ValueError(msg)
    return read_clip_weights(_download_weights(backbone, str(pretrained)))


def cached_weights(backbone: str, tag: str) -> list[tuple[Path, str]]:
    """Find the files of a tag in open_clip's caches, without network.

    Args:
        backbone: Name of an open_clip architecture.
        tag: A tag that open_clip has for it.

    Returns:
        Each file that exists, with the SHA-256 that its publisher states, or the first eight digits of it: as a part of
        the URL, or as the name of the hub's copy. It is empty if none is stated.
    """
    url, repository, names, cached = _sources(backbone, tag)
    found = [(cached, _sha256_in(url))] if url and cached.is_file() else []
    in_hub = cached_from_hub(repository, names) if repository else None
    if in_hub:
        blob = in_hub.resolve().name
        found.append((in_hub, blob if re.fullmatch("[0-9a-f]{64}", blob) else ""))
    return found


def _sources(backbone: str, tag: str) -> tuple[str, str, list[str], Path]:
    """Return the URL of a tag, its repository and names in the hub, and the path of the URL's file in the cache."""
    source = open_clip_pretrained.get_pretrained_cfg(backbone, tag)
    url = source.get("url", "")
    cached = Path(os.path.expanduser(f"~/.cache/clip/{Path(url).name}"))  # noqa: PTH111  # no error without a home
    repository, _, name = source.get("hf_hub", "").rpartition("/")
    name = name or "open_clip_pytorch_model.bin"
    safe = re.sub(r"\.(bin|pth)$", ".safetensors", name).replace("open_clip_pytorch_model", "open_clip_model")
    return url, repository, list(dict.fromkeys([safe, name])), cached  # the names that open_clip tries


def _download_weights(backbone: str, tag: str) -> Path:
    """Return the file of a tag from open_clip's caches, or download it to them."""
    url, repository, names, cached = _sources(backbone, tag)
    expected = _sha256_in(url)

    def find_fault(path: Path) -> str:
        found = digest_of(path)
        return "" if found.startswith(expected) else f"has the SHA-256 {found} instead of {expected}..."

    try:
        if repository and not (url and cached.is_file()):  # open_clip 3.x looks in the Hugging Face cache only
            return fetch_from_hub(repository, names, LIMIT)
        if not cached.is_absolute():
            msg = "there is no home directory for the cache"
            raise OSError(msg)  # noqa: TRY301
        if not cached.is_file() or (expected and find_fault(cached)):
            download(url, cached, LIMIT, find_fault if expected else None)
    except Exception as error:  # network, hub and file system raise errors of many types
        hub = f"https://huggingface.co/{repository}/resolve/main/{names[0]}"
        place = f"at {cached}, or anywhere" if url else "anywhere"
        or_hub = f" The file {hub} works as well, but only with its path." if url and repository else ""
        advice = f"Put the file {place} with `--model.pretrained PATH` (in Python: pretrained=PATH).{or_hub}"
        file = f"CLIP ({tag!r} of {backbone}): {url or hub}\n  {advice}"
        reason = f"{type(error).__name__}: {error}"
        raise MissingFileError(reason, file) from error
    return cached


def _sha256_in(url: str) -> str:
    """Return the SHA-256, or its beginning, that URLs of OpenAI and of open_clip contain; empty for other URLs."""
    digests: list[str] = re.findall(r"[/-]([0-9a-f]{64}|[0-9a-f]{8})(?=[/.])", url)
    return digests[-1] if digests else ""


def _load_into(towers: Towers, weights: Weights, grid: int, source: str) -> None:
    """Load weights into the towers, with the positional embedding resized to the patch grid."""
    ignored = ("input_resolution", "context_length", "vocab_size", "text.transformer.embeddings.position_ids")
    weights = {name: value for name, value in weights.items() if name not in ignored}
    name = "visual.positional_embedding"
    try:
        if hasattr(towers, "text") and "positional_embedding" in weights:
            weights = open_clip.model.convert_to_custom_text_state_dict(weights)
        if "logit_scale" in weights:
            weights["logit_scale"] = weights["logit_scale"].reshape(towers.logit_scale.shape)
        if name in weights and weights[name].shape[1:] == towers.visual.positional_embedding.shape[1:]:
            weights[name] = resize_positional_embedding(weights[name].float(), grid)
            towers.visual.positional_embedding = nn.Parameter(torch.empty_like(weights[name]))
        towers.load_state_dict(weights)
    except RuntimeError as error:  # shapes that do not fit
        details = " ".join(str(error).split())[:400]
        msg = f"The CLIP weights do not fit the architecture ({source}): {details} ..."
        raise ValueError(msg) from error
