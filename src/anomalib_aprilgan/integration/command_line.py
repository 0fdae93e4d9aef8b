# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Errors on anomalib's command line: the message alone, without traceback and dump of the configuration.

anomalib's command prints a traceback for each error, and jsonargparse adds the whole configuration to errors of
constructors. An error that this package raises for the user ends the command with ``SystemExit`` instead. Errors that
nobody foresaw keep their traceback, and from Python nothing changes.
"""

import traceback
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

__all__ = ["end_command", "with_short_errors"]

PACKAGE = Path(__file__).parents[1]

P = ParamSpec("P")
R = TypeVar("R")


def with_short_errors(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function that anomalib's command calls: its errors for the user end the command."""

    @wraps(function)
    def decorated(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except Exception as error:
            end_command(error)
            raise

    return decorated


def end_command(error: Exception) -> None:
    """End anomalib's command with a message. Does nothing for other errors than those for the user, and from Python.

    Args:
        error: The error.

    Raises:
        SystemExit: With exit status 1, which prints the message.
    """
    if _is_for_the_user(error) and _runs_in_command():
        msg = f"anomalib-aprilgan: {error}"
        raise SystemExit(msg) from error


def _is_for_the_user(error: Exception) -> bool:
    """Whether a ``raise`` statement of this package raised the error, and no function of Python or torch."""
    frames = traceback.extract_tb(error.__traceback__)
    return (
        isinstance(error, ValueError | RuntimeError | OSError | ModuleNotFoundError)
        and bool(frames)
        and PACKAGE in Path(frames[-1].filename).parents
        and (frames[-1].line or "").startswith("raise ")
    )


def _runs_in_command() -> bool:
    """Whether anomalib's command calls this function, but not for a pipeline: a benchmark goes on after an error."""
    modules = (frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_stack(None))
    return next((name for name in modules if name.startswith("anomalib.cli.")), "") == "anomalib.cli.cli"
