# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Files that a run writes for its images: one distinct path per image, and no files of an earlier run beside them."""

import errno
import json
import os
from collections.abc import Iterable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from PIL import Image

__all__ = ["OutputFolder", "named_items", "write_output", "write_picture"]

INDEX = ".written-by-aprilgan"
"""File in an output folder that lists the files of the last run, so that the next one can remove them. In a run of
several processes, the others append their number to the name."""


def named_items(batch: Any, trainer: Trainer, batch_idx: int, dataloader_idx: int) -> Iterator[tuple[str, Any]]:  # noqa: ANN401
    """Yield the items of a batch, each with the path of its image, or with a name of its own if it has no file.

    Args:
        batch: A batch of anomalib.
        trainer: The trainer of the run.
        batch_idx: Number of the batch.
        dataloader_idx: Number of its dataloader.
    """
    for number, item in enumerate(batch):
        name = f"image_{trainer.global_rank}_{dataloader_idx}_{batch_idx:06}_{number:03}.png"
        yield item.image_path or name, item


def write_output(path: Path, content: bytes) -> None:
    """Write a file, or delete it if it cannot be written completely.

    Content is made in memory, since numpy and PIL do not say why a file cannot be written.

    Args:
        path: The file.
        content: Its content.

    Raises:
        OSError: If it cannot be written, for instance because the disk is full; the error names it.
    """
    try:
        path.write_bytes(content)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise _not_written(error, path) from error


def write_picture(path: Path, picture: Image.Image) -> None:
    """Write a picture, or delete its file if it cannot be written completely.

    Args:
        path: The file. Its suffix says the format.
        picture: The picture.

    Raises:
        OSError: If it cannot be written; the error names it.
    """
    content = BytesIO()
    picture.save(content, Image.registered_extensions()[path.suffix.lower()])
    write_output(path, content.getvalue())


def _not_written(error: OSError, path: Path) -> OSError:
    return OSError(error.errno or errno.EIO, f"{error.strerror or error}, so that this file was not written", str(path))


class OutputFolder:
    """A folder with one file per image of a run.

    A file's path in the folder is the path of its image relative to the deepest folder that all images have in common.
    If all images lie in one folder, its name is kept, as in anomalib.

    Args:
        folder: The folder. It is made when the first file is written.
        images: Paths of all images of the run, as far as they are known.
    """

    def __init__(self, folder: Path, images: Iterable[str | Path]) -> None:
        self.folder = folder
        self._index = INDEX
        parents = {os.path.dirname(os.path.abspath(image)) for image in images}  # noqa: PTH100, PTH120  # keeps links
        try:
            common = Path(os.path.commonpath(parents))
        except ValueError:  # no images are known, or they lie on several drives
            common = Path()
        self._common = common.parent if len(parents) == 1 else common

    def path_for(self, image: str | Path, suffix: str | None = None) -> Path:
        """Return the file for an image.

        Args:
            image: Path of the image.
            suffix: Appended to the name of the file, unless it ends in it. ``None``: the name stays.
        """
        image = Path(os.path.abspath(image))  # noqa: PTH100  # keeps links, unlike `resolve`
        known = image.is_relative_to(self._common)
        relative = image.relative_to(self._common) if known else Path(*image.parts[1:])
        if suffix is not None and relative.suffix.lower() != suffix:
            relative = relative.with_name(relative.name + suffix)
        return self.folder / relative

    def add(self, path: Path) -> Path:
        """Note a file before it is written, and make its folder.

        Args:
            path: Path of :meth:`path_for`.

        Returns:
            The path.

        Raises:
            OSError: If the disk is full; the error names the file.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with (self.folder / self._index).open("a", encoding="utf-8") as index:
                index.write(f"{json.dumps(path.relative_to(self.folder).as_posix())}\n")  # names may have line breaks
        except OSError as error:
            raise _not_written(error, path) from error
        return path

    def clear(self, trainer: Trainer) -> bool:
        """Remove the files of an earlier run. Other files stay. All processes of a run have to call it.

        Args:
            trainer: The trainer of the run.

        Returns:
            Whether there were any.
        """
        if trainer.global_rank:  # processes on several machines cannot append to one file
            self._index = f"{INDEX}-{trainer.global_rank}"
        indices = sorted(self.folder.glob(f"{INDEX}*"))
        trainer.strategy.barrier("output files are found")
        for index in indices if trainer.is_global_zero else ():
            for line in index.read_text(encoding="utf-8", errors="replace").split("\n"):
                self._remove(line)
            index.unlink()
        trainer.strategy.barrier("output files are removed")
        return bool(indices)

    def _remove(self, line: str) -> None:
        """Remove the file that a line of an index names, and folders that are empty then."""
        try:
            path = self.folder / json.loads(line)
            if not path.resolve().is_relative_to(self.folder.resolve()) or not path.is_file():
                return
        except (OSError, RecursionError, TypeError, ValueError):  # a damaged line, which names no file
            return
        path.unlink()
        for parent in path.relative_to(self.folder).parents:
            folder = self.folder / parent
            if folder == self.folder or any(folder.iterdir()):
                return
            folder.rmdir()
