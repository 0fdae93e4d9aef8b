# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""The demonstration: what APRIL-GAN does, on a fresh machine, in minutes, through the same code that runs ViT-L/14.

Data are drawn, adapters trained on some kinds of surfaces and objects, and tested zero-shot and few-shot on others.
"""

import time
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.table import Table

from anomalib_aprilgan.demo.drawing.defects import HELD_OUT_DEFECTS
from anomalib_aprilgan.demo.drawing.scenes import AUXILIARY_DEFECTS, AUXILIARY_KINDS, HELD_OUT_KINDS
from anomalib_aprilgan.demo.experiment import measure_category, train_adapters
from anomalib_aprilgan.demo.findings import Example, Findings
from anomalib_aprilgan.demo.page import write_page
from anomalib_aprilgan.demo.sample_data import write_sample_data
from anomalib_aprilgan.quiet import quietly

__all__ = ["demonstrate"]

K_SHOT = 4
EPOCHS = 2
TESTED_IMAGES = 8
"""Normal images of each tested category, and images of each defect."""
TESTED_DEFECTS = ("scratch", "stain", "missing_part", *HELD_OUT_DEFECTS)


def demonstrate(output: str | Path, seed: int = 0) -> Findings:
    """Draw data, train adapters, test them zero-shot and few-shot on other kinds, and write a page about it.

    A second run replaces what the first one wrote, and nothing else: ``data``, ``adapters.safetensors`` and
    ``index.html`` in the folder.

    Args:
        output: Folder to write to.
        seed: Seed of the pictures, the training and the choice of reference images.

    Returns:
        What was found.
    """
    start = time.perf_counter()
    console = Console()
    output = Path(output).resolve()  # as anomalib gives the paths of images
    console.print("1/4  Drawing surfaces and objects, some of them damaged")
    auxiliary = write_sample_data(
        output / "data/auxiliary", AUXILIARY_KINDS, AUXILIARY_DEFECTS, train=1, test=1, seed=seed
    )
    tested = write_sample_data(
        output / "data/tested", HELD_OUT_KINDS, TESTED_DEFECTS, train=2 * K_SHOT, test=TESTED_IMAGES, seed=seed
    )
    trained_on = (len(AUXILIARY_KINDS), len(list(auxiliary.glob("*/test/*/*.png"))))
    found = Findings(seed, K_SHOT, EPOCHS, trained_on)
    with quietly(), TemporaryDirectory(dir=output, prefix=".unfinished-") as folder:
        console.print("2/4  Training adapters on {} kinds, {} images, {} epochs".format(*trained_on, EPOCHS))
        model = train_adapters([auxiliary], EPOCHS, seed, Path(folder))
        adapters = model.model.save_adapters(output / "adapters.safetensors")
        for number, category in enumerate(HELD_OUT_KINDS, start=1):
            console.print(f"3/4  Testing on kinds never seen, {number} of {len(HELD_OUT_KINDS)}: {category}")
            results = {
                k: measure_category(tested, category, k, seed, Path(folder), predict=True, adapter=adapters)
                for k in (0, K_SHOT)
            }
            found.metrics |= {(category, k): result.metrics for k, result in results.items()}
            found.references[category] = results[K_SHOT].references
            for image, mask in _chosen(tested / category, number):
                found.examples.append(Example(image, mask, {k: r.predictions[str(image)] for k, r in results.items()}))
    console.print("4/4  Writing the page")
    found.seconds = time.perf_counter() - start
    page = write_page(output / "index.html", found)
    console.print(_table(found))
    console.print(f"Took {found.seconds:.0f} s. Open {page}", soft_wrap=True)
    return found


def _table(found: Findings) -> Table:
    """Lay the metrics out."""
    table = Table(title="Kinds never seen in training, in percent")
    table.add_column("")
    for name in found.columns:
        table.add_column(name, justify="right")
    for number, (name, values) in enumerate(found.rows, start=1):
        table.add_row(name, *(f"{100 * value:.1f}" for value in values), end_section=number == len(found.references))
    return table


def _chosen(category: Path, number: int) -> list[tuple[Path, Path | None]]:
    """The first image of one defect, with its mask, and of every second category the first good one."""
    defect = TESTED_DEFECTS[number % len(TESTED_DEFECTS)]
    chosen: list[tuple[Path, Path | None]] = [
        (category / "test" / defect / "000.png", category / "ground_truth" / defect / "000_mask.png")
    ]
    return chosen if number % 2 else [*chosen, (category / "test" / "good" / "000.png", None)]
