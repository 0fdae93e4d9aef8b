# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""The console command ``anomalib-aprilgan``: demonstration, diagnosis, sample data, comparison, adapter files.

Use anomalib's own command to train, test, predict and export: ``anomalib test --model AprilGan ...``.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentParser

__all__ = ["main"]


def demo(output: str = "aprilgan-demo", seed: int = 0) -> None:
    """Train and test on generated images, zero-shot and few-shot. Takes minutes and downloads nothing.

    Args:
        output: Folder for the page, the adapters and the images.
        seed: Seed of the images, the training and the choice of reference images.
    """
    import warnings  # noqa: PLC0415

    warnings.simplefilter("ignore", FutureWarning)  # raised by imports in anomalib
    from anomalib_aprilgan.demo.demonstration import demonstrate  # noqa: PLC0415

    demonstrate(output, seed)


def sample_data(
    output: str,
    kinds: Literal["photographs", "auxiliary", "held_out"] = "photographs",
    size: int = 128,
    train: int = 8,
    test: int = 4,
    seed: int = 0,
) -> None:
    """Write a small labelled data set in the folder layout of MVTec AD. Downloads nothing.

    Args:
        output: Folder of the data set.
        kinds: Content of the images. photographs: real surfaces with drawn defects. auxiliary: drawn surfaces and
            objects for the training of adapters. held_out: drawn kinds that the embedded CLIP was not trained on.
        size: Height and width of the images in pixels.
        train: Number of normal training images per category.
        test: Number of normal test images per category, and of abnormal test images per defect.
        seed: Seed of colours, shapes, defects and light.
    """
    from anomalib_aprilgan.demo.sample_data import DATA_SETS, write_sample_data  # noqa: PLC0415

    categories, defects = DATA_SETS[kinds]
    root = write_sample_data(output, categories, defects, size=size, train=train, test=test, seed=seed)
    print(f"Wrote {', '.join(categories)} to {root}")  # noqa: T201


def pretrain(
    folder: Path,
    photographs: Path | None = None,
    start: str | None = None,
    pairs: int = 60_000,
    steps: int = 4400,
    photograph_pairs: int = 8000,
    photograph_steps: int = 500,
    seed: int = 0,
) -> None:
    """Train the embedded CLIP and its adapters from scratch. Run it again to continue an interrupted training.

    Args:
        folder: Folder for images, checkpoints, weights and adapters.
        photographs: Folder of photographs of undamaged materials, with INDEX.tsv, for a second round of training.
        start: What the second round starts from, instead of the first round: a folder with weights and adapters of this
            command, or builtin for those of this package.
        pairs: Number of drawn image pairs of the first round.
        steps: Steps of the first round.
        photograph_pairs: Number of image pairs of the second round.
        photograph_steps: Steps of the second round.
        seed: Seed of images, weights and batches.
    """
    from anomalib_aprilgan.pretraining.command import pretrain as pretrain_clip  # noqa: PLC0415

    pretrain_clip(folder, photographs, start, pairs, steps, photograph_pairs, photograph_steps, seed)


def fetch(name: Literal["visa", "mvtec"]) -> None:
    """Download published adapters into the cache for later use without network, and print the path.

    Args:
        name: Data set that the adapters were trained on.
    """
    from anomalib_aprilgan.files.published import fetch as fetch_published  # noqa: PLC0415

    print(fetch_published(name))  # noqa: T201


def extract(source: str, output: str) -> None:
    """Write the adapters of a checkpoint or of an authors' file to a small safetensors file, and print its path.

    Args:
        source: Checkpoint of a training, or an adapter file.
        output: File to write; its suffix must be .safetensors.
    """
    from anomalib_aprilgan.files.adapter_files import read_adapters, write_adapters  # noqa: PLC0415

    weights, origin = read_adapters(source)
    print(write_adapters(output, weights, origin))  # noqa: T201


def doctor(record: bool = False) -> None:
    """Say whether the installation works, for bug reports: versions, devices, cached weights, and a self-test.

    Args:
        record: Instead, record the numbers of the self-test anew. For developers, after a training of ViT-builtin.
    """
    if record:
        from anomalib_aprilgan.diagnosis.self_test import record as record_numbers  # noqa: PLC0415

        print(record_numbers())  # noqa: T201
        return
    from anomalib_aprilgan.diagnosis.doctor import examine  # noqa: PLC0415

    if not examine():
        sys.exit(1)


def cache(clear: bool = False, folder: Path | None = None) -> None:
    """Show or delete what is kept on disk: features of images, and text features of classes.

    Args:
        clear: Delete all of it.
        folder: Folder of the features of images. Default: that of the environment variable ANOMALIB_APRILGAN_FEATURES,
            else a cache.
    """
    from anomalib_aprilgan.diagnosis import cache as stored  # noqa: PLC0415

    print(stored.clear(folder) if clear else stored.describe(folder))  # noqa: T201


