# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Files in the folder of a comparison: safe names, and writing that survives a kill or a full disk.

Several processes and several machines may write to one folder. Each file is written under a temporary name and then
renamed, so a file is either complete or not there, at whatever moment a process is killed.
"""

import hashlib
import json
import os
import re
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Final
from uuid import uuid4

__all__ = ["EXAMPLES", "RUNS", "TABLE", "TRACEBACKS", "UNFINISHED", "prepare_folder", "safe_name", "write_file"]

RUNS, EXAMPLES, TRACEBACKS, TABLE = "runs", "examples", "tracebacks", "results.csv"
"""Names in the folder: run files, example images, tracebacks of failed runs, and the table."""

UNFINISHED: Final = ".unfinished-"
"""Start of the names of temporary files and folders."""

STALE_SECONDS: Final = 7 * 24 * 3600
"""Age from which temporary files and folders are taken for leftovers of killed processes."""

PROBE_BYTES: Final = 65536


def safe_name(*parts: str) -> str:
    """Turn names into one file name that is valid on every system.

    Args:
        parts: Any texts, for instance the key of a run.

    Returns:
        At most 48 readable characters (ASCII letters, digits, ``-`` and ``_``) and a digest of the parts. Different
        parts give different names, also where upper and lower case are the same.
    """
    readable = re.sub(r"[^A-Za-z0-9-]+", "_", "-".join(parts))[:48].strip("-_")
    digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]
    return f"{readable or 'name'}-{digest}"


def write_file(path: Path, content: bytes | str) -> Path:
    """Write a file in one step: complete, or not at all.

    Args:
        path: The file; its folder is made if it is missing.
        content: Its content. Text is encoded as UTF-8.

    Returns:
        The file.

    Raises:
        OSError: If it cannot be written.
    """
    if isinstance(content, str):
        content = content.encode("utf-8", "backslashreplace")
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{UNFINISHED}{uuid4().hex}")
    try:
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)  # noqa: PTH105  # the one call that tests replace
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def prepare_folder(folder: Path) -> None:
    """Make the folder of a comparison, check that it can be written to, and delete what killed processes left in it.

    Raises:
        OSError: If nothing can be written to it.
    """
    probe = folder / RUNS / f"{UNFINISHED}{uuid4().hex}-probe"
    try:
        now = write_file(probe, bytes(PROBE_BYTES)).stat().st_mtime  # by the clock of a network folder
        probe.unlink()
    except OSError as error:
        msg = f"Expected argument `output` to be a folder that can be written to, but got {str(folder)!r}: {error}"
        raise OSError(msg) from error
    for pattern in ("", "*/", f"{EXAMPLES}/*/*/"):
        for path in folder.glob(f"{pattern}{UNFINISHED}*"):
            with suppress(FileNotFoundError):  # another process may delete it at the same time
                if path.stat().st_mtime < now - STALE_SECONDS:
                    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()
