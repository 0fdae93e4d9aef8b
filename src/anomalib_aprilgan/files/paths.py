# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Paths from users: whatever they are, an error names the argument."""

import os
from pathlib import Path

__all__ = ["checked_path"]


def checked_path(value: object, argument: str) -> Path:
    """Turn an argument into a path, with ``~`` replaced by the home directory.

    Args:
        value: Any value.
        argument: Name of the argument in messages.

    Returns:
        The path, which may not exist.

    Raises:
        ValueError: If the value is no path, or no path that the system can look up.
    """
    if not isinstance(value, str | os.PathLike) or isinstance(os.fspath(value), bytes):
        msg = f"Expected argument `{argument}` to be a path, but got {value!r}."
        raise ValueError(msg)  # noqa: TRY004  # one kind of error for all arguments
    path, text = Path(value), os.fspath(value)
    try:
        if "\0" in text:
            msg = "it contains a zero byte"
            raise ValueError(msg)  # noqa: TRY301
        path = path.expanduser()
        path.stat()
    except (FileNotFoundError, NotADirectoryError):  # the latter: below a file
        return path
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: no home directory
        shown = text if len(text) < 200 else f"{text[:200]}..."  # noqa: PLR2004
        reason = error.strerror if isinstance(error, OSError) else str(error).rstrip(".")
        msg = f"Expected argument `{argument}` to be a path, but {shown!r} cannot be used as one ({reason})."
        raise ValueError(msg) from error
    return path
