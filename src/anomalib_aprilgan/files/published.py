# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""The adapters that the authors published, fetched once and kept in the platform's cache directory.

They lie in the authors' repository (github.com/ByChelsea/VAND-APRIL-GAN, MIT licence), pinned to one commit. A file is
trusted if its git object id is the right one, so a mirror is as good as the original.
"""

import hashlib
import logging
import os
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from platformdirs import user_cache_path

from anomalib_aprilgan.files.adapter_origin import AdapterOrigin

__all__ = ["MIRROR_VARIABLE", "PUBLISHED", "PublishedAdapters", "fetch"]

logger = logging.getLogger(__name__)

MIRROR_VARIABLE = "ANOMALIB_APRILGAN_MIRROR"
"""Environment variable with the address of a folder to download from instead of the authors' repository."""

SOURCE = (
    "https://raw.githubusercontent.com/ByChelsea/VAND-APRIL-GAN/"
    "f13b8a634e04f9fde8fa03db125b25af5695d8e1/exps/pretrained"
)


@dataclass(frozen=True)
class PublishedAdapters:
    r"""One published file.

    Attributes:
        file_name: Its name in the repository.
        git_object_id: SHA-1 of ``b"blob SIZE\0"`` and the content.
        trained_on: The data set it has seen.
    """

    file_name: str
    git_object_id: str
    trained_on: str

    @property
    def origin(self) -> AdapterOrigin:
        """What the adapters belong to."""
        return AdapterOrigin(
            backbone="ViT-L-14-336",
            pretrained="openai",
            quick_gelu=False,  # at 518 px the authors run GELU, although OpenAI trained with QuickGELU
            image_size=518,
            layers=(6, 12, 18, 24),
            trained_on=(self.trained_on,),
        )


PUBLISHED = {
    "mvtec": PublishedAdapters("mvtec_pretrained.pth", "a057cec6c2ba5996baa0160a51e155908156813f", "MVTecAD"),
    "visa": PublishedAdapters("visa_pretrained.pth", "86d6848c543f8393663d35c0333498ffb5ce9b68", "Visa"),
}


def fetch(name: str) -> Path:
    """Return the path of a published file; download it if the cache does not hold it.

    A download is checked before it takes its place in the cache, so a broken one leaves nothing behind there.

    Args:
        name: ``"mvtec"`` (trained on MVTec AD) or ``"visa"`` (trained on VisA).

    Returns:
        Path of the file in the cache.

    Raises:
        RuntimeError: If the file cannot be downloaded or fails the check; the message says which file to put where.
    """
    published = PUBLISHED[name]
    path = user_cache_path("anomalib-aprilgan") / published.file_name
    if path.is_file():
        if _git_object_id(path) == published.git_object_id:
            return path
        logger.warning("%s is damaged (its git object id is wrong) and is downloaded again.", path)

    url = f"{os.environ.get(MIRROR_VARIABLE, SOURCE).rstrip('/')}/{published.file_name}"
    advice = (
        f"Fetch {SOURCE}/{published.file_name} elsewhere and put it at {path}, pass its path as `adapter`, or set "
        f"{MIRROR_VARIABLE} to the address of a folder that holds it."
    )
    logger.info("Downloading the published adapters %r from %s", name, url)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=path.parent, prefix=".download-") as folder:
            unfinished = Path(folder) / path.name
            torch.hub.download_url_to_file(url, str(unfinished), progress=True)
            found = _git_object_id(unfinished)
            if found == published.git_object_id:
                unfinished.replace(path)
    except (OSError, HTTPException, ValueError) as error:
        msg = f"The published adapters {name!r} could not be downloaded from {url}: {error}. {advice}"
        raise RuntimeError(msg) from error
    if found != published.git_object_id:
        msg = (
            f"The file {url} failed the check and was discarded: expected git object id {published.git_object_id}, but "
            f"got {found}. {advice}"
        )
        raise RuntimeError(msg)
    return path


def _git_object_id(path: Path) -> str:
    """Compute the id under which git keeps a file."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
