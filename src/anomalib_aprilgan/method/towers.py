# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Building CLIP's towers and filling them with weights. The only file that imports open_clip.

open_clip treats OpenAI's weights differently from release to release: 2.24 forces QuickGELU and ignores a forced image
size, 3.x only warns. Here architecture, activation and image size are what was asked for, on both.
"""

import difflib
import hashlib
import inspect
import re
from collections.abc import Callable
from importlib.util import find_spec
from math import isqrt
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip import pretrained as open_clip_pretrained
from torch import Tensor, nn
from torch.nn.functional import interpolate

from anomalib_aprilgan.files import embedded
from anomalib_aprilgan.files.weight_files import read_weight_file

__all__ = [
    "Towers",
    "build_towers",
    "fingerprint",
    "native_image_size",
    "number_of_blocks",
    "resize_positional_embedding",
    "runs_batch_first",
    "tokenizer_of",
    "uses_quick_gelu",
]

Weights = dict[str, Tensor]
Towers = Any
"""Both towers, or one of them: modules of open_clip, which carries no types."""

open_clip.add_model_config(embedded.CONFIG)


def build_towers(backbone: str, pretrained: str | Path | None, image_size: int, *, quick_gelu: bool) -> Towers:
    """Build a CLIP with a ViT image tower.

    Args:
        backbone: Name of an open_clip architecture, also one added with ``open_clip.add_model_config``.
        pretrained: A tag of open_clip, the path of a CLIP state dict (also OpenAI's own archives), or ``None`` for
            random weights, which are the same each time.
        image_size: Height and width in pixels of the images; the positional embedding is resized to it.
        quick_gelu: Use QuickGELU instead of GELU, also where the architecture does not ask for it.

    Returns:
        The towers; ``visual.grid_size`` and ``visual.image_size`` are those of the images.

    Raises:
        ValueError: If the architecture is unknown or no standard ViT, if the tag or file is, or if the patch size does
            not divide the image size.
        RuntimeError: If weights must be downloaded and cannot be.
    """
    config = _architecture(backbone)
    grid = _grid(backbone, int(config["vision_cfg"]["patch_size"]), image_size)
    config["quick_gelu"] = bool(config.get("quick_gelu")) or quick_gelu
    weights = _load_weights(backbone, pretrained) if pretrained is not None else None
    towers = _build(config)
    if weights is not None:
        _fill(towers, weights, grid, f"{backbone} from pretrained={str(pretrained)!r}")
    else:
        resized = resize_positional_embedding(towers.visual.positional_embedding, grid)
        towers.visual.positional_embedding = nn.Parameter(resized)
    towers.visual.image_size = (image_size, image_size)
    towers.visual.grid_size = (grid, grid)
    return towers


def tokenizer_of(backbone: str) -> Callable[[list[str]], Tensor]:
    """Return what turns sentences into token numbers of shape ``(S, context_length)``."""
    return open_clip.get_tokenizer(backbone)


def runs_batch_first() -> bool:
    """Whether the installed open_clip's transformers want the batch as their first dimension, as from 2.26 on."""
    return "batch_first" in inspect.signature(open_clip.transformer.Transformer).parameters


def uses_quick_gelu(backbone: str, *, quick_gelu: bool) -> bool:
    """Whether the towers run with QuickGELU: because it was asked for, or because the architecture says so."""
    return bool(_architecture(backbone).get("quick_gelu")) or quick_gelu


def native_image_size(backbone: str) -> int:
    """Return the height and width in pixels of the images that an architecture was made for."""
    size = _architecture(backbone)["vision_cfg"].get("image_size", 224)
    return int(size if isinstance(size, int) else size[0])


def number_of_blocks(backbone: str) -> int:
    """Return the number of transformer blocks in an architecture's image tower."""
    return int(_architecture(backbone)["vision_cfg"].get("layers", 12))


def resize_positional_embedding(embedding: Tensor, grid: int) -> Tensor:
    """Resize a positional embedding as open_clip does: bicubic with antialias, the class token's entry apart.

    Args:
        embedding: Shape ``(1 + old_grid ** 2, width)``.
        grid: Patches along each side.

    Returns:
        Tensor of shape ``(1 + grid ** 2, width)``; the same values if the grid stays as it is.
    """
    class_entry, patches = embedding.detach()[:1], embedding.detach()[1:]
    old_grid = isqrt(patches.shape[0])
    if old_grid == grid:
        return embedding.detach().clone()
    patches = patches.T.reshape(1, -1, old_grid, old_grid).float()
    patches = interpolate(patches, size=(grid, grid), mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([class_entry, patches[0].flatten(1).T.to(class_entry.dtype)])


def fingerprint(towers: Towers) -> str:
    """Digest of weights that no resizing touches, to tell one CLIP from another."""
    digest = hashlib.sha256()
    for name, weight in sorted(towers.named_parameters()):
        if name != "visual.positional_embedding":  # a beginning of each weight tells enough, and is quick to read
            digest.update(weight.detach().flatten()[:256].float().numpy().tobytes())
    return digest.hexdigest()[:16]


def _architecture(backbone: str) -> dict[str, Any]:
    """Look an architecture up and make sure that it is a ViT with the standard tower."""
    known = open_clip.list_models()
    if backbone not in known:
        likely = difflib.get_close_matches(str(backbone), known, n=4, cutoff=0.5) or ["ViT-B-16", "ViT-L-14-336"]
        msg = (
            f"Expected argument `backbone` to be an architecture of open_clip, but got {backbone!r}. Did you mean "
            f"{', '.join(likely)}? `open_clip.list_models()` lists all; add your own with `open_clip.add_model_config`."
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
        msg = f"The text tower of {backbone} needs the package transformers. Install it: pip install transformers"
        raise ValueError(msg)
    else:
        return config
    msg = (
        f"Expected argument `backbone` to name a CLIP whose image tower is a standard ViT, but {backbone} has {kind}. "
        "APRIL-GAN reads patch tokens between transformer blocks; use for instance ViT-B-16, ViT-L-14 or ViT-L-14-336."
    )
    raise ValueError(msg)


def _grid(backbone: str, patch_size: int, image_size: int) -> int:
    """Patches along each side of an image."""
    if not isinstance(image_size, int) or image_size <= 0 or image_size % patch_size:
        lower = max(image_size // patch_size, 1) * patch_size if isinstance(image_size, int) else 16 * patch_size
        msg = (
            f"Expected argument `image_size` to be a multiple of the patch size {patch_size} of {backbone}, but got "
            f"{image_size!r}. Use for instance {lower} or {lower + patch_size}."
        )
        raise ValueError(msg)
    return image_size // patch_size


def _build(config: dict[str, Any]) -> Towers:
    """Build both towers with random weights: the same each time, and without touching the global random state."""
    has_hf_text = "hf_model_name" in config["text_cfg"]
    if has_hf_text:
        config["text_cfg"]["hf_model_pretrained"] = False
    custom_text = config.pop("custom_text", False) or has_hf_text
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return (open_clip.CustomTextCLIP if custom_text else open_clip.CLIP)(**config)


def _load_weights(backbone: str, pretrained: str | Path) -> Weights:
    """Read CLIP weights from a file, or from the one that open_clip downloads for a tag."""
    path = Path(pretrained).expanduser()
    if path.is_file():
        return _read_weights(path)
    tags = open_clip_pretrained.list_pretrained_tags_by_model(backbone)
    if backbone == embedded.BACKBONE:
        if pretrained == embedded.TAG:
            return _read_weights(embedded.WEIGHTS)
        tags = [embedded.TAG]
    if not open_clip_pretrained.is_pretrained_cfg(backbone, str(pretrained)):
        msg = (
            f"Expected argument `pretrained` to be a tag that open_clip has for {backbone} "
            f"({', '.join(tags) if tags else 'there is none'}), the path of a file with CLIP weights, or None for "
            f"random weights, but got {str(pretrained)!r}, which is neither such a tag nor an existing file."
        )
        raise ValueError(msg)
    return _read_weights(_download_weights(backbone, str(pretrained)))


def _download_weights(backbone: str, tag: str) -> Path:
    """Get a tag's file from open_clip's caches or from the network; both check its integrity."""
    source = open_clip_pretrained.get_pretrained_cfg(backbone, tag)
    url = source.get("url", "")
    cached = Path("~/.cache/clip").expanduser() / Path(url).name
    try:
        if url and cached.is_file():  # where open_clip keeps OpenAI's archives; newer releases no longer look there
            return Path(open_clip_pretrained.download_pretrained_from_url(url))
        return Path(open_clip_pretrained.download_pretrained(source))
    except Exception as error:  # the network, the hub and the file system each raise their own
        repository, _, file_name = source.get("hf_hub", "").rpartition("/")
        hub = f"https://huggingface.co/{repository}/resolve/main/{file_name or 'open_clip_model.safetensors'}"
        places = [f"{url} (put it at {cached} and it is found)" if url else "", hub if repository else ""]
        msg = (
            f"The weights {tag!r} of {backbone} are not on this machine and could not be downloaded "
            f"({type(error).__name__}: {error}). Without network access, fetch the file elsewhere from "
            f"{' or '.join(place for place in places if place)}, bring it here, and pass its path as `pretrained`."
        )
        raise RuntimeError(msg) from error


def _read_weights(path: Path) -> Weights:
    """Read a state dict, also one that a trainer wrapped."""
    content, _ = read_weight_file(path, "CLIP weights")
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        names = f"a dict with {', '.join(map(str, list(content)[:4]))}" if isinstance(content, dict) else type(content)
        msg = f"Expected {path} to hold the state dict of a CLIP (names and tensors), but it holds {names}."
        raise ValueError(msg)
    return {re.sub(r"^module\.", "", str(name)): value for name, value in content.items()}


def _fill(towers: Towers, weights: Weights, grid: int, source: str) -> None:
    """Load weights into the towers, with the positional embedding resized to the grid."""
    ignored = ("input_resolution", "context_length", "vocab_size", "text.transformer.embeddings.position_ids")
    weights = {name: value for name, value in weights.items() if name not in ignored}
    if hasattr(towers, "text") and "positional_embedding" in weights:
        weights = open_clip.model.convert_to_custom_text_state_dict(weights)
    if "logit_scale" in weights:
        weights["logit_scale"] = weights["logit_scale"].reshape(towers.logit_scale.shape)
    name = "visual.positional_embedding"
    if name in weights and weights[name].shape[-1] == towers.visual.positional_embedding.shape[-1]:
        weights[name] = resize_positional_embedding(weights[name].float(), grid)
        towers.visual.positional_embedding = nn.Parameter(torch.empty_like(weights[name]))
    try:
        towers.load_state_dict(weights)
    except RuntimeError as error:
        details = " ".join(str(error).split())[:400]
        msg = f"The CLIP weights do not fit the architecture ({source}): {details} ..."
        raise ValueError(msg) from error
