# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""A folder of stored features: one safetensors file per image, up to a limit on the size of all files together.

Threads, processes and machines may share a folder. A file is complete or not there, is never modified, and carries a
checksum: a damaged one counts as missing.
"""

import logging
import os
import shutil
import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

from platformdirs import user_cache_path
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, uint8

from anomalib_aprilgan.files.paths import checked_path
from anomalib_aprilgan.files.whole_files import UNFINISHED, unfinished_folder

__all__ = [
    "FOLDER_VARIABLE",
    "LIMIT_VARIABLE",
    "FeatureFiles",
    "Group",
    "default_folder",
    "folder_of_environment",
    "text_files",
]

logger = logging.getLogger(__name__)

FOLDER_VARIABLE: Final = "ANOMALIB_APRILGAN_FEATURES"
"""Environment variable with the folder of stored features."""

LIMIT_VARIABLE: Final = "ANOMALIB_APRILGAN_FEATURES_GB"
"""Environment variable with the limit on the size of all stored features, in gigabytes."""

DEFAULT_LIMIT_GB: Final = 50.0

TEXT_LIMIT: Final = 100_000_000
"""Largest size of all stored text features in bytes. A class takes some kilobytes."""

RESERVE: Final = 1_000_000_000
"""Bytes of the disk that stay free for others."""

SHARE: Final = 20
"""A process looks at the sizes anew after it has written this part of the limit, since others may write too."""

CHECKSUM: Final = "crc32"
SUFFIX: Final = ".safetensors"


class Group(NamedTuple):
    """The stored features of one image tower at one image size and precision.

    Attributes:
        name: Name of the group's folder.
        files: Number of files.
        size: Size of all files in bytes.
        used: When one of them was last used, in seconds since 1970.
    """

    name: str
    files: int
    size: int
    used: float


def default_folder() -> Path:
    """Return the folder of stored features of images in the cache of the platform."""
    return user_cache_path("anomalib-aprilgan") / "features"


def text_files() -> "FeatureFiles":
    """Return the stored text features, in the cache of the platform."""
    return FeatureFiles(user_cache_path("anomalib-aprilgan") / "text", TEXT_LIMIT, level=logging.DEBUG)


def folder_of_environment() -> Path | None:
    """Return the folder that the environment variable names; ``None`` if there is none."""
    given = os.environ.get(FOLDER_VARIABLE, "").strip()
    return checked_path(given, FOLDER_VARIABLE) if given else None


def limit_of_environment() -> int:
    """Return the limit in bytes that the environment variable sets, or the default one.

    Raises:
        ValueError: If the variable holds no positive number.
    """
    given = os.environ.get(LIMIT_VARIABLE, "").strip() or str(DEFAULT_LIMIT_GB)
    try:
        gigabytes = float(given)
    except ValueError:
        gigabytes = 0.0
    if not 0 < gigabytes < float("inf"):
        msg = f"Expected the environment variable {LIMIT_VARIABLE} to be a number of gigabytes, but got {given!r}."
        raise ValueError(msg)
    return int(gigabytes * 1e9)


class FeatureFiles:
    """Reads and writes the stored features of a folder.

    If the limit is reached, or the disk is nearly full, the files that were not used for the longest time are deleted,
    but none that was used since this object was made: then no more files are written.

    Args:
        folder: The folder; it is made when it is first written to.
        limit: Largest size of all files in bytes. ``None``: that of the environment, else 50 GB.
        level: Level of the message that no more files are written.

    Attributes:
        is_full: Whether no more files are written.
    """

    def __init__(self, folder: Path, limit: int | None = None, level: int = logging.WARNING) -> None:
        self.folder = folder
        self.limit = limit_of_environment() if limit is None else limit
        self.is_full = False
        self._level = level
        self._start = time.time()
        self._allowance = 0

    def read(self, group: str, name: str) -> tuple[dict[str, Tensor], dict[str, str]] | None:
        """Read the features of an image.

        Args:
            group: Name of the group.
            name: Name of the image.

        Returns:
            Tensors by name, mapped into memory, and the metadata. ``None`` if there is no file, or a damaged or foreign
            one.
        """
        path = self._path(group, name)
        try:
            with safe_open(path, framework="pt") as file:
                metadata = dict(file.metadata() or {})
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            if metadata.pop(CHECKSUM, None) != _checksum(group, name, tensors, metadata):
                return None
            os.utime(path)
        except (OSError, SafetensorError):
            return None
        return tensors, metadata

    def write(self, group: str, name: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bool:
        """Write the features of an image. If that fails, a warning gives the reason, and no more files are written.

        Args:
            group: Name of the group.
            name: Name of the image.
            tensors: Tensors by name, on the CPU.
            metadata: Strings by name.

        Returns:
            Whether the file was written.
        """
        size = sum(tensor.nbytes for tensor in tensors.values())
        if self.is_full or not self._has_room(size):
            return False
        path, content = self._path(group, name), dict(tensors)
        checked = {**metadata, CHECKSUM: _checksum(group, name, content, metadata)}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with unfinished_folder(self.folder) as unfinished:
                save_file(content, unfinished / path.name, checked)
                os.replace(unfinished / path.name, path)  # noqa: PTH105  # the one call that tests replace
        except (OSError, SafetensorError) as error:  # no reason to stop a run
            self._stop(f"a file could not be written ({error})")
            return False
        self._allowance -= size
        return True

    def groups(self) -> list[Group]:
        """List what is stored."""
        found = []
        for folder in self._folders():
            entries = _entries(folder)
            used = max((used for used, _, _ in entries), default=0.0)
            found.append(Group(folder.name, len(entries), sum(size for _, size, _ in entries), used))
        return found

    def _folders(self) -> list[Path]:
        """List the folders of the groups. Other processes may make and delete unfinished ones meanwhile."""
        try:
            entries = [Path(entry.path) for entry in os.scandir(self.folder) if entry.is_dir()]
        except OSError:  # it does not exist yet
            return []
        return sorted(folder for folder in entries if not folder.name.startswith(UNFINISHED))

    def clear(self) -> int:
        """Delete everything that is stored, and return the number of bytes."""
        groups = self.groups()
        for group in groups:
            for _, _, path in _entries(self.folder / group.name):
                path.unlink(missing_ok=True)
            if not any((self.folder / group.name).iterdir()):  # other files are not ours
                (self.folder / group.name).rmdir()
        return sum(group.size for group in groups)

    def free_space(self) -> int:
        """Return the free bytes of the disk, without a reserve for others."""
        existing = next(parent for parent in (self.folder, *self.folder.absolute().parents) if parent.exists())
        return shutil.disk_usage(existing).free - RESERVE

    def _has_room(self, size: int) -> bool:
        """Whether a file may be written. Files that were not used for long make room for it."""
        if size <= self._allowance:
            return True
        entries = sorted(entry for folder in self._folders() for entry in _entries(folder))
        total, free = sum(size for _, size, _ in entries), self.free_space()
        wanted = max(size, self.limit // SHARE)
        for used, freed, path in entries:
            if min(self.limit - total, free) >= wanted or used >= self._start:
                break
            path.unlink(missing_ok=True)
            total, free = total - freed, free + freed
        self._allowance = min(self.limit - total, free, wanted)
        if size > self._allowance:
            self._stop(f"the limit of {self.limit / 1e6:,.1f} MB or the end of the disk is reached")
            return False
        return True

    def _stop(self, reason: str) -> None:
        self.is_full = True
        logger.log(
            self._level,
            "No more features are stored in %s: %s. The features of other images are computed each time. Delete what "
            "is stored with `anomalib-aprilgan cache --clear true`, or raise %s.",
            self.folder,
            reason,
            LIMIT_VARIABLE,
        )

    def _path(self, group: str, name: str) -> Path:
        return self.folder / group / f"{name}{SUFFIX}"


def _entries(folder: Path) -> list[tuple[float, int, Path]]:
    """List the files of a group: time of last use, size in bytes, path. Other processes may delete some meanwhile."""
    found = []
    try:
        paths = [Path(entry.path) for entry in os.scandir(folder) if entry.name.endswith(SUFFIX)]
    except OSError:
        return []
    for path in paths:
        try:
            status = path.stat()
        except OSError:
            continue
        found.append((status.st_mtime, status.st_size, path))
    return found


def _checksum(group: str, name: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Compute the checksum of a file's place and content, which finds damage and files that were moved."""
    checksum = zlib.crc32(repr((group, name, sorted(metadata.items()))).encode())
    for key, tensor in sorted(tensors.items()):
        checksum = zlib.crc32(repr((key, tensor.dtype, tuple(tensor.shape))).encode(), checksum)
        checksum = zlib.crc32(tensor.contiguous().view(-1).view(uint8).numpy().data, checksum)
    return f"{checksum:08x}"
