# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Downloads that end within limits of time and size, and the message that says where missing files go."""

import http.client
import logging
import os
import re
import shutil
import ssl
import time
from collections.abc import Callable, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import HTTPHandler, HTTPSHandler, Request, build_opener

from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError
from tqdm import tqdm

from anomalib_aprilgan.files.embedded import BACKBONE
from anomalib_aprilgan.files.whole_files import one_at_a_time

__all__ = ["TIMEOUT_VARIABLE", "MissingFileError", "cached_from_hub", "download", "fetch_from_hub"]

logger = logging.getLogger(__name__)

CONNECT_SECONDS = 10.0
"""Longest time to wait for a connection. Without network, most runs end sooner."""

SILENT_SECONDS = 60.0
"""Longest time to wait for a connected server that sends nothing, unless the user sets another one."""

TIMEOUT_VARIABLE = "ANOMALIB_APRILGAN_TIMEOUT"
"""Environment variable with another number of seconds, for proxies that scan a whole file before they send it."""

SLOWEST = 1000
"""Smallest mean transfer rate in bytes per second, over a time as long as the longest silence."""

CHUNK = 1 << 16


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


def download(url: str, path: Path, limit: int, find_fault: Callable[[Path], str] | None) -> None:
    """Download a file. It appears only when it is complete and right.

    If the file can be checked, a transfer that breaks is continued once, and by the next call. If several processes
    need the file, one downloads it, and the others wait.

    Args:
        url: Its URL.
        path: Where to put it; its folder is made if it is missing.
        limit: Largest size of the file in bytes.
        find_fault: Says what is wrong with a file; empty if nothing is. ``None`` if nothing is known about the file.

    Raises:
        OSError: If no server answers in time, if it stops sending or sends too slowly, if the file is too large, or if
            it is not right.
        http.client.HTTPException: If the answer of the server is invalid.
        ValueError: If the URL is invalid.
    """
    with one_at_a_time(path) as folder:
        if path.is_file() and not (find_fault and find_fault(path)):
            return
        part = folder / "part"
        if find_fault:
            _complete(url, part, limit, find_fault)
        else:  # the rest of another file would not be noticed
            part.unlink(missing_ok=True)
            _transfer(url, part, limit)
        try:
            part.replace(path)
        except PermissionError:  # without locks, as on Windows, another process may have put it there and read it now
            if not path.is_file() or (find_fault and find_fault(path)):
                raise


def _complete(url: str, part: Path, limit: int, find_fault: Callable[[Path], str]) -> None:
    """Get what is missing of a file. A transfer that breaks is continued once."""
    for attempt in (1, 2):
        before = _size_of(part)
        if before and not find_fault(part):  # a process was killed after the transfer
            return
        try:
            _transfer(url, part, limit)
        except _WrongSizeError:
            part.unlink(missing_ok=True)
            raise
        except (OSError, http.client.HTTPException) as error:
            is_too_long = isinstance(error, HTTPError) and error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE
            if is_too_long:
                part.unlink()
            if attempt == 1 and (is_too_long or _size_of(part) > before):
                logger.info("The transfer broke (%s) and is continued.", error)
                continue
            raise
        fault = find_fault(part)
        if not fault:
            return
        part.unlink()
        if attempt == 2 or not before:  # noqa: PLR2004  # else start again: the part may have begun with another file
            msg = f"{url} {fault} and was deleted"
            raise OSError(msg)


class _WrongSizeError(OSError):
    """The file is larger than it may be, so that it is another one, or than the space on the disk."""


