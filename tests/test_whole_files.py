# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Files are complete or not there: kills, full disks, several threads and processes, and what killed ones leave."""

import errno
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from anomalib_aprilgan.files import whole_files
from anomalib_aprilgan.files.whole_files import (
    LOCK,
    UNFINISHED,
    delete_leftovers,
    one_at_a_time,
    replacing,
    unfinished_folder,
    write_file,
)

SIZE = 200_000


def leftovers(folder: Path) -> list[Path]:
    return list(folder.rglob(f"{UNFINISHED}*"))


def write_for_ever(path: Path) -> None:
    number = 0
    while True:
        number += 1
        write_file(path, bytes([number % 256]) * SIZE)


@pytest.mark.posix
def test_a_kill_leaves_the_old_or_the_new_file_and_the_next_write_sweeps_up(
    kill_repeatedly: Callable[..., Iterator[bool]], tmp_path: Path
) -> None:
    path = write_file(tmp_path / "file", b"a" * SIZE)
    found = 0
    for _ in kill_repeatedly(lambda: write_for_ever(path), 12, longest=0.12, shortest=0.01):
        content = path.read_bytes()
        assert len(content) == SIZE
        assert len(set(content)) == 1
        found += len(leftovers(tmp_path))
    assert found, "no kill hit a write"
    write_file(path, b"")
    assert not leftovers(tmp_path)


@pytest.mark.posix
def test_what_a_living_process_writes_stays(tmp_path: Path) -> None:
    with unfinished_folder(tmp_path) as mine:
        (mine / "part").write_bytes(b"1")
        delete_leftovers(tmp_path)
        sweeper = multiprocessing.get_context("fork").Process(target=delete_leftovers, args=(tmp_path,))
        sweeper.start()
        sweeper.join()
        with unfinished_folder(tmp_path) as other:
            assert other != mine
        assert (mine / "part").read_bytes() == b"1"
    assert not leftovers(tmp_path)


def test_without_locks_leftovers_are_deleted_after_a_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole_files, "fcntl", None)
    young, old = (tmp_path / f"{UNFINISHED}{name}" for name in ("young", "old"))
    for folder in (young, old):
        folder.mkdir()
        (folder / LOCK).touch()
    os.utime(old, (time.time() - 25 * 3600,) * 2)
    with unfinished_folder(tmp_path) as folder:
        assert folder.is_dir()
    assert leftovers(tmp_path) == [young]


@pytest.mark.parametrize("has_locks", [pytest.param(True, marks=pytest.mark.posix), False])
def test_unfinished_parts_are_kept_for_the_next_one(
    has_locks: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not has_locks:
        take_locks_away(monkeypatch)
    with one_at_a_time(tmp_path / "file") as folder:
        (folder / "part").write_bytes(b"1")
    with one_at_a_time(tmp_path / "file") as folder:
        assert (folder / "part").exists() == has_locks
        (folder / "part").unlink(missing_ok=True)
    assert not list(tmp_path.iterdir())


def test_without_locks_each_has_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    take_locks_away(monkeypatch)
    with one_at_a_time(tmp_path / "file") as one, one_at_a_time(tmp_path / "file") as other:
        assert one != other
    assert not list(tmp_path.iterdir())


def take_locks_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the file system have no locks. Windows has none anyway."""

    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    if locks := vars(whole_files)["fcntl"]:
        monkeypatch.setattr(locks, "flock", no_locks)


@pytest.mark.posix
def test_links_that_look_like_leftovers_are_not_followed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / f"{UNFINISHED}link").symlink_to(elsewhere)
    (tmp_path / f"{UNFINISHED}file").touch()
    delete_leftovers(tmp_path)
    assert not list(elsewhere.iterdir())


@pytest.mark.posix
def test_a_lock_of_a_deleted_file_deletes_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes may take a new folder for a leftover before it is locked.

    The first deletes the lock's file, which the second has opened already. The folder's own process makes a new one.
    """
    folder = tmp_path / f"{UNFINISHED}new"
    folder.mkdir()
    locks = vars(whole_files)["fcntl"]
    flock = locks.flock

    def flock_late(descriptor: int, operation: int) -> None:
        flock(descriptor, operation)
        (folder / LOCK).unlink()
        (folder / LOCK).touch()

    monkeypatch.setattr(locks, "flock", flock_late)
    delete_leftovers(tmp_path)
    assert folder.exists()


@pytest.mark.posix
def test_threads_and_processes_write_one_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=write_many, args=(path, worker)) for worker in range(3)]
    for worker in workers:
        worker.start()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda worker: write_many(path, worker), range(3, 7)))
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert len(set(path.read_bytes())) == 1
    assert not leftovers(tmp_path)


def write_many(path: Path, worker: int) -> None:
    for _ in range(20):
        write_file(path, bytes([worker]) * 10_000)


def test_after_an_error_nothing_has_changed(tmp_path: Path) -> None:
    path = write_file(tmp_path / "file", "old")
    with pytest.raises(UnicodeEncodeError), replacing(path) as unfinished:
        unfinished.write_text("new \ud800", encoding="utf-8")
    assert path.read_text(encoding="utf-8") == "old"
    assert not leftovers(tmp_path)


def test_a_full_disk_is_named_with_the_file(small_disk: Path) -> None:
    path = write_file(small_disk / "file", b"old")
    with pytest.raises(OSError, match="No space left on device, so that this file was not written") as error:
        write_file(path, bytes(2 << 20))
    assert (error.value.errno, error.value.filename) == (errno.ENOSPC, str(path))
    assert path.read_bytes() == b"old"
    assert not leftovers(small_disk)


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"file/sub"):
        write_file(tmp_path / "file" / "sub" / "file", b"")


def test_permissions_are_those_of_a_plain_file(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    assert write_file(tmp_path / "whole", b"").stat().st_mode == (tmp_path / "plain").stat().st_mode
