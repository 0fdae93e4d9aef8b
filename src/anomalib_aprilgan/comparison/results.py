# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""The table of results: one line per run, written as soon as the run has ended, and read again to go on.

Each process appends whole lines. At whatever moment it is killed, all lines but the last are whole, and a last one that
is not is dropped by the next start.
"""

import csv
import os
from collections.abc import Iterable, Mapping
from io import StringIO
from pathlib import Path
from typing import Any, Final

import pandas as pd

__all__ = [
    "AUTHORS_METRICS",
    "COLUMNS",
    "DONE",
    "FAILED",
    "KEY",
    "METRICS",
    "append_row",
    "drop_torn_line",
    "read_results",
    "results_file",
]

KEY: Final = ("model", "data", "category", "shots", "seed")
"""What tells runs apart: the model's name in the configuration, the datamodule's class, the category, the number of
reference images (or ``full`` for the whole training split), and the seed."""

METRICS: Final = (
    "image_AUROC",
    "image_F1Max",
    "image_AUPR",
    "pixel_AUROC",
    "pixel_F1Max",
    "pixel_AUPR",
    "pixel_AUPRO",
)
"""The paper's seven metrics as anomalib computes and names them, in [0, 1]."""

AUTHORS_METRICS: Final = (
    "authors_image_AUROC",
    "authors_image_F1Max",
    "authors_image_AUPR",
    "authors_pixel_AUROC",
    "authors_pixel_F1Max",
    "authors_pixel_AUPR",
    "authors_pixel_PRO",
)
"""The same by the authors' protocol: raw scores and maps, masks resized as theirs, their way to PRO."""

COLUMNS: Final = (
    *KEY,
    "status",
    *METRICS,
    *AUTHORS_METRICS,
    "images",
    "fit_seconds",
    "test_seconds",
    "seconds_per_image",
    "peak_memory_mb",
    "parameters",
    "class_path",
    "device",
    "anomalib_aprilgan",
    "anomalib",
    "torch",
    "open_clip",
    "git_revision",
    "started",
    "settings",
    "references",
    "error",
)

DONE, FAILED = "done", "failed"

NUMBERS = (*METRICS, *AUTHORS_METRICS, *COLUMNS[COLUMNS.index("images") : COLUMNS.index("class_path")])


def results_file(folder: Path, shard: tuple[int, int] | None = None) -> Path:
    """Name the file that a process writes.

    Args:
        folder: Folder of the comparison.
        shard: Number of the shard, counted from 1, and of all shards; ``None``: the grid is not split.

    Returns:
        ``results.csv``, or for a shard for instance ``results-1-of-4.csv``.
    """
    return folder / ("results.csv" if shard is None else f"results-{shard[0]}-of-{shard[1]}.csv")


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Append a row in one write, and see it through to the disk.

    Args:
        path: The file; it is made, with a heading, if it is not there.
        row: Values by column; columns that are left out stay empty, line breaks become spaces.

    Raises:
        ValueError: If the row has a column that the table has not.
    """
    unknown = sorted(set(row) - set(COLUMNS))
    if unknown:
        msg = f"Expected argument `row` to have columns from {COLUMNS}, but got {unknown}."
        raise ValueError(msg)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        heading = "" if os.fstat(descriptor).st_size else _line(COLUMNS)
        os.write(descriptor, (heading + _line(row.get(column, "") for column in COLUMNS)).encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _line(values: Iterable[object]) -> str:
    buffer = StringIO()
    csv.writer(buffer, lineterminator="\n").writerow([" ".join(str(value).splitlines()) for value in values])
    return buffer.getvalue()


def drop_torn_line(path: Path) -> bool:
    """Drop a last line that was never finished, so that the next row starts on a line of its own.

    Args:
        path: The file; nothing happens if it is not there.

    Returns:
        Whether there was one.
    """
    content = path.read_bytes() if path.exists() else b""
    end = content.rfind(b"\n") + 1
    if end == len(content):
        return False
    os.truncate(path, end)
    return True


def read_results(folder: Path) -> pd.DataFrame:
    """Read the rows of all processes that wrote to a folder.

    Args:
        folder: Folder of the comparison.

    Returns:
        One row per run, in the order of their first rows: the latest that is done, else the latest. Keys and texts are
        strings, numbers are floats, NaN where there is none.

    Raises:
        ValueError: If a file is no table of results.
    """
    rows: list[dict[str, str]] = []
    for path in sorted(folder.glob("results*.csv")):
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]  # what follows the last line break is torn
        if not lines:
            continue
        if tuple(next(csv.reader(lines[:1]))) != COLUMNS:
            msg = (
                f"Expected {path} to be a table of results with the columns {', '.join(COLUMNS)}, but its heading is "
                f"{lines[0]!r}. Move it elsewhere; it may be of another version."
            )
            raise ValueError(msg)
        rows += [
            dict(zip(COLUMNS, values, strict=True)) for values in csv.reader(lines[1:]) if len(values) == len(COLUMNS)
        ]
    latest: dict[tuple[str, ...], dict[str, str]] = {}
    for row in sorted(rows, key=lambda row: row["started"]):
        key = tuple(row[name] for name in KEY)
        if row["status"] == DONE or latest.get(key, row)["status"] != DONE:
            latest[key] = row
    order = dict.fromkeys(tuple(row[name] for name in KEY) for row in rows)
    table = pd.DataFrame([latest[key] for key in order], columns=list(COLUMNS), dtype=object)
    for column in NUMBERS:
        table[column] = pd.to_numeric(table[column], errors="coerce")
    return table
