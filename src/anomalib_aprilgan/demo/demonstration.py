# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""The command ``anomalib-aprilgan demo``: trains adapters on drawn images, tests on others, writes a page.

The tests show drawn kinds, with the adapters trained in this run, and photographs, with the adapters of this package.
It runs offline, on a CPU, in minutes, and uses the same code as any other backbone.
"""

import shutil
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from anomalib_aprilgan.demo.drawing.defects import HELD_OUT_DEFECTS
from anomalib_aprilgan.demo.drawing.scenes import AUXILIARY_DEFECTS, AUXILIARY_KINDS, HELD_OUT_KINDS
from anomalib_aprilgan.demo.experiment import evaluate_category, train_adapters
from anomalib_aprilgan.demo.page import write_page
from anomalib_aprilgan.demo.results import DemoResults, Example
from anomalib_aprilgan.demo.sample_data import write_sample_data
from anomalib_aprilgan.files.whole_files import unfinished_folder
from anomalib_aprilgan.integration.quiet import quietly

__all__ = ["demonstrate"]

K_SHOT = 4
EPOCHS = 2
TESTED_IMAGES = 8
"""Test images per category: so many normal ones, and so many of each defect."""
TESTED_DEFECTS = ("scratch", "stain", "missing_part", *HELD_OUT_DEFECTS)
TESTED_PHOTOGRAPHS = ("brick", "gravel", "grass", "coffee")
DRAWN_SIZE, PHOTOGRAPH_SIZE = 128, 256
"""Heights and widths of the images in pixels. The model sees photographs in its default size."""


def demonstrate(output: str | Path, seed: int = 0) -> DemoResults:
    """Draw data, train adapters, test zero-shot and few-shot on other kinds, and write a page with the results.

    Writes ``data``, ``adapters.safetensors`` and ``index.html`` to the folder, or replaces them. Other files stay.

    Args:
        output: Folder to write to.
        seed: Seed of the images, the training and the choice of reference images.

    Returns:
        The results.
    """
    start = time.perf_counter()
    console = Console()
    output = Path(output).resolve()  # anomalib resolves image paths too
    console.print("1/4  Drawing surfaces, objects and defects")
    for name in ("auxiliary", "tested", "photographs"):  # images of an earlier version would be used as well
        if (output / "data" / name).is_dir():
            shutil.rmtree(output / "data" / name)
    auxiliary = write_sample_data(
        output / "data/auxiliary", AUXILIARY_KINDS, AUXILIARY_DEFECTS, train=1, test=1, seed=seed
    )
    tested, photographs = (
        write_sample_data(
            output / "data" / name, kinds, TESTED_DEFECTS, size, train=2 * K_SHOT, test=TESTED_IMAGES, seed=seed
        )
        for name, kinds, size in (
            ("tested", HELD_OUT_KINDS, DRAWN_SIZE),
            ("photographs", TESTED_PHOTOGRAPHS, PHOTOGRAPH_SIZE),
        )
    )
    trained_on = (len(AUXILIARY_KINDS), len(list(auxiliary.glob("*/test/*/*.png"))))
    results = DemoResults(seed, K_SHOT, EPOCHS, trained_on)
    with quietly(), unfinished_folder(output) as folder:
        console.print("2/4  Training adapters on {} kinds, {} images, {} epochs".format(*trained_on, EPOCHS))
        stored = {"features": folder / "features"}  # zero-shot and few-shot tests see the same images
        model = train_adapters([auxiliary], EPOCHS, seed, folder, image_size=DRAWN_SIZE, **stored)
        adapters = model.model.save_adapters(output / "adapters.safetensors")
        arguments: dict[str, Any]
        for name, root, categories, arguments in (
            ("drawn kinds", tested, HELD_OUT_KINDS, {"adapter": adapters, "image_size": DRAWN_SIZE, **stored}),
            ("photographs", photographs, TESTED_PHOTOGRAPHS, stored),
        ):
            results.categories[name] = list(categories)
            for number, category in enumerate(categories, start=1):
                console.print(f"3/4  Testing on {name} not seen in training, {number} of {len(categories)}: {category}")
                _test(results, root / category, number, folder, arguments)
    console.print("4/4  Writing the page")
    results.seconds = time.perf_counter() - start
    page = write_page(output / "index.html", results)
    console.print(_table(results))
    console.print(f"Took {results.seconds:.0f} s. Open {page}", soft_wrap=True)
    return results


def _test(results: DemoResults, category: Path, number: int, folder: Path, arguments: dict[str, Any]) -> None:
    """Test a category zero-shot and few-shot, and add metrics, references and examples to the results."""
    by_shots = {
        k: evaluate_category(
            category.parent, category.name, k, results.seed, folder, with_predictions=True, **arguments
        )
        for k in (0, K_SHOT)
    }
    results.metrics |= {(category.name, k): result.metrics for k, result in by_shots.items()}
    results.references[category.name] = by_shots[K_SHOT].references
    for image, mask in _examples(category, number):
        predictions = {k: result.predictions[str(image)] for k, result in by_shots.items()}
        results.examples.append(Example(image, mask, predictions))


def _table(results: DemoResults) -> Table:
    """Format the metrics as a table."""
    table = Table(title="Kinds never seen in training, in percent")
    table.add_column("")
    for name in results.columns:
        table.add_column(name, justify="right")
    for title, rows in results.tables.items():
        table.add_row(f"[bold]{title}[/bold]")
        for name, values in rows:
            table.add_row(name, *(f"{100 * value:.1f}" for value in values), end_section=name == "mean")
    return table


def _examples(category: Path, number: int) -> list[tuple[Path, Path | None]]:
    """Choose example images of a category.

    Args:
        category: The category's folder.
        number: Its number, from 1. It determines the defect, and whether there is a normal image too.

    Returns:
        Image and mask file of the first image of one defect; in every second category also the first normal image.
    """
    defect = TESTED_DEFECTS[number % len(TESTED_DEFECTS)]
    abnormal = (category / "test" / defect / "000.png", category / "ground_truth" / defect / "000_mask.png")
    return [abnormal] if number % 2 else [abnormal, (category / "test" / "good" / "000.png", None)]
