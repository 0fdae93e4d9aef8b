# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""The HTML page of the demonstration: one file that contains all images."""

from base64 import b64encode
from importlib.metadata import version
from io import BytesIO
from pathlib import Path

import numpy as np
from anomalib.visualization.image.functional import apply_colormap, overlay_image
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from anomalib_aprilgan.demo.drawing.canvas import Array
from anomalib_aprilgan.demo.results import DemoResults, Example
from anomalib_aprilgan.files.embedded import BACKBONE

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
    """
    environment = Environment(
        loader=PackageLoader("anomalib_aprilgan.demo", "."), autoescape=True, undefined=StrictUndefined
    )
    ramp = np.linspace(0, 255, 128).astype(np.uint8)[None].repeat(8, axis=0)
    page = environment.get_template("page.html.jinja").render(
        results=results,
        backbone=BACKBONE,
        scale=_inline(apply_colormap(Image.fromarray(ramp))),
        examples=[_context(example, results.k_shot) for example in results.examples],
        references=[
            (category, [(file, _inline(_read(Path(file)).resize((64, 64)))) for file in files])
            for category, files in results.references.items()
        ],
        folder=path.parent,
        versions={name: version(name) for name in DISTRIBUTIONS},
    )
    unfinished = path.with_suffix(".part")
    unfinished.write_text(page, encoding="utf-8")
    return unfinished.replace(path)


def _context(example: Example, k_shot: int) -> dict[str, object]:
    """An example's images and predictions, for the template."""
    picture = _read(example.path)
    truth = Image.new("L", picture.size) if example.mask is None else _read(example.mask)
    is_anomalous = example.mask is not None
    return {
        "category": example.path.parents[2].name,
        "defect": example.path.parent.name.replace("_", " "),
        "picture": _inline(picture),
        "truth": _inline(truth),
        "shots": [
            {
                "name": f"{shots}-shot" if shots else "zero-shot",
                "heatmap": _inline(_heatmap(picture, example.predictions[shots].anomaly_map)),
                "score": example.predictions[shots].score,
                "label": example.predictions[shots].label,
                "correct": example.predictions[shots].label == is_anomalous,
            }
            for shots in (0, k_shot)
        ],
    }


def _heatmap(picture: Image.Image, anomaly_map: Array) -> Image.Image:
    """Overlay an image with its anomaly map."""
    grey = Image.fromarray(np.asarray(anomaly_map.clip(0, 1) * 255, np.uint8)).resize(
        picture.size, Image.Resampling.BICUBIC
    )
    return overlay_image(picture, apply_colormap(grey), alpha=0.6).convert("RGB")


def _read(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.resize((PIXELS, PIXELS), Image.Resampling.BICUBIC)


def _inline(image: Image.Image) -> str:
    """Encode an image as a data URL."""
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return f"data:image/png;base64,{b64encode(buffer.getvalue()).decode()}"
