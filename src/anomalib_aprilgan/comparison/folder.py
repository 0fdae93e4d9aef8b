# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Files in the folder of a comparison: their names, and the check that the folder can be written to.

Several processes and several machines may write to one folder.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Final
from uuid import uuid4

from anomalib_aprilgan.files.whole_files import delete_leftovers, write_file

__all__ = ["EXAMPLES", "RUNS", "TABLE", "TRACEBACKS", "prepare_folder", "safe_name"]

RUNS, EXAMPLES, TRACEBACKS, TABLE = "runs", "examples", "tracebacks", "results.csv"
"""Names in the folder: run files, example images, tracebacks of failed runs, and the table."""

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


def prepare_folder(folder: Path) -> None:
    """Make the folder of a comparison, check that it can be written to, and delete what killed processes left in it.

    Raises:
        OSError: If nothing can be written to it.
    """
    try:
        write_file(folder / RUNS / f".probe-{uuid4().hex}", bytes(PROBE_BYTES)).unlink()
    except OSError as error:
        msg = f"Expected argument `output` to be a folder that can be written to, but got {str(folder)!r}: {error}"
        raise OSError(msg) from error
    for place in (folder, *folder.glob("*/"), *folder.glob(f"{EXAMPLES}/*/*/")):
        delete_leftovers(place)
