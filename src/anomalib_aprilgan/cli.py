# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""The console command ``anomalib-aprilgan``: what anomalib's own command does not do.

Training, testing, prediction and export are anomalib's: ``anomalib test --model AprilGan ...``.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Literal

from jsonargparse import ArgumentParser

__all__ = ["main"]


def sample_data(output: str, size: int = 128, train: int = 8, test: int = 4, seed: int = 0) -> None:
    """Write a small labelled data set with MVTec AD's folders, without any download.

    Args:
        output: Folder of the data set.
        size: Height and width of the images in pixels.
        train: Normal training images per category.
        test: Test images per category, of normal ones and of each defect.
        seed: Seed of crops and defects.
    """
    from anomalib_aprilgan.sample_data import CATEGORIES, write_sample_data  # noqa: PLC0415

    root = write_sample_data(output, size=size, train=train, test=test, seed=seed)
    print(f"Wrote {', '.join(CATEGORIES)} to {root}")  # noqa: T201  # a command speaks


def fetch(name: Literal["visa", "mvtec"]) -> None:
    """Download published adapters into the cache, for use without network later, and print where they are.

    Args:
        name: Data set that they were trained on.
    """
    from anomalib_aprilgan.published import fetch as fetch_published  # noqa: PLC0415

    print(fetch_published(name))  # noqa: T201


def extract(source: str, output: str) -> None:
    """Write the adapters of a checkpoint, or of one of the authors' files, to a small safetensors file.

    Args:
        source: Checkpoint of a training, or an adapter file.
        output: File to write; its suffix must be .safetensors.
    """
    from anomalib_aprilgan.adapters import read_adapters, write_adapters  # noqa: PLC0415

    weights, origin = read_adapters(source)
    print(write_adapters(output, weights, origin))  # noqa: T201


COMMANDS: dict[str, Callable[..., None]] = {"sample-data": sample_data, "fetch": fetch, "extract": extract}


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        args: Arguments in place of the process's own.
    """
    parser = ArgumentParser(prog="anomalib-aprilgan", description="Companion of `anomalib ... --model AprilGan`.")
    subcommands = parser.add_subcommands()
    for name, command in COMMANDS.items():
        subparser = ArgumentParser(description=(command.__doc__ or "").partition("\n")[0])
        subparser.add_function_arguments(command, as_positional=True)
        subcommands.add_subcommand(name, subparser, help=subparser.description)  # type: ignore[no-untyped-call]
    config = parser.parse_args(args)
    name = config.subcommand
    try:
        COMMANDS[name](**config[name].as_dict())
    except (ValueError, RuntimeError, OSError) as error:
        sys.exit(f"anomalib-aprilgan {name}: {error}")
