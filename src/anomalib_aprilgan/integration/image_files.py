# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Checks of image and mask files before a run: damage, bits per channel, orientation and size."""

import mmap
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from PIL import ExifTags, Image, TiffImagePlugin

__all__ = [
    "Problem",
    "Size",
    "check_image_files",
    "describe_problems",
    "find_problems",
    "find_unreadable",
    "refuse_problems",
]

Size = tuple[int, int]
"""Width and height in pixels."""

FORMATS = ("PNG", "JPEG", "MPO", "TIFF", "BMP", "DIB", "PPM", "WEBP", "GIF", "JPEG2000", "AVIF")
"""Formats of images. PIL tells a format by a file's content, not by its suffix, and runs other programs for some."""

DAMAGED = "If a file is damaged, or of a format that Pillow cannot read, replace or remove it."

TURNED = range(2, 9)
"""EXIF orientations of images whose pixels are stored rotated or mirrored."""

EXIF_MARKERS = (b"eXIf", b"Orientation", b"Raw profile type")
"""One of these is part of every PNG with an orientation. PIL decodes a PNG completely to look for one."""


THREADS = min(8, os.cpu_count() or 1)
"""Number of files that are read at once. PIL decodes without Python's lock."""

MOST_SOUND_FILES = 200_000
"""Number of sound files that are remembered."""

_sound_files: dict[str, tuple[tuple[int, ...], Size]] = {}
"""Files that were sound: their state when they were read, and their size."""


class Problem(NamedTuple):
    """Why an image, or its mask, cannot be used, and what the user can do."""

    image: str
    text: str
    remedy: str


def check_image_files(
    files: Iterable[str | Path], masks: Mapping[str, str | Path | None] | None = None
) -> dict[str, Size]:
    """Check that files are undamaged, upright images with 8 bits per channel, and that masks fit their images.

    anomalib reads images of more bits as nearly black or white, and images with an EXIF orientation without turning
    them, so that a mask that was drawn on the upright image lies elsewhere.

    Args:
        files: Image files.
        masks: The mask file of each abnormal image; ``None`` for an image without one.

    Returns:
        Width and height of each image in pixels.

    Raises:
        ValueError: If a file cannot be used; the message names up to ten such files.
    """
    sizes, problems = find_problems(files, masks)
    refuse_problems(problems)
    return sizes


def refuse_problems(problems: Sequence[Problem]) -> None:
    """Raise an error if there are problems.

    Raises:
        ValueError: If there are; the message names up to ten files.
    """
    if problems:
        msg = f"Some image files cannot be used: {describe_problems(problems)}"
        raise ValueError(msg)


def find_problems(
    files: Iterable[str | Path], masks: Mapping[str, str | Path | None] | None = None
) -> tuple[dict[str, Size], list[Problem]]:
    """Find images that cannot be used; arguments as for :func:`check_image_files`.

    Several threads read the files. A file that was sound is not read again in this process unless it has changed.

    Returns:
        Width and height of the other images in pixels, and the problems.
    """
    sizes: dict[str, Size] = {}
    problems: list[Problem] = []
    names = list(dict.fromkeys(map(str, files)))
    with ThreadPoolExecutor(THREADS) as pool:
        for file, found in zip(names, pool.map(_size_or_problem, map(Path, names)), strict=True):
            if isinstance(found, Problem):
                problems.append(found)
            else:
                sizes[file] = found

        def mask_problem(pair: tuple[str, object]) -> Problem | None:
            return _mask_problem(*pair, sizes)

        pairs = list((masks or {}).items())
        found_in_masks = zip(pairs, pool.map(mask_problem, pairs), strict=True)
        problems += [problem._replace(image=image) for (image, _), problem in found_in_masks if problem is not None]
    return sizes, problems


def find_unreadable(files: Iterable[str | Path]) -> list[Problem]:
    """Find files that cannot be decoded, by decoding each completely. The checks before a run are quicker.

    Args:
        files: Image or mask files.

    Returns:
        The problems.
    """
    with ThreadPoolExecutor(THREADS) as pool:
        found = pool.map(_decoding_problem, dict.fromkeys(map(str, files)))
        return [problem for problem in found if problem is not None]


def _decoding_problem(file: str) -> Problem | None:
    try:
        with Image.open(file) as image:
            image.load()
    except Exception as error:  # PIL raises errors of many types for damaged files
        return Problem(file, f"{file} is damaged or no image ({error})", DAMAGED)
    return None


def describe_problems(problems: Sequence[Problem]) -> str:
    """Describe up to ten problems, and what the user can do."""
    more = f" and {len(problems) - 10} more" if len(problems) > 10 else ""  # noqa: PLR2004
    remedies = " ".join(dict.fromkeys(problem.remedy for problem in problems))
    return f"{'; '.join(problem.text for problem in problems[:10])}{more}. {remedies}"


