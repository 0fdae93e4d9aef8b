# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""The results of a comparison: one JSON file per run, and a CSV table that is built from these files."""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import pandas as pd

from anomalib_aprilgan.comparison.folder import RUNS, TABLE, TRACEBACKS, safe_name
from anomalib_aprilgan.files.whole_files import write_file

__all__ = [
    "AUTHORS_METRICS",
    "COLUMNS",
    "DONE",
    "FAILED",
    "KEY",
    "METRICS",
    "read_run",
    "read_runs",
    "refuse_other_table",
    "run_file",
    "run_files",
    "traceback_file",
    "write_run",
    "write_table",
]

KEY: Final = ("model", "data", "category", "shots", "seed")
"""Columns that identify a run: the model's name in the configuration, the datamodule's class, the category, the number
of reference images (or ``full`` for the whole training split), and the seed."""

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
"""The same metrics by the authors' protocol: raw scores and maps, the authors' resizing of masks, the authors' PRO."""

COUNTS: Final = ("images", "parameters")
NUMBERS: Final = (
    *METRICS,
    *AUTHORS_METRICS,
    *COUNTS,
    "fit_seconds",
    "test_seconds",
    "seconds_per_image",
    "peak_memory_mb",
)
TEXTS: Final = (
    "class_path",
    "device",
    "anomalib_aprilgan",
    "anomalib",
    "torch",
    "open_clip",
    "started",
    "settings",
    "references",
    "error",
)
COLUMNS: Final = (*KEY, "status", *NUMBERS, *TEXTS)
"""Columns of the table. A run file also holds ``arguments``, the JSON text that ``settings`` is the digest of."""

DONE, FAILED = "done", "failed"

LONGEST_NUMBER: Final = 100
"""Length of the longest numbers of shots and seeds; Python does not convert texts of any length."""


def run_file(folder: Path, key: Sequence[str], status: str = DONE) -> Path:
    """Name the file of a run. A failure has a file of its own, so that it never replaces a result."""
    return folder / RUNS / f"{safe_name(*key)}{'' if status == DONE else f'.{status}'}.json"


def traceback_file(folder: Path, key: Sequence[str]) -> Path:
    """Name the file that holds the traceback of a failed run."""
    return folder / TRACEBACKS / f"{safe_name(*key)}.txt"


def write_run(folder: Path, row: Mapping[str, Any]) -> Path:
    """Write the file of a run.

    Args:
        folder: Folder of the comparison.
        row: Values by column, and ``arguments``. Columns may be left out; numbers that are not finite are.

    Returns:
        The file.

    Raises:
        OSError: If it cannot be written.
        ValueError: If a column is unknown, or there is a result of the same run with other settings.
    """
    unknown = sorted(set(row) - {*COLUMNS, "arguments"})
    if unknown:
        msg = f"Expected argument `row` to have columns from {COLUMNS}, but got {unknown}."
        raise ValueError(msg)
    key = [str(row[name]) for name in KEY]
    result = run_file(folder, key)
    with suppress(FileNotFoundError):
        if read_run(folder, result).get("settings") != row.get("settings"):
            msg = f"{result} holds the same run ({', '.join(key)}) with other settings. Use another folder."
            raise ValueError(msg)
    texts = dict(zip(KEY, key, strict=True))
    values = {name: value for name, value in row.items() if not isinstance(value, float) or math.isfinite(value)}
    written = write_file(run_file(folder, key, row["status"]), json.dumps(values | texts, indent=1, allow_nan=False))
    if row["status"] == DONE:
        run_file(folder, key, FAILED).unlink(missing_ok=True)
        traceback_file(folder, key).unlink(missing_ok=True)
    return written


def run_files(folder: Path) -> list[Path]:
    """List the files of all runs, in alphabetical order."""
    return [path for path in sorted((folder / RUNS).glob("*.json")) if path.is_file() and not path.name.startswith(".")]


