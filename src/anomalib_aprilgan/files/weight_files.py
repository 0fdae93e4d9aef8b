# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Reading of weight files without running code from them, and atomic writing with a digest."""

import hashlib
import json
import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from anomalib_aprilgan.files.paths import checked_path
from anomalib_aprilgan.files.torchscript import is_torchscript, read_torchscript
from anomalib_aprilgan.files.whole_files import write_file

__all__ = ["non_finite", "read_weight_file", "refuse_non_finite", "write_weight_file"]

OWN_KEYS = "anomalib_aprilgan"
"""Beginning of the metadata keys of files that this package writes."""

DIGEST_KEY = f"{OWN_KEYS}_sha256"
"""Metadata key of the SHA-256 of tensors and other metadata."""

TENSORS_AT_ONCE = 16
"""Number of tensors that are read before a safetensors file is opened anew; ViT-L has 590."""

LARGEST_METADATA = 10_000_000
"""Characters of metadata in a safetensors file."""

LARGEST_GROWTH = 100_000_000
"""Bytes by which an archive may grow when it is unpacked. Only TorchScript's code is compressed, tensors are not."""

LARGEST_CONTENT = 1_000_000
"""Number of values, such as tensors, numbers and strings, in a file."""

REFUSED_CODE = re.compile(r"GLOBAL|reduce|unrecognized function|allowlisted|safe_globals", flags=re.IGNORECASE)
"""Words in torch's errors about files that contain more than tensors and plain data."""


