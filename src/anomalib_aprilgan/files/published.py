# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Download of the published adapters into the cache directory of the platform.

The files come from one commit of the authors' repository (github.com/ByChelsea/VAND-APRIL-GAN, MIT licence). A file is
accepted if its git object id is correct, so it may also come from a mirror.
"""

import logging
import os
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from platformdirs import user_cache_path

from anomalib_aprilgan.files.adapter_origin import AdapterOrigin
from anomalib_aprilgan.files.digests import digest_of
from anomalib_aprilgan.files.downloads import MissingFileError, download

__all__ = [
    "MIRROR_VARIABLE",
    "PUBLISHED",
    "PublishedAdapters",
    "cached_file",
    "fetch",
    "git_object_id",
    "missing_adapters",
]

logger = logging.getLogger(__name__)

MIRROR_VARIABLE = "ANOMALIB_APRILGAN_MIRROR"
"""Environment variable with the URL of a folder that replaces the authors' repository."""

SOURCE = (
    "https://raw.githubusercontent.com/ByChelsea/VAND-APRIL-GAN/"
    "f13b8a634e04f9fde8fa03db125b25af5695d8e1/exps/pretrained"
)


LIMIT = 100_000_000
"""Largest size of an adapter file in bytes. The published ones have 13 MB."""


@dataclass(frozen=True)
class PublishedAdapters:
    r"""Describes a published adapter file.

    Attributes:
        file_name: Name of the file in the repository.
        git_object_id: SHA-1 of ``b"blob SIZE\0"`` and the content.
        trained_on: Data set that the adapters were trained on.
    """

    file_name: str
    git_object_id: str
    trained_on: str

    @property
    def origin(self) -> AdapterOrigin:
        """Origin of the adapters: the CLIP of the paper (section 4.1)."""
        return AdapterOrigin(
            backbone="ViT-L-14-336",
            pretrained="openai",
            quick_gelu=False,  # at 518 px the authors' code uses GELU, although OpenAI trained with QuickGELU
            image_size=518,
            layers=(6, 12, 18, 24),
            trained_on=(self.trained_on,),
        )


PUBLISHED = {
    "mvtec": PublishedAdapters("mvtec_pretrained.pth", "a057cec6c2ba5996baa0160a51e155908156813f", "MVTecAD"),
    "visa": PublishedAdapters("visa_pretrained.pth", "86d6848c543f8393663d35c0333498ffb5ce9b68", "Visa"),
}


def fetch(name: str) -> Path:
    """Return the path of a published adapter file, after downloading it if it is not in the cache.

    A download is checked before it is moved into the cache.

    Args:
        name: ``"mvtec"`` (trained on MVTec AD) or ``"visa"`` (trained on VisA).

    Returns:
        Path of the file in the cache.

    Raises:
        MissingFileError: If the file cannot be downloaded or its git object id is wrong; the message names the URL and
            the path in the cache.
    """
    published = PUBLISHED[name]

    def find_fault(path: Path) -> str:
        found = git_object_id(path)
        expected = published.git_object_id
        return "" if found == expected else f"has the git object id {found} instead of {expected}"

    path = cached_file(name)
    if path.is_file():
        if not find_fault(path):
            return path
        logger.warning("The file %s is damaged (wrong git object id). It is downloaded again.", path)
    url = f"{os.environ.get(MIRROR_VARIABLE, SOURCE).rstrip('/')}/{published.file_name}"
    try:
        if not path.is_absolute():
            msg = "there is no home directory for the cache"
            raise OSError(msg)  # noqa: TRY301
        download(url, path, LIMIT, find_fault)
    except (OSError, HTTPException, ValueError) as error:
        reason = str(error) if url in str(error) else f"{url}: {error}"
        raise MissingFileError(reason, _advice(name)) from error
    return path


def missing_adapters(adapter: str | Path | None) -> tuple[str, ...]:
    """Say where published adapters must be put if they are not in the cache.

    Args:
        adapter: Any value of the argument `adapter`.

    Returns:
        A text for :class:`MissingFileError`; nothing if no file is missing.
    """
    is_missing = isinstance(adapter, str) and adapter in PUBLISHED and not cached_file(adapter).is_file()
    return (_advice(str(adapter)),) if is_missing else ()


def cached_file(name: str) -> Path:
    """Return the path of a published adapter file in the cache, whether it exists or not."""
    return user_cache_path("anomalib-aprilgan") / PUBLISHED[name].file_name


def _advice(name: str) -> str:
    return (
        f"Adapters ({name!r}, 13 MB): {SOURCE}/{PUBLISHED[name].file_name}\n  Put the file at {cached_file(name)}, or "
        f"anywhere with `--model.adapter PATH` (in Python: adapter=PATH), or set {MIRROR_VARIABLE} to the URL of a "
        "folder that holds it."
    )


def git_object_id(path: Path) -> str:
    """Compute the git object id of a file."""
    return digest_of(path, "sha1", b"blob %d\0" % path.stat().st_size)
