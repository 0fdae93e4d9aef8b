# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Files of exported models: replacement of existing files, and metadata of ONNX files."""

import ast
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from anomalib.deploy import ExportType

__all__ = ["annotate", "export_folder", "replacing"]


def export_folder(export_root: Path | str, kind: ExportType) -> Path:
    """Return the folder that anomalib writes exported files to."""
    return Path(export_root) / "weights" / kind.value


@contextmanager
def replacing(export_root: Path | str, kind: ExportType) -> Iterator[Path]:
    """Provide a temporary export root, and replace existing files with its files at the end.

    If the export fails, existing files are kept.

    Args:
        export_root: Export root of the final files.
        kind: Format of the exported model.

    Yields:
        The temporary export root.
    """
    folder = export_folder(export_root, kind)
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder, prefix=".unfinished-") as unfinished:
        yield Path(unfinished)
        for file in sorted(export_folder(unfinished, kind).iterdir()):
            file.replace(folder / file.name)


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
