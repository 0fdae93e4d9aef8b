# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""What is kept on disk: features of images and texts."""

from datetime import datetime
from pathlib import Path

from anomalib_aprilgan.files.feature_files import FeatureFiles, default_folder, folder_of_environment, text_files

__all__ = ["clear", "describe"]


def describe(folder: Path | None = None) -> str:
    """Describe stored features.

    Args:
        folder: Folder of the features of images. ``None``: that of the environment, else the cache.

    Returns:
        A text of several lines.
    """
    lines = []
    for title, files in _stored(folder):
        groups = files.groups()
        size = sum(group.size for group in groups)
        lines.append(f"{title}: {size / 1e6:,.1f} of at most {files.limit / 1e6:,.0f} MB in {files.folder}")
        for group in groups:
            used = datetime.fromtimestamp(group.used).astimezone()
            lines.append(f"  {group.name}: {group.files} files, {group.size / 1e6:,.1f} MB, last used {used:%Y-%m-%d}")
    return "\n".join(lines)


def clear(folder: Path | None = None) -> str:
    """Delete stored features, and say how much that was; arguments as for :func:`describe`."""
    lines = [f"{title}: deleted {files.clear() / 1e6:,.1f} MB in {files.folder}" for title, files in _stored(folder)]
    return "\n".join(lines)


def _stored(folder: Path | None) -> list[tuple[str, FeatureFiles]]:
    features = FeatureFiles(folder or folder_of_environment() or default_folder())
    return [("Features of images", features), ("Text features", text_files())]
