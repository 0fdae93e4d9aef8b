# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Check of configurations before they are parsed: with aliases, a short YAML file can grow to billions of values."""

from collections.abc import Iterable
from pathlib import Path
from typing import Final

import yaml

__all__ = ["check_configurations"]

LARGEST_FILE: Final = 1 << 20
"""Bytes of the largest configuration file."""

LARGEST_NUMBER: Final = 100_000
"""Largest number of values of a configuration, with each alias (``*name``) counted as often as it is used."""


def check_configurations(arguments: Iterable[str]) -> None:
    """Check the YAML files that arguments of a command name, and YAML in the arguments themselves.

    Args:
        arguments: Arguments of the command.

    Raises:
        ValueError: If one is too large, or is no YAML or no file. The message names it.
    """
    previous = ""
    for argument in arguments:
        value = argument.partition("=")[2] if argument.startswith("--") else argument
        text, name = _read(value, is_named=previous == "--config" or argument.startswith("--config="))
        if text is not None:
            _check(text, name)
        previous = argument


def _read(value: str, *, is_named: bool) -> tuple[str | None, str]:
    """Return the YAML of an argument and its name; ``None`` if it is neither a file nor holds aliases.

    Args:
        value: The argument's value.
        is_named: Whether the argument is ``--config``, so that the value is a file with any suffix.
    """
    path = Path(value)
    try:
        if is_named and path.exists() and not path.is_file():
            msg = f"Expected argument `config` to be a file, but {path} is a folder, a named pipe or a device."
            raise ValueError(msg)
        if (is_named or path.suffix.lower() in {".yaml", ".yml", ".json"}) and path.is_file():
            if path.stat().st_size > LARGEST_FILE:
                msg = f"Expected a configuration of at most {LARGEST_FILE} bytes, but {path} is larger."
                raise ValueError(msg)
            return path.read_text(encoding="utf-8"), str(path)
    except UnicodeDecodeError as error:
        msg = f"Expected a configuration in UTF-8, but {path} is none ({error})."
        raise ValueError(msg) from error
    except OSError:  # no path, but a long text
        pass
    return (value, repr(value[:80])) if "*" in value and "&" in value else (None, "")


def _check(text: str, name: str) -> None:
    try:
        root = yaml.compose(text, yaml.SafeLoader)
        number = 0 if root is None else _number_of_values(root, {})
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        msg = f"Could not read the configuration {name}: {type(error).__name__}: {error}."
        raise ValueError(msg) from error
    if number > LARGEST_NUMBER:
        msg = f"Expected a configuration of at most {LARGEST_NUMBER} values, but {name} has more. Use fewer aliases."
        raise ValueError(msg)


def _number_of_values(node: yaml.Node, known: dict[int, int]) -> int:
    """Count the values below a node. Nodes that are known are not visited again."""
    if id(node) in known:
        if not known[id(node)]:
            msg = "a value contains itself"
            raise ValueError(msg)
        return known[id(node)]
    known[id(node)] = 0
    parts = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
    number = 1 + (sum(_number_of_values(part, known) for part in parts) if isinstance(parts, list) else 0)
    known[id(node)] = number
    return number
