# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Reading of the tensors of TorchScript archives, such as OpenAI's CLIP weights, without running their code.

``torch.jit.load`` runs the ``__setstate__`` of an archive's modules, which can write any file.
"""

import pickle
import re
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

__all__ = ["is_torchscript", "read_torchscript"]

STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
"""Types of values by the names that archives use."""

LARGEST_NUMBER = 10_000
"""Number of modules in an archive; a CLIP has some hundreds."""


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """Read parameters and buffers of a TorchScript archive without running code from it.

    Args:
        path: The archive.

    Returns:
        Tensors by name, as ``torch.jit.load(path).state_dict()`` returns them.

    Raises:
        pickle.UnpicklingError: If the archive contains more than modules, tensors and plain data.
        Exception: Other types, if the archive is damaged.
    """
    with zipfile.ZipFile(path) as archive:
        (folder,) = (
            name.removesuffix("constants.pkl") for name in archive.namelist() if name.endswith("/constants.pkl")
        )
        with archive.open(f"{folder}data.pkl") as file:
            return _state_dict(_Unpickler(file, archive, folder).load())


class _Module:
    """Module of an archive without its code.

    Attributes:
        names: Names of its parameters and buffers.
    """

    names: frozenset[str] = frozenset()

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, dict):
            msg = "a module with a __setstate__ of its own is not allowlisted"
            raise pickle.UnpicklingError(msg)
        self.__dict__.update(state)


def _state_dict(root: object) -> dict[str, Tensor]:
    """Return the tensors of a module by name. A module may occur in several places; a forged one even in itself."""
    found: dict[str, Tensor] = {}
    number = 0

    def visit(module: object, prefix: str) -> None:
        nonlocal number
        number += 1
        if number > LARGEST_NUMBER:
            msg = f"it has more than {LARGEST_NUMBER} modules"
            raise ValueError(msg)
        for name, value in vars(module).items():
            if isinstance(value, _Module):
                visit(value, f"{prefix}{name}.")
            elif isinstance(value, Tensor) and name in type(module).names:  # type: ignore[attr-defined]
                found[prefix + name] = value

    visit(root, "")
    return found


class _Unpickler(pickle._Unpickler):  # noqa: SLF001
    """Builds nothing but tensors, plain data, and modules without code.

    It is based on Python's implementation of pickle, since a few bytes can make that in C reserve gigabytes.

    Args:
        file: ``data.pkl`` of the archive.
        archive: The archive.
        folder: Folder of all its files, with a slash at the end.
    """

    def __init__(self, file: IO[bytes], archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(file)
        self._archive = archive
        self._folder = folder
        self._storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401
        """Return a stand-in for a name in the pickle. The pickle cannot use it to change other code."""
        if module.startswith("__torch__"):
            return type("Module", (_Module,), {"names": self._tensor_names(module, name)})
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self._tensor
        if module == "torch.jit._pickle":  # lists whose types are given
            return self._first
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        msg = f"GLOBAL {module}.{name} is not allowlisted"
        raise pickle.UnpicklingError(msg)

    def persistent_load(self, pid: Any) -> Tensor:  # noqa: ANN401
        """Return the values of a storage as a tensor with one dimension."""
        _, dtype, key, *_ = pid
        if key not in self._storages:
            content = self._archive.read(f"{self._folder}data/{key}")
            self._storages[key] = (
                torch.frombuffer(bytearray(content), dtype=dtype) if content else torch.empty(0, dtype=dtype)
            )
        return self._storages[key]

    def _tensor_names(self, module: str, name: str) -> frozenset[str]:
        """Read the names of a module's parameters and buffers from its source text."""
        code = self._archive.read(f"{self._folder}code/{module.replace('.', '/')}.py").decode()
        head = re.search(rf"^class {re.escape(name)}\(Module\):\n((?:  __\w+__ = .*\n)*)", code, flags=re.MULTILINE)
        lists = re.findall(r"__(?:parameters|buffers)__ = \[(.*)\]", head[1] if head else "")
        return frozenset(re.findall(r'"([^"]+)"', " ".join(lists)))

    def _tensor(self, storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:  # noqa: ANN401
        return storage.as_strided(size, stride, offset)  # checks the bounds

    def _first(self, value: Any, *_: Any) -> Any:  # noqa: ANN401
        return value
