# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Reading of weight files without running code from them, and atomic writing."""

import os
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from anomalib_aprilgan.files.torchscript import is_torchscript, read_torchscript

__all__ = ["read_weight_file", "write_weight_file"]

REFUSED_CODE = re.compile(r"GLOBAL|reduce|unrecognized function|allowlisted|safe_globals", flags=re.IGNORECASE)
"""Words in torch's errors about files that contain more than tensors and plain data."""


def read_weight_file(path: Path, kind: str, *, torchscript: bool = False) -> tuple[Any, dict[str, str]]:
    """Read a safetensors file, or a file of ``torch.save``, without running code from it.

    Args:
        path: The file.
        kind: Name of the expected content for messages, for example "CLIP weights".
        torchscript: Also read the tensors of a TorchScript archive, without its code. Otherwise it is refused.

    Returns:
        Content of the file (the state dict of a TorchScript archive), and the metadata of a safetensors file.

    Raises:
        ValueError: If the file is damaged, has another format, or would run code; the message names it.
    """
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
        if is_torchscript(path):
            if not torchscript:
                msg = "a TorchScript archive is not allowlisted"
                raise pickle.UnpicklingError(msg)  # noqa: TRY301
            return read_torchscript(path), {}
        return torch.load(path, map_location="cpu", weights_only=True), {}
    except Exception as error:  # damaged files and other formats raise errors of many types
        if isinstance(error, pickle.UnpicklingError) and REFUSED_CODE.search(str(error)):
            msg = (
                f"The file {path} was not loaded, because it contains more than {kind} and would run code. Use a file "
                "that contains only tensors and plain data."
            )
        else:
            reason = " ".join(str(error).partition("\n")[0].split()[:40]) or "the file is empty or truncated"
            msg = f"Could not read {kind} from {path}: {type(error).__name__}: {reason}. Replace the file."
        raise ValueError(msg) from error


def write_weight_file(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Path:
    """Write tensors to a safetensors file. An existing file is replaced only when the new file is complete.

    Args:
        path: The file; its suffix must be ``.safetensors``.
        tensors: Tensors by name, on any device.
        metadata: Strings by name, which are written into the header.

    Returns:
        The path.

    Raises:
        ValueError: If the path has another suffix.
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
