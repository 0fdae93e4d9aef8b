# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Finds files of CLIP weights: given by path, in the caches of open_clip, by download, or in this package."""

import os
import re
from pathlib import Path

from open_clip import pretrained as open_clip_pretrained

from anomalib_aprilgan.files import embedded
from anomalib_aprilgan.files.digests import digest_of
from anomalib_aprilgan.files.downloads import MissingFileError, cached_from_hub, download, fetch_from_hub
from anomalib_aprilgan.files.paths import checked_path

__all__ = ["cached_weights", "find_weights"]

LIMIT = 30_000_000_000
"""Largest size of a file with CLIP weights in bytes. The largest towers that open_clip has take some 20 GB."""


def find_weights(backbone: str, pretrained: str | Path) -> Path:
    """Return the file of CLIP weights. The file of a tag is downloaded if it is not in the caches of open_clip.

    Args:
        backbone: Name of an open_clip architecture.
        pretrained: Tag of open_clip, or path of a CLIP state dict.

    Raises:
        ValueError: If there is no such tag or file.
        MissingFileError: If the weights cannot be downloaded.
    """
    path = checked_path(pretrained, "pretrained")
    if path.is_file():
        return path.absolute()
    tags = open_clip_pretrained.list_pretrained_tags_by_model(backbone)
    if backbone == embedded.BACKBONE:
        if pretrained == embedded.TAG:
            return embedded.WEIGHTS
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
    return _download_weights(backbone, str(pretrained))


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
