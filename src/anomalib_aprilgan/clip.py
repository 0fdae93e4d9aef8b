# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""The frozen CLIP: stage tokens, image embeddings and sentence embeddings. The only file that imports open_clip.

open_clip changed its towers from sequence-first (2.24) to batch-first (3.x), and it treats OpenAI's weights
differently from release to release. Everything here gives the same numbers on both.
"""

import difflib
import hashlib
import logging
import re
from collections.abc import Collection, Iterable, Sequence
from math import isqrt
from pathlib import Path
from typing import Any, NamedTuple

import open_clip
import torch
from open_clip import pretrained as open_clip_pretrained
from torch import Tensor, nn
from torch.nn.functional import interpolate

from anomalib_aprilgan.weight_files import read_weight_file

__all__ = ["Clip", "ImageFeatures", "resize_positional_embedding"]

logger = logging.getLogger(__name__)

Weights = dict[str, Tensor]
OpenClipModule = Any
"""A module of open_clip, which carries no types."""


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
        config = _architecture(backbone)
        patch_size = int(config["vision_cfg"]["patch_size"])
        if not isinstance(image_size, int) or image_size <= 0 or image_size % patch_size:
            lower = max(image_size // patch_size, 1) * patch_size if isinstance(image_size, int) else patch_size
            msg = (
                f"Expected argument `image_size` to be a multiple of the patch size {patch_size} of {backbone}, but "
                f"got {image_size!r}. Use for instance {lower} or {lower + patch_size}."
            )
            raise ValueError(msg)
        config["quick_gelu"] = bool(config.get("quick_gelu")) or quick_gelu
        self.quick_gelu: bool = config["quick_gelu"]

        weights = _load_weights(backbone, pretrained) if pretrained is not None else None
        self.towers: OpenClipModule = _build(config)
        visual = self.towers.visual
        grid = image_size // patch_size
        if weights is not None:
            _fill(self.towers, weights, grid, f"{backbone} from pretrained={str(pretrained)!r}")
        else:
            visual.positional_embedding = nn.Parameter(resize_positional_embedding(visual.positional_embedding, grid))
        visual.image_size = (image_size, image_size)
        visual.grid_size = (grid, grid)

        self.width: int = visual.conv1.out_channels
        self.embed_dim: int = visual.proj.shape[1]
        self.num_patches = grid**2
        self.num_blocks = len(visual.transformer.resblocks)
        self.fingerprint = _fingerprint(visual)
        self._tokenizer = open_clip.get_tokenizer(backbone)
        self.requires_grad_(requires_grad=False)
        self.train(mode=False)

    @torch.no_grad()
    def encode_image(self, images: Tensor, stages: Collection[int]) -> ImageFeatures:
        """Pass images through the tower once.

        Args:
            images: Pre-processed images of shape ``(N, 3, image_size, image_size)``.
            stages: Blocks whose tokens are wanted, counted from 1.

        Returns:
            The image embeddings and the wanted stages' patch tokens.
        """
        visual = self.towers.visual
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

    def encode_text(self, sentences: Sequence[str]) -> Tensor:
        """Embed sentences.

        Args:
            sentences: ``S`` sentences; beyond the context length they are cut.

        Returns:
            Sentence embeddings, not normalised, shape ``(S, D)``. They may take part in training.
        """
        device = self.towers.visual.conv1.weight.device
        with torch.inference_mode(mode=False), torch.no_grad(), torch.autocast(device.type, enabled=False):
            token_ids = self._tokenizer(list(sentences)).to(device)
            tower = getattr(self.towers, "text", self.towers)
            if _ends_with_end_token(tower):
                return _encode_causal(tower, token_ids)
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
    else:
        return config
    msg = (
        f"Expected argument `backbone` to name a CLIP whose image tower is a standard ViT, but {backbone} has {kind}. "
        "APRIL-GAN reads patch tokens between transformer blocks; use for instance ViT-B-16, ViT-L-14 or ViT-L-14-336."
    )
    raise ValueError(msg)


def _build(config: dict[str, Any]) -> OpenClipModule:
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
    if Path(pretrained).is_file():
        return _read_weights(Path(pretrained))
    tags = open_clip_pretrained.list_pretrained_tags_by_model(backbone)
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


def _fill(towers: OpenClipModule, weights: Weights, grid: int, source: str) -> None:
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


def _fingerprint(visual: OpenClipModule) -> str:
    """Digest of weights that no resizing touches."""
    digest = hashlib.sha256()
    for weight in (visual.class_embedding, visual.conv1.weight, visual.proj):
        digest.update(weight.detach().float().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _outputs_of_blocks(transformer: OpenClipModule, x: Tensor, attn_mask: Tensor | None = None) -> Iterable[Tensor]:
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


def _ends_with_end_token(tower: OpenClipModule) -> bool:
    """Whether a text tower is causal and pools the end token, so that what follows that token has no influence."""
    pool_type = getattr(tower, "pool_type", getattr(tower, "text_pool_type", None))
    has_standard_parts = all(hasattr(tower, part) for part in ("token_embedding", "transformer", "ln_final"))
    is_causal = getattr(tower, "attn_mask", None) is not None and getattr(tower, "cls_emb", None) is None
    return has_standard_parts and is_causal and pool_type == "argmax"


def _encode_causal(tower: OpenClipModule, token_ids: Tensor) -> Tensor:
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
