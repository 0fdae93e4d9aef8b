# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""The HTML page of the demonstration: one file that contains all images."""

from importlib.metadata import version
from pathlib import Path

import numpy as np
from PIL import Image

from anomalib_aprilgan.demo.drawing.canvas import Array
from anomalib_aprilgan.demo.results import DemoResults, Example
from anomalib_aprilgan.files.embedded import BACKBONE
from anomalib_aprilgan.files.whole_files import write_file
from anomalib_aprilgan.pages.rendering import data_url, heatmap_over, make_environment, scale

__all__ = ["write_page"]

DISTRIBUTIONS = ("anomalib-aprilgan", "anomalib", "torch", "open_clip_torch")
PIXELS = 192
"""Height and width of the images in the page."""


def write_page(path: Path, results: DemoResults) -> Path:
    """Write the page.

    Args:
        path: File to write.
        results: Results to show.

    Returns:
        The file.

    Raises:
        OSError: If it cannot be written; the error names it.
    """
    page = (
        make_environment()
        .get_template("demo/page.html.jinja")
        .render(
            title=f"{path.resolve().parent.name}: APRIL-GAN on kinds not seen in training",
            results=results,
            backbone=BACKBONE,
            scale=scale(),
            examples=[_context(example, results.k_shot) for example in results.examples],
            references=[
                (category, [(file, data_url(_read(Path(file)).resize((64, 64)))) for file in files])
                for category, files in results.references.items()
            ],
            folder=path.parent,
            versions={name: version(name) for name in DISTRIBUTIONS},
        )
    )
    return write_file(path, page)


def _context(example: Example, k_shot: int) -> dict[str, object]:
    """An example's images and predictions, for the template."""
    picture = _read(example.path)
    truth = Image.new("L", picture.size) if example.mask is None else _read(example.mask)
    is_anomalous = example.mask is not None
    return {
        "category": example.path.parents[2].name,
        "defect": example.path.parent.name.replace("_", " "),
        "picture": data_url(picture),
        "truth": data_url(truth),
        "shots": [
            {
                "name": f"{shots}-shot" if shots else "zero-shot",
                "heatmap": data_url(_heatmap(picture, example.predictions[shots].anomaly_map)),
                "score": example.predictions[shots].score,
                "label": example.predictions[shots].label,
                "correct": example.predictions[shots].label == is_anomalous,
            }
            for shots in (0, k_shot)
        ],
    }


def _heatmap(picture: Image.Image, anomaly_map: Array) -> Image.Image:
    """Overlay an image with its anomaly map."""
    return heatmap_over(picture, Image.fromarray(np.asarray(anomaly_map.clip(0, 1) * 255, np.uint8)))


def _read(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.resize((PIXELS, PIXELS), Image.Resampling.BICUBIC)
