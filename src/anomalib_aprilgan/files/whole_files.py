# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Writing of files that are either complete or not there, at whatever moment a process is killed or a disk is full.

New files are made in a temporary folder beside their target, hence on its file system, and renamed at the end. Threads,
processes, containers and machines may write to one folder: each temporary folder has a random name, and a lock on a
file in it tells that its process still lives. The next writer deletes the folders of processes that were killed.
"""

import errno
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import Final, cast

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["UNFINISHED", "delete_leftovers", "one_at_a_time", "replacing", "unfinished_folder", "write_file"]

UNFINISHED: Final = ".unfinished-"
"""Start of the names of temporary folders."""

LOCK: Final = ".lock"
"""Name of the locked file in a temporary folder."""

STALE_SECONDS: Final = 24 * 3600
"""Age from which temporary folders are taken for leftovers if the system has no locks."""


@contextmanager
def unfinished_folder(parent: Path) -> Iterator[Path]:
    """Provide a temporary folder, and delete it at the end. Leftovers of killed processes are deleted before.

    Args:
        parent: Folder of the temporary folder; it is made if it is missing.

    Yields:
        The temporary folder.

    Raises:
        OSError: If the folder cannot be made.
    """
    parent.mkdir(parents=True, exist_ok=True)
    delete_leftovers(parent)
    folder, lock = _locked_folder(parent)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Provide a path for the new content of a file, and put it in place at the end. After an error, nothing changes.

    Args:
        path: The file; its folder is made if it is missing.

    Yields:
        A path of the same name in a temporary folder.

    Raises:
        OSError: If the file cannot be written; the error names it.
    """
    try:
        with unfinished_folder(path.parent) as folder:
            unfinished = folder / path.name
            yield unfinished
            with unfinished.open("rb+") as file:
                os.fsync(file.fileno())
            os.replace(unfinished, path)  # noqa: PTH105  # the one call that tests replace
    except OSError as error:
        reason = f"{error.strerror or error}, so that this file was not written"
        raise OSError(error.errno or errno.EIO, reason, str(path)) from error  # libraries may give a text alone


def write_file(path: Path, content: bytes | str) -> Path:
    """Write a file in one step: complete, or not at all.

    Args:
        path: The file; its folder is made if it is missing.
        content: Its content. Text is encoded as UTF-8.

    Returns:
        The file.

    Raises:
        OSError: If it cannot be written; the error names it.
    """
    with replacing(path) as unfinished:
        unfinished.write_bytes(content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content)
    return path


@contextmanager
def one_at_a_time(path: Path) -> Iterator[Path]:
    """Let only one thread or process at a time make a file. The others wait, and one goes on where another has stopped.

    Without locks, as on Windows and some network drives, none waits, and each begins anew in a folder of its own.

    Args:
        path: The file; its folder is made if it is missing.

    Yields:
        A folder beside the file for its unfinished parts. It is deleted at the end, unless there are some.

    Raises:
        OSError: If the folder cannot be made.
    """
    folder = path.with_name(f".{path.name}.parts")
    lock = _wait_for_lock(folder)
    if lock is None:
        shutil.rmtree(folder, ignore_errors=True)
        with unfinished_folder(path.parent) as own:
            yield own
        return
    try:
        yield folder
    finally:
        if not any(part.stat().st_size for part in folder.iterdir()):  # the lock's file is empty
            shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def delete_leftovers(parent: Path) -> None:
    """Delete the temporary folders of killed processes. Those of living processes stay, also on other machines.

    Args:
        parent: The folder that they are in.
    """
    for folder in parent.glob(f"{UNFINISHED}*"):
        if folder.is_symlink() or not folder.is_dir():
            continue
        try:
            lock = _lock(folder)
            if lock is None and folder.stat().st_mtime > time.time() - STALE_SECONDS:
                continue
            if not _is_of(lock, folder):  # another process has deleted it, and the one that made it uses it again
                continue
        except OSError:  # in use, of another user, or just deleted by another process
            continue
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _locked_folder(parent: Path) -> tuple[Path, int | None]:
    """Make a temporary folder and lock it. Another process may take it for a leftover before it is locked."""
    while True:
        folder = Path(mkdtemp(dir=parent, prefix=UNFINISHED))
        try:
            lock = _lock(folder)
            if _is_of(lock, folder):
                return folder, lock
        except (FileNotFoundError, BlockingIOError):
            continue


def _wait_for_lock(folder: Path) -> int | None:
    """Make a folder and lock it, however long another process holds the lock, and even if that one deletes it."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock = _lock(folder, waits=True)
            if _is_of(lock, folder):
                return lock
        except FileNotFoundError:
            continue


def _is_of(lock: int | None, folder: Path) -> bool:
    """Whether a lock belongs to the folder that exists now. If the folder was deleted meanwhile, close the lock."""
    try:
        if lock is None or os.path.samestat(os.fstat(lock), (folder / LOCK).stat()):
            return True
    except FileNotFoundError:
        pass
    os.close(cast("int", lock))
    return False


def _lock(folder: Path, *, waits: bool = False) -> int | None:
    """Lock a temporary folder.

    Args:
        folder: The folder.
        waits: Wait until no other process holds the lock.

    Returns:
        A descriptor that holds the lock until it is closed; ``None`` if the system has no locks.

    Raises:
        BlockingIOError: If another process holds the lock.
        OSError: If the lock's file cannot be opened.
    """
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
            return descriptor
    except BlockingIOError:
        os.close(descriptor)
        raise
    except OSError:  # a file system without locks
        pass
    os.close(descriptor)
    return None
