# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Files of exported models: replacement of existing files, and metadata of ONNX files."""

import ast
import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from anomalib.deploy import ExportType

from anomalib_aprilgan.files.whole_files import unfinished_folder

__all__ = ["annotate", "export_folder", "replacing"]

LOADED: Final = (".xml", ".onnx", ".pt")
"""Suffixes of the files that are loaded. OpenVINO models and large ONNX models have a second file with weights."""

ALMOST_NOTHING: Final = 1 << 20
"""With fewer free bytes than this, the disk is full, and that is taken for the reason of an error."""

TORCH_WRITER: Final = "inline_container"
"""Part of torch's errors if a file cannot be written."""


def export_folder(export_root: Path | str, kind: ExportType) -> Path:
    """Return the folder that anomalib writes exported files to."""
    return Path(export_root) / "weights" / kind.value


@contextmanager
def replacing(export_root: Path | str, kind: ExportType) -> Iterator[Path]:
    """Provide a temporary export root, and put its files in place at the end. After an error, existing files are kept.

    Args:
        export_root: Export root of the final files.
        kind: Format of the exported model.

    Yields:
        The temporary export root, on the same file system.

    Raises:
        OSError: If the files cannot be written.
    """
    folder = export_folder(export_root, kind)
    with unfinished_folder(folder) as unfinished:
        made = export_folder(unfinished, kind)
        made.mkdir(parents=True)
        try:
            yield unfinished
        except Exception as error:
            if shutil.disk_usage(folder).free < ALMOST_NOTHING:  # torch and OpenVINO do not say so
                msg = f"{os.strerror(errno.ENOSPC)}, so that the model was not exported"
                raise OSError(errno.ENOSPC, msg, str(folder)) from error
            if TORCH_WRITER in str(error):  # perhaps a quota is used up
                msg = "torch could not write the file, so that the model was not exported"
                raise OSError(errno.EIO, msg, str(folder)) from error
            raise
        _put_in_place(sorted(made.iterdir()), folder)


def _put_in_place(files: list[Path], folder: Path) -> None:
    """Replace the files of a model: first those with weights, then the one that is loaded.

    In between, the latter is missing, so that new weights are never loaded with an old graph, even after a kill.
    """
    loaded = [file for file in files if file.suffix in LOADED]
    others = [file for file in files if file not in loaded]
    for file in files:  # the slow part comes first, so that the model is missing for a moment only
        with file.open("rb+") as content:
            os.fsync(content.fileno())
    for file in loaded if others else ():
        (folder / file.name).unlink(missing_ok=True)
    for file in (*others, *loaded):
        os.replace(file, folder / file.name)  # noqa: PTH105  # the one call that tests replace
    for file in loaded:
        weights = folder / f"{file.name}.data"
        if weights.name not in {other.name for other in others}:
            weights.unlink(missing_ok=True)  # of an earlier model that was larger


def annotate(path: Path, metadata: dict[str, str]) -> None:
    """Add metadata to an ONNX file, and name its operations after their modules.

    Information about the source code of each operation is removed; it takes up to a fifth of a small file.

    Args:
        path: The ONNX file.
        metadata: Strings by name.
    """
    import onnx  # noqa: PLC0415  # part of the extra `export`

    content = onnx.load(str(path), load_external_data=False)
    onnx.helper.set_model_props(content, metadata)
    for node in content.graph.node:
        for entry in node.metadata_props:
            if entry.key == "pkg.torch.onnx.name_scopes":
                module = ast.literal_eval(entry.value)[-2]
                node.name = f"{module}/{node.name}"
        node.ClearField("metadata_props")
    unfinished = path.with_name(f"{path.name}.annotated")
    onnx.save(content, str(unfinished))
    unfinished.replace(path)
