# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Files of weights: written whole or not at all, and read without running any code that they may hold."""

import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

__all__ = ["read_weight_file", "write_weight_file"]

REFUSED_CODE = re.compile(r"GLOBAL|reduce|unrecognized function|allowlisted|safe_globals", flags=re.IGNORECASE)
"""What torch says of a file that asks for more than tensors and plain data."""


def read_weight_file(path: Path, kind: str) -> tuple[Any, dict[str, str]]:
    """Read a file of weights: safetensors, a checkpoint of ``torch.save``, or a TorchScript archive as OpenAI's.

    Args:
        path: The file.
        kind: What it should hold, for messages.

    Returns:
        What the file holds (of an archive: its state dict), and the metadata of a safetensors file.

    Raises:
        ValueError: If the file is damaged, foreign, or would run code; the message names it.
    """
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
        if _is_torchscript(path):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch deprecates the format that OpenAI publishes
                archive = torch.jit.load(path, map_location="cpu")  # type: ignore[no-untyped-call]
            return archive.state_dict(), {}
        return torch.load(path, map_location="cpu", weights_only=True), {}
    except Exception as error:  # damaged and foreign files raise errors of many types
        if isinstance(error, pickle.UnpicklingError) and REFUSED_CODE.search(str(error)):
            msg = (
                f"The file {path} holds more than {kind} and would run code when loaded, so it was not. Get it from a "
                "source that you trust: tensors and plain data alone."
            )
        else:
            reason = " ".join(str(error).partition("\n")[0].split()[:40]) or "it is empty or cut short"
            msg = f"Could not read {kind} from {path}: {type(error).__name__}: {reason}. Fetch or write the file again."
        raise ValueError(msg) from error


def write_weight_file(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Path:
    """Write tensors to a safetensors file. An existing file is replaced once the new one is complete.

    Args:
        path: The file; its suffix must be ``.safetensors``.
        tensors: What to write, by name.
        metadata: What goes with it.

    Returns:
        The path.

    Raises:
        ValueError: If the suffix is another one.
    """
    path = Path(path).expanduser()
    if path.suffix != ".safetensors":
        msg = f"Expected argument `path` to end in '.safetensors', but got {str(path)!r}."
        raise ValueError(msg)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        unfinished.write_bytes(save(plain, metadata=dict(metadata)))
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())
