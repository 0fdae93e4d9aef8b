# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Templates of the pages, and images that a page contains as data URLs."""

from base64 import b64encode
from io import BytesIO
from typing import Any, Final

import numpy as np
from anomalib.visualization.image.functional import apply_colormap, overlay_image
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from PIL import Image

__all__ = ["data_url", "heatmap_over", "make_environment", "scale"]

OPACITY: Final = 0.6
"""Opacity of the heatmaps."""


def make_environment(**options: Any) -> Environment:  # noqa: ANN401
    """Make an environment of Jinja for templates of this package. Texts in HTML are escaped.

    Args:
        **options: Further arguments of Jinja's environment.

    Returns:
        The environment. Its templates are named by their paths in the package.
    """
    return Environment(
        loader=PackageLoader("anomalib_aprilgan", "."),
        autoescape=select_autoescape(["html.jinja"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        **options,
    )


def heatmap_over(image: Image.Image, anomaly_map: Image.Image) -> Image.Image:
    """Lay an anomaly map over its image.

    Args:
        image: The image.
        anomaly_map: 8-bit grey image of any size; 0 is normal.

    Returns:
        RGB image of the size of ``image``.
    """
    colours = apply_colormap(anomaly_map.resize(image.size, Image.Resampling.BICUBIC))
    return overlay_image(image, colours, alpha=OPACITY).convert("RGB")


def scale() -> str:
    """Return a data URL of the heatmaps' colours from 0 to 1."""
    grey = np.linspace(0, 255, 128).astype(np.uint8)[None].repeat(8, axis=0)
    return data_url(apply_colormap(Image.fromarray(grey)))


def data_url(image: Image.Image) -> str:
    """Encode an image as the data URL of a JPEG."""
    buffer = BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{b64encode(buffer.getvalue()).decode()}"