def _transfer(url: str, part: Path, limit: int) -> None:
    """Get a file, or what is missing of it."""
    silent = _silent_seconds()
    done = _size_of(part)
    request = Request(url, headers={"Range": f"bytes={done}-"} if done else {})  # noqa: S310  # a folder is fine
    opener = build_opener(_Http, _Https)
    with opener.open(request, timeout=CONNECT_SECONDS) as source:
        is_rest = source.headers.get("Content-Range", "").startswith(f"bytes {done}-")
        done = done if is_rest else 0
        length = source.headers.get("Content-Length", "")
        size = done + int(length) if re.fullmatch(r"[0-9]{1,18}", length) else None
        _refuse_size(size, done, limit, part.parent)
        logger.info("Downloading %s (%s)", url, _megabytes(size))
        start, begun = done, time.monotonic()
        shown: dict[str, Any] = {"unit": "B", "unit_scale": True, "delay": 2, "disable": None}
        with part.open("ab" if is_rest else "wb") as target, tqdm(total=size, initial=done, **shown) as progress:
            while chunk := source.read1(CHUNK):
                target.write(chunk)
                done += len(chunk)
                progress.update(len(chunk))
                seconds = time.monotonic() - begun
                if done > limit:
                    _refuse_size(done, 0, limit, part.parent)
                if seconds > silent and (done - start) / seconds < SLOWEST:
                    msg = f"the server sends fewer than {SLOWEST} bytes per second"
                    raise TimeoutError(msg)
    if size is not None and done != size:
        msg = f"the transfer ended after {done} of {size} bytes"
        raise OSError(msg)


def _refuse_size(size: int | None, done: int, limit: int, folder: Path) -> None:
    """Raise an error if a file is larger than expected, or than the space on the disk."""
    if size is not None and size > limit:
        msg = f"the server sends {_megabytes(size)} or more, but the file has at most {_megabytes(limit)}"
        raise _WrongSizeError(msg)
    free = shutil.disk_usage(folder).free
    if size is not None and size - done > free:
        msg = f"the file has {_megabytes(size)}, but {folder.parent} has only {_megabytes(free)} left"
        raise _WrongSizeError(msg)


def _size_of(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _silent_seconds() -> float:
    """Return the longest silence of a server in seconds."""
    given = os.environ.get(TIMEOUT_VARIABLE, str(SILENT_SECONDS))
    if not re.fullmatch(r"\d{1,6}(\.\d+)?", given) or not float(given):
        msg = f"Expected the environment variable {TIMEOUT_VARIABLE} to be a number of seconds, but got {given!r}."
        raise ValueError(msg)
    return float(given)


class _Connection(http.client.HTTPConnection):
    """Waits longer for an answer than for a connection."""

    def connect(self) -> None:
        super().connect()
        self.sock.settimeout(_silent_seconds())


class _SecureConnection(http.client.HTTPSConnection):
    """Waits longer for an answer than for a connection."""

    def connect(self) -> None:
        super().connect()
        self.sock.settimeout(_silent_seconds())


class _Http(HTTPHandler):
    def http_open(self, req: Request) -> Any:  # noqa: ANN401
        return self.do_open(_Connection, req)


class _Https(HTTPSHandler):
    def https_open(self, req: Request) -> Any:  # noqa: ANN401
        return self.do_open(_SecureConnection, req, context=ssl.create_default_context())


def cached_from_hub(repository: str, names: Sequence[str]) -> Path | None:
    """Look for a file in the cache of the Hugging Face hub, without network.

    Args:
        repository: Name of the repository.
        names: Names of the file; any of them will do.
    """
    found = (try_to_load_from_cache(repository, name) for name in names)
    return next((Path(path) for path in found if isinstance(path, str)), None)


def fetch_from_hub(repository: str, names: Sequence[str], limit: int) -> Path:
    """Return a file of the Hugging Face hub from its cache, or download it.

    Args:
        repository: Name of the repository.
        names: Names of the file; any of them will do.
        limit: Largest size of the file in bytes.

    Raises:
        Exception: If the file cannot be downloaded, or the hub's client is set to be offline. If no server answers, it
            is raised within seconds. The hub's client raises errors of many types.
    """
    if cached := cached_from_hub(repository, names):
        return cached
    for name in names:
        try:  # the hub's functions for downloads would try again and again, for minutes
            size = get_hf_file_metadata(hf_hub_url(repository, name), timeout=CONNECT_SECONDS).size
        except EntryNotFoundError:
            continue
        if size is not None and size > limit:
            msg = f"{name} of {repository} has {_megabytes(size)}, more than the expected {_megabytes(limit)}"
            raise OSError(msg)
        logger.info("Downloading %s of %s (%s)", name, repository, _megabytes(size))
        return Path(hf_hub_download(repository, name, etag_timeout=CONNECT_SECONDS))
    msg = f"{repository} has none of the files {', '.join(names)}"
    raise FileNotFoundError(msg)


def _megabytes(size: int | None) -> str:
    return f"{size / 1e6:,.0f} MB" if size is not None else "of unknown size"