def read_runs(folder: Path) -> pd.DataFrame:
    """Read all run files of a folder.

    Args:
        folder: Folder of the comparison.

    Returns:
        One row per run, by time of their start: the one that is done if there is one, else the one that failed. It has
        the columns of the table and ``arguments``. Texts, keys included, are strings, numbers are floats, NaN if
        missing.

    Raises:
        ValueError: If a file is damaged, or is not the file of a run.
    """
    rows: dict[tuple[str, ...], dict[str, Any]] = {}
    for path in run_files(folder):
        try:
            row = read_run(folder, path)
        except FileNotFoundError:  # a failed run that another process has just repeated
            continue
        key = tuple(row[name] for name in KEY)
        if row["status"] == DONE or key not in rows:
            rows[key] = row
    in_order = sorted(rows.values(), key=lambda row: (row.get("started", ""), *(row[name] for name in KEY)))
    table = pd.DataFrame(in_order, columns=[*COLUMNS, "arguments"], dtype=object)
    texts = [*KEY, "status", *TEXTS, "arguments"]
    table[texts] = table[texts].fillna("").astype(object)
    for column in NUMBERS:
        table[column] = pd.to_numeric(table[column]).astype(float)
    return table


def read_run(folder: Path, path: Path) -> dict[str, Any]:
    """Read the file of a run.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, or is not the file of a run.
    """
    try:
        row = json.loads(path.read_text(encoding="utf-8"))
        problem = _problem_of(row)
    except (ValueError, RecursionError) as error:
        row, problem = {}, f"it is damaged ({error})"
    if not problem and run_file(folder, [row[name] for name in KEY], row["status"]).name != path.name:
        problem = "its name does not belong to its content"
    if problem:
        msg = (
            f"Expected {path} to be the file of a run, but {problem}. Delete it to repeat the run, or move it "
            "elsewhere if it comes from another program or version."
        )
        raise ValueError(msg)
    return row


def _problem_of(row: object) -> str:
    """Say why a value is not a run; empty if it is one."""
    if not isinstance(row, dict):
        return "it holds no JSON object"
    missing = sorted({*KEY, "status"} - set(row))
    unknown = sorted(set(row) - {*COLUMNS, "arguments"})
    if missing or unknown:
        return f"it lacks {missing}" if missing else f"it holds {unknown}"
    wrong = [name for name, value in row.items() if not _is_valid(name, value)]
    if wrong:
        return f"it holds values of wrong types in {wrong}"
    return "" if row["status"] in {DONE, FAILED} else f"its status is {row['status']!r}"


def _is_valid(name: str, value: object) -> bool:
    """Whether a column may have a value: finite numbers, texts, and a JSON object with the arguments."""
    if name in NUMBERS:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    if not isinstance(value, str):
        return False
    if name in {"shots", "seed"}:
        return len(value) <= LONGEST_NUMBER
    if name == "arguments" and value:
        parts = json.loads(value)
        data = parts.get("data", {}) if isinstance(parts, dict) else None
        return isinstance(data, dict) and isinstance(data.get("init_args", {}), dict)
    return True


def write_table(folder: Path, runs: pd.DataFrame) -> Path:
    """Write ``results.csv``.

    Line breaks in texts become blanks, and texts that a spreadsheet would run as a formula get an apostrophe in front.

    Args:
        folder: Folder of the comparison.
        runs: What :func:`read_runs` returns.

    Returns:
        The table.

    Raises:
        OSError: If it cannot be written.
        ValueError: If there is a ``results.csv`` of something else.
    """
    refuse_other_table(folder)
    texts = {name: runs[name].map(_as_cell) for name in ("model", "data", "category", *TEXTS)}
    table = runs[list(COLUMNS)].assign(**texts, **{name: runs[name].astype("Int64") for name in COUNTS})
    return write_file(folder / TABLE, table.to_csv(index=False, lineterminator="\n"))


def refuse_other_table(folder: Path) -> None:
    """Raise a ``ValueError`` if the folder has a ``results.csv`` that is not the table of a comparison."""
    path, expected = folder / TABLE, ",".join(KEY)
    if not path.is_file():
        return
    with path.open("rb") as file:
        heading = file.readline().decode("utf-8", "replace").strip()
    if not heading.startswith(expected):
        msg = (
            f"Expected {path} to be the table of a comparison, with a heading that starts with {expected!r}, but it is "
            f"{heading[:80]!r}. Move it elsewhere, or use another folder; the table is written anew."
        )
        raise ValueError(msg)


def _as_cell(text: str) -> str:
    line = " ".join(text.splitlines())
    return f"'{line}" if line.lstrip().startswith(("=", "+", "-", "@")) else line