def _mask_problem(image: str, mask: object, sizes: Mapping[str, Size]) -> Problem | None:
    if not isinstance(mask, str | Path) or not str(mask) or not Path(mask).is_file():
        name = f": {mask} does not exist" if isinstance(mask, str | Path) and str(mask) else ""
        return Problem(
            image, f"the abnormal image {image} has no mask{name}", "Add a missing mask or remove its image."
        )
    found = _size_or_problem(Path(mask), is_mask=True)
    if isinstance(found, Problem):
        return found
    size = sizes.get(image, found)
    if found == size:
        return None
    return Problem(
        image,
        f"the mask {mask} is {found[0]} x {found[1]} pixels (width x height), but its image is {size[0]} x {size[1]}",
        "A mask needs the width and height of its image: turn it or draw it again.",
    )


def _size_or_problem(path: Path, *, is_mask: bool = False) -> Size | Problem:
    """Return what is known of a file, or read it."""
    try:
        status = path.stat()
    except OSError:
        return _read_size(path, is_mask=is_mask)
    state = (is_mask, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
    if (known := _sound_files.get(str(path))) is not None and known[0] == state:
        return known[1]
    found = _read_size(path, is_mask=is_mask)
    if not isinstance(found, Problem):
        if len(_sound_files) > MOST_SOUND_FILES:
            _sound_files.clear()
        _sound_files[str(path)] = (state, found)
    return found


def _read_size(path: Path, *, is_mask: bool) -> Size | Problem:
    try:
        if (unsafe := _unsafe(path)) is not None:
            return unsafe
        with Image.open(path) as image:
            bits, mode, size = _bits_per_channel(image, path), image.mode, image.size
            if image.format == "PNG":
                image.verify()  # compares checksums, without decoding
            elif image.format == "JPEG":
                image.draft(mode, (size[0] // 8 or 1, size[1] // 8 or 1))  # is decoded faster at reduced size
                image.load()
            else:
                image.load()
                size = image.size  # PIL turns TIFF files while it loads them
        orientation = _orientation(path)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        remedy = "Shrink images that are too large or cut them into tiles; `PIL.Image.MAX_IMAGE_PIXELS` sets the limit."
        return Problem(str(path), f"{path} is too large ({error})", remedy)
    except Exception as error:  # PIL raises errors of many types for damaged files
        return Problem(str(path), f"{path} is damaged or no image ({error})", DAMAGED)
    if bits > 8 and not (is_mask and mode.startswith(("I", "F"))):  # noqa: PLR2004  # grey masks are read rightly
        remedy = (
            "Images of more bits would be read as nearly black or white: convert them to 8 bits per channel, scaled"
        )
        return Problem(
            str(path), f"{path} has more than 8 bits per channel ({bits})", f"{remedy} to values from 0 to 255."
        )
    if orientation in TURNED:
        remedy = (
            "A photograph with an EXIF orientation would be read as stored, not upright: turn it with "
            "`mogrify -auto-orient FILE` (ImageMagick) or PIL.ImageOps.exif_transpose. If the stored pixels are "
            "upright, remove the entry with `exiftool -Orientation= FILE`."
        )
        return Problem(str(path), f"{path} is stored rotated or mirrored (EXIF orientation {orientation})", remedy)
    return size


def _unsafe(path: Path) -> Problem | None:
    """Find what would wait for ever or run other programs, before anything is decoded."""
    if path.exists() and not path.is_file():
        return Problem(str(path), f"{path} is no file", "Remove folders, named pipes and devices from the images.")
    with Image.open(path) as image:
        if image.format in FORMATS:
            return None
        return Problem(str(path), f"{path} is of the format {image.format}", f"Use {', '.join(FORMATS)}.")


def _bits_per_channel(image: Image.Image, path: Path) -> int:
    """Read the bits per channel from the header, since PIL opens 16-bit colours in the 8-bit mode RGB."""
    if image.format == "PNG":
        with path.open("rb") as file:
            return file.read(25)[-1]  # after the signature (8 bytes), length and name of IHDR (8), width and height (8)
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        bits: Any = image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (1,))
        return int(max(bits))
    if image.mode.startswith(("I", "F")):
        return 16 if image.mode.startswith("I") else 32
    tiles: Any = getattr(image, "tile", ())
    arguments = tiles[0][3] if tiles else None  # of the decoder; Pillow gives them a name since release 11
    largest = arguments[-1] if image.format == "PPM" and arguments else 255
    return largest.bit_length() if isinstance(largest, int) else 8


def _orientation(path: Path) -> int:
    """Read the EXIF orientation of the pixels as PIL decodes them; 1 is upright."""
    with Image.open(path) as image:
        if image.format == "TIFF":  # PIL turns TIFF files while it loads them
            return 1
        if image.format == "PNG":
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                if all(content.find(marker) < 0 for marker in EXIF_MARKERS):
                    return 1
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        return orientation if isinstance(orientation, int) else 1
