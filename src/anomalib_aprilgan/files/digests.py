# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Digests of files of any size."""

import hashlib
from pathlib import Path

__all__ = ["digest_of"]


def digest_of(path: Path, algorithm: str = "sha256", start: bytes = b"") -> str:
    """Compute the digest of a file, in hexadecimal digits.

    Args:
        path: The file.
        algorithm: Name of a function of ``hashlib``.
        start: Bytes that are put before the content.
    """
    digest = hashlib.new(algorithm, start, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