def read_weight_file(
    path: Path, kind: str, *, torchscript: bool = False, without: str | None = None
) -> tuple[Any, dict[str, str]]:
    """Read a safetensors file, or a file of ``torch.save``, without running code from it.

    Args:
        path: The file.
        kind: Name of the expected content for messages, for example "CLIP weights".
        torchscript: Also read the tensors of a TorchScript archive, without its code. Otherwise it is refused.
        without: Beginning of the names of tensors that are not needed. A safetensors file is read without them, unless
            it has a digest.

    Returns:
        Content of the file (the state dict of a TorchScript archive), and the metadata of a safetensors file.

    Raises:
        ValueError: If the file is damaged, has another format, or would run code; the message names it. Damage is
            found by the checksums of zip archives, such as files of ``torch.save``, and by the digest of own files.
    """
    try:
        if not path.is_file():
            msg = "it is no file"
            raise ValueError(msg)  # noqa: TRY301
        if path.suffix == ".safetensors":
            return _read_safetensors(path, without)
        _check_records(path)
        if is_torchscript(path):
            if not torchscript:
                msg = "a TorchScript archive is not allowlisted"
                raise pickle.UnpicklingError(msg)  # noqa: TRY301
            content: Any = read_torchscript(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
        _check_content(content)
    except pickle.UnpicklingError as error:
        if REFUSED_CODE.search(str(error)):
            msg = (
                f"The file {path} was not loaded, because it contains more than {kind} and would run code. Use a file "
                "that contains only tensors and plain data."
            )
        else:
            msg = f"Could not read {kind} from {path}: the file is damaged or of another type. Replace the file."
        raise ValueError(msg) from None  # torch's error would advise to run the code
    except Exception as error:  # damaged files and other formats raise errors of many types
        reason = " ".join(str(error).partition("\n")[0].split()[:40]) or "the file is empty or truncated"
        if "weights_only" in reason:  # torch's advice, for a format that it no longer reads
            reason = "the file has another format"
        msg = f"Could not read {kind} from {path}: {type(error).__name__}: {reason}. Replace the file."
        raise ValueError(msg) from None
    else:
        return content, {}


def _read_safetensors(path: Path, without: str | None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a file in parts: what safetensors has mapped of a file stays in memory as long as the file is open."""
    before = path.stat()
    with safe_open(path, framework="pt") as file:
        metadata, names = dict(file.metadata() or {}), list(file.keys())
    if sum(map(len, metadata.values())) > LARGEST_METADATA:
        msg = f"it has more than {LARGEST_METADATA} characters of metadata"
        raise ValueError(msg)
    if without is not None and DIGEST_KEY not in metadata:
        names = [name for name in names if not name.startswith(without)]
    tensors: dict[str, Tensor] = {}
    for first in range(0, len(names), TENSORS_AT_ONCE):
        with safe_open(path, framework="pt") as file:  # copies, since Windows replaces no file that is mapped
            tensors |= {name: file.get_tensor(name).clone() for name in names[first : first + TENSORS_AT_ONCE]}
    after = path.stat()
    if (before.st_ino, before.st_size, before.st_mtime_ns) != (after.st_ino, after.st_size, after.st_mtime_ns):
        msg = "it was changed while it was read"
        raise ValueError(msg)
    _check_digest(tensors, metadata)
    return tensors, metadata


def write_weight_file(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Path:
    """Write tensors to a safetensors file. An existing file is replaced only when the new file is complete.

    Args:
        path: The file; its suffix must be ``.safetensors``.
        tensors: Tensors by name, on any device.
        metadata: Strings by name, which are written into the header, together with a digest of the content.

    Returns:
        The path.

    Raises:
        ValueError: If the path has another suffix.
        OSError: If the file cannot be written.
    """
    path = checked_path(path, "path")
    if path.suffix != ".safetensors":
        msg = f"Expected argument `path` to end in '.safetensors', but got {str(path)!r}."
        raise ValueError(msg)
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    return write_file(path, _serialized(plain, {**metadata, DIGEST_KEY: _digest(plain, metadata)}))


def non_finite(tensors: Iterable[tuple[str, Any]]) -> list[str]:
    """Return the names of the tensors that contain NaN or infinity; other values than tensors are ignored."""
    return [name for name, value in tensors if isinstance(value, Tensor) and not _is_finite(value)]


def _is_finite(values: Tensor) -> bool:
    """Whether all values are finite. A finite sum says so much sooner; it may overflow, though."""
    if not values.is_floating_point():
        return bool(torch.isfinite(values).all())
    return bool(values.float().sum().isfinite()) or bool(torch.isfinite(values).all())


def refuse_non_finite(names: list[str], subject: str) -> None:
    """Raise an error if tensors contain NaN or infinity, which would make every score NaN.

    Args:
        names: Names of the tensors.
        subject: Subject of the message, for example "The file x.safetensors".

    Raises:
        ValueError: If there are any.
    """
    if names:
        more = f" and {len(names) - 4} more" if len(names) > 4 else ""  # noqa: PLR2004
        msg = f"{subject} contains NaN or infinite values in {', '.join(names[:4])}{more}. Use an undamaged file."
        raise ValueError(msg)


def _serialized(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    """Return the content of a safetensors file. Its metadata are sorted, so that equal content gives equal bytes."""
    content = save(tensors, metadata=metadata)
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted(metadata.items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text = text.ljust(-(-len(text) // 8) * 8)  # tensors begin at a multiple of 8 bytes
    return len(text).to_bytes(8, "little") + text + content[end:]


def _digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Compute the SHA-256 of tensors and metadata except the digest itself."""
    others = sorted((name, value) for name, value in metadata.items() if name != DIGEST_KEY)
    sha256 = hashlib.sha256(json.dumps(others).encode())
    for name, value in sorted(tensors.items()):
        sha256.update(json.dumps([name, str(value.dtype), list(value.shape)]).encode())
        sha256.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha256.hexdigest()


def _check_digest(tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Compare the digest in the metadata, and remove it from them. Files of other programs have none."""
    is_incomplete = (
        DIGEST_KEY not in metadata and len(metadata) > 1 and any(key.startswith(OWN_KEYS) for key in metadata)
    )
    stated = metadata.pop(DIGEST_KEY, None)
    if is_incomplete or (stated is not None and stated != _digest(tensors, metadata)):
        msg = "the file is damaged, because its content differs from its SHA-256"
        raise ValueError(msg)


def _check_records(path: Path) -> None:
    """Check sizes and checksums of a zip archive. torch does not check the latter."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(record.file_size for record in archive.infolist())
            if unpacked > path.stat().st_size + LARGEST_GROWTH:
                msg = f"it would unpack to {unpacked / 1e6:,.0f} MB"
                raise ValueError(msg)
            damaged = archive.testzip()
        if damaged is not None:
            msg = f"the file is damaged, because {damaged} in it differs from its checksum"
            raise ValueError(msg)


def _check_content(content: object) -> None:
    """Check that content is no larger than it seems: shared parts that multiply, and tensors larger than their memory.

    Raises:
        ValueError: If it is.
        RecursionError: If it is nested too deeply.
    """
    parts = 0

    def check(value: object) -> None:
        nonlocal parts
        parts += 1
        if parts > LARGEST_CONTENT:
            msg = f"it has more than {LARGEST_CONTENT} values"
            raise ValueError(msg)
        if isinstance(value, Tensor):
            if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized:
                msg = "it holds a tensor without plain values"
                raise ValueError(msg)
            if value.numel() * value.element_size() > value.untyped_storage().nbytes():
                msg = "it holds a tensor that is larger than its values"
                raise ValueError(msg)
        elif isinstance(value, Mapping):
            for key, one in value.items():
                check(key)
                check(one)
        elif isinstance(value, list | tuple | set):
            for one in value:
                check(one)

    check(content)