def report(folder: Path) -> None:
    """Write the report of a comparison again from its results, and print its path.

    Args:
        folder: Output folder of the comparison.
    """
    from anomalib_aprilgan.comparison.report import write_report  # noqa: PLC0415

    print(write_report(folder))  # noqa: T201


def compare(**arguments: Any) -> None:  # noqa: ANN401
    """Test models side by side, one row per run, and write a report."""
    from anomalib_aprilgan.comparison.compare import compare as compare_models  # noqa: PLC0415

    arguments.pop("config", None)
    print(f"Report: {compare_models(**arguments)}")  # noqa: T201


def verify(
    root: list[str],
    output: str = "results/verification",
    shots: list[int] = [0],  # noqa: B006  # jsonargparse shows it
    pretrained: str = "auto",
    adapters: Path | None = None,
    download: bool = False,
    accelerator: str = "auto",
    num_workers: int = 8,
) -> None:
    """Measure the published figures with the real weights, and say which categories of MVTec AD and VisA meet them.

    Args:
        root: Folders of MVTec AD and VisA.
        output: Folder of the results. If the command is interrupted, run it again: it continues where it stopped.
        shots: Numbers of reference images. Published are 0, 1, 2 and 4; categories have figures for 0 only.
        pretrained: File with OpenAI's weights of ViT-L-14-336. auto: the file in open_clip's caches.
        adapters: Folder of the authors' files mvtec_pretrained.pth and visa_pretrained.pth. Default: the cache.
        download: Download missing weights. Data sets are never downloaded.
        accelerator: Where to compute, as for anomalib's Engine: auto, gpu or cpu.
        num_workers: Number of processes that load images.
    """
    import warnings  # noqa: PLC0415

    warnings.simplefilter("ignore", FutureWarning)  # raised by imports in anomalib
    from anomalib_aprilgan.verification.verify import Weights  # noqa: PLC0415
    from anomalib_aprilgan.verification.verify import verify as measure_and_compare  # noqa: PLC0415

    weights = Weights(pretrained, adapters, download)
    if not measure_and_compare(root, output, shots, weights, accelerator, num_workers):
        sys.exit(1)


ROOT_HELP = "Folder of MVTec AD or of VisA. Give the option twice for both."

COMMANDS: dict[str, Callable[..., None]] = {
    "demo": demo,
    "doctor": doctor,
    "cache": cache,
    "sample-data": sample_data,
    "pretrain": pretrain,
    "fetch": fetch,
    "extract": extract,
    "compare": compare,
    "report": report,
    "verify": verify,
}


def main(args: Sequence[str] | None = None) -> None:
    """Run the console command.

    Args:
        args: Command-line arguments. ``None``: the arguments of the process.
    """
    given = list(sys.argv[1:] if args is None else args)
    parser = ArgumentParser(prog="anomalib-aprilgan", description="Companion of `anomalib ... --model AprilGan`.")
    subcommands = parser.add_subcommands()
    for name, command in COMMANDS.items():
        subparser = ArgumentParser(description=(command.__doc__ or "").partition("\n")[0])
        if command is verify:
            subparser.add_argument("--root", action="append", required=True, help=ROOT_HELP)
        if command is not compare:
            subparser.add_function_arguments(command, as_positional=True, skip={"root"} if command is verify else set())
        elif given[:1] == [name]:  # only then, because pandas takes half a second to import
            _add_arguments_of_comparison(subparser, is_help={"-h", "--help"} & set(given) != set())
        subcommands.add_subcommand(name, subparser, help=subparser.description)  # type: ignore[no-untyped-call]
    name = next(iter(given), "")
    try:
        if name == "compare":
            from anomalib_aprilgan.comparison.configuration import check_configurations  # noqa: PLC0415

            check_configurations(given[1:])
        config = parser.parse_args(given)
        name = config.subcommand
        COMMANDS[name](**config[name].as_dict())
    except (ValueError, RuntimeError, OSError) as error:
        sys.exit(f"anomalib-aprilgan {name}: {error}")


def _add_arguments_of_comparison(parser: ArgumentParser, *, is_help: bool) -> None:
    """Add the arguments of ``compare``: configuration file, models and data as in anomalib's command, and options."""
    from anomalib_aprilgan.comparison.compare import compare as compare_models  # noqa: PLC0415

    parser.add_argument("--config", action="config", help="YAML file with any of these arguments.")
    if is_help:  # the types of models and data need anomalib, which takes seconds to import
        parser.add_function_arguments(compare_models, as_positional=False)
        return
    import warnings  # noqa: PLC0415

    warnings.simplefilter("ignore", FutureWarning)  # raised by imports in anomalib
    from anomalib_aprilgan.comparison.components import add_component_arguments  # noqa: PLC0415

    add_component_arguments(parser)
    parser.add_function_arguments(compare_models, as_positional=False, skip={"models", "data"})
