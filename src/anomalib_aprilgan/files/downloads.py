# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Downloads that give up soon if no server answers, and the message that says where missing files go."""

import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from urllib.request import urlopen

from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError

from anomalib_aprilgan.files.embedded import BACKBONE

__all__ = ["TIMEOUT", "MissingFileError", "cached_from_hub", "download", "find_in_hub"]

logger = logging.getLogger(__name__)

TIMEOUT = 4.0
"""Seconds to wait for a server that does not answer."""


class MissingFileError(RuntimeError):
    """Published files are not on this machine and could not be downloaded.

    Args:
        reason: Why the download failed.
        *files: One text per file: what it is, where it can be downloaded, and where it must be put.
    """

    def __init__(self, reason: str, *files: str) -> None:
        self.reason = reason
        self.files = files
        listed = "".join(f"\n- {file}" for file in files)
        super().__init__(
            f"{'This file is' if len(files) == 1 else 'These files are'} missing, and the download failed ({reason}). "
            f"Download by hand:{listed}\nFor a first try without a download, use the small CLIP in this package: "
            f"`--model.backbone {BACKBONE}` (in Python: backbone={BACKBONE!r})."
        )

    def __reduce__(self) -> tuple[type["MissingFileError"], tuple[str, ...]]:
        """Pickle the arguments; the default would pickle the message."""
        return type(self), (self.reason, *self.files)


def download(url: str, path: Path) -> None:
    """Download a file. It appears only when it is complete.

    Args:
        url: Its URL.
        path: Where to write it; the folder must exist.

    Raises:
        OSError: If no server answers within 4 seconds, if it stops sending for so long, or if the file is incomplete.
        http.client.HTTPException: If the answer of the server is invalid.
        ValueError: If the URL is invalid.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with urlopen(url, timeout=TIMEOUT) as source, unfinished.open("wb") as target:  # noqa: S310  # also a folder
            size = int(source.headers.get("Content-Length") or 0)
            logger.info("Downloading %s (%s)", url, _megabytes(size))
            shutil.copyfileobj(source, target)
        if size and unfinished.stat().st_size != size:
            msg = f"the transfer ended after {unfinished.stat().st_size} of {size} bytes"
            raise OSError(msg)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def cached_from_hub(repository: str, names: Sequence[str]) -> Path | None:
    """Look for a file in the cache of the Hugging Face hub, without network.

    Args:
        repository: Name of the repository.
        names: Names of the file; any of them will do.
    """
    found = (try_to_load_from_cache(repository, name) for name in names)
    return next((Path(path) for path in found if isinstance(path, str)), None)


def find_in_hub(repository: str, names: Sequence[str]) -> Path | None:
    """Look for a file in the cache of the Hugging Face hub. If it is not there, ask the hub whether it can be reached.

    Without network, the hub's own functions try again and again for a minute.

    Args:
        repository: Name of the repository.
        names: Names of the file; any of them will do.

    Returns:
        Path in the cache; ``None`` if the file is not there but a server answers.

    Raises:
        Exception: If no server answers within 4 seconds, or the hub's client is set to be offline. The hub's client
            raises errors of many types.
    """
    if cached := cached_from_hub(repository, names):
        return cached
    try:
        size = get_hf_file_metadata(hf_hub_url(repository, names[0]), timeout=TIMEOUT).size
        logger.info("Downloading %s of %s (%s)", names[0], repository, _megabytes(size))
    except HfHubHTTPError as error:  # a server answers; there may be another name, and open_clip explains the rest
        logger.debug("The hub answers: %s", error)
    return None


def _megabytes(size: int | None) -> str:
    return f"{size / 1e6:.0f} MB" if size else "of unknown size"
